"""Lets arguments fill lines where a formatter would give each a line of its own: kernels take thirty of them."""

from __future__ import annotations

import textwrap

WIDTH = 110
FEWEST = 4  # of fewer, each may have its own


def fill_lines(text: str) -> str:
    """Formatted text, of which whatever stands between parentheses line by line fills lines of WIDTH instead."""
    lines, done = text.split("\n"), []
    while lines:
        done.append(lines.pop(0))
        inside = _items(lines) if done[-1].endswith("(") else 0
        if inside >= FEWEST:
            done += _filled(lines[:inside])
            del lines[:inside]
    return "\n".join(done)


def _items(lines: list[str]) -> int:
    """How many lines hold one item each, up to the line that closes the parenthesis; 0 where any does not."""
    indent = len(lines[0]) - len(lines[0].lstrip())
    for number, line in enumerate(lines):
        if line.startswith(" " * (indent - 4) + ")"):
            return number
        if not line.startswith(" " * indent) or line[indent] in " )]}#" or not line.endswith(",") or "  #" in line:
            return 0
    return 0


def _filled(items: list[str]) -> list[str]:
    """Broken behind items alone."""
    indent = " " * (len(items[0]) - len(items[0].lstrip()))
    text = " ".join(item.strip().replace(" ", "\N{NO-BREAK SPACE}") for item in items)
    wrapped = textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in wrapped]
