"""Which wall a plan runs into: memory traffic, matrix units, or the serial chain over chunks."""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.ir.config import CHUNK
from ttrc.ir.module import Module
from ttrc.passes.budget import budget, least_bytes
from ttrc.runtime.workload import Workload
from ttrc.tools.timing import Roof

STEP_SECONDS = 2e-6  # a chunk of a hand-tuned scan takes 1.8 to 3.2 us: the least that a serial step costs
PASSES = {"forward": ("forward",), "both": ("forward", "backward")}


@dataclass(frozen=True)
class Walls:
    """Milliseconds that each wall alone would cost the plan, and that the least possible traffic would."""

    memory: float
    matrix: float
    serial: float
    least: float

    @property
    def binding(self) -> str:
        return max(("memory", "matrix", "serial"), key=lambda name: getattr(self, name))

    @property
    def ms(self) -> float:
        return getattr(self, self.binding)


def walls(module: Module, shape: Workload, which: str, roof: Roof, dtype_bytes: int) -> Walls:
    """Of the chunk form, from its budget and the roofs that were measured; which: "forward" or "both"."""
    sizes = {"d_k": shape.d_k, "d_v": shape.d_v, "dtype_bytes": dtype_bytes}
    costs = budget(module, chunk=CHUNK, **sizes)
    passes = costs["chunk" if "chunk" in costs else "recurrent"]
    least = least_bytes(module, **sizes)
    chosen = [passes[name] for name in PASSES[which]]
    return Walls(
        memory=1e3 * shape.tokens * sum(c.bytes for c in chosen) / roof.bandwidth,
        matrix=1e3 * shape.tokens * sum(c.flops for c in chosen) / roof.matmul,
        serial=1e3 * shape.length * sum(c.serial_steps_per_token for c in chosen) * STEP_SECONDS,
        least=1e3 * shape.tokens * sum(least[name] for name in PASSES[which]) / roof.bandwidth,
    )
