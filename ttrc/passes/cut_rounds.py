"""A program over pairs of tokens -> what each round over all keys hands on to those behind it.

A kernel goes over its keys once. What makes other pairs of a sum over them waits for another kernel, and so does a
search, which goes over them again and again. The last round is no one's here: its kernels store what is wanted.
"""

from __future__ import annotations

from ttrc.ir.tile import Attend, Conjugate, Contract, Normaliser, Reduce, Statement, Tile, operands
from ttrc.passes.slice_program import slice_program

Body = tuple[Statement, ...]


def cut_rounds(statements: Body, goals: tuple[Tile, ...], known: frozenset[Tile]) -> tuple[tuple[Tile, ...], ...]:
    """Tiles of queries, round by round; none of a program that one round is enough for."""
    body = slice_program(statements, goals, known)
    depth = _depths(body, known)
    sums = {s.target: depth[s.target] for s in body if sums_over(s, "s")}
    last = max(sums.values(), default=0)
    cut = frozenset(t for t, d in sums.items() if d < last)
    wanted = set(goals) & cut | _used(slice_program(body, goals, known | cut)) & cut
    rounds = []
    for number in range(last - 1, 0, -1):
        own = tuple(t for t in sums if t in wanted and sums[t] == number)
        wanted |= _used(slice_program(body, own, known | (cut - set(own)))) & cut
        rounds.append(own)
    return tuple(reversed(rounds))


def sums_over(statement: Statement, axis: str) -> bool:
    """Whether all tokens in a role have to be gone through for it."""
    op = statement.op
    return (
        isinstance(op, (Contract, Reduce, Normaliser, Attend, Conjugate))
        and axis not in statement.target.axes
        and any(axis in t.axes for t in operands(op))
    )


def _used(body: Body) -> set[Tile]:
    return {t for s in body for t in operands(s.op)}


def _depths(body: Body, known: frozenset[Tile]) -> dict[Tile, int]:
    """By how many rounds a tile is known. A search has its round for itself."""
    depth: dict[Tile, int] = {}
    searches: set[int] = set()
    for statement in body:
        op = statement.op
        add = getattr(op, "add", None)  # what it takes behind the loop only
        aside = op.normaliser if isinstance(op, Attend) else add  # which is made beside it
        before = max((depth.get(t, 0) for t in operands(op) if t != aside), default=0)
        if sums_over(statement, "s"):
            before += 1
            while before in searches and not isinstance(op, Conjugate):
                before += 1
        if isinstance(op, Conjugate):
            searches.add(before)
        depth[statement.target] = 0 if statement.target in known else max(before, depth.get(add, 0))
    return depth
