"""The counter's figures are exact: small kernels whose bytes and FLOPs can be counted by hand."""

import pytest
import torch
import triton
from triton.runtime import interpreter

import toy_kernels as toy
from ttrc.errors import TtrcError
from ttrc.tools.counter import KernelCount, count


def test_masked_lanes_are_left_out():
    source, target = torch.randn(100), torch.zeros(100)
    with count() as tally:
        toy.copy[(2,)](source, target, 100, BLOCK=64)
    assert torch.equal(source, target)
    assert tally.kernels == {"copy": KernelCount("copy", 1, 2, 400, 400, 400, 400, 0)}


def test_launches_add_up_and_each_counts_its_own_distinct_bytes():
    source, target = torch.randn(128, dtype=torch.float16), torch.zeros(128, dtype=torch.float16)
    with count() as tally:
        for _ in range(3):
            toy.copy_unmasked[(2,)](source, target, BLOCK=64)
    assert tally.kernels["copy_unmasked"] == KernelCount("copy_unmasked", 3, 6, 768, 768, 768, 768, 0)


def test_an_operand_that_every_program_reads_is_distinct_once():
    programs, m, n, k = 4, 16, 32, 64
    a, b, c = torch.randn(programs * m, k), torch.randn(k, n), torch.zeros(programs * m, n)
    with count() as tally:
        toy.matmul[(programs,)](a, b, c, k, m, n, BLOCK=16)
    torch.testing.assert_close(c, a @ b, atol=1e-4, rtol=1e-4)
    rows = programs * m
    assert tally.kernels["matmul"] == KernelCount(
        name="matmul",
        launches=1,
        programs=programs,
        load_bytes=4 * (rows * k + programs * k * n),
        store_bytes=4 * rows * n,
        distinct_load_bytes=4 * (rows * k + k * n),
        distinct_store_bytes=4 * rows * n,
        dot_flops=2 * rows * n * k,
    )


def test_bfloat16_bytes():
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    c = torch.zeros(16, 16, dtype=torch.bfloat16)
    with count() as tally:
        toy.matmul[(1,)](a, b, c, 16, 16, 16, BLOCK=16)
    assert tally.kernels["matmul"] == KernelCount("matmul", 1, 1, 1024, 512, 1024, 512, 2 * 16**3)


def test_atomics_are_a_load_and_a_store():
    values = torch.tensor([0, 1, 1, 3, 3, 3, 9, 9], dtype=torch.int32)
    counts = torch.zeros(8, dtype=torch.int32)
    with count() as tally:
        toy.histogram[(1,)](values, counts, BLOCK=8, BINS=8)
    assert counts.tolist() == [1, 2, 0, 3, 0, 0, 0, 0]
    assert tally.kernels["histogram"] == KernelCount("histogram", 1, 1, 32 + 24, 24, 32 + 12, 12, 0)


def test_tensor_descriptors_count_what_lies_inside():
    source, target = torch.randn(20, 12), torch.zeros(20, 12)
    with count() as tally:
        toy.described_copy[(2,)](source, target, 20, 12, BLOCK=16)
    assert torch.equal(source, target)
    assert tally.kernels["described_copy"] == KernelCount("described_copy", 1, 2, 960, 960, 960, 960, 0)


def test_total_and_order():
    source, target = torch.randn(64), torch.zeros(64)
    with count() as tally:
        toy.copy_unmasked[(1,)](source, target, BLOCK=64)
        toy.copy[(1,)](source, target, 64, BLOCK=64)
    assert list(tally.kernels) == ["copy_unmasked", "copy"]
    assert tally.total == KernelCount("total", 2, 2, 512, 512, 512, 512, 0)


def test_blocks_nest_and_leave_the_interpreter_as_it_was():
    before = dict(vars(interpreter.InterpreterBuilder)), dict(vars(interpreter.GridExecutor))
    source, target = torch.randn(64), torch.zeros(64)
    with count() as outer:
        toy.copy[(1,)](source, target, 64, BLOCK=64)
        with count() as inner:
            toy.copy[(1,)](source, target, 64, BLOCK=64)
    toy.copy[(1,)](source, target, 64, BLOCK=64)
    assert outer.kernels["copy"].launches == 2
    assert inner.kernels["copy"].launches == 1
    with pytest.raises(ZeroDivisionError), count():
        raise ZeroDivisionError
    assert before == (dict(vars(interpreter.InterpreterBuilder)), dict(vars(interpreter.GridExecutor)))


def test_without_the_interpreter_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(TtrcError, match="TRITON_INTERPRET=1"), count():
        pass


def test_a_triton_that_lacks_a_hook_is_refused(monkeypatch):
    monkeypatch.delattr(interpreter.InterpreterBuilder, "create_masked_load")
    with pytest.raises(TtrcError, match="create_masked_load"), count():
        pass


def test_memory_stays_bounded_and_exact_when_ranges_are_merged_early(monkeypatch):
    monkeypatch.setattr("ttrc.tools.counter.PENDING_RANGES", 8)
    source, target = torch.randn(64, 64), torch.zeros(64, 64)
    with count() as tally:
        toy.copy[(256,)](source, target, 64 * 64 - 3, BLOCK=16)
    assert tally.kernels["copy"].distinct_load_bytes == 4 * (64 * 64 - 3)
