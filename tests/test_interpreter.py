"""Triton's interpreter, mended: bfloat16 as torch has it, which rounds as a GPU does, and scans that are quick."""

import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

from ttrc.runtime.interpreter import mend_interpreter, rounded, widened
from ttrc.tools.counter import count


@triton.jit
def arithmetic(x, y, out, N: tl.constexpr):
    at = tl.arange(0, N)
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, a * b)
    tl.store(out + N + at, a + b)
    tl.store(out + 2 * N + at, tl.where(a < b, a, b) - 2.0 * a)
    tl.store(out + 3 * N + at, (tl.exp(-tl.abs(a.to(tl.float32))) + b).to(tl.bfloat16))
    tl.store(out + 4 * N + at, tl.maximum(a, b).to(tl.float16).to(tl.bfloat16))
    tl.store(out + 5 * N + at, (a > b).to(tl.float32) + (a < 0).to(tl.bfloat16))


@triton.jit
def product(x, y, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    sums = tl.dot(tl.load(x + at), tl.trans(tl.load(y + at)), tl.full([N, N], 1.0, tl.float32))
    tl.store(out + at, sums)


@pytest.fixture(autouse=True)
def mended():
    mend_interpreter()


def drawn(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(3)).bfloat16()


def test_rounding_is_torchs_of_every_kind_of_number():
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=torch.Generator().manual_seed(1)).int()
    ties = torch.arange(0, 2**16, dtype=torch.int64).mul(2**16).add(2**15).to(torch.int32)
    for numbers in (bits.view(torch.float32), ties.view(torch.float32)):
        expected = numbers.bfloat16()
        made = torch.from_numpy(rounded(numbers.numpy()).view("int16")).view(torch.bfloat16)
        assert torch.equal(made.isnan(), expected.isnan())
        assert torch.equal(made[~made.isnan()], expected[~made.isnan()])
        assert torch.equal(
            torch.from_numpy(widened(rounded(numbers.numpy())))[~made.isnan()], made[~made.isnan()].float()
        )


def test_arithmetic_is_torchs():
    x, y = drawn(64)
    made = torch.empty(6, 64, dtype=torch.bfloat16)
    arithmetic[(1,)](x, y, made, 64)
    whole = (torch.exp(-x.float().abs()) + y.float()).bfloat16()
    expected = [x * y, x + y, torch.minimum(x, y) - 2 * x, whole, torch.maximum(x, y).half().bfloat16()]
    expected += [((x > y).float() + (x < 0).float()).bfloat16()]
    assert torch.equal(made, torch.stack(expected))


def test_products_are_summed_in_float32():
    x, y = drawn(32, 32)
    made = torch.empty(32, 32)
    product[(1,)](x, y, made, 32)
    torch.testing.assert_close(made, 1 + x.float() @ y.float().T)


def test_a_second_mend_and_one_inside_of_a_count_change_nothing():
    x, y = drawn(32, 32)
    first, again = torch.empty(2, 32, 32)
    with count():
        mend_interpreter()
        product[(1,)](x, y, first, 32)
    mend_interpreter()
    product[(1,)](x, y, again, 32)
    assert torch.equal(first, again)


@triton.jit
def twice(a0, b0, a1, b1):
    return a0 * a1, b0 * a1 + b1


@triton.jit
def scan(x, y, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXIS: tl.constexpr, REVERSE: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    a, b = tl.associative_scan((tl.load(x + at), tl.load(y + at)), AXIS, twice, REVERSE)
    tl.store(out + at, b + 0.0 * a)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_scans_go_along_either_axis_from_either_end(axis, reverse):
    x, y = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64).float()
    made = torch.empty(8, 4)
    scan[(1,)](x, y, made, 8, 4, axis, reverse)
    state, rows = torch.zeros(4 if axis == 0 else 8), []
    order = range(x.shape[axis])
    for place in reversed(order) if reverse else order:
        state = x.select(axis, place) * state + y.select(axis, place)
        rows.append(state)
    expected = torch.stack(rows[::-1] if reverse else rows, axis)
    assert torch.equal(made, expected)


