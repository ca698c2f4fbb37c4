"""What the associations of a chunk write: known at once, from predictions of frozen states, or solved for together.

An error that is free of its prediction is known. The others hang on predictions, which all of them move: a triangular
system of several unknowns, see eliminate.py; nonlinear errors are the last of them, and substituted row after row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ttrc.ir.recurrence import Affine, Association, Hebbian, Nonlinear
from ttrc.ir.tile import Relation, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.passes.chunk import Chunk, Sum, Written
from ttrc.passes.derive_error import derive_error
from ttrc.passes.derive_moves import Factor, of
from ttrc.passes.eliminate import Systems, factored, solve_rows
from ttrc.symbolic import names


def derive_writes(chunk: Chunk) -> tuple[Written, ...]:
    """What is known comes first, for predictions see it."""
    associations = chunk.recurrence.associations
    known = {
        a: chunk.build.elementwise("u", -a.error.offset, chunk.tiles, a.origin, ("t", "v"))
        for a in associations
        if isinstance(a.error, Hebbian)
    }
    written = {a: _written(chunk, a, u) for a, u in known.items()}
    asking = sorted((a for a in associations if a not in known), key=lambda a: isinstance(a.error, Nonlinear))
    found: list[Tile] = []
    if chunk.recurrence.segment is not None:
        found = [_of_frozen(chunk, association) for association in asking]
    elif asking:
        found = _solved(chunk, asking, [_row(chunk, association, asking, written) for association in asking])
    return (*written.values(), *(_written(chunk, a, u) for a, u in zip(asking, found)))


def _written(chunk: Chunk, association: Association, u: Tile) -> Written:
    keys = chunk.keys[association]
    return Written(keys.writing, keys.writing_s, u, chunk.build.relabel(u, "tokens that write"))


def _of_frozen(chunk: Chunk, association: Association) -> Tile:
    """u, of a prediction that hangs on what the segment starts with alone."""
    terms = ((chunk.start, Factor()),)
    expr, used = chunk.seen("prediction", terms, chunk.keys[association].asked, "prediction")
    match association.error:
        case Affine(slope, offset):
            return chunk.make("u", -slope * expr - offset, *used, origin=association.origin)
        case _:
            return _of_prediction(chunk, association, *used)


def _of_prediction(chunk: Chunk, association: Association, prediction: Tile) -> Tile:
    error = _error(chunk, association, prediction)
    return chunk.make("u", -sym(error), error, origin=association.origin)


def _error(chunk: Chunk, association: Association, prediction: Tile) -> Tile:
    return derive_error(chunk.build, chunk.tiles, association.error, prediction, association.origin)


@dataclass(frozen=True)
class Row:
    """A row of the system: its tiles, one for each unknown."""

    rhs: Tile
    system: tuple[Tile, ...]


def _row(chunk: Chunk, association: Association, asking: list[Association], known: dict[Association, Written]) -> Row:
    """u as what the states and what is known make of it, less what the unknowns move it by; or so the prediction."""
    origin = association.origin
    match association.error:
        case Affine(slope, offset):
            rate = of(chunk.make("rate", slope, origin=origin)) if names(slope) else Factor(slope)
            system = tuple(_system(chunk, association, other, rate) for other in asking)
            expr, used = _predicted(chunk, "prediction", association, known)
            rhs = chunk.make("rhs", -offset - rate.expr * expr, *rate.tiles, *used, origin=origin)
            return Row(rhs, system)
        case _:
            system = tuple(_system(chunk, association, other) for other in asking)
            expr, used = _predicted(chunk, "carried", association, known)
            return Row(chunk.make("seen", expr, *used, origin="prediction"), system)


def _solved(chunk: Chunk, asking: list[Association], rows: list[Row]) -> list[Tile]:
    """The unknowns. What is linear in all of them is one operation; nonlinear ones need those before them taken out."""
    build = chunk.build
    systems, rhs = tuple(r.system for r in rows), tuple(r.rhs for r in rows)
    nonlinear = [a for a in asking if isinstance(a.error, Nonlinear)]
    if not nonlinear:
        if chunk.moves.between is not None and not chunk.moves.between.by_key:
            return [_solved_by_value(chunk, systems[0][0], rhs[0])]
        if len(rows) == 1:
            return [build.solve("u", systems[0][0], rhs[0], False, "update")]
        return build.joint(["u"] * len(rows), systems, rhs, False, "update")

    def substituted(matrices: Systems, bases: tuple[Tile, ...]) -> list[Tile]:
        names, errors = ["prediction"] * len(bases), [partial(_error, chunk, a) for a in nonlinear]
        found = build.substitute(names, matrices, bases, errors, False, chunk.recurrence.in_turn, "update")
        return [_of_prediction(chunk, a, prediction) for a, prediction in zip(nonlinear, found)]

    # The last rows are of predictions, to which is added what the others write.
    known = [build.tile("u", ("t", "v")) for _ in asking[len(nonlinear) :]]
    found = solve_rows(build, factored(build, systems, len(known)), rhs, known, substituted, added=True)
    return [*known, *found]


def _solved_by_value(chunk: Chunk, system: Tile, rhs: Tile) -> Tile:
    """u, where decays differ by value channel: what a token and an earlier one have between them cancels along any way
    from the one to the other, so that the inverse is that of the system without decays, and stands behind them."""
    build = chunk.build
    inverse = build.inverse(system, "update")
    return chunk.told("u", inverse, build.relabel(rhs, "tokens that write"), True, "update", add=rhs)


def _predicted(chunk: Chunk, name: str, association: Association, known: dict[Association, Written]) -> Sum:
    """What the states, and what is known, make of a prediction."""
    expr, used = chunk.seen(name, chunk.moves.read, chunk.keys[association].asked, "prediction")
    pairs = [(_system(chunk, association, other), written.u_s) for other, written in known.items()]
    told = [chunk.told("told", system, u_s, chunk.recurrence.reads_decayed, "prediction") for system, u_s in pairs]
    return sum(map(sym, told), expr), (*used, *told)


def _system(chunk: Chunk, asked: Association, writes: Association, row: Factor = Factor()) -> Tile:
    """How much a token's prediction moves with what earlier ones write, and its own token, where that comes before."""
    build, moves, order = chunk.build, chunk.moves, chunk.recurrence.associations
    key, keys = chunk.keys[asked].asked, chunk.keys[writes]
    sees_own = chunk.recurrence.in_turn and order.index(writes) < order.index(asked)
    if moves.between is None or not moves.between.by_key:
        overlap = build.contract("overlap", key, keys.writing_s, "k", "prediction")
        mask = moves.out_mask if sees_own else moves.read_mask
        return chunk.masked("system", overlap, mask, strict=not sees_own, by=row)
    between = moves.between
    pairs = build.decayed("overlap", key, keys.writing_s, "k", between.steps, between.reads_own, "prediction")
    total, used = sym(pairs), (pairs,)
    if sees_own:
        own = _on_diagonal(build, key, keys.writing)
        total, used = total + sym(own), (pairs, own)
    return chunk.make("system", row.expr * total, *used, *row.tiles, origin=asked.origin)


def _on_diagonal(build: Builder, key: Tile, by: Tile) -> Tile:
    """What a token's key finds under another of its keys, on the diagonal of a C x C tile: no mask keeps that alone."""
    terms = build.make("own_terms", sym(key) * sym(by), key, by, origin="prediction")
    own = build.reduce("own_overlap", terms, ("t",), "prediction")
    rows = build.elementwise("own_rows", sym(own), {own.name: own}, "prediction", ("t", "s"))
    lower = build.mask("own_lower", rows, Relation.CAUSAL, 0.0, "causality")
    before = build.mask("own_before", rows, Relation.STRICT, 0.0, "causality")
    return build.make("own", sym(lower) - sym(before), lower, before, origin="prediction")
