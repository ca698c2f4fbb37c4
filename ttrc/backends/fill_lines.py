"""Lets arguments fill lines where a formatter would give each a line of its own: kernels take thirty of them."""

from __future__ import annotations

import textwrap

WIDTH = 110
FEWEST = 4  # of fewer, each may have its own


def fill_lines(text: str) -> str:
    """Formatted text, of which items between parentheses or brackets, a line each, fill lines of WIDTH instead.

    An item that takes several lines keeps them; those ahead of it and behind fill lines of their own.
    """
    lines, done = text.split("\n"), []
    while lines:
        done.append(lines.pop(0))
        opens = done[-1].endswith(("(", "[")) or done[-1].strip() in ("),", "],")  # or goes on behind a long item
        inside = _items(lines) if opens else 0
        if inside >= FEWEST:
            done += _filled(lines[:inside])
            del lines[:inside]
    return "\n".join(done)


def _items(lines: list[str]) -> int:
    """How many of the next lines hold one item each."""
    indent = len(lines[0]) - len(lines[0].lstrip())
    for number, line in enumerate(lines):
        whole = line.endswith(",") and "  #" not in line
        if not whole or not line.startswith(" " * indent) or line[indent] in " )]}#":
            return number
    return len(lines)


def _filled(items: list[str]) -> list[str]:
    """Broken behind items alone."""
    indent = " " * (len(items[0]) - len(items[0].lstrip()))
    text = " ".join(item.strip().replace(" ", "\N{NO-BREAK SPACE}") for item in items)
    wrapped = textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in wrapped]
