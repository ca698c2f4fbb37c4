"""Results of a program over pairs of tokens -> the kernel that makes them, streaming over the tokens in the other role.

A search goes over these again in each of its steps: what it tries is known before the loop over blocks, as a row of
queries, and what that makes of it behind the loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from ttrc.ir.config import Takes
from ttrc.ir.plan import Buffer, Kernel, Segment, Skeleton
from ttrc.ir.tile import Conjugate, Contract, Elementwise, Program, Statement, Tile, operands
from ttrc.passes.builder import sym
from ttrc.passes.cut_rounds import sums_over
from ttrc.passes.join_products import join_products
from ttrc.passes.simplify_tile import simplify_tile
from ttrc.passes.slice_program import renamed_operands, slice_program
from ttrc.symbolic import names, separated

STREAMS = {"t": "s", "s": "t"}
Body = tuple[Statement, ...]
Buffers = tuple[Buffer, ...]


def stream_pairs(
    name: str, own: str, program: Program, stores: Buffers, memory: Buffers, *, exact: bool = False
) -> Kernel:
    """`exact`: the products that it sums over blocks take their operands as they are, for a search goes on from them.
    Others do so by what a search has found."""
    other = STREAMS[own]
    results = tuple(dict.fromkeys(b.tile for b in stores))
    body = slice_program(program.statements, results, frozenset(b.tile for b in memory))
    search = next((s for s in body if isinstance(s.op, Conjugate)), None)
    if search is not None:
        return _search(name, search, body, stores, memory)
    body = join_products(simplify_tile(body, results), results)
    before, within, sums, behind = _parted(_apart(_pulled(body, results, other), other), other)
    if turns_pairs(own == "s", before):
        within = _as_made(within, sums)
    sooner, loads, streamed = _loads(body, results, memory, (*before, *within), other)
    last = tuple(b for b in loads if b not in (*streamed, *sooner))
    known = tuple(b for b in stores if any(b.tile == s.target for s in before))  # stored at once, not held
    held = {t for s in within for t in operands(s.op)}
    behind, again = _made_again(slice_program(behind, results), before, sooner, held)
    segments = (
        Segment(False, sooner, before, (), known),
        Segment(True, streamed, within, sums, ()),
        Segment(False, (*last, *again), behind, (), tuple(b for b in stores if b not in known)),
    )
    taken = frozenset(s.target for s in within if s.target in sums and exact or _takes(s, _found(program)))
    return Kernel(name, Skeleton.STREAM, own == "s", segments, (), axis=other, takes=Takes.TOKENS, exact=taken)


def turns_pairs(owns_keys: bool, before: Body) -> bool:
    """Whether tiles of pairs have a row a key, as what the loop sums has: then a matrix instruction takes them from the
    registers in which they were made. Keys and values are its operands too, from shared memory as long as they are
    what came from there; rows that the code before the loop makes would be held in registers as well."""
    return owns_keys and not any(set("kv") & set(s.target.axes) for s in before)


def _as_made(within: Body, sums: tuple[Tile, ...]) -> Body:
    """The loop's code with each sum right behind what it adds, which then is held for nothing else."""
    made, rest, done = {s.target for s in within}, [s for s in within if s.target in sums], {}
    for statement in (s for s in within if s.target not in sums):
        done[statement.target] = statement
        for total in rest:
            if total.target not in done and done.keys() >= made.intersection(operands(total.op)):
                done[total.target] = total
    return tuple(done.values())


def _found(program: Program) -> frozenset[Tile]:
    """What a search finds, and rows made of that: large along channels in which no keys differ, where by keys it comes
    to little, and so to be taken by them as it is."""
    found: set[Tile] = set()
    for statement in program.statements:
        row = isinstance(statement.op, Elementwise) and statement.target.axes == ("t", "k")
        if isinstance(statement.op, Conjugate) or row and found & set(operands(statement.op)):
            found.add(statement.target)
    return frozenset(found)


def _takes(statement: Statement, tiles: frozenset[Tile]) -> bool:
    """Whether it is a product by one of these."""
    return isinstance(statement.op, Contract) and bool(tiles & {statement.op.a, statement.op.b})


def _search(name: str, search: Statement, body: Body, stores: Buffers, memory: Buffers) -> Kernel:
    """One whose loop over blocks stands in a search; it stores what that finds."""
    op = search.op
    assert {b.tile for b in stores} == {search.target}, f"{name} finds more than a search does"
    goals = (op.rhs, op.diagonal, op.applied)
    body = slice_program((*(s for s in body if s != search), *op.body), goals)
    body = tuple(_apart(simplify_tile(body, goals), "s"))
    hanging = {op.unknown}
    for statement in body:
        if hanging & set(operands(statement.op)):
            hanging.add(statement.target)
    before = tuple(s for s in body if "s" not in s.target.axes and s.target not in hanging)
    again, within, sums, after = _parted((s for s in body if s not in before), "s")
    _, loads, streamed = _loads(body, goals, memory, body, "s")
    segments = (
        Segment(False, tuple(b for b in loads if b not in streamed), before, (), ()),
        Segment(False, (), again, (), ()),
        Segment(True, streamed, within, sums, ()),
        Segment(False, (), after, (), ()),
        Segment(False, (), (), (), stores),
    )
    options = {"axis": "s", "takes": Takes.TOKENS, "exact": frozenset(hanging), "search": search}
    return Kernel(name, Skeleton.STREAM, False, segments, (), **options)


