"""The minimum over all tokens so far, S = argmin sum_i weight_i loss_i(S' k_i, v_i) + retention(S), in closed form.

The loss is quadratic in p with one curvature c a token for all value channels, its gradient c p - b; the retention is
quadratic in S with a curvature lam. With the decays of the history, the sum's slope at S is H S - G + lam S,

  H_t = a H_{t-1} + c k k'      G_t = a G_{t-1} + k b'      S_t = (H_t + diag(lam))^-1 G_t

and a read-out takes one vector of it, o = G' x with (H + diag(lam)) x = q: as a matrix S is never made. Inside a chunk
H and G are sums over tokens with the masks of any linear memory, so that H times x is masked linear attention of x, and
the equations of all of a chunk's tokens are solved side by side, each row by itself, by conjugate gradients.

Of a vector memory H and G are vectors too, and S = G / (H + lam) entry by entry; its chunks are scans (derive_scan).
"""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.recurrence import MATRIX, Affine, Recurrence
from ttrc.ir.tile import SCALE, Carry, Program, Relation, Tile
from ttrc.language.spec import Domain
from ttrc.passes.builder import CHANNELS_OF_KEYS, Builder, sym
from ttrc.passes.chunk import chunk_inputs
from ttrc.passes.derive_association import by_channel
from ttrc.passes.derive_error import derive_sum
from ttrc.passes.derive_features import derive_features
from ttrc.passes.derive_moves import Factor, derive_factor, derive_moves, of
from ttrc.passes.derive_readout import answer_name, derive_readout
from ttrc.passes.derive_token import token_inputs
from ttrc.symbolic import ONE, Expr, Scope

KEYS = ("k", "j")


class NoClosedForm(Exception):
    """`section` is the part of a spec that rules it out, `why` says how."""

    def __init__(self, section: str, why: str, expected: str):
        super().__init__(why)
        self.section, self.why, self.expected = section, why, expected


def solve_closed(scope: Scope, found: tuple[Expr, Expr] | str, slope: Expr) -> tuple[Affine, Expr]:
    """The error c p - b and the ridge lam. found: the gradient's (slope, offset) or why there is none; slope: of the
    retention in S."""
    quadratic = "a loss that is quadratic in p, such as norm2(p - v) / 2"
    if isinstance(found, str):
        raise NoClosedForm("loss", f"the gradient of the loss {found}, and a closed form takes a linear one", quadratic)
    c, offset = found
    if c == 0:
        why = "the loss is linear in p: its closed form reads what a gradient step writes, k over the ridge"
        raise NoClosedForm("loss", why, f'{quadratic}, or rule = "gradient" with at = "previous"')
    if not symbolic.is_positive(c + symbolic.symbol("any", Domain.POSITIVE)):
        why = f"the loss is not provably convex in p (its second derivative is {symbolic.equation(c)})"
        raise NoClosedForm("loss", why, "a convex loss and a weight whose domain is nonnegative")
    ridge = "a ridge such as lam * norm2(S) / 2 with lam positive, one number a head or a key channel"
    s = scope.symbols["S"]
    solved = symbolic.affine(slope, s)
    if solved is None or any(scope.depends(part, s) for part in solved):
        raise NoClosedForm("retention", "the retention is not quadratic in S, entry by entry", ridge)
    lam, pull = solved
    if pull != 0:
        why = f"the retention pulls S towards a constant ({symbolic.equation(symbolic.tidy(-pull / lam))})"
        raise NoClosedForm("retention", why, ridge)
    if "v" in scope.axes_of(lam) and not by_channel(scope):
        why = f"the ridge {symbolic.equation(lam)} differs by value channel, and each would have a matrix of its own"
        raise NoClosedForm("retention", why, ridge)
    if not symbolic.is_positive(lam):
        why = f"the ridge {symbolic.equation(lam)} is not provably positive, so that S may not be unique"
        raise NoClosedForm("retention", why, ridge)
    return Affine(c, offset), lam


class _Step:
    """What the programs of a chunk and of a token have in common; `wide` are the axes of the token, if any."""

    def __init__(self, recurrence: Recurrence, inputs: tuple[Tile, ...], wide: tuple[str, ...]):
        self.build, self.readout = Builder(inputs), recurrence.readout
        of_matrix = recurrence.state == MATRIX
        self.H = self.build.tile("H", KEYS if of_matrix else recurrence.state)
        self.G = self.build.tile("G", recurrence.state)
        self.tiles = tiles = {t.name: t for t in inputs}
        tiles |= derive_features(self.build, tiles, recurrence.features)
        for reduction in recurrence.known_sums:
            tiles[reduction.symbol.name] = derive_sum(self.build, tiles, reduction)
        own = (*wide, *recurrence.keys)
        self.ridge = self.build.elementwise("ridge", recurrence.curvature, tiles, "retention", own)
        self.b = self.build.elementwise("b", -recurrence.error.offset, tiles, "loss", (*wide, "v"))

    def make(self, name: str, expr: Expr, *more: Tile, origin: str) -> Tile:
        """expr over the inputs' names and the symbols of `more`."""
        return self.build.elementwise(name, expr, self.tiles | {t.name: t for t in more}, origin)

    def across(self, tile: Tile) -> Tile:
        """Key channels as the other ones, or back. A vector has no other ones."""
        return self.build.relabel(tile, "update", CHANNELS_OF_KEYS) if "k" in self.H.axes else tile

    def factor(self, name: str, expr: Expr, origin: str) -> Factor:
        return derive_factor(self.build, name, expr, self.tiles, origin)

    def end(self, inputs: tuple[Tile, ...], answer: Tile, H: Tile, G: Tile) -> Program:
        o = derive_readout(self.build, self.tiles, self.readout, answer)
        carries = Carry("H", self.H, H, reverse=False), Carry("G", self.G, G, reverse=False)
        return Program(inputs, tuple(self.build.statements), carries, (("o", o),), answer=answer)


