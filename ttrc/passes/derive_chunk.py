"""Recurrence -> tile program of one chunk: matrix products where the recurrence has a loop over tokens.

Inside a chunk the state at each token is a sum of what the chunk started with and of what its earlier tokens wrote,
u_t = -e_t, with factors that derive_moves.py works out. Read-outs and predictions of that sum are products with the
states plus a masked C x C product; where e_t is affine in p_t, the u solve a unit lower-triangular system (the WY / UT
transform), whose matrix is the same for every value channel. Where it is not, the predictions solve
p = what the states give - (masked K K') e(p): row after row, exactly, for a row needs the errors of earlier ones alone.
Of several associations what each writes is an unknown of its own, and eliminate.py takes one after the other out.
Where gradients are frozen at a segment's start, which then is a chunk, predictions hang on the states alone. Where
weights are a link of the state, they stand in its place in what is read, once a chunk; what is carried stays linear.
"""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.ir.recurrence import Affine, Association, Hebbian, Nonlinear, Recurrence
from ttrc.ir.tile import SCALE, Carry, Program, Relation, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.passes.derive_error import derive_error, derive_sum
from ttrc.passes.derive_features import derive_features, derive_keys
from ttrc.passes.derive_link import derive_link, once
from ttrc.passes.derive_moves import Factor, Terms, derive_moves, of
from ttrc.passes.derive_readout import answer_name, derive_readout
from ttrc.passes.eliminate import Row, eliminate
from ttrc.symbolic import ONE, ZERO, Expr, names


def chunk_inputs(recurrence: Recurrence) -> tuple[Tile, ...]:
    return (
        Tile("q", ("t", *recurrence.keys)),
        Tile("k", ("t", *recurrence.keys)),
        Tile("v", ("t", "v")),
        *(Tile(g.name, ("t", *g.per.axes)) for g in recurrence.gates),
        Tile("scale", ()),
    )


def _on_diagonal(build: Builder, key: Tile, by: Tile) -> Tile:
    """What a token's key finds under another of its keys, on the diagonal of a C x C tile: no mask keeps that alone."""
    terms = build.elementwise("own_terms", sym(key) * sym(by), {t.name: t for t in (key, by)}, "prediction")
    own = build.reduce("own_overlap", terms, ("t",), "prediction")
    rows = build.elementwise("own_rows", sym(own), {own.name: own}, "prediction", ("t", "s"))
    lower = build.mask("own_lower", rows, Relation.CAUSAL, 0.0, "causality")
    before = build.mask("own_before", rows, Relation.STRICT, 0.0, "causality")
    return build.elementwise("own", sym(lower) - sym(before), {t.name: t for t in (lower, before)}, "prediction")


@dataclass(frozen=True)
class _Writer:
    """What an association writes: keys, [t, k], and u, [t, v]; both also by the tokens that write."""

    keys: Tile
    keys_s: Tile
    u: Tile
    u_s: Tile


