"""Shapes to measure at, and inputs of that shape made where they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from ttrc.ir.config import CHUNK, Config, row_block, value_block
from ttrc.ir.plan import Kernel, Skeleton
from ttrc.language.spec import Spec
from ttrc.language.state import initial_names, needs_initial_state
from ttrc.language.syntax import names
from ttrc.sampling import random_inputs

SEGMENT_CHUNKS = 8  # shorter segments gain nothing: each is walked twice
PERIOD = 512  # tokens drawn on the CPU and repeated on the device: what a kernel costs does not depend on values


@dataclass(frozen=True)
class Workload:
    """Sequences, tokens each, heads (as many for queries and keys as for values), head dimensions."""

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


def programs(
    kernel: Kernel,
    config: Config,
    shape: Workload,
    *,
    chunk: int = CHUNK,
    segments: int = 1,
    columns: Optional[int] = None,
) -> int:
    """The grid of a launch: parallel kernels have a program a chunk and head, or one a block of a chunk's rows; those
    of pairs one a block of tokens and head, or a head, the others one a head and value block.

    segments: into how many pieces, which run side by side, each sequence is cut. columns: of the carried state, d_v
    where nothing else is said.
    """
    heads = shape.batch * shape.heads
    match kernel.skeleton:
        case Skeleton.PARALLEL:
            return heads * -(-shape.length // chunk)
        case Skeleton.ROWS:
            return heads * -(-shape.length // chunk) * (chunk // row_block(chunk, shape.d_k))
        case Skeleton.STREAM:
            return heads * -(-shape.length // config.value_block)
        case Skeleton.WALK:
            return heads
        case Skeleton.JOIN if not kernel.crossing.products:
            return heads * kernel.crossing.blocks(shape.d_k, shape.d_v)
    return heads * segments * -(-(columns or shape.d_v) // value_block(kernel.takes, config, shape.d_v))


def segment_count(programs: int, chunks: int, processors: int, per: int = 1) -> int:
    """Into how many segments of whole chunks, none of them empty, a schedule that cuts sequences cuts each.

    As many as fill the chip, two programs a multiprocessor, when `programs` walk `chunks` each, or as many times `per`
    that stay together; two at least. Generated operators do the same.
    """
    wanted = max(2, min(2 * processors // programs, chunks // max(SEGMENT_CHUNKS // per, 1)))
    return -(-chunks // -(-chunks // min(wanted, chunks)))


def draw_inputs(
    spec: Spec, shape: Workload, dtype: torch.dtype, device: str, *, seed: int = 0, differentiable: bool = True
) -> dict[str, Tensor]:
    """q, k, v in dtype and the gates in float32, by name, and the parts of a state where a rule must be given one.

    Gates with channels of the read-out alone are rows as v is, in dtype.

    Long sequences repeat a drawn part, never zeros.
    """
    drawn = random_inputs(
        spec, B=1, T=min(shape.length, PERIOD), H=shape.heads, HV=shape.heads, dk=shape.d_k, dv=shape.d_v, seed=seed
    )
    states, fixed = initial_names(spec), {p.name for p in spec.parameters}
    remembered = frozenset().union(*(names(part.tree) for part in spec.of_memory))
    rows = {"q", "k", "v"} | {gate.name for gate in spec.inputs if gate.per.axes and gate.name not in remembered}
    made = {}
    for name, x in drawn.items():
        if name in states and not needs_initial_state(spec):
            continue
        x = x.to(device, dtype if name in rows else torch.float32)
        if name in states:
            x = x.repeat(shape.batch, *[1] * (x.dim() - 1))
        elif name not in fixed:
            times = -(-shape.length // x.shape[1])
            x = x.repeat(shape.batch, times, *[1] * (x.dim() - 2))[:, : shape.length].contiguous()
        made[name] = x.requires_grad_(differentiable)
    return made
