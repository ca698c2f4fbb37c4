"""A link as tile statements: the weights of any matrix of a state, in a chunk and of a token alike."""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.tile import HIDDEN, INSIDE, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.symbolic import Link

ORIGIN = "link"


def derive_link(build: Builder, tiles: dict[str, Tile], link: Link | None, state: Tile) -> Tile:
    """The weights of a state, a tile of the same axes. `tiles` has the link's parameters among others: numbers of a
    token, which are the same for all tokens of a chunk.

    Kernels pad channels. What stands in the padding of a state is 0 along its keys, but along its values whatever the
    rule writes there: that is masked here, so that it enters no sum and makes nothing overflow. Weights in the padding
    of keys are finite, and meet zeros; in that of values they are 0, for a loss may sum over predictions. So are those
    in the padding of a hidden layer, on both of its sides: nothing then comes out of it, and nothing is written to it,
    so that states stay 0 there.
    """
    if link is None:
        return state
    gates = {name: build.once(tiles[name], ORIGIN) for name in sorted(link.gates)}
    down, across = state.axes[0], state.axes[-1]
    own = {"k": down, "v": across}
    inside = state if across in HIDDEN else build.mask("state_inside", state, INSIDE[across], 0.0, ORIGIN)
    if link.shift:
        axes = {own[a] for a in link.shift}
        for axis in sorted(axes):
            inside = build.mask("state_among", inside, INSIDE[axis], float("-inf"), ORIGIN)
        peak = build.largest("peak", inside, set(state.axes) - axes, ORIGIN)
        inside = build.make("shifted", sym(inside) - sym(peak), inside, peak, origin=ORIGIN)
    known, weights = gates | {"S": inside}, link.weights
    for total in link.sums:
        axes = {own[a] for a in total.axes}
        summands = build.elementwise("powers", total.body, known, ORIGIN)
        body = summands
        if not link.shift and not symbolic.is_zero_at(total.body, ("S",)):
            for axis in sorted(axes):
                body = build.mask("powers_inside", body, INSIDE[axis], 0.0, ORIGIN)
        known[total.symbol.name] = build.reduce("sum_S", body, set(state.axes) - axes, ORIGIN)
        known[summands.name] = summands
        weights = symbolic.in_terms_of(weights, total.body, sym(summands))
    made = build.elementwise("W", weights, known, ORIGIN, state.axes)
    if not link.shift and symbolic.is_zero_at(link.weights, ("S",)):
        return made
    if down in HIDDEN:
        made = build.mask("W_inside", made, INSIDE[down], 0.0, ORIGIN)
    return build.mask("W_inside", made, INSIDE[across], 0.0, ORIGIN)
