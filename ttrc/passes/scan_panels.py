"""A program -> a scan of it that walks an axis in panels, for states that no chip holds: hidden channels of deep
memories, or key channels where programs need all value channels at once.

They lie where the scan leaves them: each panel is loaded where it is used, and what follows is stored in its place, in
the last loop. Threads of a program see what others of it have stored once all have come to the end of a piece. Private
states, which nobody is left, wait beside the rows that wait for a loop, from one chunk to the next.
"""

from __future__ import annotations

from ttrc.ir.config import Takes
from ttrc.ir.plan import Buffer, Kernel, Segment, Skeleton, Space
from ttrc.ir.tile import Program, Tile, operands
from ttrc.passes.narrow_factors import AS_MADE
from ttrc.passes.read_written import read_written, written_tiles
from ttrc.passes.simplify_tile import simplify_tile
from ttrc.passes.slice_program import names_of, slice_program
from ttrc.passes.split_panels import split_panels, wait_for_panels


def scan_panels(axis: str, name: str, program: Program, stores, memory, carries) -> Kernel:
    """The kernel that makes `stores`, given what `memory` and its states hold; what waits for a loop has room of it."""
    handed, private = [c for c in carries if not c.private], [c for c in carries if c.private]
    states, following = tuple(c.state for c in handed), tuple(c.next for c in handed)
    own = [Buffer("leave", t, Space.SEQUENCE, states, single=True) for t in states]
    after = [Buffer("leave", t, Space.SEQUENCE, following, single=True) for t in following if t not in states]
    memory, stores = (*memory, *own), (*stores, *after)
    results = tuple(dict.fromkeys((*(b.tile for b in stores), *(c.next for c in private))))
    at_hand = frozenset((*(b.tile for b in memory), *(c.state for c in private)))
    body = slice_program(program.statements, results, at_hand)
    body = simplify_tile(read_written(body, results), results)
    pieces = split_panels(body, results, AS_MADE, axis=axis)
    aside = tuple(dict.fromkeys((*written_tiles(body), *wait_for_panels(pieces))))
    room, later = (*aside, *(c.state for c in private)), (*aside, *(c.next for c in private))
    waiting = [Buffer("waiting", t, Space.WAITING, room, single=True) for t in aside]
    memory = (*memory, *(Buffer("waiting", c.state, Space.WAITING, room, single=True) for c in private))
    stores = (*stores, *(Buffer("waiting", c.next, Space.WAITING, later, single=True) for c in private))
    names = names_of(tuple(s for p in pieces for s in p.statements))
    segments: list[Segment] = []
    known: set[Tile] = set()
    moved: set[Tile] = set()
    for piece in pieces:
        made = {s.target for s in piece.statements}
        used = {names.get(t, t) for s in piece.statements for t in operands(s.op)} | set(piece.results)
        loads = tuple(b for b in (*memory, *waiting) if b.tile in used - made)
        assert not {c.next for c in carries if c.state in used} & moved, "a state is read once it moved"
        stored = [b for b in stores if b.tile in piece.results] + [b for b in waiting if b.tile in made - known]
        known |= made
        moved |= {b.tile for b in stored} - {c.state for c in carries}
        segments.append(Segment(piece.panelled, loads, piece.statements, piece.sums, tuple(stored)))
    reverse = any(c.reverse for c in carries)
    takes = Takes.KEYS if axis == "k" else Takes.HIDDEN
    return Kernel(name, Skeleton.SCAN, reverse, tuple(segments), tuple(carries), axis=axis, takes=takes)
