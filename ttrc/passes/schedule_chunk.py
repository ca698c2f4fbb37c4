"""Chunk programs -> kernels: what runs where, and what crosses from one kernel to the next.

A kernel is named by what it stores; its body is the slice of the program that this needs, up to what memory
already holds. So a value that two kernels want is either stored by the first (listed in its stores) or worked out
again by the second: the cut is a choice made here, and every other consequence follows from the slice.

fused      forward:  prepare (parallel over chunks: the triangular inverses, where the rule has any)
                     scan    (state on chip: outputs, and the chunk-start states where a backward pass will follow)
           backward: scan in reverse (the state's cotangent on chip: stored at each chunk's end)
                     gradients (parallel over chunks: all that contracts over the value axis, which the scans split)
split      the forward scan leaves the read-outs, which nothing waits for, to a kernel that is parallel over chunks:
           fewer products on the serial path, more bytes
segments   pieces of a sequence side by side: each is scanned from an empty state, and once more from the state that
           composing those before it gives; for rules that are affine in the state
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.ir.config import (
    CHUNK,
    JOINT,
    KEYS,
    LONG_CHUNK,
    MASKS,
    NONLINEAR,
    NORMALISED,
    SOLVED,
    SYSTEMS,
    Takes,
    is_several_chunks,
    plain_name,
)
from ttrc.ir.plan import BACK, THROUGH, Buffer, Kernel, Launch, Plan, Schedule, Skeleton, Space, space_of
from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import (
    Carry,
    Compose,
    Contract,
    Decayed,
    Inverse,
    Program,
    Reduce,
    Relabel,
    Substitute,
    Tile,
    operands,
)
from ttrc.passes.cut_passes import cut_passes, keep_all, solved_once, weights_of
from ttrc.passes.cut_sequence import Scan, cut_sequence, found_crossing
from ttrc.passes.place_buffers import gradient_buffers, input_buffers, state_buffers
from ttrc.passes.plan_kernel import planned
from ttrc.passes.round_keys import round_keys
from ttrc.passes.scan_panels import scan_panels
from ttrc.passes.schedule_decays import gradients_by_key, known_without_values, sums_of_scans
from ttrc.passes.schedule_features import schedule_features
from ttrc.passes.schedule_readout import schedule_readout
from ttrc.passes.slice_program import edge_of, made_within, slice_program
from ttrc.passes.walk_keys import walk_keys


def schedule_chunk(recurrence: Recurrence, forward: Program, backward: Program) -> Plan:
    """`forward` and `backward` with solves lowered; the backward program repeats the forward statements."""
    inputs = input_buffers(recurrence, backward)
    carried, cotangents = forward.carries, tuple(c for c in backward.carries if c.reverse)
    decayed = any(isinstance(s.op, Decayed) and s.op.channel == "k" for s in forward.statements)
    solves = SOLVED if any(isinstance(s.op, (Inverse, Substitute)) for s in forward.statements) else ""
    solved, fed_back = solved_once(forward), solved_once(backward, known=forward)
    gradients = gradient_buffers(recurrence, backward)
    in_front = not decayed and bool(_pairs_to_keep(forward))
    features = schedule_features(forward, backward, inputs, gradients, in_front)
    inputs = (*inputs, *features.mapped)
    gradients = (*(b for b in gradients if b not in features.gradients), *features.cotangents)
    readout = schedule_readout(forward, backward, inputs, gradients)
    outputs, gradients = readout.outputs, tuple(b for b in gradients if b not in readout.gradients)
    pairs = known_without_values(forward, backward, gradients) if decayed else _pairs_to_keep(forward)
    # A kernel in front of the scans that there is anyway.
    rounded = round_keys(backward, inputs) if pairs and not decayed else ()
    plain = tuple(b for b in inputs if b.tile not in {r.tile for r in rounded})
    pairs = (*pairs, *rounded)
    known, weights = (*plain, *pairs), weights_of(forward)
    known_back = (*known, *readout.back)  # which may be what the scan makes too, such as sums of values
    seen = _seen_states(forward, backward, (*known_back, *solved), weights)
    normalised = NORMALISED if forward.normaliser else ""
    # States kept every 128 tokens cost half of those every 64; but a scan in such steps spills, pairs that are made in
    # front of a scan are those of its steps, and the gradients of a normaliser find no room beside tiles of 128 x 128.
    chunk, step = (CHUNK, LONG_CHUNK) if pairs or normalised else (LONG_CHUNK, CHUNK)
    if recurrence.segment and not is_several_chunks(recurrence.segment):
        chunk = step = recurrence.segment
    # A segment's start, carried over its chunks, is seen by parallel kernels as `weights`.
    states, d_states = state_buffers("states", _handed(carried)), state_buffers("d_states", _handed(cotangents))

    masks = MASKS if _edge_of_moves(forward) else ""
    # A parallel kernel makes tiles of pairs for each of several associations; a scan, for each unknown that is solved
    # for, and the others cost it next to nothing.
    several = JOINT if len(recurrence.associations) > 1 else ""
    substituted = sum(len(s.op.unknowns) for s in forward.statements if isinstance(s.op, Substitute))
    kind = NONLINEAR if substituted == 1 else SYSTEMS if substituted else JOINT if forward.unknowns else ""

    moved, uncut = found_crossing(forward)
    on_chip = planned if moved is not None else _or_in_panels  # pieces of a sequence have states on chip

    def scan(*stores: Buffer) -> Kernel:
        return on_chip(f"chunk_scan{kind}", Skeleton.SCAN, forward, stores, known, carried)

    def scan_back(*stores: Buffer) -> Kernel:
        memory = (*known_back, *solved, *seen, *(states if weights else ()))
        return on_chip(f"chunk_scan_reverse{kind or masks}", Skeleton.SCAN, backward, stores, memory, cotangents)

    if decayed:
        prepare = [walk_keys(f"chunk_prepare{several or solves}", forward, pairs, inputs)]
    else:
        prepare = (
            [planned(f"chunk_prepare{masks or several}", Skeleton.PARALLEL, forward, pairs, inputs)] if pairs else []
        )
    rows, rows_back = _rows_of_states(forward, carried), _rows_of_states(backward, cotangents)
    kept, kept_back = (*states, *weights, *solved, *seen, *rows), (*d_states, *fed_back, *rows_back)
    whole: tuple[Buffer, ...] = ()
    if decayed:
        inside = [b.tile for b in (*known_back, *kept, *readout.kept, *kept_back)]
        seen_too, fed_too, whole = sums_of_scans(forward, backward, gradients, inside)
        kept, kept_back = (*kept, *seen_too), (*kept_back, *fed_too)
    saved = (*kept, *readout.kept)
    ahead, back = scan(*outputs, *kept), scan_back(*kept_back, *whole)
    output = planned(f"chunk_output{kind}", Skeleton.PARALLEL, forward, outputs, (*known, *kept))
    # Rows of decayed keys are made again where their exponents are wanted anyway.
    again = [b for b in pairs if decayed and {"t", "k"} <= set(b.tile.axes)]
    read = (*(b for b in known_back if b not in again), *saved, *kept_back)
    apart = _moves_apart(forward, backward)
    later = tuple(b for b in gradients if apart and _is_small(backward, b.tile, apart))
    apart = apart if later else ()
    sooner = (*(b for b in gradients if b not in (*later, *whole)), *apart)
    waiting: tuple[Buffer, ...] = ()
    if decayed:
        grads, waiting = gradients_by_key(backward, sooner, read, several)
    else:
        name = f"chunk_gradients{several if kind == SYSTEMS else kind or masks or several or normalised}"
        grads = [planned(name, Skeleton.PARALLEL, backward, sooner, read, long=chunk > CHUNK)]
    if later:
        grads.append(planned("chunk_moves", Skeleton.PARALLEL, backward, later, (*inputs, *apart)))
    kernels = [*prepare, ahead, back, *grads, output, *readout.kernels, *features.kernels]

    first = (*features.ahead, *(Launch(k) for k in prepare))
    last = (*(Launch(k) for k in grads), *features.behind)
    behind, front = readout.behind, readout.ahead
    fused = Schedule("fused", (*first, Launch(ahead, *THROUGH), *behind), (*front, Launch(back, *BACK), *last))
    split = Schedule("split", (*first, Launch(scan(*kept), *THROUGH), Launch(output), *behind), fused.backward)
    schedules = [fused, split]

    if moved is not None:
        ends = (Scan(first, scan(), ahead, behind), Scan(front, scan_back(), back, last))
        name = f"chunk_transition{JOINT if forward.unknowns else ''}"
        cut, more = cut_sequence(moved, name, known, *ends)
        schedules, kernels = [*schedules, cut], [*kernels, *more]
    taken = {b for s in schedules for launch in s.backward for b in launch.kernel.loads}
    made = (*features.mapped, *pairs)
    crossing = tuple(b for b in made if b in taken)
    # A stretch of chunks from a state that was kept would not know what its segment began with.
    private = _handed(carried) != carried
    cuts = keep_all((*crossing, *saved)) if private else cut_passes(crossing, saved, states, first, scan(*saved))
    return Plan(
        "chunk",
        tuple(kernels),
        tuple(schedules),
        cuts,
        (*readout.back, *kept_back, *apart, *waiting, *features.cotangents),
        chunk,
        step,
        recurrence.segment,
        passing=tuple(b for b in made if b not in taken),
        uncut=uncut,
    )


def _handed(carries: tuple[Carry, ...]) -> tuple[Carry, ...]:
    return tuple(c for c in carries if not c.private)


def _seen_states(
    forward: Program, backward: Program, memory: tuple[Buffer, ...], weights: tuple[Buffer, ...]
) -> tuple[Buffer, ...]:
    """What the reverse scan needs of the states of the forward one, and of the weights that are made of them: kept by
    token, which is less than either."""
    states = {c.state for c in forward.carries} | {b.tile for b in weights}
    cotangents = [c for c in backward.carries if c.reverse]
    at_hand = frozenset({b.tile for b in memory} | {c.state for c in cotangents})
    body = slice_program(backward.statements, [c.next for c in cotangents], at_hand)
    seen = [s.target for s in body if states & set(operands(s.op)) and {"t", "s"} & set(s.target.axes)]
    return tuple(Buffer(t.name, t, Space.SOLVED) for t in seen)


def _rows_of_states(program: Program, carries: tuple[Carry, ...]) -> tuple[Buffer, ...]:
    """What tokens make of a state that is a row, a number each: in registers it would take a tile of all its channels.

    A scan has the row at hand, and stores the number.
    """
    rows = {c.state for c in carries if len(c.state.axes) == 1}
    terms = {s.target for s in program.statements if rows & set(operands(s.op)) and s.target.axes == ("t", "k")}
    sums = [s.target for s in program.statements if isinstance(s.op, Reduce) and s.op.arg in terms]
    return tuple(Buffer(t.name, t, Space.SOLVED, single=True) for t in sums if t.axes == ("t",))


def _moves_apart(forward: Program, backward: Program) -> tuple[Buffer, ...]:
    """Where masks are products of masks: the cotangents of all that is made of gates alone, at the edge to the rest.

    They take registers for many C x C tiles to lead back to the gates, in a kernel of their own.
    """
    edge = _edge_of_moves(forward)
    cotangents = dict(backward.cotangents)
    apart = dict.fromkeys(cotangents[t] for t in edge if t in cotangents)
    return tuple(Buffer(t.name, t, space_of(t)) for t in apart)


def _edge_of_moves(forward: Program) -> tuple[Tile, ...]:
    """Where masks are products of masks: what is made of gates alone and used with more than these."""
    composed = any(isinstance(s.op, Compose) for s in made_within(forward.statements, forward.inputs, "kv"))
    return edge_of(forward, "kv") if composed else ()


def _is_small(program: Program, tile: Tile, memory: tuple[Buffer, ...]) -> bool:
    """Whether a tile is made, of what memory holds and the gates, without channels."""
    body = slice_program(program.statements, [tile], frozenset(b.tile for b in memory))
    return not any(set("kv") & set(t.axes) for s in body for t in (s.target, *operands(s.op)))


def _pairs_to_keep(forward: Program) -> tuple[Buffer, ...]:
    """The C x C tiles that the scan multiplies values with, and sums over such tiles, where it takes a solve to make or
    to use one of them, or a product of masks.

    Such a rule has a parallel kernel in front of its scan anyway; what that kernel knows, the scan, which is short of
    registers and on the serial path, does not work out again. A rule without a solve keeps to one kernel.
    """
    if not any(isinstance(s.op, (Inverse, Substitute, Compose)) for s in forward.statements):
        return ()
    turned = {s.op.arg: s.target for s in forward.statements if isinstance(s.op, Relabel)}
    sums = [s.target for s in forward.statements if isinstance(s.op, Reduce) and s.op.arg.axes == ("t", "s")]
    sums = [t if "t" in t.axes else turned[t] for t in sums]
    masks = [t for t in _edge_of_moves(forward) if t.axes == ("t", "s")]
    factors = [s.op.a for s in forward.statements if isinstance(s.op, (Contract, Decayed)) and "v" in s.target.axes]
    factors += [t for s in forward.statements if isinstance(s.op, Substitute) for t in s.op.pairs]
    pairs = dict.fromkeys(t for t in (*factors, *sums, *masks) if t.axes in (("t", "s"), ("t",)))
    return tuple(Buffer(t.name, t, Space.TOKEN) for t in pairs)


def _or_in_panels(name: str, skeleton: Skeleton, program: Program, stores, memory, carries) -> Kernel:
    """A scan as planned; where its programs take all value channels, one that walks key channels for wide heads."""
    kernel = planned(name, skeleton, program, stores, memory, carries)
    if kernel.takes is not Takes.WHOLE:
        return kernel
    name = plain_name(name) + KEYS
    wide = scan_panels("k", name, program, stores, memory, carries)
    return replace(kernel, name=name, wide=wide, takes=Takes.KEYS)