def _parted(body: Iterator[Statement], other: str) -> tuple[Body, Body, tuple[Tile, ...], Body]:
    """Code before the loop over blocks, in it, what that sums, and code behind it."""
    before, within, sums, behind = [], [], [], []
    late: set[Tile] = set()
    for statement in body:
        if sums_over(statement, other):
            sums.append(statement.target)
            within.append(statement)
            late.add(statement.target)
        elif other in statement.target.axes:
            within.append(statement)
        elif late & set(operands(statement.op)):
            behind.append(statement)
            late.add(statement.target)
        else:
            before.append(statement)
    twice = late & {t for s in within if s.target not in sums for t in operands(s.op)}
    assert not twice, f"{', '.join(t.name for t in twice)}: known when a round is over that makes pairs of it"
    return tuple(before), tuple(within), tuple(sums), tuple(behind)


def _loads(body: Body, results, memory: Buffers, sooner: Body, other: str) -> tuple[Buffers, Buffers, Buffers]:
    """What is loaded ahead of the loop, what there is to load, and what of it comes block by block."""
    made = {s.target for s in body}
    used = {t for s in body for t in operands(s.op)} | set(results)
    loads = tuple(b for b in memory if b.tile in used - made)
    streamed = tuple(b for b in loads if other in b.tile.axes)
    taken = {t for s in sooner for t in operands(s.op)}
    return tuple(b for b in loads if b not in streamed and b.tile in taken), loads, streamed


def _made_again(
    behind: tuple[Statement, ...], before: list[Statement], loads: tuple[Buffer, ...], held: set[Tile]
) -> tuple[tuple[Statement, ...], tuple[Buffer, ...]]:
    """The code behind the loop, and its loads, without rows of channels from the code before it that the loop does not
    hold anyway: beside the loop's own they would be more than registers are."""
    made, loaded = {s.target: s for s in before}, {b.tile: b for b in loads}
    names: dict[Tile, Tile] = {}
    copies: list[Statement] = []

    def again(tile: Tile) -> Tile:
        apart = tile in made or tile in loaded
        if tile not in names and apart and tile not in held and set("kv") & set(tile.axes):
            names[tile] = Tile(f"{tile.name}_again", tile.axes)
            if tile in made:
                copies.append(renamed(made[tile], names[tile]))
        return names.get(tile, tile)

    def renamed(statement: Statement, target: Tile) -> Statement:
        operation = renamed_operands(statement.op, {t: again(t) for t in operands(statement.op)})
        return replace(statement, target=target, op=operation)

    rest = [renamed(s, s.target) for s in behind]
    return (*copies, *rest), tuple(replace(b, tile=names[t]) for t, b in loaded.items() if t in names)


def _pulled(body: tuple[Statement, ...], results: tuple[Tile, ...], other: str) -> tuple[Statement, ...]:
    """A number that every pair's share of a sum has, as the scale, multiplies the sum and not each pair."""
    made, uses = {s.target: s for s in body}, Counter(t for s in body for t in operands(s.op))
    pulled = list(body)
    for statement in body:
        op = statement.op
        if not isinstance(op, Contract) or op.axis != other or op.add is not None:
            continue
        pairs = next((t for t in (op.a, op.b) if t.axes == ("t", "s")), None)
        share = made.get(pairs)
        if share is None or uses[pairs] > 1 or pairs in results or not isinstance(share.op, Elementwise):
            continue
        numbers = {t.name for t in share.op.args if not t.axes}
        number, rest = separated(share.op.expr, lambda part, numbers=numbers: names(part) <= numbers)
        if not names(number):
            continue
        args = tuple(t for t in share.op.args if t.name in names(rest))
        total = Tile(f"{statement.target.name}_sum", statement.target.axes)
        factors = tuple(t for t in share.op.args if t.name in names(number))
        scaled = Elementwise(number * sym(total), tuple(sorted((*factors, total), key=lambda t: t.name)))
        of = args[0] if len(args) == 1 and rest == sym(args[0]) else pairs
        pulled[pulled.index(share)] = replace(share, op=Elementwise(rest, args))
        product = replace(op, a=of if op.a == pairs else op.a, b=of if op.b == pairs else op.b)
        where = pulled.index(statement)
        pulled[where : where + 1] = [replace(statement, target=total, op=product), replace(statement, op=scaled)]
    return slice_program(tuple(pulled), results)


def _apart(body: tuple[Statement, ...], other: str) -> Iterator[Statement]:
    """Products whose addend is not known until all blocks are through are summed by themselves, and added then."""
    sums: set[Tile] = set()
    late: set[Tile] = set()  # what is made of them
    for statement in body:
        op = statement.op
        if isinstance(op, Contract) and op.axis == other and op.add in late:
            part = Tile(f"{statement.target.name}_apart", statement.target.axes)
            yield replace(statement, target=part, op=replace(op, add=None))
            sums.add(part)
            args = tuple(sorted((op.add, part), key=lambda t: t.name))
            statement = replace(statement, op=Elementwise(sym(op.add) + sym(part), args))
        if sums_over(statement, other):
            sums.add(statement.target)
        elif (sums | late) & set(operands(statement.op)):
            late.add(statement.target)
        yield statement
