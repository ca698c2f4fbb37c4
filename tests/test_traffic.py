"""A plan's budget is what its kernels do: bytes, FLOPs and launches, counted in Triton's interpreter, to the byte."""

import math
import re
from collections import Counter
from functools import cache

import pytest
import torch

from bench.sides import HERE, inputs
from bench.traffic import LENGTH, README, WIDTH, in_chunks
from ttrc.compiler import analyse
from ttrc.ir.config import CHUNK, block, key_block, step_tokens
from ttrc.ir.plan import Skeleton, Space
from ttrc.ir.tile import HIDDEN, Conjugate, CumulativeSum, Decayed, row_axes
from ttrc.language.state import axis_widths, needs_initial_state, state_parts
from ttrc.passes.budget import budget, cost_again, least_bytes
from ttrc.runtime.load import load, shipped_specs
from ttrc.runtime.verify import as_arguments
from ttrc.tools.counter import count

GATE = 4  # bytes of a float32 gate
STATE = 4  # bytes of an element of a state
SEGMENTS = 2  # that four chunks are cut into
PASSES = ("forward", "backward")


def operator(name):
    """Of a shipped rule, or of one that is not."""
    path = HERE.parent / f"tests/unseen/{name}.toml"
    return load(path if path.exists() else name)


@cache
def module(name):
    return analyse(operator(name).spec)


def counted(name, form, length, width, chunk, schedule, keep_bytes=None):
    """{pass: Tally} of one sequence and head, bfloat16."""
    op = operator(name)
    if schedule == "auto" and form == "chunk":  # not what a cost model finds best for so few tokens
        schedule = next(iter(op.schedules), "auto")
    call = getattr(op.package, name)  # an operator refuses other chunks than a rule's segments
    x = inputs(op.spec, length, width)
    options = dict(form=form, chunk_size=chunk, backend="triton", schedule=schedule, keep_bytes=keep_bytes)
    with count() as forward:
        o, _ = call(**as_arguments(op.spec, x), **options)
    with count() as backward:
        torch.autograd.grad(o, list(x.values()), torch.ones_like(o), allow_unused=True)
    return {"forward": forward, "backward": backward}


def waiting(tokens, kernel, width, expansion=None):
    """Bytes of what a chunk of a sequence has waiting in memory, written once and read once; rounded, half of them."""
    sizes = {"t": tokens, "s": tokens, "k": width, "v": width, **dict.fromkeys(HIDDEN, (expansion or 0) * width)}
    own = {(b.tile, b.single) for s in kernel.segments for b in s.stores if b.space is Space.WAITING}
    return sum((STATE if single else 2) * math.prod(sizes[a] for a in t.axes) for t, single in own)


def once(launch, longest, length, width, chunk):
    """(read, written) bytes that come once a sequence and head, or a segment, which a budget per token leaves out."""
    kernel = launch.kernel
    read = numbers_of(kernel.loads, Space.HEAD, width)  # every program reads it, at the same address
    read += 2 * chunk * _rows_of_tables(kernel, chunk)
    if launch.segments:  # where they start and end, and the first chunks of what is kept by these
        by_chunk = any(b.space in (Space.CHUNK, Space.NUMBER) for b in (*kernel.loads, *kernel.stores))
        read += 4 * (SEGMENTS + 1) + 4 * SEGMENTS * (by_chunk or not launch.crosses)
    if kernel.skeleton in (Skeleton.TOKENS_REVERSE, Skeleton.STEPS_REVERSE):
        trail = trail_of(kernel, longest, width, min(length, chunk))
        return read + trail, trail + numbers_of(kernel.stores, Space.TOTAL, width)
    at_once = key_block(kernel.takes, kernel.config(longest, width, width), width)
    own = waiting(min(chunk, CHUNK), kernel.of(width, at_once), block(width))
    if kernel.of(width, at_once).in_memory:
        own += STATE * width * width  # where the state lies and moves on
    handed = (c.state for reverse in (False, True) for c in kernel.carried(reverse))
    read, state = read + own, STATE * SEGMENTS * sum(width ** len(s.axes) for s in handed)
    match launch.enter, launch.leave:
        case _ if kernel.skeleton is Skeleton.JOIN:  # sums and transitions in, starts out and, rows apart, in again
            return None
        case _ if launch.crosses:  # of one member of a group each
            crossing = kernel.crossing
            state = STATE * SEGMENTS * crossing.members * width ** len(crossing.entry)
            return read + state, state
        case _:
            return read + state * (launch.enter in ("starts", "sparse")), own + state * (launch.leave == "sums")


def numbers_of(buffers, space, width):
    """Bytes of what has a number, or one a channel or entry, a head or sequence."""
    return GATE * sum(width ** len(row_axes(b.tile)) for b in buffers if b.space is space)


