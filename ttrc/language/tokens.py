"""Expression text to tokens: printable ASCII only, and of that only what the grammar has a use for."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import Enum

from ttrc.errors import SpecError
from ttrc.language.syntax import Span

MAX_CHARACTERS = 2000
MAX_DIGITS = 20
MAX_DECIMAL_EXPONENT = 30  # float32 ends near 1e38


class TokenKind(Enum):
    NUMBER = "number"
    NAME = "name"
    SYMBOL = "symbol"
    END = "end"


@dataclass(frozen=True)
class Token:
    kind: TokenKind
    text: str
    span: Span

    def __str__(self) -> str:
        return "end of the expression" if self.kind is TokenKind.END else f'"{self.text}"'


# A name may not start with an underscore, so no dunder is ever a token. No alternative backtracks.
_TOKEN = re.compile(
    r"""(?P<space>[ ]+)
      | (?P<number>[0-9]+ (?:\.[0-9]+)? (?:[eE][+-]?[0-9]+)?)
      | (?P<name>[A-Za-z][A-Za-z0-9_]*)
      | (?P<symbol>\*\* | <= | >= | [-+*/<>(),])""",
    re.VERBOSE,
)

# Characters of other languages: what they are there, and what to write here.
_FOREIGN = {
    "'": "strings are not part of an expression",
    '"': "strings are not part of an expression",
    ".": "attributes are not part of an expression; a number has digits on both sides of its point",
    "[": "subscripts are not part of an expression; operations act on whole vectors",
    "]": "subscripts are not part of an expression; operations act on whole vectors",
    "{": "an expression holds numbers, names, functions and + - * / ** only",
    "=": "there is no assignment; where() compares with < <= > >=",
    "!": "where() compares with < <= > >=",
    "^": "a power is written **",
    "@": "products of vectors are written dot(a, b)",
    "_": "a name starts with a letter",
    "\n": "write the expression on one line",
    "\r": "write the expression on one line",
    "\t": "use spaces",
}


def tokenize(text: str) -> tuple[Token, ...]:
    """The tokens of the text, the last one being END. Raises SpecError at the first character out of place."""
    if len(text) > MAX_CHARACTERS:
        raise SpecError(
            f"the expression has {len(text)} characters",
            expected=f"at most {MAX_CHARACTERS}",
            hint="an expression of a spec is a line of mathematics",
        )
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _foreign_character(text, position)
        span, position = Span(*match.span()), match.end()
        if match.lastgroup == "number":
            _check_number(text, span)
        if match.lastgroup != "space":
            tokens.append(Token(TokenKind(match.lastgroup), match.group(), span))
    return *tokens, Token(TokenKind.END, "", Span(len(text), len(text) + 1))


def _check_number(text: str, span: Span) -> None:
    """A decimal of bounded size that nothing is glued to: 1_000, 0x1f, 1j and 2p are no numbers."""
    digits = text[span.start : span.end]
    mantissa, _, exponent = digits.lower().partition("e")
    if re.match(r"[A-Za-z0-9_.]", text[span.end :]):
        glued = re.match(r"[A-Za-z0-9_.]+", text[span.end :]).end()
        raise SpecError(
            "this is not a number",
            text=text,
            span=Span(span.start, span.end + glued),
            expected="a decimal number such as 2, 0.5 or 1e-6",
            hint="a product is written with *",
        )
    if len(mantissa) - mantissa.count(".") > MAX_DIGITS:
        raise SpecError("the number is too long", text=text, span=span, expected=f"at most {MAX_DIGITS} digits")
    if len(exponent) > 4 or abs(int(exponent or "0")) > MAX_DECIMAL_EXPONENT:
        raise SpecError(
            "the number is too large or too small",
            text=text,
            span=span,
            expected=f"a decimal exponent from -{MAX_DECIMAL_EXPONENT} to {MAX_DECIMAL_EXPONENT}",
        )


def _foreign_character(text: str, position: int) -> SpecError:
    character = text[position]
    if " " <= character <= "~":
        described = "unexpected quotation mark" if character == '"' else f'unexpected character "{character}"'
    else:
        # A look-alike, such as a Cyrillic letter in place of a Latin one, is seen only by its name.
        name = unicodedata.name(character, "a control character" if ord(character) < 160 else "unnamed")
        described = f"unexpected character U+{ord(character):04X} ({name})"
    return SpecError(
        described,
        text=text,
        span=Span(position, position + 1),
        expected="plain ASCII: numbers, names, functions, parentheses, commas and + - * / **",
        hint=_FOREIGN.get(character),
    )
