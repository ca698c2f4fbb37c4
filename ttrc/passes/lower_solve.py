"""Solve -> Inverse and a matrix product.

The inverse of a unit lower-triangular C x C matrix is shared by every right-hand side, by the adjoint (transposed)
and by all value columns; as a tile of its own it can be made once a chunk, in parallel, and kept.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.tile import Contract, Program, Relabel, Solve, Statement, Tile
from ttrc.passes.builder import Builder


def lower_solve(program: Program) -> Program:
    taken = tuple(s.target for s in program.statements) + tuple(c.state for c in program.carries)
    build = Builder((*program.inputs, *taken))
    for statement in program.statements:
        match statement.op:
            case Solve(matrix, rhs, transposed):
                _lower(build, statement, matrix, rhs, transposed)
            case _:
                build.statements.append(statement)
    return replace(program, statements=tuple(build.statements))


def _lower(build: Builder, statement: Statement, matrix: Tile, rhs: Tile, transposed: bool) -> None:
    inverse = build.inverse(matrix, statement.origin)
    target, origin = statement.target, statement.origin
    if transposed:  # inverse' rhs: the sum runs over the reading axis, the result stands on the writing one
        column = build.contract(f"{target.name}_s", inverse, rhs, "t", origin)
        build.statements.append(Statement(target, Relabel(column), origin))
        return
    column = next((s.op.arg for s in build.statements if s.target == rhs and isinstance(s.op, Relabel)), None)
    column = column or build.relabel(rhs, origin)
    build.statements.append(Statement(target, Contract(inverse, column, "s"), origin))
