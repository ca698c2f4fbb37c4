"""Recurrence of a deep memory -> tile programs: of one token; of a chunk, within a segment with frozen gradients.

Inside of such a segment every layer is a linear memory: at each token its weights are a sum of what the chunk started
with and of what earlier tokens wrote, with the factors and masks of derive_moves.py, one decay and one momentum for all
layers. Read-outs go through the layers one by one, each with the weights that its token finds. Where weights are a link
of the state, they stand in its place in all that is read, and what is carried stays linear.

A segment is one chunk, or several. Then what its gradients are taken at, the weights that it started with, is carried
along beside the state, nothing to a caller; so are weights that are a link, which inside of it move as the state does.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.config import is_several_chunks
from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import BEGINS, SCALE, Carry, Program, Relation, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.passes.chunk import combined
from ttrc.passes.derive_error import derive_sum
from ttrc.passes.derive_features import derive_features
from ttrc.passes.derive_link import derive_link
from ttrc.passes.derive_moves import Terms, derive_factor, derive_moves
from ttrc.passes.derive_network import Layer, derive_layers, derive_network, fixed_parameters
from ttrc.passes.derive_readout import derive_readout
from ttrc.symbolic import ONE, Expr, choose


def deep_chunk(recurrence: Recurrence) -> Program:
    inputs = _inputs(recurrence, ("t",))
    build, tiles, states, steps = _start(recurrence, inputs)
    k, queries = tiles["k"], _scaled(build, tiles)
    seen = weights = [derive_link(build, tiles, recurrence.link, own) for own in states]
    anchors, moving, several = [], [], is_several_chunks(recurrence.segment)
    if several:
        anchors, seen = _since(build, tiles, "anchor", states, weights)
    if several and recurrence.link is not None:
        moving, weights = _since(build, tiles, "moving", states, weights)
    layers = derive_layers(
        build, recurrence, tiles, k, lambda i, x: _product(build, f"layer{i + 1}", x, seen[i], "prediction")
    )
    moves = [derive_moves(build, recurrence, tiles, own) for own in zip(states, *([steps] if steps else []))]
    read = dict(zip(states, weights))
    out = [tuple((read.get(own, own), factor) for own, factor in move.out) for move in moves]
    passed = derive_network(
        build,
        recurrence,
        tiles,
        queries,
        lambda i, x: _read(build, i, x, layers[i], out[i], moves[i].out_mask),
        "read-out",
    )
    carries = [_moved(build, layer, own, *following) for layer, move in zip(layers, moves)
               for own, *following in move.following]  # fmt: skip
    carries.sort(key=lambda c: (*states, *steps).index(c.state))
    private = [Carry(a.name, a, start, reverse=False, private=True) for a, start in zip(anchors, seen)]
    for own, layer, move in zip(moving, layers, moves):
        terms, factor = next(following for state, *following in move.following if state in read)
        terms = tuple((read.get(tile, tile), by) for tile, by in terms)
        private.append(replace(_moved(build, layer, own, terms, factor), private=True))
    return _program(recurrence, build, inputs, tiles, carries, passed.result, private)


def _since(build: Builder, tiles: dict[str, Tile], label: str, states: list[Tile], weights: list[Tile]):
    """Tiles that are carried, of the axes of states, and what stands for them here: the weights where a segment begins,
    1 <= begins, and what was carried elsewhere."""
    carried, begins = [build.tile(f"{own.name}_{label}", own.axes) for own in states], tiles[BEGINS]
    fresh = [
        build.make(f"{W.name}_start", choose(ONE, sym(begins), sym(W), sym(last)), begins, W, last, origin="update")
        for W, last in zip(weights, carried)
    ]
    return carried, fresh


def _read(build: Builder, number: int, x: Tile, layer: Layer, out: Terms, mask: Tile | None) -> Tile:
    """x by the weights of a layer as each token finds them: products with the states, and a masked C x C product."""
    key_s, u_s = (build.relabel(tile, "tokens that write") for tile in (layer.key, layer.u))
    scores = build.contract("overlap_q", x, key_s, x.axes[-1], "read-out")
    if mask is None:
        attention = build.mask("attention", scores, Relation.CAUSAL, 0.0, "causality")
    else:
        attention = build.make("attention", sym(scores) * sym(mask), scores, mask, origin="retention")
    name = f"layer{number + 1}"
    expr, used = combined(out, lambda own: _product(build, f"{name}_inherited", x, own, "read-out"))
    inherited = build.make(f"{name}_carried", expr, *used, origin="read-out")
    return build.contract(f"{name}_read", attention, u_s, "s", "read-out", add=inherited)


def _moved(build: Builder, layer: Layer, own: Tile, terms: Terms, factor) -> Carry:
    """A state at the end of a chunk."""
    u = layer.u
    written = build.make("written", factor.expr * sym(u), u, *factor.tiles, origin="retention")
    expr, used = combined(terms, lambda tile: tile)
    kept = build.make("kept", expr, *used, origin="retention")
    after = build.contract(f"{own.name}_next", layer.key, written, "t", "update", add=kept)
    return Carry(own.name, own, after, reverse=False)


def deep_token(recurrence: Recurrence) -> Program:
    inputs = _inputs(recurrence, ())
    build, tiles, states, steps = _start(recurrence, inputs)
    queries, private = _scaled(build, tiles), []

    def make(name: str, expr: Expr, *more: Tile, origin: str) -> Tile:
        return build.elementwise(name, expr, tiles | {t.name: t for t in more}, origin)

    def link(of: list[Tile]) -> list[Tile]:
        return [derive_link(build, tiles, recurrence.link, own) for own in of]

    def kept(of: list[Tile]) -> list[Tile]:
        """What is left of each."""
        if recurrence.decay == ONE:
            return of
        decay = derive_factor(build, "decay", recurrence.decay, tiles, "retention")
        return [make(f"{W.name}_kept", decay.expr * sym(W), *decay.tiles, W, origin="retention") for W in of]

    retained = kept(states)
    seen = weights = link(retained if recurrence.reads_decayed else states)

    if recurrence.segment is not None:
        anchors, seen = _since(build, tiles, "anchor", states, weights)
        private = [Carry(a.name, a, start, reverse=False, private=True) for a, start in zip(anchors, seen)]
    layers = derive_layers(
        build,
        recurrence,
        tiles,
        tiles["k"],
        lambda i, x: _product(build, f"layer{i + 1}", x, seen[i], "prediction"),
    )
    own = [sym(layer.key) * sym(layer.u) for layer in layers]
    made = [(layer.key, layer.u) for layer in layers]
    carries = []
    if steps:
        gate = derive_factor(build, "momentum", recurrence.momentum, tiles, "update")
        following = [
            make(f"{M.name}_next", gate.expr * sym(M) + step, *gate.tiles, M, *by, origin="update")
            for M, step, by in zip(steps, own, made)
        ]
        carries = [Carry(M.name, M, after, reverse=False) for M, after in zip(steps, following)]
        own, made = [sym(M) for M in following], [(M,) for M in following]

    def moved(of: list[Tile], kept: list[Tile]) -> list[Tile]:
        """What each becomes: what is kept of it, and this token's steps."""
        return [
            make(f"{W.name}_next", sym(left) + step, left, *by, origin="update")
            for W, left, step, by in zip(of, kept, own, made)
        ]

    after = moved(states, retained)
    carries = [*(Carry(S.name, S, new, reverse=False) for S, new in zip(states, after)), *carries]
    if recurrence.link is None or recurrence.segment is None:
        read = link(after)
    else:
        moving, start = _since(build, tiles, "moving", states, weights)
        read = moved(moving, kept(start))
        private += [Carry(W.name, W, new, reverse=False, private=True) for W, new in zip(moving, read)]
    passed = derive_network(
        build,
        recurrence,
        tiles,
        queries,
        lambda i, x: _product(build, f"layer{i + 1}_read", x, read[i], "read-out"),
        "read-out",
    )
    return _program(recurrence, build, inputs, tiles, carries, passed.result, private)


