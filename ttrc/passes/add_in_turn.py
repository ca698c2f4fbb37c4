"""Straight-line code -> the same with sums made term by term, each as soon as it is known: fewer registers live.

A product for each token, and what else takes long, is followed by all that only waited for it: what it adds to several
sums is added to each of them at once, and the tile itself is over.
"""

from __future__ import annotations

from ttrc.ir.tile import Contract, Decayed, Elementwise, Relabel, Statement, Tile, operands
from ttrc.passes.builder import Builder, sym
from ttrc.passes.order_statements import order_statements

LONG = (Contract, Decayed)


def add_in_turn(statements: tuple[Statement, ...], results: tuple[Tile, ...]) -> tuple[Statement, ...]:
    """`results` give the order of what takes long."""
    statements = order_statements(statements, results)
    statements = _chained(statements, _known_after(statements))
    known, makes = _known_after(statements), {s.target: s for s in statements}
    done: dict[Tile, Statement] = {}

    def visit(tile: Tile) -> None:
        if tile in makes and tile not in done:
            for operand in operands(makes[tile].op):
                visit(operand)
            done[tile] = makes[tile]

    for number, long in enumerate((s for s in statements if isinstance(s.op, LONG)), 1):
        if isinstance(long.op, Decayed) and long.op.pairs:  # holds many registers, and nothing waits for it
            for statement in statements:
                if known[statement.target] < number:
                    visit(statement.target)
        visit(long.target)
        for statement in statements:
            if 0 < known[statement.target] <= number and not _widens(statement, makes):
                visit(statement.target)
    for statement in statements:
        visit(statement.target)
    return tuple(done.values())


def _known_after(statements: tuple[Statement, ...]) -> dict[Tile, int]:
    """How many of the long statements are over when a tile can be made; 0 where it hangs on none."""
    known: dict[Tile, int] = {}
    over = 0
    for statement in statements:
        over += isinstance(statement.op, LONG)
        own = over if isinstance(statement.op, LONG) else 0
        known[statement.target] = max([own, *(known.get(t, 0) for t in operands(statement.op))])
    return known


def _widens(statement: Statement, makes: dict[Tile, Statement]) -> bool:
    """Whether what it makes holds more registers than all that it is made of."""
    made = [t for t in operands(statement.op) if t in makes]
    return not isinstance(statement.op, Relabel) and all(len(t.axes) < len(statement.target.axes) for t in made)


def _chained(statements: tuple[Statement, ...], known: dict[Tile, int]) -> tuple[Statement, ...]:
    """Sums of tiles as chains of sums, in the order in which their terms are known."""
    by_symbol = {sym(t): t for s in statements for t in (s.target, *operands(s.op))}
    build = Builder(tuple(by_symbol.values()))
    for statement in statements:
        target, op = statement.target, statement.op
        if not isinstance(op, Elementwise) or not op.expr.is_Add or len(target.axes) < 2:
            build.statements.append(statement)
            continue
        turns: dict[int, list] = {}
        for term in op.expr.as_ordered_terms():
            turns.setdefault(max((known.get(by_symbol[s], 0) for s in term.free_symbols), default=0), []).append(term)
        total, rest = 0, sorted(turns)
        for number in rest:
            total = total + sum(turns[number])
            args = tuple(sorted((by_symbol[s] for s in total.free_symbols), key=lambda t: t.name))
            if number == rest[-1]:
                build.statements.append(Statement(target, Elementwise(total, args), statement.origin))
            elif {a for t in args for a in t.axes} == set(target.axes):
                part = build.make(f"{target.name}_so_far", total, *args, origin=statement.origin)
                total, by_symbol[sym(part)] = sym(part), part
    return tuple(build.statements)
