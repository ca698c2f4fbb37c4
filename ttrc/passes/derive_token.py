"""Recurrence -> tile program of one token: the recurrent form, exact for any decay."""

from __future__ import annotations

from ttrc.ir.recurrence import Affine, Hebbian, Recurrence
from ttrc.ir.tile import Carry, Program, Tile
from ttrc.passes.builder import Builder
from ttrc.symbolic import ONE, symbol


def token_inputs(recurrence: Recurrence) -> tuple[Tile, ...]:
    return (
        Tile("q", ("k",)), Tile("k", ("k",)), Tile("v", ("v",)),
        *(Tile(g.name, ()) for g in recurrence.gates), Tile("scale", ()),
    )


def derive_token(recurrence: Recurrence) -> Program:
    inputs = token_inputs(recurrence)
    state = Tile("S", ("k", "v"))
    build = Builder((*inputs, state))
    tiles = {t.name: t for t in inputs}
    for reduction in recurrence.reductions:
        body = build.elementwise("squares", reduction.body, tiles, "loss")
        tiles[reduction.symbol.name] = build.reduce(reduction.symbol.name, body, (), "loss")
    decay = build.elementwise("decay", recurrence.decay, tiles, "retention") if recurrence.decay != ONE else None
    retained = state
    if decay is not None:
        retained = build.elementwise("retained", symbol("a") * symbol("S"), {"a": decay, "S": state}, "retention")

    match recurrence.error:
        case Hebbian(offset):
            u = build.elementwise("u", -offset, tiles, "loss")
        case Affine(slope, offset):
            seen = retained if recurrence.reads_decayed else state
            products = build.elementwise("products", symbol("S") * symbol("k"), {**tiles, "S": seen}, "prediction")
            prediction = build.reduce("prediction", products, ("v",), "prediction")
            u = build.elementwise("u", -slope * symbol("p") - offset, {**tiles, "p": prediction}, "loss")

    after = build.elementwise("S_next", symbol("S") + symbol("k") * symbol("u"),
                              {**tiles, "S": retained, "u": u}, "update")
    read = build.elementwise("read", symbol("q") * symbol("S"), {**tiles, "S": after}, "read-out")
    total = build.reduce("total", read, ("v",), "read-out")
    o = build.elementwise("o", symbol("scale") * symbol("total"), {**tiles, "total": total}, "read-out")
    return Program(inputs, tuple(build.statements), (Carry("state", state, after, reverse=False),), (("o", o),))