def _inputs(recurrence: Recurrence, token: tuple[str, ...]) -> tuple[Tile, ...]:
    """The parameters of a layer norm are not among them: they are carried, and never move."""
    fixed = {tile.name for tile in fixed_parameters(recurrence.network)}
    return (
        Tile("q", (*token, "k")),
        Tile("k", (*token, "k")),
        Tile("v", (*token, "v")),
        *(Tile(g.name, (*token, *g.per.axes)) for g in recurrence.gates if g.name not in fixed),
        Tile(SCALE, ()),
        *((Tile(BEGINS, ()),) if _asks_begins(recurrence, token) else ()),
    )


def _asks_begins(recurrence: Recurrence, token: tuple[str, ...]) -> bool:
    return is_several_chunks(recurrence.segment) if token else recurrence.segment is not None


def _start(recurrence: Recurrence, inputs: tuple[Tile, ...]) -> tuple[Builder, dict[str, Tile], list[Tile], list[Tile]]:
    """The builder, what names stand for, each matrix of weights, and with a momentum their last steps."""
    build = Builder((*inputs, *fixed_parameters(recurrence.network)))
    axes = recurrence.network.axes
    weights = [build.tile(f"W{i}", pair) for i, pair in enumerate(axes, start=1)]
    steps = [build.tile(f"M{i}", pair) for i, pair in enumerate(axes, start=1)]
    tiles = {t.name: t for t in inputs}
    tiles |= derive_features(build, tiles, recurrence.features)
    for reduction in recurrence.known_sums:
        tiles[reduction.symbol.name] = derive_sum(build, tiles, reduction)
    return build, tiles, weights, steps if recurrence.momentum is not None else []


def _program(recurrence: Recurrence, build: Builder, inputs, tiles, carries, answer: Tile, private=()) -> Program:
    o = derive_readout(build, tiles, recurrence.readout, answer)
    fixed = (Carry(tile.name, tile, tile, reverse=False) for tile in fixed_parameters(recurrence.network))
    every = (*carries, *fixed, *private)
    return Program(inputs, tuple(build.statements), every, (("o", o),), answer=answer)


def _scaled(build: Builder, tiles: dict[str, Tile]) -> Tile:
    q, scale = tiles["q"], tiles[SCALE]
    return build.make("query", sym(scale) * sym(q), scale, q, origin="read-out")


def _product(build: Builder, name: str, x: Tile, weights: Tile, origin: str) -> Tile:
    """x W: of a chunk a matrix product, of one token a sum."""
    axis, out = weights.axes
    if len(x.axes) > 1:
        return build.contract(name, x, weights, axis, origin)
    products = build.make(f"{name}_terms", sym(x) * sym(weights), x, weights, origin=origin)
    return build.reduce(name, products, (out,), origin)