def trail_of(kernel, longest, width, chunk):
    """Bytes of the states that a program works out again, in scratch of its own: small enough to stay in a cache."""
    config = kernel.config(longest, width, width)
    step = step_tokens(kernel.takes, config, chunk, 1, width, width)
    kept = sum(not c.reverse for c in kernel.carries)
    return STATE * (chunk // step) * block(width) * config.value_block * -(-width // config.value_block) * kept


def _rows_of_tables(kernel, chunk):
    """Of zeros and ones, [chunk, chunk] by kind of running sum and length of pieces, and [8, chunk] by the latter."""
    wide = [s.op for s in kernel.statements if "k" in s.target.axes]
    sums = {(op.reverse, op.exclusive) for op in wide if isinstance(op, CumulativeSum)}
    pieces = {s.op.own for s in kernel.statements if isinstance(s.op, Decayed)}
    levels = chunk.bit_length() - 1
    return chunk * (len(sums) + len(pieces) * levels) + 8 * levels * bool(pieces)


def compare(name, form, length, width, chunk, schedule="auto"):
    """Every launch of both passes; the interpreter adds up those of one kernel."""
    tallies = counted(name, form, length, width, chunk, schedule)
    named = None if schedule == "auto" else schedule
    sizes = {"d_k": width, "d_v": width, "dtype_bytes": 2, "gate_bytes": GATE}
    costs = budget(module(name), chunk=chunk, **sizes, schedule=named, segments=SEGMENTS)[form]
    own = module(name).forms[form].plan
    plan = next(s for s in own.schedules if s.name == (named or s.name))
    for which in PASSES:
        launches = getattr(plan, which)
        assert tallies[which].total.launches == costs[which].launches == len(launches)
        assert list(tallies[which].kernels) == list(dict.fromkeys(kernel for kernel, _ in costs[which].kernels))
        wanted = Counter()
        for launch, (kernel, traffic) in zip(launches, costs[which].kernels, strict=True):
            extra = once(launch, own.chunk, length, width, chunk)
            if extra is not None:
                wanted[kernel, "read"] += traffic.read_bytes * length + extra[0]
                wanted[kernel, "written"] += traffic.written_bytes * length + extra[1]
                wanted[kernel, "flops"] += traffic.flops * length
        for kernel in {kernel for kernel, _ in wanted}:
            seen = tallies[which].kernels[kernel]
            assert seen.distinct_load_bytes == wanted[kernel, "read"], kernel
            assert seen.distinct_store_bytes == wanted[kernel, "written"], kernel
            assert seen.dot_flops == wanted[kernel, "flops"], kernel


@pytest.mark.parametrize("schedule", ["fused", "split", "segments"])
@pytest.mark.parametrize("name", ["gated_deltanet", "gated_deltaproduct", "kda", "linear_attention", "mamba2"])
def test_the_chunk_forms_budget_is_exact(name, schedule):
    compare(name, "chunk", length=256, width=64, chunk=64, schedule=schedule)


def test_the_budget_of_several_states_in_pieces_is_exact():
    compare("momentum_deltanet", "chunk", length=256, width=64, chunk=64, schedule="segments")


def test_the_budget_of_channels_in_pieces_is_exact():
    compare("min_gru", "chunk", length=128, width=32, chunk=32, schedule="segments")


@pytest.mark.parametrize("schedule", ["fused", "split"])
@pytest.mark.parametrize("name", ["huber_delta", "robust_delta"])
def test_the_chunk_forms_budget_of_a_substitution_is_exact(name, schedule):
    compare(name, "chunk", length=256, width=64, chunk=64, schedule=schedule)


def test_the_budget_of_a_substitution_of_two_unknowns_is_exact():
    compare("huber_product", "chunk", length=128, width=32, chunk=64, schedule="fused")


@pytest.mark.parametrize("name", ["robust_delta", "moneta_linear"])
def test_the_budget_of_a_state_in_memory_is_exact(name):
    """Of wide heads, whose key channels are walked in panels, of which the last is not full."""
    chunk = module(name).forms["chunk"].plan.tokens(144, 144, 2)
    compare(name, "chunk", length=2 * chunk, width=144, chunk=chunk, schedule="fused")


@pytest.mark.parametrize("schedule", ["fused", "split"])
@pytest.mark.parametrize("name", ["momentum_deltanet", "titans_linear"])
def test_the_budget_of_two_states_is_exact(name, schedule):
    compare(name, "chunk", length=256, width=64, chunk=64, schedule=schedule)


@pytest.mark.parametrize("name", ["gated_deltanet", "gla", "huber_delta"])
def test_the_budget_of_what_is_made_again_is_exact(name):
    """Two stretches of eight chunks: the forward pass keeps a state of each, in float32, and the backward pass scans
    from there."""
    width, chunk = 32, 16
    length = SEGMENTS * 8 * chunk
    plan, sizes = module(name).forms["chunk"].plan, {"d_k": width, "d_v": width, "dtype_bytes": 2}
    *_, cut = plan.cuts
    least = STATE * width * width / (8 * chunk)
    tallies = counted(name, "chunk", length, width, chunk, "fused", keep_bytes=least)
    launched = [*cut.again, *plan.schedules[0].backward]
    assert list(tallies["backward"].kernels) == [launch.kernel.name for launch in launched]
    spent = cost_again(plan, cut, **sizes, chunk=chunk, stretches=SEGMENTS)
    assert spent.serial_steps_per_token * length == 8
    for launch, (kernel, traffic) in zip(cut.again, spent.kernels, strict=True):
        seen, (read, written) = tallies["backward"].kernels[kernel], once(launch, chunk, length, width, chunk)
        assert seen.distinct_load_bytes == traffic.read_bytes * length + read
        assert seen.distinct_store_bytes == traffic.written_bytes * length + written
        assert seen.dot_flops == traffic.flops * length
    whole = counted(name, "chunk", length, width, chunk, "fused")["forward"]
    spared = written_by_scan(plan, width, chunk)
    assert whole.total.distinct_store_bytes - tallies["forward"].total.distinct_store_bytes == length * (spared - least)


def written_by_scan(plan, width, chunk):
    """Bytes a token of what a scan keeps for the backward pass where it keeps all: states, and what it solved."""
    scanned = next(cut.kept for cut in plan.cuts if cut.name == "scanned")
    return sum(2 * width * width / chunk if b.space is Space.CHUNK else 2 * width for b in scanned)


def test_the_budget_of_scans_of_entries_is_exact():
    """Two steps a chunk, whose states are made again; gradients of parameters are written once a sequence."""
    compare("mamba", "chunk", length=64, width=16, chunk=16)
    compare("mamba", "chunk", length=32, width=40, chunk=16)


@pytest.mark.parametrize("name", ["linear_attention", "mamba2"])
def test_the_budget_of_long_chunks_is_exact(name):
    """States every 128 tokens, scans in steps of 64."""
    for schedule in ("fused", "split", "segments"):
        compare(name, "chunk", length=512, width=64, chunk=128, schedule=schedule)


def test_the_budget_of_a_closed_form_is_exact():
    """In bytes; of its searches, whose steps hang on the inputs, the FLOPs are a rule of thumb."""
    length, width, name = 128, 16, "mesanet"
    tallies = counted(name, "chunk", length, width, 64, "auto")
    costs = budget(module(name), chunk=64, d_k=width, d_v=width, dtype_bytes=2, gate_bytes=GATE)["chunk"]
    kernels = {k.name: k for k in module(name).forms["chunk"].plan.kernels}
    for which in PASSES:
        assert list(tallies[which].kernels) == [kernel for kernel, _ in costs[which].kernels]
        for kernel, traffic in costs[which].kernels:
            seen = tallies[which].kernels[kernel]
            parameters = GATE * width * sum(b.space is Space.HEAD for b in kernels[kernel].loads)
            assert seen.distinct_load_bytes == traffic.read_bytes * length + parameters, kernel
            assert seen.distinct_store_bytes == traffic.written_bytes * length, kernel
            if not any(isinstance(s.op, Conjugate) for s in kernels[kernel].statements):
                assert seen.dot_flops == traffic.flops * length, kernel


@pytest.mark.parametrize("name", ["gated_deltanet", "mamba2", "robust_delta", "momentum_deltanet", "titans_linear"])
def test_the_recurrent_forms_budget_is_exact(name):
    compare(name, "recurrent", length=32, width=16, chunk=16)


def test_the_recurrent_form_splits_its_partial_sums_by_value_block():
    compare("gated_deltanet", "recurrent", length=16, width=64, chunk=16)


@pytest.mark.parametrize(
    "name, most",
    [("linear_attention", 4352), ("mamba2", 4372), ("deltanet", 6804), ("gated_deltanet", 6824)],
)
def test_the_figures_that_were_reached_stay_reached(name, most):
    """Bytes per token and head, forward and backward, d = 128, bfloat16: lower these as the plans improve."""
    costs = budget(module(name), d_k=128, d_v=128, dtype_bytes=2)["chunk"]
    assert costs["forward"].bytes + costs["backward"].bytes <= most
    assert costs["forward"].launches <= 2
    assert costs["backward"].launches <= 4


@pytest.mark.parametrize("name, peer", [("linear_attention", 11_264), ("mamba2", 11_320), ("gated_deltanet", 15_408)])
def test_the_split_schedule_moves_at_most_seven_tenths_of_the_hand_written_kernels_bytes(name, peer):
    """`peer` as bench/TRAFFIC.md counts flash-linear-attention 0.6.0."""
    costs = budget(module(name), d_k=128, d_v=128, dtype_bytes=2, schedule="split")["chunk"]
    assert costs["forward"].bytes + costs["backward"].bytes <= 0.7 * peer


def written(path):
    """{spec: cells} of a page's table of specs that comes before its other tables."""
    text, *_ = path.read_text().split("## By schedule")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    cells = {line[0].removesuffix(" *"): [re.sub(r"[*,]", "", cell) for cell in line[1:]] for line in lines}
    return {name: cells[name] for name in cells if name in shipped_specs()}


def handed_in(spec):
    """Bytes of the state that a deep memory starts with, its layer norm's parameters among it: once a sequence."""
    if not needs_initial_state(spec):
        return 0
    widths = axis_widths(spec.memory, WIDTH, WIDTH)
    numbers = sum(math.prod(widths[axis] for axis in part.axes) for part in state_parts(spec))
    return STATE * (numbers + 2 * WIDTH * spec.memory.norm)


def once_read(name, start):
    """{pass: bytes a token} of what is read once: parameters, and tables, by each kernel that loads them; of what is
    written once, gradients of parameters; and what a kernel reads and writes of its own, beside the states that it is
    handed and those it leaves where asked to."""
    plan = module(name).forms["chunk"].plan
    spent = dict.fromkeys(PASSES, 0.0)
    for which in PASSES:
        for kernel in getattr(plan, which):
            apart = numbers_of(kernel.loads, Space.HEAD, WIDTH) + numbers_of(kernel.stores, Space.TOTAL, WIDTH)
            if kernel.skeleton is Skeleton.STEPS_REVERSE:
                apart += 2 * trail_of(kernel, plan.chunk, WIDTH, plan.tokens(WIDTH, WIDTH, 2))
            spent[which] += apart / LENGTH
            # Nobody asks for the final state, but for its gradient.
            moved = (2 if which == "forward" else 1) * start if kernel.in_memory else 0
            spent[which] += 2 * plan.chunk * _rows_of_tables(kernel, plan.chunk) / LENGTH
            spent[which] += moved + 2 * waiting(plan.chunk, kernel.of(WIDTH, WIDTH), WIDTH, plan.expansion) / LENGTH
    return spent


@pytest.mark.parametrize("name", ["ttt_mlp", "titans"])
def test_the_budget_of_weights_in_memory_is_exact(name):
    length, width = 32, 16
    op, plan = load(name), module(name).forms["chunk"].plan
    x = inputs(op.spec, length, width)
    costs = budget(module(name), d_k=width, d_v=width, dtype_bytes=2, gate_bytes=GATE)["chunk"]
    with count() as forward:
        o, _ = getattr(op.package, name)(**as_arguments(op.spec, x), form="chunk", backend="triton")
    with count() as backward:
        torch.autograd.grad(o, list(x.values()), torch.ones_like(o), allow_unused=True)
    widths = axis_widths(op.spec.memory, width, width)
    state = STATE * (sum(math.prod(widths[a] for a in part.axes) for part in state_parts(op.spec)) + 2 * width)
    for which, tally in (("forward", forward), ("backward", backward)):
        ((kernel, spent),) = costs[which].kernels
        (planned,) = getattr(plan, which)
        seen, own = tally.kernels[kernel], state + waiting(plan.chunk, planned, width, plan.expansion)
        entered = state if which == "forward" else 0  # the final state has no gradient
        assert seen.distinct_load_bytes == spent.read_bytes * length + entered + own
        assert seen.distinct_store_bytes == spent.written_bytes * length + own
        assert seen.dot_flops == spent.flops * length


def test_the_pages_say_what_the_budget_says():
    """`python -m bench.traffic --install` writes both."""
    page, readme = written(HERE / "TRAFFIC.md"), written(README)
    assert set(page) == set(readme) == set(in_chunks())
    sizes = {"d_k": WIDTH, "d_v": WIDTH, "dtype_bytes": 2}
    for name in in_chunks():
        costs = budget(module(name), **sizes)["chunk"]
        forward, backward = (costs[which] for which in PASSES)
        start = handed_in(load(name).spec) / LENGTH
        own = once_read(name, start)
        least = f"{sum(least_bytes(module(name), **sizes).values()):.0f}"
        total = f"{forward.bytes + backward.bytes + 2 * start + sum(own.values()):.0f}"
        assert page[name][:4] == [
            least,
            f"{forward.bytes + start + own['forward']:.0f} ({forward.launches})",
            f"{backward.bytes + start + own['backward']:.0f} ({backward.launches})",
            total,
        ]
        assert readme[name][:2] == [least, f"{total} ({forward.launches} + {backward.launches})"]
        assert LENGTH % module(name).forms["chunk"].plan.chunk == 0
        assert page[name][6] == readme[name][2].split()[0]
