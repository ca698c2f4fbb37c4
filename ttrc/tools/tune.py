"""`ttrc tune`: verify and time configurations on the GPU at hand, and write down the best of the right ones.

What is found goes to the user's own file for the chip as soon as a kernel is done, so that a run that is cut short
goes on where it stopped. A report names every configuration that was rejected, and why.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
import triton
from rich.table import Table

from ttrc.backends.triton.signature import signature
from ttrc.compiler import analyse
from ttrc.ir.config import Config
from ttrc.ir.plan import Kernel, Skeleton
from ttrc.language.state import needs_initial_state
from ttrc.runtime import tuned
from ttrc.runtime.ahead import compile_ahead
from ttrc.runtime.load import load
from ttrc.runtime.operator import Operator
from ttrc.runtime.trust import Verifier
from ttrc.runtime.tuner import (
    MOST,
    Fate,
    Footprint,
    Footprints,
    Report,
    Trial,
    capped,
    key_of,
    regime_of,
    space_of,
    tunable,
)
from ttrc.runtime.tuner import tune as search
from ttrc.runtime.verify import Case, fitting, prepare
from ttrc.runtime.workload import Workload
from ttrc.tools.bench import DTYPES
from ttrc.tools.compile import Row
from ttrc.tools.offline import CompileFailure, Job, compile_many
from ttrc.tools.predict import kernel_ms
from ttrc.tools.resources import CHIPS, likeliest
from ttrc.tools.timing import timer

# By form and regime (batch, length, heads): "many" fills the chip, "few" leaves the serial chain to bind.
SHAPES = {
    "chunk": {"many": (16, 2048, 16), "few": (2, 8192, 16)},
    "recurrent": {"many": (16, 256, 16), "few": (2, 512, 16)},
}
TOY = {"chunk": {"few": (1, 16, 1)}}


def ship() -> None:
    """Copy what this chip's file has to where a package finds it."""
    chip = tuned.chip_name("cuda")
    tuned.shipped_file(chip).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tuned.user_file(chip), tuned.shipped_file(chip))


