"""Shorter ways to the same numbers, to the bit, in Triton's interpreter.

Nearly all of its time goes into types: the shape of each tile is wrapped, compared and printed anew. Here a shape is
worked out once and shared from then on, and operands that are of one type or one shape are taken as they are. Of a scan
it calls the function of two elements for each entry in turn, here for each place along the axis; it prepares the
language anew for each function that a kernel calls, here once a launch; and it works out whether sums of whole numbers
overflow, for an assertion that it then leaves out.

What concerns the language is in place while a kernel runs, and undone as the interpreter undoes its own changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import ScanOps

_SCALAR = (core.tuple([]), core.constexpr(1))  # of a number: its shape and how many entries, as a tensor has them
_known_shapes: dict[tuple[int, ...], tuple] = {}
_known_dtypes: dict[str, np.dtype] = {}
_init_block_type, _init_tensor = core.block_type.__init__, core.tensor.__init__


def quicken(replace_method: Callable) -> None:
    """replace_method(owner, name, way): way(method) in the method's place, unless it is there already."""
    replace_method(interpreter, "_patch_lang", _once_a_launch)
    replace_method(interpreter, "_patch_attr", lambda _method: _patch_attr)
    replace_method(interpreter, "_get_np_dtype", _remembered)
    replace_method(ScanOps, "generic_scan", lambda _method: _scan)
    builder = interpreter.interpreter_builder
    if not builder.options.debug:  # or nothing would be done with what is worked out
        builder.options = replace(builder.options, sanitize_overflow=False)


def _once_a_launch(patch: Callable) -> Callable:
    """The language is patched under both of its names, whichever a kernel sees, until its launch ends.

    Patched by each function that a kernel calls, what these see by the other name would stay so for good.
    """

    def call(_function):
        if not core.is_builtin(core.load):  # a launch is under way
            return interpreter._LangPatchScope()
        scope = patch(SimpleNamespace(__globals__={"tl": tl, "core": core}))
        scope.set_attr(core.block_type, "__init__", _quick_block_type)
        scope.set_attr(core.tensor, "__init__", _quick_tensor)
        # A number is kept as an array of one entry, which NumPy 2.4 and newer take for no number by themselves.
        scope.set_attr(core.tensor, "__index__", lambda self: self.handle.data.item())
        scope.set_attr(core.tuple, "__eq__", _equal(core.tuple.__eq__))
        for name, way in OPERANDS.items():
            scope.set_attr(TritonSemantic, name, way(getattr(TritonSemantic, name)))
        return scope

    return call


def _patch_attr(target: object, name: str, member: Callable, builder, scope) -> None:
    semantic = TritonSemantic(builder)

    def call(*args, _semantic=None, **kwargs):
        return member(*args, **kwargs, _semantic=semantic)

    scope.set_attr(target, name, call)


def _remembered(np_dtype_of: Callable) -> Callable:
    def call(dtype):
        name = dtype.name
        if name not in _known_dtypes:
            _known_dtypes[name] = np_dtype_of(dtype)
        return _known_dtypes[name]

    return call


def _quick_block_type(made: core.block_type, element_ty, shape) -> None:
    sizes = tuple([x.value if type(x) is core.constexpr else x for x in shape])
    known = _known_shapes.get(sizes)
    if known is None:
        _init_block_type(made, element_ty, shape)
        of_tensor = core.tuple([core.constexpr(size) for size in made.shape]), core.constexpr(made.numel)
        known = _known_shapes[sizes] = made.shape, made.numel, f"<{made.shape}, ", of_tensor
    made.element_ty = element_ty
    made.shape, made.numel, text, made.of_tensor = known
    made.name = f"{text}{element_ty}>"


def _quick_tensor(made: core.tensor, handle, type: core.dtype) -> None:
    known = getattr(type, "of_tensor", None) if type.is_block() else _SCALAR
    if known is None:  # a type from before the launch
        return _init_tensor(made, handle, type)
    made.handle, made.type, made.dtype = handle, type, type.scalar
    made.shape, made.numel = known


def _equal(method: Callable) -> Callable:
    def call(a: core.tuple, b):
        return core.constexpr(True) if a is b else method(a, b)

    return call


def _of_one_type(check: Callable) -> Callable:
    """Operands of one type are as they have to be, and a number beside a tile takes its type."""

    def fits(number, dtype: core.dtype) -> bool:
        if dtype is tl.float32:
            return type(number) is float or type(number) is int
        return dtype is tl.int32 and type(number) is int and -(2**31) <= number < 2**31

    def call(semantic: TritonSemantic, a, b, *options):
        if type(a) is core.tensor and type(b) is core.tensor:
            if a.dtype is b.dtype and (a.dtype is tl.float32 or a.dtype is tl.int32):
                return semantic.broadcast_impl_value(a, b)
        elif type(a) is core.tensor and fits(b, a.dtype):
            return semantic.broadcast_impl_value(a, semantic.scalar_constant(b, a.dtype))
        elif type(b) is core.tensor and fits(a, b.dtype):
            return semantic.broadcast_impl_value(semantic.scalar_constant(a, b.dtype), b)
        return check(semantic, a, b, *options)

    return call


def _of_one_shape(broadcast: Callable) -> Callable:
    def call(semantic: TritonSemantic, a: core.tensor, b: core.tensor):
        return (a, b) if a.shape is b.shape else broadcast(semantic, a, b)

    return call


OPERANDS = {"binary_op_type_checking_impl": _of_one_type, "broadcast_impl_value": _of_one_shape}


def _scan(scan: ScanOps, parts: tuple[tl.tensor, ...]) -> list[tl.tensor]:
    columns = [np.moveaxis(part.handle.data, scan.axis, 0) for part in parts]

    def at(place: tuple[np.ndarray, ...]) -> list[tl.tensor]:
        return [scan.to_tensor(np.ascontiguousarray(x), part.dtype) for x, part in zip(place, parts)]

    places = [tuple(column[0] for column in columns)]
    for following in zip(*(column[1:] for column in columns)):
        made = scan.combine_fn.fn(*at(places[-1]), *at(following))
        places.append(tuple(x.handle.data for x in (made if isinstance(made, tuple) else (made,))))
    whole = (np.moveaxis(np.stack(column), 0, scan.axis) for column in zip(*places))
    return [scan.to_tensor(x, part.dtype) for x, part in zip(whole, parts)]
