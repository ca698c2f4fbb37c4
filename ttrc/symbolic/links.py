"""Links: the weights that a memory reads, as functions of the state S that the recurrence moves.

A link is described per element of S, over S itself and sums over slices of it. Who works it out sees expressions and
sums, and never which link it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import sympy

from ttrc.symbolic.algebra import Expr, Reduction, Scope
from ttrc.symbolic.functions import larger, magnitude, positive_power, step_sign


@dataclass(frozen=True)
class Link:
    """`weights`, per element over S, over `sums` of S over the axes of the state that they name, and over parameters.

    `shift` names the axes of slices whose largest entry is taken off S before anything else, where that changes no
    weight: exp is then at most 1. () for none.
    """

    weights: Expr
    sums: tuple[Reduction, ...] = ()
    shift: tuple[str, ...] = ()

    @property
    def gates(self) -> set[str]:
        """The parameters that it mentions."""
        own = {"S", *(r.symbol.name for r in self.sums)}
        return {s.name for e in (self.weights, *(r.body for r in self.sums)) for s in e.free_symbols} - own


def normalised(scope: Scope, q: Fraction, epsilon: Fraction) -> Link | None:
    """S / (|S|_q^2 + epsilon)^((q - 2) / 2), finite at 0 with its derivatives; None where nothing is left of it."""
    S, (q, epsilon) = scope.symbols["S"], (sympy.Rational(x.numerator, x.denominator) for x in (q, epsilon))
    if q == 2:
        return None
    powers = S**q if q.is_Integer and q % 2 == 0 else positive_power(magnitude(S), q)
    total = _total(scope, powers, scope.axes[S])
    return Link(S * (positive_power(total.symbol, 2 / q) + epsilon) ** (1 - q / 2), (total,))


def softmax(scope: Scope, axes: tuple[str, ...], scale: Fraction) -> Link:
    S = scope.symbols["S"]
    total = _total(scope, sympy.exp(S), axes)
    return Link(sympy.Rational(scale.numerator, scale.denominator) * sympy.exp(S) / total.symbol, (total,), axes)


def shrunk(scope: Scope, threshold: Expr) -> Link:
    """sign(S) max(|S| - threshold, 0)."""
    S = scope.symbols["S"]
    return Link(step_sign(S) * larger(magnitude(S) - threshold, sympy.Integer(0)))


def _total(scope: Scope, body: Expr, axes: tuple[str, ...]) -> Reduction:
    """A sum of what is positive over some axes of the state, under a name that no gate has."""
    name = "sum_S"
    while name in scope.symbols:
        name += "_"
    return Reduction(sympy.Symbol(name, positive=True), body, axes)
