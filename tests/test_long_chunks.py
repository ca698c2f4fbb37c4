"""Chunks of several of a scan's steps: the states are kept once a chunk, and nothing else shows of it."""

import dataclasses
from pathlib import Path

import pytest
import torch

from test_mutations import build, failures, named  # noqa: F401  (a fixture)
from ttrc.compiler import analyse
from ttrc.ir.config import WHOLE, default_chunk, is_several_chunks, plain_name
from ttrc.ir.plan import Skeleton
from ttrc.ir.tile import Conjugate, LinearScan
from ttrc.language.load import load_spec
from ttrc.runtime.load import load
from ttrc.runtime.verify import BOUNDS, Case, compare, differentiate, draw, verify

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").is_file())
PATHS = {path.stem: path for folder in ("specs", "tests/unseen") for path in sorted((ROOT / folder).glob("*.toml"))}
SINGLE = BOUNDS["triton", torch.float32]
LENGTHS = (1, 63, 64, 65, 127, 128, 129, 193)
LAST = Case(B=1, T=193, H=1, HV=2, d_k=5, d_v=6, chunk_size=128, schedule="fused")
EARLY = dataclasses.replace(LAST, T=140)  # the last chunk has one step; that of LAST ends inside its second
PACKED = dataclasses.replace(LAST, B=1, T=260, HV=1, packed=(129, 1, 64, 66))


def plan(name):
    return analyse(load_spec(PATHS[name])).forms["chunk"].plan


@pytest.mark.parametrize("name", PATHS)
def test_chunks_are_long_where_nothing_is_solved(name):
    """By what the plan is made of: pairs of tokens are kept where a triangular system is inverted."""
    if "chunk" not in analyse(load_spec(PATHS[name])).forms:
        return
    own = plan(name)
    if any(kernel.skeleton is Skeleton.STREAM for kernel in own.kernels):
        return  # blocks of tokens, as configurations say
    if own.segment is not None and not is_several_chunks(own.segment):
        assert own.chunk == own.step == own.segment
        return
    if any(isinstance(s.op, Conjugate) for kernel in own.kernels for s in kernel.statements):
        assert own.chunk == own.step == 64  # a search keeps its directions on chip
        return
    if any(kernel.skeleton is Skeleton.STEPS_REVERSE for kernel in own.kernels):
        assert (own.chunk, own.step) == (128, 128)  # a step is what a tile of entries holds
        return
    if any(plain_name(kernel.name) == "deep_scan" for kernel in own.kernels):
        assert (own.chunk, own.step) == (32, 128)  # a step is a chunk, whatever a caller asks for
        return
    if any(isinstance(s.op, LinearScan) for kernel in own.kernels for s in kernel.statements):
        joins = any(kernel.name.endswith(WHOLE) for kernel in own.kernels)
        assert (own.chunk, own.step) == (16 if joins else 32, 128)  # a step is a chunk, whatever a caller asks for
        return
    solves = any(plain_name(kernel.name) == "chunk_prepare" for kernel in own.kernels)
    normalised = analyse(load_spec(PATHS[name])).recurrence.normalised  # its gradients have no room beside 128 x 128
    assert (own.chunk, own.step) == ((64, 128) if solves or normalised else (128, 64))
    narrow = {tile.name for kernel in own.kernels for tile in (*kernel.narrow, *kernel.turned)}
    assert not (solves and narrow) and not any("gap" in tile or "sum" in tile for tile in narrow)


def test_the_chip_has_room_for_the_chunks_that_nobody_asked_for():
    assert default_chunk(128, 128, 128, 2) == default_chunk(128, 16, 100, 2) == 128
    assert default_chunk(128, 128, 128, 4) == default_chunk(128, 128, 129, 2) == default_chunk(64, 128, 128, 2) == 64
    for name in ("mamba2", "gated_deltanet"):
        op = load(name).package.op
        for d_k, d_v, dtype in ((128, 16, torch.bfloat16), (16, 200, torch.float16), (64, 64, torch.float32)):
            q, v = torch.zeros(1, 1, 1, d_k, dtype=dtype), torch.zeros(1, 1, 1, d_v, dtype=dtype)
            assert op.default_chunk("chunk", q, v) == default_chunk(plan(name).chunk, d_k, d_v, dtype.itemsize)
            assert op.default_chunk("recurrent", q, v) == 64


def runs(name, case, sizes, **options):
    """By chunk size: outputs and gradients of one draw of inputs, cotangents of output and final state given."""
    op = load(name)
    given, packing, cotangents = draw(op.spec, case)

    def by(size):
        def call(x, packing):
            return op(**x, cu_seqlens=packing, output_final_state=True, form="chunk", chunk_size=size, **options)

        return differentiate(op.spec, call, given, packing, cotangents, torch.float32, "cpu")

    return {size: by(size) for size in sizes}


def agree(made, wanted):
    found = compare(made, wanted, SINGLE)
    assert not found.failures, found.failures


@pytest.mark.parametrize("name", ["linear_attention", "mamba2"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_chunk_of_two_steps_is_two_chunks(name, length):
    """With an initial state and a cotangent of the final one, forwards and backwards."""
    case = dataclasses.replace(LAST, T=length)
    made = runs(name, case, (64, 128), backend="triton", schedule="fused")
    agree(made[128], made[64])


@pytest.mark.parametrize("name", ["mamba2", "retnet"])
@pytest.mark.parametrize("schedule", ["fused", "split"])
def test_packed_sequences_end_inside_their_chunks(name, schedule):
    made = runs(name, PACKED, (16, 128), backend="triton", schedule=schedule)
    agree(made[128], made[16])


@pytest.mark.parametrize("name", ["mamba2", "gated_deltanet"])
def test_every_chunk_size_gives_the_same(name):
    """The oracle's: of two runs in single precision each is off by what it rounds, and some processors round more."""
    for size in (16, 32, 64, 128):
        case = dataclasses.replace(EARLY, chunk_size=size, schedule="auto")
        found = verify(load(name), case, form="chunk", backend="triton", dtype=torch.float32)
        assert not found.failures, (size, found.failures)


@pytest.mark.parametrize("schedule", ["fused", "split", "segments"])
def test_every_schedule_is_the_oracles(build, schedule):  # noqa: F811
    op = build("mamba2")
    assert not failures(op, "chunk kernels", dataclasses.replace(LAST, schedule=schedule))


@pytest.mark.parametrize(
    "kept",
    [
        ("at_bound = i_s % EVERY == 0", "at_bound = i_s >= 0"),  # the state of a chunk's last step
        (
            "at_bound = ((i_s + 1) % EVERY == 0) | (i_turn == 0)",
            "at_bound = (i_s + 1) % EVERY == 0",
        ),  # none where it ends early
        (
            "at_bound = ((i_s + 1) % EVERY == 0) | (i_turn == 0)",
            "at_bound = i_turn >= 0",
        ),  # the cotangent at a chunk's middle
        ("first_chunk + i_s // EVERY", "first_chunk + i_s // EVERY // 2"),  # one chunk's in another's place
    ],
    ids=["late", "never", "early", "elsewhere"],
)
def test_states_kept_at_the_wrong_step_are_noticed(build, kept):  # noqa: F811
    """By the gradients alone: the scans themselves never read what they keep."""
    found = named(failures(build("mamba2", kernels=[kept]), "chunk kernels", EARLY))
    assert found and not found & {"o", "final_state"}
