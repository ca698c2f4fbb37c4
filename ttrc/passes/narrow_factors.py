"""A parallel kernel's code -> which of its C x C tiles are kept in the inputs' dtype, in half of the registers.

Matrix products take that dtype anyway. A tile that the inputs alone make, wanted only as a factor beside another tile
as wide, is rounded as an input is: what that costs does not grow. Sums, differences and exponents are worked out in
float32, for there it would. Nothing is rounded where a triangular system is inverted, nor where no panels are summed.
"""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.ir.tile import Contract, Inverse, Statement, Tile, operands, sums_values
from ttrc.passes.simplify_tile import as_products


@dataclass(frozen=True)
class Narrow:
    """`factors` are rounded as soon as they are made; `turned` ones are turned over as well: products want them so."""

    factors: frozenset[Tile]
    turned: frozenset[Tile]


AS_MADE = Narrow(frozenset(), frozenset())


def narrow_factors(body: tuple[Statement, ...], wanted: tuple[Tile, ...]) -> Narrow:
    late: set[Tile] = set()  # known once panels of the value axis have been summed
    for statement in body:
        if sums_values(statement) or late & set(operands(statement.op)):
            late.add(statement.target)
    if not late or any(isinstance(s.op, Inverse) for s in body):
        return AS_MADE
    pairs = {s.target for s in body if s.target.axes == ("t", "s")} - set(wanted)
    users = {t: [s for s in body if t in operands(s.op)] for t in pairs}
    return Narrow(
        frozenset(t for t in pairs - late if all(_multiplies(s, t) for s in users[t])),
        frozenset(t for t in pairs - late if all(_turns(s, t) for s in users[t])),
    )


def _multiplies(statement: Statement, tile: Tile) -> bool:
    """Whether it takes the tile as a factor beside another tile as wide, in each of its terms that has it."""
    found = as_products(statement)
    return found is not None and all(len(p.wide) > 1 for p in found if tile in p.wide)


def _turns(statement: Statement, tile: Tile) -> bool:
    """Whether it is a product that sums over the tile's rows."""
    op = statement.op
    return isinstance(op, Contract) and op.axis == "t" and tile in (op.a, op.b)
