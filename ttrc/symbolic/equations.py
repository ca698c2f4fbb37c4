"""What equations in one unknown are made of and taken apart into: clips, squares, norms."""

from __future__ import annotations

import sympy

from ttrc.symbolic.algebra import ZERO, Expr, Symbol, affine
from ttrc.symbolic.functions import clip, larger, positive_power


def clipped(expr: Expr, variable: Symbol) -> tuple[Expr, Expr, Expr, Expr] | None:
    """(factor, slope, offset, bound) with expr = factor * clip(slope * variable + offset, bound), if it is that."""
    factor, bound = expr.as_independent(variable, as_Add=False)
    if not isinstance(bound, clip) or bound.args[1].has(variable):
        return None
    inside = affine(bound.args[0], variable)
    return None if inside is None else (factor, *inside, bound.args[1])


def clipped_at(inside: Expr, bound: Expr) -> Expr:
    return clip(inside, bound)


def of_norm(expr: Expr, square: Symbol, norm: Symbol) -> Expr:
    """expr with norm**2 for `square`: a norm's powers, which are kept finite at 0, as plain ones that may cancel."""
    return expr.replace(positive_power, sympy.Pow).xreplace({square: norm**2})


def square_of(body: Expr) -> Expr | None:
    """x of a body x**2."""
    return body.base if body.is_Pow and body.exp == 2 else None


def positive_part(expr: Expr) -> Expr:
    return larger(expr, ZERO)


def square_root(expr: Expr) -> Expr:
    return sympy.sqrt(expr)


def substituted(expr: Expr, symbol: Symbol, value: Expr) -> Expr:
    return expr.xreplace({symbol: value})
