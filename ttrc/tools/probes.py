"""Small kernels that show a compiler's fault where it is: run on the chip at hand and compared with PyTorch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZE = 64  # rows of every tile: the least that takes a Hopper's matrix instructions
STEPS = 4
MOST = 0.02  # RMS(error) / RMS(reference) of a sum of products of bfloat16 numbers; what is miscompiled is off by 1


@triton.jit
def turned_kernel(a, b, x, y, z, steps, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """y [SIZE, WIDTH] = m' x and z = m x for m [SIZE, SIZE], the sum of a_i b_i over steps where it is causal.

    Transposed before it is rounded, as kernels are printed.
    """
    r, c, w = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :], tl.arange(0, WIDTH)[None, :]
    made = tl.zeros([SIZE, SIZE], tl.float32)
    for i in range(0, steps):
        at = i * SIZE * SIZE + r * SIZE + c
        made = tl.dot(tl.load(a + at), tl.load(b + at), made, input_precision="ieee")
    made = tl.where(r >= c, made, 0.0)
    beside = tl.load(x + r * WIDTH + w)
    turned = tl.dot(tl.trans(made).to(x.dtype.element_ty), beside, input_precision="ieee")
    tl.store(z + r * WIDTH + w, tl.dot(made.to(x.dtype.element_ty), beside, input_precision="ieee"))
    tl.store(y + r * WIDTH + w, turned)


@triton.jit
def chained_kernel(a, b, x, y, steps, SIZE: tl.constexpr):
    """y [SIZE, SIZE] = the sum over steps of a_i x_i + b_i x_i, through one accumulator."""
    r, c = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for i in range(0, steps):
        at = i * SIZE * SIZE + r * SIZE + c
        total = tl.dot(tl.load(a + at), tl.load(x + at), total, input_precision="ieee")
        total = tl.dot(tl.load(b + at), tl.load(x + at), total, input_precision="ieee")
    tl.store(y + r * SIZE + c, total)


def transposed_accumulator(device: str) -> bool:
    """Whether an accumulator is a wrong factor, transposed or not, at any width and number of warps in use."""
    a, b = _draw(2, STEPS, SIZE, SIZE, device=device)
    made = sum(_product(a[i], b[i]) for i in range(STEPS)).tril().to(a.dtype)
    for width in (64, 128):
        (x,) = _draw(1, SIZE, width, device=device)
        for warps in (4, 8):
            y, z = torch.full((2, SIZE, width), torch.nan, device=device)
            turned_kernel[(1,)](a, b, x, y, z, STEPS, SIZE=SIZE, WIDTH=width, num_warps=warps)
            if _wrong(y, _product(made.T, x)) or _wrong(z, _product(made, x)):
                return True
    return False


def chained_products(device: str) -> bool:
    """Whether two products a step that go on from one another are added up wrong."""
    a, b, x = _draw(3, STEPS, SIZE, SIZE, device=device)
    expected = sum(_product(a[i], x[i]) + _product(b[i], x[i]) for i in range(STEPS))
    for warps in (4, 8):
        y = torch.full((SIZE, SIZE), torch.nan, device=device)
        chained_kernel[(1,)](a, b, x, y, STEPS, SIZE=SIZE, num_warps=warps)
        if _wrong(y, expected):
            return True
    return False


def _draw(*shape: int, device: str) -> Tensor:
    """bfloat16 on a GPU; float32 in Triton's interpreter, which as it comes gets products of bfloat16 wrong."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(device, torch.float32 if device == "cpu" else torch.bfloat16)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double()).float()


def _wrong(made: Tensor, expected: Tensor) -> bool:
    error = (made - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    return not error.item() <= MOST  # nan is wrong
