"""A kernel's code -> pieces that run once a chunk and loops over panels of an axis, in turn.

A product or sum over that axis belongs to a loop, and is known once that has ended. What a loop needs of
another's panel it works out again: panels are cheap to make, registers are not there to keep them.

Parallel kernels walk the value axis, where decays differ by key channel the key axis, and scans of deep memories their
hidden one. There what is a product for each token takes a panel of weights to make again, which is much longer: it
waits in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ttrc.ir.tile import HIDDEN, Contract, Decayed, Elementwise, Statement, Tile, operands
from ttrc.passes.add_afterwards import add_afterwards
from ttrc.passes.add_in_turn import add_in_turn
from ttrc.passes.builder import Builder, sym
from ttrc.passes.do_first import done_first, is_whole
from ttrc.passes.group_sums import group_sums
from ttrc.passes.narrow_factors import Narrow
from ttrc.passes.order_statements import order_statements
from ttrc.passes.slice_program import names_of, slice_program

TYPICAL = {"t": 64, "s": 64, "k": 128, "j": 128, "v": 32}  # axes as long as they mostly are, to compare registers
WIDE = TYPICAL | {"k": 256, "j": 256}
DEEP = {"t": 16, "s": 16, "k": 128, "j": 128, "v": 128}
BY_KEY = {"t": 64, "s": 64, "k": 32, "v": 128}


@dataclass(frozen=True)
class Piece:
    """Straight-line code; `results` are those of the wanted tiles that are known at its end, sums over panels too."""

    panelled: bool
    statements: tuple[Statement, ...]
    sums: tuple[Tile, ...]
    results: tuple[Tile, ...]


def split_panels(
    body: tuple[Statement, ...], wanted: tuple[Tile, ...], narrow: Narrow, wide_heads: bool = False, axis: str = "v"
) -> tuple[Piece, ...]:
    body = add_afterwards(body, axis) if axis == "k" else body
    groups = group_sums(body, wanted, axis)
    body = _add_early(body, groups, axis)
    made = frozenset(s.target for s in body)
    once = frozenset(t for t in made if axis not in t.axes)
    panels, at_hand = [], once
    for group in groups:
        panels.append(slice_program(body, group, at_hand - set(group)))
        if axis in HIDDEN:
            at_hand |= {s.target for s in panels[-1] if _is_kept(s, axis)}
    place = _places(body, groups, panels, narrow, wide_heads, axis)
    place |= {t: 0 for t in wanted if t not in made and axis not in t.axes}
    place |= dict.fromkeys(place.keys() & done_first(body, wanted), 0) if axis == "v" else {}
    pieces = []
    for number in range(len(groups) + 1):
        code = tuple(s for s in body if place.get(s.target) == number)
        pieces.append((False, code, (), [t for t in wanted if place.get(t) == number]))
        if number < len(groups):
            totals = tuple(t for t in groups[number] if t in once)
            pieces.append((True, panels[number], totals, [t for t in wanted if t in groups[number]]))
    # Sums over hidden channels are small: nothing has to take their place at once.
    earlier = [pieces[:i] if axis == "v" else [] for i in range(len(pieces))]
    return tuple(
        _piece(*p, earlier[i], pieces[i + 1 :], narrow, axis == "k") for i, p in enumerate(pieces) if p[1] or p[3]
    )


def wait_for_panels(pieces: tuple[Piece, ...]) -> tuple[Tile, ...]:
    """What waits in memory: the wide tiles known before a loop over panels that does not read them, and read after it;
    and of panels what one loop makes and another reads."""
    names = names_of(tuple(s for p in pieces for s in p.statements))
    last: dict[Tile, int] = {}  # piece that has made a tile, and reads it no more
    aside: dict[Tile, None] = {}
    for number, piece in enumerate(pieces):
        read = {names.get(t, t) for s in piece.statements for t in operands(s.op)}
        loops = [i for i, p in enumerate(pieces[:number]) if p.panelled]
        for tile in read | set(piece.results):
            if tile in last and any(i > last[tile] for i in loops):
                aside[tile] = None
        last |= {t: number for t in last if t in read}
        local = piece.statements if not piece.panelled else [s for s in piece.statements if s.target in piece.sums]
        last |= {s.target: number for s in local if {"t", "s"} & set(s.target.axes) and s.target not in names}
    loops = [p for p in pieces if p.panelled]
    for number, loop in enumerate(loops):
        made = {s.target for s in loop.statements}
        read = {names.get(t, t) for s in loop.statements for t in operands(s.op)} - made
        before = {s.target for p in loops[:number] for s in p.statements} - {t for p in loops for t in p.sums}
        aside |= dict.fromkeys(t for p in loops for s in p.statements if (t := s.target) in read & before)
    return tuple(sorted(aside, key=lambda t: (t.axes, t.name)))


def _is_kept(statement: Statement, axis: str) -> bool:
    """Whether it makes a panel by a product for each token."""
    axes = statement.target.axes
    return isinstance(statement.op, Contract) and axis in axes and bool({"t", "s"} & set(axes))


def _piece(panelled: bool, statements, totals, results, earlier, later, narrow: Narrow, in_turn: bool) -> Piece:
    """Small results first: a sum of a tile that others need too is made while that tile is at hand. Then what is turned
    over, for it leaves the registers. Of the wide ones first what takes the place of a sum just made; then that which
    takes most work, while there is room. What is made of whole states comes behind all that is not."""
    leaving = {t for _, code, _, _ in later for s in code for t in operands(s.op)} if not panelled else set(totals)
    goals = [s.target for s in statements if s.target in leaving or s.target in results]
    needs = {t: slice_program(statements, [t]) for t in goals if len(t.axes) > 1}
    summed = {t for _, _, made, _ in earlier[-1:] for t in made if t.axes == ("t", "k")}
    from_sum = {t for t, code in needs.items() if summed & {x for s in code for x in operands(s.op)}}
    of_states = {t for t in goals if _reads_whole(statements, t)}

    decayed = [s.target for s in statements if isinstance(s.op, Decayed)]

    def order(t: Tile) -> tuple[bool, bool, float, bool, int]:
        size = len(t.axes) if t not in narrow.turned else 1.5
        return t in decayed, t in of_states, size, t not in from_sum, -len(needs.get(t, ()))

    goals.sort(key=order)
    # A loop over lengths of pieces holds many registers: it stands where nothing else waits.
    goals = [*(t for t in decayed if t not in goals), *goals]
    arrange = add_in_turn if in_turn and panelled else order_statements
    return Piece(panelled, arrange(statements, tuple(goals)), totals, tuple(results))


def _reads_whole(statements: tuple[Statement, ...], target: Tile) -> bool:
    return any(is_whole(t) for s in slice_program(statements, [target]) for t in operands(s.op))


def _known_after(body: tuple[Statement, ...], groups: list[list[Tile]], axis: str) -> dict[Tile, int]:
    """How many loops must have ended before a tile without the axis is known."""
    known = {t: number + 1 for number, group in enumerate(groups) for t in group if axis not in t.axes}
    for statement in body:
        if axis not in statement.target.axes and statement.target not in known:
            known[statement.target] = max((known.get(t, 0) for t in operands(statement.op)), default=0)
    return known


def _add_early(body: tuple[Statement, ...], groups: list[list[Tile]], axis: str) -> tuple[Statement, ...]:
    """Terms of a sum that are known before the rest are added up when they are, to be one tile until then."""
    known = _known_after(body, groups, axis)
    by_symbol = {sym(t): t for s in body for t in (s.target, *operands(s.op))}
    build = Builder(tuple(by_symbol.values()))
    for statement in body:
        target, op = statement.target, statement.op
        if axis in target.axes or not isinstance(op, Elementwise) or not op.expr.is_Add:
            build.statements.append(statement)
            continue
        terms: dict[int, list] = {}
        for term in op.expr.as_ordered_terms():
            terms.setdefault(max((known.get(by_symbol[s], 0) for s in term.free_symbols), default=0), []).append(term)
        parts = {}
        for number, early in terms.items():
            covered = {a for term in early for s in term.free_symbols for a in by_symbol[s].axes}
            if 0 < number < known[target] and len(early) > 1 and covered == set(target.axes):
                args = (by_symbol[s] for term in early for s in term.free_symbols)
                part = build.make(f"{target.name}_early", sum(early), *args, origin=statement.origin)
                parts[number], by_symbol[sym(part)] = [sym(part)], part
        expr = sum(term for part in (terms | parts).values() for term in part)
        args = tuple(sorted((by_symbol[s] for s in expr.free_symbols), key=lambda t: t.name))
        build.statements.append(Statement(target, Elementwise(expr, args), statement.origin))
    return tuple(build.statements)


def _places(
    body: tuple[Statement, ...], groups: list[list[Tile]], panels, narrow: Narrow, wide_heads: bool, axis: str
) -> dict[Tile, int]:
    """In front of which loop each piece of code once a chunk stands.

    What comes from a loop's sums follows at once, for it takes their place; what comes from the inputs alone waits
    for its first user, or if it is made of wide tiles for the last of them, unless it is kept narrow: then it is made
    while there are no sums in the registers yet. Then _postpone moves what is larger than what it is made of.
    """
    known_after = _known_after(body, groups, axis)
    once = [s for s in body if axis not in s.target.axes and not any(s.target in group for group in groups)]
    place: dict[Tile, int] = {}

    def no_later_than(tile: Tile, number: int) -> None:
        place[tile] = min(place.get(tile, number), number)

    for number, panel in enumerate(panels):
        for statement in panel:
            for tile in operands(statement.op):
                no_later_than(tile, number)
    for statement in reversed(once):
        no_later_than(statement.target, known_after[statement.target] or len(groups))
        if statement.target in narrow.factors:
            place[statement.target] = 0
        for tile in operands(statement.op):
            no_later_than(tile, place[statement.target])
    made, names = {s.target for s in once}, names_of(tuple(once))
    for statement in once:
        target = statement.target
        wide = [t for t in operands(statement.op) if names.get(t, t) in made and len(t.axes) > 1]
        if wide and not known_after[target]:
            until = place[target]
            place[target] = max(place[t] for t in wide)
            if narrow.factors.issuperset(wide):  # it need not be there before its factors are over
                last = max(
                    (place[s.target] for s in once if s.target != target and set(wide) & set(operands(s.op))), default=0
                )
                place[target] = max(place[target], min(last, until))
    for statement in once if axis == "k" else ():  # small sums of what is known take its place
        parts = operands(statement.op)
        if parts and len(statement.target.axes) < 2 and not known_after[statement.target] and made.issuperset(parts):
            place[statement.target] = max(place[t] for t in parts)
    for statement in reversed(once):  # what it is made of comes with what was made earlier
        for tile in made & set(operands(statement.op)):
            no_later_than(tile, place[statement.target])
    lengths = DEEP if axis in HIDDEN else BY_KEY if axis == "k" else WIDE if wide_heads else TYPICAL
    _postpone(once, panels, groups, place, narrow.factors, wide_heads, lengths)
    return {s.target: place[s.target] for s in once}


def _postpone(
    once: list[Statement],
    panels,
    groups: list[list[Tile]],
    place: dict[Tile, int],
    settled,
    wide_heads: bool,
    lengths: dict[str, int],
) -> None:
    """A wide tile that waits for a later loop is better made there, if it is larger than what it is made of.

    Of wide heads C x C tiles are not made later than they can be: printers let them wait in the inputs' dtype.
    """
    users: dict[Tile, list[tuple[Tile, int]]] = {}
    for statement in once:
        for tile in operands(statement.op):
            users.setdefault(tile, []).append((statement.target, -1))
    for number, panel in enumerate(panels):
        for statement in panel:
            for tile in operands(statement.op):
                users.setdefault(tile, []).append((statement.target, number))
    makes = {s.target: s for s in once}
    at_hand = {t for t, source in names_of(tuple(once)).items() if wide_heads and source not in makes}
    waiting = {t for t in makes if wide_heads and t.axes == ("t", "s")}

    def first_use(tile: Tile) -> int:
        return min((place[t] if number < 0 else number for t, number in users.get(tile, ())), default=len(groups))

    for statement in reversed(once):
        target = statement.target
        later = first_use(target)
        if len(target.axes) < 2 or later <= place[target] or target in settled or target not in users:
            continue
        moved = {target}
        for other in reversed(once):
            own = users.get(other.target, ())
            if other.target in waiting:
                continue
            if place[other.target] == place[target] and own and all(n < 0 and t in moved for t, n in own):
                moved.add(other.target)
        held = {t for m in moved for t in operands(makes[m].op) if t in makes and t not in moved and len(t.axes) > 1}
        held -= at_hand
        held = {t for t in held if all((place[u] if n < 0 else n) < later for u, n in users[t] if u not in moved)}
        if sum(_size(t, lengths) for t in held) < _size(target, lengths):
            place.update(dict.fromkeys(moved, later))


def _size(tile: Tile, lengths: dict[str, int]) -> int:
    return math.prod(lengths[a] for a in tile.axes)