def tune(
    specs: Sequence[str | Path],
    *,
    widths: Sequence[int] = (128,),
    dtypes: Sequence[str] = ("bf16",),
    forms: Sequence[str] = ("chunk", "recurrent"),
    regimes: Sequence[str] = ("many", "few"),
    device: str | None = None,
    most: int = MOST,
    again: bool = False,
    on_trial: Callable[[str, Trial], None] = lambda spec, trial: None,
) -> list[Report]:
    """Tune specs for the GPU, each at each head dimension and dtype; `again` repeats what the chip's file has already.

    Without a GPU it goes through the motions at toy sizes in float32 and writes nothing.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    reports = []
    for name in specs:
        op = load(name)
        tuned.apply_tuned(op.package, device)
        for width in widths if on_gpu else (16,):
            for dtype in dtypes if on_gpu else ("fp32",):
                shapes = _workloads(op, forms, regimes, width, on_gpu)
                if not shapes:
                    continue  # none of the forms asked for
                reports.append(_tune(op, shapes, width, dtype, device, most, again, on_trial))
    return reports


def _tune(op: Operator, shapes, width: int, dtype: str, device: str, most: int, again: bool, on_trial) -> Report:
    chip = tuned.chip_name(device)
    digest = tuned.kernels_digest(op.package)
    found = (
        ()
        if chip is None
        else (*tuned.read_entries(tuned.shipped_file(chip)), *tuned.read_entries(tuned.user_file(chip)))
    )
    known = {e.key for e in found if (e.kernels, e.triton) == (digest, triton.__version__)}
    takes = {k.name: k.takes for form in analyse(op.spec).forms.values() for k in form.plan.kernels}
    left = _left(op, shapes, DTYPES[dtype], () if again else known)
    defaults: dict = {}
    crashed = [] if chip is None else tuned.read_suspects(tuned.suspects_file(chip))

    def started(key: tuned.Key, config: Config) -> None:
        if chip is not None:
            tuned.write_suspects(tuned.suspects_file(chip), [*crashed, (key, config)])

    def told(trial: Trial) -> None:
        default = Config(*op.package.launch.CONFIGS[trial.key.kernel][trial.key.width])
        default = capped(takes[trial.key.kernel], default, trial.key.width)
        if trial.fate in (Fate.CHOSEN, Fate.SLOWER) and trial.config == default:
            defaults[trial.key] = trial.ms
        if trial.fate is Fate.CHOSEN and chip is not None:
            entry = tuned.Entry(
                op.spec.name, digest, trial.key, trial.config, trial.ms, defaults.get(trial.key), triton.__version__
            )
            tuned.write_entries(tuned.user_file(chip), chip, [entry])
        on_trial(op.spec.name, trial)

    heads = next(iter(shapes.values()))[0].heads
    toy = chip is None
    cases = (
        [Case(B=1, T=20, H=1, HV=1, d_k=width, d_v=width, chunk_size=16)]
        if toy
        else [
            Case(B=2, T=200, H=heads, HV=heads, d_k=width, d_v=width),
            Case(T=200, H=heads, HV=heads, d_k=width, d_v=width, packed=(150, 1, 49)),
        ]
    )
    with ThreadPoolExecutor(1) as beside:  # the oracle takes as long as the compilers, and needs one core
        for case in cases if any(left.values()) else ():
            beside.submit(prepare, op.spec, fitting(op.spec, case), DTYPES[dtype], device)
        taken = (lambda kernel, config, shape, schedule: None) if toy else footprints(op, left, width, dtype, device)
    report = search(
        op,
        shapes,
        dtype=DTYPES[dtype],
        device=device,
        timer=timer(device),
        verifier=lambda form, schedule: Verifier(op, form, DTYPES[dtype], device, _scheduled(cases, schedule)),
        footprints=taken,
        most=min(most, 2) if toy else most,
        known=() if again else known,
        suspects=() if again else crashed,
        ahead=lambda work: compile_ahead(work, device),
        on_start=started,
        on_trial=told,
    )
    if chip is not None:
        tuned.write_suspects(tuned.suspects_file(chip), crashed)
    tuned.apply_tuned(op.package, device)
    return report


def _scheduled(cases: list[Case], schedule: str) -> list[Case]:
    return [replace(c, schedule=schedule) for c in cases if not (c.packed and schedule == "segments")]


def _workloads(op: Operator, forms, regimes, width: int, on_gpu: bool) -> dict[str, list[Workload]]:
    table = SHAPES if on_gpu else TOY
    return {
        form: [
            Workload(*shape, width, width) for regime, shape in table[form].items() if regime in regimes or not on_gpu
        ]
        for form in op.forms
        if form in forms and form in table
    }


def _left(op: Operator, shapes, dtype: torch.dtype, known) -> dict[str, list[Kernel]]:
    """By form the kernels that have something to tune."""
    forms, left = analyse(op.spec).forms, {}
    for form, own in shapes.items():
        each = [(k, s) for s in own for k, _ in tunable(forms[form].plan, regime_of(s))]
        wanted = {k.name: k for k, s in each if key_of(op.package, k.name, s, dtype) not in known}
        left[form] = list(wanted.values())
    return left


def footprints(
    op: Operator, kernels: Mapping[str, Sequence[Kernel]], width: int, dtype: str, device: str
) -> Footprints:
    """What every candidate of these, by form, takes from the chip; compiled beforehand on all of the host."""
    major, minor = torch.cuda.get_device_capability(device)
    target = f"sm_{major}{minor}"
    if target not in CHIPS:
        return lambda kernel, config, shape, schedule: None
    path = str(Path(op.package.__file__).with_name("kernels.py"))
    heads, jobs, scans = [], [], {}
    module, part = analyse(op.spec), likeliest(target, tuned.chip_name(device) or "")
    # As they will be launched, so that they are compiled once.
    asked = {"d_k": width, "d_v": width, "dtype": dtype, "initial": needs_initial_state(op.spec), "final": False}
    for form, own in kernels.items():
        plan = module.forms[form].plan
        scans[form] = [signature(k, plan, **asked).config for k in plan.kernels if k.skeleton is Skeleton.SCAN]
        for kernel in own:
            launches = (x for s in plan.schedules for x in (*s.forward, *s.backward))
            launched = next(x.kernel for x in launches if x.kernel.name == kernel.name)
            for config in space_of(kernel.takes, width):
                s = signature(kernel, plan, **asked, launched=launched, config=config)
                heads.append((module, form, kernel.name, width, target, config))
                how = (target, config.warps, config.stages, s.divisible, s.registers)
                jobs.append(Job(path, kernel.name, s.types, s.constants, *how))
    results = compile_many(jobs, workers=os.cpu_count() or 2, timeout=60.0)
    rows = {(head[2], head[-1]): Row(*head, result) for head, result in zip(heads, results, strict=True)}

    def known(kernel: str, config: Config, shape: Workload, schedule: str) -> Footprint | None:
        row = rows.get((kernel, config))
        if row is None:
            return None
        if isinstance(row.result, CompileFailure):
            return Footprint(0, 0, None)
        ms = kernel_ms(row, schedule, shape, part, DTYPES[dtype].itemsize, scans[row.form])
        return Footprint(row.result.spills, row.result.instructions, ms)

    return known


def as_table(reports: Sequence[Report]) -> Table:
    table = Table(title="tuned: verified first, then timed")
    for column in ("spec", "kernel", "d", "dtype", "regime", "config"):
        table.add_column(column)
    for column in ("ms", "predicted", "default", "x", "tried", "rejected"):
        table.add_column(column, justify="right")
    for report in reports:
        for key in dict.fromkeys(t.key for t in report.trials):
            trials = [t for t in report.trials if t.key == key]
            rejected = sum(t.fate is Fate.REJECTED for t in trials)
            tried = sum(t.fate is not Fate.PRUNED for t in trials)
            head = (report.spec, key.kernel, str(key.width), key.dtype, key.regime)
            best, default = report.best.get(key), report.default_ms.get(key)
            if best is None:
                table.add_row(*head, "none is right", "", "", "", "", str(tried), str(rejected), style="red")
                continue
            table.add_row(
                *head,
                _short(best.config),
                f"{best.ms:.3f}",
                "" if best.predicted is None else f"{best.predicted:.3f}",
                "wrong" if default is None else f"{default:.3f}",
                "" if default is None else f"{default / best.ms:.2f}",
                str(tried),
                str(rejected),
            )
    return table


def rejections(reports: Sequence[Report]) -> list[str]:
    """One line a rejected configuration: what it is and why."""
    return [
        f"{r.spec} {t.key.kernel} d {t.key.width} {t.key.dtype}: {_short(t.config)}: {t.reason}"
        for r in reports
        for t in r.rejected
    ]


def as_data(reports: Sequence[Report]) -> list[dict]:
    return [
        {
            "spec": r.spec,
            **asdict(t.key),
            **asdict(t.config),
            "fate": t.fate.value,
            "ms": t.ms,
            "predicted_ms": t.predicted,
            "reason": t.reason,
        }
        for r in reports
        for t in r.trials
    ]


def write(reports: Sequence[Report], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_data(reports), indent=1), encoding="utf-8")


def _short(config: Config) -> str:
    return f"V {config.value_block}, {config.warps} warps, {config.stages} stages"
