"""A kernel's statements -> the same with a sum of products by one factor as one product: A x + B x is (A + B) x."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ttrc.ir.tile import Contract, Statement, Tile, operands
from ttrc.passes.builder import Builder, sym
from ttrc.passes.order_statements import order_statements


def join_products(statements: tuple[Statement, ...], results: tuple[Tile, ...]) -> tuple[Statement, ...]:
    """Of products of which each goes on from the one before, where nothing else wants that."""
    uses = Counter(t for s in statements for t in operands(s.op))
    made = {s.target: s for s in statements}
    build = Builder.beside(statements)
    for statement in statements:
        op = made[statement.target].op
        before = made.get(op.add) if isinstance(op, Contract) else None
        if before is None or uses[op.add] > 1 or op.add in results or not isinstance(before.op, Contract):
            continue
        own, common = before.op, {op.a, op.b} & {before.op.a, before.op.b}
        if own.axis != op.axis or len(common) != 1:
            continue
        (factor,) = common
        one, other = (x.b if x.a == factor else x.a for x in (op, own))
        if one.axes != other.axes or not {one, other} <= made.keys():
            continue
        joined = build.make(f"{one.name}_joined", sym(one) + sym(other), one, other, origin=statement.origin)
        made[statement.target] = replace(statement, op=Contract(joined, factor, op.axis, own.add))
        del made[before.target]
    return order_statements((*made.values(), *build.statements), ()) if build.statements else statements
