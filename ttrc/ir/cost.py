"""What a plan costs, as passes/budget.py counts it: no clock in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Per token and value head; bytes are distinct ones, each counted once a kernel, FLOPs those of issued products."""

    read_bytes: float
    written_bytes: float
    flops: float


@dataclass(frozen=True)
class Budget:
    """What one pass costs for one sequence of length T: by kernel, with its launches and its serial steps."""

    kernels: tuple[tuple[str, Traffic], ...]
    launches: int
    serial_steps_per_token: float

    @property
    def bytes(self) -> float:
        return sum(t.read_bytes + t.written_bytes for _, t in self.kernels)

    @property
    def flops(self) -> float:
        return sum(t.flops for _, t in self.kernels)
