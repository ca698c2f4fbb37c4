"""The statements that some results need, stopping at what is already at hand: dead code stays out."""

from __future__ import annotations

from ttrc.ir.tile import Relabel, Statement, Tile, operands


def slice_program(
    statements: tuple[Statement, ...], targets, at_hand: frozenset[Tile] = frozenset()
) -> tuple[Statement, ...]:
    needed, kept = set(targets) - at_hand, []
    for statement in reversed(statements):
        if statement.target in needed:
            kept.append(statement)
            needed |= set(operands(statement.op)) - at_hand
    return tuple(reversed(kept))


def names_of(statements: tuple[Statement, ...]) -> dict[Tile, Tile]:
    """Relabels resolved: each tile to the tile that holds its numbers."""
    source: dict[Tile, Tile] = {}
    for statement in statements:
        if isinstance(statement.op, Relabel):
            source[statement.target] = source.get(statement.op.arg, statement.op.arg)
    return source
