"""Tile program -> its adjoint, by reverse-mode differentiation: one rule an operation, none for a rule or family.

The result holds the forward statements followed by the adjoint ones, so that whatever the adjoint needs of the
forward pass can be recomputed or loaded; which of the two is the scheduler's choice. Cotangents that come from
matrix products stay one chain of `Contract(..., add=...)`, which a backend accumulates in place.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial

from ttrc import symbolic
from ttrc.ir.tile import (
    GIVEN,
    UNKNOWN,
    Attend,
    Carry,
    Compose,
    Conjugate,
    Contract,
    CumulativeSum,
    Decayed,
    Difference,
    Elementwise,
    Further,
    Inverse,
    Joint,
    Largest,
    LinearScan,
    Mask,
    Normaliser,
    Program,
    Reduce,
    Relabel,
    Relation,
    Root,
    RunningSum,
    Solve,
    Statement,
    Substitute,
    Tile,
    Written,
    operands,
)
from ttrc.passes.builder import Builder, sym
from ttrc.symbolic import symbol


def differentiate_tile(forward: Program) -> Program:
    """Inputs gain the outputs' cotangents; outputs are the cotangents of the inputs that carry one."""
    cotangents = tuple(Tile(f"d_{name}", tile.axes) for name, tile in forward.outputs)
    leaving = tuple(Tile(f"d_{c.state.name}_next", c.state.axes) for c in forward.carries)
    build = Builder((*forward.inputs, *cotangents, *leaving, *(c.state for c in forward.carries)), forward.statements)
    tape = _Tape(build)
    for (_, tile), cotangent in zip(forward.outputs, cotangents):
        tape.add(tile, cotangent)
    for carry, cotangent in zip(forward.carries, leaving):
        tape.add(carry.next, cotangent)
    # What the unknowns of a substitution write stands behind all of them, and is read behind all of it.
    solves = {w: s.op for s in forward.statements if isinstance(s.op, Substitute) for w in s.op.written}
    fed_back: dict[Tile, Tile] = {}
    for statement in reversed(forward.statements):
        tape.origin = f"adjoint of {statement.target.name}"
        adjoint = tape.total(statement.target)
        if adjoint is not None and statement.target in solves:
            if statement.target not in fed_back:
                op = solves[statement.target]
                adjoints = tuple(tape.total(w) for w in op.written)
                fed_back |= zip(op.written, _fed_back(tape, op, adjoints))
            adjoint = fed_back[statement.target]
        if adjoint is not None:
            _propagate(tape, statement.target, statement.op, adjoint)

    tape.origin = "gradient"
    outputs = [(f"d_{t.name}", tape.total(t)) for t in forward.inputs if t.name not in GIVEN]
    # What is added to an output has the output's cotangent, and a kernel stores what it has made.
    copies = {t: Elementwise(sym(t), (t,)) for _, t in outputs if t in cotangents}
    outputs = [(n, build.emit(n, t.axes, copies[t], tape.origin) if t in copies else t) for n, t in outputs]
    reverse = tuple(
        Carry(f"d_{c.label}", cotangent, tape.total(c.state), reverse=True, private=c.private)
        for c, cotangent in zip(forward.carries, leaving)
    )
    kept = tuple((name, tile) for name, tile in outputs if tile is not None)
    inputs, carries = (*forward.inputs, *cotangents), (*forward.carries, *reverse)
    own = {"inputs": inputs, "statements": tuple(build.statements), "carries": carries}
    return replace(forward, **own, outputs=kept, cotangents=tape.known)


def pull_back(
    build: Builder,
    statements: tuple[Statement, ...],
    result: Tile,
    cotangent: Tile,
    wanted: tuple[Tile, ...],
    origin: str,
) -> list[Tile | None]:
    """The cotangents of `wanted`, given that of `result`, which statements of the program under way make of them.

    For programs that learn: what is added is a part of the program, to be differentiated in its turn.
    """
    moved = set(wanted)
    for statement in statements:
        if moved & set(operands(statement.op)):
            moved.add(statement.target)
    tape = _Tape(build, moved)
    tape.origin = origin
    tape.add(result, cotangent)
    for statement in reversed(statements):
        if statement.target in moved and (adjoint := tape.total(statement.target)) is not None:
            _propagate(tape, statement.target, statement.op, adjoint)
    return [tape.total(tile) for tile in wanted]


@dataclass(frozen=True)
class _Product:
    """A contribution a . b over axis, not yet emitted: it joins its tile's accumulation chain."""

    a: Tile
    b: Tile
    axis: str


