"""Where decays differ by key channel: what kernels that walk these channels need of others, and which make gradients.

All that is as wide as the keys is made in panels of key channels then. What is made without key channels, or for each
block of value channels, belongs elsewhere: it would be made once more for each panel, or hold registers beside them.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.plan import Buffer, Kernel, Skeleton, Space, space_of
from ttrc.ir.tile import Contract, Decayed, Program, Statement, Tile, operands
from ttrc.passes.plan_kernel import planned
from ttrc.passes.slice_program import edge_of, edge_within, names_of, slice_program
from ttrc.passes.take_multiples import take_multiples
from ttrc.passes.walk_keys import walk_keys

Buffers = tuple[Buffer, ...]


def known_without_values(forward: Program, backward: Program, gradients: Buffers) -> Buffers:
    """All that is made of neither values nor states and used with these, and what the gradients want of the pairs of
    tokens.

    Each program of a block of value channels would work out the exponents of all key channels again.
    """
    edge = edge_of(forward, "v")
    wanted = slice_program(
        backward.statements, [b.tile for b in gradients], frozenset(t for t in edge if "s" in t.axes)
    )
    pairs = (s.target for s in wanted if isinstance(s.op, Decayed) and s.op.pairs)
    return tuple(Buffer(t.name, t, space_of(t)) for t in dict.fromkeys((*edge, *pairs)))


def sums_of_scans(
    forward: Program, backward: Program, gradients: Buffers, memory: list[Tile]
) -> tuple[Buffers, Buffers, Buffers]:
    """What gradients take of each token's products with states, or with their cotangents, which are at hand in the
    scans: of the one forwards, of the one backwards, and the gradients that the latter may as well finish.

    A kernel that walks key channels would walk them once more for these sums.
    """
    body = slice_program(backward.statements, [b.tile for b in gradients], frozenset(memory))
    ends = {s.op.add: s.target for s in body if isinstance(s.op, Contract)}
    names = names_of(backward.statements)
    finished = {names.get(b.tile, b.tile): b for b in gradients}
    early, late, whole = [], [], []
    for statement in body:
        if not isinstance(statement.op, Contract) or statement.op.axis != "k" or "v" not in statement.target.axes:
            continue
        tile = statement.target
        while tile in ends:
            tile = ends[tile]
        if tile in finished:
            whole.append(finished[tile])
        else:
            (early if any(s.target == tile for s in forward.statements) else late).append(tile)
    seen, fed = (tuple(Buffer(t.name, t, Space.SOLVED) for t in dict.fromkeys(x)) for x in (early, late))
    return seen, fed, tuple(dict.fromkeys(whole))


def gradients_by_key(program: Program, stores: Buffers, memory: Buffers, kind: str) -> tuple[list[Kernel], Buffers]:
    """The kernels that make `stores`, the last of which walks key channels, and what they make for one another alone.
    `kind` is that of the walk.

    What is as wide as the values would take the registers of 8 warps in front of the walk, which has work for 4. Where
    the walk takes such tiles, made without key channels, all that is comes from a kernel of its own, which walks value
    channels. C x C tiles alone are made by the walk itself.
    """
    name = f"chunk_gradients{kind}"
    if not any("v" in b.tile.axes for b in _before_keys(program, stores, memory)):
        walk = walk_keys(name, program, stores, memory)
        return [walk], walk.waiting_pairs
    held = frozenset(b.tile for b in memory)
    first = tuple(b for b in stores if not _takes_keys(slice_program(program.statements, [b.tile], held)))
    program = replace(program, statements=take_multiples(program.statements, tuple(b.tile for b in first)))
    between = tuple(b for b in _before_keys(program, stores, memory) if b.tile not in {f.tile for f in first})
    ahead = planned("chunk_gradients_values", Skeleton.PARALLEL, program, (*first, *between), memory)
    walk = walk_keys(name, program, tuple(b for b in stores if b not in first), (*memory, *first, *between))
    return [ahead, walk], (*between, *walk.waiting_pairs)


def _takes_keys(body: tuple[Statement, ...]) -> bool:
    return any("k" in s.target.axes and "v" not in s.target.axes for s in body)


def _before_keys(program: Program, results: Buffers, memory: Buffers) -> Buffers:
    """What is made without key channels, of what memory holds without them, and used with key channels."""
    body = slice_program(program.statements, [b.tile for b in results], frozenset(b.tile for b in memory))
    known = [b.tile for b in memory] + [t for s in body for t in operands(s.op) if not t.axes]
    return tuple(Buffer(t.name, t, space_of(t)) for t in edge_within(body, known, "k"))
