"""Bounds on the numbers in an expression, so that algebra over exact numbers stays small.

Computer algebra keeps 9**9**9**9 exactly, or tries to; it must never see such a thing. Exponents are small
constants, constants are of ordinary size, and powers of powers do not multiply up.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Optional

from ttrc.errors import SpecError
from ttrc.language.evaluate import evaluate
from ttrc.language.syntax import Binary, Call, Expr, Name, Negate, Number, children, names, walk

MAX_EXPONENT = 16
MAX_DEGREE = 64
MAX_CONSTANT = 1e30


def check_bounds(tree: Expr) -> None:
    """Raise a SpecError with the span of the first exponent, constant or power that is out of bounds."""
    for node in walk(tree):
        if isinstance(node, Binary) and node.op == "**":
            _check_exponent(node.right)
    _check_constants(tree)
    _degree(tree)


def _check_exponent(exponent: Expr) -> None:
    value = _rational(exponent)
    if value is None or abs(value) > MAX_EXPONENT:
        raise SpecError(
            "the exponent is not a small constant" if value is None else f"the exponent is beyond {MAX_EXPONENT}",
            span=exponent.span,
            expected=f"a number from -{MAX_EXPONENT} to {MAX_EXPONENT}, such as 3, -0.5 or (3/2)",
            hint="a power that varies can be written exp(b * log(a)) where a is positive" if names(exponent) else None,
        )


def _rational(tree: Expr) -> Optional[Fraction]:
    """The value of a literal, a negated literal or a quotient of literals; None for anything else."""
    match tree:
        case Number(digits):
            return Fraction(digits)
        case Negate(operand):
            value = _rational(operand)
            return None if value is None else -value
        case Binary("/", left, right):
            above, below = _rational(left), _rational(right)
            return above / below if above is not None and below else None
        case _:
            return None


def _check_constants(tree: Expr) -> None:
    """Every part free of names has a finite value of ordinary size, and nothing is divided by zero."""
    if not names(tree):
        if abs(evaluate(tree, {})) > MAX_CONSTANT:
            raise SpecError("the constant is too large", span=tree.span, expected=f"at most {MAX_CONSTANT:g}")
        return
    match tree:
        case Binary("/", _, right) if not names(right) and evaluate(right, {}) == 0:
            raise SpecError("division by zero", span=tree.span)
    for child in children(tree):
        _check_constants(child)


def _degree(tree: Expr) -> Fraction:
    """An upper bound of the degree as a polynomial in the names."""
    match tree:
        case Number():
            degree = Fraction(0)
        case Name():
            degree = Fraction(1)
        case Binary("**", base, exponent):
            degree = _degree(base) * abs(_rational(exponent))
        case Binary("*" | "/", left, right) | Call("dot", (left, right)):
            degree = _degree(left) + _degree(right)
        case Call("square" | "norm2", (argument,)):
            degree = 2 * _degree(argument)
        case _:
            degree = max(_degree(child) for child in children(tree))
    if degree > MAX_DEGREE:
        raise SpecError(
            f"the expression has degree {float(degree):g} here",
            span=tree.span,
            expected=f"at most {MAX_DEGREE}",
            hint="powers of powers multiply",
        )
    return degree
