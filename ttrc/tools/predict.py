"""`ttrc compile --shape`: how long a plan's kernels must take on a GPU that is not here, and which wall says so.

Three sources: the plan's budget (traffic, FLOPs, serial steps), the compiled binaries (how many programs of a kernel
a multiprocessor holds, what instructions they issue, how long these hold its load/store unit) and resources.PARTS (what
the GPU has). Nothing is timed. Memory and matrix bound the time from below, issue and load_store nearly. Serial is an
estimate: a step takes what it takes in hand-tuned kernels or, where that is more, what its products, its instructions
or its loads and stores take on one multiprocessor. Launches are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Optional, Union

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ttrc.errors import TtrcError, plain
from ttrc.ir.config import WIDEST, Config, Takes, is_several_chunks, value_block
from ttrc.ir.module import Module
from ttrc.ir.plan import Cut, Plan, Skeleton
from ttrc.passes.budget import held_bytes
from ttrc.passes.measure_chain import INSTRUCTIONS
from ttrc.runtime.workload import Workload, programs, segment_count
from ttrc.tools.compile import Row
from ttrc.tools.executed import executed, executed_in_step
from ttrc.tools.resources import PARTS, REACHED_BANDWIDTH, REACHED_MATMUL, Part, Resources, chip, occupancy, parts
from ttrc.tools.timing import Roof
from ttrc.tools.walls import (
    PASSES,
    PRODUCT_SECONDS,
    STEP_SECONDS,
    WALLS,
    PlanWalls,
    Share,
    Walls,
    form_of,
    kernel_walls,
    least_ms,
    shares,
    shares_of,
    together,
)
from ttrc.tools.wavefronts import WAVEFRONT

TARGETS = tuple(dict.fromkeys(part.target for part in PARTS.values()))
DTYPE_BYTES = {"bf16": 2, "fp16": 2}
COUNT = r"\s*([1-9][0-9]{0,8})\s*"
SHAPE = re.compile(",".join([COUNT] * 4), re.ASCII)
EXPECTED = "expected B,T,HV,d: sequences, tokens, heads and head dimension, as in 1,8192,96,128"

CAPTION = f"""Nothing was timed. Rates are data sheets', of which an H100 reaches {REACHED_BANDWIDTH:.0%} (bandwidth) \
and {REACHED_MATMUL:.0%} (bf16 products).
waves: programs over what the chip holds at a time. issue: what the binaries' warps issue, loops as often as they run,
one instruction a cycle and scheduler. load_store: what passes L1 and shared memory, {WAVEFRONT} bytes a cycle and
multiprocessor: loads and stores, of spilled values too, shuffles, operands of products; bank conflicts are unknown.
serial: steps x us/step x waves, rounded up; a step is taken at {1e6 * STEP_SECONDS:g} us, as in hand-tuned kernels, \
or where that is
more at what its products, its instructions or its loads and stores take, or at {1e6 * PRODUCT_SECONDS:g} us for \
each of the
products that wait for one another, and {INSTRUCTIONS} instructions that do count as one.
ms: each kernel at the wall that binds it, launches left out. least: the least possible traffic.
again: before a backward pass, where less than all is kept for it; so much is held a token and head, inputs aside.
L2: all that the kernel touches fits in that cache."""


@dataclass(frozen=True)
class Kernel:
    """One kernel on one part.

    `blocks` programs fit on a multiprocessor at a time, so the grid's fill the chip `waves` times over (below 1: some
    of it has nothing to do). `steps` follow one another in a program; one takes `step_us` microseconds. `in_l2`: all
    that the kernel touches fits in the L2 cache, where an earlier kernel may have left it.
    """

    name: str
    programs: int
    blocks: int
    waves: float
    steps: int
    step_us: float
    walls: Walls
    in_l2: bool


@dataclass(frozen=True)
class Prediction:
    """One pass ("forward" or "backward") of a schedule on one part; `ms` is the sum of what binds each of its launches.

    Or ("again") what a backward pass begins with where a cut, in the schedule's place, keeps `held` bytes a token and
    head for it.
    """

    spec: str
    form: str
    which: str
    schedule: str
    part: str
    kernels: tuple[Kernel, ...]
    walls: PlanWalls
    held: Optional[float] = None

    @property
    def ms(self) -> float:
        return sum(k.walls.ms for k in self.kernels)


@dataclass(frozen=True)
class NoPrediction:
    """A pass with a kernel that does not run on that part."""

    spec: str
    form: str
    which: str
    schedule: str
    part: str
    reason: str


def parse_shape(text: str) -> Workload:
    """B,T,HV,d: batch, tokens, value heads (as many for queries and keys), head dimension (of keys and of values)."""
    found = SHAPE.fullmatch(text)
    if found is None:
        raise TtrcError(f"--shape: got {plain(text, 60)!r}, {EXPECTED}")
    batch, length, heads, width = map(int, found.groups())
    if width > WIDEST:
        raise TtrcError(f"--shape: got head dimension {width}, expected at most {WIDEST}")
    return Workload(batch, length, heads, width, width)


def refuse(targets: Sequence[str], widths: Sequence[int], dtype: str) -> None:
    """What cannot be predicted: said before anything is compiled."""
    if widths:
        raise TtrcError("--width: the head dimension stands in --shape; expected one of the two")
    if dtype not in DTYPE_BYTES:
        raise TtrcError(f"--shape: rates are known for {' and '.join(DTYPE_BYTES)} products; got --dtype {dtype}")
    for target in targets:
        parts(target)


def predict(rows: Sequence[Row], shape: Workload, dtype: str) -> list[Union[Prediction, NoPrediction]]:
    """From the rows of compile_specs at the shape's width: each spec's passes, part by part."""
    modules = {id(row.module): row.module for row in rows}
    made = []
    for key, module in modules.items():
        form = form_of(module).name
        mine = [row for row in rows if id(row.module) == key and row.form == form]
        for target in dict.fromkeys(row.target for row in mine):
            compiled = {row.kernel: row for row in mine if row.target == target}
            for name, part in parts(target).items():
                made += [
                    _of_pass(module, which, schedule.name, name, part, compiled, shape, dtype)
                    for schedule in form_of(module).plan.schedules
                    for which in PASSES["both"]
                ]
                made += [_again(module, cut, name, part, compiled, shape, dtype) for cut in form_of(module).plan.cuts]
    return made


def _of_pass(
    module: Module,
    which: str,
    schedule: str,
    name: str,
    part: Part,
    compiled: dict[str, Row],
    shape: Workload,
    dtype: str,
):
    head = (module.spec.name, form_of(module).name, which, schedule, name)
    roof, size = Roof(part.bandwidth, part.matmul), DTYPE_BYTES[dtype]
    plan = form_of(module).plan
    scans = [compiled[k.name].config for k in plan.kernels if k.skeleton is Skeleton.SCAN]
    launched = shares(module, which, shape, size, schedule, _segments(plan, scans, shape, size, part))
    found = _of_launches(launched, compiled, part, roof, shape)
    if isinstance(found, str):
        return NoPrediction(*head, found)
    return Prediction(*head, found, together([k.walls for k in found], least_ms(module, (which,), shape, roof, size)))


def _again(module: Module, cut: Cut, name: str, part: Part, compiled: dict[str, Row], shape: Workload, dtype: str):
    """Of the launches that make again what a cut does not keep, the scan over stretches side by side."""
    form, size = form_of(module), DTYPE_BYTES[dtype]
    head, sizes = (module.spec.name, form.name, "again", cut.name, name), (shape.d_k, shape.d_v, size)
    stretches = -(-shape.length // cut.stretch(form.plan.tokens(*sizes)))
    launched = shares_of(form.plan, cut.again, shape, size, stretches)
    found = _of_launches(launched, compiled, part, Roof(part.bandwidth, part.matmul), shape)
    if isinstance(found, str):
        return NoPrediction(*head, found)
    held = held_bytes(form.plan, cut, d_k=shape.d_k, d_v=shape.d_v, dtype_bytes=size, length=shape.length)
    return Prediction(*head, found, together([k.walls for k in found], 0.0), held)


def _of_launches(
    launched: list[Share], compiled: dict[str, Row], part: Part, roof: Roof, shape: Workload
) -> Union[tuple[Kernel, ...], str]:
    """Each launch's kernel; or why one of them does not run."""
    kernels = []
    for share in launched:
        row = compiled[share.kernel.name]
        if not isinstance(row.result, Resources):
            return f"{row.kernel} does not compile"
        blocks = occupancy(row.result, row.config.warps, row.target)
        if not blocks:
            return f"{row.kernel} does not fit on a multiprocessor"
        kernels.append(_of_kernel(share, row, blocks, part, roof, shape))
    return tuple(kernels)


