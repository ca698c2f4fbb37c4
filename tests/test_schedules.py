"""One rule, several ways to share its work: the same numbers, and the one that suits the shapes."""

from dataclasses import replace

import pytest
import torch

import ttrc
from test_properties import PATHS, chunk_of, operator
from ttrc import oracle
from ttrc.compiler import analyse
from ttrc.errors import ArgumentError
from ttrc.ir.plan import Skeleton
from ttrc.ir.recurrence import MATRIX, Hebbian, Nonlinear
from ttrc.passes.budget import held_bytes
from ttrc.runtime.verify import Case, as_arguments, verify
from ttrc.runtime.workload import segment_count
from ttrc.sampling import random_inputs

H100 = 132  # multiprocessors
package = ttrc.load("gated_deltanet").package


def chosen(heads, length, direction="forward", width=128, itemsize=2):
    """(schedule, segments) that the cost model takes for `heads` sequences at a head dimension, chunks of 64."""
    names = tuple(package.choices.COSTS["chunk"])
    blocks = -(-width // package.launch.CONFIGS["chunk_scan"][width][0])
    tokens, chunks = heads * length, -(-length // 64)
    return package.choices.cheapest("chunk", direction, names, width, itemsize, heads * blocks, chunks, 1, tokens, H100)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_full_chip_moves_the_fewest_bytes(direction):
    for heads, length in ((128, 2048), (512, 4096), (1536, 8192)):
        assert chosen(heads, length, direction)[0] == "fused"


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_few_heads_and_a_long_sequence_are_cut(direction):
    for heads, length in ((1, 32768), (4, 131072), (8, 65536)):
        name, segments = chosen(heads, length, direction)
        assert name == "segments" and segments >= 2


def test_short_sequences_are_never_cut():
    assert all(chosen(heads, 128)[0] != "segments" for heads in (1, 4, 16, 64, 256))


def test_a_longer_sequence_never_goes_back_to_a_whole_one():
    for heads in (1, 2, 8, 16):
        cut = [chosen(heads, 1 << n)[0] == "segments" for n in range(8, 18)]
        assert cut == sorted(cut), heads


def test_segments_are_whole_chunks_and_never_empty():
    for chunks in range(1, 200):
        for programs in (1, 3, 40, 500):
            segments = package.choices.segment_count(programs, chunks, H100)
            assert segments == segment_count(programs, chunks, H100)
            each = -(-chunks // segments)
            assert 1 <= segments <= chunks and (segments - 1) * each < chunks <= segments * each


@pytest.mark.parametrize("batch, length, chunk, segments", [(1, 150, 16, 5), (3, 129, 64, 2), (2, 64, 64, 1)])
def test_where_segments_lie(batch, length, chunk, segments):
    layout = package.layout.lay_out(torch.empty(batch, length, 1, 4), None, chunk)
    pieces = package.layout.cut(layout, segments, chunk, torch.device("cpu"))
    ends, starts = pieces.cu_seqlens.tolist(), pieces.chunk_starts.tolist()
    assert pieces.sequences == batch * segments == len(ends) - 1 == len(starts) - 1
    assert ends[0] == 0 and ends[-1] == batch * length and starts[-1] == layout.all_chunks
    assert all(a < b for a, b in zip(ends, ends[1:]))
    for end, start in zip(ends, starts):  # a segment's first token is its first chunk's
        sequence, token = divmod(end, length)
        assert token % chunk == 0 and start == sequence * layout.chunks + token // chunk


@pytest.mark.parametrize("name", PATHS)
def test_how_a_state_crosses_a_chunk(name):
    """All that is affine in its states, and nothing else, is cut into pieces that run side by side. What crosses is a
    matrix where predictions mix key channels, and a factor for each entry everywhere else."""
    module = analyse(operator(name).spec)
    r = module.recurrence
    bent = any(isinstance(a.error, Nonlinear) for a in r.associations) or r.link is not None or r.network is not None
    looks = not all(isinstance(a.error, Hebbian) for a in r.associations)
    own = r.state == MATRIX and looks and "v" in r.axes_of(r.decay)  # each value channel would have a matrix of its own
    if bent or own or "chunk" not in module.forms:
        assert "segments" not in operator(name).schedules
        return
    assert "segments" in operator(name).schedules
    plan = module.forms["chunk"].plan
    mixes = r.state == MATRIX and r.ridge is None and looks
    assert plan.crossing.products == mixes and plan.crossing.states == tuple(
        c.state for c in module.forms["chunk"].forward.carries if not c.private
    )
    crossed = [k for k in plan.kernels if k.crossing is not None and k.skeleton is Skeleton.SCAN]
    assert not {"q", "v"} & {b.name for k in crossed for b in k.loads}
    assert len([k for k in plan.kernels if k.skeleton is Skeleton.JOIN]) == 2


def inputs(name, **sizes):
    drawn = random_inputs(operator(name).spec, **(dict(B=1, T=80, H=1, HV=1, dk=8, dv=8, seed=4) | sizes))
    return {n: x.float() for n, x in drawn.items()}


# What is kept for the backward pass, and what is made again there


def kept_and_made(name, keep_bytes, **options):
    """What crosses to the backward pass beside the inputs; the outputs and every gradient."""
    x = {n: t.requires_grad_() for n, t in inputs(name, T=70).items()}
    if "cu_seqlens" in options:
        x = {n: t for n, t in x.items() if not n.startswith("initial")}
    given = as_arguments(operator(name).spec, x)
    options |= dict(form="chunk", backend="triton", chunk_size=chunk_of(name), output_final_state=True)
    o, final = operator(name)(**given, **options, keep_bytes=keep_bytes)
    ends = final if isinstance(final, tuple) else (final,)
    total = (o * torch.linspace(-1, 1, o.numel()).view_as(o)).sum() + sum(s.square().sum() for s in ends)
    mine = {t.data_ptr() for t in x.values()}
    crossed = [t for t in o.grad_fn.saved_tensors if t is not None and t.data_ptr() not in mine]
    return crossed, [o, *ends, *torch.autograd.grad(total, list(x.values()), allow_unused=True)]


def sizes_held(name, length=70, cu_seqlens=None):
    choices, x = operator(name).package.choices, torch.empty(1, length, 1, 8)
    return choices.held("chunk", x, x, cu_seqlens, chunk_of(name))


@pytest.mark.parametrize(
    "name", ["gated_deltanet", "huber_delta", "kda", "moneta_linear", "momentum_deltanet", "titans"]
)
def test_the_operator_and_the_plan_count_what_is_held_alike(name):
    plan = analyse(operator(name).spec).forms["chunk"].plan
    for width in (64, 128, 256):
        for dtype in (torch.bfloat16, torch.float32):
            sizes = dict(d_k=width, d_v=width, dtype_bytes=dtype.itemsize)
            for length in (64, 4096):
                x = torch.empty(1, length, 1, width, dtype=dtype)
                counted = {cut.name: held_bytes(plan, cut, **sizes, length=length) for cut in plan.cuts}
                held = operator(name).package.choices.held("chunk", x, x, None, plan.tokens(*sizes.values()))
                assert held == pytest.approx(counted)


def test_what_is_held_is_what_crosses():
    """Every byte, of half a stretch too; the sizes of tensors say so."""
    length, sizes = 64, sizes_held("huber_delta", 64)
    for size in sizes.values():
        x = {n: t.requires_grad_() for n, t in inputs("huber_delta", T=length).items()}
        o, _ = operator("huber_delta")(**x, form="chunk", backend="triton", chunk_size=16, keep_bytes=size)
        mine = {t.data_ptr() for t in x.values()}
        crossed = [t for t in o.grad_fn.saved_tensors if t is not None and t.data_ptr() not in mine]
        assert sum(t.numel() * t.element_size() for t in crossed) == pytest.approx(size * length)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("name", ["gated_deltanet", "huber_delta", "kda", "mamba2", "ttt_mlp"])
def test_what_is_made_again_is_what_it_was_to_the_bit(monkeypatch, name, packed):
    monkeypatch.setitem(operator(name).package.choices.EVERY, "sparse", 2)  # so that few tokens are several stretches
    options = {"cu_seqlens": torch.tensor([0, 33, 34, 70])} if packed and name != "ttt_mlp" else {}
    sizes = sizes_held(name, **options)
    assert list(sizes)[0] == "all" and list(sizes)[-1] == "sparse" and (name != "gated_deltanet" or len(sizes) == 3)
    assert sorted(sizes.values(), reverse=True) == list(sizes.values())
    (crossed, wanted), *less = (kept_and_made(name, size, **options) for size in sizes.values())
    counts = [sum(t.numel() for t in crossed)]
    for crossed, made in less:
        counts.append(sum(t.numel() for t in crossed))
        assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True) if a is not None)
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == len(counts)


@pytest.mark.parametrize("name", ["gated_deltanet", "kda"])
def test_a_sequence_in_segments_keeps_the_states_of_stretches_too(monkeypatch, name):
    """Segments are of whole stretches then: others than where all is kept, so that the last digits differ."""
    monkeypatch.setitem(operator(name).package.choices.EVERY, "sparse", 2)
    _, wanted = kept_and_made(name, None)
    crossed, made = kept_and_made(name, sizes_held(name)["sparse"], schedule="segments")
    assert max(t.shape[0] for t in crossed if t.dim() == 4 and t.shape[1:] == (1, 8, 8)) == 3  # of five chunks
    for a, b in zip(made, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


WAYS = [(name, schedule) for name in ("gated_deltanet", "mamba2") for schedule in ("fused", "split", "segments")]


@pytest.mark.parametrize("name, schedule", [*WAYS, ("robust_delta", "split")])
def test_the_future_never_shows_in_any_schedule(name, schedule):
    x, cut = inputs(name), 37
    later = {n: t.clone() for n, t in x.items()}
    for t in (later[n] for n in ("q", "k", "v")):
        t[:, cut:] = torch.randn_like(t[:, cut:])
    options = dict(form="chunk", backend="triton", chunk_size=16, schedule=schedule)
    before, after = (operator(name)(**y, **options)[0] for y in (x, later))
    assert torch.equal(before[:, :cut], after[:, :cut]) and not torch.equal(before[:, cut:], after[:, cut:])


@pytest.mark.parametrize("name", ["gated_deltanet", "huber_delta"])
def test_a_pass_without_gradients_keeps_nothing_and_gives_the_same(name):
    x = inputs(name)
    for schedule in operator(name).schedules:
        options = dict(form="chunk", backend="triton", chunk_size=16, schedule=schedule, output_final_state=True)
        with torch.no_grad():
            bare = operator(name)(**x, **options)
        kept = operator(name)(**{n: t.requires_grad_() for n, t in x.items()}, **options)
        assert all(torch.equal(a, b) for a, b in zip(bare, kept))
        x = {n: t.detach() for n, t in x.items()}


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(keep_bytes=-1), "keep_bytes: got -1, expected a number of bytes, or None for no bound"),
        (dict(keep_bytes="few"), "keep_bytes: got 'few', expected a number of bytes, or None for no bound"),
        (dict(schedule="quick"), "schedule: got 'quick', expected one of auto, fused, split, segments"),
        (dict(schedule=3), "schedule: got 3, expected one of auto, fused, split, segments"),
        (dict(schedule="split", form="recurrent"), "schedule: got 'split', expected auto"),
        (dict(schedule="segments", cu_seqlens=torch.tensor([0, 30, 80])), "schedule: got 'segments' with cu_seqlens"),
    ],
)
def test_what_cannot_be_is_said(options, said):
    x = inputs("gated_deltanet")
    del x["initial_state"]
    with pytest.raises(ArgumentError) as caught:
        operator("gated_deltanet")(**x, **options)
    assert str(caught.value).startswith(said)


