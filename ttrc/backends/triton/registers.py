"""Registers that ptxas has to be told of.

Where a program holds whole weight matrices of several layers token by token, ptxas, left alone, settles for 32
registers a thread and spills all else.
"""

from __future__ import annotations

from ttrc.backends.triton.pointers import has_hidden
from ttrc.ir.plan import Kernel, Skeleton

MOST = 255  # of a thread
OF_WARPS = 2048  # of 32 threads, in a multiprocessor's 65536


def is_crowded(kernel: Kernel) -> bool:
    return kernel.skeleton in (Skeleton.TOKENS, Skeleton.TOKENS_REVERSE) and has_hidden(kernel)


def registers(kernel: Kernel, warps: int) -> int | None:
    """How many each thread of a program of so many warps is given; None where ptxas decides."""
    return min(MOST, OF_WARPS // warps) if is_crowded(kernel) else None
