"""A kernel's statements -> the same where no sum over panels waits for what it is added to."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ttrc.ir.tile import Contract, Elementwise, Relabel, Statement, Tile, operands, sums
from ttrc.passes.builder import Builder, sym
from ttrc.passes.order_statements import order_statements


def add_afterwards(body: tuple[Statement, ...], axis: str) -> tuple[Statement, ...]:
    """An addend that is known after the factors of its sum over panels is added once that is made: no loop waits. Where
    it is a product itself, that goes on from the sum."""
    stage = stages(tuple(replace(s, op=replace(s.op, add=None)) if _adds(s, axis) else s for s in body), axis)
    summed = {s.target for s in body if sums(s, axis)}
    uses = Counter(t for s in body for t in operands(s.op))
    build = Builder.beside(body)
    made = {s.target: s for s in body}
    for statement in body:
        target, op, origin = statement.target, statement.op, statement.origin
        if not _adds(statement, axis) or stage.get(op.add, 0) + (op.add in summed) <= stage[target]:
            continue
        total = build.emit(f"{target.name}_sum", target.axes, replace(op, add=None), origin)
        turned = isinstance(getattr(made.get(op.add), "op", None), Relabel)
        last = made.get(made[op.add].op.arg if turned else op.add)
        if last is not None and isinstance(last.op, Contract) and uses[last.target] == 1 and not sums(last, axis):
            start = build.relabel(total, origin) if turned else total
            if last.op.add is not None:
                add = last.op.add
                start = build.make(f"{target.name}_start", sym(start) + sym(add), start, add, origin=origin)
            made[last.target] = replace(last, op=replace(last.op, add=start))
            made[target] = Statement(target, Elementwise(sym(op.add), (op.add,)), origin)
        else:
            both = tuple(sorted((total, op.add), key=lambda t: t.name))
            made[target] = Statement(target, Elementwise(sym(total) + sym(op.add), both), origin)
    return order_statements((*made.values(), *build.statements), ())


def _adds(statement: Statement, axis: str) -> bool:
    return sums(statement, axis) and getattr(statement.op, "add", None) is not None


def stages(body: tuple[Statement, ...], axis: str) -> dict[Tile, int]:
    """How many loops, one after the other, must have ended before a tile can be made; for a sum over panels, begun."""
    stage: dict[Tile, int] = {}
    summed = {s.target for s in body if sums(s, axis)}

    def known(tile: Tile) -> int:
        return stage.get(tile, 0) + (tile in summed)

    for statement in body:
        add = getattr(statement.op, "add", None)
        rest = [t for t in operands(statement.op) if t is not add]
        stage[statement.target] = max([known(t) for t in rest], default=0)
        if add is not None:  # a sum goes on from an addend in the same loop
            joins = statement.target in summed and add in summed
            stage[statement.target] = max(stage[statement.target], stage[add] if joins else known(add))
    return stage
