"""Shapes to measure at, and inputs of that shape made where they are needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttrc.ir.config import CHUNK, Config
from ttrc.ir.plan import Kernel, Skeleton
from ttrc.language.spec import Spec
from ttrc.sampling import random_inputs

PERIOD = 512  # tokens drawn on the CPU and repeated on the device: what a kernel costs does not depend on values


@dataclass(frozen=True)
class Workload:
    """Sequences, tokens each, heads (as many for keys as for values), head dimensions."""

    batch: int
    length: int
    heads: int
    d_k: int
    d_v: int

    @property
    def tokens(self) -> int:
        """Tokens times heads."""
        return self.batch * self.length * self.heads

    def __str__(self) -> str:
        width = str(self.d_k) if self.d_k == self.d_v else f"{self.d_k}/{self.d_v}"
        return f"{self.batch} x {self.length} x {self.heads} x {width}"


def programs(kernel: Kernel, config: Config, shape: Workload, chunk: int = CHUNK) -> int:
    """The grid of a launch: parallel kernels have a program a chunk and head, the others one a head and value block."""
    heads = shape.batch * shape.heads
    parallel = kernel.skeleton is Skeleton.PARALLEL
    return heads * (-(-shape.length // chunk) if parallel else -(-shape.d_v // config.value_block))


def draw_inputs(
    spec: Spec, shape: Workload, dtype: torch.dtype, device: str, *, seed: int = 0, differentiable: bool = True
) -> dict[str, Tensor]:
    """q, k, v in dtype and the gates in float32, by name. Long sequences repeat a drawn part, never zeros."""
    drawn = random_inputs(
        spec, B=1, T=min(shape.length, PERIOD), H=shape.heads, HV=shape.heads, dk=shape.d_k, dv=shape.d_v, seed=seed
    )
    del drawn["initial_state"]
    fixed = {p.name for p in spec.parameters}
    made = {}
    for name, x in drawn.items():
        x = x.to(device, dtype if name in ("q", "k", "v") else torch.float32)
        if name not in fixed:
            times = -(-shape.length // x.shape[1])
            x = x.repeat(shape.batch, times, *[1] * (x.dim() - 2))[:, : shape.length].contiguous()
        made[name] = x.requires_grad_(differentiable)
    return made
