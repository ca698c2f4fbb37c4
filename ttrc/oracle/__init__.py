"""The independent reference: what a spec says, token by token, in torch, derivatives by autograd alone.

Nothing here is derived. The syntax tree is interpreted, the loss is differentiated by autograd and each
"argmin" of the spec is searched for by Newton's method, so a mistake of the compiler cannot cancel here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Union

import torch
from torch import Tensor

from ttrc.errors import ArgumentError
from ttrc.language.sections import NORMALISER, word_axes
from ttrc.language.spec import ClosedForm, Gradient, KernelMemory, LinearMemory, MLPMemory, Spec
from ttrc.language.state import (
    axis_widths,
    default_scale,
    initial_names,
    is_normalised,
    needs_initial_state,
    same_channels,
    state_parts,
)
from ttrc.oracle.expressions import Scope, evaluate
from ttrc.oracle.kernel import fit
from ttrc.oracle.memory import Matrices, enter, predict, step
from ttrc.oracle.read import read_out

__all__ = ["State", "evaluate", "run"]

State = Union[Tensor, tuple[Tensor, ...]]  # one tensor where the state has one part, else a tuple in their order


def run(
    spec: Spec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: dict[str, Tensor],
    *,
    scale: float | None = None,
    initial_state: State | None = None,
    cu_seqlens: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, State]:
    """Reads the spec literally over all tokens; differentiable once with respect to every tensor.

    q, k, v        [B, T, heads, dk or dv], each with heads of its own, of which a call has the most: HV, a multiple of
                   each; its head h takes head h // (HV // heads) of an argument
    gates          by name: inputs [B, T, HV, *axes], parameters [HV, *axes];
                   axes are (), (dk,), (dv,) or (dk, dv) as the spec's `per` says
    scale          of the read-out, by default dk ** -0.5, and 1 for a deep memory and for a vector; of the query of a
                   kernel memory
    initial_state  [N, HV, dk, dv], or one [N, HV, *axes] for each of state_parts(spec), zero by default where zeros
                   are a start; N = B, or the number of packed sequences
    cu_seqlens     [N + 1] offsets of sequences packed along T, with B = 1
    returns        o [B, T, HV, dv] and the final state, shaped as the initial one, both in `dtype`; of a kernel
                   memory, which keeps all tokens and no state, ()
    """
    _check_widths(spec, k.shape[-1], v.shape[-1])
    if scale is None:
        scale = default_scale(spec.memory) or k.shape[-1] ** -0.5
    axes = word_axes(spec.memory)
    heads = max(x.shape[2] for x in (q, k, v))
    q, k, v = (x.to(dtype).repeat_interleave(heads // x.shape[2], dim=2) for x in (q, k, v))
    tokens = {
        "q": _spread(q, axes["q"]),
        "k": _spread(k, axes["k"]),
        "v": _spread(v, axes["v"]),
        **{gate.name: _spread(gates[gate.name].to(dtype), gate.per.axes) for gate in spec.inputs},
    }
    constants = {gate.name: _spread(gates[gate.name].to(dtype), gate.per.axes)[None] for gate in spec.parameters}
    for name, feature in (("q", spec.features.q), ("k", spec.features.k)):
        if feature is not None:
            tokens[name] = evaluate(feature.tree, tokens | constants).expand_as(tokens[name])
    tokens["q"] = tokens["q"] * scale
    offsets = None if cu_seqlens is None else cu_seqlens.tolist()
    sequences = v.shape[0] if offsets is None else len(offsets) - 1
    started = (x.to(dtype) for x in _initial(spec, initial_state, sequences, k, v))
    state = tuple(_spread(x, part.axes) for x, part in zip(started, state_parts(spec)))
    if offsets is None:
        o, final = _sequence(spec, tokens, constants, state)
    else:
        pieces = [
            _sequence(
                spec,
                {name: x[:, start:end] for name, x in tokens.items()},
                constants,
                tuple(x[n : n + 1] for x in state),
            )
            for n, (start, end) in enumerate(zip(offsets[:-1], offsets[1:]))
        ]
        o = torch.cat([o for o, _ in pieces], dim=1)
        final = tuple(map(torch.cat, zip(*(final for _, final in pieces))))
    final = tuple(_gathered(x, part.axes) for x, part in zip(final, state_parts(spec)))
    return o, final[0] if len(final) == 1 else final


def _spread(x: Tensor, axes: Collection[str]) -> Tensor:
    """[..., *axes] -> [..., rows or 1, columns or 1]."""
    match sorted(axes):
        case []:
            return x[..., None, None]
        case ["k"]:
            return x[..., None]
        case ["v"]:
            return x[..., None, :]
    return x


def _gathered(x: Tensor, axes: tuple[str, ...]) -> Tensor:
    """The inverse of _spread, of a part of a state."""
    return x if len(axes) > 1 else x[..., 0] if axes == ("k",) else x[..., 0, :]


def _check_widths(spec: Spec, d_k: int, d_v: int) -> None:
    """One of the two being 1 would broadcast."""
    why = same_channels(spec.memory)
    if why and d_k != d_v:
        raise ArgumentError(f"{spec.name} takes as many key channels as value channels, not {d_k} and {d_v}: {why}")


def _initial(spec: Spec, given: State | None, sequences: int, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Every part of the state at the start, each [N, HV, *axes]."""
    if given is not None:
        return (given,) if isinstance(given, Tensor) else tuple(given)
    if needs_initial_state(spec):
        raise ArgumentError(f"{spec.name} cannot start at zeros: give {', '.join(initial_names(spec))}")
    widths = axis_widths(spec.memory, k.shape[3], v.shape[3])
    return tuple(
        v.new_zeros(sequences, v.shape[2], *(widths[axis] for axis in part.axes)) for part in state_parts(spec)
    )


