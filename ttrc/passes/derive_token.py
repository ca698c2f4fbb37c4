"""Recurrence -> tile program of one token: the recurrent form, exact for any decay."""

from __future__ import annotations

from ttrc.ir.recurrence import MATRIX, Affine, Association, Hebbian, Nonlinear, Recurrence
from ttrc.ir.tile import BEGINS, INSIDE, SCALE, Carry, Program, Tile
from ttrc.language.sections import NORMALISER
from ttrc.language.state import OF_ONES
from ttrc.passes.builder import Builder, sym
from ttrc.passes.chunk import Sum
from ttrc.passes.derive_error import derive_error, derive_sum, written_of_ones
from ttrc.passes.derive_features import derive_features, derive_keys
from ttrc.passes.derive_link import derive_link
from ttrc.passes.derive_moves import derive_factor
from ttrc.passes.derive_readout import answer_name, derive_readout
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
    token = _Token(recurrence)
    after, step = token.stepped(token.state, "M", token.retained, token.step())
    answer = token.answered(answer_name(recurrence.readout), token.read_from(after, step), ("v",))
    normaliser = None
    if recurrence.normalised:  # the same once more, of a state without the axis of values where that is a matrix
        ones = token.build.tile(OF_ONES["S"], recurrence.keys)
        after, _ = token.stepped(ones, OF_ONES["M"], token.forgotten("retained_of_ones", ones), token.step_of_ones())
        normaliser = token.answered(NORMALISER, after, () if recurrence.state == MATRIX else recurrence.state)
    o = derive_readout(token.build, token.tiles, recurrence.readout, answer, normaliser)
    carries, statements = (*token.carries, *token.private), tuple(token.build.statements)
    return Program(token.inputs, statements, carries, (("o", o),), answer=answer, normaliser=normaliser)


