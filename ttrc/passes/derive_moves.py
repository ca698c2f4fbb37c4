"""How states move through a chunk: masks over pairs of tokens, and factors of what earlier chunks left.

Without a momentum the state at token t is e^{G_t} S + sum_{s<=t} e^{G_t - G_s} k_s u_s', with G the running sum of the
log-decay. A momentum makes it two recurrences in a row, S_t = a_t S_{t-1} + M_t and M_t = b_t M_{t-1} + k_t u_t', and
the mask of two in a row is the product of their masks: one C x C matrix product, exact.

A decay that differs by key channel has factors that differ so, and no mask: what stands between two tokens is a part
of the product over key channels, see `Decayed`. One that differs by value channel is a part of the sum over the tokens
that write.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import Relation, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.symbolic import ONE, Expr, at_least, coarse, exp, names

CAUSAL = Relation.CAUSAL
NEGATIVE_INFINITY = float("-inf")
FORGOTTEN = -800


@dataclass(frozen=True)
class Factor:
    """A coefficient of each token, or of the whole chunk: expr over the names of `tiles`."""

    expr: Expr = ONE
    tiles: tuple[Tile, ...] = ()


def of(tile: Tile) -> Factor:
    return Factor(sym(tile), (tile,))


def derive_factor(build: Builder, name: str, expr: Expr, tiles: dict[str, Tile], origin: str) -> Factor:
    """A number of each token as a tile, or the same for all tokens as it is."""
    return of(build.elementwise(name, expr, tiles, origin)) if names(expr) else Factor(expr)


Terms = tuple[tuple[Tile, Factor], ...]  # a sum over carried states, each with its factor


@dataclass(frozen=True)
class Between:
    """The logarithm of a decay by channel, token by token; whether a prediction sees its own token's."""

    steps: Tile
    reads_own: bool

    @property
    def by_key(self) -> bool:
        return "k" in self.steps.axes


@dataclass(frozen=True)
class Moves:
    """What the state at each token is made of.

    read, out      the states a chunk starts with, in what a token's prediction and its read-out see
    read_mask      how much of u_s the prediction of t sees, s < t; None where all of it
    out_mask       how much of it the read-out of t sees, s <= t; None where all of it
    following      of each carried state, what it is made of at the chunk's end, and the factor of what is written
    between        in the place of the masks, where the decay differs by channel
    """

    read: Terms
    out: Terms
    read_mask: Tile | None
    out_mask: Tile | None
    following: tuple[tuple[Tile, Terms, Factor], ...]
    between: Between | None = None


def derive_moves(build: Builder, recurrence: Recurrence, tiles: dict[str, Tile], states: tuple[Tile, ...]) -> Moves:
    """`states` are S and, of a rule with a momentum, M; `tiles` what the gates' names stand for."""
    origin = "retention" if recurrence.ridge is None else "decay"
    decay = _Decay(build, tiles, recurrence.log_decay, "decay", origin)
    before = decay.until if recurrence.reads_decayed else decay.before
    if recurrence.momentum is None:
        (S,) = states
        if recurrence.axes_of(recurrence.decay):
            following = (S, ((S, decay.total),), decay.after)
            between = Between(decay.steps, recurrence.reads_decayed)
            return Moves(((S, before),), ((S, decay.until),), None, None, (following,), between)
        read_mask = decay.since(strict=True, reads_decayed=recurrence.reads_decayed)
        return Moves(
            ((S, before),),
            ((S, decay.until),),
            read_mask,
            decay.since(strict=False, reads_decayed=recurrence.reads_decayed),
            ((S, ((S, decay.total),), decay.after),),
        )
    return _with_momentum(build, recurrence, tiles, states, decay, before)


def _with_momentum(build: Builder, recurrence: Recurrence, tiles, states, decay: _Decay, before: Factor) -> Moves:
    S, M = states
    own = _Decay(build, tiles, recurrence.log_momentum, "momentum", "update")
    origin = "update"
    kept = own.since(strict=False, reads_decayed=True)
    if kept is None:
        kept = build.mask("all_steps", build.constant("everything", ONE, ("t", "s"), origin), CAUSAL, 0.0, origin)

    def earlier(reads_decayed: bool) -> Tile:
        """How much of M_s there is in what t starts from, s < t."""
        mask = decay.since(strict=True, reads_decayed=reads_decayed)
        mask = build.constant("everything", ONE, ("t", "s"), origin) if mask is None else mask
        return build.mask("earlier_steps", mask, Relation.STRICT, 0.0, "causality")

    def both(mask: Tile, factor: Factor) -> Factor:
        """sum_s mask[t, s] * factor[s], over the tokens that write."""
        column = build.relabel(_tile(build, "momentum_until", factor), origin)
        return of(build.reduce("inherited_steps", _product(build, "inherited", mask, column), ("t",), origin))

    seen, past = earlier(recurrence.reads_decayed), earlier(True)
    read_mask = build.compose("mask_read", seen, kept, origin)
    past_mask = read_mask if seen == past else build.compose("mask_past", past, kept, origin)
    out_mask = build.make("mask_out", sym(past_mask) + sym(kept), past_mask, kept, origin=origin)
    past_steps = both(past, own.until)
    out_steps = Factor(past_steps.expr + own.until.expr, (*past_steps.tiles, *own.until.tiles))
    after = build.mask("decay_after_valid", _tile(build, "decay_after", decay.after), Relation.VALID, 0.0, origin)
    written = build.reduce("written_steps", _product(build, "steps_after", after, kept), ("s",), origin)
    until = _product(build, "steps_until", after, _tile(build, "momentum_until", own.until))
    carried = of(build.reduce("carried_steps", until, (), origin))
    return Moves(
        ((S, before), (M, both(seen, own.until))),
        ((S, decay.until), (M, out_steps)),
        read_mask,
        out_mask,
        (
            (S, ((S, decay.total), (M, carried)), of(build.relabel(written, origin))),
            (M, ((M, own.total),), own.after),
        ),
    )


