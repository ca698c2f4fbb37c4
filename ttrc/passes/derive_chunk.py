"""Recurrence -> tile program of one chunk: matrix products where the recurrence has a loop over tokens.

Inside a chunk the state at each token is a sum of what the chunk started with and of what its earlier tokens wrote,
u_t = -e_t, with factors that derive_moves.py works out. Read-outs and predictions of that sum are products with the
states plus a masked C x C product; where e_t is affine in p_t, the u solve a unit lower-triangular system (the WY / UT
transform), whose matrix is the same for every value channel. Where it is not, the predictions solve
p = what the states give - (masked K K') e(p): row after row, exactly, for a row needs the errors of earlier ones alone.
Where gradients are frozen at a segment's start, which then is a chunk, predictions hang on the states alone. Where
weights are a link of the state, they stand in its place in what is read, once a chunk; what is carried stays linear.
"""

from __future__ import annotations

from ttrc.ir.recurrence import Affine, Hebbian, Nonlinear, Recurrence
from ttrc.ir.tile import SCALE, Carry, Program, Relation, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.passes.derive_error import derive_error, derive_sum
from ttrc.passes.derive_features import derive_features
from ttrc.passes.derive_link import derive_link, once
from ttrc.passes.derive_moves import Factor, Terms, derive_moves, of
from ttrc.passes.derive_readout import answer_name, derive_readout
from ttrc.symbolic import ONE, ZERO, Expr, names


def chunk_inputs(recurrence: Recurrence) -> tuple[Tile, ...]:
    return (
        Tile("q", ("t", "k")),
        Tile("k", ("t", "k")),
        Tile("v", ("t", "v")),
        *(Tile(g.name, ("t", *g.per.axes)) for g in recurrence.gates),
        Tile("scale", ()),
    )


