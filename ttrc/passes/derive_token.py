"""Recurrence -> tile program of one token: the recurrent form, exact for any decay."""

from __future__ import annotations

from ttrc.ir.recurrence import MATRIX, Affine, Association, Hebbian, Nonlinear, Recurrence
from ttrc.ir.tile import BEGINS, INSIDE, SCALE, Carry, Program, Tile
from ttrc.language.sections import NORMALISER
from ttrc.language.state import OF_ONES
from ttrc.passes.builder import Builder, sym
from ttrc.passes.chunk import Sum
from ttrc.passes.derive_error import derive_error, derive_sum
from ttrc.passes.derive_features import derive_features, derive_keys
from ttrc.passes.derive_link import derive_link
from ttrc.passes.derive_moves import derive_factor
from ttrc.passes.derive_readout import answer_name, derive_readout
from ttrc.passes.of_ones import written_of_ones
from ttrc.symbolic import ONE, ZERO, Expr, choose

INNER = 0.5  # inside of every domain that a state may have


def token_inputs(recurrence: Recurrence) -> tuple[Tile, ...]:
    return (
        Tile("q", recurrence.keys),
        Tile("k", recurrence.keys),
        Tile("v", ("v",)),
        *(Tile(g.name, g.per.axes) for g in recurrence.gates),
        Tile(SCALE, ()),
        *((Tile(BEGINS, ()),) if recurrence.segment is not None else ()),
    )


