"""What Triton kernels do, counted on a CPU in Triton's interpreter: launches, bytes, FLOPs. No clock in it.

    with count() as tally:
        launch_kernels()
    tally.kernels["chunk_forward"].distinct_load_bytes

`load_bytes` and `store_bytes` are what the programs issue; the distinct ones count an address once a launch,
however many programs touch it, and add up over launches. Masked lanes count nowhere; an atomic counts as a
load and a store. A dot of [m, k] by [k, n] is 2 m n k FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields

import numpy as np
import triton

from ttrc.errors import TtrcError

try:
    from triton.runtime import interpreter
except ImportError as error:  # pragma: no cover - a Triton that has moved its interpreter
    raise TtrcError(f"Triton {triton.__version__} has no triton.runtime.interpreter: {error}") from error

# What is wrapped: create_load and create_store end in the masked ones, and so do block pointers and descriptors.
MEMORY = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas")
PENDING_RANGES = 1 << 18  # byte ranges kept of one launch before they are merged


@dataclass(frozen=True)
class KernelCount:
    """Sums over all launches of one kernel; `programs` is the sum of its grid sizes."""

    name: str
    launches: int = 0
    programs: int = 0
    load_bytes: int = 0
    store_bytes: int = 0
    distinct_load_bytes: int = 0
    distinct_store_bytes: int = 0
    dot_flops: int = 0

    def plus(self, other: KernelCount) -> KernelCount:
        """The two added up, under this one's name."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "name"}
        return KernelCount(self.name, **sums)


@dataclass
class Tally:
    """The counts so far, by kernel name, in the order of first launch."""

    kernels: dict[str, KernelCount] = field(default_factory=dict)

    @property
    def total(self) -> KernelCount:
        """All kernels added up, named "total"."""
        result = KernelCount("total")
        for kernel in self.kernels.values():
            result = result.plus(kernel)
        return result

    def _add(self, counted: KernelCount) -> None:
        self.kernels[counted.name] = self.kernels.get(counted.name, KernelCount(counted.name)).plus(counted)


class _Touched:
    """A set of bytes, kept as ranges [start, end) so that a long launch stays small."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._pending = 0

    def add(self, addresses: np.ndarray, size: int) -> None:
        ranges = _merged(np.stack([addresses, addresses + np.uint64(size)], axis=1))
        self._parts.append(ranges)
        self._pending += len(ranges)
        if self._pending > PENDING_RANGES:
            self._parts, self._pending = [_merged(np.concatenate(self._parts))], 0

    def size(self) -> int:
        if not self._parts:
            return 0
        ranges = _merged(np.concatenate(self._parts))
        return int((ranges[:, 1] - ranges[:, 0]).sum())


def _merged(ranges: np.ndarray) -> np.ndarray:
    """The union of [start, end) rows as disjoint sorted rows."""
    if not len(ranges):
        return ranges
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    ends = np.maximum.accumulate(ranges[:, 1])
    first = np.concatenate([[True], ranges[1:, 0] > ends[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([ranges[first, 0], ends[last]], axis=1)


class _Launch:
    """What one launch has done so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.programs = self.flops = 0
        self.issued = {"load": 0, "store": 0}
        self.touched = {"load": _Touched(), "store": _Touched()}

    def access(self, kind: str, pointers, mask) -> None:
        where = np.asarray(pointers.data)
        kept = np.asarray(True if mask is None else getattr(mask, "data", mask), dtype=bool)
        where, kept = np.broadcast_arrays(where, kept)
        addresses = where[kept]
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        self.issued[kind] += addresses.size * size
        self.touched[kind].add(addresses, size)

    def dot(self, a, b) -> None:
        self.flops += 2 * a.data.size * b.data.shape[-1]

    def count(self) -> KernelCount:
        loads, stores = self.touched["load"].size(), self.touched["store"].size()
        return KernelCount(
            self.name, 1, self.programs, self.issued["load"], self.issued["store"], loads, stores, self.flops
        )


@contextmanager
def count() -> Iterator[Tally]:
    """Count every kernel launched inside the block; the interpreter is as before when it ends.

    Needs TRITON_INTERPRET=1 before the kernels are imported. One thread at a time; blocks nest.
    """
    _require_interpreter()
    tally, running = Tally(), []
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor

    def observed(method, observe):
        def call(self, *args, **kwargs):
            if running:
                observe(running[-1], *args, **kwargs)
            return method(self, *args, **kwargs)

        return call

    def launched(method):
        def call(self, *args, **kwargs):
            running.append(_Launch(getattr(self.fn, "__name__", str(self.fn))))
            try:
                result = method(self, *args, **kwargs)
                tally._add(running[-1].count())
                return result
            finally:
                running.pop()

        return call

    def program(launch: _Launch, *_grid) -> None:
        launch.programs += 1

    def load(launch: _Launch, ptrs, mask, *_rest, **_options) -> None:
        launch.access("load", ptrs, mask)

    def store(launch: _Launch, ptrs, value, mask, *_rest, **_options) -> None:
        launch.access("store", ptrs, mask)

    def atomic_rmw(launch: _Launch, _op, ptr, _value, mask, *_rest, **_options) -> None:
        launch.access("load", ptr, mask)
        launch.access("store", ptr, mask)

    def atomic_cas(launch: _Launch, ptr, *_rest, **_options) -> None:
        launch.access("load", ptr, None)
        launch.access("store", ptr, None)

    def dot(launch: _Launch, a, b, *_rest, **_options) -> None:
        launch.dot(a, b)

    observers = dict(zip(MEMORY, (load, store, atomic_rmw, atomic_cas), strict=True))
    observers |= {"create_dot": dot, "set_grid_idx": program}
    with ExitStack() as patches:
        patches.enter_context(_replaced(executor, "__call__", launched(executor.__call__)))
        for name, observe in observers.items():
            patches.enter_context(_replaced(builder, name, observed(getattr(builder, name), observe)))
        yield tally


@contextmanager
def _replaced(owner: type, name: str, method) -> Iterator[None]:
    """`owner.name` is `method` inside the block."""
    before = vars(owner)[name]
    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _require_interpreter() -> None:
    if not triton.knobs.runtime.interpret:
        raise TtrcError(
            "kernels are counted in Triton's interpreter, which is off: set TRITON_INTERPRET=1 "
            "before the kernels are imported"
        )
    wanted = {"InterpreterBuilder": (*MEMORY, "create_dot", "set_grid_idx"), "GridExecutor": ("__call__",)}
    missing = [
        f"{owner}.{name}"
        for owner, names in wanted.items()
        for name in names
        if name not in vars(getattr(interpreter, owner, object))
    ]
    if missing:
        raise TtrcError(f"the interpreter of Triton {triton.__version__} lacks {', '.join(missing)}: cannot count")
