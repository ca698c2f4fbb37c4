"""A plan of pairs of tokens -> the lines of op.py that allocate its buffers and launch its kernels."""

from __future__ import annotations

from collections import Counter

from ttrc.backends.triton.pointers import pointers
from ttrc.ir.plan import Buffer, Launch, Plan, Space
from ttrc.ir.tile import row_axes
from ttrc.passes.place_buffers import OWN_HEADS

WIDTH = {"k": "q.shape[3]", "v": "v.shape[3]"}


def crossing(plan: Plan) -> list[str]:
    """What the backward pass takes of the forward one."""
    return sorted((b.name for b in plan.saved), key=lambda name: name != "o")


def saved(plan: Plan) -> tuple[Buffer, ...]:
    """What of it is beside o, which a caller gets anyway."""
    return tuple(b for b in plan.saved if b.name != "o")


def least(plan: Plan) -> str:
    """The bytes of what crosses, a token and head."""
    sizes = Counter(_size(b) for b in plan.saved if row_axes(b.tile))
    rows = [f"{n} * {size}" if n > 1 else size for size, n in sizes.items()]
    return " + ".join([*rows, str(_numbers(plan))])


def wanted(plan: Plan) -> str:
    """The same in words."""
    with_o = any(b.name == "o" for b in plan.saved)
    rows = [b for b in saved(plan) if row_axes(b.tile)]
    parts = [f"{b.name} of the size of {'o' if 'v' in b.tile.axes else 'q'}{_in_single(b)}" for b in rows]
    if with_o:
        parts = ["".join(["o", *(f", {b.name} of its size" for b in rows)])]
    parts.append(f"{_numbers(plan)} bytes a token and head")
    return " and ".join(parts) + f"\n    beside {'it' if with_o else 'the inputs'}"


def _numbers(plan: Plan) -> int:
    return sum(8 if b.double else 4 for b in plan.saved if not row_axes(b.tile))


def _size(buffer: Buffer) -> str:
    """The bytes of a row."""
    (axis,) = row_axes(buffer.tile)
    return f"{WIDTH[axis]} * {4 if buffer.single else 'v.element_size()'}"


def _in_single(buffer: Buffer) -> str:
    return " in float32" if buffer.single else ""


def kept(plan: Plan) -> list[str]:
    """How the forward pass hands that over."""
    return [f"{b.name} if save else {b.name}.new_empty(0)" for b in saved(plan)]


def fake(plan: Plan) -> str:
    """What that is where it is asked for, and else nothing."""
    empty = "v.new_empty(0, dtype={})"
    return "\n".join(f"{b.name} = {_new(b)} if save else {empty.format(_dtype(b))}" for b in saved(plan))


def allocate_forward(plan: Plan) -> str:
    made = dict.fromkeys(b for k in plan.forward for b in k.stores)
    return "\n".join(f"{b.name} = {_new(b)}" for b in made)


def allocate_backward(plan: Plan) -> str:
    return "\n".join(f"{b.name} = {_new(b)}" for b in (*plan.scratch, *plan.gradients))


def launches(launches: tuple[Launch, ...]) -> str:
    return "\n".join(_launch(x) for x in launches)


def _launch(launch: Launch) -> str:
    tensors = ", ".join(b.name for b in pointers(launch.kernel))
    groups = ", HG=groups" if launch.kernel.grouped else ""
    return f'launch("{launch.kernel.name}", q, k, v, cu_seqlens, chunk, [{tensors}], scale{groups})'


def results(plan: Plan, gates: tuple[str, ...], parameters: tuple[str, ...]) -> str:
    """The backward function's return values."""
    stored = {b.name: b for b in plan.gradients}
    parts = []
    for name in ("q", "k", "v", *gates):
        buffer = stored.get(f"d_{name}")
        if buffer is None:  # no output depends on this input
            parts.append(f"torch.zeros_like({name})")
        elif name in parameters:
            parts.append(f"{buffer.name}.sum((0, 1)).to({name}.dtype)")
        elif name in OWN_HEADS:
            parts.append(f"per_head({buffer.name}, {name})")
        else:
            parts.append(f"{buffer.name}.to({name}.dtype)")
    return ", ".join(parts)


def _dtype(buffer: Buffer) -> str:
    rounded = row_axes(buffer.tile) and not buffer.single
    return "torch.float64" if buffer.double else "v.dtype" if rounded else "torch.float32"


def _new(buffer: Buffer) -> str:
    channels = "".join(f", {WIDTH[a]}" for a in row_axes(buffer.tile))
    rows = "*rows[:2], groups" if buffer.space is Space.GROUP_TOKEN else "*rows"
    return f"v.new_empty({rows}{channels}, dtype={_dtype(buffer)})"
