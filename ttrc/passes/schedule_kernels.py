"""Tile programs -> kernels: what runs where, and what crosses from one kernel to the next.

A kernel is named by what it stores; its body is the slice of the program that this needs, up to what memory
already holds. So a value that two kernels want is either stored by the first (listed in its stores) or worked out
again by the second: the cut is a choice made here, and every other consequence follows from the slice.

forward:   prepare (parallel over chunks: the triangular inverses, where the rule has any)
           scan    (state on chip: outputs, and the chunk-start states where a backward pass will follow)
backward:  scan in reverse (the state's cotangent on chip: stored at each chunk's end)
           gradients (parallel over chunks: all that contracts over the value axis, which the scans split)
"""

from __future__ import annotations

from ttrc.ir.plan import Buffer, Kernel, Plan, Segment, Skeleton, Space
from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import SCALE, Contract, Inverse, Program, Reduce, Statement, Tile, operands
from ttrc.language.spec import Parameter
from ttrc.passes.order_statements import order_statements
from ttrc.passes.slice_program import slice_program

KEY_HEADS = ("q", "k", "d_q", "d_k")


def schedule_chunk(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    """`forward` and `backward` with solves lowered; the backward program repeats the forward statements."""
    inputs = _buffers(recurrence, backward)
    (state,) = (c for c in forward.carries)
    (cotangent,) = (c for c in backward.carries if c.reverse)
    pairs = _pairs_to_keep(forward)
    states = Buffer("states", state.state, Space.CHUNK)
    d_states = Buffer("d_states", cotangent.state, Space.CHUNK)
    outputs = tuple(_output(name, tile) for name, tile in forward.outputs)
    gradients = tuple(_output(name, tile) for name, tile in backward.outputs)

    first = tuple([_kernel("chunk_prepare", Skeleton.PARALLEL, forward, pairs, inputs)] if pairs else [])
    scan = _kernel("chunk_scan", Skeleton.SCAN, forward, (*outputs, states), (*inputs, *pairs), (state,))
    back = _kernel("chunk_scan_reverse", Skeleton.SCAN, backward, (d_states,), (*inputs, *pairs), (cotangent,))
    grads = _kernel("chunk_gradients", Skeleton.PARALLEL, backward, gradients, (*inputs, *pairs, states, d_states))
    return Plan("chunk", (*first, scan), (back, grads), saved=(*pairs, states), scratch=(d_states,))


def _pairs_to_keep(forward: Program) -> tuple[Buffer, ...]:
    """The C x C tiles that the scan multiplies values with, where making one of them takes a solve.

    A rule that solves has a parallel kernel in front of its scan anyway; what that kernel knows, the scan, which is
    short of registers and on the serial path, does not work out again. A rule without a solve keeps to one kernel.
    """
    if not any(isinstance(s.op, Inverse) for s in forward.statements):
        return ()
    factors = [s.op.a for s in forward.statements if isinstance(s.op, Contract) and "v" in s.target.axes]
    pairs = dict.fromkeys(t for t in factors if t.axes == ("t", "s"))
    return tuple(Buffer(t.name, t, Space.TOKEN) for t in pairs)


def schedule_tokens(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    """One kernel each way; the backward one recomputes the states of a block of tokens from its checkpoint."""
    inputs = _buffers(recurrence, backward)
    (state,) = (c for c in forward.carries)
    (cotangent,) = (c for c in backward.carries if c.reverse)
    states = Buffer("states", state.state, Space.CHUNK)
    outputs = tuple(_output(name, tile) for name, tile in forward.outputs)
    gradients = tuple(_output(name, tile) for name, tile in backward.outputs)
    ahead = _kernel("token_scan", Skeleton.TOKENS, forward, outputs, inputs, (state,))
    back = _kernel("token_scan_reverse", Skeleton.TOKENS_REVERSE, backward, gradients, inputs, (state, cotangent))
    return Plan("recurrent", (ahead,), (back,), saved=(states,), scratch=())


def _buffers(recurrence: Recurrence, program: Program) -> tuple[Buffer, ...]:
    parameters = {g.name for g in recurrence.gates if isinstance(g, Parameter)}

    def space(name: str) -> Space:
        return Space.KEY_TOKEN if name in KEY_HEADS else Space.HEAD if name in parameters else Space.TOKEN

    return tuple(Buffer(t.name, t, space(t.name)) for t in program.inputs if t.name != SCALE)


def _output(name: str, tile: Tile) -> Buffer:
    return Buffer(name, tile, Space.KEY_TOKEN if name in KEY_HEADS else Space.TOKEN)


def _kernel(name, skeleton, program: Program, stores, memory, carries=()) -> Kernel:
    """The kernel that makes `stores`, given what `memory` and the carried states hold."""
    carried = {c.state for c in carries}
    at_hand = frozenset({b.tile for b in memory} | carried)
    targets = [b.tile for b in stores] + [c.next for c in carries]
    body = slice_program(program.statements, targets, at_hand)
    if skeleton is Skeleton.PARALLEL:
        segments = _panels(body, memory, stores)
    else:
        _assert_splits(name, body, skeleton)
        segments = (_segment(False, body, (), memory, stores, targets),)
    return Kernel(name, skeleton, any(c.reverse for c in carries), segments, tuple(carries))


def _assert_splits(name: str, body: tuple[Statement, ...], skeleton: Skeleton) -> None:
    """Scans split the value axis over programs; only a gradient's partial sums may contract over it there."""
    for statement in body:
        if skeleton is not Skeleton.TOKENS_REVERSE and _sums_values(statement):
            raise AssertionError(f"{name} splits the value axis, over which {statement.target.name} contracts")


def _sums_values(statement: Statement) -> bool:
    return isinstance(statement.op, (Contract, Reduce)) and "v" not in statement.target.axes and any(
        "v" in t.axes for t in operands(statement.op)
    )


def _segment(panelled, statements, sums, memory, stores, targets=()) -> Segment:
    statements = order_statements(tuple(statements), tuple([*(b.tile for b in stores), *sums, *targets]))
    used = {t for s in statements for t in operands(s.op)} | set(targets)
    made = {s.target for s in statements}
    loads = tuple(b for b in memory if b.tile in used - made)
    return Segment(panelled, loads, tuple(statements), tuple(sums), tuple(stores))


def _panels(body: tuple[Statement, ...], memory, stores) -> tuple[Segment, ...]:
    """Code once a chunk and loops over panels of the value axis, in turn.

    A product or sum over the value axis belongs to a loop, and is known once that has ended. Code once a chunk
    goes in front of the first loop that needs it, no earlier: registers held across a loop are registers lost to it.
    """
    stage, loop_of = _stages(body)
    made = {s.target for s in body}
    loops = []
    for number in range(max([*stage.values(), 0]) + 1):
        sums = [t for t, loop in loop_of.items() if loop == number]
        written = [b.tile for b in stores if "v" in b.tile.axes and stage.get(b.tile, 0) == number]
        known = frozenset(t for t in made if "v" not in t.axes and t not in sums)
        loops += [(slice_program(body, group, known), group) for group in _groups(body, sums, written, known)]
    place = _places(body, loop_of, loops, {b.tile for b in stores})
    segments = []
    for number in range(len(loops) + 1):
        once = [s for s in body if place.get(s.target) == number]
        here = [b for b in stores if place.get(b.tile) == number]
        segments.append(_segment(False, once, (), memory, here))
        if number < len(loops):
            panel, group = loops[number]
            sums = [t for t in group if "v" not in t.axes]
            segments.append(_segment(True, panel, sums, memory, [b for b in stores if b.tile in group]))
    return tuple(s for s in segments if s.statements or s.stores)


def _groups(body, sums: list[Tile], written: list[Tile], known: frozenset[Tile]) -> list[list[Tile]]:
    """One loop for each accumulator as wide as the keys: two of them at once do not fit the registers.

    What is small joins the loop that works out most of what it needs; what a loop lacks it works out again.
    """
    chained = {s.op.add: s.target for s in body if isinstance(s.op, Contract) and s.target in sums and s.op.add in sums}
    wide = [t for t in sums if t.axes == ("t", "k") and t not in chained]
    groups = [[t] for t in wide] or ([[]] if sums or written else [])

    def needs(targets: list[Tile]) -> set[Tile]:
        return {t for s in slice_program(body, targets, known) for t in (s.target, *operands(s.op))}

    for target in (*sums, *written):
        if target.axes == ("t", "k"):
            if target in chained:
                end = target
                while end in chained:
                    end = chained[end]
                next(g for g in groups if end in g).insert(0, target)
            continue
        own = needs([target])
        max(groups, key=lambda g: (len(own & needs(g)), -len(g))).append(target)
    return [sorted(g, key=[*sums, *written].index) for g in groups]


def _stages(body: tuple[Statement, ...]) -> tuple[dict[Tile, int], dict[Tile, int]]:
    """Each tile's stage, and for results that sum over panels the loop that sums them."""
    stage: dict[Tile, int] = {}
    loop_of: dict[Tile, int] = {}
    for statement in body:
        target, add = statement.target, getattr(statement.op, "add", None)
        if not _sums_values(statement):
            stage[target] = max((stage.get(t, 0) for t in operands(statement.op)), default=0)
            continue
        loop = max(stage.get(t, 0) for t in operands(statement.op) if t is not add)
        if add is not None:
            loop = max(loop, loop_of.get(add, stage.get(add, 0)))
        loop_of[target], stage[target] = loop, loop + 1
    return stage, loop_of


def _places(body: tuple[Statement, ...], loop_of: dict[Tile, int], loops, stored: set[Tile]) -> dict[Tile, int]:
    """In front of which loop each piece of code once a chunk stands: results as early as they can be known (what
    they came from is then free), everything else as late as its users allow."""
    known_after = {t: number + 1 for number, (_, group) in enumerate(loops) for t in group}
    once = [s for s in body if "v" not in s.target.axes and s.target not in loop_of]
    for statement in once:
        known_after[statement.target] = max((known_after.get(t, 0) for t in operands(statement.op)), default=0)
    place: dict[Tile, int] = {}

    def no_later_than(tile: Tile, number: int) -> None:
        place[tile] = min(place.get(tile, number), number)

    for number, (panel, _) in enumerate(loops):
        for statement in panel:
            for tile in operands(statement.op):
                no_later_than(tile, number)
    for statement in reversed(once):
        no_later_than(statement.target, known_after[statement.target] if statement.target in stored else len(loops))
        for tile in operands(statement.op):
            no_later_than(tile, place[statement.target])
    return {s.target: place[s.target] for s in once}
