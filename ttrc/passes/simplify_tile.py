"""A kernel's statements -> the same with products shared: what several products have in common is one tile.

An adjoint multiplies the same tiles over and over: from z = a * b * c come da = dz * b * c, db = dz * a * c and,
where a = exp(x), dx = da * a. Taken one by one they keep dz, a, b and c in registers until the last of them is done.
Shared (w = dz * a, dx = w * b * c, db = w * c) each new tile takes the place of one that is then over.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations

from ttrc.ir.tile import Contract, Elementwise, Mask, Op, Relabel, Relation, Statement, Tile, joins_channels, operands
from ttrc.passes.builder import Builder, sym
from ttrc.passes.order_statements import order_statements
from ttrc.passes.slice_program import renamed_operands, slice_program
from ttrc.symbolic import ONE, ZERO, Expr

Pair = tuple[Tile, ...]
STRICTNESS = {Relation.CAUSAL: 1, Relation.STRICT: 2}


@dataclass
class Product:
    """rest * the product of `wide`, tiles that have all the axes of the statement this is a term of."""

    rest: Expr
    wide: list[Tile]

    def holds(self, pair: Pair) -> bool:
        return all(t in self.wide for t in pair)


def simplify_tile(statements: tuple[Statement, ...], results: tuple[Tile, ...]) -> tuple[Statement, ...]:
    """A kernel's code, of which `results` are wanted."""
    statements = _multiply_out(_start_chains(_drop_masks(statements, results), results), results)
    sums = {s.target: products for s in statements if (products := as_products(s)) is not None}
    known = {sym(t): t for s in statements for t in (s.target, *operands(s.op))}
    build = Builder(tuple(known.values()))
    origin = {s.target: s.origin for s in statements}
    new: list[Tile] = []
    place = {t: i for i, t in enumerate(known.values())}
    while (pair := _most_common(sums, place)) is not None:
        rests = {p.rest for own in sums.values() for p in own if p.holds(pair)}
        rest = rests.pop() if len(rests) == 1 else ONE
        shared = next((t for t, own in sums.items() if _is_just(own, rest, pair)), None)
        if shared is None:
            first = next(t for t, own in sums.items() if any(p.holds(pair) for p in own))
            shared = build.tile(f"{first.name}_shared", first.axes)
            known[sym(shared)], origin[shared], place[shared] = shared, origin[first], len(place)
            sums[shared] = [Product(rest, list(pair))]
            new.append(shared)
        for product in (p for target, own in sums.items() if target != shared for p in own):
            if product.holds(pair):
                product.rest = product.rest / rest
                product.wide = [t for t in product.wide if t not in pair] + [shared]
    made = [s if s.target not in sums else _statement(s.target, sums, origin, known) for s in statements]
    made += [_statement(t, sums, origin, known) for t in new]
    return order_statements(tuple(made), ())


def _drop_masks(statements: tuple[Statement, ...], results: tuple[Tile, ...]) -> tuple[Statement, ...]:
    """Without the masks to 0 of what is 0 there already."""
    zero: dict[Tile, int] = {}  # how much of a tile is 0, see STRICTNESS
    unmasked: dict[Tile, Tile] = {}
    same: dict[Tile, Tile] = {}
    kept = []
    for statement in statements:
        target, op = statement.target, renamed_operands(statement.op, same)
        match op:
            case Mask(arg, relation, 0) if relation in STRICTNESS:
                zero[target] = max(STRICTNESS[relation], zero.get(arg, 0))
                if zero[target] == zero.get(arg, 0) and target not in results:
                    same[target] = arg
                    continue
                unmasked[target] = unmasked.get(arg, arg)
                op = replace(op, arg=unmasked[target])
            case Elementwise():
                products = as_products(replace(statement, op=op)) or []
                zero[target] = min((max((zero.get(t, 0) for t in p.wide), default=0) for p in products), default=0)
        kept.append(replace(statement, op=op))
    return slice_program(tuple(kept), results)


