"""The implicit step of a nonlinear loss: the written error as a function of the retained prediction p.

S = S_ret - k e' with e the error at S itself, so its prediction x = S' k solves x + |k|^2 e(x) = p. Where the error of
a channel hangs on that channel alone, that is one equation an entry. Where the error is radial, e = y c(|y|) with y
affine in p (a distance, mostly p - v), it shortens y and does not turn it: one equation a token, for the length of y.
Affine and clipped errors are solved here; of any other the kernels search for the root.

Each of these equations has one root if the loss is convex. SymPy rarely proves that of a nonlinear one, so it is looked
at instead: whether the error falls, or jumps, anywhere on a grid of predictions, for many values of all else.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise
from statistics import median

from ttrc import symbolic
from ttrc.ir.recurrence import Implicit, Nonlinear
from ttrc.language.domains import INTERVALS
from ttrc.language.spec import Domain
from ttrc.symbolic import Expr, Scope, Symbol

DRAWS, CLOSE = 32, 8  # how many values of all else, and for how many of them jumps are closed in on
REACH = tuple(10 ** (i / 4) for i in range(-12, 9))  # how far from each of them predictions are looked at
BESIDE = 1e-9  # next to 0
JUMP = 1e-3  # of a step of the error: as much as this is there still between two neighbouring numbers


class NoImplicitStep(Exception):
    """Why there is none, and what to write instead."""

    def __init__(self, why: str, expected: str):
        self.why, self.expected = why, expected


def derive_implicit(scope: Scope, explicit: Nonlinear, length: Expr, domains: dict[str, Domain]) -> Nonlinear:
    """`explicit` is the error of the explicit step, divided by the retention's curvature; `length` is |k|^2, each key
    channel weighed by what it writes with."""
    p, error = scope.symbols["p"], explicit.written
    if not explicit.sums:
        _look(error, p, domains)
        written, root = _solve(scope, error, p, length, p)
        return Nonlinear(symbolic.factored(written), (), root)

    if scope.axes_of(length):
        raise NoImplicitStep(
            "joins the value channels, and each has a key of its own: no length of p - v solves for all of them",
            'a loss that is a sum over channels; or rule = "gradient"',
        )
    y, slope, share, square = _radial(scope, explicit)
    n = _unknown(scope, "norm_new", nonnegative=True)
    share = symbolic.of_norm(share, square, n)
    pull = n * slope * share
    _look(pull, n, domains, from_zero=True)
    norm = symbolic.finite_at_zero(symbolic.square_root(square), scope, (p,))
    shortened, root = _solve(scope, pull, n, length, norm)
    if root is None:  # the pull at the root, spread along y
        written = y * shortened / slope / symbolic.square_root(square)
    else:
        written = y * share / (1 + length * slope * share)
        root = replace(root, pull=symbolic.substituted(root.pull, n, symbolic.positive_part(n)))
    written = symbolic.finite_at_zero(written, scope, (p, n))
    return Nonlinear(symbolic.factored(written), explicit.sums, root)


def _solve(scope: Scope, pull: Expr, x: Symbol, length: Expr, base: Expr) -> tuple[Expr, Implicit | None]:
    """pull(x) where x + length * pull(x) = base, and the equation where x is to be searched for."""
    line = symbolic.affine(pull, x)
    if line is not None and not any(scope.depends(part, x) for part in line):
        slope, offset = line
        return (slope * base + offset) / (1 + length * slope), None
    found = symbolic.clipped(pull, x)
    if found is not None:
        factor, slope, offset, bound = found
        shrink = 1 + length * factor * slope  # outside of the clip, where it is one factor with the others
        return factor * symbolic.clipped_at(slope * base + offset, bound * shrink) / shrink, None
    unknown = x if x != base else _unknown(scope, "p_new")
    pull = symbolic.substituted(pull, x, unknown)
    return pull, Implicit(unknown, length * pull, base)


def _unknown(scope: Scope, name: str, nonnegative: bool = False) -> Symbol:
    while name in scope.symbols:  # a gate may be called so
        name += "_"
    made = symbolic.symbol(name, Domain.NONNEGATIVE if nonnegative else Domain.REAL)
    scope.axes[made] = () if nonnegative else ("v",)
    return made


def _radial(scope: Scope, explicit: Nonlinear) -> tuple[Expr, Expr, Expr, Symbol]:
    """(y, slope, c, s) with e = y * c(s), y = slope * p + anything a channel, s the symbol of the sum of y**2."""
    p, v = scope.symbols["p"], scope.symbols["v"]
    refusal = NoImplicitStep(
        "joins the value channels: the proximal step can be solved for one by one, or along p - v as a whole",
        'a loss that is a sum over channels, or a function of norm(p - v); or rule = "gradient"',
    )
    if len(explicit.sums) != 1:
        raise refusal
    (total,) = explicit.sums
    y = symbolic.square_of(total.body)
    line = symbolic.affine(y, p) if y is not None else None
    if line is None or total.axes != ("v",) or scope.axes_of(line[0]) or scope.depends(line[1], p):
        raise refusal
    slope = line[0]
    share = symbolic.derivative(explicit.written, p) / slope
    rest = symbolic.tidy(symbolic.expanded(explicit.written - y * share))  # a tidied root may not cancel with its like
    share = symbolic.tidy(share)
    if share.has(p) or share.has(v) or rest != 0:
        raise refusal
    return y, slope, share, total.symbol


def _look(error: Expr, x: Symbol, domains: dict[str, Domain], from_zero: bool = False) -> None:
    """Looks for a place where a loss with this derivative in x is not convex, or has a corner."""
    others = sorted((s for s in error.free_symbols if s != x), key=lambda s: s.name)
    for draw in range(DRAWS):
        numbers = random.Random(draw)
        at = {s.name: _within(domains.get(s.name), s, numbers.gauss(0, 1.5)) for s in others}

        def of(place: float, at=at) -> float:
            return symbolic.value(error, at | {x.name: place})

        near = {0.0} if from_zero else {0.0, *at.values()}
        places = {c + side * d for c in near for d in REACH for side in (-1, 1)} | near
        line = [(place, of(place)) for place in sorted(places) if place >= 0 or not from_zero]
        line = [(place, e) for place, e in line if not math.isnan(e)]
        where = ", ".join(f"{name} = {number:.3g}" for name, number in at.items())
        where = f", where {where}" if where else ""
        name = "norm(p - v)" if from_zero else "p"
        for (a, low), (b, high) in pairwise(line):
            if high < low - 1e-9 * (abs(low) + abs(high)):
                raise NoImplicitStep(
                    f"falls from {low:.3g} at {name} = {a:.3g} to {high:.3g} at {b:.3g}{where}: "
                    "the proximal step needs a convex loss",
                    "a convex loss and a weight whose domain is nonnegative",
                )
        jump = _jump(of, line) if draw < CLOSE else None
        if from_zero and jump is None and abs(of(BESIDE)) > JUMP:
            jump = 0.0
        if jump is not None:
            raise NoImplicitStep(
                f"jumps at {name} = {jump:.3g}{where}: the proximal step needs a loss without corners",
                "a smooth one: sqrt(square(p - v) + 0.01) for abs(p - v), sqrt(norm2(p - v) + 0.01) for norm(p - v)",
            )


def _within(domain: Domain | None, symbol: Symbol, normal: float) -> float:
    """A number of a gate's domain, or for a sum one of its sign."""
    if domain is None:
        return math.exp(normal) if symbol.is_nonnegative else normal
    return INTERVALS[domain].at(normal)


def _jump(of, line: list[tuple[float, float]]) -> float | None:
    """Where a rising function jumps: closing in on the larger part of a step, the step stays."""
    usual = median(abs(e) for _, e in line) if line else 0.0
    for (a, low), (b, high) in pairwise(line):
        step = high - low
        if step <= 1e-6 * max(usual, abs(low), abs(high)):  # rounding, it may be
            continue
        while high - low > JUMP * step and b - a > 1e-12 * (abs(a) + abs(b)) + 1e-15:
            middle = (a + b) / 2
            e = of(middle)
            a, low, b, high = (middle, e, b, high) if high - e > e - low else (a, low, middle, e)
        if high - low > JUMP * step:
            return b
    return None