def _tile(build: Builder, name: str, factor: Factor) -> Tile:
    """A token's factor as a tile, [t]."""
    if not factor.tiles:
        one = build.constant("one", ONE, (), "update")
        return build.mask("ones", one, Relation.VALID, 0.0, "update")
    return build.make(name, factor.expr, *factor.tiles, origin="update")


def _product(build: Builder, name: str, a: Tile, b: Tile) -> Tile:
    return build.make(name, sym(a) * sym(b), a, b, origin="update")


@dataclass
class _Decay:
    """One decay's factors, from its logarithm; all are 1 where there is none, so that nothing is paid for.

    until   from a chunk's start to a token, its own decay included; before: without that; after: to the chunk's end;
    total   over the chunk.

    Differences of running sums lose what the sums' size costs them: with a log-decay of -30 a token they would be
    wrong in the fifth digit. So the sum is kept in two parts, multiples of 1/64, whose sums and differences are
    exact, and the small rest. Where a decay differs by channel no difference is taken: its factors are sums of
    their own, and so are its exponents between tokens. Below FORGOTTEN a decay is 0 in every float format, and so is
    its gradient.
    """

    build: Builder
    inputs: dict[str, Tile]
    log: Expr | None
    name: str
    origin: str
    until: Factor = field(default=Factor(), init=False)
    before: Factor = field(default=Factor(), init=False)
    after: Factor = field(default=Factor(), init=False)
    total: Factor = field(default=Factor(), init=False)
    steps: Tile | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._gaps: dict[str, tuple[Tile, Tile]] = {}
        if self.log is None:
            return
        build = self.build
        name = f"log_{self.name}"
        if names(self.log):
            raw = build.elementwise(name, self.log, self.inputs, self.origin)
        else:
            raw = build.constant(name, self.log, ("t",), self.origin)
        bounded = self._make(f"log_{self.name}_bounded", at_least(sym(raw), FORGOTTEN), raw)
        g = self.steps = build.mask(f"log_{self.name}_valid", bounded, Relation.VALID, 0.0, self.origin)
        if channels := set(g.axes) - {"t"}:
            sums = (
                build.cumulative_sum("steps_until", g, self.origin),
                build.cumulative_sum("steps_before", g, self.origin, exclusive=True),
                build.cumulative_sum("steps_after", g, self.origin, reverse=True, exclusive=True),
                build.reduce("steps_total", g, channels, self.origin),
            )
            self.until, self.before, self.after, self.total = (Factor(exp(sym(s)), (s,)) for s in sums)
            return
        whole = self._make("coarse", coarse(sym(g)), g)
        rest = self._make("fine", sym(g) - sym(whole), g, whole)
        roles = []
        for part, own in (("coarse", whole), ("fine", rest)):
            until = build.cumulative_sum(f"{part}_sum", own, self.origin)
            chunk = build.reduce(f"{part}_chunk", own, set(own.axes) - {"t"}, self.origin)
            before = self._make(f"{part}_before", sym(until) - sym(own), until, own)
            after = self._make(f"{part}_after", sym(chunk) - sym(until), chunk, until)
            roles.append((until, before, after, chunk))
            self._gaps[part] = (until, before)
        self.until, self.before, self.after, self.total = (
            Factor(exp(sym(whole) + sym(rest)), (whole, rest)) for whole, rest in zip(*roles)
        )

    def since(self, *, strict: bool, reads_decayed: bool) -> Tile | None:
        """The decay from s to t, [t, s]: one tile for read-outs and predictions where both see the same decays.

        A strict one is what a prediction sees, without t's own decay unless it reads the decayed state; it may hold
        anything on the diagonal, and 0 above. Masked before exp: the upper triangle would overflow.
        """
        if self.log is None:
            return None
        build, parts = self.build, []
        for part, (until, before) in self._gaps.items():
            row, column = before if strict and not reads_decayed else until, build.relabel(until, "tokens that write")
            parts.append(self._make(f"{part}_gap", sym(row) - sym(column), row, column))
        gap = self._make("gap", sym(parts[0]) + sym(parts[1]), *parts)
        # The diagonal is free of every decay: said here, so that its cotangent is 0 and not a difference.
        gap = build.mask("gap_apart", gap, Relation.STRICT, 0.0, "causality")
        gap = build.mask("gap_masked", gap, CAUSAL, NEGATIVE_INFINITY, "causality")
        return self._make("since", exp(sym(gap)), gap)

    def _make(self, name: str, expr: Expr, *args: Tile) -> Tile:
        return self.build.make(name, expr, *args, origin=self.origin)
