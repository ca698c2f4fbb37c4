"""The condition slope(S, S_prev) = own solved for S, element by element, where the slope is not affine in S.

The slope has to be F(S) - R(S_prev) with F increasing, so that S = F^-1(R(S_prev) + own). F may jump at 0, as that of
abs(S) does: there S rests. The rest of F is inverted in the coordinate in which it is affine (S itself, its logarithm,
its log-odds), as a power, or as one root of two. Where it is affine and something more in such a coordinate, it is left
to a search there.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ttrc.language.spec import Domain
from ttrc.symbolic.algebra import Expr, Symbol, affine, is_positive, is_short
from ttrc.symbolic.functions import ZERO, larger, magnitude, positive_power, sigmoid, step_sign

HALF = sympy.Rational(1, 2)  # inside of every domain of a state


@dataclass(frozen=True)
class Searched:
    """The unknown is where unknown + pull(unknown) = base; whether pull never falls is for others to find out."""

    unknown: Symbol
    pull: Expr
    base: Expr


@dataclass(frozen=True)
class Solved:
    """S as an expression of S_prev, own, gates, and of an unknown that is searched for."""

    law: Expr
    search: Searched | None = None


def invert(slope: Expr, S: Symbol, S_prev: Symbol, own: Symbol, unknown: Symbol, domain: Domain) -> Solved | None:
    """None where none of these ways leads to S."""
    if not is_short(slope):
        return None
    apart = slope.replace(sympy.log, lambda whole: _log_of_ratio(whole, {S: HALF, S_prev: HALF}))
    terms = sympy.Add.make_args(sympy.expand(sympy.expand_log(apart, force=True)))
    moving = [t for t in terms if t.has(S)]
    jumps = [t / step_sign(S) for t in moving if not (t / step_sign(S)).has(S)]
    smooth = sympy.Add(*(t for t in moving if (t / step_sign(S)).has(S)))
    jump, target = sympy.Add(*jumps), own - sympy.Add(*(t for t in terms if not t.has(S)))
    if smooth.has(S_prev) or jump.has(S_prev) or not smooth.has(S):
        return None
    if jump != 0:
        at_zero = smooth.subs(S, 0)
        if not jump.is_nonnegative or not at_zero.is_finite:
            return None
        beyond = target - at_zero
        target = at_zero + step_sign(beyond) * larger(magnitude(beyond) - jump, sympy.Integer(0))
    return _inverse(smooth, S, target, unknown, domain)


def _inverse(smooth: Expr, S: Symbol, target: Expr, unknown: Symbol, domain: Domain) -> Solved | None:
    """S with smooth(S) = target."""
    x = sympy.Dummy(real=True)
    charts = [(S, lambda y: y)]
    if domain is Domain.POSITIVE:
        charts.append((sympy.exp(x), sympy.exp))
    if domain is Domain.UNIT:
        charts.append((1 / (1 + sympy.exp(-x)), sigmoid))

    def log(whole: Expr) -> Expr:
        return _log_of_ratio(whole, {x: ZERO})

    for chart, back in charts:
        straight = sympy.expand(sympy.expand_log(smooth.subs(S, chart).replace(sympy.log, log), force=True))
        found = affine(straight, S if chart == S else x)
        if found is not None and is_positive(found[0]):
            return Solved(back((target - found[1]) / found[0]))
    law = _root(smooth, S, target) if domain is Domain.POSITIVE else _power(smooth, S, target)
    if law is not None:
        return Solved(law)
    x = S if chart == S else x
    search = _searched(straight.xreplace({x: unknown}), unknown, target)
    return None if search is None else Solved(back(unknown), search)


def _searched(straight: Expr, x: Symbol, target: Expr) -> Searched | None:
    """The equation straight(x) = target, divided by how steep the part of it is that is affine."""
    terms = sympy.Add.make_args(straight)
    steep = sympy.Add(*(t / x for t in terms if not (t / x).has(x)))
    rest = sympy.Add(*(t for t in terms if t.has(x) and (t / x).has(x)))
    known = sympy.Add(*(t for t in terms if not t.has(x)))
    if not is_positive(steep):
        return None
    return Searched(x, rest / steep, (target - known) / steep)


def _log_of_ratio(whole: Expr, inside: dict[Symbol, Expr]) -> Expr:
    """log of a sum of fractions as a difference of logarithms; `inside` is a place where it has a value."""
    above, below = sympy.fraction(sympy.factor(whole))
    sign = -1 if above.subs(inside).is_negative else 1
    return sympy.log(sympy.expand(sign * above)) - sympy.log(sympy.expand(sign * below))


def _power(smooth: Expr, S: Symbol, target: Expr) -> Expr | None:
    """The inverse of factor * sign(S) |S|^n."""
    if sympy.simplify(smooth.subs(S, -S).replace(magnitude, _even).replace(step_sign, _odd) + smooth) != 0:
        return None
    positive = sympy.Dummy(positive=True)
    beside = smooth.replace(magnitude, lambda y: y).replace(step_sign, lambda y: sympy.Integer(1)).subs(S, positive)
    factor, power = sympy.powsimp(beside).as_independent(positive)
    base, exponent = power.as_base_exp()
    if base != positive or not exponent.is_positive or not is_positive(factor):
        return None
    return step_sign(target) * positive_power(magnitude(target) / factor, 1 / exponent)


def _even(x: Expr) -> Expr:
    return magnitude(-x if x.could_extract_minus_sign() else x)


def _odd(x: Expr) -> Expr:
    return -step_sign(-x) if x.could_extract_minus_sign() else step_sign(x)


def _root(smooth: Expr, S: Symbol, target: Expr) -> Expr | None:
    """The positive one of the two S with smooth(S) = target, of a fraction of polynomials up to squares."""
    y = sympy.Dummy(real=True)
    above, _ = sympy.fraction(sympy.together(smooth - y))
    if not above.is_polynomial(S) or sympy.degree(above, S) != 2:
        return None
    a, b, c = sympy.Poly(above, S).all_coeffs()
    if not is_positive(a) or not is_positive(-c):  # then the product of the roots is negative: just one is positive
        return None
    half = b / (2 * a)
    return (sympy.sqrt(half**2 - c / a) - half).subs(y, target)
