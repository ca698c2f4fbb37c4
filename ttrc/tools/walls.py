"""Which wall a plan runs into: memory traffic, matrix units, instructions, load/store units, or the serial chain.

`ttrc bench` holds the walls against measured times, with roofs measured on the chip at hand; `ttrc compile --shape`
predicts from them, with the roofs of a chip that is not here. Instructions and what load/store units pass are those of
compiled kernels, which the second has and the first has not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Optional

from ttrc.ir.cost import Traffic
from ttrc.ir.module import Form, Module
from ttrc.ir.plan import Kernel, Launch, Plan, Skeleton
from ttrc.passes.budget import inner_loops, launch_budget, least_bytes, serial_products
from ttrc.runtime.workload import Workload
from ttrc.tools.timing import Roof

# A chunk of 64 tokens takes hand-tuned scans 1.8 to 3.2 us on an H100 at d = 128: about the least that a step costs.
STEP_SECONDS = 2e-6
PRODUCT_SECONDS = 4e-7  # of a chain of matrix products: such a step has five, one after the other
WALLS = ("memory", "matrix", "issue", "load_store", "serial")
PASSES = {"forward": ("forward",), "both": ("forward", "backward")}


@dataclass(frozen=True)
class Walls:
    """Milliseconds that each wall alone would cost."""

    memory: float
    matrix: float
    issue: float
    load_store: float
    serial: float

    @property
    def binding(self) -> str:
        return max(WALLS, key=lambda name: getattr(self, name))

    @property
    def ms(self) -> float:
        return getattr(self, self.binding)


@dataclass(frozen=True)
class PlanWalls(Walls):
    """Of kernels that run one after another; and milliseconds that the least possible traffic would cost."""

    least: float


@dataclass(frozen=True)
class Share:
    """A launch's part of its pass's budget: traffic per token and head, steps one after another per token, and how many
    matrix products long each is, and how often loops inside of it run.

    `segments` is how many pieces of each sequence the launch runs side by side, or joins one after another.
    """

    launch: Launch
    traffic: Traffic
    steps_per_token: float
    products: float
    loops: int
    segments: int
    chunk: int  # tokens

    @property
    def kernel(self) -> Kernel:
        return self.launch.kernel

    @property
    def step_seconds(self) -> float:
        """About the least that a step takes."""
        return max(STEP_SECONDS, PRODUCT_SECONDS * self.products)

    def steps(self, shape: Workload) -> int:
        if self.kernel.skeleton is Skeleton.JOIN:
            return self.segments
        return math.ceil(shape.length * self.steps_per_token)


def form_of(module: Module) -> Form:
    """The form that long sequences run in."""
    return module.forms["chunk" if "chunk" in module.forms else "recurrent"]


def shares(
    module: Module, which: str, shape: Workload, dtype_bytes: int, schedule: Optional[str] = None, segments: int = 1
) -> list[Share]:
    """Of the launches of one pass, "forward" or "backward", of a schedule, the first if none is named."""
    plan = form_of(module).plan
    (chosen,) = [s for s in plan.schedules if s.name == schedule] or plan.schedules[:1]
    return shares_of(plan, getattr(chosen, which), shape, dtype_bytes, segments)


def shares_of(
    plan: Plan, launches: tuple[Launch, ...], shape: Workload, dtype_bytes: int, segments: int
) -> list[Share]:
    sizes = {"d_k": shape.d_k, "d_v": shape.d_v, "dtype_bytes": dtype_bytes}
    chunk = plan.tokens(**sizes)
    return [
        Share(launch, traffic, steps / segments if launch.segments else steps, products, loops, segments, chunk)
        for launch in launches
        for traffic, steps in [launch_budget(plan, launch.kernel, **sizes, length=shape.length)]
        for products in [serial_products(plan, launch.kernel, **sizes)]
        for loops in [inner_loops(plan, launch.kernel, **sizes)]
    ]


def kernel_walls(
    share: Share,
    shape: Workload,
    roof: Roof,
    step_seconds: Optional[float] = None,
    waves: int = 1,
    issue: float = 0.0,
    load_store: float = 0.0,
) -> Walls:
    """One kernel's; a step takes `step_seconds`, or about the least that it can.

    `waves` is how many times over the chip has to be filled until every program has run; `issue` and `load_store` are
    the seconds that all multiprocessors together take to issue the kernel's instructions, and to pass its wavefronts,
    where these are known.
    """
    moved = share.traffic.read_bytes + share.traffic.written_bytes
    step_seconds = share.step_seconds if step_seconds is None else step_seconds
    return Walls(
        memory=1e3 * shape.tokens * moved / roof.bandwidth,
        matrix=1e3 * shape.tokens * share.traffic.flops / roof.matmul,
        issue=1e3 * issue,
        load_store=1e3 * load_store,
        serial=1e3 * share.steps(shape) * step_seconds * waves,
    )


def together(kernels: Sequence[Walls], least: float) -> PlanWalls:
    """Of kernels that run one after another."""
    return PlanWalls(
        memory=sum(k.memory for k in kernels),
        matrix=sum(k.matrix for k in kernels),
        issue=sum(k.issue for k in kernels),
        load_store=sum(k.load_store for k in kernels),
        serial=sum(k.serial for k in kernels),
        least=least,
    )


def least_ms(module: Module, passes: Sequence[str], shape: Workload, roof: Roof, dtype_bytes: int) -> float:
    """Milliseconds that reading each input once and writing each output once would cost."""
    least = least_bytes(module, d_k=shape.d_k, d_v=shape.d_v, dtype_bytes=dtype_bytes)
    return 1e3 * shape.tokens * sum(least[name] for name in passes) / roof.bandwidth


def walls(
    module: Module,
    shape: Workload,
    which: str,
    roof: Roof,
    dtype_bytes: int,
    chosen: Mapping[str, tuple[str, int]] = MappingProxyType({}),
) -> PlanWalls:
    """Of the form that long sequences run in, every program at work at once; which: "forward" or "both".

    chosen: by pass, the schedule and its number of segments; the form's first where nothing is said.
    """
    passes = PASSES[which]
    of_kernels = [
        kernel_walls(share, shape, roof)
        for name in passes
        for share in shares(module, name, shape, dtype_bytes, *chosen.get(name, ()))
    ]
    return together(of_kernels, least_ms(module, passes, shape, roof, dtype_bytes))
