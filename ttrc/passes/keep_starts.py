"""A chunk program of a deep memory -> what the scan ahead keeps of each chunk, and what of that the one backwards takes
for the weights that a segment of several chunks started with.

Those are an earlier entry of what is kept: the state with which the segment's first chunk began. The scan backwards
loads that one again, so that no byte more is kept, and none comes from farther than it did. Only their cotangent is a
sum over the segment's chunks: it is carried, and where states are not on chip waits in memory of the program's own. So
do the weights in the scan ahead, which may run where nothing is kept. Weights that are a link of the state are not
among what is kept: they, and what they have become, are kept beside it.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.plan import Buffer, Space
from ttrc.ir.tile import Carry, Elementwise, Program, Tile, operands
from ttrc.passes.place_buffers import state_buffers


def keep_starts(forward: Program) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...]]:
    """The states, and the starts of segments among them. All are float32: a decay's gradient is a small difference of
    sums over all weights, which of rounded ones would be noise."""
    held = {c: state for c in forward.carries if (state := _holds_on_to(forward, c)) is not None}
    kept = tuple(c for c in forward.carries if c not in held)
    states = tuple(replace(b, single=True) for b in state_buffers("states", kept))
    start = {state: carry.next for carry, state in held.items()}
    parts = tuple(start.get(b.tile, b.tile) for b in states)
    starts = (replace(b, tile=start[b.tile], space=Space.START, parts=parts) for b in states if b.tile in start)
    return states, tuple(starts)


def _holds_on_to(forward: Program, carry: Carry) -> Tile | None:
    """The state that a private one takes over where a segment begins, and holds until it ends."""
    handed = {c.state for c in forward.carries if not c.private}
    op = next((s.op for s in forward.statements if s.target == carry.next), None)
    if not carry.private or not isinstance(op, Elementwise) or carry.state not in operands(op):
        return None
    others = [t for t in operands(op) if t.axes and t != carry.state]
    return others[0] if len(others) == 1 and others[0] in handed else None
