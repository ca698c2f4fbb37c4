"""Attention -> tile program of a whole sequence: what each pair of tokens makes, and sums over pairs.

The axis "t" is that of queries, "s" that of keys and values. No kernel ever holds all pairs: they go through the chip
tile by tile, which the program need not know.
"""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.attention import DOT, KEY, QUERY, Attention, Line, Mean, Sum
from ttrc.ir.tile import SCALE, Attend, Difference, Normaliser, Program, Relation, RunningSum, Tile, Window
from ttrc.passes.builder import Builder, sym
from ttrc.passes.derive_features import derive_features
from ttrc.passes.derive_readout import ORIGIN as READ
from ttrc.passes.derive_readout import answer_name, derive_readout
from ttrc.symbolic import ZERO, Expr, at_least

PAIRS = ("t", "s")
INFINITY = float("inf")
STIFF = 40  # above that, as a logarithm, the ridge of a slope leaves nothing of it in any float format
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
    values = _of_tokens(build, tiles, "values", attention.value, "s", "loss", "v")
    log_ridge = attention.fit.log_ridge
    rest = None if log_ridge is None else _of_tokens(build, tiles, "rest", log_ridge, "t", "retention")
    match attention.fit:
        case Mean():
            answer = _mean(build, tiles, attention, values, rest)
        case Line(_, log_slope):
            slope = _of_tokens(build, tiles, "log_slope", log_slope, "t", "retention")
            answer = _line(build, tiles, attention, values, rest, slope)
        case Sum():
            answer = _sum(build, tiles, attention, values, rest)
    asked = _asked(build, tiles | {"k": inputs[1]}, attention)
    o = derive_readout(build, tiles | asked, attention.readout, answer)
    return Program(inputs, tuple(build.statements), (), (("o", o),), answer=answer)


def _of_tokens(
    build: Builder, tiles: dict[str, Tile], name: str, expr: Expr, axis: str, origin: str, *channels: str
) -> Tile:
    """expr over gates and v, those of the token of the axis; with the channels even where it is free of them."""
    used = symbolic.names(expr)
    named = {n: t if axis in t.axes else build.relabel(t, origin) for n, t in tiles.items() if n in used}
    if not named:
        return build.constant(name, expr, (axis, *channels), origin)
    return build.elementwise(name, expr, named, origin, axes=channels)


def _mean(build: Builder, tiles: dict[str, Tile], attention: Attention, values: Tile, rest: Tile | None) -> Tile:
    """[t, v], of values [s, v] and the logarithm of a ridge, [t]. Weights stay logarithms up to the operation that
    divides them by their sum."""
    logits, normaliser = _shares(build, tiles, attention, rest)
    return build.emit(answer_name(attention.readout), ("t", "v"), Attend(logits, normaliser, values, rest), "update")


def _shares(build: Builder, tiles: dict[str, Tile], attention: Attention, rest: Tile | None) -> tuple[Tile, Tile]:
    """The logarithms of weights, [t, s], and of what they are divided by, [t]."""
    near = _near(build, tiles, attention)
    similarity = build.elementwise("similarity", attention.similarity, near, "similarity", axes=PAIRS)
    terms = {t.name: t for t in (similarity, *_beside(build, tiles, attention))}
    logits = build.elementwise("logits", sum(map(symbolic.symbol, terms)), terms, "similarity", axes=PAIRS)
    logits = _seen(build, logits, attention, -INFINITY)
    normaliser = build.emit("normaliser", ("t",), Normaliser(logits, rest), "update")
    # Past the end of a sequence there are no queries: nothing weighs anything.
    return logits, build.mask("normaliser_valid", normaliser, Relation.VALID, INFINITY, "update")


