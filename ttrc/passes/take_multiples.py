"""Statements -> the same where products take what is stored anyway, and no multiple of it.

Of p - v the cotangents of both are the same but for the sign: one of them is enough to cross between kernels.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.tile import Contract, Elementwise, Statement, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.passes.order_statements import order_statements
from ttrc.symbolic import Expr

Multiples = dict[Tile, tuple[Tile, Expr]]


def take_multiples(statements: tuple[Statement, ...], stored: tuple[Tile, ...]) -> tuple[Statement, ...]:
    """Products whose left factor is a number times a `stored` tile take that tile, and are multiplied by the number."""
    multiples = _multiples(statements, stored)
    build = Builder.beside(statements)
    for statement in statements:
        op, target = statement.op, statement.target
        if not isinstance(op, Contract) or op.add is not None or op.a not in multiples:
            build.statements.append(statement)
            continue
        tile, number = multiples[op.a]
        product = build.emit(f"{target.name}_product", target.axes, replace(op, a=tile), statement.origin)
        build.statements.append(replace(statement, op=Elementwise(number * sym(product), (product,))))
    return order_statements(tuple(build.statements), ())


def _multiples(statements: tuple[Statement, ...], stored: tuple[Tile, ...]) -> Multiples:
    """By tile, of which stored one it is a multiple, and by which number."""
    made = {s.target: s.op.expr for s in statements if isinstance(s.op, Elementwise)}
    found: Multiples = {}
    for tile in stored:
        for other, expr in ((t, e) for t, e in made.items() if t.axes == tile.axes and t not in stored):
            for number in (expr / sym(tile), expr / made.get(tile, sym(tile))):
                if number.is_Number:
                    found[other] = tile, number
    return found