class _Tape:
    """Cotangent contributions by tile, and their sums.

    Plain tiles come first in a sum, products are chained onto them, those over the value axis last: a kernel that
    walks the value axis in panels then accumulates in place on top of all the rest. Where cotangents are wanted of
    some tiles only, nothing is worked out for others.
    """

    def __init__(self, build: Builder, wanted: set[Tile] | None = None):
        self.build, self.origin, self._wanted = build, "", wanted
        self._parts: dict[Tile, list] = defaultdict(list)
        self._totals: dict[Tile, Tile] = {}

    def wants(self, tile: Tile) -> bool:
        return self._wanted is None or tile in self._wanted

    def add(self, tile: Tile, part: Tile | _Product) -> None:
        if self.wants(tile):
            self._parts[tile].append(part)

    def total(self, tile: Tile) -> Tile | None:
        if tile in self._totals or not self._parts[tile]:
            return self._totals.get(tile)
        plain = [p for p in self._parts[tile] if isinstance(p, Tile)]
        products = sorted((p for p in self._parts[tile] if isinstance(p, _Product)), key=lambda p: p.axis == "v")
        build, name, total = self.build, f"d_{tile.name}", None
        if plain:
            args = {f"part{i}": p for i, p in enumerate(plain)}
            total = build.elementwise(name, sum(symbol(n) for n in args), args, self.origin, axes=tile.axes)
        for product in products:
            total = build.contract(name, product.a, product.b, product.axis, self.origin, add=total)
        self._totals[tile] = total
        return total

    @property
    def known(self) -> tuple[tuple[Tile, Tile], ...]:
        return tuple(self._totals.items())

    def elementwise(self, name: str, expr, args: tuple[Tile, ...]) -> Tile:
        return self.build.make(name, expr, *args, origin=self.origin)


def _fed_back(tape: _Tape, op: Substitute, adjoints: tuple[Tile, ...]) -> tuple[Tile, ...]:
    """The whole cotangents z of what a substitution writes: every row is read by the unknowns of later ones.

    With J_i the Jacobian of what x_i writes, row by row, z_i = adjoints[i] - sum_j A_ji' (J_j' z_j): a substitution,
    and linear.
    """

    def pulled_back(number: int, z: Tile) -> Tile | None:
        inner = _Tape(tape.build)
        inner.add(op.written[number], z)
        for statement in reversed(op.bodies[number]):
            inner.origin = f"adjoint of {statement.target.name}"
            part = inner.total(statement.target)
            if part is not None:
                _propagate(inner, statement.target, statement.op, part)
        return inner.total(op.unknowns[number])

    names = [f"d_{w.name}_fed_back" for w in op.written]
    writes = [partial(pulled_back, number) for number in range(len(names))]
    return tape.build.substitute(names, op.matrices, adjoints, writes, not op.transposed, op.in_turn, tape.origin)


def _add_row(tape: _Tape, target: Tile, op: Substitute, number: int, adjoint: Tile) -> None:
    """Of one unknown of a substitution, whose adjoint came by way of what it writes."""
    build, origin = tape.build, tape.origin
    tape.add(op.bases[number], adjoint)
    for other, written in enumerate(op.written):
        matrix, own = op.matrix(number, other), op.sees_own(number, other)
        name = f"d_{matrix.name}_via_{target.name}"
        row, column = (written, adjoint) if op.transposed else (adjoint, written)
        outer = build.contract(name, row, build.relabel(column, origin), "v", origin)
        negative = tape.elementwise(name, -sym(outer), (outer,))
        tape.add(matrix, build.mask(name, negative, Relation.CAUSAL if own else Relation.STRICT, 0.0, origin))


