"""Recurrence -> tile program of one token: the recurrent form, exact for any decay."""

from __future__ import annotations

from ttrc.ir.recurrence import Affine, Hebbian, Nonlinear, Recurrence
from ttrc.ir.tile import SCALE, Carry, Program, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.passes.derive_error import derive_error, derive_sum
from ttrc.symbolic import ONE, Expr


def token_inputs(recurrence: Recurrence) -> tuple[Tile, ...]:
    return (
        Tile("q", ("k",)),
        Tile("k", ("k",)),
        Tile("v", ("v",)),
        *(Tile(g.name, ()) for g in recurrence.gates),
        Tile("scale", ()),
    )


def derive_token(recurrence: Recurrence) -> Program:
    inputs = token_inputs(recurrence)
    state = Tile("S", ("k", "v"))
    build = Builder((*inputs, state))
    tiles = {t.name: t for t in inputs}
    q, k, scale = tiles["q"], tiles["k"], tiles[SCALE]

    def make(name: str, expr: Expr, *more: Tile, origin: str) -> Tile:
        """expr over the inputs' names and the symbols of `more`; tiles have names of their own, so none can clash."""
        return build.elementwise(name, expr, tiles | {t.name: t for t in more}, origin)

    for reduction in recurrence.known_sums:
        tiles[reduction.symbol.name] = derive_sum(build, tiles, reduction)
    retained = state
    if recurrence.decay != ONE:
        decay = make("decay", recurrence.decay, origin="retention")
        retained = make("retained", sym(decay) * sym(state), decay, state, origin="retention")

    match recurrence.error:
        case Hebbian(offset):
            u = make("u", -offset, origin="loss")
        case error:
            seen = retained if recurrence.reads_decayed else state
            products = make("products", sym(seen) * sym(k), seen, origin="prediction")
            prediction = build.reduce("prediction", products, ("v",), "prediction")
            match error:
                case Affine(slope, offset):
                    u = make("u", -slope * sym(prediction) - offset, prediction, origin="loss")
                case Nonlinear():
                    written = derive_error(build, tiles, error, prediction)
                    u = make("u", -sym(written), written, origin="loss")

    after = make("S_next", sym(retained) + sym(k) * sym(u), retained, u, origin="update")
    read = make("read", sym(q) * sym(after), after, origin="read-out")
    total = build.reduce("total", read, ("v",), "read-out")
    o = make("o", sym(scale) * sym(total), total, origin="read-out")
    return Program(inputs, tuple(build.statements), (Carry("state", state, after, reverse=False),), (("o", o),))
