"""`ttrc bench`: forward and forward+backward beside other libraries, in one run, with how right each of them is.

A fast wrong kernel is no result, so each row says how far its side is from the oracle in this run, at a small shape,
and from a float32 run at the shape it was timed at. Without a GPU everything runs at toy sizes, and no time means
anything.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from ttrc.compiler import analyse
from ttrc.ir.config import CHUNK
from ttrc.language.spec import Spec
from ttrc.runtime.ahead import compile_ahead
from ttrc.runtime.load import load
from ttrc.runtime.operator import Operator
from ttrc.runtime.workload import Workload, draw_inputs
from ttrc.sampling import as_arguments
from ttrc.tools.about import about
from ttrc.tools.accuracy import Errors, large_errors, small_errors
from ttrc.tools.peers import Peer, absent, load_peers, present
from ttrc.tools.timing import Roof, Sample, interleaved, measure_roof, peak_bytes, sets_past_cache
from ttrc.tools.walls import PASSES, walls

OURS = "ttrc"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _square(*sizes: tuple[int, int, int, int]) -> tuple[Workload, ...]:
    return tuple(Workload(b, t, h, d, d) for b, t, h, d in sizes)


# (batch, length, heads, head dimension): the field's registry of shapes and one long sequence.
REGISTRY = _square(
    (1, 8192, 96, 128),
    (2, 16384, 16, 128),
    (4, 2048, 16, 128),
    (4, 4096, 64, 128),
    (8, 2048, 32, 256),
    (8, 1024, 8, 64),
    (1, 32768, 16, 128),
)
LENGTHS = _square(*((1, 1024 << i, 16, 128) for i in range(8)))
# Heads as batch where that goes: a library that compiles for each number of heads would tune for each.
HEADS = _square((1, 4096, 4, 128), *((1 << i, 4096, 16, 128) for i in range(6)))
SHAPES = {"registry": REGISTRY, "lengths": LENGTHS, "heads": HEADS}
TOY = _square((1, 64, 2, 16), (2, 32, 1, 16))
SMALL = {"cuda": (256, 2), "cpu": (40, 1)}  # tokens and heads of the shape that the oracle runs
SMALL_TOKENS = 2048  # times heads, where as many heads as are timed are few enough


@dataclass(frozen=True)
class Row:
    """One side at one shape and pass ("forward" or "both"); `sample` is None where it did not run, and why in notes."""

    spec: str
    shape: Workload
    which: str
    side: str
    sample: Optional[Sample]
    peak: Optional[int]
    ratio: Optional[float]  # its time over ttrc's: above 1, ttrc is faster
    of_wall: Optional[float]  # share of the time that is the plan's binding wall (ttrc's own rows)
    of_least: Optional[float]  # share of the time that the least possible traffic would take
    wall: str
    small: Errors | str
    large: Errors | str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """A whole run: the machine, its roofs, the rows, and who was not there."""

    device: dict[str, str]
    roof: Roof
    rows: tuple[Row, ...]
    absent: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Side:
    name: str
    call: Callable[[Mapping[str, Tensor]], Tensor]
    peer: Optional[Peer]


def bench(
    specs: Sequence[str | Path],
    *,
    shapes: Sequence[Workload] | None = None,
    passes: Sequence[str] = tuple(PASSES),
    dtype: str = "bf16",
    device: str | None = None,
    peers: str | Path | None = None,
    against: Sequence[str] = (),
    budget_ms: float = 400.0,
    on_done: Callable[[str], None] = lambda what: None,
) -> Bench:
    """Time specs beside their peers. `against` keeps only peers of these names; `peers` names another peers file.

    Without a device this uses the GPU where there is one, else the CPU, at toy sizes and in float32.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    kind = DTYPES[dtype] if on_gpu else torch.float32
    shapes = tuple(shapes or (REGISTRY if on_gpu else TOY))
    table, roof = load_peers(peers), measure_roof(device)
    rows, missing = [], {}
    for name in specs:
        op = load(name)
        entries = table(op.spec.name)
        missing |= {f"{a.name}: {a.reason}": None for a in absent(entries)}
        chosen = [p for p in present(entries) if not against or p.name in against]
        rows += _of_spec(op, chosen, shapes, passes, kind, device, roof, budget_ms, on_done)
    return Bench(about(device), roof, tuple(rows), tuple(missing))


def _of_spec(op: Operator, peers, shapes, passes, dtype, device, roof, budget_ms, on_done) -> list[Row]:
    rows, errors_at = [], {}
    sides = [_Side(OURS, lambda x: _ours(op, x), None), *(_Side(p.name, p.call, p) for p in peers)]
    same = {s.name: s.call for s in sides if s.peer is None or s.peer.same}
    module = analyse(op.spec)
    for shape in shapes:
        small = _small(shape, device)
        with ExitStack() as lifted:
            for side in sides:
                if side.peer is not None:
                    lifted.enter_context(side.peer.lifted())
            if small not in errors_at:
                compile_ahead(partial(_once, op, sides, small, dtype, device), device)
                errors_at[small] = small_errors(op.spec, same, small, dtype, device)
            try:
                rows += _at_shape(
                    op, module, sides, same, shape, passes, dtype, device, roof, budget_ms, errors_at[small]
                )
            except torch.cuda.OutOfMemoryError as error:
                on_done(f"{op.spec.name} {shape} left out: {error}")
        on_done(f"{op.spec.name} {shape}")
        _free(device)
    return rows