def _sequence(spec: Spec, tokens: Scope, constants: Scope, state: Matrices) -> tuple[Tensor, Matrices]:
    """tokens: [N, T, HV, ., .]; state: its parts. Returns o [N, T, HV, dv] and the last state."""
    if isinstance(spec.memory, KernelMemory):
        return fit(spec, tokens, constants), ()
    if not is_normalised(spec):
        answers, final = _answers(spec, tokens, constants, state)
        return read_out(spec, tokens | constants, answers), final
    # The same memory once more, of values that are 1: of a matrix, which are all alike, one channel is enough.
    half = len(state) // 2
    ones = torch.ones_like(tokens["v"][..., :1] if isinstance(spec.memory, LinearMemory) else tokens["v"])
    answers, final = _answers(spec, tokens, constants, state[:half])
    normaliser, of_ones = _answers(spec, tokens | {"v": ones}, constants, state[half:])
    return read_out(spec, tokens | constants | {NORMALISER: normaliser}, answers), (*final, *of_ones)


def _answers(spec: Spec, tokens: Scope, constants: Scope, state: Matrices) -> tuple[Tensor, Matrices]:
    """What the memory answers to each query, [N, T, HV, 1, dv], and the last state."""
    weights = len(spec.memory.axes) if isinstance(spec.memory, MLPMemory) else 1
    weights = len(state) if isinstance(spec.update, ClosedForm) else weights
    segment = spec.update.segment if isinstance(spec.update, Gradient) else None
    memory = enter(spec, constants, state[:weights], state[weights:])
    answers = []
    for t in range(tokens["v"].shape[1]):
        scope = {name: x[:, t] for name, x in tokens.items()} | constants
        if segment is not None and t % segment == 0:
            memory = enter(spec, scope, memory.S, memory.M)
        memory = step(spec, scope, memory)
        answers.append(predict(spec.memory, memory.W, scope["q"], scope))
    return torch.stack(answers, dim=1) if answers else tokens["v"], (*memory.S, *memory.M)