def _line(
    build: Builder, tiles: dict[str, Tile], attention: Attention, values: Tile, rest: Tile | None, slope: Tile
) -> Tile:
    """As _mean, of a line: see there. slope: the logarithm of W's ridge, [t].

    Products take keys as they are, for a tile of their distances from a mean would be one of three axes."""

    def make(name: str, expr: Expr, *args: Tile) -> Tile:
        return build.make(name, expr, *args, origin="update")

    def along(a: Tile, b: Tile) -> Tile:
        return build.contract("along", a, b, "k", "update")

    logits, normaliser = _shares(build, tiles, attention, rest)
    keys, scale = tiles["k"], tiles[SCALE]
    query = make("query", sym(scale) * sym(tiles["q"]), scale, tiles["q"])
    centre = build.emit("centre", ("t", "k"), Attend(logits, normaliser, keys, rest), "update")
    share = None
    if rest is not None:
        share = make("share", symbolic.exp(sym(rest) - sym(normaliser)), rest, normaliser)
        centre = make("centre", sym(centre) + sym(share) * sym(query), centre, share, query)
    away = make("away", sym(centre) - sym(query), centre, query)
    stiffness = -symbolic.at_least(sym(normaliser) - sym(slope), -STIFF)
    stiffness = make("stiffness", symbolic.exp(stiffness), slope, normaliser)
    # Past the end of a sequence a system has a solution too.
    stiffness = build.mask("stiffness_valid", stiffness, Relation.VALID, 1.0, "update")
    weights = make("weights", symbolic.exp(sym(logits) - sym(normaliser)), logits, normaliser)

    def spread(x: Tile) -> Tile:
        """(k_i - centre)' x, [t, s]."""
        seen, own = build.contract("seen_along", x, keys, "k", "update"), along(x, centre)
        return make("spread", sym(seen) - sym(own), seen, own)

    def applied(x: Tile) -> Tile:
        moved = spread(x)
        pulls = make("pulls", sym(weights) * sym(moved), weights, moved)
        level = build.reduce("level", pulls, ("t",), "update")
        expr, used = sym(stiffness) * sym(x) - sym(level) * sym(centre), [stiffness, x, level, centre]
        if share is not None:
            own = along(x, away)
            expr, used = expr + sym(share) * sym(own) * sym(away), [*used, share, own, away]
        return build.contract("applied", pulls, keys, "s", "update", add=make("held", expr, *used))

    x = build.conjugate("x", away, stiffness, applied, "update")
    moved = spread(x)
    shares = make("shares", sym(weights) * (1 - sym(moved)), weights, moved)
    return build.contract(answer_name(attention.readout), shares, values, "s", "update")


def _sum(build: Builder, tiles: dict[str, Tile], attention: Attention, values: Tile, rest: Tile) -> Tile:
    """[t, v], of the same. The ridge alone divides, and is taken off the logarithm of each weight."""
    near, parts = _near(build, tiles, attention), _beside(build, tiles, attention)
    log = attention.similarity + sum(map(sym, parts))
    weights = _weights(build, log, near | {t.name: t for t in parts}, rest, attention)
    return build.contract(answer_name(attention.readout), weights, values, "s", "update")


def _beside(build: Builder, tiles: dict[str, Tile], attention: Attention) -> tuple[Tile, ...]:
    """The logarithms of what multiplies exp(similarity), [t, s] or [s]: decays, and the weight of the key's token."""
    parts = []
    if attention.log_decay is not None:
        parts.append(_forgotten(build, _of_tokens(build, tiles, "log_decay", attention.log_decay, "t", "decay")))
    if attention.log_weight != ZERO:
        parts.append(_of_tokens(build, tiles, "log_weight", attention.log_weight, "s", "loss"))
    return tuple(parts)


def _seen(build: Builder, pairs: Tile, attention: Attention, fill: float) -> Tile:
    pairs = build.mask("seen", pairs, Relation.CAUSAL, fill, "causality")
    if attention.window is None:
        return pairs
    return build.mask("windowed", pairs, Window(attention.window), fill, "window")


def _weights(build: Builder, log: Expr, tiles: dict[str, Tile], log_ridge: Tile, attention: Attention) -> Tile:
    """exp(log - log_ridge) of the pairs that are seen, where nothing has to be taken off first. If each pair has an
    exponential still, that is masked ahead: of pairs that are not seen, as of queries past the end of a sequence, it
    may be too large for a float."""
    factor, exponent = symbolic.exponential(log)
    if not any("t" in tiles[n].axes for n in symbolic.names(exponent)):
        if attention.fit.log_ridge != ZERO:
            exponent, tiles = exponent - sym(log_ridge), tiles | {log_ridge.name: log_ridge}
        weights = build.elementwise("weights", factor * symbolic.exp(exponent), tiles, "similarity", axes=PAIRS)
        return _seen(build, weights, attention, 0.0)
    ridge = build.mask("rest_valid", log_ridge, Relation.VALID, INFINITY, "update")
    logits = build.elementwise("logits", exponent - sym(ridge), tiles | {ridge.name: ridge}, "similarity", axes=PAIRS)
    logits = _seen(build, logits, attention, -INFINITY)
    return build.elementwise("weights", factor * symbolic.exp(sym(logits)), tiles | {logits.name: logits}, "similarity")


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


def _near(build: Builder, tiles: dict[str, Tile], attention: Attention) -> dict[str, Tile]:
    """What a similarity's symbols stand for."""
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
    return tiles | used


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
