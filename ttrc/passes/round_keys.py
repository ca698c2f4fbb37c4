"""A chunk's programs -> the gates by key channel that a kernel in front of the scans stores rounded, for all others.

Gates of the memory are float32. One that is a key of its own, a factor of products and nothing else, is taken in the
inputs' dtype by every kernel: to load it so takes half of the bytes.
"""

from __future__ import annotations

from ttrc.ir.plan import Buffer, Space
from ttrc.ir.tile import Contract, Program, Relabel, Statement, operands


def round_keys(program: Program, inputs: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    """Where they lie rounded; the tiles are what they were. `program` is the adjoint, which holds all statements."""
    taken = {b.name for b in inputs} | {s.target.name for s in program.statements}
    rounded = []
    for buffer in (b for b in inputs if is_factor(b, program.statements)):
        name = f"{buffer.name}_rounded"
        while name in taken:
            name += "_"
        rounded.append(Buffer(name, buffer.tile, Space.TOKEN))
    return tuple(rounded)


def is_factor(buffer: Buffer, statements: tuple[Statement, ...]) -> bool:
    """Whether a gate by key channel is a factor of products, in either role, and nothing else."""
    tile = buffer.tile
    if not buffer.single or buffer.space is not Space.TOKEN or tile.axes != ("t", "k"):
        return False
    roles = {tile} | {s.target for s in statements if isinstance(s.op, Relabel) and s.op.arg == tile}
    users = [s for s in statements if roles & set(operands(s.op)) and s.target not in roles]
    return bool(users) and all(isinstance(s.op, Contract) and s.op.add not in roles for s in users)
