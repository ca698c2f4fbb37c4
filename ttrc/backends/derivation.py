"""The derivation of a rule as comment lines of its generated package: from the spec's choices to what steps compute."""

from __future__ import annotations

from dataclasses import dataclass

from ttrc import symbolic
from ttrc.backends import pairs
from ttrc.ir.attention import Attention
from ttrc.ir.module import Module
from ttrc.ir.recurrence import MATRIX, Affine, Association, Hebbian, Nonlinear, Recurrence, answered
from ttrc.language.spec import Loss, Spec
from ttrc.language.state import formula, is_normalised


def comment(text: str) -> str:
    """Text of a user as one line of printable ASCII."""
    return "".join(c if 32 <= ord(c) < 127 else "?" for c in text)[:200]


def derivation(module: Module) -> str:
    spec, r = module.spec, module.recurrence
    if isinstance(r, Attention):
        lines = pairs.derivation(spec, r, comment)
    else:
        lines = _recurrence(spec, r) if r.ridge is None else _closed(spec, r)
    features = (("q", spec.features.q), ("k", spec.features.k))
    mapped = [f"features   {word}: {comment(where.text)}" for word, where in features if where is not None]
    read = () if spec.read is None else (f"output     o = {comment(spec.read.text)}, r what the memory answers to q",)
    ones = ("           normaliser what it would answer, had every value been 1",) if is_normalised(spec) else ()
    return "\n".join(f"# {line}" for line in (*mapped, *lines, *read, *ones))


def _recurrence(spec: Spec, r: Recurrence) -> list[str]:
    lines = [
        *(f"{loss.origin:<10} {_loss(loss)}" for loss in spec.losses),
        f"retention  {comment(spec.retention.expr.text)}",
        *(f"error      dL/d{letters(a).p} = {_equation(letters(a), a.gradient)}" for a in r.associations),
        _moved(r),
    ]
    reductions = r.reductions
    if r.network is not None:
        lines.insert(-1, f"memory     f(x) = {formula(r.network)}")
        lines.append("           S each W, x what comes into its layer and d the cotangent of what goes out, from e")
    if r.link is not None:
        less = f", S less its largest over {', '.join(r.link.shift)}" if r.link.shift else ""
        lines.insert(-1, f"weights    W = {symbolic.equation(r.link.weights)}{less}")
        reductions += r.link.sums
    for association in r.associations:
        lines += [f"           {line}" for line in _error(r, association)]
    for reduction in reductions:
        body = symbolic.equation(reduction.body)
        lines.append(f"           {reduction.symbol} = sum over {', '.join(reduction.axes)} of {body}")
    return lines


def _loss(loss: Loss) -> str:
    parts = {"weight": loss.weight, "key": loss.key, "write": loss.write}
    given = (f", {name} {comment(part.text)}" for name, part in parts.items() if part is not None)
    return comment(loss.expr.text) + "".join(given)


def _error(r: Recurrence, association: Association) -> list[str]:
    """What is written, and of what prediction."""
    at = letters(association)
    p = by_channel(r, f"{at.p} = {_read(r, at.key, written_before(r, association))}")
    match association.error:
        case Affine(slope, offset):
            return [f"{at.e} = ({symbolic.equation(slope)}) {at.p} + ({symbolic.equation(offset)}), {p}"]
        case Hebbian(offset):
            return [f"{at.e} = {symbolic.equation(offset)}"]
        case Nonlinear(written, _, None):
            return [f"{at.e} = {_equation(at, written)}, {p}"]
        case Nonlinear(written, _, root):
            equation = f"{root.unknown} + {symbolic.equation(root.pull)} = {symbolic.equation(root.base)}"
            return [f"{at.e} = {symbolic.equation(written)}, {p}", equation]
    raise AssertionError(association.error)


def _equation(at: Letters, expr: symbolic.Expr) -> str:
    """An expression of the prediction, by the name that its association gives it."""
    return symbolic.equation(symbolic.renamed(expr, {"p": symbolic.symbol(at.p)}))


