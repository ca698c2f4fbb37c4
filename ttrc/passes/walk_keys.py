"""A program -> a parallel kernel of it that walks key channels in panels, beside all value channels.

Where decays differ by key channel, all that is as wide as the keys is made for each key channel by itself, and several
such tiles at a time do not fit the registers.
"""

from __future__ import annotations

from ttrc.ir.config import KEYS, Takes
from ttrc.ir.plan import Buffer, Kernel, Skeleton, Space
from ttrc.ir.tile import Decayed, Program, Statement, Tile, operands
from ttrc.passes.narrow_factors import AS_MADE
from ttrc.passes.plan_kernel import segment
from ttrc.passes.share_sums import share_sums
from ttrc.passes.simplify_tile import simplify_tile
from ttrc.passes.slice_program import slice_program
from ttrc.passes.split_panels import Piece, split_panels


def walk_keys(name: str, program: Program, stores: tuple[Buffer, ...], memory: tuple[Buffer, ...]) -> Kernel:
    """The kernel that makes `stores`, given what `memory` holds."""
    results = tuple(dict.fromkeys(b.tile for b in stores))
    sliced = slice_program(program.statements, results, frozenset(b.tile for b in memory))
    pieces = split_panels(share_sums(simplify_tile(sliced, results)), results, AS_MADE, axis="k")
    waiting = _waiting_pairs(pieces)
    segments = []
    for piece in pieces:
        made = {s.target for s in piece.statements}
        stored = [b for b in stores if b.tile in piece.results] + [b for b in waiting if b.tile in made]
        segments.append(segment(piece.panelled, piece.statements, piece.sums, (*memory, *waiting), stored))
    return Kernel(f"{name}{KEYS}", Skeleton.PARALLEL, False, tuple(segments), (), axis="k", takes=Takes.KEYS)


def _waiting_pairs(pieces: tuple[Piece, ...]) -> tuple[Buffer, ...]:
    """The C x C tiles known before a loop that only products with decays want in it. They wait in memory: as what one
    product makes for another, each half of the warps would hold all of them."""
    users: dict[Tile, list[tuple[bool, Statement]]] = {}
    for piece in pieces:
        for statement in piece.statements:
            for tile in operands(statement.op):
                users.setdefault(tile, []).append((piece.panelled, statement))
    made = [s.target for p in pieces if not p.panelled for s in p.statements if s.target.axes == ("t", "s")]
    wait = [t for t in made if t in users and all(inside and isinstance(s.op, Decayed) for inside, s in users[t])]
    return tuple(Buffer(t.name, t, Space.TOKEN) for t in wait)
