"""A program -> a scan of it that walks an axis in panels, for states that no chip holds: hidden channels of deep
memories, or key channels where programs need all value channels at once.

They lie where the scan leaves them: each panel is loaded where it is used, and what follows is stored in its place, in
the last loop. Threads of a program see what others of it have stored once all have come to the end of a piece. Private
states, which nobody is left, wait beside the rows that wait for a loop, from one chunk to the next. Of these rows a
piece loads rounded what products alone take there; what other pieces take as it is lies there twice.
"""

from __future__ import annotations

from ttrc.ir.config import Takes
from ttrc.ir.plan import Buffer, Kernel, Segment, Skeleton, Space
from ttrc.ir.tile import Program, Tile, operands
from ttrc.passes.narrow_factors import AS_MADE
from ttrc.passes.read_written import read_written, written_tiles
from ttrc.passes.round_waiting import round_waiting
from ttrc.passes.simplify_tile import simplify_tile
from ttrc.passes.slice_program import names_of, slice_program
from ttrc.passes.split_panels import Piece, split_panels, wait_for_panels


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
    written = written_tiles(body)
    aside = tuple(dict.fromkeys((*written, *wait_for_panels(pieces))))
    names = names_of(tuple(s for p in pieces for s in p.statements))
    reads = [_reads(p, names) for p in pieces]
    rounded = [read & own for read, own in zip(reads, round_waiting(pieces, set(aside) - set(written)))]
    whole = {t for read, own in zip(reads, rounded) for t in read - own}
    both = tuple(t for t in aside if t in whole and any(t in own for own in rounded))
    room, later = ((*aside, *both, *states) for states in ([c.state for c in private], [c.next for c in private]))
    waiting = [Buffer("waiting", t, Space.WAITING, room, single=True) for t in aside if t in whole]
    waiting += [Buffer("waiting", t, Space.WAITING, room) for t in aside if t in both or t not in whole]
    memory = (*memory, *(Buffer("waiting", c.state, Space.WAITING, room, single=True) for c in private))
    stores = (*stores, *(Buffer("waiting", c.next, Space.WAITING, later, single=True) for c in private))
    segments: list[Segment] = []
    known: set[Tile] = set()
    moved: set[Tile] = set()
    for piece, read, own in zip(pieces, reads, rounded):
        made = {s.target for s in piece.statements}
        loads = tuple(b for b in memory if b.tile in read)
        loads += tuple(b for b in waiting if b.tile in read and b.single is (b.tile not in own))
        assert not {c.next for c in carries if c.state in read} & moved, "a state is read once it moved"
        stored = [b for b in stores if b.tile in piece.results] + [b for b in waiting if b.tile in made - known]
        known |= made
        moved |= {b.tile for b in stored} - {c.state for c in carries}
        segments.append(Segment(piece.panelled, loads, piece.statements, piece.sums, tuple(stored)))
    reverse = any(c.reverse for c in carries)
    takes = Takes.KEYS if axis == "k" else Takes.HIDDEN
    return Kernel(name, Skeleton.SCAN, reverse, tuple(segments), tuple(carries), axis=axis, takes=takes)


def _reads(piece: Piece, names: dict[Tile, Tile]) -> set[Tile]:
    """What it takes from memory, or hands on from there."""
    used = {names.get(t, t) for s in piece.statements for t in operands(s.op)} | set(piece.results)
    return used - {s.target for s in piece.statements}