# Shorter ways


@triton.jit
def many(x, whole, out, N: tl.constexpr):
    """Operands of every kind beside each other: tiles, rows, columns and numbers of several types."""
    at = tl.arange(0, N)
    tile = at[:, None] * N + at[None, :]
    a, i = tl.load(x + tile), tl.load(whole + tile)
    row, short, number = tl.sum(a, 0), a.to(tl.float16), tl.load(x + 3)
    sums = 2 * a + row[None, :] * 0.1 - tl.max(a, 1)[:, None] / 3 + number * (tl.load(whole) + i % 7)
    sums += tl.where(i > 3, short * short, 1 / (1.0 + short * 0.5)) + (i // 2 - 5) * 1e-3 + (i & 6) * a
    sums += tl.cumsum(a, 1) + tl.trans(a) * (i.to(tl.uint32) >> 1) + tl.dot(a, a) + tl.maximum(a, 0) - (a < number)
    tl.store(out + tile, sums + tl.reshape(sums, (N * N,)).reshape(N, N) + 2.0**-140)


PLAIN = """
import sys
import torch
import test_interpreter as here

x, whole, made = here.drawn_for_many()
here.many[(1,)](x, whole, made, 16)
torch.save(made, sys.argv[1])
"""


def drawn_for_many():
    generator = torch.Generator().manual_seed(6)
    whole = torch.randint(-20, 20, (16, 16), generator=generator, dtype=torch.int32)
    return torch.randn(16, 16, generator=generator), whole, torch.empty(16, 16)


def test_numbers_are_the_plain_interpreters_to_the_bit(tmp_path):
    folders = [str(path) for path in sys.path if path]
    subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "plain.pt")],
        check=True,
        env={"PYTHONPATH": ":".join(folders), "TRITON_INTERPRET": "1", "HOME": str(tmp_path)},
    )
    x, whole, made = drawn_for_many()
    many[(1,)](x, whole, made, 16)
    assert made.isfinite().all() and torch.equal(made, torch.load(tmp_path / "plain.pt"))


SEEN = []


@triton.jit
def seen(x, N: tl.constexpr):
    a = tl.load(x + tl.arange(0, N))
    SEEN.extend((a.shape, (2.0 * a).shape, (a + a).type.shape, a.type.shape))


def test_tiles_of_one_shape_share_it():
    SEEN.clear()
    seen[(1,)](torch.randn(32), 32)
    assert SEEN[0] is SEEN[1] and SEEN[2] is SEEN[3] and SEEN[0][0] == 32
    assert not interpreter.interpreter_builder.options.sanitize_overflow


@triton.jit
def too_large(x, N: tl.constexpr):
    tl.load(x + tl.arange(0, N)) + 2**31


@triton.jit
def unlike(x, N: tl.constexpr):
    tl.load(x + tl.arange(0, N)) + tl.arange(0, 2 * N)


@triton.jit
def unlike_to_divide(x, N: tl.constexpr):
    tl.fdiv(tl.load(x + tl.arange(0, N)).to(tl.float32), 2)


@pytest.mark.parametrize(
    "kernel, says",
    [(too_large, "out of range"), (unlike, "incompatible dimensions"), (unlike_to_divide, "floating scalar type")],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_the_language_refuses_stays_refused(kernel, says):
    with pytest.raises(Exception, match=says):
        kernel[(1,)](torch.zeros(16, dtype=torch.int32), 16)


def test_the_language_is_as_before_after_a_launch():
    x, y = drawn(32, 32)
    product[(1,)](x, y, torch.empty(32, 32), 32)
    many[(1,)](*drawn_for_many(), 16)  # its sums are functions that see the language by its other name
    assert all(map(core.is_builtin, (tl.load, core.load, core.tensor.__add__)))
    replaced = [owner.__init__ for owner in (core.block_type, core.tensor)] + [core.tuple.__eq__, core.reduce]
    replaced += [TritonSemantic.binary_op_type_checking_impl, TritonSemantic.broadcast_impl_value]
    assert all(method.__module__.startswith("triton.language") for method in replaced)