def _start_chains(statements: tuple[Statement, ...], results: tuple[Tile, ...]) -> tuple[Statement, ...]:
    """chain + rest, with a chain of products that goes nowhere else: the chain starts from the rest instead."""
    made = {s.target: s for s in statements}
    uses = Counter((*results, *(t for s in statements for t in operands(s.op))))
    build = Builder.beside(statements)
    same: dict[Tile, Tile] = {}
    for statement in statements:
        target, op = statement.target, statement.op
        if not isinstance(op, Elementwise) or len(target.axes) < 2 or not op.expr.is_Add or target in results:
            continue
        for end in (a for a in op.args if a.axes == target.axes and sym(a) in op.expr.args and uses[a] == 1):
            root, flips = end, 0
            while root in made and uses[root] == 1 and (before := _before(made[root])) is not None:
                root, flips = before, flips + isinstance(made[root].op, Relabel)
            if root not in made or uses[root] != 1 or not isinstance(made[root].op, Contract):
                continue
            expr = op.expr - sym(end)
            rest = build.elementwise(
                f"{target.name}_start", expr, {a.name: a for a in op.args if a != end}, statement.origin, target.axes
            )
            start = build.relabel(rest, statement.origin) if flips % 2 else rest
            made[root] = replace(made[root], op=replace(made[root].op, add=start))
            same[target] = end
            break
    made |= {s.target: s for s in build.statements}
    kept = [replace(s, op=renamed_operands(s.op, same)) for t, s in made.items() if t not in same]
    return order_statements(tuple(kept), ())


def _before(statement: Statement) -> Tile | None:
    """What a chain of products went on from."""
    match statement.op:
        case Contract(_, _, _, add):
            return add
        case Relabel(arg) if not joins_channels(statement):
            return arg
    return None


def _multiply_out(statements: tuple[Statement, ...], results: tuple[Tile, ...]) -> tuple[Statement, ...]:
    """A sum that one product of wide tiles alone uses is multiplied out there: its terms may share with others."""
    made = {s.target: s for s in statements}
    user = {t: s for s in statements for t in operands(s.op)}
    uses = Counter(t for s in statements for t in operands(s.op))
    once = {t for t in made if uses[t] == 1 and t not in results and isinstance(made[t].op, Elementwise)}
    sums = {t for t in once if as_products(made[t]) and _multiplies(user[t], t)}
    terms = {t for t in once if user[t].target in sums and t.axes == user[t].target.axes and as_products(made[t])}
    ops: dict[Tile, Op] = {}
    for target, statement in made.items():
        op = statement.op
        for arg in [a for a in operands(op) if a in sums | terms]:
            expr = op.expr.subs(sym(arg), ops[arg].expr).expand()
            op = Elementwise(expr, tuple(dict.fromkeys((*(a for a in op.args if a != arg), *ops[arg].args))))
        ops[target] = op
    return tuple(replace(s, op=ops[t]) for t, s in made.items() if t not in sums | terms)


def _multiplies(statement: Statement, tile: Tile) -> bool:
    """Whether it is a product of `tile` and another tile as wide."""
    products = as_products(statement)
    return products is not None and len(products) == 1 and tile in products[0].wide and len(products[0].wide) > 1


def as_products(statement: Statement) -> list[Product] | None:
    """The statement as a sum of products of wide tiles, if it is one."""
    if not isinstance(statement.op, Elementwise) or len(statement.target.axes) < 2:
        return None
    wide = {sym(a): a for a in statement.op.args if a.axes == statement.target.axes}
    products = []
    for term in statement.op.expr.as_ordered_terms():
        product = Product(ONE, [])
        for factor in term.as_ordered_factors():
            if factor in wide:
                product.wide.append(wide[factor])
            else:
                product.rest = product.rest * factor
        if product.rest.free_symbols & set(wide):
            return None
        products.append(product)
    return products


def _most_common(sums: dict[Tile, list[Product]], place: dict[Tile, int]) -> Pair | None:
    """The pair of tiles that most products have in common, if two have one; of several the one that is known last:
    what it makes takes the place of a tile that nobody else may want, the others are at hand for longer anyway."""
    count = Counter(
        pair
        for own in sums.values()
        for product in own
        for pair in combinations(sorted(product.wide, key=lambda t: t.name), 2)
    )
    pair, times = max(count.items(), key=lambda item: (item[1], max(place[x] for x in item[0])), default=(None, 0))
    return pair if times > 1 else None


def _is_just(products: list[Product], rest: Expr, pair: Pair) -> bool:
    return (
        len(products) == 1
        and products[0].rest == rest
        and sorted(t.name for t in products[0].wide) == [t.name for t in pair]
    )


def _statement(target: Tile, sums: dict[Tile, list[Product]], origin: dict[Tile, str], known: dict) -> Statement:
    total = ZERO
    for product in sums[target]:
        term = product.rest
        for tile in product.wide:
            term = term * sym(tile)
        total = total + term
    args = tuple(sorted((known[s] for s in total.free_symbols), key=lambda t: t.name))
    return Statement(target, Elementwise(total, args), origin[target])
