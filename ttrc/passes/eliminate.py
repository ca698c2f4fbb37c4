"""Triangular systems of several unknowns that hang on one another -> one solve after the other (block elimination).

Row i is u_i = rhs_i - sum_j A_ij u_j, [t, v], with C x C tiles A_ij: strictly lower, but those to the left of the
diagonal, which may see a token's own u_j as well. An unknown is taken out of the rows below it,
u_i = T_i rhs_i - sum_j>i (T_i A_ij) u_j with T_i = (I + A_ii)^-1; what stands on the diagonal stays strictly lower, so
that every row has a solution. All products of C x C tiles are free of values and states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ttrc.ir.tile import Tile
from ttrc.passes.builder import Builder, sym


@dataclass(frozen=True)
class Row:
    """The system's tiles, one for each unknown. The last row may be of what has sum_j A_ij u_j added, not taken off."""

    rhs: Tile
    system: tuple[Tile, ...]
    added: bool = False


def eliminate(build: Builder, rows: list[Row], solve_last: Callable[[Tile, Tile], Tile]) -> list[Tile]:
    """u_1, ..., of which solve_last(A, rhs) gives the last: u = rhs - A u, or what that row stands for."""
    origin = "update"
    alone: list[Tile] = []  # T_i rhs_i
    passed: list[dict[int, Tile]] = []  # T_i A_ij, j > i
    for number, row in enumerate(rows):
        rhs, system = row.rhs, list(row.system)
        for above, (own, on) in enumerate(zip(alone, passed)):
            seen = build.contract("seen_above", system[above], build.relabel(own, origin), "s", origin)
            total = sym(rhs) + sym(seen) if row.added else sym(rhs) - sym(seen)
            rhs = build.elementwise("rhs", total, {t.name: t for t in (rhs, seen)}, origin)
            for j, tile in on.items():
                by_way = build.compose("by_way", system[above], tile, origin)
                args = {t.name: t for t in (system[j], by_way)}
                system[j] = build.elementwise("system", sym(system[j]) - sym(by_way), args, origin)
        if number == len(rows) - 1:
            found = [solve_last(system[number], rhs)]
            break
        inverse = build.inverse(system[number], origin)
        alone.append(build.contract("alone", inverse, build.relabel(rhs, origin), "s", origin))
        rest = range(number + 1, len(rows))
        passed.append({j: build.compose("passed", inverse, system[j], origin) for j in rest})
    for own, on in zip(reversed(alone), reversed(passed)):
        u = own
        for j, tile in on.items():
            later = found[j - len(rows)]
            seen = build.contract("seen_below", tile, build.relabel(later, origin), "s", origin)
            u = build.elementwise("u", sym(u) - sym(seen), {t.name: t for t in (u, seen)}, origin)
        found.insert(0, u)
    return found
