"""Why a rule has a chunk form, or none, or none that is matrix products, in words."""

from __future__ import annotations

from ttrc import symbolic
from ttrc.compiler import analyse
from ttrc.ir.config import is_several_chunks
from ttrc.ir.module import Module
from ttrc.ir.obstacle import Obstacle, Uncut
from ttrc.ir.recurrence import MATRIX, ErrorForm, Hebbian, Nonlinear, Recurrence
from ttrc.language.spec import Spec
from ttrc.passes.find_obstacle import find_obstacle, find_obstacle_to_products, is_scan
from ttrc.symbolic import Expr
from ttrc.tools.mathematics import shown


def chunk_form(module: Module) -> tuple[str, str]:
    """Whether there is one and for which chunks, and why."""
    r = module.recurrence
    if "chunk" not in module.forms:
        return "none: this rule runs token by token", _words(r, find_obstacle(r))
    if r.ridge is not None and r.state == MATRIX:
        why = (
            "H and G are sums over tokens, as any linear memory is: what H makes of a vector is masked linear "
            "attention, and all rows of a chunk are solved side by side, each with the H of its own token, by "
            "conjugate gradients until rounding is reached; the adjoint is one more such solve (implicit function "
            "theorem)"
        )
        return "exact to rounding for every chunk size", why
    one_chunk = r.segment is not None and not is_several_chunks(r.segment)
    exact = f"exact in chunks of {r.segment}, the segments of the rule" if one_chunk else "exact for every chunk size"
    if is_scan(r):
        side_by_side = "channels" if r.state != MATRIX else "entries"
        why = (
            "a token takes each entry s of the state to a s + b, and such maps compose: those of a chunk are scanned, "
            f"all {side_by_side} side by side; logarithms of decays are not needed"
        )
        if r.ridge is not None:
            why = f"H and G are two such states, and S = G / (H + lam): {why}"
        if r.state == MATRIX:
            why = f"it is a scan, not matrix products: {_words(r, find_obstacle_to_products(r))}. But {why}"
        return exact, why
    if r.network is not None:
        why = (
            "every gradient of a segment is taken at its start: inside of it each layer is a linear memory, whose keys "
            "are what comes into it and whose errors are known, all with the same masks"
        )
        return exact, why if one_chunk else why + "; second weights carry that start over the segment's chunks"
    if r.segment is not None and not isinstance(r.error, Hebbian):
        why = "every gradient of a {} is taken at its start: predictions are products with what is there, no solve"
        if one_chunk:
            return exact, why.format("chunk")
        return exact, why.format("segment") + "; a second state carries that start over the segment's chunks"
    asking = [a.error for a in r.associations if not isinstance(a.error, Hebbian)]
    if not asking:
        why = (
            "it is the same sum over tokens regrouped: what earlier chunks wrote comes through the state, "
            "what this one writes through a masked product"
        )
    elif substituted := sum(isinstance(error, Nonlinear) for error in asking):
        solved, errors = "p = b - A e(p)", "A is strictly lower, so that each row needs the errors of earlier rows"
        if substituted > 1:
            own = ", and of errors before it in its own" if r.in_turn else ""
            solved = "p_i = b_i - sum_j A_ij e_j(p_j)"
            errors = f"A_ij are lower, so that each row needs the errors of earlier rows{own}"
        why = (
            f"the state enters a chunk through its predictions alone, and these solve {solved}, b from the "
            f"state at its start; {errors} alone: "
            "row after row in blocks of 16, a thread its own value channels, and products do the rest"
        ) + ("; affine predictions are taken out of these equations first" if asking[substituted:] else "")
    else:
        why = (
            "the state enters a chunk through its predictions alone, and these solve (I + A) u = rhs; "
            "A is strictly lower, so the solution exists, is unique and is no approximation"
        )
    return exact, why


def pieces(module: Module) -> tuple[str, str]:
    """Whether sequences can be cut into pieces that run side by side, and why."""
    r = module.recurrence
    if "chunk" not in module.forms:
        return "none: sequences run whole", "pieces are whole chunks, and there is no chunk form"
    plan = module.forms["chunk"].plan
    if plan.crossing is None:
        return "none: sequences run whole", _why_whole(r, plan.uncut)
    crossing, labels = plan.crossing, ", ".join(s.name for s in plan.crossing.states)
    if crossing.products:
        factors = "a matrix of key channels" + (" for each two of them" if crossing.members > 1 else "")
    else:
        each = " and ".join({"k": "key channel", "v": "value channel"}[a] for a in crossing.entry)
        factors = f"a number for each {each}" + (
            " and each two that hang on one another" if crossing.members > 1 else ""
        )
    why = (
        f"a chunk takes its state ({labels}) to T times it and B, and so does a piece of chunks: B is what it makes of "
        f"an empty state, T is {factors}; such maps compose, and a second scan starts each piece from its state"
    )
    return 'schedule "segments", for few heads and long sequences', why


def _why_whole(r: Recurrence, uncut: Uncut) -> str:
    match uncut:
        case Uncut.BY_VALUES:
            return (
                "what a chunk makes of the state it starts with hangs on a sum over value channels, and unit states "
                "have others"
            )
    if r.network is not None:
        what = "weights are no affine function of those before them: errors go through the network"
    elif r.link is not None:
        what = "weights are a link of the state, which then is no affine function of the one before it"
    elif any(slope_by_channel(a.error) is not None for a in r.associations):
        return (
            "the error is affine in p, but no slope is shared by all value channels: T would be a matrix of key "
            "channels for each of them"
        )
    elif "v" in r.axes_of(r.decay):
        return "decays differ by value channel: T would be a matrix of key channels for each of them"
    else:
        what = "the error is not affine in p, so that a state is no affine function of the one before it"
    return f"{what}; what a piece makes is known from its own start alone"


def slope_by_channel(error: ErrorForm) -> Expr | None:
    """The slope of an error that is affine in p and counts as nonlinear because its slope differs by value channel."""
    if not isinstance(error, Nonlinear) or error.sums or error.root is not None:
        return None
    found = symbolic.affine(error.written, symbolic.symbol("p"))
    return None if found is None else found[0]


def why_by_token(spec: Spec) -> str | None:
    """Why a rule has no chunk form; None where it has one."""
    module = analyse(spec)
    return None if "chunk" in module.forms else chunk_form(module)[1]


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
            return (
                f"a chunk would be a segment, and {r.segment} tokens are no size of a chunk; several chunks a segment, "
                "of a multiple of 128 tokens, are for deep memories, and for matrices without a link and without a sum "
                "over value channels"
            )
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
        case Obstacle.MOMENTUM_BY_KEY:
            return "a momentum makes a mask that is a product of two, and a decay by key channel has none"
        case Obstacle.DECAY_BY_VALUE:
            return (
                "every value channel decays by itself, and the mask of a chunk is one for all of them; without it an "
                "error has one inverse for all where it alone looks at p, is affine in it and reads the decayed state, "
                "and nothing moves the state but one decay and one step a token"
            )
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
