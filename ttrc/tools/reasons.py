"""Why a rule has no chunk form, in words."""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.config import SEGMENTS
from ttrc.ir.recurrence import MATRIX, Nonlinear, Recurrence
from ttrc.tools.mathematics import shown


def why_no_logarithm(r: Recurrence) -> str:
    name, factor = ("a", r.decay) if r.log_decay is None and r.decay != 1 else ("b", r.momentum)
    return (
        f"a chunk needs sums of log {name}, and {name} = {symbolic.equation(shown(r, factor))} may reach zero: "
        'nothing in the domains of its inputs says that it is positive, as domain = "decay" does'
    )


def _why_no_scan(r: Recurrence) -> str:
    if r.segment is not None:
        return f"programs would hold all channels of {r.segment} tokens, which join in a sum: more than registers are"
    if any(isinstance(a.error, Nonlinear) for a in r.associations):
        return "the error is not affine in p, so that tokens are no affine maps of the state, which alone compose"
    return "with a momentum two numbers a channel move each other, and a scan is of maps of one"


def why_by_token(r: Recurrence) -> str | None:
    if r.mirror is not None:
        return "a chunk needs a state that moves linearly, and this one does not"
    if r.link is not None and r.segment is None:
        return "weights are a link of the state at every token, and so no sum of what tokens write"
    if r.network is not None and r.segment is None:
        return "every token's gradient hangs on the weights before it through the whole network, and has no closed form"
    if r.state != MATRIX and r.segment in (None, *SEGMENTS):
        return _why_no_scan(r)
    nonlinear = sum(isinstance(a.error, Nonlinear) for a in r.associations)
    if r.segment is None and nonlinear > 1:
        return (
            f"{nonlinear} nonlinear errors of a token hang on what all of them write, and a chunk substitutes for one"
        )
    if r.segment not in (None, *SEGMENTS):
        return f"a chunk would be a segment, and {r.segment} tokens are no size of a chunk"
    match r.axes_of(r.decay):
        case ("k",) if r.momentum is not None:
            return "a momentum makes a mask that is a product of two, and a decay by key channel has none"
        case ("v",):
            return "every value channel decays by itself, and the mask of a chunk is one for all of them"
        case ("k", "v"):
            return "every entry of the state decays by itself, and the mask of a chunk is one for all of them"
    if r.axes_of(r.write) == ("k", "v"):
        return "every entry of the state writes with a weight of its own, and what a chunk writes is k u'"
    return None
