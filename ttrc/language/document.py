"""TOML text to plain data with line numbers, within bounds that make hostile text cheap to refuse.

A scanner reads the text once, before the TOML library does: it notes the line of every table and key, and
refuses nesting that would cost the library quadratic time or a deep stack.
"""

from __future__ import annotations

import math
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttrc.errors import SpecError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 64 * 1024
MAX_NESTING = 8  # of brackets, and of the parts of a dotted key; a spec needs two

Keys = tuple[str, ...]

_CONTROL = re.compile("[\ufeff\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Document:
    """The data of a TOML text, and the 1-based line of each of its tables and keys."""

    data: dict[str, Any]
    lines: dict[Keys, int]

    def at(self, *keys: str) -> Any:
        """What this key holds."""
        value: Any = self.data
        for key in keys:
            value = value[key]
        return value

    def line(self, *keys: str) -> int:
        """The line of this key, or of the innermost table around it that the file spells out."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)


def read_text(path: Path) -> str:
    """The text of a spec file. Nothing is read before its kind and its size are known."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise SpecError("this is a directory", expected="a TOML file")
        if not stat.S_ISREG(status.st_mode):
            raise SpecError("this is not a regular file", expected="a TOML file")
        _check_size(status.st_size)
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise SpecError(f"cannot be read: {reason}", expected="a path to a TOML file") from None
    _check_size(len(raw))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError("the file is not UTF-8 text", line=line, expected="a TOML file in UTF-8") from None


def read_document(text: str) -> Document:
    """The data of a TOML text. Raises a SpecError with a line."""
    # Characters are no more than bytes: a cheap check first, so that encoding a huge text is not attempted.
    _check_size(len(text))
    _check_size(len(text.encode("utf-8", "replace")))
    if control := _CONTROL.search(text):
        raise SpecError(
            f"the file holds the control character U+{ord(control.group()):04X}",
            line=text.count("\n", 0, control.start()) + 1,
            expected="plain text",
            hint="an editor wrote a byte order mark: save as UTF-8 without one"
            if control.group() == "\ufeff"
            else None,
        )
    lines = _key_lines(text)
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _malformed(error, text) from None
    _check_numbers(data, lines)
    return Document(data, lines)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise SpecError(
            f"the file is too large: {size} bytes",
            expected=f"at most {MAX_BYTES}",
            hint="a spec is some thirty lines of TOML",
        )


def _malformed(error: Exception, text: str) -> SpecError:
    """The TOML library's complaint, its "(at line 3, column 8)" turned into a place."""
    complaint, _, place = str(error).partition(" (at ")
    at_line = re.match(r"line (\d+)", place)
    line = int(at_line.group(1)) if at_line else text.count("\n") + 1
    twice = "overwrite" in complaint or "twice" in complaint or "uplicate" in complaint
    return SpecError(
        "this is not valid TOML: " + (complaint[:1].lower() + complaint[1:]).rstrip("."),
        line=line,
        expected="[table] headers and lines of the form key = value",
        hint="a table or key may be given only once" if twice else None,
    )


def _check_numbers(data: dict[str, Any], lines: dict[Keys, int]) -> None:
    """TOML's integers have 64 bits; the library lets longer ones through, which can be slow to print.

    Its nan would pass every bound, and inf the lower ones.
    """
    pending = [((), data)]
    while pending:
        keys, value = pending.pop()
        if isinstance(value, dict):
            pending.extend(((*keys, key), inner) for key, inner in value.items())
        elif isinstance(value, list):
            pending.extend((keys, inner) for inner in value)
        elif isinstance(value, int) and value.bit_length() > 63:
            place = {"line": Document(data, lines).line(*keys), "key": ".".join(keys) or None}
            raise SpecError("the integer is too large", **place, expected="one of at most 63 bits")
        elif isinstance(value, float) and not math.isfinite(value):
            place = {"line": Document(data, lines).line(*keys), "key": ".".join(keys) or None}
            raise SpecError(f"{value} is no number", **place, expected="a finite one")


# Each alternative consumes what it starts, closed or not, so the scan is linear in any text.
_TOML = re.compile(
    r'''(?P<string>"""(?:\\.|[^\\])*?(?:"""|\\?\Z) | \'\'\'.*?(?:\'\'\'|\Z)
                 | "(?:\\.|[^"\\\n])*"? | '[^'\n]*'?)
      | (?P<comment>\#[^\n]*)
      | (?P<newline>\n)
      | (?P<bare>[A-Za-z0-9_-]+)
      | (?P<mark>[\[\]{}=.,])
      | (?P<other>.)''',
    re.VERBOSE | re.DOTALL,
)


def _key_lines(text: str) -> dict[Keys, int]:
    """The line on which each table and each key of a table begins; of text that is no TOML, a guess."""
    lines: dict[Keys, int] = {}
    table: Keys = ()
    for line, tokens in _logical_lines(text):
        if tokens[0] == "[":
            table = _key([token for token in tokens[: _find(tokens, "]")] if token != "["])
            for depth in range(1, len(table) + 1):  # a table of tables may have no line of its own
                lines.setdefault(table[:depth], line)
        else:
            lines.setdefault(table + _key(tokens[: _find(tokens, "=")]), line)
    return lines


def _logical_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each statement's first line and its tokens: a statement ends at a line break outside of brackets."""
    line, start, depth, dots, tokens = 1, 1, 0, 0, []
    for match in _TOML.finditer(text):
        token = match.group()
        match match.lastgroup:
            case "newline" if depth == 0:
                if tokens:
                    yield start, tokens
                tokens, dots = [], 0
            case "string" | "bare" | "mark":
                start = start if tokens else line
                tokens.append(token)
                depth += (token in ("[", "{")) - (token in ("]", "}"))
                depth = max(depth, 0)
                dots = dots + (token == ".") if token == "." or match.lastgroup != "mark" else 0
                if max(depth, dots) > MAX_NESTING:
                    raise SpecError(
                        "the TOML is nested too deeply", line=line, expected=f"at most {MAX_NESTING} levels"
                    )
        line += token.count("\n")
    if tokens:
        yield start, tokens


def _key(tokens: list[str]) -> Keys:
    """The parts of a dotted key."""
    return tuple(token.strip("\"'") for token in tokens if token != ".")


def _find(tokens: list[str], mark: str) -> int:
    return tokens.index(mark) if mark in tokens else len(tokens)
