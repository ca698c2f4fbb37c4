"""An adjoint -> the same with gradients of parameters summed over a sequence's tokens, on chip.

Where a program takes a parameter once, for all tokens of its chunk (or for its one token), its share of the gradient is
one tile. It is added to those of the chunks behind it, carried backwards as a cotangent is; what is left at the
sequence's start is all that is written, in the place of a tile for each token.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.plan import Buffer, Space
from ttrc.ir.tile import Carry, Mask, Program, Reduce, Relation, Tile, operands
from ttrc.passes.builder import Builder, sym


def taken_once(program: Program) -> dict[Tile, Tile]:
    """Inputs [t, ..] with value channels that are the same for all tokens: the tiles [..] that stand for them.

    Others are shares of programs, which have a block of value channels each, and carried states are not.
    """
    first = {
        s.target: s.op.arg for s in program.statements if isinstance(s.op, Mask) and s.op.relation is Relation.FIRST
    }
    users = {t: [s for s in program.statements if t in operands(s.op)] for t in program.inputs}
    return {
        first[s.op.arg]: s.target
        for s in program.statements
        if isinstance(s.op, Reduce) and s.op.arg in first and "v" in s.target.axes
        if len(users.get(first[s.op.arg], ())) == 1
    }


def add_totals(backward: Program, taken: dict[Tile, Tile]) -> Program:
    """`taken` says by which tile inputs are taken once. The gradient of such is an output without tokens, and what
    carries it is private: nothing to a caller."""
    cotangents, taken = dict(backward.cotangents), {t.name: own for t, own in taken.items()}
    build = Builder((*backward.inputs, *(c.state for c in backward.carries)), backward.statements)
    outputs, carries = [], list(backward.carries)
    for name, tile in backward.outputs:
        own = taken.get(name.removeprefix("d_"))
        if own is not None:
            behind, here = build.tile(f"{name}_behind", own.axes), cotangents[own]
            tile = build.make(f"{name}_total", sym(behind) + sym(here), behind, here, origin="gradient")
            carries.append(Carry(name, behind, tile, reverse=True, private=True))
        outputs.append((name, tile))
    return replace(backward, statements=tuple(build.statements), outputs=tuple(outputs), carries=tuple(carries))


def total_buffers(program: Program, gradients: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    """Where these lie in memory, of a program with such sums."""
    totals = {(c.label, c.next) for c in program.carries if c.reverse}
    return tuple(replace(b, space=Space.TOTAL, single=True) if (b.name, b.tile) in totals else b for b in gradients)
