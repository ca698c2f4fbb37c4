"""Chunk programs that scan the tokens, entry by entry of the state -> kernels: one each way.

Every input is read once and every result written once. Programs split the value channels; what they sum over these,
gradients of keys and of gates without value channels, are shares. Where channels go on from a sum over all of them,
programs of a vector memory take all; of a matrix that is for read-outs alone, which have kernels of their own then.

The state of a vector memory is a number a channel, so that it costs next to nothing to keep one a chunk: chunks are as
long as tiles, and the scan backwards starts each from its state. Of a matrix programs hold tokens times key channels
times value channels, few tokens at a time, and a state as often as that would be most of what is moved. One is kept
every so many of these steps; the kernel backwards makes those between again on its way, and lays them in memory of its
own, where the cache has them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ttrc.ir.config import LONG_CHUNK, SCANNED_CHUNK, SHORT_CHUNK, Takes
from ttrc.ir.plan import BACK, THROUGH, Buffer, Launch, Plan, Schedule, Skeleton
from ttrc.ir.recurrence import MATRIX, Recurrence
from ttrc.ir.tile import Carry, Program
from ttrc.passes.add_totals import add_totals, taken_once, total_buffers
from ttrc.passes.cut_passes import keep_all
from ttrc.passes.cut_sequence import Scan, cut_sequence, found_crossing
from ttrc.passes.place_buffers import as_output, gradient_buffers, input_buffers, state_buffers
from ttrc.passes.plan_kernel import planned
from ttrc.passes.schedule_readout import schedule_readout


def schedule_scan(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    once = taken_once(forward)
    inputs = tuple(replace(b, tile=once.get(b.tile, b.tile)) for b in input_buffers(recurrence, backward))
    backward = add_totals(backward, once)
    cotangents = tuple(c for c in backward.carries if c.reverse)
    states = tuple(replace(b, single=True) for b in state_buffers("states", forward.carries))
    gradients = total_buffers(backward, gradient_buffers(recurrence, backward))
    if recurrence.state == MATRIX:
        return _of_matrix(forward, backward, inputs, gradients, states, cotangents)
    outputs = tuple(as_output(name, tile) for name, tile in forward.outputs)
    ahead = planned("vector_scan", Skeleton.SCAN, forward, (*outputs, *states), inputs, forward.carries)
    back = planned(
        "vector_scan_reverse", Skeleton.SCAN, backward, gradients, (*inputs, *states), cotangents, partial=True
    )
    schedules, kernels = [Schedule.one_each_way("vector", ahead, back)], (ahead, back)
    moved, uncut = found_crossing(forward)
    if moved is not None:
        alone = planned("vector_scan", Skeleton.SCAN, forward, (), inputs, forward.carries)
        alone_back = planned(
            "vector_scan_reverse", Skeleton.SCAN, backward, (), (*inputs, *states), cotangents, partial=True
        )
        ends = (Scan((), alone, ahead, ()), Scan((), alone_back, back, ()))
        cut, more = cut_sequence(moved, "vector_transition", inputs, *ends)
        schedules, kernels = [*schedules, cut], (*kernels, *more)
    whole = any(k.takes is Takes.WHOLE for k in kernels)
    segment = recurrence.segment
    chunk = segment or (SHORT_CHUNK if whole else SCANNED_CHUNK)
    # Steps are as long as chunks however long a caller asks these to be: the scan backwards starts each of its steps
    # from a state that was kept.
    cuts, step = keep_all(states), segment or LONG_CHUNK
    return Plan("chunk", kernels, tuple(schedules), cuts, (), chunk, step, segment, uncut=uncut)


def _of_matrix(
    forward: Program,
    backward: Program,
    inputs: tuple[Buffer, ...],
    gradients: tuple[Buffer, ...],
    states: tuple[Buffer, ...],
    cotangents: tuple[Carry, ...],
) -> Plan:
    readout = schedule_readout(forward, backward, inputs, gradients)
    rest = tuple(b for b in gradients if b not in readout.gradients)
    memory, carries = (*inputs, *states, *readout.back), (*forward.carries, *cotangents)
    scanned = partial(planned, takes=Takes.ENTRIES)
    ahead = scanned("entry_scan", Skeleton.SCAN, forward, (*readout.outputs, *states), inputs, forward.carries)
    back = scanned("entry_scan_reverse", Skeleton.STEPS_REVERSE, backward, rest, memory, carries, partial=True)
    whole = Schedule("entries", (Launch(ahead, *THROUGH), *readout.behind), (*readout.ahead, Launch(back, *BACK)))
    schedules, kernels = [whole], (ahead, back, *readout.kernels)
    moved, uncut = found_crossing(forward)
    if moved is not None:
        alone = scanned("entry_scan", Skeleton.SCAN, forward, (), inputs, forward.carries)
        # Without gradients there is nothing to make states again for.
        behind = tuple(c for c in cotangents if not c.private)
        alone_back = scanned("entry_scan_cotangents", Skeleton.SCAN, backward, (), memory, behind)
        ends = (Scan((), alone, ahead, readout.behind), Scan(readout.ahead, alone_back, back, ()))
        cut, more = cut_sequence(moved, "entry_transition", inputs, *ends, takes=Takes.ENTRIES)
        schedules, kernels = [*schedules, cut], (*kernels, *more)
    cuts = keep_all((*states, *readout.kept))
    return Plan("chunk", kernels, tuple(schedules), cuts, readout.back, LONG_CHUNK, LONG_CHUNK, uncut=uncut)