def derive_chunk(recurrence: Recurrence) -> Program:
    inputs = chunk_inputs(recurrence)
    build = Builder(inputs)
    state = build.tile("S", ("k", "v"))
    states = (state,) if recurrence.momentum is None else (state, build.tile("M", ("k", "v")))
    tiles = {t.name: t for t in inputs}
    tiles |= derive_features(build, tiles, recurrence.features)
    q, scale = tiles["q"], tiles[SCALE]

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

    def keyed(association: Association) -> tuple[Tile, Tile, Tile]:
        """The key that is asked, and the one that the error is written under; that also by the tokens that write."""
        key, writing = derive_keys(build, tiles, association)
        if recurrence.write != ONE:
            writing = make("writing", recurrence.write * sym(writing), writing, origin="retention")
        return key, writing, build.relabel(writing, "tokens that write")

    for reduction in recurrence.known_sums:
        tiles[reduction.symbol.name] = derive_sum(build, tiles, reduction)
    keys = {association: keyed(association) for association in recurrence.associations}
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

    def sees_own(asked: Association, writes: Association) -> bool:
        """Whether a prediction sees what another association has written at the same token."""
        order = recurrence.associations
        return recurrence.in_turn and order.index(writes) < order.index(asked)

    def system(asked: Association, writes: Association, row: Factor = Factor()) -> Tile:
        """How much a token's prediction moves with what earlier ones write."""
        (key, *_), (*_, by) = keys[asked], keys[writes]
        if moves.between is not None:
            between = moves.between
            pairs = build.decayed("overlap", key, by, "k", between.steps, between.reads_own, "prediction")
            total, used = sym(pairs), (pairs,)
            if sees_own(asked, writes):
                own = _on_diagonal(build, key, keys[writes][1])
                total, used = total + sym(own), (pairs, own)
            return make("system", row.expr * total, *used, *row.tiles, origin=asked.origin)
        overlap = build.contract("overlap", key, by, "k", "prediction")
        if sees_own(asked, writes):
            return masked("system", overlap, moves.out_mask, strict=False, by=row)
        return masked("system", overlap, moves.read_mask, strict=True, by=row)

    frozen = recurrence.segment is not None
    read = ((weights, Factor()),) if frozen else moves.read
    # What hangs on no prediction is known; the other errors hang on the predictions that all of them move. A nonlinear
    # one comes last: eliminated are affine ones, and what is left may be substituted.
    known = [a for a in recurrence.associations if isinstance(a.error, Hebbian)]
    asking = sorted(
        (a for a in recurrence.associations if a not in known), key=lambda a: isinstance(a.error, Nonlinear)
    )
    writers: dict[Association, _Writer] = {}

    def write(association: Association, u: Tile) -> None:
        *_, writing, writing_s = keys[association]
        writers[association] = _Writer(writing, writing_s, u, build.relabel(u, "tokens that write"))

    for association in known:
        write(association, build.elementwise("u", -association.error.offset, tiles, association.origin, ("t", "v")))

    def predicted(name: str, association: Association) -> tuple[Expr, tuple[Tile, ...]]:
        """What the states, and what is known, make of a prediction."""
        key, *_ = keys[association]
        expr, used = seen(name, read, key, "prediction")
        if frozen:
            return expr, used
        pairs = [(system(association, other), writers[other].u_s) for other in known]
        told = [build.contract("told", matrix, u_s, "s", "prediction") for matrix, u_s in pairs]
        return sum(map(sym, told), expr), (*used, *told)

    def error_of(prediction: Tile, association: Association) -> Tile:
        return derive_error(build, tiles, association.error, prediction, association.origin)

    def row(association: Association) -> Row:
        origin = association.origin
        match association.error:
            case Affine(slope, offset):
                rate = of(make("rate", slope, origin=origin)) if names(slope) else Factor(slope)
                matrices = tuple(system(association, other, rate) for other in asking)
                expr, used = predicted("prediction", association)
                rhs = make("rhs", -offset - rate.expr * expr, *rate.tiles, *used, origin=origin)
                return Row(rhs, matrices)
            case _:
                matrices = tuple(system(association, other) for other in asking)
                expr, used = predicted("carried", association)
                return Row(make("seen", expr, *used, origin="prediction"), matrices, added=True)

    def solve(matrix: Tile, rhs: Tile) -> Tile:
        last = asking[-1]
        if isinstance(last.error, Affine):
            return build.solve("u", matrix, rhs, False, "update")
        prediction = build.substitute("prediction", matrix, rhs, lambda p: error_of(p, last), False, "update")
        error = error_of(prediction, last)
        return make("u", -sym(error), error, origin=last.origin)

    if frozen:
        for association in asking:
            expr, used = predicted("prediction", association)
            match association.error:
                case Affine(slope, offset):
                    u = make("u", -slope * expr - offset, *used, origin=association.origin)
                case _:
                    error = error_of(*used, association)
                    u = make("u", -sym(error), error, origin=association.origin)
            write(association, u)
    elif asking:
        for association, u in zip(asking, eliminate(build, [row(a) for a in asking], solve)):
            write(association, u)

    def attention(by: Tile) -> Tile:
        """How much of what earlier tokens write under `by`, and of its own, a token reads."""
        if moves.between is not None:
            scores = build.decayed("scores", q, by, "k", moves.between.steps, True, "read-out")
            return make("attention", sym(scale) * sym(scores), scores, origin="read-out")
        scores = build.contract("overlap_q", q, by, "k", "read-out")
        # Where predictions want the mask too, or it is a sum of masks, the scale multiplies scores; else it is in it.
        out_mask, factor = moves.out_mask, of(scale)
        shared = not (frozen or isinstance(recurrence.error, Hebbian)) and out_mask == moves.read_mask
        if out_mask is not None and not shared and recurrence.momentum is None:
            (how,) = [s.op for s in build.statements if s.target == out_mask]
            args = {t.name: t for t in (*how.args, scale)}
            out_mask, factor = build.elementwise("weight", sym(scale) * how.expr, args, "read-out"), Factor()
        return masked("attention", scores, out_mask, strict=False, by=factor)

    written = tuple(writers.values())
    weighed = [attention(w.keys_s) for w in written]
    expr, used = seen("inherited", out, q, "read-out")
    if moves.between is not None:  # what a token reads of its own, free of every decay
        for w in written:
            terms = make("self_terms", sym(q) * sym(w.keys), q, w.keys, origin="read-out")
            own = build.reduce("self_read", terms, ("t",), "read-out")
            expr, used = expr + sym(scale) * sym(own) * sym(w.u), (*used, own, w.u)
    answer = make("carried_out", expr, *used, origin="read-out")
    for w, pairs in zip(written, weighed):
        name = answer_name(recurrence.readout) if w is written[-1] else "answered"
        answer = build.contract(name, pairs, w.u_s, "s", "read-out", add=answer)
    o = derive_readout(build, tiles, recurrence.readout, answer)

    def left(w: _Writer, factor: Factor) -> tuple[Tile, Tile]:
        """The keys and the u of an association, one of them times what the chunk's end sees of them."""
        if moves.between is not None:
            return make("kept_keys", factor.expr * sym(w.keys), w.keys, *factor.tiles, origin="retention"), w.u
        return w.keys, make("written", factor.expr * sym(w.u), w.u, *factor.tiles, origin="retention")

    carries = []
    for own, terms, factor in moves.following:
        outer = [left(w, factor) for w in written]
        expr, used = combined("kept", terms, lambda tile: tile, "retention")
        after = make("kept", expr, *used, origin="retention")
        for number, (keys, u) in enumerate(outer, start=1):
            name = f"{own.name}_next" if number == len(outer) else "kept"
            after = build.contract(name, keys, u, "t", "update", add=after)
        carries.append(Carry(own.name, own, after, reverse=False))
    return Program(inputs, tuple(build.statements), tuple(carries), (("o", o),), answer=answer)
