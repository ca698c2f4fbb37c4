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
from ttrc.passes.derive_error import derive_error, derive_sum, written_of_ones
from ttrc.passes.derive_features import derive_features, derive_keys
from ttrc.passes.derive_link import derive_link
from ttrc.passes.derive_readout import answer_name, derive_readout
from ttrc.symbolic import ONE, ZERO, Expr


def scan_chunk(recurrence: Recurrence) -> Program:
    chunk = _Chunk(recurrence)
    build, tiles = chunk.build, chunk.tiles
    state = build.tile("S", recurrence.state)
    seen = derive_link(build, tiles, recurrence.link, state)
    transition, added, of_ones = chunk.maps(seen)
    after, moved = chunk.stepped(state, "M", transition, added)
    if recurrence.link is not None:
        after = chunk.scanned("W", transition, moved, seen)
    answer, normaliser = chunk.answered(answer_name(recurrence.readout), after), None
    if of_ones is not None:  # the same once more
        ones = build.tile(OF_ONES["S"], recurrence.state)
        after, _ = chunk.stepped(ones, OF_ONES["M"], transition, of_ones)
        normaliser = chunk.answered(NORMALISER, after)
    o = derive_readout(build, tiles, recurrence.readout, answer, normaliser)
    carries, statements = tuple(chunk.carries), tuple(build.statements)
    return Program(chunk.inputs, statements, carries, (("o", o),), answer=answer, normaliser=normaliser)


def scan_closed(recurrence: Recurrence) -> Program:
    """Of a vector memory in closed form: H and G are scanned, and S = G / (H + lam) is never carried."""
    chunk = _Chunk(recurrence)
    key, after = chunk.tiles["k"], []
    decay = chunk.until_the_end(chunk.entries("decay", recurrence.decay, origin="decay"), 1.0)
    for state, written in ("H", recurrence.error.slope * sym(key)), ("G", -recurrence.error.offset):
        added = chunk.entries("added", sym(key) * written, key, origin="loss")
        moved, _ = chunk.stepped(chunk.build.tile(state, recurrence.state), "", decay, added)
        after.append(moved)
    H, G = after
    S = chunk.entries("S", sym(G) / (sym(H) + recurrence.curvature), H, G, origin="update")
    answer = chunk.answered(answer_name(recurrence.readout), S)
    o = derive_readout(chunk.build, chunk.tiles, recurrence.readout, answer)
    return Program(chunk.inputs, tuple(chunk.build.statements), tuple(chunk.carries), (("o", o),), answer=answer)


class _Chunk:
    """A program under way: what names stand for, and what is made for each token and entry of the state."""

    def __init__(self, recurrence: Recurrence):
        self.recurrence, self.inputs = recurrence, chunk_inputs(recurrence)
        self.build, self.tiles = Builder(self.inputs), {t.name: t for t in self.inputs}
        self.axes = ("t", *recurrence.state)
        self.carries: list[Carry] = []
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

    def maps(self, seen: Tile) -> tuple[Tile, Tile, Tile | None]:
        """(a, b, b of ones): each token takes a state s to a s + b, and to a s + b of ones had every value been 1.

        Predictions that are frozen are made of `seen`, others of such a map too: seen_slope s + seen_offset.
        """
        recurrence, entries = self.recurrence, self.entries
        transition, added, of = recurrence.decay, ZERO, ()
        added_of_ones: Expr = ZERO
        seen_slope, seen_offset = recurrence.decay if recurrence.reads_decayed else ONE, ZERO
        for association in recurrence.associations:
            key, writing = derive_keys(self.build, self.tiles, association)
            writes, origin = recurrence.write * sym(writing), association.origin
            if recurrence.in_turn and of:
                so_far = entries("so_far", transition, *of, origin=origin)
                of = so_far, entries("added_so_far", added, *of, origin=origin)
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
                        e = error.slope * sym(prediction) + error.offset
                        written = entries("error", e, prediction, origin=origin)
                    else:
                        written = derive_error(self.build, self.tiles, error, prediction, origin)
                    added, of = added - writes * sym(written), (*of, written)
                case Affine(slope, offset):
                    transition -= writes * slope * sym(key) * seen_slope
                    added -= writes * (slope * sym(key) * seen_offset + offset)
        origin, of_ones = recurrence.main.origin, None
        added = entries("added", added, *of, origin=origin)
        if recurrence.normalised:
            of_ones = entries("added_of_ones", added_of_ones, *of, origin=origin)
        # A token past the end of a sequence leaves the state as it is; it adds nothing, for its keys are 0.
        transition = self.until_the_end(entries("transition", transition, *of, origin="update"), 1.0)
        return transition, added, of_ones

    def scanned(self, name: str, factor: Tile, added: Tile, start: Tile) -> Tile:
        """What each token makes of x, factor * x + added, x at first `start`."""
        found = self.build.linear_scan(f"{name}_before", factor, added, start, "update")
        after = sym(factor) * sym(found) + sym(added)
        return self.entries(f"{name}_after", after, factor, found, added, origin="update")

    def stepped(self, state: Tile, last_step: str, transition: Tile, added: Tile) -> tuple[Tile, Tile]:
        """A state after each token, and the steps to it: by way of a momentum where there is one, whose state is
        `last_step`. Both are carried."""
        momentum = ()
        if self.recurrence.momentum is not None:
            last = self.build.tile(last_step, self.recurrence.state)
            kept = self.until_the_end(self.entries("momentum", self.recurrence.momentum, origin="update"), 1.0)
            steps = self.scanned(last_step, kept, added, last)
            momentum = (self.carried(last, steps),)
            added = self.until_the_end(steps, 0.0)
        after = self.scanned(state.name, transition, added, state)
        self.carries += [self.carried(state, after), *momentum]
        return after, added

    def carried(self, state: Tile, after: Tile) -> Carry:
        """A state that goes on to the next chunk as the last token has left it."""
        last = self.build.mask(f"{state.name}_last", after, Relation.LAST, 0.0, "update")
        following = self.build.reduce(f"{state.name}_next", last, state.axes, "update")
        return Carry(state.name, state, following, reverse=False)

    def answered(self, name: str, weights: Tile) -> Tile:
        """What weights, [t, v] or [t, k, v], answer to the queries."""
        q, scale = self.tiles["q"], self.tiles[SCALE]
        read = sym(q) * sym(weights)
        if self.recurrence.state == self.recurrence.keys:
            return self.entries(name, sym(scale) * read, scale, q, weights, origin="read-out")
        terms = self.entries("read", read, q, weights, origin="read-out")
        total = self.build.reduce("total", terms, ("t", "v"), "read-out")
        return self.build.make(name, sym(scale) * sym(total), scale, total, origin="read-out")
