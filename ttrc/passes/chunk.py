"""A chunk's program under way: what names stand for, how states move through it, and what tokens see of one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ttrc.ir.config import is_several_chunks
from ttrc.ir.recurrence import Association, Recurrence
from ttrc.ir.tile import BEGINS, SCALE, Carry, Relation, Tile
from ttrc.language.state import OF_ONES
from ttrc.passes.builder import Builder, sym
from ttrc.passes.derive_error import derive_sum
from ttrc.passes.derive_features import derive_features, derive_keys
from ttrc.passes.derive_link import derive_link
from ttrc.passes.derive_moves import Factor, Terms, derive_moves
from ttrc.symbolic import ONE, ZERO, Expr, choose

Sum = tuple[Expr, tuple[Tile, ...]]  # an expression, and the tiles that it is over


def chunk_inputs(recurrence: Recurrence) -> tuple[Tile, ...]:
    return (
        Tile("q", ("t", *recurrence.keys)),
        Tile("k", ("t", *recurrence.keys)),
        Tile("v", ("t", "v")),
        *(Tile(g.name, ("t", *g.per.axes)) for g in recurrence.gates),
        Tile(SCALE, ()),
        *((Tile(BEGINS, ()),) if is_several_chunks(recurrence.segment) else ()),
    )


@dataclass(frozen=True)
class Keys:
    """Of an association, [t, k]: what is asked, and what its error is written under, also by the tokens that write."""

    asked: Tile
    writing: Tile
    writing_s: Tile


@dataclass(frozen=True)
class Written:
    """What an association writes: keys, [t, k], and u, [t, v]; both also by the tokens that write."""

    keys: Tile
    keys_s: Tile
    u: Tile
    u_s: Tile


class Chunk:
    def __init__(self, recurrence: Recurrence):
        self.recurrence, self.inputs = recurrence, chunk_inputs(recurrence)
        self.build = build = Builder(self.inputs)
        self.state = build.tile("S", ("k", "v"))
        states = (self.state,) if recurrence.momentum is None else (self.state, build.tile("M", ("k", "v")))
        # A normaliser's states move as these do, and have no value channels.
        self.of_ones = {s: build.tile(OF_ONES[s.name], ("k",)) for s in states} if recurrence.normalised else {}
        self.tiles = {t.name: t for t in self.inputs}
        features = derive_features(build, self.tiles, recurrence.features)
        self.tiles |= features
        for reduction in recurrence.known_sums:
            self.tiles[reduction.symbol.name] = derive_sum(build, self.tiles, reduction)
        self.q, self.scale = self.tiles["q"], self.tiles[SCALE]
        self.keys = {association: self._keys(association) for association in recurrence.associations}
        keys = [t for own in self.keys.values() for t in (own.asked, own.writing)]
        self.mapped = tuple(dict.fromkeys(t for t in (*features.values(), *keys) if t not in self.inputs))
        self.moves = derive_moves(build, recurrence, self.tiles, states)
        self.weights = derive_link(build, self.tiles, recurrence.link, self.state)  # what is read in its place
        self.start, self.private = self.weights, ()  # what a segment starts with, whether it is this chunk or longer
        if is_several_chunks(recurrence.segment):
            begins, anchor = self.tiles[BEGINS], build.tile("anchor", ("k", "v"))
            fresh = choose(ONE, sym(begins), sym(self.state), sym(anchor))
            self.start = self.make("start", fresh, self.state, anchor, origin="update")
            self.private = (Carry("anchor", anchor, self.start, reverse=False, private=True),)

    def _keys(self, association: Association) -> Keys:
        asked, writing = derive_keys(self.build, self.tiles, association)
        if self.recurrence.write != ONE:
            writing = self.make("writing", self.recurrence.write * sym(writing), writing, origin="retention")
        return Keys(asked, writing, self.build.relabel(writing, "tokens that write"))

    def make(self, name: str, expr: Expr, *more: Tile, origin: str) -> Tile:
        """expr over the inputs' names and the symbols of `more`; tiles have names of their own, so none can clash."""
        return self.build.elementwise(name, expr, self.tiles | {t.name: t for t in more}, origin)

    def seen(self, name: str, terms: Terms, by: Tile, origin: str) -> Sum:
        """by times the states, each with its factor: of the token, or of each of its key channels."""
        if any("k" in t.axes for _, factor in terms for t in factor.tiles):
            ((own, factor),) = terms
            decayed = self.make(f"{by.name}_decayed", factor.expr * sym(by), by, *factor.tiles, origin="retention")
            product = self.build.contract(name, decayed, own, "k", origin)
            return sym(product), (product,)
        return combined(terms, lambda own: self.build.contract(name, by, own, "k", origin))

    def masked(self, name: str, pairs: Tile, mask: Tile | None, *, strict: bool, by: Factor = Factor()) -> Tile:
        """pairs times the mask and `by`, a number or one a row; 0 above the diagonal, or on it too if strict."""
        if strict:
            pairs = self.build.mask("earlier", pairs, Relation.STRICT, 0.0, "causality")
        factors = [t for t in (mask, pairs) if t is not None]
        product = by.expr
        for factor in factors:
            product = product * sym(factor)
        made = self.make(name, product, *factors, *by.tiles, origin="loss" if mask is None else "retention")
        seen = strict or mask is not None
        return made if seen else self.build.mask(name, made, Relation.CAUSAL, 0.0, "causality")

    def told(self, name: str, pairs: Tile, u_s: Tile, own: bool, origin: str, add: Tile | None = None) -> Tile:
        """What earlier tokens wrote, as a token sees it by these pairs, and `add`; `own`: whether behind its own
        decay."""
        between = self.moves.between
        if between is None or between.by_key:
            return self.build.contract(name, pairs, u_s, "s", origin, add=add)
        seen = self.build.decayed(f"{name}_recalled", pairs, u_s, "s", between.steps, own, origin)
        return seen if add is None else self.make(name, sym(seen) + sym(add), seen, add, origin=origin)


def combined(terms: Terms, value: Callable[[Tile], Tile]) -> Sum:
    """sum of factor * value(state)."""
    expr, used = ZERO, []
    for own, factor in terms:
        tile = value(own)
        expr, used = expr + factor.expr * sym(tile), [*used, tile, *factor.tiles]
    return expr, tuple(used)
