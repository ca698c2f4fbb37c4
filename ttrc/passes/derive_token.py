"""Recurrence -> tile program of one token: the recurrent form, exact for any decay."""

from __future__ import annotations

from ttrc.ir.recurrence import Affine, Hebbian, Nonlinear, Recurrence
from ttrc.ir.tile import BEGINS, SCALE, Carry, Program, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.passes.derive_error import derive_error, derive_sum
from ttrc.symbolic import ONE, Expr, choose


def token_inputs(recurrence: Recurrence) -> tuple[Tile, ...]:
    return (
        Tile("q", ("k",)),
        Tile("k", ("k",)),
        Tile("v", ("v",)),
        *(Tile(g.name, ()) for g in recurrence.gates),
        Tile(SCALE, ()),
        *((Tile(BEGINS, ()),) if _is_frozen(recurrence) else ()),
    )


def _is_frozen(recurrence: Recurrence) -> bool:
    """Whether a token needs the state that its segment started with."""
    return recurrence.segment is not None and not isinstance(recurrence.error, Hebbian)


def derive_token(recurrence: Recurrence) -> Program:
    inputs = token_inputs(recurrence)
    build = Builder(inputs)
    state = build.tile("S", ("k", "v"))
    tiles = {t.name: t for t in inputs}
    q, k, scale = tiles["q"], tiles["k"], tiles[SCALE]
    carries = []

    def make(name: str, expr: Expr, *more: Tile, origin: str) -> Tile:
        """expr over the inputs' names and the symbols of `more`; tiles have names of their own, so none can clash."""
        return build.elementwise(name, expr, tiles | {t.name: t for t in more}, origin)

    for reduction in recurrence.known_sums:
        tiles[reduction.symbol.name] = derive_sum(build, tiles, reduction)
    retained = state
    if recurrence.decay != ONE:
        decay = make("decay", recurrence.decay, origin="retention")
        retained = make("retained", sym(decay) * sym(state), decay, state, origin="retention")
    seen = retained if recurrence.reads_decayed else state
    if _is_frozen(recurrence):
        anchor, begins = build.tile("anchor", ("k", "v")), tiles[BEGINS]
        # 1 <= begins: the first token of a segment, which begins with the state as it is.
        seen = make("start", choose(ONE, sym(begins), sym(state), sym(anchor)), begins, state, anchor, origin="update")
        carries.append(Carry("anchor", anchor, seen, reverse=False, private=True))

    match recurrence.error:
        case Hebbian(offset):
            u = make("u", -offset, origin="loss")
        case error:
            products = make("products", sym(seen) * sym(k), seen, origin="prediction")
            prediction = build.reduce("prediction", products, ("v",), "prediction")
            match error:
                case Affine(slope, offset):
                    u = make("u", -slope * sym(prediction) - offset, prediction, origin="loss")
                case Nonlinear():
                    written = derive_error(build, tiles, error, prediction)
                    u = make("u", -sym(written), written, origin="loss")

    if recurrence.momentum is None:
        after = make("S_next", sym(retained) + sym(k) * sym(u), retained, u, origin="update")
    else:
        last, gate = build.tile("M", ("k", "v")), make("momentum", recurrence.momentum, origin="update")
        step = make("M_next", sym(gate) * sym(last) + sym(k) * sym(u), gate, last, u, origin="update")
        after = make("S_next", sym(retained) + sym(step), retained, step, origin="update")
        carries.insert(0, Carry("M", last, step, reverse=False))
    carries.insert(0, Carry("S", state, after, reverse=False))
    read = make("read", sym(q) * sym(after), after, origin="read-out")
    total = build.reduce("total", read, ("v",), "read-out")
    o = make("o", sym(scale) * sym(total), total, origin="read-out")
    return Program(inputs, tuple(build.statements), tuple(carries), (("o", o),))
