"""What a spec says, choice by choice, in words."""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.backends.derivation import comment
from ttrc.language.functions import FUNCTIONS
from ttrc.language.spec import (
    At,
    ClosedForm,
    Gradient,
    KernelMemory,
    Link,
    Located,
    LqNorm,
    Memory,
    MLPMemory,
    OfSlices,
    Per,
    Proximal,
    Slice,
    Softmax,
    SoftThreshold,
    Spec,
    VectorMemory,
)
from ttrc.language.state import formula
from ttrc.language.syntax import Call, walk


@dataclass(frozen=True)
class Choice:
    """One thing that the spec says, and on which line."""

    section: str
    says: str
    line: int | None


def choices(spec: Spec) -> tuple[Choice, ...]:
    retention = spec.retention.expr
    features = (("features q", spec.features.q), ("features k", spec.features.k))
    rows = [_expression(name, where) for name, where in features if where is not None]
    rows.append(Choice("memory", _memory(spec.memory), None))
    for loss in spec.losses:
        own = loss.origin.replace(".", " ")
        rows.append(_expression(own, loss.expr))
        parts = (("weight", loss.weight), ("key", loss.key), ("write", loss.write))
        rows += [_expression(f"{own} {name}", where) for name, where in parts if where is not None]
    rows.append(_expression("retention", retention))
    if spec.retention.decay is not None:
        rows.append(_expression("decay", spec.retention.decay))
    if spec.retention.link is not None:
        rows.append(Choice("link", _link(spec.retention.link, spec.memory), spec.retention.link.line))
    rows += [Choice("update", _rule(spec), spec.update.line)]
    if spec.read is not None:
        rows.append(_expression("read", spec.read))
    for gate in spec.inputs:
        each = f"a number a token{_CHANNELS[gate.per]} and head"
        rows.append(Choice(f"input {gate.name}", f"{gate.domain.value}, {each}", gate.line))
    for gate in spec.parameters:
        each = f"a number a{_CHANNELS[gate.per].removeprefix(', a')} and head" if gate.per.axes else "a number a head"
        rows.append(Choice(f"parameter {gate.name}", f"{gate.domain.value}, {each}", gate.line))
    return tuple(rows)


_CHANNELS = {
    Per.HEAD: "",
    Per.KEY_CHANNEL: ", a key channel",
    Per.VALUE_CHANNEL: ", a value channel",
    Per.ELEMENT: ", an entry of the state",
}


def _memory(memory: Memory) -> str:
    match memory:
        case MLPMemory(layers, expansion):
            hidden = f", hidden layers of {expansion} d_k" if layers > 1 else ""
            return f"a network: p = f(k), f(x) = {formula(memory)}{hidden}"
        case VectorMemory():
            return "vector: p = s * k, one number a channel, d_k = d_v"
        case KernelMemory(degree, similarity, window):
            kept = "all pairs" if window is None else f"pairs within {window} tokens"
            line = " + W' (k - q)" if degree else ""
            return f"kernel: {kept} are kept, and weigh exp({comment(similarity.text)}) at a query; p = S{line}"
        case _:
            return "linear: p = S' k, S is d_k x d_v"


def _expression(section: str, where: Located) -> Choice:
    return Choice(section, comment(where.text), where.line)


def _link(link: Link, memory: Memory) -> str:
    match link:
        case LqNorm(q, epsilon):
            return f"W = S / ( |S|_{q}^2 + {float(epsilon):g} )^(({q} - 2) / 2), of the whole matrix"
        case Softmax(axis, scale):
            return f"W = {scale} softmax(S), {_slices(axis, memory)}"
        case SoftThreshold(threshold):
            return f"W = sign(S) max(abs(S) - {comment(threshold.text)}, 0)"
        case OfSlices(expr):
            sums = any(isinstance(n, Call) and FUNCTIONS[n.function].kind != "elementwise" for n in walk(expr.tree))
            return f"W = {comment(expr.text)}" + (f", sums {_slices(link.axis, memory)}" if sums else "")
    raise AssertionError(link)


def _slices(axis: Slice, memory: Memory) -> str:
    match axis:
        case Slice.KEY:
            return "along " + ("what comes into each layer" if isinstance(memory, MLPMemory) else "the key channels")
        case Slice.VALUE:
            return "along " + ("what goes out of each layer" if isinstance(memory, MLPMemory) else "the value channels")
    return "of the whole matrix"


def _rule(spec: Spec) -> str:
    match spec.update:
        case Gradient(At.SEGMENT_START, segment, momentum):
            where = f"at the state that its segment of {segment} tokens starts with"
            return f"one gradient step a token, the gradient taken {where}{_kept_step(momentum)}"
        case Gradient(At.IN_TURN):
            each = "the gradient of each loss taken at what those before it have left"
            return f"one gradient step a token and loss, {each}, of the first at the retained state"
        case Gradient(at, _, momentum):
            return f"one gradient step a token, the gradient taken at the {at.value} state{_kept_step(momentum)}"
        case Proximal():
            return "one proximal (implicit) step a token"
        case ClosedForm():
            return "the minimum over the whole history"
    raise AssertionError(spec.update)


def _kept_step(momentum: Located | None) -> str:
    return "" if momentum is None else f"; momentum {comment(momentum.text)}"