def _segments(plan: Plan, scans: Sequence[Config], shape: Workload, size: int, part: Part) -> int:
    """As an operator would cut these sequences there; by the first of the plan's scans, if it has any."""
    scan = next((k for k in plan.kernels if k.skeleton is Skeleton.SCAN), None)
    if scan is None:
        return 1
    blocks = -(-shape.d_v // value_block(scan.takes, scans[0], shape.d_v))
    chunk = plan.tokens(shape.d_k, shape.d_v, size)
    whole = plan.segment if is_several_chunks(plan.segment) else chunk  # pieces are of these
    programs = shape.batch * shape.heads * blocks
    return segment_count(programs, -(-shape.length // whole), part.multiprocessors, whole // chunk)


def kernel_ms(
    row: Row, schedule: str, shape: Workload, part: Part, dtype_bytes: int, scans: Sequence[Config]
) -> Optional[float]:
    """Of all launches of one kernel in both passes of a schedule (the first if none has that name), each at its wall.

    None where it does not run. `scans` are the configurations of the plan's scans, which cut sequences into pieces.
    """
    plan = row.module.forms[row.form].plan
    (chosen,) = [s for s in plan.schedules if s.name == schedule] or plan.schedules[:1]
    mine = tuple(x for x in (*chosen.forward, *chosen.backward) if x.kernel.name == row.kernel)
    segments = _segments(plan, scans, shape, dtype_bytes, part)
    launched = shares_of(plan, mine, shape, dtype_bytes, segments)
    found = _of_launches(launched, {row.kernel: row}, part, Roof(part.bandwidth, part.matmul), shape)
    return None if isinstance(found, str) else sum(k.walls.ms for k in found)


def _of_kernel(share: Share, row: Row, blocks: int, part: Part, roof: Roof, shape: Workload) -> Kernel:
    columns = share.kernel.crossing.columns(shape.d_k) if share.launch.crosses else None
    side_by_side = share.segments if share.launch.segments else 1
    grid = programs(share.kernel, row.config, shape, chunk=share.chunk, segments=side_by_side, columns=columns)
    steps = share.steps(shape)
    slots = blocks * part.multiprocessors
    waves, step = -(-grid // slots), 0.0
    texts = {"issue": row.result.issued, "load_store": row.result.load_store}
    seconds = {unit: _seconds_each(unit, row, part) for unit in texts}
    if steps:
        products = share.traffic.flops * shape.tokens / (grid * steps)
        at_once = -(-grid // part.multiprocessors) / waves  # programs a wave where a multiprocessor has the most to do
        busy = max(executed_in_step(text, share) * seconds[unit] for unit, text in texts.items())
        step = max(_least_step(share), at_once * max(_product_seconds(products, part), busy))
    held = {
        unit: grid * executed(text, share, row.config, steps, shape) * seconds[unit] / part.multiprocessors
        for unit, text in texts.items()
    }
    walls = kernel_walls(share, shape, roof, step, waves, **held)
    touched = walls.memory * 1e-3 * roof.bandwidth
    return Kernel(row.kernel, grid, blocks, grid / slots, steps, 1e6 * step, walls, touched <= part.l2_bytes)


def _least_step(share: Share) -> float:
    """Hand-tuned kernels have shown what a chunk takes; of a token, or a few of them, nobody has said."""
    few = share.kernel.takes is Takes.ENTRIES or share.kernel.by_token
    return 0.0 if few else share.step_seconds


def _product_seconds(flops: float, part: Part) -> float:
    """On one multiprocessor, at its share of what the chip reaches."""
    return flops * part.multiprocessors / part.matmul


def _seconds_each(unit: str, row: Row, part: Part) -> float:
    """Of a multiprocessor, for an instruction of every warp of a program, or for a wavefront."""
    a_cycle = {"issue": chip(row.target).schedulers, "load_store": 1}[unit]
    return row.config.warps / (a_cycle * part.clock)


def as_table(predictions: Sequence[Union[Prediction, NoPrediction]], shape: Workload) -> Table:
    """A line a kernel and one a pass; times in milliseconds."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"predicted, not measured: ms at {shape}",
        caption=CAPTION,
        caption_justify="left",
    )
    for column in ("part", "schedule and pass, kernel"):
        table.add_column(column)
    for column in ("programs", "blocks", "waves", "steps", "us/step", *WALLS, "ms", "least"):
        table.add_column(column, justify="right")
    table.add_column("binds")
    several = len({p.spec for p in predictions}) > 1
    for p in predictions:
        name = " ".join([*([p.spec] if several else []), p.schedule, p.which])
        match p:
            case NoPrediction(part=part, reason=reason):
                table.add_row(part, name, *[""] * 11, reason, style="red")
            case Prediction(part=part, kernels=kernels, walls=w):
                held = "" if p.held is None else f", {p.held:,.0f} B held"
                binds = w.binding if kernels else ""
                table.add_row(part, name + held, *[""] * 5, *_times(w), _ms(p.ms), _ms(w.least), binds, style="bold")
                for k in kernels:
                    chain = (str(k.steps), f"{k.step_us:.1f}") if k.steps else ("", "")
                    binds = k.walls.binding + (", L2" if k.in_l2 else "")
                    head = (part, f"  {k.name}", f"{k.programs:,}", str(k.blocks), f"{k.waves:.2f}", *chain)
                    table.add_row(*head, *_times(k.walls), _ms(k.walls.ms), "", binds)
    return table


def as_data(predictions: Sequence[Union[Prediction, NoPrediction]], shape: Workload) -> dict:
    """Times in milliseconds; what binds and their sum beside them."""
    return {"measured": False, "shape": asdict(shape), "passes": [_entry(p) for p in predictions]}


def _entry(p: Union[Prediction, NoPrediction]) -> dict:
    entry = asdict(p)
    if isinstance(p, Prediction):
        entry |= {"ms": p.ms, "binding": p.walls.binding if p.kernels else None}
        for told, kernel in zip(entry["kernels"], p.kernels, strict=True):
            told |= {"ms": kernel.walls.ms, "binding": kernel.walls.binding}
    return entry


def _times(w: Walls) -> tuple[str, ...]:
    return tuple(_ms(getattr(w, name)) for name in WALLS)


def _ms(value: float) -> str:
    return f"{value:.3f}" if value else "-"
