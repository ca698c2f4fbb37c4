"""A chunk's program -> the part of it that is linear in the entering states: how these alone cross a chunk.

Where a program is affine in its states, S_next = T S + B, this is T; a piece of a sequence is then affine as well, and
pieces that ran side by side, each from empty states, can be composed afterwards. Where no entry of a state has a say in
another, T is a number for each, and the same for all entries along the axes that none of these numbers has: what is
carried then has not got them either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional, Union

from ttrc import symbolic
from ttrc.ir.axes import Axes, ordered
from ttrc.ir.crossing import Crossing
from ttrc.ir.obstacle import Uncut
from ttrc.ir.tile import (
    Carry,
    Contract,
    CumulativeSum,
    Elementwise,
    LinearScan,
    Mask,
    Op,
    Program,
    Reduce,
    Relabel,
    Statement,
    Tile,
    operands,
)
from ttrc.passes.builder import Builder, sym
from ttrc.passes.slice_program import slice_program

TOKENS = ("t", "s")
NOTHING = Elementwise(symbolic.ZERO, ())


@dataclass(frozen=True)
class Moved:
    """`program` carries the factors of one group's states over a chunk."""

    program: Program
    crossing: Crossing


def linearize_tile(program: Program) -> Union[Moved, Uncut]:
    """Private states start with what a state is where a piece starts: a caller has none of them."""
    handed = tuple(c for c in program.carries if not c.private)
    states = tuple(c.state for c in handed)
    whole = _Tangents(program, {c.state: c.state for c in program.carries})
    if whole.following is None:
        return Uncut.NOT_AFFINE
    groups = _groups(program.carries, whole)
    body = whole.body(tuple(whole.tangents[c.next] for c in handed))
    if not _is_elementwise(body, states):
        matrices = all(s.axes == ("k", "v") for s in states)
        if not matrices or len(groups) > 1 or _takes_values(body, tuple(whole.seeds)):
            return Uncut.BY_VALUES
        moved = whole.program(program.carries, tuple(c.state for c in program.carries))
        return Moved(moved, Crossing(states, groups, ("k", "j"), products=True))
    entry = ordered({states[0].axes[0]} | _factor_axes(body, states))
    if any(s.axes[: len(entry)] != entry for s in states) or ("v" not in entry and _takes_values(body, states)):
        return Uncut.BY_VALUES
    first = tuple(Tile(s.name, entry) for s in groups[0])
    narrow = _Tangents(program, {s: own for group in groups for s, own in zip(group, first)})
    following = {c.state: narrow.tangents.get(c.next) for c in handed}
    # Groups that cross alike have made the same statements of the same tiles, which are there once.
    if len({tuple(following[s] for s in group) for group in groups}) > 1:
        return Uncut.BY_VALUES
    own = tuple(c for c in handed if c.state in groups[0])
    return Moved(narrow.program(own, first), Crossing(states, groups, entry, products=False))


