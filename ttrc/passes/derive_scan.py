"""Recurrence whose state moves entry by entry -> tile program of one chunk: scans along the tokens.

A token whose error is free of p takes an entry s of the state to a s + b; so does one whose error is affine in it where
each channel answers for itself, in a vector memory. The maps of a chunk's tokens one after the other are a scan, for
they compose. So decays need no logarithm, may be 0, and differ by channel or entry. Where gradients of a vector memory
are frozen at a segment's start, which then is a chunk, b is known of any error. What is known without the running state
may go through a momentum first: a scan whose results the state's scan adds.
"""

from __future__ import annotations

from ttrc.ir.recurrence import Affine, Hebbian, Recurrence
from ttrc.ir.tile import SCALE, Carry, Program, Relation, Tile
from ttrc.language.sections import NORMALISER
from ttrc.language.spec import Parameter
from ttrc.language.state import OF_ONES
from ttrc.passes.builder import Builder, sym
from ttrc.passes.chunk import chunk_inputs
from ttrc.passes.derive_error import derive_error, derive_sum
from ttrc.passes.derive_features import derive_features, derive_keys
from ttrc.passes.derive_link import derive_link
from ttrc.passes.derive_readout import answer_name, derive_readout
from ttrc.passes.of_ones import written_of_ones
from ttrc.symbolic import ONE, ZERO, Expr


class _Chunk:
    """A program under way: what names stand for, and what is made for all tokens."""

    def __init__(self, recurrence: Recurrence, inputs: tuple[Tile, ...]):
        self.build, self.tiles = Builder(inputs), {t.name: t for t in inputs}
        self.axes = ("t", *recurrence.state)
        # A parameter that comes with value channels is one tile for all tokens, whose gradient is a sum over these.
        for gate in recurrence.gates:
            if isinstance(gate, Parameter) and "v" in gate.per.axes:
                self.tiles[gate.name] = self.build.once(self.tiles[gate.name], "parameter")
        self.tiles |= derive_features(self.build, self.tiles, recurrence.features)
        for reduction in recurrence.known_sums:
            self.tiles[reduction.symbol.name] = derive_sum(self.build, self.tiles, reduction)

    def entries(self, name: str, expr: Expr, *more: Tile, origin: str) -> Tile:
        """expr over the inputs' names and the symbols of `more`, a number for each token and entry of the state."""
        return self.build.elementwise(name, expr, self.tiles | {t.name: t for t in more}, origin, self.axes)

    def until_the_end(self, tile: Tile, beyond: float) -> Tile:
        return self.build.mask(f"{tile.name}_valid", tile, Relation.VALID, beyond, "update")

    def scanned(self, name: str, factor: Tile, added: Tile, start: Tile) -> Tile:
        """What each token makes of x, factor * x + added, x at first `start`."""
        found = self.build.linear_scan(f"{name}_before", factor, added, start, "update")
        after = sym(factor) * sym(found) + sym(added)
        return self.entries(f"{name}_after", after, factor, found, added, origin="update")

    def carried(self, state: Tile, after: Tile) -> Carry:
        """A state that goes on to the next chunk as the last token has left it."""
        last = self.build.mask(f"{state.name}_last", after, Relation.LAST, 0.0, "update")
        following = self.build.reduce(f"{state.name}_next", last, state.axes, "update")
        return Carry(state.name, state, following, reverse=False)


def scan_chunk(recurrence: Recurrence) -> Program:
    inputs = chunk_inputs(recurrence)
    chunk = _Chunk(recurrence, inputs)
    build, tiles, entries = chunk.build, chunk.tiles, chunk.entries
    state, q, scale = build.tile("S", recurrence.state), tiles["q"], tiles[SCALE]
    seen = derive_link(build, tiles, recurrence.link, state)

    # What a token takes the state to, and what predictions are made of: maps a s + b of what it was.
    transition, added, of = recurrence.decay, ZERO, ()
    added_of_ones: Expr = ZERO
    seen_slope, seen_offset = recurrence.decay if recurrence.reads_decayed else ONE, ZERO
    for association in recurrence.associations:
        key, writing = derive_keys(build, tiles, association)
        writes, origin = recurrence.write * sym(writing), association.origin
        if recurrence.in_turn and of:
            of = entries("so_far", transition, *of, origin=origin), entries("added_so_far", added, *of, origin=origin)
            transition, added = map(sym, of)
            seen_slope, seen_offset = transition, added
        of = (*of, key, writing)
        match association.error:
            case Hebbian(offset):
                added -= writes * offset
                if recurrence.normalised:
                    added_of_ones += writes * written_of_ones(association.error)
            case error if recurrence.segment is not None:
                prediction = entries("prediction", sym(key) * sym(seen), key, seen, origin="prediction")
                if isinstance(error, Affine):
                    written = entries("error", error.slope * sym(prediction) + error.offset, prediction, origin=origin)
                else:
                    written = derive_error(build, tiles, error, prediction, origin)
                added, of = added - writes * sym(written), (*of, written)
            case Affine(slope, offset):
                transition -= writes * slope * sym(key) * seen_slope
                added -= writes * (slope * sym(key) * seen_offset + offset)
    added = entries("added", added, *of, origin=recurrence.main.origin)
    # A token past the end of a sequence leaves the state as it is; it adds nothing, for its keys are 0.
    transition = chunk.until_the_end(entries("transition", transition, *of, origin="update"), 1.0)

    carries: list[Carry] = []

    def stepped(labels: tuple[str, str], own: Tile, added: Tile) -> tuple[Tile, Tile]:
        """A state after each token, and what they add, by way of a momentum where there is one; both are carried."""
        steps = ()
        if recurrence.momentum is not None:
            last = build.tile(labels[1], recurrence.state)
            kept = chunk.until_the_end(entries("momentum", recurrence.momentum, origin="update"), 1.0)
            found = chunk.scanned(labels[1], kept, added, last)
            steps = (chunk.carried(last, found),)
            added = chunk.until_the_end(found, 0.0)
        after = chunk.scanned(labels[0], transition, added, own)
        carries.extend((chunk.carried(own, after), *steps))
        return after, added

    def answered(name: str, weights: Tile) -> Tile:
        read = sym(q) * sym(weights)
        if recurrence.state == recurrence.keys:
            return entries(name, sym(scale) * read, scale, q, weights, origin="read-out")
        found = build.reduce("total", entries("read", read, q, weights, origin="read-out"), ("t", "v"), "read-out")
        return build.make(name, sym(scale) * sym(found), scale, found, origin="read-out")

    after, moved = stepped(("S", "M"), state, added)
    if recurrence.link is not None:
        after = chunk.scanned("W", transition, moved, seen)
    answer, normaliser = answered(answer_name(recurrence.readout), after), None
    if recurrence.normalised:
        ones = build.tile(OF_ONES["S"], recurrence.state)
        added = entries("added_of_ones", added_of_ones, *of, origin=recurrence.main.origin)
        after, _ = stepped((OF_ONES["S"], OF_ONES["M"]), ones, added)
        normaliser = answered(NORMALISER, after)
    o = derive_readout(build, tiles, recurrence.readout, answer, normaliser)
    statements = tuple(build.statements)
    return Program(inputs, statements, tuple(carries), (("o", o),), answer=answer, normaliser=normaliser)
