"""Closed forms -> kernels: the scans carry what the past is, and all that is solved for is parallel over chunks.

closed    forward:  scan (states on chip, stored at the chunks' starts), output (solves for x, and reads out)
          backward: solve (solves for y, the cotangent of q), scan in reverse (the states' cotangents, of x and y),
                    gradients (parallel over chunks: all the rest)
segments  the same, where both scans run over pieces of a sequence side by side
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.config import CHUNK, CLOSED
from ttrc.ir.plan import BACK, THROUGH, Buffer, Launch, Plan, Schedule, Skeleton, Space
from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import Conjugate, Program
from ttrc.passes.cut_passes import keep_all
from ttrc.passes.cut_sequence import Scan, cut_sequence, found_crossing
from ttrc.passes.place_buffers import gradient_buffers, input_buffers, state_buffers
from ttrc.passes.plan_kernel import planned
from ttrc.passes.plan_rows import plan_rows
from ttrc.passes.schedule_readout import schedule_readout


def schedule_closed(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    inputs, carried = input_buffers(recurrence, backward), forward.carries
    cotangents = tuple(c for c in backward.carries if c.reverse)
    # What a solve takes of the past is as exact as its result is to be.
    kept = tuple(replace(b, single=True) for b in state_buffers("states", carried))
    kept_back = state_buffers("d_states", cotangents)
    (x,) = (s.target for s in forward.statements if isinstance(s.op, Conjugate))
    solved = Buffer(x.name, x, Space.SOLVED)
    gradients = gradient_buffers(recurrence, backward)
    readout = schedule_readout(forward, backward, inputs, gradients)
    outputs, gradients = readout.outputs, tuple(b for b in gradients if b not in readout.gradients)
    # What the backward pass solves for is the cotangent of the query, or goes on to it: by a feature map, by a sum.
    (d_q,) = (b for b in gradients if b.name == "d_q")
    (y,) = (s.target for s in backward.statements if isinstance(s.op, Conjugate) and s.target != x)
    of_query = d_q if y == d_q.tile else Buffer(y.name, y, Space.TOKEN)
    rest = tuple(b for b in gradients if b != d_q)

    scan, reverse = f"chunk_scan{CLOSED}", f"chunk_scan_reverse{CLOSED}"
    ahead = planned(scan, Skeleton.SCAN, forward, kept, inputs, carried)
    output = plan_rows(f"chunk_output{CLOSED}", forward, (*outputs, solved), (*inputs, *kept))
    found = tuple(dict.fromkeys((of_query, d_q)))
    solve = plan_rows(f"chunk_solve{CLOSED}", backward, found, (*inputs, *kept, solved, *readout.back))
    seen = (*inputs, solved, of_query, *readout.back)
    back = planned(reverse, Skeleton.SCAN, backward, kept_back, seen, cotangents)
    read = (*seen, *kept, *kept_back, *readout.kept)
    grads = planned(f"chunk_gradients{CLOSED}", Skeleton.PARALLEL, backward, rest, read)
    scratch = (*readout.back, *kept_back, *(() if of_query == d_q else (of_query,)))
    behind, front, last = (Launch(output), *readout.behind), (*readout.ahead, Launch(solve)), (Launch(grads),)
    schedules = [Schedule("closed", (Launch(ahead, *THROUGH), *behind), (*front, Launch(back, *BACK), *last))]
    kernels = (ahead, output, solve, back, grads, *readout.kernels)
    moved, uncut = found_crossing(forward)
    if moved is not None:
        alone = planned(scan, Skeleton.SCAN, forward, (), inputs, carried)
        alone_back = planned(reverse, Skeleton.SCAN, backward, (), seen, cotangents)
        ends = (Scan((), alone, ahead, behind), Scan(front, alone_back, back, last))
        cut, more = cut_sequence(moved, "chunk_transition", inputs, *ends)
        schedules, kernels = [*schedules, cut], (*kernels, *more)
    cuts = keep_all((*kept, solved, *readout.kept))
    return Plan("chunk", kernels, tuple(schedules), cuts, scratch, CHUNK, CHUNK, uncut=uncut)