def derive_token(recurrence: Recurrence) -> Program:
    inputs = token_inputs(recurrence)
    build = Builder(inputs)
    state = build.tile("S", recurrence.state)
    tiles = {t.name: t for t in inputs}
    tiles |= derive_features(build, tiles, recurrence.features)
    q, scale = tiles["q"], tiles[SCALE]
    carries, private = [], []

    def make(name: str, expr: Expr, *more: Tile, origin: str) -> Tile:
        """expr over the inputs' names and the symbols of `more`; tiles have names of their own, so none can clash."""
        return build.elementwise(name, expr, tiles | {t.name: t for t in more}, origin)

    def written(association: Association, key: Tile, seen: Tile) -> Tile:
        """-e, of the prediction for `key` that what is seen makes."""
        origin = association.origin
        if isinstance(association.error, Hebbian):
            return build.elementwise("u", -association.error.offset, tiles, origin, ("v",))
        products = make("products", sym(seen) * sym(key), seen, key, origin="prediction")
        prediction = build.reduce("prediction", products, ("v",), "prediction")
        match association.error:
            case Affine(slope, offset):
                return make("u", -slope * sym(prediction) - offset, prediction, origin=origin)
            case Nonlinear() as error:
                e = derive_error(build, tiles, error, prediction, origin)
                return make("u", -sym(e), e, origin=origin)

    for reduction in recurrence.known_sums:
        tiles[reduction.symbol.name] = derive_sum(build, tiles, reduction)

    def link(of: Tile) -> Tile:
        return derive_link(build, tiles, recurrence.link, of)

    def moved(name: str, of: Tile, own: Tile | None = None) -> Tile:
        """Any state after a token, what the token adds aside or by way of the mirror."""
        if recurrence.mirror is not None:
            return _mirrored(build, tiles, recurrence, of, own)
        if recurrence.decay == ONE:
            return of
        decay = derive_factor(build, "decay", recurrence.decay, tiles, "retention")
        return make(name, decay.expr * sym(of), *decay.tiles, of, origin="retention")

    retained = moved("retained", state)
    seen = weights = link(retained if recurrence.reads_decayed else state)
    if recurrence.segment is not None:
        begins = tiles[BEGINS]

        def since(label: str) -> tuple[Tile, Tile]:
            """What the weights are where a segment begins, 1 <= begins, and what was carried elsewhere."""
            carried = build.tile(label, recurrence.state)
            fresh = choose(ONE, sym(begins), sym(weights), sym(carried))
            return carried, make("start", fresh, begins, weights, carried, origin="update")

        anchor, seen = since("anchor")
        private.append(Carry("anchor", anchor, seen, reverse=False, private=True))

    def moved_by(step: Expr, of: tuple[Tile, ...], name: str = "S_next") -> Tile:
        if recurrence.mirror is not None:
            return moved(name, state, make("push", step, *of, origin="update"))
        return make(name, sym(retained) + step, retained, *of, origin="update")

    def stepped(labels: tuple[str, str], own: Tile, kept: Tile, step: Expr, of: tuple[Tile, ...]) -> tuple[Tile, Sum]:
        """A state after the token, and what that adds, by way of a momentum where there is one; both are carried."""
        label, steps = labels[0], ()
        if recurrence.momentum is not None:
            last = build.tile(labels[1], own.axes)
            gate = derive_factor(build, "momentum", recurrence.momentum, tiles, "update")
            m = make(f"{labels[1]}_next", gate.expr * sym(last) + step, *gate.tiles, last, *of, origin="update")
            step, of, steps = sym(m), (m,), (Carry(labels[1], last, m, reverse=False),)
        after = make(f"{label}_next", sym(kept) + step, kept, *of, origin="update")
        carries.extend((Carry(label, own, after, reverse=False), *steps))
        return after, (step, of)

    def answered(name: str, weights: Tile, keep: tuple[str, ...]) -> Tile:
        read = make("read", sym(q) * sym(weights), q, weights, origin="read-out")
        total = build.reduce("total", read, keep, "read-out")
        return make(name, sym(scale) * sym(total), total, origin="read-out")

    step, of, writings = ZERO, (), []
    for association in recurrence.associations:
        if recurrence.in_turn and of:
            seen = link(moved_by(step, of, "S_so_far"))
        key, writing = derive_keys(build, tiles, association)
        u = written(association, key, seen)
        step, of = step + recurrence.write * sym(writing) * sym(u), (*of, writing, u)
        writings.append(writing)
    if recurrence.mirror is not None:
        whole = moved_by(step, of)
        step, of = sym(whole) - sym(retained), (whole, retained)
    after, (step, of) = stepped(("S", "M"), state, retained, step, of)
    if recurrence.link is None:
        read = after
    elif recurrence.segment is None:
        read = link(after)
    else:
        carried, start = since("W")
        kept = moved("W_kept", start)
        read = make("W_next", sym(kept) + step, kept, *of, origin="update")
        private.append(Carry("W", carried, read, reverse=False, private=True))
    answer = answered(answer_name(recurrence.readout), read, ("v",))
    normaliser = None
    if recurrence.normalised:
        step, of = ZERO, ()
        for association, writing in zip(recurrence.associations, writings):
            u = written_of_ones(association.error)
            step, of = step + recurrence.write * sym(writing) * u, (*of, writing)
        ones = build.tile(OF_ONES["S"], recurrence.keys)
        after, _ = stepped((OF_ONES["S"], OF_ONES["M"]), ones, moved("retained_of_ones", ones), step, of)
        normaliser = answered(NORMALISER, after, () if recurrence.state == MATRIX else recurrence.state)
    o = derive_readout(build, tiles, recurrence.readout, answer, normaliser)
    every = (*carries, *private)
    return Program(inputs, tuple(build.statements), every, (("o", o),), answer=answer, normaliser=normaliser)


def _mirrored(build: Builder, tiles: dict[str, Tile], recurrence: Recurrence, state: Tile, own: Tile | None) -> Tile:
    """mirror(state, own), own 0 where it is None; in the padding of channels, where a state is no number of the
    mirror's domain, 0."""
    padding, inside = [INSIDE[axis] for axis in state.axes], state
    for relation in padding:
        inside = build.mask("S_inside", inside, relation, INNER, "retention")
    known, law = tiles | {"S_prev": inside}, recurrence.at_rest
    if own is not None:
        known, law = known | {"own": own}, recurrence.mirror
    moved = build.elementwise("S_mirrored", law, known, "retention", state.axes)
    for relation in padding:
        moved = build.mask("S_moved", moved, relation, 0.0, "retention")
    return moved
