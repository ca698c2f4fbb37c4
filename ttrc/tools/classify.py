"""The class of a rule, each aspect with what shows it: read off the algebra, never looked up by name."""

from __future__ import annotations

from dataclasses import dataclass

from ttrc import symbolic
from ttrc.backends.derivation import by_channel, step
from ttrc.ir.attention import Attention
from ttrc.ir.module import Module
from ttrc.ir.recurrence import MATRIX, Affine, Association, ErrorForm, Hebbian, Implicit, Nonlinear, Recurrence
from ttrc.language.spec import Gradient, Parameter, Spec
from ttrc.language.state import formula
from ttrc.passes.find_obstacle import find_obstacle, is_scan
from ttrc.tools import fits
from ttrc.tools.mathematics import XD, shown, written
from ttrc.tools.reasons import chunk_form, pieces, slope_by_channel


@dataclass(frozen=True)
class Finding:
    """One aspect of the class: what was found, and what shows it."""

    aspect: str
    verdict: str
    because: str


def headline(module: Module) -> str:
    """The class in a few words."""
    r = module.recurrence
    if isinstance(r, Attention):
        return fits.headline(r)
    kinds = list(dict.fromkeys(_kind(a.error) for a in r.associations))
    errors = f"{kinds[0]} error" if len(r.associations) == 1 else f"{' and '.join(kinds)} errors"
    if r.ridge is not None:
        return f"{_memory(r)}, closed form, {_decay_kind(r)} decay"
    kept = f"{_decay_kind(r)} decay" if r.mirror is None else "mirrored state"
    more = ("" if r.momentum is None else ", momentum") + ("" if r.link is None else ", linked weights")
    return f"{_memory(r)}, {errors}, {kept}{more}"


def _memory(r: Recurrence) -> str:
    if r.network is not None:
        return f"{'gated ' if r.network.gated else ''}{r.network.layers}-layer memory"
    return "linear memory" if r.state == MATRIX else "vector memory"


def _chunks(r: Recurrence) -> bool:
    """Whether there is a chunk form to tell of."""
    return find_obstacle(r) is None


def _kind(error: ErrorForm) -> str:
    if slope_by_channel(error) is not None:
        return "channel by channel affine"
    return {Hebbian: "Hebbian", Affine: "affine", Nonlinear: "nonlinear"}[type(error)]


def findings(module: Module) -> tuple[Finding, ...]:
    """The class, each aspect with what shows it."""
    r = module.recurrence
    if isinstance(r, Attention):
        return tuple(Finding(*told) for told in fits.aspects(r))
    if r.ridge is not None:
        return (*_closed_class(r), _decay_class(r), *_forms(module))
    linked = () if r.link is None else (_link_class(r),)
    kept = _decay_class(r) if r.mirror is None else _mirror_class(r)
    written = _error_class if r.state == MATRIX else _channel_class
    errors = [written(r, a) for a in r.associations] if r.network is None else [_layer_class(r)]
    steps = () if r.momentum is None else (_momentum_class(r),)
    return (*errors, kept, *steps, *linked, _read_class(module), *_forms(module))


def _closed_class(r: Recurrence) -> tuple[Finding, ...]:
    e, slope = symbolic.equation(shown(r, written(r.error))), symbolic.equation(shown(r, r.error.slope))
    ridge = symbolic.equation(shown(r, r.ridge))
    of_matrix = r.state == MATRIX
    parts, sign = ("matrices", "has no negative eigenvalue") if of_matrix else ("vectors", "is never negative")
    shared = "the same for all value channels, which share H" if of_matrix else "and each channel is on its own"
    return (
        Finding(
            "loss",
            f"quadratic: the objective of the past is two {parts}, H and G",
            f"its gradient e = {e} is affine in p with slope {slope}, {shared}",
        ),
        Finding("ridge", "positive, so that there is one minimum", f"lam = {ridge}, and H {sign}"),
    )


