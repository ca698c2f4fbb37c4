"""What a spec's memory carries from token to token: the parts of its state, their axes, and where entries may lie."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Optional

from ttrc.errors import SpecError
from ttrc.language.activations import ACTIVATIONS
from ttrc.language.evaluate import evaluate
from ttrc.language.sections import NORMALISER
from ttrc.language.spec import ClosedForm, Domain, Gradient, LinearMemory, Memory, MLPMemory, Spec, VectorMemory
from ttrc.language.syntax import Binary, Call, Expr, Name, Negate, Number, names

OF_ONES = {"S": "Z", "M": "MZ"}  # what a normaliser adds beside each part of a state
CURVATURE = "H"  # of a closed form, whose other part is called G


@dataclass(frozen=True)
class Part:
    """One tensor of the state, [N, HV, *axes]; "k" and "v" are key and value channels, "h1", ... hidden ones.

    "j" is a key channel too, of a matrix that has two of them. `is_step`: it is the last step of a momentum.
    """

    name: str
    axes: tuple[str, ...]
    is_step: bool = False


def state_parts(spec: Spec) -> tuple[Part, ...]:
    """S, or W1, W2, ... of a deep memory; with momentum then as many last steps, M or M1, M2, ...

    With a normaliser then Z, and MZ: what these would be, had every value been 1, free of the value channels.

    A closed form keeps what the objective of the past is made of, the sum over columns s of S of s' H s / 2 - G' s; of
    a vector memory the sum over entries s of H s^2 / 2 - G s.
    """
    if isinstance(spec.update, ClosedForm):
        match spec.memory:
            case LinearMemory():
                return Part(CURVATURE, ("k", "j")), Part("G", ("k", "v"))
            case VectorMemory():
                return Part(CURVATURE, ("v",)), Part("G", ("v",))
    parts = _weights(spec.memory)
    if isinstance(spec.update, Gradient) and spec.update.momentum is not None:
        parts += tuple(Part(f"M{part.name[1:]}", part.axes, is_step=True) for part in parts)
    return (*parts, *map(_of_ones, parts)) if is_normalised(spec) else parts


def is_normalised(spec: Spec) -> bool:
    """Whether the read-out takes the normaliser, which has a state of its own then."""
    return spec.read is not None and NORMALISER in names(spec.read.tree)


def _of_ones(part: Part) -> Part:
    """What stands beside a part of a matrix or a vector; value channels, all alike, drop out of the former."""
    return Part(OF_ONES[part.name], part.axes[:1], part.is_step)


def axis_widths(memory: Memory, d_k: int, d_v: int) -> dict[str, int]:
    """The width of every axis that a part of this memory's state may have."""
    hidden = memory.layers - 1 if isinstance(memory, MLPMemory) else 0
    twice = {"j": d_k} if isinstance(memory, LinearMemory) else {}
    return {"k": d_k, **twice, "v": d_v} | {f"h{i + 1}": memory.expansion * d_k for i in range(hidden)}


def same_channels(memory: Memory) -> str:
    """Why there are as many key channels as value channels; empty where there need not be."""
    match memory:
        case VectorMemory():
            return "key and value channels of a vector memory are the same channels"
        case MLPMemory(residual=True):
            return "a residual goes from keys to values"
    return ""


def default_scale(memory: Memory) -> Optional[float]:
    """What the read-out is multiplied by where nothing else is said; None for d_k ** -0.5.

    That keeps the size of a sum over d_k channels. A deep memory makes none of its query, and a vector memory answers
    channel by channel, o = s * q: what is put in comes out as it is.
    """
    return 1.0 if isinstance(memory, (MLPMemory, VectorMemory)) else None


def initial_names(spec: Spec) -> tuple[str, ...]:
    """What arguments are called that hold the state at the start: initial_state, or initial_S and so on."""
    parts = state_parts(spec)
    return ("initial_state",) if len(parts) == 1 else tuple(f"initial_{part.name}" for part in parts)


