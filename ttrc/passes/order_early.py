"""Straight-line code -> the same, where what takes the place of more comes as soon as it can.

Sums, what is only written out, and products of rows with a matrix from memory, which holds registers until the last of
them: each stands, with what it alone is made of entry by entry, right behind the last tile that it waits for.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.axes import is_matrix
from ttrc.ir.tile import Contract, Elementwise, Mask, Reduce, Relabel, Statement, Tile, operands

Body = tuple[Statement, ...]


def order_early(statements: Body, memory: frozenset[Tile]) -> Body:
    """`memory`: tiles that come from there."""
    made = {s.target: s for s in statements}
    goals = {}
    for statement in statements:
        if _comes_early(statement, statements, memory):
            goals[statement.target] = _alone(statement, statements)
    inside = {t for part in goals.values() for t in part}
    done: dict[Tile, Statement] = {}

    def waits(goal: Tile) -> bool:
        part = goals[goal]
        return any(t in made and t not in done and t not in part for x in part for t in operands(made[x].op))

    def follow() -> None:
        while (goal := next((g for g in goals if g not in done and not waits(g)), None)) is not None:
            done.update({s.target: s for s in statements if s.target in goals[goal]})

    follow()
    for statement in (s for s in statements if s.target not in inside):
        done[statement.target] = statement
        follow()
    return tuple(done.values())


def _comes_early(statement: Statement, statements: Body, memory: frozenset[Tile]) -> bool:
    used = any(statement.target in operands(s.op) for s in statements)
    match statement.op:
        case Reduce():
            return True
        case Contract(a, b) if not is_matrix(statement.target):
            return any(is_matrix(t) and t in memory for t in (a, b))
        case Elementwise():
            return not used
    return False


def _alone(goal: Statement, statements: Body) -> set[Tile]:
    """The goal, and what is made entry by entry for nothing else."""
    made = {s.target: s for s in statements}
    users: dict[Tile, set[Tile]] = {}
    for statement in statements:
        for tile in operands(statement.op):
            users.setdefault(tile, set()).add(statement.target)
    part, todo = {goal.target}, [goal.target]
    while todo:
        for tile in operands(made[todo.pop()].op):
            simple = tile in made and isinstance(made[tile].op, (Elementwise, Mask, Relabel))
            if simple and tile not in part and users[tile] <= part:
                part.add(tile)
                todo.append(tile)
    return part


def add_matrices_first(statements: Body, memory: frozenset[Tile]) -> Body:
    """Of products that are added up one after the other first those that take a matrix from memory."""
    made = {s.target: s for s in statements}
    users: dict[Tile, list[Statement]] = {}
    for statement in statements:
        for tile in operands(statement.op):
            users.setdefault(tile, []).append(statement)

    def goes_on(statement: Statement) -> bool:
        own = users.get(statement.target, [])
        return len(own) == 1 and isinstance(own[0].op, Contract) and own[0].op.add == statement.target

    new: dict[Tile, Statement] = {}
    for last in (s for s in statements if isinstance(s.op, Contract) and not goes_on(s)):
        chain = [last]
        while (add := made.get(chain[0].op.add)) is not None and isinstance(add.op, Contract) and goes_on(add):
            chain.insert(0, add)
        total = chain[0].op.add
        products = sorted(chain, key=lambda s: not any(is_matrix(t) and t in memory for t in (s.op.a, s.op.b)))
        for product, target in zip(products, [s.target for s in chain]):
            new[target] = Statement(target, replace(product.op, add=total), product.origin)
            total = target
    return tuple(new.get(s.target, s) for s in statements)
