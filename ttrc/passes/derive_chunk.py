"""Recurrence -> tile program of one chunk: matrix products where the recurrence has a loop over tokens.

Inside a chunk that starts from S the state is S_t = e^{G_t} S + sum_{s<=t} e^{G_t - G_s} k_s u_s', with G the
running sum of the log-decay and u_t = -e_t the written values. Read-outs and predictions of that sum are a
product with S plus a masked C x C product; where e_t is affine in p_t, the u solve a unit lower-triangular
system (the WY / UT transform), whose matrix is the same for every value channel. Where it is not, the predictions
solve p = decayed K S - (masked K K') e(p): row after row, exactly, for a row needs the errors of earlier ones alone.
"""

from __future__ import annotations

from ttrc.ir.recurrence import Affine, Hebbian, Nonlinear, Recurrence
from ttrc.ir.tile import SCALE, Carry, Program, Relation, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.passes.derive_error import derive_error, derive_sum
from ttrc.symbolic import ONE, Expr, at_least, coarse, exp

NEGATIVE_INFINITY = float("-inf")
FORGOTTEN = -800


def chunk_inputs(recurrence: Recurrence) -> tuple[Tile, ...]:
    return (
        Tile("q", ("t", "k")),
        Tile("k", ("t", "k")),
        Tile("v", ("t", "v")),
        *(Tile(g.name, ("t",)) for g in recurrence.gates),
        Tile("scale", ()),
    )


def derive_chunk(recurrence: Recurrence) -> Program:
    inputs = chunk_inputs(recurrence)
    state = Tile("S", ("k", "v"))
    build = Builder((*inputs, state))
    tiles = {t.name: t for t in inputs}
    q, k, scale = tiles["q"], tiles["k"], tiles[SCALE]

    def make(name: str, expr: Expr, *more: Tile, origin: str) -> Tile:
        """expr over the inputs' names and the symbols of `more`; tiles have names of their own, so none can clash."""
        return build.elementwise(name, expr, tiles | {t.name: t for t in more}, origin)

    k_s = build.relabel(k, "tokens that write")
    for reduction in recurrence.known_sums:
        tiles[reduction.symbol.name] = derive_sum(build, tiles, reduction)
    decays = _Decays(build, recurrence, tiles)

    match recurrence.error:
        case Hebbian(offset):
            u = make("u", -offset, origin="loss")
        case Affine(slope, offset):
            rate = make("rate", slope, origin="loss")
            overlap = build.contract("overlap", k, k_s, "k", "prediction")
            matrix = decays.mask("system", overlap, strict=True, row=rate)
            carried = build.contract("prediction", k, state, "k", "prediction")
            target = -offset - sym(rate) * decays.read_factor * sym(carried)
            rhs = make("rhs", target, rate, carried, *decays.tiles, origin="loss")
            u = build.solve("u", matrix, rhs, False, "update")
        case Nonlinear() as error:
            overlap = build.contract("overlap", k, k_s, "k", "prediction")
            matrix = decays.mask("system", overlap, strict=True)
            carried = build.contract("carried", k, state, "k", "prediction")
            seen = make("seen", decays.read_factor * sym(carried), carried, *decays.tiles, origin="prediction")

            def write(prediction: Tile) -> Tile:
                return derive_error(build, tiles, error, prediction)

            prediction = build.substitute("prediction", matrix, seen, write, False, "update")
            written = write(prediction)
            u = make("u", -sym(written), written, origin="loss")

    u_s = build.relabel(u, "tokens that write")
    scores = build.contract("overlap_q", q, k_s, "k", "read-out")
    attention = decays.mask("attention", scores, strict=False)
    inherited = build.contract("inherited", q, state, "k", "read-out")
    carried_out = make("carried_out", decays.out_factor * sym(inherited), inherited, *decays.tiles, origin="read-out")
    read = build.contract("read", attention, u_s, "s", "read-out", add=carried_out)
    o = make("o", sym(scale) * sym(read), read, origin="read-out")

    written = make("written", decays.write_factor * sym(u), u, *decays.tiles, origin="retention")
    kept = make("kept", decays.total_factor * sym(state), state, *decays.tiles, origin="retention")
    after = build.contract("S_next", k, written, "t", "update", add=kept)
    return Program(inputs, tuple(build.statements), (Carry("state", state, after, reverse=False),), (("o", o),))


