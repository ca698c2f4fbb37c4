"""Triton's interpreter, with bfloat16 right and without its detours (detours.py).

It keeps numbers of bfloat16 as their bits and multiplies those as whole numbers. Here what is done to such numbers is
done in float32 and rounded to nearest, ties to even, as a GPU does it; sums of products stay in float32. Loads, stores
and moves handle bits and need nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from ttrc.runtime.detours import quicken

ARITHMETIC = ("binary_op", "unary_op", "create_fma", "create_rsqrt")
CASTS = ("cast_impl", "create_fp_to_fp")


def mend_interpreter() -> None:
    """From now on this process's interpreter is so. Mending twice changes nothing."""
    ways = {**dict.fromkeys(ARITHMETIC, _arithmetic), **dict.fromkeys(CASTS, _cast), "create_dot": _dot}
    for name, way in ways.items():
        _replace(InterpreterBuilder, name, way)
    quicken(_replace)
    if not hasattr(InterpreterBuilder, "get_bf16"):
        InterpreterBuilder.get_bf16 = lambda builder, number: TensorHandle(rounded(np.array([number])), tl.bfloat16)


def _replace(owner: object, name: str, way: Callable[[Callable], Callable]) -> None:
    method = getattr(owner, name)
    if not hasattr(method, "mended"):
        made = way(method)
        made.mended = True
        setattr(owner, name, made)


def _arithmetic(method: Callable) -> Callable:
    def call(builder, *operands):
        if not any(map(_is_bfloat16, operands)):
            return method(builder, *operands)
        made = method(builder, *map(_widened, operands))
        if made.data.dtype == bool:
            return TensorHandle(made.data, tl.int1)
        return TensorHandle(rounded(made.data), tl.bfloat16)

    return call


def _dot(method: Callable) -> Callable:
    return lambda builder, a, b, *more: method(builder, _widened(a), _widened(b), *more)


def _cast(method: Callable) -> Callable:
    def call(builder, source, to, *rounding):
        wide, of, into = _widened(source), source.dtype.scalar, to.scalar
        if into == tl.bfloat16:
            whole = wide if wide.dtype.scalar == tl.float32 else method(builder, wide, tl.float32)
            return TensorHandle(rounded(whole.data), tl.bfloat16)
        return wide if of == tl.bfloat16 and into == tl.float32 else method(builder, wide, to, *rounding)

    return call


def _is_bfloat16(operand: object) -> bool:
    return isinstance(operand, TensorHandle) and operand.dtype.scalar.name == tl.bfloat16.name


def _widened(operand):
    return TensorHandle(widened(operand.data), tl.float32) if _is_bfloat16(operand) else operand


def widened(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers that these bits of bfloat16 stand for."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(numbers: np.ndarray) -> np.ndarray:
    """The bits of the bfloat16 numbers next to these of float32."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    last = (bits >> np.uint32(16)) & np.uint32(1)
    return np.where(np.isnan(numbers), 0x7FC0, (bits + np.uint32(0x7FFF) + last) >> np.uint32(16)).astype(np.uint16)
