"""Statements -> the same with sums of two tiles shared, those that come with factors of rows too.

An error's slope and the cotangent of what it is multiplied with both take p - v: shared, p and v are over once it is
made, where both were held until the cotangent is known.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ttrc.ir.tile import Elementwise, Statement, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.passes.order_statements import order_statements
from ttrc.symbolic import ONE, Expr

Pair = tuple[Tile, Tile, Expr]  # a, b and the sign of b in a + sign * b


def share_sums(statements: tuple[Statement, ...]) -> tuple[Statement, ...]:
    found = {s.target: pair for s in statements if (pair := _pair(s)) is not None}
    count = Counter(pair for pair, _, _ in found.values())
    build = Builder.beside(statements)
    kept: list[Statement] = []
    turns: dict[Pair, Expr] = {}  # which way round a difference is taken: that which its first user wants
    for statement in statements:
        pair, factor, whole = found.get(statement.target, (None, ONE, None))
        if count[pair] > 1:
            a, b, sign = pair
            turn = turns.setdefault(pair, -ONE if factor.could_extract_minus_sign() else ONE)
            both = turn * sym(a) + turn * sign * sym(b)
            shared = build.make(f"{a.name}_shared", both, a, b, origin=statement.origin)
            expr = statement.op.expr.xreplace({whole: factor * turn * sym(shared)})
            args = {t for t in (*statement.op.args, shared) if sym(t) in expr.free_symbols}
            statement = replace(statement, op=Elementwise(expr, tuple(sorted(args, key=lambda t: t.name))))
        kept.append(statement)
    return order_statements((*kept, *build.statements), ())


def _pair(statement: Statement) -> tuple[Pair, Expr, Expr] | None:
    """A sum of two tiles as wide as the target that its expression holds, times a factor: both, and the whole."""
    op = statement.op
    if not isinstance(op, Elementwise) or len(statement.target.axes) < 2:
        return None
    wide = {sym(t): t for t in op.args if t.axes == statement.target.axes}
    for whole in (op.expr, *op.expr.args):
        if not whole.is_Add or len(whole.args) != 2 or (whole != op.expr and not op.expr.is_Mul):
            continue
        held = [[s for s in term.free_symbols if s in wide] for term in whole.args]
        if [len(h) for h in held] != [1, 1] or held[0] == held[1]:
            continue
        (first, one), (second, other) = sorted(zip((h[0] for h in held), whole.args), key=lambda x: x[0].name)
        factor, sign = one / first, other / second / (one / first)
        if sign in (ONE, -ONE) and not factor.free_symbols & set(wide):
            return (wide[first], wide[second], sign), factor, whole
    return None
