"""A program, and what is to be stored of it -> the kernel that makes that: its code in order, cut and simplified."""

from __future__ import annotations

from ttrc.ir.config import WHOLE, WIDE, Takes, plain_name
from ttrc.ir.plan import Buffer, Kernel, Segment, Skeleton, Space
from ttrc.ir.tile import Program, Reduce, Statement, operands, sums_values
from ttrc.passes.do_first import is_whole
from ttrc.passes.join_products import join_products
from ttrc.passes.load_again import load_again
from ttrc.passes.make_again import make_again
from ttrc.passes.narrow_factors import AS_MADE, Narrow, narrow_factors
from ttrc.passes.order_early import add_matrices_first, order_early
from ttrc.passes.order_statements import order_statements
from ttrc.passes.pull_factors import pull_factors
from ttrc.passes.read_written import read_written, written_tiles
from ttrc.passes.simplify_tile import simplify_tile
from ttrc.passes.slice_program import slice_program
from ttrc.passes.split_panels import split_panels
from ttrc.passes.take_values import takes_all_values


def planned(
    name: str,
    skeleton: Skeleton,
    program: Program,
    stores,
    memory,
    carries=(),
    long=False,
    partial=False,
    takes=Takes.VALUES,
    again=False,
) -> Kernel:
    """The kernel that makes `stores`, given what `memory` and the carried states hold; `long`: chunks are; `partial`:
    each program of a block of value channels stores its own share of sums over these; `takes`: unless it must take
    every value channel; `again`: of a scan backwards that starts each chunk from its own weights, what their adjoint
    takes of a chunk is made again for it."""
    carried = {c.state for c in carries}
    at_hand = frozenset({b.tile for b in memory} | carried)
    targets = [b.tile for b in stores] + [c.next for c in carries]
    sliced = slice_program(program.statements, targets, at_hand)
    sliced = read_written(sliced, tuple(targets)) if skeleton is Skeleton.SCAN else sliced
    body = simplify_tile(sliced, tuple(targets))
    if skeleton is Skeleton.PARALLEL:
        results = tuple(dict.fromkeys(b.tile for b in stores))  # two gates may share one gradient
        pulled = join_products(simplify_tile(pull_factors(sliced, results), results), results)

        def cut(body: tuple[Statement, ...], narrow: Narrow, wide: bool) -> tuple[Segment, ...]:
            return tuple(
                segment(p.panelled, p.statements, p.sums, memory, [b for b in stores if b.tile in p.results])
                for p in split_panels(body, results, narrow, wide)
            )

        # A long chunk's C x C tiles leave no room for a sum beside them. Chunks of wide heads are short.
        narrow = narrow_factors(body, results) if long else AS_MADE
        sums_keys = any(sums_values(s) and s.target.axes == ("t", "k") for s in body)
        wide = Kernel(name, skeleton, False, cut(pulled, AS_MADE, True), ()) if sums_keys and name in WIDE else None
        if not long and any(is_whole(t) for s in pulled for t in operands(s.op)):
            narrow = Narrow(frozenset(), narrow_factors(pulled, results).turned)  # whole states take what registers are
        segments = cut(body if long else pulled, narrow, False)
        return Kernel(name, skeleton, False, segments, (), narrow.factors, narrow.turned, wide)
    if takes_all_values(body, partial, carries):
        name, takes = plain_name(name) + WHOLE, Takes.WHOLE
    # Sums over a chunk's tokens come first: what they are of need not wait for them then.
    sums = [s.target for s in body if isinstance(s.op, Reduce) and (*s.op.arg.axes, *s.target.axes) == ("t", "k", "k")]
    body = order_statements(body, (*sums, *targets))
    written = written_tiles(body)
    waiting = [Buffer("waiting", t, Space.WAITING, written, single=True) for t in written]
    if takes is Takes.WHOLE and skeleton is Skeleton.SCAN:
        body, memory = load_again(body, memory, tuple(targets))
    if again:
        body = order_statements(add_matrices_first(body, at_hand - carried), tuple(targets))
        body, memory = make_again(body, memory, carried)
        body = order_early(body, frozenset(b.tile for b in memory))
    segments = (segment(False, body, (), memory, [*stores, *waiting], targets),)
    reverse = any(c.reverse for c in carries)
    return Kernel(name, skeleton, reverse, segments, tuple(carries), partial=partial, takes=takes)


def segment(panelled, statements, sums, memory, stores, targets=()) -> Segment:
    """Code with the loads of what it takes from memory, or hands on from there as one of its `targets`."""
    used = {t for s in statements for t in operands(s.op)} | set(targets)
    made = {s.target for s in statements}
    loads = tuple(b for b in memory if b.tile in used - made)
    return Segment(panelled, loads, tuple(statements), tuple(sums), tuple(stores))
