"""The slope of a retention that is not quadratic -> how an entry of the state moves under it.

The condition F(S) - R(S_prev) = own is solved by SymPy where it can be (`symbolic.invert`). Where F is affine and
something more, of the state, its logarithm or its log-odds, kernels search for the root, as implicit steps do.
"""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.recurrence import Implicit, Mirror
from ttrc.language.spec import Spec
from ttrc.language.state import state_domain
from ttrc.passes.find_fault import find_fault
from ttrc.passes.have_values import have_values
from ttrc.passes.refuse import refuse
from ttrc.symbolic import Expr, Scope, symbol

EXPECTED = (
    "a sum of squares such as norm2(S - exp(g) * S_prev) / 2, or a sum over entries whose derivative is an increasing "
    "function of S less one of S_prev, such as sum(S * log(S / S_prev) - S)"
)
CONVEX = "a convex and smooth function of each entry beside the squares, such as sum(log_cosh(S)) or sum(S**4)"


def derive_mirror(spec: Spec, scope: Scope, slope: Expr) -> Mirror:
    unknown, domain = scope.unknown("S_new", scope.axes[scope.symbols["S"]]), state_domain(spec)
    found = symbolic.invert(slope, scope.symbols["S"], scope.symbols["S_prev"], symbol("own"), unknown, domain)
    if found is None:
        what = "the retention is not quadratic in S and S_prev, and the minimum of the update"
        message = f"{what}, {symbolic.equation(slope)} = -k e', was not solved for S"
        raise refuse(spec, spec.retention.expr, message, expected=EXPECTED)
    if found.search is None:
        return Mirror(found.law)
    pull = found.search.pull
    gates = (*spec.inputs, *spec.parameters)
    fault = find_fault(pull, unknown, {g.name: g.domain for g in gates}, unknown.name)
    part = f"of the equation that the new state solves, {symbolic.equation(unknown + pull)} = ..,"
    if fault is not None:
        message = f"{part} a part {fault.where}: it need not have one root"
        raise refuse(spec, spec.retention.expr, message, expected=CONVEX)
    if not have_values((pull, symbolic.derivative(pull, unknown)), gates, {unknown.name: 0.0}):
        message = f"{part} a part has no finite value and derivative where {unknown.name} = 0"
        raise refuse(spec, spec.retention.expr, message, expected=CONVEX)
    return Mirror(found.law, Implicit(unknown, pull, found.search.base))