def test_what_cannot_be_kept_is_said():
    x = {n: t.requires_grad_() for n, t in inputs("gated_deltanet").items()}
    options = dict(form="chunk", backend="triton", chunk_size=16)
    with pytest.raises(ValueError, match="keep_bytes: got 1, expected None or at least 4"):
        operator("gated_deltanet")(**x, **options, keep_bytes=1)
    with pytest.raises(ValueError, match="schedule: got 'split', .* where keep_bytes leaves out states"):
        operator("gated_deltanet")(**x, **options, keep_bytes=4, schedule="split")


@pytest.mark.parametrize(
    "name, form", [("gated_deltanet", "recurrent"), ("mesanet", "chunk"), ("mesanet", "recurrent")]
)
def test_a_form_that_keeps_all_says_how_much(name, form):
    x = {n: t.requires_grad_() for n, t in inputs(name).items()}
    given = as_arguments(operator(name).spec, x)
    for call in (operator(name), getattr(operator(name).package, name)):
        with pytest.raises(ValueError, match="keep_bytes: got 1, expected None or at least "):
            call(**given, form=form, keep_bytes=1)


def test_the_generated_function_says_so_too():
    x = inputs("gated_deltanet")
    with pytest.raises(ValueError, match="schedule: got 'quick', expected auto or one of fused, split, segments"):
        operator("gated_deltanet").package.gated_deltanet(**x, form="chunk", backend="triton", schedule="quick")


def test_all_that_runs_at_one_case_is_compared_with_one_run_of_the_oracle(monkeypatch):
    real, asked = oracle.run, []
    monkeypatch.setattr(
        oracle, "run", lambda *given, **options: asked.append(given[1].dtype) or real(*given, **options)
    )
    case, rule = Case(B=1, T=18, H=1, HV=1, d_k=3, d_v=2, seed=91), ttrc.load("gated_deltanet")

    def run(case, form="chunk", backend="torch", dtype=torch.float64):
        assert not verify(rule, case, form=form, backend=backend, dtype=dtype).failures
        return len(asked)

    assert run(case) == run(case, "recurrent") == run(replace(case, chunk_size=16)) == 1
    assert run(case, dtype=torch.float32) == 2  # of rounded inputs
    assert all(run(replace(case, schedule=name), "chunk", "triton", torch.float32) == 2 for name in rule.schedules)
    assert run(replace(case, seed=92)) == 3 and run(replace(case, extreme="weak")) == 4
