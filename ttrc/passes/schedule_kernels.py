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
from ttrc.passes.slice_program import slice_program

KEY_HEADS = ("q", "k", "d_q", "d_k")


def schedule_chunk(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    """`forward` and `backward` with solves lowered; the backward program repeats the forward statements."""
    inputs = _buffers(recurrence, backward)
    (state,) = (c for c in forward.carries)
    (cotangent,) = (c for c in backward.carries if c.reverse)
    inverses = tuple(
        Buffer(s.target.name, s.target, Space.TOKEN) for s in forward.statements if isinstance(s.op, Inverse)
    )
    states = Buffer("states", state.state, Space.CHUNK)
    d_states = Buffer("d_states", cotangent.state, Space.CHUNK)
    outputs = tuple(_output(name, tile) for name, tile in forward.outputs)
    gradients = tuple(_output(name, tile) for name, tile in backward.outputs)

    first = tuple([_kernel("chunk_prepare", Skeleton.PARALLEL, forward, inverses, inputs)] if inverses else [])
    scan = _kernel("chunk_scan", Skeleton.SCAN, forward, (*outputs, states), (*inputs, *inverses), (state,))
    back = _kernel("chunk_scan_reverse", Skeleton.SCAN, backward, (d_states,), (*inputs, *inverses), (cotangent,))
    grads = _kernel("chunk_gradients", Skeleton.PARALLEL, backward, gradients, (*inputs, *inverses, states, d_states))
    return Plan("chunk", (*first, scan), (back, grads), saved=(*inverses, states), scratch=(d_states,))


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
    used = {t for s in statements for t in operands(s.op)} | set(targets)
    made = {s.target for s in statements}
    loads = tuple(b for b in memory if b.tile in used - made)
    return Segment(panelled, loads, tuple(statements), tuple(sums), tuple(stores))


def _panels(body: tuple[Statement, ...], memory, stores) -> tuple[Segment, ...]:
    """Alternates code once a chunk with loops over panels of the value axis.

    Stage n of a tile is the number of panel loops that must have ended before it can be known. A product or sum
    over the value axis belongs to the loop of its operands' stage and is known one stage later.
    """
    stage: dict[Tile, int] = {}
    loop_of: dict[Tile, int] = {}
    for statement in body:
        ready = max((stage.get(t, 0) for t in operands(statement.op)), default=0)
        if _sums_values(statement):
            factors = [t for t in operands(statement.op) if t is not getattr(statement.op, "add", None)]
            start = getattr(statement.op, "add", None)
            loop = max([stage.get(t, 0) for t in factors] + ([loop_of.get(start, stage.get(start, 0))] if start else []))
            loop_of[statement.target], stage[statement.target] = loop, loop + 1
        else:
            stage[statement.target] = ready
    made = {s.target for s in body}
    segments = []
    for number in range(max([*stage.values(), 0]) + 1):
        once = [s for s in body if "v" not in s.target.axes and s.target not in loop_of and stage[s.target] == number]
        here = [b for b in stores if "v" not in b.tile.axes and stage.get(b.tile, 0) == number]
        segments.append(_segment(False, once, (), memory, here))
        sums = [s.target for s in body if loop_of.get(s.target) == number]
        written = [b for b in stores if "v" in b.tile.axes and stage.get(b.tile, 0) == number]
        known = frozenset(t for t in made if "v" not in t.axes and t not in sums)
        panel = slice_program(body, [*sums, *(b.tile for b in written)], known)
        if panel:
            segments.append(_segment(True, panel, sums, memory, written, [b.tile for b in written]))
    return tuple(s for s in segments if s.statements or s.stores)
