"""A parallel kernel's statements -> the same with factors pulled out of sums over the value axis.

A read-out f (q S), with a factor f of each token, leaves (f d) S' for q and the sum over value channels of d (q S) for
f. Both come from one product: d S' times f, and the sum over key channels of q (d S'). d goes into it as it came from
memory, f multiplies one sum and not every panel, and q S is not worked out.

A sum with several such products stays a single chain: pulled apart it would be as many sums, and registers are short.
So does one where no product goes away: the C x C tiles that such a chain starts from would wait for its end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ttrc.ir.tile import Contract, Elementwise, Reduce, Statement, Tile, operands
from ttrc.passes.builder import Builder, sym
from ttrc.passes.order_statements import order_statements
from ttrc.passes.simplify_tile import Product, as_products
from ttrc.passes.slice_program import slice_program

ROWS, WIDE = ("t", "k"), ("t", "v")
Chain = tuple[Statement, ...]


def pull_factors(statements: tuple[Statement, ...], results: tuple[Tile, ...]) -> tuple[Statement, ...]:
    made = {s.target: s for s in statements}
    build = Builder.beside(statements)
    for chain in _chains(statements, results):
        over_values = [s for s in chain if s.op.axis == "v"]
        factor = _factor(made.get(over_values[0].op.a)) if len(over_values) == 1 else None
        if factor is None:
            continue
        (product,) = over_values
        (x,), S, factors = factor.wide, product.op.b, [t for t in operands(made[product.op.a].op) if t.axes != WIDE]
        total, q = _cotangent(statements, x, S)
        if total is None:
            continue
        last = chain[-1].target
        pulled = build.contract(f"{last.name}_pulled", x, S, "v", product.origin)
        start = build.make(f"{last.name}_start", factor.rest * sym(pulled), pulled, *factors, origin=product.origin)
        # As a rule f = exp(g), and all that is wanted of f's cotangent is that times f: then of q (f d S').
        goal, of = total, pulled
        users = [s for s in statements if total.target in operands(s.op)]
        if [getattr(s.op, "expr", None) for s in users] == [factor.rest * sym(total.target)]:
            goal, of = users[0], start
        each = build.make(f"{goal.target.name}_each", sym(q) * sym(of), q, of, origin=goal.origin)
        made[goal.target] = replace(goal, op=Reduce(each))
        made |= _without(chain, product, start, build)
    return slice_program(order_statements((*made.values(), *build.statements), ()), results)


def _chains(statements: tuple[Statement, ...], results: tuple[Tile, ...]) -> list[Chain]:
    """Products that go on from one another and nowhere else, as wide as the keys; each chain in order."""
    uses = Counter(t for s in statements for t in operands(s.op))
    chains: list[Chain] = []
    for statement in statements:
        if isinstance(statement.op, Contract) and statement.target.axes == ROWS:
            before = next((c for c in chains if c[-1].target == statement.op.add), ())
            chains = [c for c in chains if c != before] + [(*before, statement)]
    return [c for c in chains if all(uses[s.target] == 1 and s.target not in results for s in c[:-1])]


def _factor(statement: Statement | None) -> Product | None:
    """A statement that is a single product of one wide tile and factors of rows, or of all."""
    products = None if statement is None else as_products(statement)
    return products[0] if products is not None and len(products) == 1 and len(products[0].wide) == 1 else None


def _cotangent(statements: tuple[Statement, ...], x: Tile, S: Tile) -> tuple[Statement | None, Tile | None]:
    """The sum over v of x (q S), where nothing else wants q S; and q."""
    made = {s.target: s for s in statements}
    uses = Counter(t for s in statements for t in operands(s.op))
    for statement in statements:
        arg = statement.op.arg if isinstance(statement.op, Reduce) else None
        terms = as_products(made[arg]) if arg in made and arg.axes == WIDE else None
        if terms is None or len(terms) != 1 or terms[0].rest != 1 or len(terms[0].wide) != 2 or x not in terms[0].wide:
            continue
        (y,) = (t for t in terms[0].wide if t != x)
        match made.get(y):
            case Statement(_, Contract(q, of, "k", None)) if of == S and q.axes == ROWS and uses[y] == 1:
                return statement, q
    return None, None


def _without(chain: Chain, product: Statement, start: Tile, build: Builder) -> dict[Tile, Statement]:
    """The chain without that product, going on from `start`; what it ends in keeps its name."""
    if (base := chain[0].op.add) is not None:
        start = build.make(start.name, sym(start) + sym(base), start, base, origin=product.origin)
    rest, last = [s for s in chain if s != product], chain[-1]
    if not rest:
        return {last.target: replace(last, op=Elementwise(sym(start), (start,)))}
    for statement in rest[:-1]:
        start = build.emit(statement.target.name, ROWS, replace(statement.op, add=start), statement.origin)
    return {last.target: replace(last, op=replace(rest[-1].op, add=start))}
