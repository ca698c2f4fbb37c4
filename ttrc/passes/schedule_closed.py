"""Closed forms -> kernels: the scans carry what the past is, and all that is solved for is parallel over chunks.

closed  forward:  scan (states on chip, stored at the chunks' starts), output (solves for x, and reads out)
        backward: solve (solves for y, the cotangent of q), scan in reverse (the states' cotangents, of x and y),
                  gradients (parallel over chunks: all the rest)
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.config import CHUNK, CLOSED
from ttrc.ir.plan import Buffer, Launch, Plan, Schedule, Skeleton, Space
from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import Conjugate, Program
from ttrc.passes.cut_passes import keep_all
from ttrc.passes.place_buffers import as_output, gradient_buffers, input_buffers, state_buffers
from ttrc.passes.schedule_kernels import BACK, THROUGH, planned


def schedule_closed(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    inputs, carried = input_buffers(recurrence, backward), forward.carries
    cotangents = tuple(c for c in backward.carries if c.reverse)
    # What a solve takes of the past is as exact as its result is to be.
    kept = tuple(replace(b, single=True) for b in state_buffers("states", carried))
    kept_back = state_buffers("d_states", cotangents)
    outputs = tuple(as_output(name, tile) for name, tile in forward.outputs)
    ((x, query),) = ((s.target, s.op.rhs) for s in forward.statements if isinstance(s.op, Conjugate))
    solved = Buffer(x.name, x, Space.SOLVED)
    gradients = gradient_buffers(recurrence, backward)
    # What the backward pass solves for is the cotangent of the query, or of what a feature map makes of it.
    (d_q,) = (b for b in gradients if b.name == "d_q")
    y = dict(backward.cotangents)[query]
    of_query = d_q if y == d_q.tile else Buffer(y.name, y, Space.TOKEN)
    rest = tuple(b for b in gradients if b != d_q)

    scan, reverse = f"chunk_scan{CLOSED}", f"chunk_scan_reverse{CLOSED}"
    ahead = planned(scan, Skeleton.SCAN, forward, kept, inputs, carried)
    output = planned(f"chunk_output{CLOSED}", Skeleton.PARALLEL, forward, (*outputs, solved), (*inputs, *kept))
    solve = planned(
        f"chunk_solve{CLOSED}",
        Skeleton.PARALLEL,
        backward,
        tuple(dict.fromkeys((of_query, d_q))),
        (*inputs, *kept, solved),
    )
    seen = (*inputs, solved, of_query)
    back = planned(reverse, Skeleton.SCAN, backward, kept_back, seen, cotangents)
    read = (*seen, *kept, *kept_back)
    grads = planned(f"chunk_gradients{CLOSED}", Skeleton.PARALLEL, backward, rest, read)
    scratch = kept_back if of_query == d_q else (*kept_back, of_query)
    only = Schedule(
        "closed",
        (Launch(ahead, *THROUGH), Launch(output)),
        (Launch(solve), Launch(back, *BACK), Launch(grads)),
    )
    kernels = (ahead, output, solve, back, grads)
    return Plan("chunk", kernels, (only,), keep_all((*kept, solved)), scratch, CHUNK, CHUNK)