def _layer_class(r: Recurrence) -> Finding:
    """What a deep memory writes."""
    e = symbolic.equation(shown(r, written(r.error)))
    return Finding(
        "error",
        "of each layer: the cotangent of what goes out of it, through the network",
        f"the adjoint of f starts from dL/dp with e = {e}; f(x) = {formula(r.network)}",
    )


def _aspect(association: Association) -> str:
    return " ".join(("error", *association.origin.split(".")[1:]))


def _channel_class(r: Recurrence, association: Association) -> Finding:
    """What a vector memory writes."""
    aspect, e = _aspect(association), symbolic.equation(shown(r, written(association.error)))
    match association.error:
        case Hebbian():
            return Finding(aspect, "free of p (Hebbian)", f"e = {e} does not contain p")
        case Affine(slope, _):
            rate = symbolic.equation(shown(r, slope))
            return Finding(aspect, "affine in p", f"e = {e} has slope {rate} in p; no channel shares its state")
        case Nonlinear(_, sums, root):
            joined = next((symbolic.equation(shown(r, s.symbol)) for s in sums), "")
            met = f"; {joined} joins the channels, which stay together" if joined else "; each channel is on its own"
            found = f"; {_search(root)}" if root is not None else ""
            what = "not affine in each channel's own p" if joined else "nonlinear in p"
            own = "each channel's own p" if joined else "p"
            return Finding(aspect, what, f"e = {e} is not affine in {own}{met}{found}")
    raise AssertionError(association.error)


def _error_class(r: Recurrence, association: Association) -> Finding:
    error = association.error
    aspect = _aspect(association)
    e = symbolic.equation(shown(r, written(error)))
    at_start = ": predictions of a segment come from its start, no solve" if r.segment is not None else ""
    solved = _chunks(r) and r.segment is None
    match error:
        case Hebbian():
            return Finding(
                aspect,
                "free of p (Hebbian)" + ("" if is_scan(r) else ": masked linear attention, no solve"),
                f"e = {e} does not contain p, so what is written does not depend on the state",
            )
        case Affine(slope, _):
            rate = symbolic.equation(shown(r, slope))
            return Finding(
                aspect,
                "affine in p"
                + (": one unit lower-triangular solve a chunk (the WY / UT transform)" if solved else at_start),
                f"e = {e} has slope {rate} in p, the same for all value channels"
                + (", which share the inverse" if solved else ""),
            )
        case Nonlinear(_, sums, root):
            joined = [s for s in sums if "v" in s.axes]
            total = symbolic.equation(shown(r, joined[0].symbol)) if joined else ""
            slope = slope_by_channel(error)
            if slope is not None:
                return Finding(
                    aspect,
                    "affine in p, each value channel with a slope of its own"
                    + (": forward substitution inside a chunk, row after row" if solved else at_start),
                    f"e = {e} has slope {symbolic.equation(shown(r, slope))} in p, which differs by value channel: a "
                    "triangular inverse for each of them would cost more than substitution, which each takes by itself",
                )
            return Finding(
                aspect,
                "nonlinear in p" + (": forward substitution inside a chunk, row after row" if solved else at_start),
                f"e = {e} is not affine in p with one slope for all value channels"
                + (f"; {total} joins the channels, which stay together" if joined else "; each channel is on its own")
                + (f"; {_search(root)}" if root is not None else ""),
            )
    raise AssertionError(error)


def _search(root: Implicit) -> str:
    return (
        f"the left side of the equation for {root.unknown} rises at least as fast as {root.unknown}: it has one root, "
        "Newton's steps with a bracket around them find it, and the implicit function theorem is its adjoint"
    )


def _decay_kind(r: Recurrence) -> str:
    if r.decay == 1:
        return "no"
    fixed = {g.name for g in r.gates if isinstance(g, Parameter)}
    return "constant" if symbolic.names(r.decay) <= fixed else "data-dependent"


