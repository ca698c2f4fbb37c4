"""The kernels of a form -> the schedule that cuts sequences into pieces, of any rule that is affine in its states.

A piece takes states S to T S + B. Each is scanned from empty states, which makes B, and by the scan of `transition`
from unit states, which makes T; a join composes them, in order; and each is scanned once more, from the states that it
starts with in truth. Backwards the same with cotangents, and T transposed: what is launched besides these is the same
as where nothing is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

from ttrc.ir.config import Takes
from ttrc.ir.obstacle import Uncut
from ttrc.ir.plan import BACK, THROUGH, TRANSITION, UNIT, Buffer, Kernel, Launch, Schedule, Skeleton
from ttrc.ir.tile import Program
from ttrc.passes.linearize_tile import Moved, linearize_tile
from ttrc.passes.plan_kernel import planned

PIECES = "segments"  # the name of the schedule


@dataclass(frozen=True)
class Scan:
    """A pass's scan: `alone`, which makes nothing but the states, and `again`, which makes what the pass is for; what
    is launched in front of it and behind it."""

    ahead: tuple[Launch, ...]
    alone: Kernel
    again: Kernel
    behind: tuple[Launch, ...]


def cut_sequence(
    moved: Moved,
    transition: str,
    known: tuple[Buffer, ...],
    forward: Scan,
    backward: Scan,
    takes: Takes = Takes.VALUES,
) -> tuple[Schedule, tuple[Kernel, ...]]:
    """The schedule, and its kernels beside those of the scans: the one that is called `transition`, which has what is
    `known` in memory and `takes` of channels what scans do, and joins."""
    scan = planned(transition, Skeleton.SCAN, moved.program, (), known, moved.program.carries, takes=takes)
    # Without a decay and without a solve a state crosses as it is.
    cross = (replace(scan, crossing=moved.crossing),) if moved.program.statements else ()
    launches = tuple(
        Launch(k, f"{UNIT}[{i}]", f"{TRANSITION}[{i}]", segments=True)
        for k in cross
        for i in range(moved.crossing.members)
    )
    join = Kernel("join_segments", Skeleton.JOIN, False, (), (), crossing=moved.crossing)
    join_reverse = Kernel("join_segments_reverse", Skeleton.JOIN, True, (), (), crossing=moved.crossing)

    def cut(scan: Scan, join: Kernel, ends: tuple[str, str]) -> tuple[Launch, ...]:
        pieces = (
            Launch(scan.alone, None, "sums", segments=True),
            Launch(join, *ends),
            Launch(scan.again, "starts", None, segments=True),
        )
        return (*scan.ahead, *launches, *pieces, *scan.behind)

    schedule = Schedule(PIECES, cut(forward, join, THROUGH), cut(backward, join_reverse, BACK))
    apart = (s.alone for s in (forward, backward) if s.alone.name != s.again.name)
    return schedule, (*apart, *cross, join, join_reverse)


def found_crossing(program: Program) -> tuple[Optional[Moved], Optional[Uncut]]:
    """How a program's states cross a chunk, or why they do not do so by an affine law."""
    found = linearize_tile(program)
    return (found, None) if isinstance(found, Moved) else (None, found)
