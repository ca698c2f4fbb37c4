"""`ttrc check`: a spec's kernels against the oracle, rung by rung.

1. the mathematics: the tile programs as plain PyTorch in float64
2. the kernels: Triton, in its interpreter on the CPU or on a GPU (float32, float16, bfloat16)
3. on a GPU, what that Triton is known to get wrong on that chip (miscompiles.py), and whether this build is hit
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ttrc.errors import ArgumentError, TtrcError
from ttrc.language.spec import KernelMemory, MLPMemory, Spec
from ttrc.runtime.operator import Operator
from ttrc.runtime.verify import BOUNDS, Case, Result, fitting, spelled, verify
from ttrc.tools.miscompiles import as_lines, find_here

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Ordinary, grouped heads and odd widths; packed with a sequence of one token; gates at the ends of their domains.
MATHEMATICS = (
    Case(),
    Case(B=1, T=1),
    Case(T=40, H=2, HV=4, d_k=7, d_v=5),
    Case(T=90, packed=(17, 1, 72)),
    Case(extreme="strong"),
    Case(extreme="weak"),
)
# Of kernel memories heads may share each argument in groups of their own.
GROUPED = (Case(B=1, T=40, H=1, HV=2, HQ=4, d_k=7, d_v=5),)
GROUPED_ON_GPU = (
    Case(B=2, T=300, H=2, HV=2, HQ=8, d_k=64, d_v=64),
    Case(B=32, T=40, H=8, HV=8, HQ=16, d_k=64, d_v=64, chunk_size=16),  # programs enough to sum gradients on chip
)
SCHEDULES = ("fused", "split", "segments")  # "auto" takes the first of them at shapes as small as these
KERNELS = {
    "chunk": (
        Case(),
        Case(B=1, T=40, packed=(17, 1, 22), extreme="strong"),
        Case(B=1, T=33, H=1, HV=1, d_k=40, d_v=17),
        *(Case(T=50, d_k=8, d_v=20, chunk_size=16, schedule=name) for name in SCHEDULES),
        Case(B=1, T=40, packed=(17, 1, 22), chunk_size=16, schedule="split"),
        Case(T=50, d_k=8, d_v=8, chunk_size=16, schedule="segments", extreme="strong"),
    ),
    "recurrent": (Case(B=1, T=18), Case(B=1, T=9, packed=(5, 1, 3), extreme="strong")),
}
ON_GPU = (
    Case(B=2, T=300, H=2, HV=4, d_k=64, d_v=64),
    Case(B=1, T=513, H=2, HV=2, d_k=128, d_v=128),
    Case(B=1, T=400, packed=(130, 1, 269), H=1, HV=2, d_k=64, d_v=128, extreme="strong"),
    Case(B=1, T=130, H=1, HV=1, d_k=256, d_v=256),
    Case(B=1, T=70, H=1, HV=2, d_k=40, d_v=24),
)
SCHEDULES_ON_GPU = tuple(
    Case(B=2, T=1100, H=1, HV=2, d_k=width, d_v=width, schedule=name) for name in SCHEDULES for width in (64, 128)
)


@dataclass(frozen=True)
class Check:
    """One comparison: what was run, and how far it was from the oracle."""

    spec: str
    form: str
    backend: str
    dtype: torch.dtype
    case: Case
    result: Result
    error: str = ""  # why it did not run

    @property
    def failures(self) -> tuple[str, ...]:
        return (self.error,) if self.error else self.result.failures

    @property
    def passed(self) -> bool:
        return not self.failures


def plan(op: Operator, device: str, dtype: str | None) -> list[tuple[str, str, torch.dtype, Case]]:
    """(form, backend, dtype, case) of every comparison, cheapest rung first."""
    rungs: list[tuple[str, str, torch.dtype, Case]] = []
    shared = isinstance(op.spec.memory, KernelMemory)
    for form in op.forms:
        rungs += [(form, "torch", torch.float64, case) for case in (*MATHEMATICS, *(GROUPED if shared else ()))]
    for form in op.forms:
        cases = KERNELS[form] if device == "cpu" else ON_GPU + (SCHEDULES_ON_GPU if form == "chunk" else ())
        cases += (GROUPED if device == "cpu" else GROUPED_ON_GPU) if shared else ()
        cases = [c for c in cases if c.schedule in ("auto", *op.schedules)]
        rungs += [(form, "triton", d, case) for d in KERNEL_DTYPES for case in cases]
    if dtype is not None:
        if dtype not in DTYPES:
            raise ArgumentError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
        rungs = [r for r in rungs if r[2] == DTYPES[dtype]]
    rungs = [r for r in rungs if not beyond_half(op.spec, r[2], r[3])]
    return [(form, backend, number, fitting(op.spec, case)) for form, backend, number, case in rungs]


def beyond_half(spec: Spec, number: torch.dtype, case: Case) -> bool:
    """Gates at the ends of their domains leave a deep memory weights so small, or steps so large, that its layer norm
    makes more of rounding than half precision has; float64 and float32 tell whether the kernels are right there."""
    return isinstance(spec.memory, MLPMemory) and number.itemsize == 2 and case.extreme is not None


def run(op: Operator, device: str = "cpu", dtype: str | None = None) -> Iterator[Check]:
    """Every comparison in turn; one that does not run stops no other."""
    for form, backend, number, case in plan(op, device, dtype):
        where = "cpu" if backend == "torch" else device
        try:
            result, error = verify(op, case, form=form, backend=backend, dtype=number, device=where), ""
        except TtrcError:
            raise
        except Exception as failure:  # whatever a compiler or a driver says
            result, error = Result({}, {}, BOUNDS[backend, number]), f"{type(failure).__name__}: {str(failure)[:200]}"
        yield Check(op.spec.name, form, backend, number, case, result, error)


def known_faults(checks: list[Check], device: str) -> list[str]:
    """What this Triton is known to miscompile on this device, and whether these kernels are hit, in lines."""
    compared = [c for c in checks if c.backend == "triton"]
    return as_lines(*find_here(device), len(compared), sum(not c.passed for c in compared))


def as_table(checks: list[Check]) -> Table:
    """One row a spec, form, backend and dtype: the worst errors over its cases."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="against the oracle: RMS(error) / RMS(reference)")
    for column, justify in (
        ("spec", "left"),
        ("form", "left"),
        ("runs on", "left"),
        ("cases", "right"),
        ("outputs", "right"),
        ("gradients", "right"),
        ("bounds", "right"),
        ("", "left"),
    ):
        table.add_column(column, justify=justify)
    for key in dict.fromkeys((c.spec, c.form, c.backend, c.dtype) for c in checks):
        group = [c for c in checks if (c.spec, c.form, c.backend, c.dtype) == key]
        outputs = max((e for c in group for e in c.result.outputs.values()), default=math.nan)
        gradients = max((e for c in group for e in c.result.gradients.values()), default=math.nan)
        bounds = BOUNDS[key[2], key[3]]
        failed = [f"{c.case}: {', '.join(c.failures)}" for c in group if not c.passed]
        table.add_row(
            key[0],
            key[1],
            f"{key[2]} {str(key[3]).removeprefix('torch.')}",
            str(len(group)),
            f"{outputs:.1e}",
            f"{gradients:.1e}",
            ", ".join(map(spelled, bounds)),
            "\n".join(failed) or "ok",
            style="red" if failed else None,
        )
    return table


def as_data(checks: list[Check]) -> list[dict]:
    return [
        {
            "spec": c.spec,
            "form": c.form,
            "backend": c.backend,
            "dtype": str(c.dtype).removeprefix("torch."),
            "case": str(c.case),
            "outputs": c.result.outputs,
            "gradients": c.result.gradients,
            "bounds": c.result.bounds,
            "failures": list(c.failures),
        }
        for c in checks
    ]
