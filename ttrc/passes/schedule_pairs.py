"""Programs of pairs of tokens -> kernels that hold one tile of pairs at a time.

A kernel owns a block of tokens in one role and streams over the blocks of the other: what sums over keys belongs to a
program that owns queries, what sums over queries to one that owns keys. Sums along the sequence run in kernels of
their own, ahead of the pairs or behind them.

forward:   running_sums    the sums that pairs take differences of, where something is forgotten
           attend          a block of queries over its keys: read-outs, and the logarithms of what they were divided by
backward:  attend_queries  the same again: cotangents of queries, and row sums that other kernels want
           attend_keys     a block of keys over the queries that see it: cotangents of keys and values
           running_sums_reverse  what takes both, and sums along the sequence
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from ttrc.ir.attention import Attention
from ttrc.ir.config import CHUNK, DECAYS, MAPPED, WINDOWED, Takes
from ttrc.ir.plan import Buffer, Kernel, Launch, Plan, Schedule, Segment, Skeleton, Space
from ttrc.ir.tile import (
    Attend,
    Contract,
    Elementwise,
    Normaliser,
    Program,
    Reduce,
    Relabel,
    RunningSum,
    Statement,
    Tile,
    operands,
)
from ttrc.passes.builder import sym
from ttrc.passes.cut_passes import keep_all
from ttrc.passes.place_buffers import as_output, gradient_buffers, input_buffers
from ttrc.passes.plan_kernel import segment
from ttrc.passes.simplify_tile import simplify_tile
from ttrc.passes.slice_program import renamed_operands, slice_program
from ttrc.symbolic import names, separated

STREAMS = {"t": "s", "s": "t"}


def schedule_pairs(attention: Attention, forward: Program, backward: Program) -> Plan:
    """The backward program repeats the forward statements."""
    inputs = _both_roles(input_buffers(attention, backward), backward)
    sums = tuple(_sum(s.target) for s in forward.statements if isinstance(s.op, RunningSum))
    known = (*inputs, *_both_roles(sums, backward))
    ahead = (_walk("running_sums", forward, sums, inputs),) if sums else ()

    outputs = tuple(as_output(name, tile) for name, tile in forward.outputs)
    answer, given = forward.answer, dict(backward.cotangents)[forward.answer]
    # Rows of weights are differentiated at what they mean, which only all pairs could make again.
    answers = tuple(b for b in outputs if b.tile == answer) or (Buffer(answer.name, answer, Space.TOKEN),)
    normalisers = tuple(
        Buffer(s.target.name, s.target, Space.TOKEN, single=True)
        for s in forward.statements
        if isinstance(s.op, Normaliser)
    )
    kind = MAPPED if attention.features else DECAYS * bool(sums) + WINDOWED * bool(attention.window)
    stores = tuple(dict.fromkeys((*outputs, *answers, *normalisers)))
    attend = _stream(f"attend{kind}", "t", forward, stores, known)

    kept = (*known, *answers, *normalisers)
    at_hand = frozenset(b.tile for b in kept)
    needs = _needs(backward, at_hand)
    gradients = gradient_buffers(attention, backward)
    made = {s.target: s for s in backward.statements}
    later = tuple(b for b in gradients if _is_of_both(b.tile, made, needs))
    met = tuple(_scratch(t) for t in _met(made, needs, _of_gates(backward), tuple(b.tile for b in later)))
    sooner = [_own(b, made) for b in (*gradients, *met) if b not in later]
    by_keys = tuple(b for b in sooner if b.tile.axes[0] == "s")
    by_queries = tuple(b for b in sooner if b.tile.axes[0] == "t")
    rows = tuple(_scratch(t) for t in _rows(backward, by_keys, kept, given))
    queries = _stream(f"attend_queries{kind}", "t", backward, (*by_queries, *rows), kept)
    keys = _stream(f"attend_keys{kind}", "s", backward, by_keys, (*kept, *_both_roles(rows, backward)))
    behind = ()
    if later:
        behind = (_walk("running_sums_reverse", backward, later, _both_roles((*inputs, *met), backward)),)
    forth = (*ahead, attend)
    back = tuple(k for k in (queries, keys, *behind) if k.stores)  # a similarity may be free of queries
    kernels = (*forth, *back)
    only = Schedule("streams", tuple(map(Launch, forth)), tuple(map(Launch, back)))
    saved = tuple(dict.fromkeys(b for b in (*sums, *answers, *normalisers) if b in (*queries.loads, *keys.loads)))
    return Plan("chunk", kernels, (only,), keep_all(saved), (*met, *rows), CHUNK, CHUNK)


def _sum(tile: Tile) -> Buffer:
    return Buffer(tile.name, tile, Space.TOKEN, double=True)


def _scratch(tile: Tile) -> Buffer:
    """Numbers are float32, rows of channels what the inputs are."""
    return Buffer(tile.name, tile, Space.TOKEN, single=len(tile.axes) < 2)


def _both_roles(buffers: tuple[Buffer, ...], program: Program) -> tuple[Buffer, ...]:
    """What is loaded as numbers of queries can be loaded as numbers of keys."""
    known = {b.tile: b for b in buffers}
    turned = [s for s in program.statements if isinstance(s.op, Relabel) and s.op.arg in known]
    return (*buffers, *(replace(known[s.op.arg], tile=s.target) for s in turned))


def _needs(program: Program, at_hand: frozenset[Tile]) -> dict[Tile, set[str]]:
    """What making a tile takes beside what is at hand: sums over "s", sums over "t", sums along the sequence."""
    found: dict[Tile, set[str]] = {t: set() for t in (*program.inputs, *at_hand)}
    for statement in program.statements:
        if statement.target in at_hand:
            continue
        own = set().union(*(found[t] for t in operands(statement.op)))
        if isinstance(statement.op, RunningSum):
            own.add("along")
        found[statement.target] = own | {axis for axis in "ts" if _sums_over(statement, axis)}
    return found


def _sums_over(statement: Statement, axis: str) -> bool:
    op = statement.op
    return (
        isinstance(op, (Contract, Reduce, Normaliser, Attend))
        and axis not in statement.target.axes
        and any(axis in t.axes for t in operands(op))
    )


def _is_of_both(tile: Tile, made: dict[Tile, Statement], needs: dict[Tile, set[str]]) -> bool:
    """Whether a gradient takes what both kinds of programs make: numbers of one role that go to the other's."""
    if needs[tile] - {"t"} and needs[tile] - {"s"}:
        return True
    return tile.axes[0] in needs[tile] and not isinstance(made[tile].op, Relabel)