def _small(shape: Workload, device: str) -> Workload:
    """Of as many heads where they are not many, since a library may compile and tune for each number of them."""
    length, heads = SMALL[device.split(":")[0]]
    if device.startswith("cuda") and shape.heads * CHUNK <= SMALL_TOKENS:
        length, heads = min(length, SMALL_TOKENS // shape.heads), shape.heads
    return Workload(1, length, heads, shape.d_k, shape.d_v)


def _once(op: Operator, sides: Sequence[_Side], shape: Workload, dtype: torch.dtype, device: str) -> None:
    """Every side forwards and backwards; one that does not run stops no other."""
    x = draw_inputs(op.spec, shape, dtype, device)
    for side, which in itertools.product(sides, PASSES):
        with contextlib.suppress(Exception):
            _step(side, which, [x], torch.ones_like(x["v"]))(0)


def _at_shape(op, module, sides, same, shape, passes, dtype, device, roof, budget_ms, small) -> list[Row]:
    first = draw_inputs(op.spec, shape, dtype, device)
    one = sum(x.numel() * x.element_size() for x in first.values())
    sets = [
        first,
        *(draw_inputs(op.spec, shape, dtype, device, seed=i) for i in range(1, sets_past_cache(one, device))),
    ]
    d_o = torch.randn_like(first["v"])
    try:
        large = large_errors(same, lambda x: _ours(op, x, backend="torch"), first)
    except torch.cuda.OutOfMemoryError:
        large = dict.fromkeys(same, "no memory for a float32 run")
    _free(device)
    compile_ahead(partial(_once, op, sides, shape, dtype, device), device)
    rows = []
    for which in passes:
        steps, peaks, failed = {}, {}, {}
        for side in sides:
            step = _step(side, which, sets, d_o)
            try:  # once by itself, so that one that does not run cannot stop the rest
                peaks[side.name] = peak_bytes(step, device)
                steps[side.name] = step
            except Exception as error:
                failed[side.name] = f"does not run: {type(error).__name__}: {str(error)[:160]}"
                _free(device)
        samples = interleaved(steps, device, budget_ms)
        chosen = _schedules(op, first)
        costs = walls(module, shape, which, roof, dtype.itemsize, chosen)
        ways = [chosen[name][0] for name in PASSES[which] if name in chosen]
        for side in sides:
            rows.append(_row(op.spec, shape, which, side, samples, peaks, failed, costs, ways, small, large))
    return rows


def _schedules(op: Operator, x: Mapping[str, Tensor]) -> dict[str, tuple[str, int]]:
    """By pass: the schedule that the operator takes for these inputs, and into how many segments it cuts them."""
    if not op.schedules:
        return {}
    choices = op.package.choices
    chunk = choices.default_chunk("chunk", x["q"], x["v"])
    layout = op.package.layout.lay_out(x["v"], None, chunk)
    return {
        which: choices.choose("chunk", which, "auto", x["q"], x["v"], layout, chunk)
        for which in ("forward", "backward")
    }


def _ours(op: Operator, x: Mapping[str, Tensor], backend: str = "triton") -> Tensor:
    return op(**as_arguments(op.spec, x), form="chunk" if "chunk" in op.forms else "auto", backend=backend)[0]


def _step(side: _Side, which: str, sets: Sequence[dict[str, Tensor]], d_o: Tensor) -> Callable[[int], object]:
    """A forward pass without a graph, or a forward and a backward pass."""

    def forward(i: int):
        with torch.no_grad():
            return side.call(sets[i % len(sets)])

    def both(i: int):
        x = sets[i % len(sets)]
        o = side.call(x)
        if not o.requires_grad:
            raise RuntimeError("has no backward pass")
        return torch.autograd.grad(o, list(x.values()), d_o, allow_unused=True)

    return forward if which == "forward" else both


def _row(spec: Spec, shape, which, side: _Side, samples, peaks, failed, costs, ways, small, large) -> Row:
    sample, ours = samples.get(side.name), samples.get(OURS)
    notes = [" + ".join(ways)] if ways and side.peer is None else []
    if side.peer is not None and not side.peer.same:
        notes.append("another function")
    if side.peer is not None and side.peer.refusal and which == "both":
        notes.append(f"timed only: {side.peer.refusal}")
    if side.name in failed:
        notes.append(failed[side.name])
    mine = side.peer is None
    return Row(
        spec.name,
        shape,
        which,
        side.name,
        sample,
        peaks.get(side.name),
        sample.ms / ours.ms if sample and ours else None,
        costs.ms / sample.ms if sample and mine else None,
        costs.least / sample.ms if sample and (mine or side.peer.same) else None,
        costs.binding if mine else "",
        small.get(side.name, {}),
        large.get(side.name, {}),
        tuple(notes),
    )


def _free(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
