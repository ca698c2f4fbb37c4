"""A kernel's code, whose programs have whole chunks -> the same for programs that have a block of a chunk's rows each.

Of what tokens read ("t") a program then has its own rows, of what they write ("s") all of the chunk's: under two names
what was one tile so far. A tile that both roles want comes twice, worked out or loaded for either. What a token has no
channels of, decays and their running sums above all, is worked out for all of the chunk, and a program takes its own
from there.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.plan import Buffer
from ttrc.ir.tile import CumulativeSum, Relabel, Statement, Tile, operands, sums
from ttrc.passes.builder import ROLES, Builder
from ttrc.passes.slice_program import renamed_operands

Body = tuple[Statement, ...]


def own_rows(body: Body, memory: tuple[Buffer, ...]) -> tuple[Body, tuple[Buffer, ...]]:
    """The code, and what it loads of `memory` for all tokens beside that. Its rows must not hang on one another but by
    what is made of gates."""
    parted = _Parted(body)
    for statement in body:
        if not _is_turned(statement):
            parted.own(statement.target)
    copies = tuple(replace(b, tile=parted.every[b.tile]) for b in memory if b.tile in parted.every)
    return tuple(parted.build.statements), copies


def _is_turned(statement: Statement) -> bool:
    """Whether it is a tile in a token's other role."""
    return isinstance(statement.op, Relabel) and ("t" in statement.target.axes) != ("t" in statement.op.arg.axes)


class _Parted:
    def __init__(self, body: Body):
        self.made = {s.target: s for s in body}
        self.turned = {s.op.arg: s.target for s in body if _is_turned(s)}
        self.build = Builder.beside(body)
        self.every: dict[Tile, Tile] = {}  # of tiles of tokens that read the same of all tokens that write
        self.done: dict[Tile, Tile] = {}

    def own(self, tile: Tile) -> Tile:
        """The tile, as far as it is of tokens that read of the program's own."""
        if tile not in self.done:
            self.done[tile] = self._own(tile)
        return self.done[tile]

    def _own(self, tile: Tile) -> Tile:
        statement = self.made.get(tile)
        if statement is not None and _is_turned(statement):
            return self.all(statement.op.arg)
        if tile.axes == ("t",) and self._is_of_gates(tile):
            origin = "decay" if statement is None else statement.origin
            self._emit(Statement(tile, Relabel(self.all(tile)), origin))
        elif statement is not None:
            if sums(statement, "t") or isinstance(statement.op, CumulativeSum):
                raise AssertionError(f"{tile.name} is a sum over rows, of which no program has all")
            self._emit(replace(statement, op=renamed_operands(statement.op, self._named(statement, self.own))))
        return tile

    def all(self, tile: Tile) -> Tile:
        """The tile of all of the chunk's tokens, in their writing role."""
        if "t" not in tile.axes:
            return self.own(tile)
        if tile not in self.every:
            self.every[tile] = self._all(tile)
        return self.every[tile]

    def _all(self, tile: Tile) -> Tile:
        axes = tuple(ROLES.get(a, a) for a in tile.axes)
        target = self.turned.get(tile) or self.build.tile(f"{tile.name}_s", axes)
        if tile in self.made:
            statement = self.made[tile]
            op = renamed_operands(statement.op, self._named(statement, self.all))
            self._emit(Statement(target, op, statement.origin))
        return target

    def _named(self, statement: Statement, version) -> dict[Tile, Tile]:
        return {t: version(t) for t in operands(statement.op)}

    def _emit(self, statement: Statement) -> None:
        self.build.statements.append(statement)

    def _is_of_gates(self, tile: Tile) -> bool:
        """Whether nothing that it is made of has channels."""
        if tile.axes not in ((), ("t",), ("s",)):
            return False
        return tile not in self.made or all(map(self._is_of_gates, operands(self.made[tile].op)))