def _met(made: dict[Tile, Statement], needs, at_hand: frozenset[Tile], tiles: tuple[Tile, ...]) -> tuple[Tile, ...]:
    """Behind which pairs are not needed any more: numbers of one role, as they are on the way to `tiles`."""
    found: dict[Tile, None] = {}
    for tile in tiles:
        if tile in at_hand:
            continue
        if needs[tile] <= {STREAMS[tile.axes[0]]} and not isinstance(made[tile].op, Relabel):
            found[tile] = None
        else:
            found |= dict.fromkeys(_met(made, needs, at_hand, operands(made[tile].op)))
    return tuple(found)


def _of_gates(program: Program) -> frozenset[Tile]:
    """What gates of a token make, and nothing else."""
    found = {t for t in program.inputs if not set("kv") & set(t.axes)}
    for statement in program.statements:
        if len(statement.target.axes) < 2 and found.issuperset(operands(statement.op)):
            found.add(statement.target)
    return frozenset(found)


def _own(buffer: Buffer, made: dict[Tile, Statement]) -> Buffer:
    """Of the same numbers the tile that a program of keys holds."""
    op = made[buffer.tile].op
    return replace(buffer, tile=op.arg) if isinstance(op, Relabel) else buffer


def _rows(program: Program, stores: tuple[Buffer, ...], memory: tuple[Buffer, ...], given: Tile) -> tuple[Tile, ...]:
    """What the program that owns a query hands on to those of keys: the cotangent of what it was answered, what it adds
    to that of its own key and value, and sums over its channels, which need not be loaded again."""
    known = frozenset(b.tile for b in memory)
    body = slice_program(program.statements, [b.tile for b in stores], known)
    turned = [s.op.arg for s in body if isinstance(s.op, Relabel) and s.op.arg.axes[0] == "t"]
    channels = [t for t in dict.fromkeys((given, *turned)) if any(s.target == t for s in body)]
    body = slice_program(body, [b.tile for b in stores], frozenset(channels))
    sums = [s.target for s in body if isinstance(s.op, Reduce) and s.target.axes == ("t",)]
    return (*channels, *sums)


def _stream(name: str, own: str, program: Program, stores: tuple[Buffer, ...], memory: tuple[Buffer, ...]) -> Kernel:
    """The code before the loop over blocks of the other role, in it, and behind it."""
    other = STREAMS[own]
    results = tuple(dict.fromkeys(b.tile for b in stores))
    body = slice_program(program.statements, results, frozenset(b.tile for b in memory))
    body = simplify_tile(body, results)
    before, within, sums, behind = [], [], [], []
    late: set[Tile] = set()
    for statement in _apart(_pulled(body, results, other), other):
        if _sums_over(statement, other):
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
    assert not any(late & set(operands(s.op)) for s in within if s.target not in sums), f"{name} wants two passes"
    made = {s.target for s in body}
    used = {t for s in body for t in operands(s.op)} | set(results)
    loads = [b for b in memory if b.tile in used - made]
    streamed = tuple(b for b in loads if other in b.tile.axes)
    sooner = {t for s in (*before, *within) for t in operands(s.op)}
    first = tuple(b for b in loads if b not in streamed and b.tile in sooner)
    last = tuple(b for b in loads if b not in (*streamed, *first))
    known = tuple(b for b in stores if any(b.tile == s.target for s in before))  # stored at once, not held
    held = {t for s in within for t in operands(s.op)}
    behind, again = _made_again(slice_program(behind, results), before, first, held)
    segments = (
        Segment(False, first, tuple(before), (), known),
        Segment(True, streamed, tuple(within), tuple(sums), ()),
        Segment(False, (*last, *again), behind, (), tuple(b for b in stores if b not in known)),
    )
    return Kernel(name, Skeleton.STREAM, own == "s", segments, (), axis=other, takes=Takes.TOKENS)


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
        if _sums_over(statement, other):
            sums.add(statement.target)
        elif (sums | late) & set(operands(statement.op)):
            late.add(statement.target)
        yield statement


def _walk(name: str, program: Program, stores: tuple[Buffer, ...], memory: tuple[Buffer, ...]) -> Kernel:
    targets = [b.tile for b in stores]
    body = slice_program(program.statements, targets, frozenset(b.tile for b in memory))
    reverse = any(s.op.reverse for s in body if isinstance(s.op, RunningSum))
    own = segment(False, body, (), memory, stores)
    return Kernel(name, Skeleton.WALK, reverse, (own,), (), takes=Takes.TOKENS)