class _Token:
    """A program under way: what names stand for, and the states before and after the token, of the recurrence's axes.

    A step is what the token adds to a state, as an expression and the tiles that it is over.
    """

    def __init__(self, recurrence: Recurrence):
        self.recurrence, self.inputs = recurrence, token_inputs(recurrence)
        self.build = Builder(self.inputs)
        self.state = self.build.tile("S", recurrence.state)
        self.tiles = {t.name: t for t in self.inputs}
        self.tiles |= derive_features(self.build, self.tiles, recurrence.features)
        self.carries: list[Carry] = []
        self.private: list[Carry] = []
        self.writings: list[Tile] = []  # of each association, the key that its error is written under
        for reduction in recurrence.known_sums:
            self.tiles[reduction.symbol.name] = derive_sum(self.build, self.tiles, reduction)
        self.retained = self.forgotten("retained", self.state)
        self.weights = self.linked(self.retained if recurrence.reads_decayed else self.state)
        self.seen = self.weights  # what predictions are made of
        if recurrence.segment is not None:
            anchor = self.build.tile("anchor", recurrence.state)
            self.seen = self.since(anchor)
            self.private.append(Carry("anchor", anchor, self.seen, reverse=False, private=True))

    def make(self, name: str, expr: Expr, *more: Tile, origin: str) -> Tile:
        """expr over the inputs' names and the symbols of `more`; tiles have names of their own, so none can clash."""
        return self.build.elementwise(name, expr, self.tiles | {t.name: t for t in more}, origin)

    def linked(self, state: Tile) -> Tile:
        return derive_link(self.build, self.tiles, self.recurrence.link, state)

    def forgotten(self, name: str, state: Tile) -> Tile:
        """Any state after a token that adds nothing."""
        if self.recurrence.mirror is not None:
            return _mirrored(self.build, self.tiles, self.recurrence, state, None)
        if self.recurrence.decay == ONE:
            return state
        decay = derive_factor(self.build, "decay", self.recurrence.decay, self.tiles, "retention")
        return self.make(name, decay.expr * sym(state), *decay.tiles, state, origin="retention")

    def since(self, carried: Tile) -> Tile:
        """What the weights are where a segment begins, 1 <= begins, and what was carried elsewhere."""
        begins = self.tiles[BEGINS]
        fresh = choose(ONE, sym(begins), sym(self.weights), sym(carried))
        return self.make("start", fresh, begins, self.weights, carried, origin="update")

    def step(self) -> Sum:
        """What all associations add to the state; by way of the mirror where the retention has one."""
        recurrence, seen, step, of = self.recurrence, self.seen, ZERO, ()
        for association in recurrence.associations:
            if recurrence.in_turn and of:
                seen = self.linked(self.with_step("S_so_far", (step, of)))
            key, writing = derive_keys(self.build, self.tiles, association)
            u = self.written(association, key, seen)
            step, of = step + recurrence.write * sym(writing) * sym(u), (*of, writing, u)
            self.writings.append(writing)
        if recurrence.mirror is None:
            return step, of
        after = self.with_step("S_next", (step, of))
        return sym(after) - sym(self.retained), (after, self.retained)

    def step_of_ones(self) -> Sum:
        """What they would add, had every value been 1."""
        step = ZERO
        for association, writing in zip(self.recurrence.associations, self.writings):
            step += self.recurrence.write * sym(writing) * written_of_ones(association.error)
        return step, tuple(self.writings)

    def written(self, association: Association, key: Tile, seen: Tile) -> Tile:
        """-e, [v], of the prediction for `key` that what is seen makes."""
        origin = association.origin
        if isinstance(association.error, Hebbian):
            return self.build.elementwise("u", -association.error.offset, self.tiles, origin, ("v",))
        products = self.make("products", sym(seen) * sym(key), seen, key, origin="prediction")
        prediction = self.build.reduce("prediction", products, ("v",), "prediction")
        match association.error:
            case Affine(slope, offset):
                return self.make("u", -slope * sym(prediction) - offset, prediction, origin=origin)
            case Nonlinear() as error:
                e = derive_error(self.build, self.tiles, error, prediction, origin)
                return self.make("u", -sym(e), e, origin=origin)

    def with_step(self, name: str, step: Sum) -> Tile:
        """The state after the token, but for a momentum."""
        expr, of = step
        if self.recurrence.mirror is not None:
            own = self.make("push", expr, *of, origin="update")
            return _mirrored(self.build, self.tiles, self.recurrence, self.state, own)
        return self.make(name, sym(self.retained) + expr, self.retained, *of, origin="update")

    def stepped(self, state: Tile, last_step: str, retained: Tile, step: Sum) -> tuple[Tile, Sum]:
        """A state after the token, and the step to it: by way of a momentum where there is one, whose state is
        `last_step`. Both are carried."""
        (expr, of), momentum = step, ()
        if self.recurrence.momentum is not None:
            last = self.build.tile(last_step, state.axes)
            gate = derive_factor(self.build, "momentum", self.recurrence.momentum, self.tiles, "update")
            kept = gate.expr * sym(last)
            own = self.make(f"{last_step}_next", kept + expr, *gate.tiles, last, *of, origin="update")
            expr, of, momentum = sym(own), (own,), (Carry(last_step, last, own, reverse=False),)
        after = self.make(f"{state.name}_next", sym(retained) + expr, retained, *of, origin="update")
        self.carries += [Carry(state.name, state, after, reverse=False), *momentum]
        return after, (expr, of)

    def read_from(self, after: Tile, step: Sum) -> Tile:
        """The weights that queries meet: the state, or its link; in a segment its start's, moved as the state is."""
        if self.recurrence.link is None:
            return after
        if self.recurrence.segment is None:
            return self.linked(after)
        (expr, of), carried = step, self.build.tile("W", self.recurrence.state)
        kept = self.forgotten("W_kept", self.since(carried))
        read = self.make("W_next", sym(kept) + expr, kept, *of, origin="update")
        self.private.append(Carry("W", carried, read, reverse=False, private=True))
        return read

    def answered(self, name: str, weights: Tile, keep: tuple[str, ...]) -> Tile:
        """What weights answer to the query, summed over all axes but those to keep."""
        q, scale = self.tiles["q"], self.tiles[SCALE]
        read = self.make("read", sym(q) * sym(weights), q, weights, origin="read-out")
        total = self.build.reduce("total", read, keep, "read-out")
        return self.make(name, sym(scale) * sym(total), total, origin="read-out")


def _mirrored(build: Builder, tiles: dict[str, Tile], recurrence: Recurrence, state: Tile, own: Tile | None) -> Tile:
    """mirror(state, own), own 0 where it is None; in the padding of channels, where a state is no number of the
    mirror's domain, 0."""
    padding, inside = [INSIDE[axis] for axis in state.axes], state
    for relation in padding:
        inside = build.mask("S_inside", inside, relation, INNER, "retention")
    known, mirror = tiles | {"S_prev": inside}, recurrence.at_rest
    if own is not None:
        known, mirror = known | {"own": own}, recurrence.mirror
    if mirror.root is not None:
        base, unknown = mirror.root.base, mirror.root.unknown.name
        sought = build.elementwise("S_sought", base, known, "retention", state.axes)
        known[unknown] = build.root(unknown, mirror.root.pull, unknown, sought, known, "retention")
    moved = build.elementwise("S_mirrored", mirror.law, known, "retention", state.axes)
    for relation in padding:
        moved = build.mask("S_moved", moved, relation, 0.0, "retention")
    return moved