def _propagate(tape: _Tape, target: Tile, op, adjoint: Tile) -> None:
    build, origin = tape.build, tape.origin

    def via(arg: Tile) -> str:
        return f"d_{arg.name}_via_{target.name}"

    match op:
        case Elementwise(expr, args):
            for arg in filter(tape.wants, args):
                slope = symbolic.in_terms_of(symbolic.derivative(expr, sym(arg)), expr, sym(target))
                if slope == 0:
                    continue
                part = tape.elementwise(via(arg), sym(adjoint) * slope, (*args, adjoint, target))
                tape.add(arg, build.reduce(via(arg), part, arg.axes, origin))
        case Contract(a, b, axis, add):
            (from_a,) = set(a.axes) - {axis}
            (from_b,) = set(b.axes) - {axis}
            tape.add(a, _Product(adjoint, b, from_b))
            tape.add(b, _Product(a, adjoint, from_a))
            if add is not None:
                tape.add(add, adjoint)
        case Compose(a, b, False, False):
            tape.add(a, build.compose(via(a), adjoint, b, origin, b_transposed=True))
            tape.add(b, build.compose(via(b), a, adjoint, origin, a_transposed=True))
        case Decayed(a, b, axis, steps, own) if op.pairs or axis == "s":
            below = build.mask(f"d_{target.name}_below", adjoint, Relation.STRICT, 0.0, origin) if op.pairs else adjoint
            factors = (below, a) if op.pairs else (a, adjoint)
            d_a = build.decayed(via(a), below, b, "s" if op.pairs else op.channel, steps, own, origin)
            d_b = build.decayed(via(b), *factors, "t", steps, own, origin)
            tape.add(a, d_a)
            tape.add(b, d_b)
            end, d_end = (a, d_a) if op.pairs else (target, adjoint)
            row = tape.elementwise(via(steps), sym(end) * sym(d_end), (end, d_end))
            column = build.relabel(tape.elementwise(via(steps), -sym(b) * sym(d_b), (b, d_b)), origin)
            # Exponents are differences of running sums, which the program has: one sum backwards for all that they do.
            sums = next(s.target for s in build.statements if s.op == CumulativeSum(steps, reverse=False))
            tape.add(sums, row)
            tape.add(sums, column)
            if not own:
                tape.add(steps, tape.elementwise(via(steps), -sym(row), (row,)))
        case Compose() | Decayed():
            raise AssertionError("products transposed, or summed over the tokens that read, stand in adjoints alone")
        case Reduce(arg):
            tape.add(arg, build.elementwise(via(arg), sym(adjoint), {adjoint.name: adjoint}, origin, arg.axes))
        case Largest():
            pass  # a shift that cancels: see there
        case Mask(arg, relation, _):
            masked = build.mask(via(arg), adjoint, relation, 0.0, origin)
            tape.add(arg, build.reduce(via(arg), masked, arg.axes, origin))
        case CumulativeSum(arg, reverse, exclusive):
            tape.add(arg, build.cumulative_sum(via(arg), adjoint, origin, not reverse, exclusive))
        case LinearScan(decay, write, start, reverse):
            # What comes back to what each token leaves behind is the same scan the other way.
            behind = build.linear_scan(via(write), decay, adjoint, None, origin, not reverse)
            tape.add(write, behind)
            tape.add(decay, tape.elementwise(via(decay), sym(behind) * sym(target), (behind, target)))
            if start is not None:
                back = tape.elementwise(via(start), sym(adjoint) + sym(decay) * sym(behind), (adjoint, decay, behind))
                back = build.mask(via(start), back, Relation.LAST if reverse else Relation.FIRST, 0.0, origin)
                tape.add(start, build.reduce(via(start), back, start.axes, origin))
        case Relabel(arg):
            swap = {new: old for old, new in zip(arg.axes, target.axes) if old != new}
            tape.add(arg, build.relabel(adjoint, origin, swap))
        case Solve(matrix, rhs, transposed):
            multiplier = build.solve(via(rhs), matrix, adjoint, not transposed, origin)
            tape.add(rhs, multiplier)
            row, column = (target, multiplier) if transposed else (multiplier, target)
            outer = build.contract(via(matrix), row, build.relabel(column, origin), "v", origin)
            negative = tape.elementwise(via(matrix), -sym(outer), (outer,))
            tape.add(matrix, build.mask(via(matrix), negative, Relation.STRICT, 0.0, origin))
        case Joint(0, systems, rhs, False):  # the first of several, so that all of them have their cotangents by now
            unknowns = [build.emit(target.name, target.axes, replace(op, number=i), origin) for i in range(len(rhs))]
            adjoints = tuple(tape.total(u) for u in unknowns)
            multipliers = build.joint([via(r) for r in rhs], systems, adjoints, True, origin)
            for number, (row, multiplier) in enumerate(zip(systems, multipliers)):
                tape.add(rhs[number], multiplier)
                for other, (matrix, unknown) in enumerate(zip(row, unknowns)):
                    outer = build.contract(via(matrix), multiplier, build.relabel(unknown, origin), "v", origin)
                    negative = tape.elementwise(via(matrix), -sym(outer), (outer,))
                    relation = Relation.STRICT if other >= number else Relation.CAUSAL
                    tape.add(matrix, build.mask(via(matrix), negative, relation, 0.0, origin))
        case Joint(transposed=False):
            pass  # see the first
        case Joint():
            raise AssertionError("transposed systems stand in adjoints alone")
        case Root(pull, base, args):  # the implicit function theorem: (1 + pull') dx = d base - d pull
            slope, *slopes = (
                symbolic.renamed(symbolic.derivative(pull, x), {UNKNOWN: sym(target)})
                for x in (symbolic.symbol(UNKNOWN), *map(sym, args))
            )
            # On its own: of an adjoint that is fed back, the part that stays the same.
            share = tape.elementwise(f"{target.name}_share", 1 / (1 + slope), (*args, target))
            back = tape.elementwise(via(base), sym(adjoint) * sym(share), (adjoint, share))
            tape.add(base, back)
            for arg, moved in zip(args, slopes):
                part = tape.elementwise(via(arg), -sym(back) * moved, (*args, target, back))
                tape.add(arg, build.reduce(via(arg), part, arg.axes, origin))
        case Conjugate(rhs, diagonal):
            # With A y = adjoint, y is the cotangent of rhs, and what A is made of has that of A x, taken at x by -y.
            y = build.emit(via(rhs), target.axes, Conjugate(adjoint, diagonal, op.unknown, op.body), origin)
            tape.add(rhs, y)
            again = build.again(op.body, {op.unknown: target})
            made = {again[s.target] for s in op.body}
            statements = tuple(s for s in build.statements if s.target in made)
            negative = tape.elementwise(f"{via(rhs)}_negative", -sym(y), (y,))
            wanted = tuple(t for t in op.outside if tape.wants(t))
            for tile, part in zip(wanted, pull_back(build, statements, again[op.applied], negative, wanted, origin)):
                if part is not None:
                    tape.add(tile, part)
        case Substitute():
            _add_row(tape, target, op, 0, adjoint)
        case Further(first, number):
            (op,) = (s.op for s in build.statements if s.target == first)
            _add_row(tape, target, op, number, adjoint)
        case RunningSum(arg, reverse):
            tape.add(arg, build.emit(via(arg), arg.axes, RunningSum(adjoint, not reverse), origin))
        case Difference(rows, columns):
            tape.add(rows, build.reduce(via(rows), adjoint, rows.axes, origin))
            total = build.reduce(via(columns), adjoint, columns.axes, origin)
            tape.add(columns, tape.elementwise(via(columns), -sym(total), (total,)))
        case Attend(logits, normaliser, values, rest):  # the normaliser's share is in it
            weights = tape.elementwise("weights", symbolic.exp(sym(logits) - sym(normaliser)), (logits, normaliser))
            tape.add(values, _Product(weights, adjoint, "t"))
            (channels,) = set(values.axes) - {"s"}
            towards = build.contract("d_weights", adjoint, values, channels, origin)
            along = build.reduce(
                "delta", tape.elementwise("o_d_o", sym(target) * sym(adjoint), (target, adjoint)), ("t",), origin
            )
            tape.add(
                logits,
                tape.elementwise(via(logits), sym(weights) * (sym(towards) - sym(along)), (weights, towards, along)),
            )
            if rest is not None:
                part = -symbolic.exp(sym(rest) - sym(normaliser)) * sym(along)
                tape.add(rest, tape.elementwise(via(rest), part, (rest, normaliser, along)))
        case Normaliser(logits, rest):  # of what else than Attend goes by it: see there
            valid = build.mask(f"{target.name}_valid", target, Relation.VALID, float("inf"), origin)
            weights = tape.elementwise("weights", symbolic.exp(sym(logits) - sym(valid)), (logits, valid))
            tape.add(logits, tape.elementwise(via(logits), sym(weights) * sym(adjoint), (weights, adjoint)))
            if rest is not None:
                part = symbolic.exp(sym(rest) - sym(valid)) * sym(adjoint)
                tape.add(rest, tape.elementwise(via(rest), part, (rest, valid, adjoint)))
        case Inverse(matrix):
            half = build.compose(via(matrix), target, adjoint, origin, a_transposed=True)
            whole = build.compose(via(matrix), half, target, origin, b_transposed=True)
            negative = tape.elementwise(via(matrix), -sym(whole), (whole,))
            tape.add(matrix, build.mask(via(matrix), negative, Relation.STRICT, 0.0, origin))
        case Written():
            raise AssertionError("written rows are read back after differentiation, never before")
