"""Every message a user can see: what is wrong, where, what was expected, what to do.

Exit codes of the command line: 1 a check failed (CheckFailed), 2 a bad spec or bad usage (the rest).

What a user wrote is quoted in messages only through `plain` and `excerpt`: printable ASCII, one line, bounded,
so that neither a line break nor a terminal escape in a spec reaches the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Optional

EXCERPT_WIDTH = 88


def plain(text: object, limit: int = 300) -> str:
    """The text as printable ASCII on one line, at most `limit` characters of it."""
    text = str(text)
    escaped = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def excerpt(text: str, start: int, end: int) -> tuple[str, str]:
    """The part of a long text around [start, end), and the line of carets that goes below it."""
    start = min(start, len(text))
    left = max(0, start - EXCERPT_WIDTH // 2) if len(text) > EXCERPT_WIDTH else 0
    right = left + EXCERPT_WIDTH
    before, after = "..." if left else "", "..." if right < len(text) else ""
    # One character for one, unlike `plain`: the carets must stay below what they point at.
    shown = "".join(c if " " <= c <= "~" else "?" for c in text[left:right])
    carets = " " * (len(before) + start - left) + "^" * max(1, min(end, right, len(text)) - start)
    return before + shown + after, carets


def did_you_mean(word: str, known: Iterable[str]) -> Optional[str]:
    """A hint with the nearest valid name, or None where nothing is near."""
    nearest = get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f'did you mean "{nearest[0]}"?' if nearest else None


class TtrcError(Exception):
    """Base of all errors that ttrc raises on purpose; `str()` of one is fit for a user's eyes."""

    exit_code = 2


class CheckFailed(TtrcError):
    """A verification, a freshness check or a resource limit did not hold."""

    exit_code = 1


class SpecError(TtrcError):
    """A spec that cannot be compiled. `path:line`, the key, the expression with a caret, the expected, the hint."""

    def __init__(self, message, *, path=None, line=None, key=None, text=None, span=None, expected=None, hint=None):
        self.message, self.path, self.line, self.key = message, path, line, key
        self.text, self.span, self.expected, self.hint = text, span, expected, hint
        super().__init__(message)

    def __str__(self) -> str:
        return self.render()

    def render(self) -> str:
        """The whole message: one paragraph of at most five lines.

        specs/mine.toml:14: loss.expr: unknown name "vv"
            norm2(p - vv) / 2
                      ^^
          expected: one of beta, k, p, v
          hint: did you mean "v"?
        """
        place = plain(self.path if self.path is not None else "<spec>", 200)
        if self.line is not None:
            place += f":{self.line}"
        if self.key is not None:
            place += f": {plain(self.key, 80)}"
        lines = [f"{place}: {plain(self.message)}"]
        if self.text is not None and self.span is not None:
            lines += ["    " + part for part in excerpt(self.text, self.span.start, self.span.end)]
        if self.expected is not None:
            lines.append(f"  expected: {plain(self.expected)}")
        if self.hint is not None:
            lines.append(f"  hint: {plain(self.hint)}")
        return "\n".join(lines)

    def placed(self, *, path=None, line=None, key=None, text=None) -> SpecError:
        """The same error with those parts of its place filled in that the raiser did not know."""
        known = {"path": path, "line": line, "key": key, "text": text}
        filled = {part: value if getattr(self, part) is None else getattr(self, part) for part, value in known.items()}
        return SpecError(self.message, span=self.span, expected=self.expected, hint=self.hint, **filled)


@contextmanager
def placing(*, path=None, line=None, key=None, text=None) -> Iterator[None]:
    """Errors raised inside come out with this place: code that handles bare trees need not carry it around."""
    try:
        yield
    except SpecError as error:
        raise error.placed(path=path, line=line, key=key, text=text) from None


class ArgumentError(TtrcError, ValueError):
    """An operator was called with a wrong argument: which one, what came, what was expected."""