@dataclass(frozen=True)
class Letters:
    """What formulas call the error, the prediction and the keys of an association."""

    e: str
    p: str
    key: str
    write: str


def letters(association: Association) -> Letters:
    index = "_".join(association.origin.split(".")[1:])
    end = f"_{index}" if index else ""
    key = "k" if association.key is None else f"key{end}"
    return Letters(f"e{end}", f"p{end}", key, key if association.write is None else f"write{end}")


def step(r: Recurrence) -> str:
    """What a token takes off the state: the products of keys and errors, summed."""
    terms = [_term(r, a) for a in r.associations]
    return terms[0] if len(terms) == 1 else f"( {' + '.join(terms)} )"


def written_before(r: Recurrence, association: Association) -> str:
    """What a prediction sees taken off at its own token, by the associations before it."""
    earlier = r.associations[: r.associations.index(association)] if r.in_turn else ()
    return "".join(f" - {_term(r, a)}" for a in earlier)


def _term(r: Recurrence, association: Association) -> str:
    at = letters(association)
    return f"{weighed(r)}{at.write} {at.e}'"


def _closed(spec: Spec, r: Recurrence) -> list[str]:
    """The derivation of a closed form."""
    a = "" if r.decay == symbolic.ONE else "a "
    c, b, ridge = (symbolic.equation(e) for e in (r.error.slope, -r.error.offset, r.ridge))
    if r.state == MATRIX:
        curved, pulled, read = "c k k'", "k b'", "scale G' x, (H + lam) x = q"
    else:
        curved, pulled, read = "c k^2", "k b", "scale q G / (H + lam)"
    return [
        f"loss       {_loss(spec.loss)}",
        f"retention  {comment(spec.retention.expr.text)}"
        + (f", decay {comment(spec.retention.decay.text)}" if spec.retention.decay else ""),
        f"error      dL/dp = c p - b, c = {c}, b = {b}",
        f"state      H = {a}H_prev + {curved}, G = {a}G_prev + {pulled}"
        + (f", a = {symbolic.equation(r.decay)}" if a else ""),
        f"read-out   {answered(r.readout)} = {read}, lam = {ridge}",
        *(f"           {s.symbol} = sum over {', '.join(s.axes)} of {symbolic.equation(s.body)}" for s in r.reductions),
    ]


def _moved(r: Recurrence) -> str:
    """How the state moves, and the last step where that is kept."""
    own = step(r).replace("( ", "(").replace(" )", ")") if r.network is None else "x d'"
    moved = f"- {own}" if r.momentum is None else "+ M"
    state = f"S = a S_prev {moved}, a = {symbolic.equation(r.decay)}"
    if r.mirror is not None:
        law, root = symbolic.equation(r.mirror.law), r.mirror.root
        if root is not None:
            law += f" where {root.unknown} + {symbolic.equation(root.pull)} = {symbolic.equation(root.base)}"
        state = f"S = {law}, own = {moved.removeprefix('+ ')}"
    kept = "" if r.momentum is None else f", M = b M_prev - {own}, b = {symbolic.equation(r.momentum)}"
    by_entry = f", w = {symbolic.equation(r.write)}" if r.write != symbolic.ONE else ""
    return by_channel(r, f"state      {state}{kept}{by_entry}")


def by_channel(r: Recurrence, text: str) -> str:
    """Of a vector memory products go entry by entry, and nothing is transposed."""
    return text if r.state == MATRIX else text.replace("'", "")


def weighed(r: Recurrence) -> str:
    """What stands in front of k e' where channels write with weights of their own."""
    return "" if r.write == symbolic.ONE else "w "


def _read(r: Recurrence, key: str, before: str) -> str:
    """The prediction, and the state that it is made of."""
    at = "start" if r.segment is not None else "retained" if r.mirror is not None and r.reads_decayed else "prev"
    state = "a S_prev" if r.reads_decayed and r.mirror is None else f"S_{at}"
    state += before
    if r.network is not None:
        return f"f(k) at {state}"
    return f"({state})' {key}" if r.link is None else f"W({state})' {key}"
