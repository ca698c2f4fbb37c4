"""A parallel kernel's code -> what is done before anything else: states that it holds whole are over then.

A sum of few numbers that takes a whole matrix to make, and nothing but what memory holds, is made while no other tile
is there. So is what is written out as it comes from memory, but for factors.
"""

from __future__ import annotations

from ttrc.ir.tile import Contract, Statement, Tile, operands
from ttrc.passes.slice_program import slice_program


def done_first(body: tuple[Statement, ...], wanted: tuple[Tile, ...]) -> set[Tile]:
    """The tiles that are made first, of code that walks value channels."""
    made = {s.target for s in body}
    users: dict[Tile, set[Tile]] = {}
    for statement in body:
        for tile in operands(statement.op):
            users.setdefault(tile, set()).add(statement.target)
    first: set[Tile] = set()
    for statement in body:
        target = statement.target
        if "v" in target.axes or (len(target.axes) > 1) != (target in wanted):
            continue
        code = slice_program(body, [target])
        read = {t for s in code for t in operands(s.op)} - made
        inside = {s.target for s in code}
        products = {s.target for s in code if isinstance(s.op, Contract)}
        if any("v" in t.axes for t in (*read, *inside)) or any(not users[t] <= inside for t in products - {target}):
            continue
        if target in wanted and not products or any(is_whole(t) for t in read):
            first |= inside
    return first


def is_whole(tile: Tile) -> bool:
    """Whether it is a matrix over key channels: a state that comes in no panels."""
    return tile.axes == ("k", "j")
