"""A scan's statements -> the same where a state that memory holds is loaded once more for what follows a product.

What a link makes of a state is as wide as it, its adjoint takes that together with a product just as wide, and both lie
beside the state that is carried: three tiles of that size are more than registers. Behind the product the state is
loaded again, and what is made of it worked out again, entry by entry.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.plan import Buffer, Space
from ttrc.ir.tile import Contract, Statement, Tile, operands
from ttrc.passes.order_statements import order_statements
from ttrc.passes.slice_program import renamed_operands, slice_program


def load_again(
    statements: tuple[Statement, ...], memory: tuple[Buffer, ...], results: tuple[Tile, ...]
) -> tuple[tuple[Statement, ...], tuple[Buffer, ...]]:
    """Statements that make `results`, and the memory with what is to be loaded again."""
    again: list[Buffer] = []
    for buffer in (b for b in memory if b.space is Space.CHUNK):
        behind = _behind(statements, buffer.tile)
        made = _made_of(statements, buffer.tile, behind)
        later = [s for s in statements if s.target in behind and made & set(operands(s.op))]
        if not later or not any(buffer.tile in operands(s.op) for s in statements if s.target not in behind):
            continue
        names = {t: Tile(f"{t.name}_again", t.axes) for t in made}
        copies = [
            replace(s, target=names[s.target], op=renamed_operands(s.op, names))
            for s in statements
            if s.target in made and s.target != buffer.tile
        ]
        rest = [replace(s, op=renamed_operands(s.op, names)) if s in later else s for s in statements]
        statements = slice_program(order_statements((*rest, *copies), results), results)
        parts = tuple(names.get(t, t) for t in buffer.parts)
        again.append(replace(buffer, tile=names[buffer.tile], parts=parts))
    return statements, (*memory, *again)


def _behind(statements: tuple[Statement, ...], state: Tile) -> set[Tile]:
    """What hangs on a product as wide as the state."""
    behind: set[Tile] = set()
    for statement in statements:
        wide = isinstance(statement.op, Contract) and statement.target.axes == state.axes
        if wide or behind & set(operands(statement.op)):
            behind.add(statement.target)
    return behind


def _made_of(statements: tuple[Statement, ...], state: Tile, behind: set[Tile]) -> set[Tile]:
    """The state and what is made of it alone, as wide as it."""
    made = {state}
    for statement in statements:
        wide = [t for t in operands(statement.op) if t.axes == state.axes]
        if statement.target.axes == state.axes and statement.target not in behind and wide and made.issuperset(wide):
            made.add(statement.target)
    return made
