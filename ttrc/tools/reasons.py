"""Why a rule has no chunk form, or none that is matrix products, in words."""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.obstacle import Obstacle
from ttrc.ir.recurrence import Nonlinear, Recurrence
from ttrc.passes.find_obstacle import find_obstacle, find_obstacle_to_products
from ttrc.symbolic import Expr
from ttrc.tools.mathematics import shown


def why_by_token(r: Recurrence) -> str:
    """Of a rule that runs token by token."""
    return _words(r, find_obstacle(r))


def why_no_products(r: Recurrence) -> str:
    """Of a rule whose memory is a matrix, and whose chunks are scans."""
    return _words(r, find_obstacle_to_products(r))


def _words(r: Recurrence, obstacle: Obstacle | None) -> str:
    match obstacle:
        case Obstacle.MIRROR:
            return "a chunk needs a state that moves linearly, and this one does not"
        case Obstacle.LINK:
            return "weights are a link of the state at every token, and so no sum of what tokens write"
        case Obstacle.NETWORK:
            return (
                "every token's gradient hangs on the weights before it through the whole network, and has no closed "
                "form"
            )
        case Obstacle.SEGMENT:
            return f"a chunk would be a segment, and {r.segment} tokens are no size of a chunk"
        case Obstacle.JOINED:
            return (
                f"programs would hold all channels of {r.segment} tokens, which join in a sum: more than registers are"
            )
        case Obstacle.NOT_AFFINE:
            return (
                "the error is not affine in each channel's own p, so that tokens are no affine maps of the state, "
                "entry by entry, which alone compose"
            )
        case Obstacle.MAPS_OF_TWO:
            return "with a momentum two numbers a channel move each other, and a scan is of maps of one"
        case Obstacle.SUBSTITUTIONS:
            errors = sum(isinstance(a.error, Nonlinear) for a in r.associations)
            return (
                f"{errors} nonlinear errors of a token hang on what all of them write, and a chunk substitutes for one"
            )
        case Obstacle.MOMENTUM_BY_KEY:
            return "a momentum makes a mask that is a product of two, and a decay by key channel has none"
        case Obstacle.DECAY_BY_VALUE:
            return "every value channel decays by itself, and the mask of a chunk is one for all of them"
        case Obstacle.DECAY_BY_ENTRY:
            return "every entry of the state decays by itself, and the mask of a chunk is one for all of them"
        case Obstacle.WRITE_BY_ENTRY:
            return "every entry of the state writes with a weight of its own, and what a chunk writes is k u'"
        case Obstacle.DECAY_MAY_BE_ZERO:
            return _no_logarithm(r, "a", r.decay)
        case Obstacle.MOMENTUM_MAY_BE_ZERO:
            return _no_logarithm(r, "b", r.momentum)
    raise AssertionError(r)


def _no_logarithm(r: Recurrence, name: str, factor: Expr) -> str:
    return (
        f"a chunk needs sums of log {name}, and {name} = {symbolic.equation(shown(r, factor))} may reach zero: "
        'nothing in the domains of its inputs says that it is positive, as domain = "decay" does'
    )
