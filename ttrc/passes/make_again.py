"""A scan backwards that starts every segment from its own weights -> the same where their adjoint, for which the scan
has the carried cotangents, loads again what it takes of memory, and makes again what that leads to.

What a segment makes for itself, in the forward direction too, would else wait for its adjoint: rows of channels, beside
weights and their cotangents as wide as both. Held are products and what no row from memory leads to. Weights are also
loaded again where products take them turned over. Small states a compiler holds anyway: writers load large ones again.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.axes import is_matrix
from ttrc.ir.plan import Buffer
from ttrc.ir.tile import Contract, Elementwise, Mask, Relabel, Statement, Tile, operands
from ttrc.passes.builder import Builder
from ttrc.passes.slice_program import renamed_operands

Body = tuple[Statement, ...]


def make_again(statements: Body, memory: tuple[Buffer, ...], carried: set[Tile]) -> tuple[Body, tuple[Buffer, ...]]:
    """The statements, and the memory with what is loaded again."""
    again = _Again(statements, memory, carried)
    parted = [again.adjoint(s) if s.target in again.behind else again.ahead(s) for s in statements]
    return tuple(s for part in parted for s in part), (*memory, *again.loads)


class _Again:
    def __init__(self, statements: Body, memory: tuple[Buffer, ...], carried: set[Tile]):
        self.behind = _hang_on(statements, carried)
        self.held = {b.tile: b for b in memory if b.tile.axes}
        self.made = {s.target: s for s in statements if s.target not in self.behind}
        rows = dict.fromkeys(t for s in statements if s.target in self.behind for t in _taken(s))
        self.wanted = [t for t in rows if (t in self.made or t in self.held) and not is_matrix(t)]
        self.build = Builder.beside(statements)
        self.loads: list[Buffer] = []
        self.copies: dict[Tile, Tile] = {}  # of what the adjoint takes
        self.turned: dict[Tile, Tile] = {}
        self.axis: dict[Tile, str] = {}  # that products with a matrix of memory sum over first

    def ahead(self, statement: Statement) -> Body:
        """A statement of the segment itself, with matrices loaded again that it takes turned over."""
        op = statement.op
        weights = [t for t in operands(op) if t in self.held and is_matrix(t)] if isinstance(op, Contract) else []
        for tile in (t for t in weights if self.axis.setdefault(t, op.axis) != op.axis):
            if tile not in self.turned:
                self.turned[tile] = self._load(tile, "turned")
            statement = replace(statement, op=renamed_operands(op, self.turned))
        return (statement,)

    def adjoint(self, statement: Statement) -> Body:
        """A statement of the adjoint; what is made again stands in front of the first one."""
        start = len(self.build.statements)
        for tile in self.wanted if not self.copies else ():
            self._copy(tile)
        copies = {t: copy for t, copy in self.copies.items() if not is_matrix(t)}
        if isinstance(statement.op, Contract):
            copies |= {t: self._copy(t) for t in operands(statement.op) if t in self.held and is_matrix(t)}
        return (*self.build.statements[start:], replace(statement, op=renamed_operands(statement.op, copies)))

    def _load(self, tile: Tile, how: str) -> Tile:
        buffer, copy = self.held[tile], self.build.tile(f"{tile.name}_{how}", tile.axes)
        parts = tuple(copy if t == tile else t for t in buffer.parts)
        self.loads.append(replace(buffer, tile=copy, parts=parts, again=tile))
        return copy

    def _copy(self, tile: Tile) -> Tile:
        if tile not in self.copies and tile in self.held:
            self.copies[tile] = self._load(tile, "again")
        elif tile not in self.copies and self._comes_from_memory(tile):
            statement = self.made[tile]
            op = renamed_operands(statement.op, {t: self._copy(t) for t in operands(statement.op)})
            self.copies[tile] = self.build.tile(f"{tile.name}_again", tile.axes)
            self.build.statements.append(Statement(self.copies[tile], op, statement.origin))
        return self.copies.get(tile, tile)

    def _comes_from_memory(self, tile: Tile) -> bool:
        """Whether entry by entry rows from memory make it, alone or with what the adjoint takes anyway."""
        if tile in self.held:
            return True
        op = self.made[tile].op if tile in self.made and _is_row(tile) else None
        if isinstance(op, Relabel):
            return self._comes_from_memory(op.arg)
        if not isinstance(op, (Elementwise, Mask)):
            return False
        fresh = {t for t in operands(op) if self._comes_from_memory(t)}
        return bool(fresh) and all(t in fresh or t in self.wanted for t in operands(op) if _is_row(t))


def _hang_on(statements: Body, tiles: set[Tile]) -> set[Tile]:
    behind: set[Tile] = set()
    for statement in statements:
        if (tiles | behind) & set(operands(statement.op)):
            behind.add(statement.target)
    return behind


def _is_row(tile: Tile) -> bool:
    """Whether each token has channels in it."""
    return bool({"t", "s"} & set(tile.axes)) and not {"t", "s"}.issuperset(tile.axes)


def _taken(statement: Statement) -> list[Tile]:
    """What it takes entry by entry: factors of products rest in shared memory."""
    op = statement.op
    return [t for t in operands(op) if not isinstance(op, Contract) or t == op.add]
