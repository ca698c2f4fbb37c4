"""A statement -> how long what waits for it waits, in matrix products, one after the other."""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.tile import (
    Compose,
    Contract,
    Decayed,
    Elementwise,
    Largest,
    LinearScan,
    Reduce,
    Statement,
    Substitute,
    Tile,
    operands,
)

# Instructions that wait for one another, as many as take the time of one in a chain of matrix products: 0.4 us, at
# 4 cycles an instruction and 1.75 GHz.
INSTRUCTIONS = 175
REDUCTION = 60  # of a sum over the channels of a row: five shuffles, and a way through shared memory


def chained_products(statement: Statement, tokens: int) -> float:
    """How many matrix products long a statement is, one after the other."""
    match statement.op:
        case Contract() | Compose() | LinearScan():  # a scan's levels wait as long, with what it loads
            return 1
        case Decayed():  # for each length of pieces a product for decays, and one behind it
            return 2 * (tokens.bit_length() - 1)
        case Substitute(bases=bases) as op:
            # Products of a block, which take it off all rows of each unknown, and a chain of instructions a row.
            products = len(bases) if op.block == 16 else 1
            return tokens // op.block * products + tokens * _row_length(op) / INSTRUCTIONS
    return 0


def _row_length(op: Substitute) -> int:
    """How many instructions wait for one another from one row of a substitution to the next. Unknowns that do not come
    in turn wait for one another only as they take off what the last row has written."""
    lengths = [_length(x, body) for x, body in zip(op.unknowns, op.bodies)]
    return sum(lengths) if op.in_turn else max(lengths) + len(lengths) - 1


def _length(unknown: Tile, body: tuple[Statement, ...]) -> int:
    length = {unknown.name: 1}
    for statement in body:
        waited = {t.name: length[t.name] for t in operands(statement.op) if t.name in length}
        match statement.op:
            case Elementwise(expr):
                own = symbolic.longest_chain(expr, waited)
            case Reduce() | Largest():
                own = max(waited.values()) + REDUCTION
            case _:
                own = max(waited.values()) + 1
        length[statement.target.name] = own
    return length[body[-1].target.name]
