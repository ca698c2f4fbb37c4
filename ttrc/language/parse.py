"""Tokens to a syntax tree, by precedence climbing. Grammar only: names and shapes are checked in shapes.py.

    expression  = operand { ("+" | "-" | "*" | "/" | "**") operand }     ** binds tightest and to the right
    operand     = number | name | function "(" arguments ")" | "(" expression ")" | "-" operand
    condition   = expression ("<" | "<=" | ">" | ">=") expression        only as the first argument of where()

A minus sign binds between * and **: -x**2 is -(x**2), -a*b is (-a)*b.
"""

from __future__ import annotations

from ttrc.errors import SpecError, did_you_mean
from ttrc.language.functions import FUNCTIONS, HABITS
from ttrc.language.syntax import Binary, Call, Expr, Name, Negate, Number, Span, children
from ttrc.language.tokens import Token, TokenKind, tokenize

MAX_DEPTH = 64  # of the tree as of the brackets: every later pass may recurse without fear

COMPARISONS = ("<", "<=", ">", ">=")
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "**": 4}
_NEGATION = 3


def parse(text: str) -> Expr:
    """The tree of an expression. A SpecError carries the text and the span, the caller knows the file and key."""
    parser = _Parser(text)
    tree = parser.expression()
    if parser.token.kind is not TokenKind.END:
        raise parser.unexpected("an operator")
    _check_depth(text, tree)
    return tree


class _Parser:
    """A cursor over the tokens; each method consumes one construct of the grammar."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = tokenize(text)
        self.index = 0
        self.depth = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.index]

    def advance(self) -> Token:
        self.index += 1
        return self.tokens[self.index - 1]

    def at(self, *symbols: str) -> bool:
        return self.token.kind is TokenKind.SYMBOL and self.token.text in symbols

    def expect(self, symbol: str) -> None:
        if not self.at(symbol):
            raise self.unexpected(f'an operator or "{symbol}"')
        self.advance()

    def since(self, start: int) -> Span:
        """From a start to the end of the last token consumed, brackets included."""
        return Span(start, self.tokens[self.index - 1].span.end)

    def expression(self, binding: int = 0) -> Expr:
        """Operands joined by operators that bind more tightly than `binding`."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _too_deep(self.text, self.token.span)
        start = self.token.span.start
        tree = self.operand()
        while self.at(*_BINDING) and _BINDING[self.token.text] > binding:
            op = self.advance().text
            right = self.expression(_BINDING[op] - 1 if op == "**" else _BINDING[op])
            tree = Binary(op, tree, right, self.since(start))
        self.depth -= 1
        return tree

    def operand(self) -> Expr:
        token = self.token
        if token.kind is TokenKind.NUMBER:
            return Number(self.advance().text, token.span)
        if token.kind is TokenKind.NAME:
            self.advance()
            return self.call(token) if self.at("(") else Name(token.text, token.span)
        if self.at("-"):
            self.advance()
            return Negate(self.expression(_NEGATION), self.since(token.span.start))
        if self.at("("):
            self.advance()
            inner = self.expression()
            self.expect(")")
            return inner
        raise self.unexpected('a number, a name, a function, "-" or "("')

    def call(self, name: Token) -> Call:
        """The arguments of a function of the table, whose name has just been consumed."""
        if name.text not in FUNCTIONS:
            raise SpecError(
                f'"{name.text}" is not a function',
                text=self.text,
                span=name.span,
                expected="one of " + ", ".join(sorted(FUNCTIONS)),
                hint=HABITS.get(name.text) or did_you_mean(name.text, FUNCTIONS),
            )
        self.advance()
        arguments = []
        if not self.at(")"):
            arguments.append(self.condition() if name.text == "where" else self.expression())
            while self.at(","):
                self.advance()
                arguments.append(self.expression())
        self.expect(")")
        span = self.since(name.span.start)
        fewest, most = FUNCTIONS[name.text].arity
        if not fewest <= len(arguments) <= most:
            count = str(fewest) if fewest == most else f"{fewest} to {most}"
            raise SpecError(
                f"{name.text} got {len(arguments)} argument{'' if len(arguments) == 1 else 's'}",
                text=self.text,
                span=span,
                expected=f"{count}: {FUNCTIONS[name.text].doc}",
            )
        return Call(name.text, tuple(arguments), span)

    def condition(self) -> Expr:
        start = self.token.span.start
        left = self.expression()
        if not self.at(*COMPARISONS):
            raise self.unexpected("a comparison as where()'s condition: < <= > >=")
        op = self.advance().text
        return Binary(op, left, self.expression(), self.since(start))

    def unexpected(self, expected: str) -> SpecError:
        hint = None
        if self.at(*COMPARISONS):
            hint = "a comparison stands only as the first argument of where(condition, a, b), and only one"
        elif self.index and self.token.kind in (TokenKind.NAME, TokenKind.NUMBER):
            hint = "a product is written with *"
        return SpecError(f"unexpected {self.token}", text=self.text, span=self.token.span, expected=expected, hint=hint)


def _check_depth(text: str, tree: Expr) -> None:
    """Bound the tree itself: a + a + a + ... nests to the left without one bracket."""
    pending = [(tree, 1)]
    while pending:
        node, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise _too_deep(text, node.span)
        pending.extend((child, depth + 1) for child in children(node))


def _too_deep(text: str, span: Span) -> SpecError:
    return SpecError(
        "the expression is nested too deeply",
        text=text,
        span=span,
        expected=f"at most {MAX_DEPTH} levels of brackets, calls and chained operators",
    )
