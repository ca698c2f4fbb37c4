"""A statement -> how long what waits for it waits, in matrix products, one after the other."""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.tile import Compose, Contract, Elementwise, Largest, LinearScan, Reduce, Statement, Substitute, operands

# Instructions that wait for one another, as many as take the time of one in a chain of matrix products: 0.4 us, at
# 4 cycles an instruction and 1.75 GHz.
INSTRUCTIONS = 175
REDUCTION = 60  # of a sum over the channels of a row: five shuffles, and a way through shared memory


def chained_products(statement: Statement, tokens: int) -> float:
    """How many matrix products long a statement is, one after the other."""
    match statement.op:
        case Contract() | Compose() | LinearScan():  # a scan's levels wait as long, with what it loads
            return 1
        case Substitute() as op:  # a product a block, which takes it off all rows, and a chain of instructions a row
            return tokens // 16 + tokens * _row_length(op) / INSTRUCTIONS
    return 0


def _row_length(op: Substitute) -> int:
    """How many instructions wait for one another from one row of a substitution to the next."""
    length = {op.unknown.name: 1}
    for statement in op.body:
        waited = {t.name: length[t.name] for t in operands(statement.op) if t.name in length}
        match statement.op:
            case Elementwise(expr):
                own = symbolic.longest_chain(expr, waited)
            case Reduce() | Largest():
                own = max(waited.values()) + REDUCTION
            case _:
                own = max(waited.values()) + 1
        length[statement.target.name] = own
    return length[op.written.name]
