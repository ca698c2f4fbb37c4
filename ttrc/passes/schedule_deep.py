"""Chunk programs of a deep memory, in segments with frozen gradients -> kernels: one scan each way.

Layers need every channel. The scan backwards, which starts each chunk from its own states, makes all gradients as well.
A hidden axis is walked in panels, its weights lying in memory. A chunk is a segment, or a part of one.
"""

from __future__ import annotations

from functools import partial

from ttrc.ir.config import LONG_CHUNK, PANELS, SHORT_CHUNK, is_several_chunks
from ttrc.ir.plan import Plan, Schedule, Skeleton
from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import HIDDEN, Program
from ttrc.passes.cut_passes import cut_passes, keep_all
from ttrc.passes.cut_sequence import Scan, cut_sequence, found_crossing
from ttrc.passes.keep_starts import keep_starts
from ttrc.passes.place_buffers import as_output, gradient_buffers, input_buffers
from ttrc.passes.plan_kernel import planned
from ttrc.passes.scan_panels import scan_panels

# Tokens a chunk, of segments that are several, where weights lie in memory. Every loop over panels reads them, of long
# chunks less often; but what a chunk makes for itself takes registers: with more tokens L1 does not hold what spills.
STEP = 32


def schedule_deep(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    inputs, carried = input_buffers(recurrence, backward), forward.carries
    cotangents = tuple(c for c in backward.carries if c.reverse)
    states, starts = keep_starts(forward)
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
    chunk, step = (STEP if end else SHORT_CHUNK, LONG_CHUNK) if several else (segment, segment)
    # A stretch of chunks begins as a segment does: it takes over what is handed in, and nothing private.
    stretch = segment if several else None
    private = {c.state for c in carried if c.private} & {b.tile for b in states}
    cuts = keep_all(states) if private else cut_passes((), states, states, (), made(stores=states), stretch)
    return Plan("chunk", kernels, tuple(schedules), cuts, (), chunk, step, segment, recurrence.expansion, uncut=uncut)