def _decay_class(r: Recurrence) -> Finding:
    a, between = symbolic.equation(shown(r, r.decay)), ""
    if _chunks(r) and not is_scan(r) and r.axes_of(r.decay):
        between = (
            "; in a chunk it stands between two tokens inside of the sum over key channels: halves of pieces "
            "of 2, 4, .. tokens meet where one ends and the other begins, from where either decays, so that nothing is "
            "more than 1"
        )
    match _decay_kind(r):
        case "no":
            return Finding("decay", "none", "a = 1, and nothing is paid for it")
        case "constant":
            each = PER[r.axes_of(r.decay)]
            why = f"a = {a} has nothing that comes per token{between}"
            return Finding("decay", f"constant in time, {each} a head", why)
        case _:
            each = PER[r.axes_of(r.decay)]
            why = f"a = {a} comes per token{between}"
            return Finding("decay", f"data-dependent, {each} a token and head", why)


PER = {
    (): "a scalar",
    ("k",): "a vector of key channels",
    ("v",): "a vector of value channels",
    ("k", "v"): "a matrix",
}


def _mirror_class(r: Recurrence) -> Finding:
    law, root = symbolic.equation(shown(r, r.mirror.law)), r.mirror.root
    found = "" if root is None else f"; {_search(root)}"
    return Finding(
        "retention", "not quadratic: each entry moves by its own law", f"S_t = {law} is not linear in S_prev{found}"
    )


def _link_class(r: Recurrence) -> Finding:
    weights = symbolic.equation(symbolic.spelled_out(r.link.weights, r.link.sums))
    joined = r.network is None and any("v" in s.axes for s in r.link.sums)  # those of a network are together anyway
    at = "at the start of each segment" if r.segment is not None else "at each token"
    return Finding(
        "weights",
        f"a link of the state, taken {at}",
        f"W = {weights}" + ("; its sum joins the value channels, which stay together" if joined else ""),
    )


def _read_class(module: Module) -> Finding:
    r = module.recurrence
    if isinstance(r.error, Hebbian) and r.network is None:
        return Finding("reads", "nothing before it writes", "e is free of p, so no prediction is needed")
    what = "state" if r.link is None else "weights"
    if r.segment is not None and not r.reads_decayed:
        return Finding("reads", f"the {what} at the start of its segment", _where_taken(module.spec))
    if r.in_turn:
        return Finding("reads", "what the losses before it have made of the retained state", _where_taken(module.spec))
    if r.mirror is not None or r.link is not None:
        which = "retained" if r.reads_decayed else "previous"
        return Finding("reads", f"the {which} {what}", _where_taken(module.spec))
    if r.reads_decayed:
        return Finding("reads", "the decayed state", _where_taken(module.spec))
    if r.decay == 1:
        return Finding("reads", "the previous state", "without a decay the retained and the previous state are one")
    return Finding("reads", "the previous state, before it decays", _where_taken(module.spec))


def _where_taken(spec: Spec) -> str:
    match spec.update:
        case Gradient(at=at):
            return f'the gradient is taken at "{at.value}"'
        case _:
            return "the implicit step starts from the minimum of the retention, the decayed state"


def _forms(module: Module) -> tuple[Finding, ...]:
    recurrent = ("exact", "it is the recurrence")
    if module.recurrence.ridge is not None and module.recurrence.state == MATRIX:
        recurrent = ("exact to rounding", "H and G are carried, and x is solved for at each token")
    return (
        Finding("chunk form", *chunk_form(module)),
        Finding("pieces", *pieces(module)),
        Finding("recurrent form", *recurrent),
    )


def _momentum_class(r: Recurrence) -> Finding:
    b = symbolic.equation(shown(r, r.momentum))
    own = by_channel(r, step(r)) if r.network is None else XD
    because = f"M_t = b M_prev - {own} with b = {b}, then S moves by M_t: two recurrences in a row"
    if is_scan(r):
        return Finding("momentum", "a second state, the last step: two scans in a row", because)
    if not _chunks(r):
        return Finding("momentum", "a second state, the last step", because)
    return Finding("momentum", "exact: the mask of a chunk is the product of two masks, a C x C product", because)
