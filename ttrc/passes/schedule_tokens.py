"""Programs of one token -> kernels: one each way; the backward one makes the states of a block of tokens again from
their checkpoint."""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.config import CHUNK, LONG_CHUNK
from ttrc.ir.plan import Plan, Schedule, Skeleton, Space
from ttrc.ir.recurrence import MATRIX, Recurrence
from ttrc.ir.tile import Program
from ttrc.passes.add_totals import add_totals, total_buffers
from ttrc.passes.cut_passes import keep_all
from ttrc.passes.place_buffers import as_output, gradient_buffers, input_buffers, state_buffers
from ttrc.passes.plan_kernel import planned


def schedule_tokens(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    inputs = input_buffers(recurrence, backward)
    backward = add_totals(backward, {b.tile: b.tile for b in inputs if b.space is Space.HEAD and "v" in b.tile.axes})
    carried, both = forward.carries, (*forward.carries, *(c for c in backward.carries if c.reverse))
    outputs = tuple(as_output(name, tile) for name, tile in forward.outputs)
    gradients = total_buffers(backward, gradient_buffers(recurrence, backward))
    kind = "deep_" if recurrence.network is not None else "" if recurrence.state == MATRIX else "vector_"
    ahead = planned(f"{kind}token_scan", Skeleton.TOKENS, forward, outputs, inputs, carried)
    back = planned(
        f"{kind}token_scan_reverse", Skeleton.TOKENS_REVERSE, backward, gradients, inputs, both, partial=True
    )
    kept = keep_all(tuple(replace(b, single=True) for b in state_buffers("states", carried)))
    only, segment = Schedule.one_each_way("tokens", ahead, back), recurrence.segment
    return Plan("recurrent", (ahead, back), (only,), kept, (), CHUNK, LONG_CHUNK, segment, recurrence.expansion)
