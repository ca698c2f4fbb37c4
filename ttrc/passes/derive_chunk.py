"""Recurrence -> tile program of one chunk: matrix products where the recurrence has a loop over tokens.

Inside a chunk the state at each token is a sum of what the chunk started with and of what its earlier tokens wrote,
u_t = -e_t, with factors that derive_moves.py works out. Read-outs and predictions of that sum are products with the
states plus a masked C x C product; where e_t is affine in p_t, the u solve a unit lower-triangular system (the WY / UT
transform), whose matrix is the same for every value channel. Where it is not, the predictions solve
p = what the states give - (masked K K') e(p): row after row, exactly, for a row needs the errors of earlier ones alone.
What each of several associations writes is an unknown of its own, see derive_writes.py.
Where gradients are frozen at a segment's start, predictions hang on the state there alone; a segment is one chunk, or
several, over which that state is carried along. Where weights are a link of the state, they stand in its place in what
is read, once a chunk; what is carried stays linear.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.recurrence import Hebbian, Recurrence
from ttrc.ir.tile import Carry, Program, Relation, Tile
from ttrc.language.sections import NORMALISER
from ttrc.passes.builder import sym
from ttrc.passes.chunk import Chunk, Written, combined
from ttrc.passes.derive_error import written_of_ones
from ttrc.passes.derive_moves import Factor, of
from ttrc.passes.derive_readout import answer_name, derive_readout
from ttrc.passes.derive_writes import derive_writes


def derive_chunk(recurrence: Recurrence) -> Program:
    chunk = Chunk(recurrence)
    written = derive_writes(chunk)
    answer = _answer(chunk, written, {chunk.state: chunk.weights}, answer_name(recurrence.readout))
    carries = _carries(chunk, written, {})
    normaliser = None
    if recurrence.normalised:
        ones, states = _written_of_ones(chunk, written), chunk.of_ones
        normaliser = _answer(chunk, ones, states, NORMALISER)
        carries = (*carries, *_carries(chunk, ones, states))
    o = derive_readout(chunk.build, chunk.tiles, recurrence.readout, answer, normaliser)
    carries = (*carries, *chunk.private)
    statements = tuple(chunk.build.statements)
    read = {"answer": answer, "normaliser": normaliser}
    return Program(chunk.inputs, statements, carries, (("o", o),), **read, mapped=chunk.mapped)


def _written_of_ones(chunk: Chunk, written: tuple[Written, ...]) -> tuple[Written, ...]:
    """What would be written, [t], had every value been 1."""
    build = chunk.build
    found = []
    for association, w in zip(chunk.recurrence.associations, written):
        u = build.elementwise("u_of_ones", written_of_ones(association.error), chunk.tiles, association.origin, ("t",))
        found.append(replace(w, u=u, u_s=build.relabel(u, "tokens that write")))
    return tuple(found)


def _answer(chunk: Chunk, written: tuple[Written, ...], states: dict[Tile, Tile], name: str) -> Tile:
    """What the memory answers to q: of the states, or what stands in their place, and of what the chunk's tokens
    write."""
    build, q, scale = chunk.build, chunk.q, chunk.scale
    # The read-out's scale stands where factors do already: o, and its cotangent, are products as they are.
    out = tuple(
        (states.get(own, own), Factor(sym(scale) * factor.expr, (*factor.tiles, scale)))
        for own, factor in chunk.moves.out
    )
    weighed = [_attention(chunk, w.keys_s) for w in written]
    expr, used = chunk.seen("inherited", out, q, "read-out")
    if chunk.moves.between is not None:  # what a token reads of its own, free of every decay
        for w in written:
            terms = chunk.make("self_terms", sym(q) * sym(w.keys), q, w.keys, origin="read-out")
            own = build.reduce("self_read", terms, ("t",), "read-out")
            expr, used = expr + sym(scale) * sym(own) * sym(w.u), (*used, own, w.u)
    answer = chunk.make("carried_out", expr, *used, origin="read-out")
    for w, pairs in zip(written, weighed):
        label = name if w is written[-1] else "answered"
        answer = chunk.told(label, pairs, w.u_s, True, "read-out", add=answer)
    return answer


def _attention(chunk: Chunk, by: Tile) -> Tile:
    """How much of what earlier tokens write under `by`, and of its own, a token reads."""
    build, moves, recurrence = chunk.build, chunk.moves, chunk.recurrence
    if moves.between is not None:
        if moves.between.by_key:
            scores = build.decayed("scores", chunk.q, by, "k", moves.between.steps, True, "read-out")
        else:
            overlap = build.contract("overlap_q", chunk.q, by, "k", "read-out")
            scores = build.mask("earlier", overlap, Relation.STRICT, 0.0, "causality")
        return chunk.make("attention", sym(chunk.scale) * sym(scores), scores, origin="read-out")
    scores = build.contract("overlap_q", chunk.q, by, "k", "read-out")
    # Where predictions want the mask too, or it is a sum of masks, the scale multiplies scores; else it is in it.
    out_mask, factor = moves.out_mask, of(chunk.scale)
    solves = recurrence.segment is None and not isinstance(recurrence.error, Hebbian)
    shared = solves and out_mask == moves.read_mask
    if out_mask is not None and not shared and recurrence.momentum is None:
        (how,) = [s.op for s in build.statements if s.target == out_mask]
        weight = build.make("weight", sym(chunk.scale) * how.expr, *how.args, chunk.scale, origin="read-out")
        out_mask, factor = weight, Factor()
    return chunk.masked("attention", scores, out_mask, strict=False, by=factor)


def _carries(chunk: Chunk, written: tuple[Written, ...], states: dict[Tile, Tile]) -> tuple[Carry, ...]:
    """What the states, or what stands in their place, are at the chunk's end."""
    carries = []
    for moved, terms, factor in chunk.moves.following:
        own, outer = states.get(moved, moved), [_left(chunk, w, factor) for w in written]
        expr, used = combined(terms, lambda tile: states.get(tile, tile))
        after = chunk.make("kept", expr, *used, origin="retention")
        for number, (keys, u) in enumerate(outer, start=1):
            name = f"{own.name}_next" if number == len(outer) else "kept"
            after = chunk.build.contract(name, keys, u, "t", "update", add=after)
        carries.append(Carry(own.name, own, after, reverse=False))
    return tuple(carries)


def _left(chunk: Chunk, w: Written, factor: Factor) -> tuple[Tile, Tile]:
    """The keys and the u of an association, one of them times what the chunk's end sees of them."""
    if chunk.moves.between is not None and chunk.moves.between.by_key:
        return chunk.make("kept_keys", factor.expr * sym(w.keys), w.keys, *factor.tiles, origin="retention"), w.u
    return w.keys, chunk.make("written", factor.expr * sym(w.u), w.u, *factor.tiles, origin="retention")
