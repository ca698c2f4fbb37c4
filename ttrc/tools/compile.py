"""`ttrc compile`: every kernel of every form for GPUs that are not here, and what each takes from the chip."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ttrc.backends.triton.signature import signature
from ttrc.compiler import analyse
from ttrc.emit import emit
from ttrc.ir.config import Config
from ttrc.ir.module import Module
from ttrc.language.spec import Spec
from ttrc.tools.offline import CompileFailure, Job, compile_many
from ttrc.tools.resources import Resources, occupancy

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
WIDTHS = (64, 128, 256)
FEW = 8  # instructions that spill outside of loops, once a program, and cost next to nothing


@dataclass(frozen=True)
class Row:
    """One kernel at one head dimension for one target."""

    module: Module
    form: str
    kernel: str
    width: int
    target: str
    config: Config
    result: Resources | CompileFailure

    @property
    def spec(self) -> str:
        return self.module.spec.name

    @property
    def problem(self) -> str | None:
        """What is wrong, if anything: it does not compile, or spills or does not fit at a width where it must not."""
        match self.result:
            case CompileFailure(reason=reason):
                return f"does not compile: {reason.splitlines()[-1] if reason else 'no reason given'}"
            case Resources() as r if self.target == "sm_90" and self.width <= 128:
                if not occupancy(r, self.config.warps, self.target):
                    return f"does not fit on a multiprocessor ({r.shared_bytes:,} bytes of shared memory)"
                heavy = r.looped_spills or r.spills > FEW
                return f"spills ({r.stack_bytes} bytes of stack)" if heavy else None
        return None


def compile_specs(
    specs: Sequence[Spec],
    *,
    targets: Sequence[str] = TARGETS,
    widths: Sequence[int] = WIDTHS,
    dtype: str = "bf16",
    configs: dict[str, Config] | None = None,
    on_done: Callable[[], None] | None = None,
) -> list[Row]:
    """Rows in order of spec, form, kernel, width, target. `configs` replaces defaults by kernel name."""
    with tempfile.TemporaryDirectory() as folder:
        heads, jobs = [], []
        for number, spec in enumerate(specs):
            module = analyse(spec)
            path = Path(folder) / f"{spec.name}_{number}.py"  # two specs may have one name
            path.write_text(emit(module)["kernels.py"], encoding="utf-8")
            for form in module.forms.values():
                for kernel in form.plan.kernels:
                    for width in widths:
                        chosen = (configs or {}).get(kernel.name)
                        s = signature(kernel, form.plan, d_k=width, d_v=width, dtype=dtype, config=chosen)
                        for target in targets:
                            heads.append((module, form.name, kernel.name, width, target, s.config))
                            jobs.append(
                                Job(
                                    str(path),
                                    kernel.name,
                                    s.types,
                                    s.constants,
                                    target,
                                    s.config.warps,
                                    s.config.stages,
                                    s.divisible,
                                    s.registers,
                                )
                            )
        results = compile_many(jobs, on_done=None if on_done is None else lambda *_: on_done())
    return [Row(*head, result) for head, result in zip(heads, results)]


def as_table(rows: Sequence[Row]) -> Table:
    """A line a kernel; V: value channels a program takes at once, blocks: programs a multiprocessor holds."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="compiled without a GPU")
    for column in ("kernel", "d", "target", "V", "warps", "stages", "regs", "spills", "shared", "blocks", "matrix"):
        table.add_column(column, justify="left" if column in ("kernel", "target", "matrix") else "right")
    several = len({row.spec for row in rows}) > 1
    for row in rows:
        name = f"{row.spec} {row.kernel}" if several else row.kernel
        c = row.config
        head = (name, str(row.width), row.target, str(c.value_block), str(c.warps), str(c.stages))
        match row.result:
            case CompileFailure():
                table.add_row(*head, row.problem, style="red")
            case Resources() as r:
                used = " ".join(f"{name} {n}" for name, n in r.matrix_instructions.items() if n) or "-"
                table.add_row(
                    *head,
                    str(r.registers),
                    str(r.spills),
                    str(r.shared_bytes),
                    str(occupancy(r, c.warps, row.target)),
                    used,
                    style="red" if row.problem else None,
                )
    return table


def as_data(rows: Sequence[Row]) -> list[dict]:
    data = []
    for row in rows:
        entry = {
            "spec": row.spec,
            "form": row.form,
            "kernel": row.kernel,
            "width": row.width,
            "target": row.target,
            "config": vars(row.config),
            "problem": row.problem,
        }
        if isinstance(row.result, Resources):
            entry |= {
                "registers": row.result.registers,
                "stack_bytes": row.result.stack_bytes,
                "spills": row.result.spills,
                "shared_bytes": row.result.shared_bytes,
                "blocks": occupancy(row.result, row.config.warps, row.target),
                "matrix_instructions": dict(row.result.matrix_instructions),
            }
        data.append(entry)
    return data