class _Decays:
    """Factors of the log-decay's running sum; all are 1 where nothing decays, so that nothing is paid for.

    Differences of running sums lose what the sums' size costs them: with a log-decay of -30 a token they would be
    wrong in the fifth digit. So the sum is kept in two parts, multiples of 1/64, whose sums and differences are
    exact, and the small rest. Below FORGOTTEN a decay is 0 in every float format, and so is its gradient.
    """

    def __init__(self, build: Builder, recurrence: Recurrence, tiles: dict[str, Tile]):
        self.build, self.tiles, self.gaps = build, (), {}
        self.out_factor = self.read_factor = self.write_factor = self.total_factor = ONE
        if recurrence.log_decay is None:
            return
        raw = build.elementwise("log_decay", recurrence.log_decay, tiles, "retention")
        bounded = self._make("log_decay_bounded", at_least(sym(raw), FORGOTTEN), raw)
        g = build.mask("log_decay_valid", bounded, Relation.VALID, 0.0, "retention")
        whole = self._make("coarse", coarse(sym(g)), g)
        rest = self._make("fine", sym(g) - sym(whole), g, whole)
        roles = []
        for part, own in (("coarse", whole), ("fine", rest)):
            until = build.cumulative_sum(f"{part}_sum", own, "retention")
            chunk = build.reduce(f"{part}_chunk", own, (), "retention")
            before = until
            if not recurrence.reads_decayed:
                before = self._make(f"{part}_before", sym(until) - sym(own), until, own)
            after = self._make(f"{part}_after", sym(chunk) - sym(until), chunk, until)
            roles.append((until, before, after, chunk))
            self.gaps[part] = (until, before)
        self.tiles = tuple(t for own in roles for t in own)
        self.out_factor, self.read_factor, self.write_factor, self.total_factor = (
            exp(sym(whole) + sym(rest)) for whole, rest in zip(*roles)
        )

    def mask(self, name: str, pairs: Tile, *, strict: bool, row: Tile | None = None) -> Tile:
        """pairs times the decay from s to t, row by row; 0 above the diagonal, or on it too if strict."""
        build, relation = self.build, Relation.STRICT if strict else Relation.CAUSAL
        since = self._since(strict)
        if strict or since is None:
            pairs = build.mask("earlier" if strict else name, pairs, relation, 0.0, "causality")
        factors = [t for t in (since, row, pairs) if t is not None]
        product = ONE
        for factor in factors:
            product = product * sym(factor)
        return self._make(name, product, *factors, origin="retention" if self.tiles else "loss")

    def _since(self, strict: bool) -> Tile | None:
        """The decay from s to t, [t, s]: one tile for read-outs and predictions where both see the same decays.

        Masked before exp: the upper triangle would overflow.
        """
        if not self.tiles:
            return None
        build, parts = self.build, []
        for part, (until, before) in self.gaps.items():
            row, column = before if strict else until, build.relabel(until, "tokens that write")
            parts.append(self._make(f"{part}_gap", sym(row) - sym(column), row, column))
        gap = self._make("gap", sym(parts[0]) + sym(parts[1]), *parts)
        # The diagonal is free of every decay: said here, so that its cotangent is 0 and not a difference.
        gap = build.mask("gap_apart", gap, Relation.STRICT, 0.0, "causality")
        gap = build.mask("gap_masked", gap, Relation.CAUSAL, NEGATIVE_INFINITY, "causality")
        return self._make("since", exp(sym(gap)), gap)

    def _make(self, name: str, expr: Expr, *args: Tile, origin: str = "retention") -> Tile:
        return self.build.elementwise(name, expr, {t.name: t for t in args}, origin)
