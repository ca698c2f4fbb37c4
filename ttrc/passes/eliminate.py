"""Triangular systems of several unknowns that hang on one another -> one solve after the other (block elimination).

Row i is u_i + sum_j A_ij u_j = rhs_i, [t, v], with C x C tiles A_ij: strictly lower, but those to the left of the
diagonal, which may see a token's own u_j as well. An unknown is taken out of the rows below it,
u_i = T_i rhs_i - sum_j>i (T_i A_ij) u_j with T_i = (I + A_ii)^-1; what stands on the diagonal stays strictly lower, so
that every row has a solution. All products of C x C tiles are free of values and states, and solve the transposed
system too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ttrc.ir.tile import Elementwise, Joint, Program, Relabel, Solve, Statement, Tile
from ttrc.passes.builder import Builder, sym

ORIGIN = "update"
Systems = tuple[tuple[Tile, ...], ...]


@dataclass(frozen=True)
class Factors:
    """The system as a product: `left`, with `last` and the inverted tiles on its diagonal, times `passed`, beside ones
    on its diagonal."""

    inverses: tuple[Tile, ...]  # T_i, of all rows that are taken out
    passed: tuple[dict[int, Tile], ...]  # T_i A_ij, j > i
    left: tuple[tuple[Tile, ...], ...]  # A_ij, j < i and taken out, once all further to the left is
    last: Systems  # what rows that stay make of one another: as a rule one of itself


def eliminate(program: Program) -> Program:
    """A program without joint systems; it says what they were solved for."""
    taken = tuple(s.target for s in program.statements) + tuple(c.state for c in program.carries)
    build = Builder((*program.inputs, *taken))
    found: dict[Joint, dict[int, Statement]] = {}
    for statement in program.statements:
        if not isinstance(statement.op, Joint):
            build.statements.append(statement)
            continue
        group = found.setdefault(replace(statement.op, number=0), {})
        group[statement.op.number] = statement
        if len(group) == len(statement.op.rhs):
            _solve(build, statement.op, [group[i].target for i in range(len(group))], statement.origin)
    assert all(len(group) == len(op.rhs) for op, group in found.items()), "a system lacks some of its unknowns"
    unknowns = tuple(s.target for group in found.values() for s in group.values())
    return replace(program, statements=tuple(build.statements), unknowns=unknowns)


def _solve(build: Builder, op: Joint, targets: list[Tile], origin: str) -> None:
    factors = factored(build, op.systems, len(op.rhs) - 1)
    if op.transposed:
        return _solve_transposed(build, factors, op.rhs, targets, origin)

    def solve_last(systems: Systems, rhs: tuple[Tile, ...]) -> list[Tile]:
        build.statements.append(Statement(targets[-1], Solve(systems[0][0], rhs[0], False), origin))
        return targets[-1:]

    solve_rows(build, factors, op.rhs, targets[:-1], solve_last)


def factored(build: Builder, systems: Systems, taken: int) -> Factors:
    """The first unknowns, so many, are `taken` out."""
    inverses: list[Tile] = []
    passed: list[dict[int, Tile]] = []
    left: list[tuple[Tile, ...]] = []
    last: list[tuple[Tile, ...]] = []
    for number, row in enumerate(map(list, systems)):
        for above, on in enumerate(passed):
            for j, tile in on.items():
                by_way = build.compose("by_way", row[above], tile, ORIGIN)
                row[j] = build.make("system", sym(row[j]) - sym(by_way), row[j], by_way, origin=ORIGIN)
        left.append(tuple(row[: min(number, taken)]))
        if number >= taken:
            last.append(tuple(row[taken:]))
            continue
        inverses.append(build.inverse(row[number], ORIGIN))
        rest = range(number + 1, len(systems))
        passed.append({j: build.compose("passed", inverses[-1], row[j], ORIGIN) for j in rest})
    return Factors(tuple(inverses), tuple(passed), tuple(left), tuple(last))


def solve_rows(
    build: Builder,
    factors: Factors,
    rhs: tuple[Tile, ...],
    targets: list[Tile],
    solve_last: Callable[[Systems, tuple[Tile, ...]], list[Tile]],
    added: bool = False,
) -> list[Tile]:
    """States what `targets` are, all unknowns that are taken out; of the others, which it returns, solve_last(A, rhs)
    does: u = rhs - A u, or what those rows stand for. These may be of what has sum_j A_ij u_j `added`, not taken
    off."""
    alone: list[Tile] = []  # T_i rhs_i
    bases: list[Tile] = []
    for number, base in enumerate(rhs):
        for tile, own in zip(factors.left[number], alone):
            seen = build.contract("seen_above", tile, build.relabel(own, ORIGIN), "s", ORIGIN)
            plus = added and number >= len(targets)
            total = sym(base) + sym(seen) if plus else sym(base) - sym(seen)
            base = build.make("rhs", total, base, seen, origin=ORIGIN)
        if number < len(targets):
            inverse = factors.inverses[number]
            alone.append(build.contract("alone", inverse, build.relabel(base, ORIGIN), "s", ORIGIN))
        else:
            bases.append(base)
    last = solve_last(factors.last, tuple(bases))
    found = dict(enumerate(last, len(targets)))
    for number in reversed(range(len(targets))):
        expr, used = sym(alone[number]), [alone[number]]
        for j, tile in factors.passed[number].items():
            seen = build.contract("seen_below", tile, build.relabel(found[j], ORIGIN), "s", ORIGIN)
            expr, used = expr - sym(seen), [*used, seen]
        op = Elementwise(expr, tuple(sorted(used, key=lambda t: t.name)))
        build.statements.append(Statement(targets[number], op, ORIGIN))
        found[number] = targets[number]
    return last


def _solve_transposed(
    build: Builder, factors: Factors, rhs: tuple[Tile, ...], targets: list[Tile], origin: str
) -> None:
    """With the factors turned over: the first unknown is in the way of all others, and the last is found first."""
    bases = list(rhs)
    for number, on in enumerate(factors.passed):
        for j, tile in on.items():
            bases[j] = build.less_turned(bases[j], tile, bases[number], origin)
    build.statements.append(Statement(targets[-1], Solve(factors.last[0][0], bases[-1], True), origin))
    for number in reversed(range(len(targets) - 1)):
        base = bases[number]
        for below in range(number + 1, len(targets)):
            base = build.less_turned(base, factors.left[below][number], targets[below], origin)
        column = build.contract(f"{targets[number].name}_s", factors.inverses[number], base, "t", origin)
        build.statements.append(Statement(targets[number], Relabel(column), origin))
