"""Programs of pairs of tokens -> kernels that hold one tile of pairs at a time.

A kernel owns a block of tokens in one role and streams over the blocks of the other: what sums over keys belongs to a
program that owns queries, what sums over queries to one that owns keys. Sums along the sequence run in kernels of
their own, ahead of the pairs or behind them.

forward:   running_sums    the sums that pairs take differences of, where something is forgotten
           attend          a block of queries over its keys: read-outs, and the logarithms of what they were divided by
backward:  attend_queries  the same again: cotangents of queries, and row sums that other kernels want
           attend_keys     a block of keys over the queries that see it: cotangents of keys and values
           running_sums_reverse  what takes both, and sums along the sequence

Where pairs are made of what is summed over all keys, rounds over these go ahead, each a kernel that owns queries:

           attend_ahead    sums that a search starts from, or that its cotangent is
           attend_solve    the search
           attend_behind   sums of what it finds, where there are such
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.attention import Attention
from ttrc.ir.config import CHUNK, DECAYS, LINES, MAPPED, WINDOWED, Takes
from ttrc.ir.plan import Buffer, Kernel, Launch, Plan, Schedule, Skeleton, Space
from ttrc.ir.tile import (
    Conjugate,
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
from ttrc.passes.cut_rounds import cut_rounds, sums_over
from ttrc.passes.place_buffers import as_output, gradient_buffers, input_buffers
from ttrc.passes.plan_kernel import segment
from ttrc.passes.slice_program import slice_program
from ttrc.passes.stream_pairs import STREAMS, stream_pairs
from ttrc.passes.sum_over_heads import sum_over_heads


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
    kind = LINES if any(isinstance(s.op, Conjugate) for s in forward.statements) else kind
    stores = tuple(dict.fromkeys((*outputs, *answers, *normalisers)))
    sooner, handed = _rounds(forward, tuple(b.tile for b in stores), known, kind)
    stores = tuple(b for b in stores if b not in handed)
    attend = stream_pairs(f"attend{kind}", "t", forward, stores, (*known, *handed))

    crossing = tuple(dict.fromkeys((*sums, *answers, *normalisers, *handed)))
    kept = (*known, *(b for b in crossing if b not in sums))
    gradients = gradient_buffers(attention, backward)
    again, found = _rounds(backward, tuple(b.tile for b in gradients), kept, f"_reverse{kind}")
    kept = (*kept, *found)
    at_hand = frozenset(b.tile for b in kept)
    needs = _needs(backward, at_hand)
    made = {s.target: s for s in backward.statements}
    later = tuple(b for b in gradients if _is_of_both(b.tile, made, needs))
    met = tuple(_scratch(t) for t in _met(made, needs, _of_gates(backward), tuple(b.tile for b in later)))
    own = [_own(b, made) for b in (*gradients, *met) if b not in later]
    by_keys = tuple(b for b in own if b.tile.axes[0] == "s")
    by_queries = tuple(b for b in own if b.tile.axes[0] == "t")
    rows = tuple(_scratch(t) for t in _rows(backward, by_keys, kept, given, found))
    rows = tuple(replace(b, single=b.single or bool(found) and "k" in b.tile.axes) for b in rows)
    queries = stream_pairs(f"attend_queries{kind}", "t", backward, (*by_queries, *rows), kept)
    keys = stream_pairs(f"attend_keys{kind}", "s", backward, by_keys, (*kept, *_both_roles(rows, backward)))
    keys = sum_over_heads(keys)
    behind = ()
    if later:
        behind = (_walk("running_sums_reverse", backward, later, _both_roles((*inputs, *met), backward)),)
    forth = (*ahead, *sooner, attend)
    back = (*again, *(k for k in (queries, keys, *behind) if k.stores))  # a similarity may be free of queries
    kernels = (*forth, *back)
    only = Schedule("streams", tuple(map(Launch, forth)), tuple(map(Launch, back)))
    saved = tuple(b for b in crossing if any(b in k.loads for k in (*again, queries, keys)))
    return Plan("chunk", kernels, (only,), keep_all(saved), (*found, *met, *rows), CHUNK, CHUNK)


def _rounds(
    program: Program, goals: tuple[Tile, ...], memory: tuple[Buffer, ...], ends: str
) -> tuple[tuple[Kernel, ...], tuple[Buffer, ...]]:
    """The rounds over all keys ahead of a pass's last, and what they leave for it."""
    rounds = cut_rounds(program.statements, goals, frozenset(b.tile for b in memory))
    searched = {s.target for s in program.statements if isinstance(s.op, Conjugate)}
    search = next((i for i, own in enumerate(rounds) if searched & set(own)), len(rounds))
    kernels, handed = [], []
    for number, own in enumerate(rounds):
        name = "attend_solve" if number == search else "attend_ahead" if number < search else "attend_behind"
        # What a search goes on from is as exact as its result is to be, and that may be large where no pair is seen.
        stores = tuple(replace(_scratch(t), single=number <= search or len(t.axes) < 2) for t in own)
        known = (*memory, *_both_roles(tuple(handed), program))
        kernels.append(stream_pairs(f"{name}{ends}", "t", program, stores, known, exact=number < search))
        handed += stores
    return tuple(kernels), tuple(handed)


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
        found[statement.target] = own | {axis for axis in "ts" if sums_over(statement, axis)}
    return found


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


def _rows(
    program: Program, stores: tuple[Buffer, ...], memory: tuple[Buffer, ...], given: Tile, found: tuple[Buffer, ...]
) -> tuple[Tile, ...]:
    """What the program that owns a query hands on to those of keys: the cotangent of what it was answered, what it adds
    to that of its own key and value, what pairs take that is made of sums over keys, and sums over its channels, which
    need not be loaded again."""
    known = frozenset(b.tile for b in memory)
    goals = [b.tile for b in stores]
    body = slice_program(program.statements, goals, known)
    turned = [s.op.arg for s in body if isinstance(s.op, Relabel) and s.op.arg.axes[0] == "t"]
    whole = (given, *turned, *_taken_by_pairs(body, frozenset(b.tile for b in found)))
    whole = [t for t in dict.fromkeys(whole) if any(s.target == t for s in body)]
    body = slice_program(body, goals, frozenset(whole))
    sums = [s.target for s in body if isinstance(s.op, Reduce) and s.target.axes == ("t",)]
    return (*whole, *sums)


def _taken_by_pairs(body: tuple[Statement, ...], found: frozenset[Tile]) -> list[Tile]:
    """Of queries, made of these, and neither one of them nor its negative, which is as good."""
    hanging, made = set(found), []
    for statement in body:
        args = operands(statement.op)
        if "s" in statement.target.axes:
            made += [t for t in args if t in hanging - found and "s" not in t.axes]
        elif hanging & set(args):
            near = isinstance(statement.op, Elementwise) and len(args) == 1 and args[0] in found
            if not near or statement.op.expr != -sym(args[0]):
                hanging.add(statement.target)
    return made


def _walk(name: str, program: Program, stores: tuple[Buffer, ...], memory: tuple[Buffer, ...]) -> Kernel:
    targets = [b.tile for b in stores]
    body = slice_program(program.statements, targets, frozenset(b.tile for b in memory))
    reverse = any(s.op.reverse for s in body if isinstance(s.op, RunningSum))
    own = segment(False, body, (), memory, stores)
    return Kernel(name, Skeleton.WALK, reverse, (own,), (), takes=Takes.TOKENS)
