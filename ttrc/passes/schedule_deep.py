"""Chunk programs of a deep memory, whose chunks are segments with frozen gradients -> kernels: one scan each way.

Layers need every channel. The scan backwards, which starts each segment from its own states, makes all gradients as
well. A hidden axis is walked in panels, its weights lying in memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ttrc.ir.config import LONG_CHUNK, PANELS, is_several_chunks
from ttrc.ir.plan import Plan, Schedule, Skeleton, Space
from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import HIDDEN, Carry, Elementwise, Program, Tile, operands
from ttrc.passes.cut_passes import cut_passes, keep_all
from ttrc.passes.cut_sequence import Scan, cut_sequence, found_crossing
from ttrc.passes.place_buffers import as_output, gradient_buffers, input_buffers, state_buffers
from ttrc.passes.plan_kernel import planned
from ttrc.passes.scan_panels import scan_panels

STEP = 32  # tokens a chunk, of segments that are several: what each makes for itself holds many registers


def schedule_deep(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    inputs, carried = input_buffers(recurrence, backward), forward.carries
    cotangents = tuple(c for c in backward.carries if c.reverse)
    # A decay's gradient is a small difference of sums over all weights: of rounded ones it would be noise.
    kept, starts = _kept(forward)
    states = tuple(replace(b, single=True) for b in state_buffers("states", kept))
    parts = tuple({states[i].tile: t for t, i in starts.items()}.get(b.tile, b.tile) for b in states)
    starts = tuple(replace(states[i], tile=t, space=Space.START, parts=parts) for t, i in starts.items())
    outputs = tuple(as_output(name, tile) for name, tile in forward.outputs)
    gradients = gradient_buffers(recurrence, backward)
    axes = {a for c in carried for a in c.state.axes if a in HIDDEN}
    # Of several hidden axes some matrix has two: panels of one would be as large as all of it is with one.
    scan = partial(scan_panels, *axes) if len(axes) == 1 else partial(planned, skeleton=Skeleton.SCAN)
    end = PANELS if len(axes) == 1 else ""
    made = partial(scan, f"deep_scan{end}", program=forward, memory=inputs, carries=carried)
    ahead = made(stores=(*outputs, *states))
    own = {} if end else {"again": True}
    back = scan(
        f"deep_scan_reverse{end}",
        program=backward,
        stores=gradients,
        memory=(*inputs, *states, *starts),
        carries=cotangents,
        **own,
    )
    schedules, kernels = [Schedule.one_each_way("deep", ahead, back)], (ahead, back)
    moved, uncut = found_crossing(forward)
    if moved is not None:  # one layer that is linear
        alone_back = scan(
            "deep_scan_reverse", program=backward, stores=(), memory=(*inputs, *states, *starts), carries=cotangents
        )
        ends = (Scan((), made(stores=()), ahead, ()), Scan((), alone_back, back, ()))
        cut, more = cut_sequence(moved, "deep_transition", inputs, *ends)
        schedules, kernels = [*schedules, cut], (*kernels, *more)
    segment, several = recurrence.segment, is_several_chunks(recurrence.segment)
    # Each step of the scan backwards starts from states of its own, however many tokens a caller takes for a chunk.
    chunk, step = (STEP, LONG_CHUNK) if several else (segment, segment)
    # A stretch of chunks begins where a segment does: with what is handed over, and nothing private is taken of.
    stretch = segment if several else None
    alone = not any(c.private for c in kept)
    cuts = cut_passes((), states, states, (), made(stores=states), stretch) if alone else keep_all(states)
    return Plan("chunk", kernels, tuple(schedules), cuts, (), chunk, step, segment, recurrence.expansion, uncut=uncut)


def _kept(forward: Program) -> tuple[tuple[Carry, ...], dict[Tile, int]]:
    """What is kept of each chunk, and of that the places where tiles lie that are what a segment started with.

    A private state that holds on to one that is kept, from where a segment begins, is none: the scan backwards loads
    the latter as the chunk kept it with which the segment began. (Nor does it wait for a sum: its cotangent does, over
    the chunks of the segment, and is carried.) The scan ahead carries its own: it may run where nothing is kept.
    """
    handed = [c.state for c in forward.carries if not c.private]
    made = {s.target: s.op for s in forward.statements}
    starts: dict[Tile, int] = {}
    kept = []
    for carry in forward.carries:
        op = made.get(carry.next)
        others = [t for t in operands(op) if t.axes and t != carry.state] if isinstance(op, Elementwise) else []
        if carry.private and carry.state in operands(op) and len(others) == 1 and others[0] in handed:
            starts[carry.next] = handed.index(others[0])
        else:
            kept.append(carry)
    return tuple(kept), starts
