"""The time of each of an operator's kernels by itself, with what its budget says it moved."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ttrc.compiler import analyse
from ttrc.passes.budget import budget
from ttrc.runtime.load import load
from ttrc.runtime.workload import Workload, draw_inputs
from ttrc.sampling import as_arguments
from ttrc.tools.timing import interleaved


@dataclass(frozen=True)
class KernelTime:
    """One kernel at one shape: ms, its budget's bytes over that time, its products' FLOP/s."""

    kernel: str
    ms: float
    bandwidth: float
    flops: float


def kernel_times(spec: str, shape: Workload, device: str) -> list[KernelTime]:
    """Every launch of a forward and backward pass, in the chunk form where there is one, each repeated by itself."""
    op = load(spec)
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    costs = budget(analyse(op.spec), d_k=shape.d_k, d_v=shape.d_v, dtype_bytes=dtype.itemsize)[op.forms[0]]
    traffic = {name: t for p in costs.values() for name, t in p.kernels}
    launches = _launches(op, draw_inputs(op.spec, shape, dtype, device))
    rows = []
    for name, again in launches:
        ms = interleaved({name: lambda i, again=again: again()}, device, 100.0)[name].ms
        moved, done = traffic[name].read_bytes + traffic[name].written_bytes, traffic[name].flops
        rows.append(KernelTime(name, ms, 1e3 * shape.tokens * moved / ms, 1e3 * shape.tokens * done / ms))
    return rows


def _launches(op, x: dict[str, torch.Tensor]) -> list:
    """(kernel, a call that launches it again on the same tensors) of one forward and backward pass."""
    module, found = op.package.op, []
    launch = module.launch

    def noted(name, *args, **kwargs):
        launch(name, *args, **kwargs)
        found.append((name, lambda: launch(name, *args, **kwargs)))

    module.launch = noted
    schedule = next(iter(op.schedules), "auto")
    try:
        o, _ = op(**as_arguments(op.spec, x), form=op.forms[0], backend="triton", schedule=schedule)
        torch.autograd.grad(o, list(x.values()), torch.ones_like(o), allow_unused=True)
    finally:
        module.launch = launch
    return found
