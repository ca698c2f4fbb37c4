"""What a planned kernel takes: its buffers, and what else its code asks for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Optional

from ttrc.ir.plan import Buffer, Kernel
from ttrc.ir.tile import BEGINS, HIDDEN, operands


def pointers(kernel: Kernel):
    """Every buffer argument, one of those that share a block; q, k or v stands first."""
    buffers: dict[str, Buffer] = {}
    for buffer in (*kernel.loads, *kernel.stores):
        buffers.setdefault(buffer.name, buffer)
    return tuple(sorted(buffers.values(), key=lambda b: b.name not in ("q", "k", "v")))


def has_hidden(kernel: Kernel) -> bool:
    """Whether there are channels of hidden layers."""
    return any(set(HIDDEN) & set(s.target.axes) for s in kernel.statements)


def asks_begins(kernel: Kernel) -> bool:
    """Whether a body asks where segments begin."""
    return any(t.name == BEGINS for s in kernel.statements for t in operands(s.op))


def lead(kernel: Kernel, gates: Collection[str]) -> Optional[str]:
    """A buffer in the inputs' dtype, where there is any: no gate, for a gate comes in a dtype of its own. None of a
    kernel without buffers, which multiplies nothing: how a state crosses a piece where decays are plain numbers."""
    every = pointers(kernel)
    own = (b.name for b in every if as_inputs(b) and b.name.removeprefix("d_") not in gates)
    return next(iter((*own, *(b.name for b in every))), None)


def as_inputs(buffer: Buffer) -> bool:
    return len(buffer.tile.axes) == 2 and not buffer.single
