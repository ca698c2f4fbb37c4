"""Attention -> tile program of a whole sequence: what each pair of tokens makes, and sums over pairs.

The axis "t" is that of queries, "s" that of keys and values. No kernel ever holds all pairs: they go through the chip
tile by tile, which the program need not know.
"""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.attention import DOT, KEY, QUERY, Attention
from ttrc.ir.tile import SCALE, Attend, Difference, Normaliser, Program, Relation, RunningSum, Tile, Window
from ttrc.passes.builder import Builder, sym
from ttrc.passes.derive_features import derive_features
from ttrc.passes.derive_readout import ORIGIN as READ
from ttrc.passes.derive_readout import answer_name, derive_readout
from ttrc.symbolic import ZERO, Expr, at_least

INFINITY = float("inf")
FORGOTTEN = -800  # below that a decay is 0 in every float format, and so is its gradient


def derive_pairs(attention: Attention) -> Program:
    inputs = (
        Tile("q", ("t", "k")),
        Tile("k", ("s", "k")),
        Tile("v", ("s", "v")),
        *(Tile(g.name, ("t", *g.per.axes)) for g in attention.gates),
        Tile(SCALE, ()),
    )
    build = Builder(inputs)
    tiles = {t.name: t for t in inputs}
    for feature in attention.features:
        used, gates = symbolic.names(feature.expr).union(*(symbolic.names(s.body) for s in feature.sums)), dict(tiles)
        if feature.word == "k":
            gates |= {g.name: build.relabel(tiles[g.name], "features.k") for g in attention.gates if g.name in used}
        tiles |= derive_features(build, gates, (feature,))

    def make(name: str, expr: Expr, axis: str, origin: str, *channels: str) -> Tile:
        """expr over gates and v, those of the token of the axis; with the channels even where it is free of them."""
        used = symbolic.names(expr)
        named = {n: t if axis in t.axes else build.relabel(t, origin) for n, t in tiles.items() if n in used}
        if not named:
            return build.constant(name, expr, (axis, *channels), origin)
        return build.elementwise(name, expr, named, origin, axes=channels)

    values = make("values", attention.value, "s", "loss", "v")
    rest = None if attention.log_ridge is None else make("rest", attention.log_ridge, "t", "retention")
    parts = [_similarity(build, tiles, attention)]
    if attention.log_decay is not None:
        parts.append(_forgotten(build, make("log_decay", attention.log_decay, "t", "decay")))
    if attention.log_weight != ZERO:
        parts.append(make("log_weight", attention.log_weight, "s", "loss"))
    terms = {t.name: t for t in parts}
    logits = build.elementwise("logits", sum(map(symbolic.symbol, terms)), terms, "similarity", axes=("t", "s"))
    logits = build.mask("seen", logits, Relation.CAUSAL, -INFINITY, "causality")
    if attention.window is not None:
        logits = build.mask("within", logits, Window(attention.window), -INFINITY, "window")
    normaliser = build.emit("normaliser", ("t",), Normaliser(logits, rest), "update")
    # Past the end of a sequence there are no queries: nothing weighs anything.
    normaliser = build.mask("normaliser_valid", normaliser, Relation.VALID, INFINITY, "update")
    name = answer_name(attention.readout)
    answer = build.emit(name, ("t", "v"), Attend(logits, normaliser, values, rest), "update")
    asked = _asked(build, tiles | {"k": inputs[1]}, attention)
    o = derive_readout(build, tiles | asked, attention.readout, answer)
    return Program(inputs, tuple(build.statements), (), (("o", o),), answer=answer)


def _asked(build: Builder, tiles: dict[str, Tile], attention: Attention) -> dict[str, Tile]:
    """The key and the value of the token that asks, those that its read-out uses: the key as it came, and mapped once
    more, for a program that owns queries has no other program's map."""
    readout = attention.readout
    if readout is None:
        return {}
    used = symbolic.names(readout.expr).union(*(symbolic.names(s.body) for s in readout.sums))
    asked = {name: build.relabel(tiles[name], READ) for name in ("k", "v") if name in used}
    if "k" in asked:
        asked |= derive_features(build, tiles | asked, tuple(f for f in attention.features if f.word == "k"))
    return asked


def _similarity(build: Builder, tiles: dict[str, Tile], attention: Attention) -> Tile:
    q, k, scale = tiles["q"], tiles["k"], tiles[SCALE]
    used, origin, mentioned = {}, "similarity", symbolic.names(attention.similarity)
    if DOT.name in mentioned:
        dot = build.contract("dot", q, k, "k", origin)
        used[DOT.name] = build.make("scaled", sym(scale) * sym(dot), scale, dot, origin=origin)
    if QUERY.name in mentioned:
        norm2 = _norm2(build, q)
        for _ in range(2):  # the scale's square, by itself, would be a tile and is a plain number
            norm2 = build.make("norm2_q", sym(scale) * sym(norm2), scale, norm2, origin=origin)
        used[QUERY.name] = norm2
    if KEY.name in mentioned:
        used[KEY.name] = _norm2(build, k)
    return build.elementwise("similarity", attention.similarity, tiles | used, origin, axes=("t", "s"))


def _norm2(build: Builder, x: Tile) -> Tile:
    squares = build.elementwise("squares", sym(x) ** 2, {x.name: x}, "similarity")
    total = build.reduce("norm2", squares, x.axes[:1], "similarity")
    # Past the end of a sequence all channels are 0, and a similarity may divide by a norm: there the sum reads as 1.
    return build.mask(f"{total.name}_valid", total, Relation.VALID, 1.0, "similarity")


def _forgotten(build: Builder, log_decay: Tile) -> Tile:
    """The logarithm of what the tokens between leave of each pair, [t, s]; free of every decay on the diagonal, which
    is said, so that its cotangent is 0 and not a difference."""
    bounded = at_least(sym(log_decay), FORGOTTEN)
    bounded = build.elementwise("log_decay_bounded", bounded, {log_decay.name: log_decay}, "decay")
    sums = build.emit("sums", ("t",), RunningSum(bounded, False), "decay")
    columns = build.relabel(sums, "decay")
    gap = build.emit("gap", ("t", "s"), Difference(sums, columns), "decay")
    return build.mask("gap_apart", gap, Relation.STRICT, 0.0, "causality")
