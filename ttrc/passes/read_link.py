"""A spec's link -> its description in symbols: the only place that knows links by their kind."""

from __future__ import annotations

from ttrc import symbolic
from ttrc.language.spec import LqNorm, OfSlices, Softmax, SoftThreshold, Spec
from ttrc.passes.have_values import have_values
from ttrc.passes.refuse import refuse
from ttrc.symbolic import Link, Scope, links


def read_link(spec: Spec, scope: Scope) -> Link | None:
    """None where the weights are the state."""
    match spec.retention.link:
        case LqNorm(q, epsilon):
            return links.normalised(scope, q, epsilon)
        case Softmax(axis, scale):
            return links.softmax(scope, axis.value, scale)
        case SoftThreshold(threshold):
            return links.shrunk(scope, symbolic.convert(threshold.tree, scope))
        case OfSlices():
            return _of_slices(spec, spec.retention.link, scope)
    return None


def _of_slices(spec: Spec, link: OfSlices, outer: Scope) -> Link:
    """Sums are over a slice of S. Padding is 0, and so is what a sequence starts with where nothing is said."""
    S = outer.symbols["S"]
    scope = Scope(dict(outer.symbols), outer.axes | {S: tuple(a for a in outer.axes[S] if a in link.axis.value)})
    converted = symbolic.convert(link.expr.tree, scope)
    written = (converted, *(r.body for r in scope.reductions))
    weights, *bodies = (symbolic.finite_at_zero(e, scope, (S,)) for e in written)
    sums = tuple(symbolic.Reduction(r.symbol, body, r.axes) for r, body in zip(scope.reductions, bodies))
    nothing = {"S": 0.0}
    for r in sums:
        if symbolic.is_zero_at(r.body, tuple(nothing)):
            nothing[r.symbol.name] = 0.0
    slopes = (symbolic.derivative(part, x) for part in (weights, *bodies) for x in (S, *(r.symbol for r in sums)))
    if not have_values((*written, *slopes), (*spec.inputs, *spec.parameters), nothing):
        raise refuse(
            spec,
            link.expr,
            "this link has no finite value and derivative at S = 0, where padding is and sequences start",
            expected="one that has these, such as S / (norm(S) + 0.01)",
        )
    return Link(weights, sums)
