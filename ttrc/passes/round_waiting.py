"""A scan's pieces of code -> what each of them reads rounded of that which waits in memory.

Products take their factors in the inputs' dtype. A piece that takes a tile as nothing else loads it so: that is half of
the bytes, and a factor on its way to a product lies in half of the registers. Where other code takes the tile too, it
waits both ways.
"""

from __future__ import annotations

from collections.abc import Collection

from ttrc.ir.tile import Contract, Statement, Tile, operands
from ttrc.passes.slice_program import names_of
from ttrc.passes.split_panels import Piece


def round_waiting(pieces: tuple[Piece, ...], waiting: Collection[Tile]) -> list[set[Tile]]:
    names = names_of(tuple(s for p in pieces for s in p.statements))
    return [{t for t in waiting if t not in p.results and _is_factor(t, p.statements, names)} for p in pieces]


def _is_factor(tile: Tile, statements: tuple[Statement, ...], names: dict[Tile, Tile]) -> bool:
    """Whether products take it, in either role, and nothing else."""
    roles = {tile} | {t for t, source in names.items() if source == tile}
    users = [s for s in statements if s.target not in roles and roles & set(operands(s.op))]
    return bool(users) and all(isinstance(s.op, Contract) and s.op.add not in roles for s in users)
