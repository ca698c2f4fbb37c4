"""Pieces of a kernel's code -> the same, where nothing waits for a search to end but what it goes on from.

A search takes all registers. What is wanted before it and behind it is loaded and worked out again behind it, from
numbers of tokens as a rule and from tiles that a cache still has.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.tile import Conjugate, Statement, Tile, operands
from ttrc.passes.builder import Builder
from ttrc.passes.slice_program import renamed_operands, slice_program
from ttrc.passes.split_panels import Piece


def clear_search(pieces: tuple[Piece, ...]) -> tuple[tuple[Piece, ...], dict[Tile, Tile]]:
    """The pieces, the one with a search parted behind it; and what stands for a tile of memory that is loaded again."""
    number = next((i for i, p in enumerate(pieces) if any(_is_search(s) for s in p.statements)), None)
    if number is None:
        return pieces, {}
    before, (piece, *after) = pieces[:number], pieces[number:]
    end = max(i for i, s in enumerate(piece.statements) if _is_search(s)) + 1
    ahead, behind = piece.statements[:end], piece.statements[end:]
    found = frozenset(s.target for s in ahead if _is_search(s))
    used = {t for code in (behind, *(p.statements for p in after)) for s in code for t in operands(s.op)}
    again = slice_program(ahead, used, found)
    build, names = Builder.beside(tuple(s for p in pieces for s in p.statements)), {}
    seen = {t for s in ahead for t in operands(s.op)}
    made = {s.target for p in (*before, piece) for s in p.statements}
    for tile in sorted((used | {t for s in again for t in operands(s.op)}) & seen - made, key=lambda t: t.name):
        if {"t", "s"} & set(tile.axes):
            names[tile] = build.tile(f"{tile.name}_again", tile.axes)
    loaded = dict(names)
    repeated = []
    for statement in again:
        names[statement.target] = build.tile(f"{statement.target.name}_again", statement.target.axes)
        repeated.append(Statement(names[statement.target], renamed_operands(statement.op, names), statement.origin))

    def renamed(statements: tuple[Statement, ...]) -> tuple[Statement, ...]:
        return tuple(replace(s, op=renamed_operands(s.op, names)) for s in statements)

    results = {s.target for s in ahead} & set(piece.results)
    ahead = slice_program(ahead, found | results)
    rest = Piece(False, (*repeated, *renamed(behind)), (), tuple(t for t in piece.results if t not in results))
    later = tuple(replace(p, statements=renamed(p.statements)) for p in after)
    first = replace(piece, statements=ahead, results=tuple(t for t in piece.results if t in results))
    return (*before, first, rest, *later), loaded


def _is_search(statement: Statement) -> bool:
    return isinstance(statement.op, Conjugate)