def derive_chunk(recurrence: Recurrence) -> Program:
    inputs = chunk_inputs(recurrence)
    build = Builder(inputs)
    state = build.tile("S", ("k", "v"))
    states = (state,) if recurrence.momentum is None else (state, build.tile("M", ("k", "v")))
    tiles = {t.name: t for t in inputs}
    tiles |= derive_features(build, tiles, recurrence.features)
    q, k, scale = tiles["q"], tiles["k"], tiles[SCALE]

    def make(name: str, expr: Expr, *more: Tile, origin: str) -> Tile:
        """expr over the inputs' names and the symbols of `more`; tiles have names of their own, so none can clash."""
        return build.elementwise(name, expr, tiles | {t.name: t for t in more}, origin)

    def combined(name: str, terms: Terms, value, origin: str) -> tuple[Expr, tuple[Tile, ...]]:
        """sum of factor * value(state): an expression, and the tiles that it is over."""
        expr, used = ZERO, []
        for own, factor in terms:
            tile = value(own)
            expr, used = expr + factor.expr * sym(tile), [*used, tile, *factor.tiles]
        return expr, tuple(used)

    writing, k_s = k, build.relabel(k, "tokens that write")
    for reduction in recurrence.known_sums:
        tiles[reduction.symbol.name] = derive_sum(build, tiles, reduction)
    if recurrence.write != ONE:
        writing = make("writing", recurrence.write * sym(k), k, origin="retention")
        k_s = build.relabel(writing, "tokens that write")
    moves = derive_moves(build, recurrence, tiles, states)
    weights = state
    if recurrence.link is not None:
        fixed = {name: once(build, tiles[name]) for name in sorted(recurrence.link.gates)}
        weights = derive_link(build, fixed, recurrence.link, state)
    # The read-out's scale stands where factors do already: o, and its cotangent, are products as they are.
    out = tuple(
        (weights if own == state else own, Factor(sym(scale) * factor.expr, (*factor.tiles, scale)))
        for own, factor in moves.out
    )

    def masked(name: str, pairs: Tile, mask: Tile | None, *, strict: bool, by: Factor = Factor()) -> Tile:
        """pairs times the mask and `by`, a number or one a row; 0 above the diagonal, or on it too if strict."""
        if strict:
            pairs = build.mask("earlier", pairs, Relation.STRICT, 0.0, "causality")
        factors = [t for t in (mask, pairs) if t is not None]
        product = by.expr
        for factor in factors:
            product = product * sym(factor)
        product = make(name, product, *factors, *by.tiles, origin="loss" if mask is None else "retention")
        seen = strict or mask is not None
        return product if seen else build.mask(name, product, Relation.CAUSAL, 0.0, "causality")

    def seen(name: str, terms: Terms, by: Tile, origin: str) -> tuple[Expr, tuple[Tile, ...]]:
        """by times the states, each with its factor: of the token, or of each of its key channels."""
        if any("k" in t.axes for _, factor in terms for t in factor.tiles):
            ((own, factor),) = terms
            decayed = make(f"{by.name}_decayed", factor.expr * sym(by), by, *factor.tiles, origin="retention")
            product = build.contract(name, decayed, own, "k", origin)
            return sym(product), (product,)
        return combined(name, terms, lambda own: build.contract(name, by, own, "k", origin), origin)

    def system(row: Factor = Factor()) -> Tile:
        """How much a token's prediction moves with what earlier ones write."""
        if moves.between is not None:
            between = moves.between
            pairs = build.decayed("overlap", k, k_s, "k", between.steps, between.reads_own, "prediction")
            return make("system", row.expr * sym(pairs), pairs, *row.tiles, origin="loss")
        overlap = build.contract("overlap", k, k_s, "k", "prediction")
        return masked("system", overlap, moves.read_mask, strict=True, by=row)

    frozen = recurrence.segment is not None
    read = ((weights, Factor()),) if frozen else moves.read
    match recurrence.error:
        case Hebbian(offset):
            u = build.elementwise("u", -offset, tiles, "loss", ("t", "v"))
        case Affine(slope, offset) if frozen:
            expr, used = seen("prediction", read, k, "prediction")
            u = make("u", -slope * expr - offset, *used, origin="loss")
        case Affine(slope, offset):
            rate = of(make("rate", slope, origin="loss")) if names(slope) else Factor(slope)
            matrix = system(rate)
            expr, used = seen("prediction", read, k, "prediction")
            rhs = make("rhs", -offset - rate.expr * expr, *rate.tiles, *used, origin="loss")
            u = build.solve("u", matrix, rhs, False, "update")
        case Nonlinear() as error:

            def write(prediction: Tile) -> Tile:
                return derive_error(build, tiles, error, prediction)

            if frozen:
                prediction = build.contract("prediction", k, weights, "k", "prediction")
            else:
                matrix = system()
                expr, used = seen("carried", read, k, "prediction")
                base = make("seen", expr, *used, origin="prediction")
                prediction = build.substitute("prediction", matrix, base, write, False, "update")
            written = write(prediction)
            u = make("u", -sym(written), written, origin="loss")

    u_s = build.relabel(u, "tokens that write")
    if moves.between is not None:
        scores = build.decayed("scores", q, k_s, "k", moves.between.steps, True, "read-out")
        attention = make("attention", sym(scale) * sym(scores), scores, origin="read-out")
    else:
        scores = build.contract("overlap_q", q, k_s, "k", "read-out")
        # Where predictions want the mask too, or it is a sum of masks, the scale multiplies scores; else it is in it.
        out_mask, by = moves.out_mask, of(scale)
        shared = not (frozen or isinstance(recurrence.error, Hebbian)) and out_mask == moves.read_mask
        if out_mask is not None and not shared and recurrence.momentum is None:
            (how,) = [s.op for s in build.statements if s.target == out_mask]
            args = {t.name: t for t in (*how.args, scale)}
            out_mask, by = build.elementwise("weight", sym(scale) * how.expr, args, "read-out"), Factor()
        attention = masked("attention", scores, out_mask, strict=False, by=by)
    expr, used = seen("inherited", out, q, "read-out")
    if moves.between is not None:  # what a token reads of its own, free of every decay
        own = build.reduce(
            "self_read", make("self_terms", sym(q) * sym(writing), q, writing, origin="read-out"), ("t",), "read-out"
        )
        expr, used = expr + sym(scale) * sym(own) * sym(u), (*used, own, u)
    carried_out = make("carried_out", expr, *used, origin="read-out")
    name = answer_name(recurrence.readout)
    answer = build.contract(name, attention, u_s, "s", "read-out", add=carried_out)
    o = derive_readout(build, tiles, recurrence.readout, answer)

    carries = []
    for own, terms, factor in moves.following:
        if moves.between is None:
            keys, written = writing, make("written", factor.expr * sym(u), u, *factor.tiles, origin="retention")
        else:
            keys, written = make("kept_keys", factor.expr * sym(writing), writing, *factor.tiles, origin="retention"), u
        expr, used = combined("kept", terms, lambda tile: tile, "retention")
        kept = make("kept", expr, *used, origin="retention")
        after = build.contract(f"{own.name}_next", keys, written, "t", "update", add=kept)
        carries.append(Carry(own.name, own, after, reverse=False))
    return Program(inputs, tuple(build.statements), tuple(carries), (("o", o),), answer=answer)
