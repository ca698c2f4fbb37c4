"""Reorders straight-line code: each result is worked out just before it is used, so that fewer registers live."""

from __future__ import annotations

from ttrc.ir.tile import Statement, Tile, operands


def order_statements(statements: tuple[Statement, ...], results: tuple[Tile, ...]) -> tuple[Statement, ...]:
    """Depth first from the results, in their order; every statement is needed by one of them."""
    makes = {s.target: s for s in statements}
    done: dict[Tile, Statement] = {}

    def visit(tile: Tile) -> None:
        if tile in done or tile not in makes:
            return
        for operand in operands(makes[tile].op):
            visit(operand)
        done[tile] = makes[tile]

    for result in (*results, *makes):
        visit(result)
    return tuple(done.values())
