"""Expressions as source text of a backend."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
from sympy.printing.precedence import PRECEDENCE, precedence
from sympy.printing.str import StrPrinter

from ttrc.symbolic.algebra import Expr
from ttrc.symbolic.functions import ZERO, magnitude, step_sign


@dataclass(frozen=True)
class Dialect:
    """How a backend spells functions: by name, "{0}" and on for the arguments."""

    calls: dict[str, str]


def render(expr: Expr, dialect: Dialect, spelling: dict[str, str]) -> str:
    """expr as source text of a backend; `spelling` gives the text of each symbol."""
    return _Code(dialect, spelling).doprint(_signed(expr))


class _Code(StrPrinter):
    """Products and small powers as plain arithmetic, functions through the dialect, what is constant as one number.

    No part of an expression is printed twice, whatever a call does with it: nested, that would double the text again
    and again.
    """

    def __init__(self, dialect: Dialect, spelling: dict[str, str]):
        super().__init__()
        self.dialect, self.spelling = dialect, spelling

    def _print(self, expr, **kwargs):
        return repr(float(expr)) if expr.is_number else super()._print(expr, **kwargs)

    def _print_Symbol(self, expr):
        return self.spelling[expr.name]

    def _print_Mul(self, expr):
        sign, rest = expr.as_coeff_Mul()
        if sign == -1:
            inner = self.parenthesize(rest, PRECEDENCE["Mul"])
            return f"-{inner}"
        above = [f for f in expr.args if not _is_reciprocal(f)]
        below = [1 / f for f in expr.args if _is_reciprocal(f)]
        scalars_first = sorted(above, key=lambda f: not f.is_number)
        text = " * ".join(self.parenthesize(f, PRECEDENCE["Mul"]) for f in scalars_first) or "1.0"
        for factor in below:
            text += f" / {self.parenthesize(factor, PRECEDENCE['Pow'])}"
        return text

    def _print_Add(self, expr):
        expr = _near_one(expr)
        return super()._print_Add(expr) if expr.is_Add else self._print(expr)

    def _print_Pow(self, expr):
        base, exponent = expr.args
        if exponent == sympy.Rational(1, 2):
            return self._call("sqrt", (base,))
        if exponent == -1:
            return f"1.0 / {self.parenthesize(base, PRECEDENCE['Pow'])}"
        if exponent.is_negative:
            return f"1.0 / ({self._print(base**-exponent)})"
        if not exponent.is_Integer:
            return self._call("pow", (base, exponent))
        if base.is_Symbol and exponent <= 4:
            return " * ".join([self._print(base)] * int(exponent))
        return self.dialect.calls["whole_pow"].format(self._print(base), int(exponent))

    def _call(self, name, args):
        return self.dialect.calls[name].format(*(self._print(a) for a in args))

    def _print_Function(self, expr):
        return self._call(type(expr).__name__, expr.args)

    def _print_exp(self, expr):
        return self._call("exp", expr.args)

    def _print_ExpBase(self, expr):
        return self._call("exp", (expr.exp,))

    def _print_log(self, expr):
        return self._call("log", expr.args)

    def parenthesize(self, item, level, strict=False):
        text = self._print(item)
        needs = precedence(item) < level or text.startswith("-") or (level >= PRECEDENCE["Pow"] and " " in text)
        return f"({text})" if needs and not _is_closed(text) else text


def _is_reciprocal(factor: Expr) -> bool:
    return factor.is_Pow and factor.exp.is_number and factor.exp.is_negative


def _near_one(total: Expr) -> Expr:
    """c - n exp(x) as c - n - n expm1(x): digits that exp(x) has lost beside a 1 are there still."""
    constant, terms = total.as_coeff_add()
    for term in terms:
        times, function = term.as_coeff_Mul()
        if isinstance(function, sympy.exp) and times * constant < 0:
            return total - constant - term + (constant + times) + times * sympy.Function("expm1")(*function.args)
    return total


def _is_closed(text: str) -> bool:
    """Whether text is already one parenthesised group or one call."""
    if not text.endswith(")"):
        return False
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == ")":
            return position == len(text) - 1
        if depth == 0 and character == " ":
            return False
    return False


def _signed(expr: Expr) -> Expr:
    """sign(x) |x|^n as x |x|^(n - 1), and sign(x)^2 |x|^n as |x|^n: at 0 the same, and a sign is not worked out."""

    def join(product: Expr) -> Expr:
        powers = product.as_powers_dict()
        for sign in [f for f in powers if isinstance(f, step_sign)]:
            (x,) = sign.args
            size, times, n = magnitude(x), powers[sign], powers.get(magnitude(x), ZERO)
            if times.is_Integer and times > 0 and n.is_number and n >= 1:
                odd = int(times) % 2
                product = product / (sign**times * size**n) * x**odd * size ** (n - odd)
        return product

    return expr.replace(lambda part: part.is_Mul, join) if expr.has(step_sign) else expr


SIMPLE = {"clip": 2, "huber": 5, "choose": 2, "smaller": 1, "larger": 1, "magnitude": 1, "step_sign": 3, "coarse": 3}
TWICE = {"sigmoid": 2, "tanh": 2, "softplus": 2, "log_cosh": 2}  # of special instructions: an exponential, and another
SPECIAL = 10  # an exponential, a root or a quotient: a unit of its own, and what is done about its argument


def special_count(expr: Expr, of: set[str]) -> int:
    """How many special instructions expr takes on what hangs on symbols of these names."""
    parts = {e for e in sympy.preorder_traversal(_signed(expr)) if e.args and _own_length(e) == SPECIAL}
    return sum(TWICE.get(type(e).__name__, 1) for e in parts if of & {s.name for s in e.free_symbols})


def longest_chain(expr: Expr, begins: dict[str, int]) -> int:
    """How many instructions wait for one another until expr is there.

    `begins` says of the symbols that are waited for how many it took until they were; all else is there already.
    """
    return _longest_chain(_signed(expr), begins)


def _longest_chain(expr: Expr, begins: dict[str, int]) -> int:
    if expr.is_Symbol:
        return begins.get(expr.name, 0)
    if not begins.keys() & {s.name for s in expr.free_symbols}:
        return 0
    return max(_longest_chain(a, begins) for a in expr.args) + _own_length(expr)


def _own_length(expr: Expr) -> int:
    if expr.is_Add or expr.is_Mul:  # from left to right; a sign is part of what takes it
        return len(expr.args) - 1 - (expr.is_Mul and expr.as_coeff_Mul()[0] == -1)
    if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
        return int(expr.exp) - 1
    return SIMPLE.get(type(expr).__name__, SPECIAL)