class _Tangents:
    """What each statement makes of tangents of the states, where it is affine in these: of `seeds`, which may lack axes
    of the states that they stand for."""

    def __init__(self, program: Program, seeds: dict[Tile, Tile]):
        self.inputs, self.tangents, self.seeds = program.inputs, dict(seeds), frozenset(seeds.values())
        self.outside = {a for s, own in seeds.items() for a in s.axes if a not in own.axes}
        self.build = Builder((*program.inputs, *seeds), program.statements)
        self.made = {s.target: s.op for s in program.statements}
        goals = [c.next for c in program.carries]
        affine = all(map(self._push, slice_program(program.statements, goals, frozenset(seeds))))
        found = [self.tangents.get(t) for t in goals]
        self.following: Optional[tuple[Tile, ...]] = tuple(found) if affine and None not in found else None

    def body(self, following: tuple[Tile, ...]) -> tuple[Statement, ...]:
        return slice_program(tuple(self.build.statements), following, self.seeds)

    def program(self, carries: tuple[Carry, ...], seeds: tuple[Tile, ...]) -> Program:
        following = tuple(self.tangents[c.next] for c in carries)
        moved = tuple(replace(c, state=own, next=t) for c, own, t in zip(carries, seeds, following))
        return Program(self.inputs, self.body(following), moved, ())

    def _push(self, statement: Statement) -> bool:
        """Adds the tangent of what a statement makes, if it depends on states; False where it is not affine in them."""
        moved = [t for t in operands(statement.op) if t in self.tangents]
        if not moved:
            return True
        tangent = self._tangent(statement, statement.op, moved)
        if tangent is None:
            return False
        self.tangents[statement.target] = tangent
        return True

    def _tangent(self, statement: Statement, op: Op, moved: list[Tile]) -> Optional[Tile]:
        build, tangents, origin = self.build, self.tangents, statement.origin
        name, axes = f"{statement.target.name}_moved", self._left(statement.target.axes)
        match op:
            case Elementwise(expr, args):
                expr, args = self._inlined(expr, args, axes)
                slopes = {t: symbolic.derivative(expr, sym(t)) for t in moved}
                if any(sym(t) in slope.free_symbols for slope in slopes.values() for t in moved):
                    return None
                tangent = sum((slope * sym(tangents[t]) for t, slope in slopes.items()), symbolic.ZERO)
                given = {t.name: t for t in (*args, *(tangents[t] for t in moved))}
                return build.elementwise(name, tangent, given, origin, axes)
            case Contract(a, b, axis, add):
                if a in tangents and b in tangents:
                    return None
                start = tangents.get(add) if add is not None else None
                if a not in tangents and b not in tangents:
                    return start
                return build.contract(name, tangents.get(a, a), tangents.get(b, b), axis, origin, add=start)
            case LinearScan(decay, write, start) if decay not in tangents:
                nothing = build.emit("nothing", axes, NOTHING, origin)
                start = tangents.get(start)
                return build.emit(name, axes, replace(op, write=tangents.get(write, nothing), start=start), origin)
            case Mask():
                return build.emit(name, axes, replace(op, arg=tangents[op.arg], fill=0.0), origin)
            case Reduce() | CumulativeSum() | Relabel():
                return build.emit(name, axes, replace(op, arg=tangents[op.arg]), origin)
        return None

    def _inlined(self, expr: symbolic.Expr, args: tuple[Tile, ...], axes: Axes):
        """Factors that were worked out apart for they have fewer axes than a state, and have no fewer than what is
        left of it."""
        if self.outside:
            for tile in args:
                made = self.made.get(tile)
                if isinstance(made, Elementwise) and tile not in self.tangents and tile.axes == axes:
                    expr = symbolic.in_terms_of(expr, sym(tile), made.expr)
                    args = (*(t for t in args if t != tile), *made.args)
        return expr, args

    def _left(self, axes: Axes) -> Axes:
        return tuple(a for a in axes if a not in self.outside)


def _groups(carries: tuple[Carry, ...], whole: _Tangents) -> tuple[tuple[Tile, ...], ...]:
    """States that hang on one another, each with the others, in the order in which they are carried. Private ones hang
    on these, and are left out."""
    groups: list[set[Tile]] = []
    for c, following in zip(carries, whole.following):
        used = {t for s in whole.body((following,)) for t in operands(s.op)} | {following}
        own = {c.state} | (used & whole.seeds)
        groups = [g for g in groups if not g & own] + [own.union(*(g for g in groups if g & own))]
    handed = [c.state for c in carries if not c.private]
    found = [tuple(s for s in handed if s in group) for group in groups]
    return tuple(sorted(found, key=lambda group: handed.index(group[0])))


def _is_elementwise(body: tuple[Statement, ...], states: tuple[Tile, ...]) -> bool:
    """Whether each entry of a state crosses on its own: nothing that depends on it is in a product, or in a sum but
    over tokens."""
    for statement, _ in _hanging(body, states):
        match statement.op:
            case Elementwise() | LinearScan() | CumulativeSum() | Mask():
                pass
            case Reduce(arg) if set(arg.axes) - set(statement.target.axes) <= set(TOKENS):
                pass
            case _:
                return False
    return True


def _factor_axes(body: tuple[Statement, ...], states: tuple[Tile, ...]) -> set[str]:
    """The channels by which differs what states, and what is made of them, meet."""
    met = [t for statement, moved in _hanging(body, states) for t in operands(statement.op) if t not in moved]
    return {a for t in met if not _is_nothing(t, body) for a in t.axes} - set(TOKENS)


def _is_nothing(tile: Tile, body: tuple[Statement, ...]) -> bool:
    return any(s.target == tile and s.op == NOTHING for s in body)


def _takes_values(body: tuple[Statement, ...], states: tuple[Tile, ...]) -> bool:
    """Whether it takes what comes with value channels, beside the states: these stand for other columns here."""
    hanging = {*states, *(s.target for s, _ in _hanging(body, states))}
    return any("v" in t.axes for s in body for t in operands(s.op) if t not in hanging and not _is_nothing(t, body))


def _hanging(body: tuple[Statement, ...], states: tuple[Tile, ...]) -> list[tuple[Statement, set[Tile]]]:
    """The statements that depend on states, each with what so far does."""
    moved, found = set(states), []
    for statement in body:
        if moved & set(operands(statement.op)):
            moved.add(statement.target)
            found.append((statement, set(moved)))
    return found
