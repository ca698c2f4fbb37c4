"""The slope of an objective -> a place where it falls or jumps, and the objective is not convex or has a corner.

An equation x + slope(x) = base has one root where the slope never falls. SymPy rarely proves that, so it is looked at
instead: whether the slope falls, or jumps, anywhere on a grid of places, for many values of all else.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from ttrc import symbolic
from ttrc.language.domains import INTERVALS
from ttrc.language.spec import Domain
from ttrc.symbolic import Expr, Symbol

DRAWS, CLOSE = 32, 8  # how many values of all else, and for how many of them jumps are closed in on
REACH = tuple(10 ** (i / 4) for i in range(-12, 9))  # how far from each of them predictions are looked at
BESIDE = 1e-9  # next to 0
JUMP = 1e-3  # of a step of the slope: as much as this is there still between two neighbouring numbers


@dataclass(frozen=True)
class Fault:
    """`where` says it in words: "falls from .. to ..", or "jumps at .."."""

    where: str
    jumps: bool


def find_fault(
    slope: Expr, x: Symbol, domains: dict[str, Domain], called: str, from_zero: bool = False
) -> Fault | None:
    """`called` is what messages call x; `from_zero`: x is a length."""
    others = sorted((s for s in slope.free_symbols if s != x), key=lambda s: s.name)
    for draw in range(DRAWS):
        numbers = random.Random(draw)
        at = {s.name: _within(domains.get(s.name), s, numbers.gauss(0, 1.5)) for s in others}

        def of(place: float, at=at) -> float:
            return symbolic.value(slope, at | {x.name: place})

        near = {0.0} if from_zero else {0.0, *at.values()}
        places = {c + side * d for c in near for d in REACH for side in (-1, 1)} | near
        line = [(place, of(place)) for place in sorted(places) if place >= 0 or not from_zero]
        line = [(place, e) for place, e in line if not math.isnan(e)]
        where = ", ".join(f"{name} = {number:.3g}" for name, number in at.items())
        where = f", where {where}" if where else ""
        for (a, low), (b, high) in pairwise(line):
            if high < low - 1e-9 * (abs(low) + abs(high)):
                return Fault(f"falls from {low:.3g} at {called} = {a:.3g} to {high:.3g} at {b:.3g}{where}", jumps=False)
        jump = _jump(of, line) if draw < CLOSE else None
        if from_zero and jump is None and abs(of(BESIDE)) > JUMP:
            jump = 0.0
        if jump is not None:
            return Fault(f"jumps at {called} = {jump:.3g}{where}", jumps=True)
    return None


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
