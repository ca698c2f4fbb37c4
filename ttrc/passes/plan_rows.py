"""A program -> a kernel of it with a program for each block of a chunk's rows, which walks value channels in panels.

For what is worked out row by row: then a program needs no more of a chunk's other rows than their keys and values, and
of its own it has as many as the registers of a search last for.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.plan import Buffer, Kernel, Skeleton
from ttrc.ir.tile import Program
from ttrc.passes.clear_search import clear_search
from ttrc.passes.narrow_factors import AS_MADE
from ttrc.passes.own_rows import own_rows
from ttrc.passes.plan_kernel import segment
from ttrc.passes.pull_factors import pull_factors
from ttrc.passes.simplify_tile import simplify_tile
from ttrc.passes.slice_program import slice_program
from ttrc.passes.split_panels import split_panels


def plan_rows(name: str, program: Program, stores: tuple[Buffer, ...], memory: tuple[Buffer, ...]) -> Kernel:
    """The kernel that makes `stores`, given what `memory` holds."""
    results = tuple(dict.fromkeys(b.tile for b in stores))
    body = slice_program(program.statements, results, frozenset(b.tile for b in memory))
    body, copies = own_rows(body, memory)
    memory = (*memory, *copies)
    pieces = split_panels(simplify_tile(pull_factors(body, results), results), results, AS_MADE)
    pieces, again = clear_search(pieces)
    memory = (*memory, *(replace(b, tile=again[b.tile]) for b in memory if b.tile in again))
    segments = tuple(
        segment(p.panelled, p.statements, p.sums, memory, [b for b in stores if b.tile in p.results]) for p in pieces
    )
    return Kernel(name, Skeleton.ROWS, False, segments, ())
