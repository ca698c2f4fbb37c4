"""Plan -> what it costs: bytes and FLOPs per token and value head, launches, serial steps. No clock in it.

Bytes are distinct ones: what a kernel touches twice counts once, the cache serves the rest. States handed in at a
sequence's start and out at its end are a cost per sequence, not per token, and left out. FLOPs are those of the
matrix products that are issued, padding, repetition by value block and sweeps of substitutions included.
"""

from __future__ import annotations

from ttrc.ir.config import block, default_config
from ttrc.ir.module import Module
from ttrc.ir.plan import Budget, Buffer, Kernel, Skeleton, Space, Traffic
from ttrc.ir.tile import Contract, Inverse, Statement, Substitute


def budget(
    module: Module, *, chunk: int, d_k: int, d_v: int, dtype_bytes: int, gate_bytes: int = 4
) -> dict[str, dict[str, Budget]]:
    """{form: {"forward" | "backward": Budget}} at batch 1 with as many key heads as value heads."""
    cost = _Cost(chunk, d_k, d_v, dtype_bytes, gate_bytes)
    return {
        name: {"forward": cost.of(form.plan.forward), "backward": cost.of(form.plan.backward)}
        for name, form in module.forms.items()
    }


def least_bytes(module: Module, *, d_k: int, d_v: int, dtype_bytes: int, gate_bytes: int = 4) -> dict[str, float]:
    """Each input read once, each output written once."""
    gates = gate_bytes * len(module.spec.inputs)
    read, written = dtype_bytes * (2 * d_k + d_v), dtype_bytes * d_v
    return {"forward": read + gates + written, "backward": 2 * (read + gates) + written}


class _Cost:
    def __init__(self, chunk: int, d_k: int, d_v: int, dtype_bytes: int, gate_bytes: int):
        self.chunk, self.dtype_bytes, self.gate_bytes = chunk, dtype_bytes, gate_bytes
        # A row of a causal C x C tile: on average half of its blocks of 16, and half of the one on the diagonal.
        self.width = {"s": (chunk + 16) // 2, "k": d_k, "v": d_v}
        self.d_k, self.d_v = d_k, d_v

    def of(self, kernels: tuple[Kernel, ...]) -> Budget:
        rows = tuple((k.name, self._traffic(k)) for k in kernels)
        scans = [k for k in kernels if k.skeleton is not Skeleton.PARALLEL]
        serial = sum(1.0 if _by_token(k) else 1.0 / self.chunk for k in scans)
        return Budget(rows, len(kernels), serial)

    def _traffic(self, kernel: Kernel) -> Traffic:
        read = sum(self._bytes(b, kernel) for b in kernel.loads)
        written = sum(self._bytes(b, kernel) for b in kernel.stores)
        states = 4 * self.d_k * self.d_v / self.chunk
        match kernel.skeleton:
            case Skeleton.TOKENS:  # checkpoints
                written += states
            case Skeleton.TOKENS_REVERSE:  # checkpoints, and the trail of recomputed states (which caches hold)
                read += states
        flops = 0.0 if _by_token(kernel) else sum(self._flops(s, kernel) for s in kernel.statements)
        return Traffic(read, written, flops)

    def _bytes(self, buffer: Buffer, kernel: Kernel) -> float:
        match buffer.space:
            case Space.HEAD:
                return 0.0
            case Space.CHUNK:
                return self.dtype_bytes * self.d_k * self.d_v / self.chunk
        features = [self.width[a] for a in buffer.tile.axes if a != "t"]
        partial = kernel.skeleton is Skeleton.TOKENS_REVERSE and buffer in kernel.stores and "v" not in buffer.tile.axes
        copies = -(-self.d_v // self._value_block(kernel)) if partial else 1
        if not features:
            return self.gate_bytes * copies
        return (4 if partial else self.dtype_bytes) * features[0] * copies

    def _flops(self, statement: Statement, kernel: Kernel) -> float:
        blocks = {"t": self.chunk, "s": self.chunk, "k": block(self.d_k)}
        panels = -(-self.d_v // self._value_block(kernel))
        blocks["v"] = self._value_block(kernel) * panels
        match statement.op:
            case Contract(_, _, axis):
                size = 2.0 * blocks[axis]
                for a in statement.target.axes:
                    size *= blocks[a]
                repeated = kernel.skeleton is Skeleton.SCAN and "v" not in (axis, *statement.target.axes)
                return size * (panels if repeated else 1) / self.chunk
            case Substitute():  # 16 sweeps in each block of 16 rows, and the block taken off all rows
                return 2.0 * blocks["v"] * (self.chunk // 16) * (16 * 16 * 16 + 16 * self.chunk) / self.chunk
            case Inverse():  # two products of C x C a doubling, from blocks of 16
                return 4.0 * self.chunk**2 * ((self.chunk // 16).bit_length() - 1)
        return 0.0

    def _value_block(self, kernel: Kernel) -> int:
        return default_config(kernel.name, self.d_k, self.d_v).value_block


def _by_token(kernel: Kernel) -> bool:
    return kernel.skeleton in (Skeleton.TOKENS, Skeleton.TOKENS_REVERSE)
