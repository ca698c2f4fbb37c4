"""Statements -> the same where what a substitution writes is read back, not worked out again from its solution.

Where rows meet in a sum over value channels, working it out again takes several tiles as wide as these at a time,
beside a state that is carried whole: more than registers. What blocks have written waits in memory.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.tile import Statement, Substitute, Tile, Written, meets_in_rows
from ttrc.passes.slice_program import slice_program


def read_written(statements: tuple[Statement, ...], results: tuple[Tile, ...]) -> tuple[Statement, ...]:
    ops = [s.op for s in statements if isinstance(s.op, Substitute) and meets_in_rows(s.op)]
    solved = {w: x for op in ops for w, x in zip(op.written, op.unknowns)}
    told = tuple(replace(s, op=Written(solved[s.target])) if s.target in solved else s for s in statements)
    return slice_program(told, results) if solved else statements


def written_tiles(statements: tuple[Statement, ...]) -> tuple[Tile, ...]:
    """What is read back so."""
    return tuple(s.target for s in statements if isinstance(s.op, Written))
