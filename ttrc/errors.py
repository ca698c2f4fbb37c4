"""Every message a user can see: what is wrong, where, what was expected, what to do.

Exit codes of the command line: 1 a check failed (CheckFailed), 2 a bad spec or bad usage (the rest).
"""

from __future__ import annotations


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
        super().__init__(self.render())

    def render(self) -> str:
        raise AssertionError("to be written")


class ArgumentError(TtrcError, ValueError):
    """An operator was called with a wrong argument: which one, what came, what was expected."""