def closed_chunk(recurrence: Recurrence) -> Program:
    inputs = chunk_inputs(recurrence)
    step = _Step(recurrence, inputs, ("t",))
    build, make, tiles = step.build, step.make, step.tiles
    q, k, scale = tiles["q"], tiles["k"], tiles[SCALE]
    moves = derive_moves(build, recurrence, tiles, (step.G,))
    ((_, until),), ((_, ((_, total),), after),) = moves.out, moves.following
    k_s, b_s = (build.relabel(t, "tokens that write") for t in (k, step.b))
    c = step.factor("c", recurrence.error.slope, "loss")
    c_s = of(build.relabel(c.tiles[0], "tokens that write")) if c.tiles else c

    def masked(name: str, pairs: Tile, by: Factor, origin: str) -> Tile:
        """pairs, where s <= t, times the decay between the two tokens and a factor."""
        mask = moves.out_mask
        if mask is None:
            mask = build.mask(
                "seen", build.constant("everything", ONE, ("t", "s"), origin), Relation.CAUSAL, 0.0, origin
            )
        weight = make(f"{name}_weight", sym(mask) * by.expr, mask, *by.tiles, origin=origin)
        return make(name, sym(weight) * sym(pairs), weight, pairs, origin=origin)

    def applied(x: Tile) -> Tile:
        """(H + diag(lam)) x, each row with the H of its own token."""
        before = step.across(build.contract("by_H", x, step.H, "k", "update"))
        expr = sym(step.ridge) * sym(x) + until.expr * sym(before)
        start = make("by_ridge", expr, step.ridge, x, before, *until.tiles, origin="update")
        pairs = build.contract("overlap", x, k_s, "k", "update")
        return build.contract("applied", masked("seen_keys", pairs, c_s, "update"), k_s, "s", "update", add=start)

    x = build.conjugate("x", q, step.ridge, applied, "update")
    pairs = build.contract("overlap", x, k_s, "k", "update")
    attention = masked("attention", pairs, Factor(sym(scale), (scale,)), "read-out")
    inherited = build.contract("inherited", x, step.G, "k", "read-out")
    start = make("carried_out", sym(scale) * until.expr * sym(inherited), inherited, *until.tiles, origin="read-out")
    answer = build.contract(answer_name(recurrence.readout), attention, b_s, "s", "read-out", add=start)

    following = []
    for state, written in (step.H, step.across(k)), (step.G, step.b):
        by = c if state == step.H else Factor()
        expr = after.expr * by.expr * sym(written)
        written = make("written", expr, written, *after.tiles, *by.tiles, origin="decay")
        kept = make("kept", total.expr * sym(state), state, *total.tiles, origin="decay")
        following.append(build.contract(f"{state.name}_next", k, written, "t", "update", add=kept))
    return step.end(inputs, answer, *following)


def closed_token(recurrence: Recurrence) -> Program:
    inputs = token_inputs(recurrence)
    step = _Step(recurrence, inputs, ())
    build, make, tiles = step.build, step.make, step.tiles
    q, k, scale = tiles["q"], tiles["k"], tiles[SCALE]
    c, decay = step.factor("c", recurrence.error.slope, "loss"), step.factor("decay", recurrence.decay, "decay")
    following = []
    for state, written in (step.H, step.across(k)), (step.G, step.b):
        by = c if state == step.H else Factor()
        row = make("written", by.expr * sym(written), written, *by.tiles, origin="loss")
        expr = decay.expr * sym(state) + sym(k) * sym(row)
        following.append(make(f"{state.name}_next", expr, state, k, row, *decay.tiles, origin="update"))
    H, G = following

    if recurrence.state != MATRIX:
        x = make("x", sym(q) / (sym(H) + sym(step.ridge)), q, H, step.ridge, origin="update")
        answer = make(answer_name(recurrence.readout), sym(scale) * sym(x) * sym(G), x, G, origin="read-out")
        return step.end(inputs, answer, H, G)

    def applied(x: Tile) -> Tile:
        products = make("products", sym(H) * sym(x), H, x, origin="update")
        row = step.across(build.reduce("by_H", products, ("j",), "update"))
        return make("applied", sym(step.ridge) * sym(x) + sym(row), step.ridge, x, row, origin="update")

    x = build.conjugate("x", q, step.ridge, applied, "update")
    read = make("read", sym(x) * sym(G), x, G, origin="read-out")
    total = build.reduce("total", read, ("v",), "read-out")
    answer = make(answer_name(recurrence.readout), sym(scale) * sym(total), total, origin="read-out")
    return step.end(inputs, answer, H, G)
