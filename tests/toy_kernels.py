"""Small kernels whose counts and resources are known; a standalone module, as a generated one is."""

import triton
import triton.language as tl


@triton.jit
def copy(source, target, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < N, other=0.0), mask=at < N)


@triton.jit
def copy_unmasked(source, target, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at))


@triton.jit
def matmul(a, b, c, K, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """c [programs * M, N] = a [programs * M, K] b [K, N]; each program reads all of b."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column, inner = tl.arange(0, N), tl.arange(0, BLOCK)
    sums = tl.zeros([M, N], tl.float32)
    for start in range(0, K, BLOCK):
        left = tl.load(a + row[:, None] * K + (start + inner)[None, :])
        right = tl.load(b + (start + inner)[:, None] * N + column[None, :])
        sums = tl.dot(left, right, sums)
    tl.store(c + row[:, None] * N + column[None, :], sums.to(c.dtype.element_ty))


@triton.jit
def histogram(values, counts, BLOCK: tl.constexpr, BINS: tl.constexpr):
    value = tl.load(values + tl.arange(0, BLOCK))
    tl.atomic_add(counts + value, 1, mask=value < BINS)


@triton.jit
def described_copy(source, target, M, N, BLOCK: tl.constexpr):
    of = tl.make_tensor_descriptor(source, [M, N], [N, 1], [BLOCK, BLOCK])
    to = tl.make_tensor_descriptor(target, [M, N], [N, 1], [BLOCK, BLOCK])
    row = tl.program_id(0) * BLOCK
    to.store([row, 0], of.load([row, 0]))


@triton.jit
def spill(source, target, T, N: tl.constexpr):
    """Three N x N tiles live at once across a loop: more registers than a thread has at N = 128, 4 warps."""
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(source + at)
    y = tl.load(source + N * N + at)
    z = tl.load(source + 2 * N * N + at)
    for _ in range(0, T):
        x, y, z = x + tl.exp2(y) * z, y * tl.exp2(x) - z, z + tl.exp2(x * y)
    tl.store(target + at, x + y + z)


@triton.jit
def broken(source, target, BLOCK: tl.constexpr):
    """Does not compile: shapes that do not broadcast."""
    tl.store(target + tl.arange(0, BLOCK), tl.load(source + tl.arange(0, 2 * BLOCK)))


@triton.jit
def transpose(source, target, N: tl.constexpr):
    """target [N, N] = source', which warps exchange through shared memory so that both are read and written in rows."""
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(target + at, tl.trans(tl.load(source + at)))
