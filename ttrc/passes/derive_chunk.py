"""Recurrence -> tile program of one chunk: matrix products where the recurrence has a loop over tokens.

Inside a chunk that starts from S the state is S_t = e^{G_t} S + sum_{s<=t} e^{G_t - G_s} k_s u_s', with G the
running sum of the log-decay and u_t = -e_t the written values. Read-outs and predictions of that sum are a
product with S plus a masked C x C product; where e_t is affine in p_t, the u solve a unit lower-triangular
system (the WY / UT transform), whose matrix is the same for every value channel.
"""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.recurrence import Affine, Hebbian, Recurrence
from ttrc.ir.tile import Carry, Program, Relation, Tile
from ttrc.passes.builder import Builder
from ttrc.symbolic import ONE, at_least, coarse, exp, symbol

NEGATIVE_INFINITY = float("-inf")
FORGOTTEN = -800


def chunk_inputs(recurrence: Recurrence) -> tuple[Tile, ...]:
    return (
        Tile("q", ("t", "k")), Tile("k", ("t", "k")), Tile("v", ("t", "v")),
        *(Tile(g.name, ("t",)) for g in recurrence.gates), Tile("scale", ()),
    )


def derive_chunk(recurrence: Recurrence) -> Program:
    inputs = chunk_inputs(recurrence)
    state = Tile("S", ("k", "v"))
    build = Builder((*inputs, state))
    tiles = {t.name: t for t in inputs}
    q, k, v = tiles["q"], tiles["k"], tiles["v"]
    k_s = build.relabel(k, "tokens that write")
    for reduction in recurrence.reductions:
        body = build.elementwise("squares", reduction.body, tiles, "loss")
        tiles[reduction.symbol.name] = build.reduce(reduction.symbol.name, body, ("t",), "loss")
    decays = _Decays(build, recurrence, tiles)

    match recurrence.error:
        case Hebbian(offset):
            u = build.elementwise("u", -offset, tiles, "loss")
        case Affine(slope, offset):
            rate = build.elementwise("rate", slope, tiles, "loss")
            overlap = build.contract("overlap", k, k_s, "k", "prediction")
            matrix = decays.mask("system", overlap, strict=True, row=rate)
            carried = build.contract("prediction", k, state, "k", "prediction")
            target = -offset - symbol("rate") * decays.read_factor * symbol("prediction")
            names = {**tiles, **decays.tiles, "rate": rate, "prediction": carried}
            rhs = build.elementwise("rhs", target, names, "loss")
            u = build.solve("u", matrix, rhs, False, "update")

    u_s = build.relabel(u, "tokens that write")
    scores = build.contract("overlap_q", q, k_s, "k", "read-out")
    attention = decays.mask("attention", scores, strict=False)
    inherited = build.contract("inherited", q, state, "k", "read-out")
    carried_out = build.elementwise("carried_out", decays.out_factor * symbol("inherited"),
                                    {**decays.tiles, "inherited": inherited}, "read-out")
    read = build.contract("read", attention, u_s, "s", "read-out", add=carried_out)
    o = build.elementwise("o", symbol("scale") * symbol("read"), {**tiles, "read": read}, "read-out")

    written = build.elementwise("written", decays.write_factor * symbol("u"), {**decays.tiles, "u": u}, "retention")
    kept = build.elementwise("kept", decays.total_factor * symbol("S"), {**decays.tiles, "S": state}, "retention")
    after = build.contract("S_next", k, written, "t", "update", add=kept)
    return Program(inputs, tuple(build.statements), (Carry("state", state, after, reverse=False),), (("o", o),))


class _Decays:
    """Factors of the log-decay's running sum; all are 1 where nothing decays, so that nothing is paid for.

    Differences of running sums lose what the sums' size costs them: with a log-decay of -30 a token they would be
    wrong in the fifth digit. So the sum is kept in two parts, multiples of 1/64, whose sums and differences are
    exact, and the small rest. Below FORGOTTEN a decay is 0 in every float format, and so is its gradient.
    """

    def __init__(self, build: Builder, recurrence: Recurrence, tiles: dict[str, Tile]):
        self.build, self.tiles = build, {}
        self.out_factor = self.read_factor = self.write_factor = self.total_factor = ONE
        if recurrence.log_decay is None:
            return
        raw = build.elementwise("log_decay", recurrence.log_decay, tiles, "retention")
        bounded = build.elementwise("log_decay_bounded", at_least(symbol("g"), FORGOTTEN), {"g": raw}, "retention")
        g = build.mask("log_decay_valid", bounded, Relation.VALID, 0.0, "retention")
        whole = build.elementwise("coarse", coarse(symbol("g")), {"g": g}, "retention")
        rest = build.elementwise("fine", symbol("g") - symbol("c"), {"g": g, "c": whole}, "retention")
        for part, own in (("coarse", whole), ("fine", rest)):
            until = build.cumulative_sum(f"{part}_sum", own, "retention")
            chunk = build.reduce(f"{part}_chunk", own, (), "retention")
            before = until
            if not recurrence.reads_decayed:
                before = build.elementwise(f"{part}_before", symbol("a") - symbol("b"), {"a": until, "b": own}, "update.at")
            after = build.elementwise(f"{part}_after", symbol("a") - symbol("b"), {"a": chunk, "b": until}, "retention")
            self.tiles |= {f"{part}_until": until, f"{part}_read": before, f"{part}_after": after, f"{part}_chunk": chunk}
        self.out_factor, self.read_factor, self.write_factor, self.total_factor = (
            exp(symbol(f"coarse_{role}") + symbol(f"fine_{role}")) for role in ("until", "read", "after", "chunk")
        )

    def mask(self, name: str, pairs: Tile, *, strict: bool, row: Tile | None = None) -> Tile:
        """pairs times the decay from s to t (masked before exp: the upper triangle would overflow), row by row."""
        relation = Relation.STRICT if strict else Relation.CAUSAL
        build = self.build
        factor = ONE if row is None else symbol("row")
        args = {"pairs": pairs} | ({} if row is None else {"row": row})
        if not self.tiles:
            kept = build.mask("earlier" if strict else name, pairs, relation, 0.0, "causality")
            return build.elementwise(name, factor * symbol("kept"), {"kept": kept, **args}, "loss")
        gaps = {}
        for part in ("coarse", "fine"):
            since = self.tiles[f"{part}_read" if strict else f"{part}_until"]
            until = build.relabel(self.tiles[f"{part}_until"], "tokens that write")
            gaps[part] = build.elementwise(f"{part}_gap", symbol("a") - symbol("b"), {"a": since, "b": until}, "retention")
        gap = build.elementwise("gap", symbol("coarse") + symbol("fine"), gaps, "retention")
        if not strict:  # the diagonal is free of every decay: said here, so that its cotangent is 0 and not a difference
            gap = build.mask("gap_apart", gap, Relation.STRICT, 0.0, "causality")
        gap = build.mask("gap_masked", gap, relation, NEGATIVE_INFINITY, "causality")
        return build.elementwise(name, factor * exp(symbol("gap")) * symbol("pairs"), {"gap": gap, **args}, "retention")
