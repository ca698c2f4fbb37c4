"""Builds tile programs: fresh names, axis bookkeeping, and one statement for equal right-hand sides."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from ttrc import symbolic
from ttrc.ir.axes import ordered
from ttrc.ir.tile import (
    UNKNOWN,
    Compose,
    Conjugate,
    Contract,
    CumulativeSum,
    Decayed,
    Elementwise,
    Further,
    Hidden,
    Inverse,
    Joint,
    Largest,
    LinearScan,
    Mask,
    Op,
    Reduce,
    Relabel,
    Relation,
    Root,
    Solve,
    Statement,
    Substitute,
    Tile,
    Window,
    operands,
    row_axes,
)
from ttrc.passes.slice_program import renamed_operands, slice_program
from ttrc.symbolic import Expr

ROLES = {"t": "s", "s": "t"}
CHANNELS = {"k": "v", "v": "k"}
CHANNELS_OF_KEYS = {"k": "j", "j": "k"}


class Builder:
    """Statements in order; asking twice for the same operation gives the same tile."""

    def __init__(self, inputs: tuple[Tile, ...], statements: tuple[Statement, ...] = ()):
        self.statements: list[Statement] = list(statements)
        self._names = {t.name for t in inputs} | {s.target.name for s in statements}
        self._known: dict[tuple, Tile] = {(s.op, s.target.axes): s.target for s in statements}

    @classmethod
    def beside(cls, statements: tuple[Statement, ...]) -> Builder:
        """With no statements yet, and none of the names that these use."""
        return cls(tuple({t for s in statements for t in (s.target, *operands(s.op))}))

    def fresh(self, name: str) -> str:
        candidates = itertools.chain((name,), (f"{name}_{i}" for i in itertools.count(2)))
        free = next(c for c in candidates if c not in self._names)
        self._names.add(free)
        return free

    def tile(self, name: str, axes) -> Tile:
        return Tile(self.fresh(name), ordered(axes))

    def emit(self, name: str, axes, op: Op, origin: str) -> Tile:
        axes = ordered(axes)
        known = self._known.get((op, axes))
        if known is not None:
            return known
        target = Tile(self.fresh(name), axes)
        self.statements.append(Statement(target, op, origin))
        self._known[(op, axes)] = target
        return target

    def elementwise(self, name: str, expr: Expr, args: dict[str, Tile], origin: str, axes=()) -> Tile:
        """expr over symbols called as in args, renamed to the tiles they stand for; broadcast to `axes` as well."""
        used = {n: t for n, t in args.items() if n in symbolic.names(expr)}
        axes = ordered({a for t in used.values() for a in t.axes} | set(axes))
        used = {n: self._narrowest(t) for n, t in used.items()}
        expr = symbolic.renamed(expr, {n: sym(t) for n, t in used.items()})
        for tile in used.values():
            if expr == sym(tile) and tile.axes == axes:
                return tile
        expr, operands = self._hoist(name, expr, set(used.values()), axes, origin)
        return self.emit(name, axes, Elementwise(expr, tuple(sorted(operands, key=lambda t: t.name))), origin)

    def _narrowest(self, tile: Tile) -> Tile:
        """What a tile repeats along an axis, where that is all it is: rows and columns take no registers of a tile."""
        made = next((s.op for s in self.statements if s.target == tile), None)
        match made:
            case Elementwise(expr, (arg,)) if expr == sym(arg):
                return self._narrowest(arg)
        return tile

    def make(self, name: str, expr: Expr, *args: Tile, origin: str) -> Tile:
        """expr over the names of args."""
        return self.elementwise(name, expr, {t.name: t for t in args}, origin)

    def _hoist(self, name: str, expr: Expr, used: set[Tile], axes, origin: str) -> tuple[Expr, set[Tile]]:
        """Factors of a product, and arguments, that need fewer axes than the whole are worked out once, on those."""
        by_symbol = {sym(t): t for t in used}

        def axes_of(part: Expr) -> tuple[str, ...]:
            return ordered({a for s in part.free_symbols for a in by_symbol[s].axes})

        for own in sorted({t.axes for t in used if len(t.axes) < len(axes)}):

            def belongs(part: Expr, own=own) -> bool:
                return set(axes_of(part)) <= set(own)

            def made(part: Expr, used=used) -> Expr:
                return sym(self.make(f"{name}_factor", part, *used, origin=origin))

            expr = symbolic.group_arguments(symbolic.group_factors(expr, belongs, made), belongs, made)
            used |= {s.target for s in self.statements if sym(s.target) in expr.free_symbols}
            by_symbol |= {sym(t): t for t in used}
        return expr, {by_symbol[s] for s in expr.free_symbols}

    def contract(self, name: str, a: Tile, b: Tile, axis: str, origin: str, add: Tile | None = None) -> Tile:
        """The sum over the axis of a times b, and `add`; as a product of matrices where both are matrices."""
        axes = (set(a.axes) | set(b.axes)) - {axis}
        if len(axes) < 2:
            terms = self.make(f"{name}_terms", sym(a) * sym(b), a, b, origin=origin)
            total = self.reduce(name if add is None else f"{name}_share", terms, axes, origin)
            return total if add is None else self.make(name, sym(total) + sym(add), total, add, origin=origin)
        return self.emit(name, axes, Contract(a, b, axis, add), origin)

    def constant(self, name: str, value: Expr, axes, origin: str) -> Tile:
        return self.emit(name, axes, Elementwise(value, ()), origin)

    def compose(self, name: str, a: Tile, b: Tile, origin: str, a_transposed=False, b_transposed=False) -> Tile:
        return self.emit(name, ("t", "s"), Compose(a, b, a_transposed, b_transposed), origin)

    def decayed(self, name: str, a: Tile, b: Tile, axis: str, steps: Tile, own: bool, origin: str) -> Tile:
        op = Decayed(a, b, axis, steps, own)
        axes = ("t", "s") if op.pairs else ("t" if axis == "s" else "s", op.channel)
        return self.emit(name, axes, op, origin)

    def reduce(self, name: str, arg: Tile, keep, origin: str) -> Tile:
        return arg if ordered(keep) == arg.axes else self.emit(name, keep, Reduce(arg), origin)

    def largest(self, name: str, arg: Tile, keep, origin: str) -> Tile:
        return self.emit(name, keep, Largest(arg), origin)

    def mask(self, name: str, arg: Tile, relation: Relation | Hidden | Window, fill: float, origin: str) -> Tile:
        axes = arg.axes
        if relation is Relation.VALID and "s" not in axes:
            axes = {"t", *axes}
        return self.emit(name, axes, Mask(arg, relation, fill), origin)

    def once(self, arg: Tile, origin: str) -> Tile:
        """What a chunk holds for each of its tokens, where it is the same for all: a parameter, [t, ..] to [..]."""
        if "t" not in arg.axes:
            return arg
        first = self.mask(f"{arg.name}_first", arg, Relation.FIRST, 0.0, origin)
        return self.reduce(f"{arg.name}_once", first, row_axes(arg), origin)

    def cumulative_sum(self, name: str, arg: Tile, origin: str, reverse: bool = False, exclusive: bool = False) -> Tile:
        return self.emit(name, arg.axes, CumulativeSum(arg, reverse, exclusive), origin)

    def linear_scan(self, name: str, decay: Tile, write: Tile, start: Tile | None, origin: str, reverse=False) -> Tile:
        return self.emit(name, write.axes, LinearScan(decay, write, start, reverse), origin)

    def relabel(self, arg: Tile, origin: str, swap: dict[str, str] = ROLES) -> Tile:
        """arg under the other token axis, or the other channels'; doing it twice gives arg back."""
        axes = tuple(swap.get(a, a) for a in arg.axes)
        for statement in self.statements:
            if statement.target == arg and isinstance(statement.op, Relabel) and statement.op.arg.axes == axes:
                return statement.op.arg
        changed = next(new for old, new in zip(arg.axes, axes) if old != new)
        return self.emit(f"{arg.name}_{changed}", axes, Relabel(arg), origin)

    def solve(self, name: str, matrix: Tile, rhs: Tile, transposed: bool, origin: str) -> Tile:
        return self.emit(name, rhs.axes, Solve(matrix, rhs, transposed), origin)

    def joint(
        self,
        names: list[str],
        systems: tuple[tuple[Tile, ...], ...],
        rhs: tuple[Tile, ...],
        transposed: bool,
        origin: str,
    ) -> list[Tile]:
        return [
            self.emit(n, r.axes, Joint(i, systems, rhs, transposed), origin) for i, (n, r) in enumerate(zip(names, rhs))
        ]

    def substitute(
        self,
        names: list[str],
        matrices: tuple[tuple[Tile, ...], ...],
        bases: tuple[Tile, ...],
        writes: list[Callable[[Tile], Tile | None]],
        transposed: bool,
        in_turn: bool,
        origin: str,
    ) -> tuple[Tile, ...]:
        """x_i = bases[i] - sum_j A_ij w_j(x_j), see Substitute, where writes[j](x_j) states w_j.

        What w_j are made of stays in the program too, behind the x, and is there w_j of the solution. Where one turns
        out to be 0 (None), its unknown is no part of the system, but made of what is.
        """
        unknowns = tuple(self.tile(name, base.axes) for name, base in zip(names, bases))
        start = len(self.statements)
        written = [write(x) for write, x in zip(writes, unknowns)]
        new = self.statements[start:]
        hanging = [_hanging(new, x) for x in unknowns]
        self.statements[start:] = [s for s in new if not any(s.target in h for h in hanging)]
        own = [i for i, w in enumerate(written) if w is not None]
        gone = {t for i, h in enumerate(hanging) if i not in own for t in h}
        self._known = {key: tile for key, tile in self._known.items() if tile not in gone}
        if own:
            bodies = [tuple(s for s in new if s.target in hanging[i]) for i in own]
            table, starts = tuple(tuple(matrices[i][j] for j in own) for i in own), tuple(bases[i] for i in own)
            parts = tuple(slice_program(body, [written[i]]) for i, body in zip(own, bodies))
            first, *rest = solved = tuple(unknowns[i] for i in own)
            op = Substitute(table, starts, solved, parts, transposed, in_turn and bool(rest))
            self.statements.append(Statement(first, op, origin))
            self.statements += [Statement(x, Further(first, number), origin) for number, x in enumerate(rest, 1)]
            self.statements += [s for body in bodies for s in body]
        found = dict(zip(unknowns, bases)) | {unknowns[i]: unknowns[i] for i in own}
        for i in (i for i in range(len(unknowns)) if i not in own):
            for j in own:
                assert transposed, "every error that is not affine hangs on its prediction"
                found[unknowns[i]] = self.less_turned(found[unknowns[i]], matrices[j][i], written[j], origin)
        return tuple(found.values())

    def less_turned(self, base: Tile, tile: Tile, x: Tile, origin: str) -> Tile:
        """base - tile' x, a product that goes on from base."""
        negative = self.elementwise(f"{x.name}_negative", -sym(x), {x.name: x}, origin)
        column = self.contract(f"{base.name}_s", tile, negative, "t", origin, add=self.relabel(base, origin))
        return self.relabel(column, origin)

    def root(self, name: str, pull: Expr, unknown: str, base: Tile, args: dict[str, Tile], origin: str) -> Tile:
        """x with x + pull(x) = base; `unknown` is what pull calls x, the rest of its symbols are called as in args."""
        used = {n: t for n, t in args.items() if n in symbolic.names(pull)} | {unknown: Tile(UNKNOWN, base.axes)}
        pull = symbolic.renamed(pull, {n: sym(t) for n, t in used.items()})
        pull, operands = self._hoist(name, pull, set(used.values()), base.axes, origin)
        args = tuple(sorted((t for t in operands if t.name != UNKNOWN), key=lambda t: t.name))
        return self.emit(name, base.axes, Root(pull, base, args), origin)

    def conjugate(self, name: str, rhs: Tile, diagonal: Tile, apply: Callable[[Tile], Tile], origin: str) -> Tile:
        """x with apply(x) = rhs, see Conjugate. What its body makes without x stands in front of it."""
        unknown, start = self.tile(f"{name}_tried", rhs.axes), len(self.statements)
        known = dict(self._known)
        last = apply(unknown)
        new = self.statements[start:]
        hanging = _hanging(new, unknown)
        self.statements[start:] = [s for s in new if s.target not in hanging]
        self._known = known | {key: t for key, t in self._known.items() if t not in hanging}
        body = slice_program(tuple(s for s in new if s.target in hanging), [last])
        return self.emit(name, rhs.axes, Conjugate(rhs, diagonal, unknown, body), origin)

    def again(self, statements: tuple[Statement, ...], other: dict[Tile, Tile]) -> dict[Tile, Tile]:
        """The same statements of other tiles, as a part of the program; says what each tile is there."""
        for statement in statements:
            op = renamed_operands(statement.op, other)
            name = f"{statement.target.name}_again"
            if isinstance(op, Relabel):
                (swap,) = [{a: b, b: a} for a, b in zip(op.arg.axes, statement.target.axes) if a != b]
                other |= {statement.target: self.relabel(op.arg, statement.origin, swap)}
            else:
                other |= {statement.target: self.emit(name, statement.target.axes, op, statement.origin)}
        return other

    def inverse(self, matrix: Tile, origin: str) -> Tile:
        return self.emit("inverse", matrix.axes, Inverse(matrix), origin)


def _hanging(statements: list[Statement], tile: Tile) -> set[Tile]:
    """The tile, and what is made of it."""
    found = {tile}
    for statement in statements:
        if found & set(operands(statement.op)):
            found.add(statement.target)
    return found


def sym(tile: Tile) -> symbolic.Symbol:
    """The symbol that stands for a tile inside elementwise expressions."""
    return symbolic.symbol(tile.name)
