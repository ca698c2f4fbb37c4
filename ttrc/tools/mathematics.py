"""How a spec becomes a recurrence, step by step, for readers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from ttrc import symbolic
from ttrc.backends.derivation import letters, step, written_before
from ttrc.ir.attention import Attention
from ttrc.ir.module import Module
from ttrc.ir.recurrence import (
    MATRIX,
    Affine,
    Association,
    ErrorForm,
    Feature,
    Hebbian,
    Implicit,
    Mirror,
    Nonlinear,
    Readout,
    Recurrence,
    answered,
)
from ttrc.language.spec import Proximal, Spec
from ttrc.language.state import formula
from ttrc.symbolic import Expr, symbol
from ttrc.tools import fits
from ttrc.tools.notation import Line, factor, line

XD = "x d'"  # of a layer: what comes into it, and the cotangent of what goes out


@dataclass(frozen=True)
class Step:
    title: str
    lines: tuple[Line, ...]
    note: str


def steps(module: Module) -> tuple[Step, ...]:
    """From the four choices to the recurrence."""
    r = module.recurrence
    if isinstance(r, Attention):
        return (*(Step(*told) for told in fits.derivation(r)), *_readout(r.readout))
    if r.ridge is not None:
        closed = _closed(r) if r.state == MATRIX else _closed_by_entry(r)
        return (*closed, *_readout(r.readout))
    told = (
        _losses(r),
        *(() if r.network is None else (_layers(r),)),
        _retention(r),
        *(() if r.link is None else (_weights(r),)),
        _stationarity(module.spec, r),
        _recurrence(r),
        *_readout(r.readout),
    )
    return told if r.state == MATRIX else tuple(map(_by_channel, told))


def _by_channel(step: Step) -> Step:
    """Of a vector memory: products go entry by entry, and nothing is transposed."""
    lines = (replace(x, words=" ".join(map(_untransposed, x.words.split(" ")))) for x in step.lines)
    note = f"{step.note}, all products entry by entry" if step.title == "Recurrence" else step.note
    return Step(step.title, tuple(lines), note)


def _untransposed(word: str) -> str:
    if word.startswith("(dL/d"):
        return word.strip("()'")
    return "k^2" if word == "|k|^2" else word.rstrip("'")


def _losses(r: Recurrence) -> Step:
    """What each association minimises, and where its keys are made."""
    lines = []
    for a in r.associations:
        at = letters(a)
        lines.append(line(f"{_slope(a)} = {{}}", shown(r, _of(at.p, a.gradient))))
        named = ((at.key, a.key), (at.write, a.write))
        lines += [line(f"{name} = {{}}", _spelled(f)) for name, f in named if f is not None]
    note = "weight included; p is the prediction, v the target"
    return Step("Loss", tuple(lines), note if len(r.associations) == 1 else f"{note}, of each association")


def _slope(association: Association) -> str:
    p = letters(association).p
    return "dL/dp" if p == "p" else f"dL/d{p}"


def _of(p: str, expr: Expr) -> Expr:
    return symbolic.renamed(expr, {"p": symbol(p)})


def _spelled(feature: Feature) -> Expr:
    return symbolic.spelled_out(feature.expr, feature.sums)


def _readout(readout: Readout | None) -> tuple[Step, ...]:
    if readout is None:
        return ()
    shown = symbolic.spelled_out(readout.expr, readout.sums)
    return (
        Step("Read-out", (line("o = {}", shown),), "r is what the memory answers; q has the scale in it, as r has"),
    )


def _closed(r: Recurrence) -> tuple[Step, ...]:
    """From the loss and the ridge to what is solved."""
    lines = (
        *_past(r, "c k k'", "k b'"),
        line("( H_t + lam ) x = q"),
        line(f"{answered(r.readout)} = scale G_t' x"),
    )
    return (
        *_quadratics(r),
        Step("Update", (line("( H_t + lam ) S_t = G_t"),), "where the slope of all losses so far and the ridge is 0"),
        Step("Recurrence", lines, "what every form below computes; S itself is never made"),
    )


def _closed_by_entry(r: Recurrence) -> tuple[Step, ...]:
    """The same of a vector memory, whose entries are regressions of their own."""
    lines = (*_past(r, "c k^2", "k b"), line(f"{answered(r.readout)} = scale q S_t"))
    return (
        *_quadratics(r),
        Step("Update", (line("S_t = G_t / (H_t + lam)"),), "where the slope of all losses so far and the ridge is 0"),
        Step("Recurrence", lines, "what every form below computes, all products entry by entry"),
    )


def _quadratics(r: Recurrence) -> tuple[Step, ...]:
    c, b = shown(r, r.error.slope), shown(r, -r.error.offset)
    return (
        Step("Loss", (line("dL/dp = c p - b"), line("c = {}", c), line("b = {}", b)), "weight included"),
        Step("Retention", (line("dR/dS = lam S"), line("lam = {}", shown(r, r.ridge))), "a ridge: it does not decay"),
    )


def _past(r: Recurrence, curved: str, pulled: str) -> tuple[Line, ...]:
    """How the objective of all tokens so far goes on from token to token."""
    before = "" if r.decay == 1 else f"{factor(shown(r, r.decay))} "
    used = () if r.decay == 1 else (shown(r, r.decay),)
    return line(f"H_t = {before}H_prev + {curved}", *used), line(f"G_t = {before}G_prev + {pulled}", *used)


def _layers(r: Recurrence) -> Step:
    below = "S stands for each W below" if r.link is None else "W stands for each layer's weights, S for its state"
    return Step(
        "Layers",
        (line("dL/dW = x d' with x what comes into a layer and d = dL/d(x W)"), line(below)),
        f"f(x) = {formula(r.network)}; d is the adjoint of f, by the rules that differentiate every program",
    )


def _weights(r: Recurrence) -> Step:
    link, of = r.link, {("k",): "each value channel", ("v",): "each key channel"}
    if r.network is not None:
        of = {("k",): "each column", ("v",): "each row"}
    elif r.state != MATRIX:
        of = {}
    note = "the weights that are read are a link of the state that is carried"
    if link.sums:
        note += f"; sums over {of.get(link.sums[0].axes, 'all entries')}"
    if link.shift:
        note += ", of S less its largest entry there, which changes no weight"
    return Step("Link", (line("W = {}", symbolic.spelled_out(link.weights, link.sums)),), note)


def _retention(r: Recurrence) -> Step:
    if r.mirror is not None:
        found = "solved for S" if r.mirror.root is None else "S is searched for"
        note = f"the slope of the retention is F(S) - R(S_prev) in each entry, F increasing; {found}"
        return Step("Retention", (line("dR/dS = own"), *_law(r, "S", r.mirror)), note)
    curvature, decay = shown(r, r.curvature), shown(r, r.decay)
    lines = [line("dR/dS = m ( S - a S_prev )"), line("m = {}", curvature), line("a = {}", decay)]
    if r.log_decay is not None:
        lines.append(line("log a = {}", shown(r, r.log_decay)))
    note = "the curvature m is positive, so that there is one S to solve for; a is the decay"
    return Step("Retention", tuple(lines), note)


def _stationarity(spec: Spec, r: Recurrence) -> Step:
    pulled = " + ".join(f"{letters(a).write} ({_slope(a)})'" for a in r.associations)
    condition = f"{pulled if r.network is None else XD} + m ( S_t - a S_prev ) = 0 where "
    match spec.update:
        case Proximal():
            length = "sum( k^2 / m )" if r.write != symbolic.ONE else "( |k|^2 / m )"
            lines = (line(condition + "p = S_t' k"), line(f"p + {length} dL/dp = ( a S_prev )' k"))
            note = "the gradient stands at the new state itself; its prediction solves the second line"
            return Step("Update", lines, note)
        case _:
            asked = [a for a in r.associations if not isinstance(a.error, Hebbian)] or [r.main]
            first, *more = map(partial(_predicted, r), asked)
            if r.mirror is not None:
                own = pulled if len(r.associations) == 1 else f"( {pulled} )"
                return Step("Update", (line(f"own = - {own} where {first}"), *map(line, more)), "one step a token")
            note = "the minimum over S_t of the linearised loss plus the retention"
            return Step("Update", (line(f"{condition}{first}"), *map(line, more)), note)


def _recurrence(r: Recurrence) -> Step:
    decay = shown(r, r.decay)
    before = "S_prev" if decay == 1 else f"{factor(decay)} S_prev"
    used = () if decay == 1 else (decay,)
    weights = () if r.write == symbolic.ONE else (line("w = {}", shown(r, r.write)),)
    lines = [*_mirrored(r)] if r.mirror is not None else [_moved(r, before, used)]
    if r.momentum is not None:
        added = f"- {_own(r)}" if r.mirror is None else "+ own_t"
        lines.append(line(f"M_t = {factor(shown(r, r.momentum))} M_prev {added}", shown(r, r.momentum)))
    lines += weights
    plain = r.link is None and r.mirror is None and r.network is None and r.reads_decayed
    for a in r.associations:
        at = letters(a)
        lines.append(line(f"{at.e} = {{}}", shown(r, _of(at.p, written(a.error)))))
        if isinstance(a.error, Nonlinear) and a.error.root is not None:
            lines.append(_equation(r, a.error.root))
        if not isinstance(a.error, Hebbian):
            alone = plain and not written_before(r, a)
            lines.append(line(f"{at.p} = ( {before} )' {at.key}", *used) if alone else line(_predicted(r, a)))
    if r.link is not None and r.segment is not None:
        lines.append(line(f"W_t - {before.replace('S', 'W')} = S_t - {before}", *used, *used))
    read = "S_t" if r.link is None else "W_t"
    word = answered(r.readout)
    lines.append(line(f"{word} = scale {read}' q" if r.network is None else f"{word} = f(scale q) at {read}"))
    if r.normalised:
        lines.append(line("normaliser = scale Z_t' q, Z as S with v = 1"))
    return Step("Recurrence", tuple(lines), "what every form below computes, token by token")


def _moved(r: Recurrence, before: str, used: tuple[Expr, ...]) -> Line:
    return line(f"S_t = {before} - {_own(r)}" if r.momentum is None else f"S_t = {before} + M_t", *used)


def _mirrored(r: Recurrence) -> tuple[Line, ...]:
    """How a state moves by its mirror; with a momentum, of which only what a token adds enters."""
    own = line(f"own = - {step(r)}")
    if r.momentum is None:
        return (*_law(r, "S_t", r.mirror), own)
    if r.mirror.root is not None:
        added = line("S_t = S_rest + M_t"), line("own_t = S_alone - S_rest")
        return (*added, *_law(r, "S_alone", r.mirror), *_law(r, "S_rest", r.at_rest), own)
    return (
        line("S_t = {} + M_t", shown(r, r.at_rest.law)),
        line("own_t = {} - {}", shown(r, r.mirror.law), shown(r, r.at_rest.law)),
        own,
    )


def _law(r: Recurrence, name: str, mirror: Mirror) -> tuple[Line, ...]:
    """What an entry of the state becomes, and the equation that it takes to say so."""
    law = line(f"{name} = {{}}", shown(r, mirror.law))
    return (law,) if mirror.root is None else (law, _equation(r, mirror.root))


def _equation(r: Recurrence, root: Implicit) -> Line:
    """What the unknown of an implicit step solves."""
    return line("{} + {} = {}", root.unknown, shown(r, root.pull), shown(r, root.base))


def _own(r: Recurrence) -> str:
    """What a token writes."""
    if r.network is None:
        return step(r)
    return XD if r.curvature == 1 else f"{XD} / m"


def _predicted(r: Recurrence, association: Association) -> str:
    at, before = letters(association), written_before(r, association)
    if before:
        state = f"{'( a S_prev' if r.mirror is None else '( S_retained'}{before} )'"
        return f"{at.p} = {state} {at.key}" if r.link is None else f"{at.p} = W( {state} )' {at.key}"
    if r.network is None:
        return f"{at.p} = {_seen(r)} {at.key}"
    state = _seen(r).removesuffix("'")
    return f"{at.p} = f(k) at {state}"


def _seen(r: Recurrence) -> str:
    """The state, or the weights, that predictions are made of, transposed."""
    name = "S" if r.link is None else "W"
    if r.segment is not None:
        return f"{name}_start'"
    if not r.reads_decayed:
        return f"{name}_prev'"
    return "( a S_prev )'" if r.link is None and r.mirror is None else f"{name}_retained'"


def written(error: ErrorForm) -> Expr:
    """The error that is written, as a function of the prediction that is read."""
    match error:
        case Hebbian(offset):
            return offset
        case Affine(slope, offset):
            return symbolic.tidy(slope * symbol("p") + offset)
        case Nonlinear(expr):
            return expr
    raise AssertionError(error)


def shown(r: Recurrence, expr: Expr) -> Expr:
    """expr with the symbols of reductions spelled out."""
    return symbolic.spelled_out(expr, r.reductions)