def formula(memory: MLPMemory) -> str:
    """f(x) of a deep memory, as one reads it; what it is made of, where that has a name, behind it."""
    act = memory.activation.text if memory.activation.text in ACTIVATIONS else "act"
    came, made, last = "x", [], len(memory.axes)
    for layer in range(1, memory.layers):
        if memory.gated:
            made.append(f"h{layer} = {act}({came} W{2 * layer - 1}) * ({came} W{2 * layer})")
            came = f"h{layer}"
        else:
            came = f"{act}({came} W{layer})"
    text = f"LN({came} W{last})" if memory.norm else f"{came} W{last}"
    text = f"x + {text}" if memory.residual else text
    named = [f"act(x) = {memory.activation.text}"] if act == "act" and memory.layers > 1 else []
    return ", ".join((text, *made, *named))


def layer_norm(memory: Memory | None) -> tuple[str, ...]:
    """The parameters that a deep memory's layer norm brings, [HV, d_v] each: what it multiplies by, what it adds."""
    return ("norm_weight", "norm_bias") if isinstance(memory, MLPMemory) and memory.norm else ()


def needs_initial_state(spec: Spec) -> bool:
    """Zeros are no start where no gradient leaves them (the layers of a deep memory) or where no entry may be zero."""
    return isinstance(spec.memory, MLPMemory) or state_domain(spec) is not Domain.REAL


def _weights(memory: Memory) -> tuple[Part, ...]:
    match memory:
        case LinearMemory():
            return (Part("S", ("k", "v")),)
        case VectorMemory():
            return (Part("S", ("v",)),)
        case MLPMemory():
            return tuple(Part(f"W{i}", axes) for i, axes in enumerate(memory.axes, start=1))
        case _:  # a kernel memory keeps tokens
            return ()


# Where an entry of S may lie


def state_domain(spec: Spec) -> Domain:
    """REAL, POSITIVE (a retention with log(S)) or UNIT, its ends excluded (with log(1 - S) too).

    Found by trying: where the retention of a single entry has a value.
    """
    if _has_values(spec, (-0.5, 0.4)):
        return Domain.REAL
    return Domain.POSITIVE if _has_values(spec, (0.4, 1.5)) else Domain.UNIT


def part_domain(spec: Spec, part: Part) -> Domain:
    """The same of any part: a step may be any number, and the curvature of an entry is never negative."""
    if part.name == CURVATURE and "j" not in part.axes:
        return Domain.NONNEGATIVE
    return Domain.REAL if part.is_step else state_domain(spec)


# A value inside of each domain, of no special size.
_INSIDE = {domain: -0.5 if domain in (Domain.NEGATIVE, Domain.LOG_DECAY) else 0.5 for domain in Domain}


def _has_values(spec: Spec, entries: tuple[float, ...]) -> bool:
    """Whether each of these may follow each: S / S_prev may be positive where neither is."""
    # No two gates are equal: a difference of them may stand below a line.
    gates = {
        gate.name: _INSIDE[gate.domain] / (1 + 0.01 * i) for i, gate in enumerate((*spec.inputs, *spec.parameters))
    }
    tree = _of_one_entry(spec.retention.expr.tree)
    try:
        for S, S_prev in product(entries, repeat=2):
            evaluate(tree, gates | {"S": S, "S_prev": S_prev, "W": S})
    except SpecError:
        return False
    return True


def _of_one_entry(tree: Expr) -> Expr:
    """The expression for vectors and matrices of a single entry: no sum is left."""
    match tree:
        case Number() | Name():
            return tree
        case Negate(operand, span):
            return Negate(_of_one_entry(operand), span)
        case Binary(op, left, right, span):
            return Binary(op, _of_one_entry(left), _of_one_entry(right), span)
        case Call(function, args, span):
            args = tuple(_of_one_entry(arg) for arg in args)
    match function:
        case "sum":
            return args[0]
        case "dot":
            return Binary("*", *args, span)
        case "norm2":
            return Call("square", args, span)
        case "norm":
            return Call("abs", args, span)
        case _:
            return Call(function, args, span)
