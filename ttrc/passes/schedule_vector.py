"""A vector memory's chunk programs -> kernels: one scan each way.

The state is a number a channel, so that it costs next to nothing to keep one a chunk: the scan backwards starts each
chunk from there, and makes all gradients itself. Every input is read once and every result written once, which is the
least there is. Programs split the value channels; what they sum over these, gradients of gates without channels, are
shares. Where channels go on from a sum over all of them, programs take all, and chunks are short.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.config import LONG_CHUNK, SCANNED_CHUNK, SHORT_CHUNK, WHOLE
from ttrc.ir.plan import Launch, Plan, Schedule, Skeleton
from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import Program
from ttrc.passes.cut_passes import keep_all
from ttrc.passes.place_buffers import as_output, gradient_buffers, input_buffers, state_buffers
from ttrc.passes.plan_kernel import planned
from ttrc.passes.schedule_kernels import BACK, THROUGH


def schedule_vector(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    inputs, carried = input_buffers(recurrence, backward), forward.carries
    cotangents = tuple(c for c in backward.carries if c.reverse)
    states = tuple(replace(b, single=True) for b in state_buffers("states", carried))
    outputs = tuple(as_output(name, tile) for name, tile in forward.outputs)
    gradients = gradient_buffers(recurrence, backward)
    ahead = planned("vector_scan", Skeleton.SCAN, forward, (*outputs, *states), inputs, carried)
    back = planned(
        "vector_scan_reverse", Skeleton.SCAN, backward, gradients, (*inputs, *states), cotangents, partial=True
    )
    only = Schedule("vector", (Launch(ahead, *THROUGH),), (Launch(back, *BACK),))
    whole = any(k.name.endswith(WHOLE) for k in (ahead, back))
    segment = recurrence.segment
    chunk = segment or (SHORT_CHUNK if whole else SCANNED_CHUNK)
    # Steps are as long as chunks however long a caller asks these to be: the scan backwards starts each of its steps
    # from a state that was kept.
    return Plan("chunk", (ahead, back), (only,), keep_all(states), (), chunk, segment or LONG_CHUNK, segment)
