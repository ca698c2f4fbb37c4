"""What a form's backward pass reads of its forward pass -> the cuts between the two: from all that is kept to little.

What is not kept is made again by launches of kernels that there are already, in front of the backward pass. Time never
speaks for that: of each cut less is held and more is moved than of the one before it.
"""

from __future__ import annotations

from typing import Optional

from ttrc.ir.plan import Buffer, Cut, Kernel, Launch, Space
from ttrc.ir.tile import Contract, Decayed, Program, Substitute

ALL, SCANNED, SPARSE = "all", "scanned", "sparse"  # what is kept for the backward pass, see Cut
LEFT = "left"  # where states lie and move on that nobody wants once they have
EVERY = 8  # chunks from one state to the next where they are sparse: stretches of as many still fill a chip


def solved_once(program: Program, known: Program | None = None) -> tuple[Buffer, ...]:
    """What a program, beyond a known one, solves row by row: serial work in a scan, so that it is done once. So is what
    it finds of several unknowns, which takes a product with each of many C x C tiles, and what earlier tokens, or later
    ones, come to behind decays by value channel, which takes one for each length of pieces."""
    old = set() if known is None else {s.target for s in known.statements}
    solved = [t for s in program.statements if isinstance(s.op, Substitute) for t in s.op.unknowns]
    decayed = [s.target for s in program.statements if isinstance(s.op, Decayed) and s.target.axes[-1] == "v"]
    solved = [t for t in (*solved, *program.unknowns, *decayed) if t not in old]
    return tuple(Buffer(t.name, t, Space.SOLVED) for t in solved)


def weights_of(forward: Program) -> tuple[Buffer, ...]:
    """What products take in the place of a state, made of it once a chunk: other kernels load it as they do states."""
    made = {s.target for s in forward.statements if not {"t", "s"} & set(s.target.axes)}
    factors = [t for s in forward.statements if isinstance(s.op, Contract) for t in (s.op.a, s.op.b)]
    tiles = tuple(dict.fromkeys(t for t in factors if t in made))
    return tuple(Buffer("weights", t, Space.CHUNK, tiles) for t in tiles)


def keep_all(kept: tuple[Buffer, ...]) -> tuple[Cut, ...]:
    return (Cut(ALL, kept),)


def cut_passes(
    pairs: tuple[Buffer, ...],
    kept: tuple[Buffer, ...],
    states: tuple[Buffer, ...],
    prepare: tuple[Launch, ...],
    scan: Kernel,
    tokens: Optional[int] = None,
) -> tuple[Cut, ...]:
    """From what takes least to what holds least: what parallel kernels make is made again for less than states are.
    Stretches are of so many `tokens`, if that is given, else of chunks."""
    scanned = (Cut(SCANNED, kept, prepare),) if pairs else ()
    again = (*prepare, Launch(scan, SPARSE, LEFT if scan.moves_in_memory else None, segments=True))
    return (*keep_all((*pairs, *kept)), *scanned, Cut(SPARSE, states, again, EVERY, tokens))
