"""What there is to do on a GPU day, in pieces: each unit runs in a process of its own and answers with plain data.

compiler what this Triton is known to get wrong on this chip, probed
verify   every form, dtype and case of a spec, of shipped ones every schedule: on the device, poisoned, twice,
         against the oracle; or a few cases of it
tune     one spec at one head dimension and dtype
bench    one spec over one list of shapes, beside its peers; once more when it is tuned
profile  the time of each kernel at one shape, and the bandwidth it reached
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ttrc.language.spec import KernelMemory
from ttrc.runtime.ahead import compiling_ahead
from ttrc.runtime.interpreter import mend_interpreter
from ttrc.runtime.load import load
from ttrc.runtime.trust import Verifier, is_lost
from ttrc.runtime.verify import Case, draw_setting, fitting, prepare, run
from ttrc.tools.check import GROUPED_ON_GPU, ON_GPU, SCHEDULES_ON_GPU, beyond_half

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("compiler", "verify", "tune", "bench", "profile")
FIRST = ("gated_deltanet", "mamba2", "linear_attention", "deltanet")  # what the targets are set on
# One process a number of heads and a width: fla compiles and tunes for each, minutes at a time.
SHAPES = (
    "registry-16-128", "registry-96-128", "registry-64-128", "registry-8-64", "registry-32-256", "lengths", "heads",
)  # fmt: skip
FEW = (
    Case(B=1, T=150, H=1, HV=2, d_k=128, d_v=128),
    Case(B=1, T=150, packed=(70, 1, 79), H=1, HV=2, d_k=64, d_v=64),
)
WORKERS = 4  # threads that compile for a unit that is not alone
TUNED = ((128, "chunk"), (64, "chunk"), (256, "chunk"), (128, "recurrent"))
PROFILED = ((2, 16384, 16, 128), (1, 32768, 16, 128))


@dataclass(frozen=True)
class Unit:
    """One piece of work; `seconds` is how long it may take before it is cut."""

    stage: str
    spec: str
    options: tuple[tuple[str, object], ...] = ()
    seconds: float = 500.0

    @property
    def key(self) -> str:
        return "-".join([self.stage, Path(self.spec).stem, *(str(v) for _, v in self.options)])


def every_spec() -> list[str]:
    """Shipped specs, the most wanted first, then those of tests/unseen by path."""
    shipped = sorted(path.stem for path in (ROOT / "specs").glob("*.toml"))
    unseen = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "unseen").glob("*.toml"))
    return [*(s for s in FIRST if s in shipped), *(s for s in shipped if s not in FIRST), *unseen]


def rounds(specs: list[str], first: Sequence[str], dry: bool) -> Iterator[list[Unit]]:
    """The pieces of a day, what tells most a minute first; those of a round are of one stage. A unit may come again.

    What `first` are is looked at, timed, tuned and timed once more before anything is verified thoroughly: there the
    oracle takes most of the time, which no GPU makes shorter.
    """
    shipped = [s for s in specs if not s.endswith(".toml")]
    if dry:
        yield from (list(_dry(stage, specs, shipped)) for stage in STAGES)
        return
    head, rest = [s for s in specs if s in first], [s for s in shipped if s not in first]
    targets, tuned = [s for s in head if s in shipped], (("configs", "tuned"),)
    yield [Unit("compiler", "triton", (), 120.0)]
    yield [_few(s) for s in head]
    yield [_timed(s, SHAPES[0]) for s in targets]
    yield [_few(s) for s in rest]
    for s in targets:
        yield [_tuned(s, 128, "chunk")]
        yield [_timed(s, SHAPES[0], tuned)]
    yield [Unit("profile", s) for s in targets]
    yield [Unit("verify", s) for s in specs]
    yield [_tuned(s, width, form) for width, form in TUNED for s in shipped]
    for shapes in SHAPES:
        chosen = shipped if shapes.startswith("registry") else [s for s in shipped if s in first]
        yield [_timed(s, shapes) for s in chosen]
    yield [Unit("profile", s) for s in shipped]


def _dry(stage: str, specs: list[str], shipped: list[str]) -> Iterator[Unit]:
    if stage == "compiler":
        yield Unit(stage, "triton", (), 120.0)
        return
    yield from (Unit(stage, s, (), 300.0) for s in (specs if stage == "verify" else shipped[:1]))


def _few(spec: str) -> Unit:
    return Unit("verify", spec, (("cases", "few"),))


def _tuned(spec: str, width: int, form: str) -> Unit:
    return Unit("tune", spec, (("width", width), ("form", form)))


def _timed(spec: str, shapes: str, more: tuple[tuple[str, object], ...] = ()) -> Unit:
    return Unit("bench", spec, (("shapes", shapes), *more))


def perform(unit: Unit, device: str, folder: Path) -> dict:
    """Do it. {"ok", "line": a few words for a table, "data": all of it}."""
    doing = {"compiler": _compiler, "verify": _verify, "tune": _tune, "bench": _bench, "profile": _profile}
    return doing[unit.stage](unit, device, folder)


def _compiler(unit: Unit, device: str, folder: Path) -> dict:
    """Without a chip every probe runs, in the interpreter."""
    from ttrc.tools.miscompiles import FAULTS, Finding, find_here

    if device == "cpu":
        mend_interpreter()
        where, found = "Triton's interpreter", tuple(Finding(f, f.probe(device)) for f in FAULTS if f.probe)
    else:
        where, found = find_here(device)
    data = [{"what": f.fault.what, "source": f.fault.source, "hit": f.hit} for f in found]
    hit = [row["source"] for row in data if row["hit"]]
    line = f"{where}: {len(data)} known faults, hit by {', '.join(hit) or 'none of those probed'}"
    return {"ok": not hit, "line": line, "data": data}


def comparisons(op, shipped: bool, few: bool) -> list[tuple[str, torch.dtype, Case]]:
    """(form, dtype, case) of what is compared on a GPU."""
    shared = isinstance(op.spec.memory, KernelMemory)
    wide = ON_GPU + (SCHEDULES_ON_GPU if shipped else ()) + (GROUPED_ON_GPU if shared else ())
    plan = {torch.bfloat16: wide, torch.float32: ON_GPU[-1:], torch.float16: ON_GPU[-1:]}
    return _fitting(op, {torch.bfloat16: FEW} if few else plan)


def toy_comparisons(op) -> list[tuple[str, torch.dtype, Case]]:
    small = Case(B=1, T=20, H=1, HV=1, d_k=16, d_v=16, chunk_size=16)
    return _fitting(op, {torch.bfloat16: (small,), torch.float32: (replace(small, schedule="split"),)})


def _fitting(op, plan: dict[torch.dtype, Sequence[Case]]) -> list[tuple[str, torch.dtype, Case]]:
    known = {form: ("auto", *op.schedules) if form == "chunk" else ("auto",) for form in op.forms}
    every = [(form, dtype, case) for form in op.forms for dtype, cases in plan.items() for case in cases]
    return [
        (f, d, fitting(op.spec, c)) for f, d, c in every if c.schedule in known[f] and not beyond_half(op.spec, d, c)
    ]


def _verify(unit: Unit, device: str, folder: Path) -> dict:
    op, few = load(_path(unit.spec)), dict(unit.options).get("cases") == "few"
    every = toy_comparisons(op) if device == "cpu" else comparisons(op, not unit.spec.endswith(".toml"), few)

    def launch_all() -> None:
        for form, dtype, case in every:
            run(op, draw_setting(op.spec, case, dtype, device), form, "triton")

    with compiling_ahead(launch_all, device, WORKERS):
        for _, dtype, case in every:
            with contextlib.suppress(Exception):  # told below, beside its case
                prepare(op.spec, case, dtype, device)  # which is remembered
    rows = [
        {"form": form, "dtype": str(dtype).removeprefix("torch."), "case": str(case)}
        | _verdict(op, form, dtype, device, case)
        for form, dtype, case in every
    ]
    bad = [r for r in rows if r["reason"]]
    worst = max((e for r in rows for e in r["errors"].values()), default=float("nan"))
    line = f"{len(rows) - len(bad)} of {len(rows)} right, worst error {worst:.1e}"
    if bad:
        line += f"; {bad[0]['form']} {bad[0]['dtype']} {bad[0]['case']}: {bad[0]['reason'][:90]}"
    return {"ok": not bad, "line": line, "data": rows}


def _verdict(op, form: str, dtype, device: str, case: Case) -> dict:
    try:
        judge = Verifier(op, form, dtype, device, [case])
        verdict = judge.judge(judge.settings[0])
        return {"errors": verdict.result.outputs | verdict.result.gradients, "reason": verdict.reason}
    except Exception as error:
        if is_lost(device):
            raise  # nothing runs in this process any more
        return {"errors": {}, "reason": f"{type(error).__name__}: {str(error)[:300]}"}


def _tune(unit: Unit, device: str, folder: Path) -> dict:
    from ttrc.tools import tune as tool

    options = dict(unit.options)
    reports = tool.tune(
        [_path(unit.spec)],
        device=device,
        widths=(options.get("width", 128),),
        most=10,
        forms=(options.get("form", "chunk"),),
    )
    rejected = tool.rejections(reports)
    best = [t for r in reports for t in r.best.values()]
    gains = [r.default_ms[k] / t.ms for r in reports for k, t in r.best.items() if k in r.default_ms]
    line = f"{len(best)} kernels, up to {max(gains, default=1):.2f} x the default, {len(rejected)} rejected"
    return {
        "ok": bool(best) or not any(r.trials for r in reports),
        "line": line,
        "data": tool.as_data(reports),
        "rejected": rejected,
    }


def _bench(unit: Unit, device: str, folder: Path) -> dict:
    from ttrc.tools import bench as tool
    from ttrc.tools import bench_report as report

    shapes = _shapes(dict(unit.options).get("shapes", "registry"))
    made = tool.bench(
        [_path(unit.spec)], shapes=shapes if device != "cpu" else tool.TOY[1:], device=device, budget_ms=200.0
    )
    report.write(made, folder / "plots", unit.key)
    means = {f"{side} {which}": round(m, 3) for (_, side, which), m in report.geometric_means(made).items()}
    mine = [r for r in made.rows if r.side == tool.OURS]
    line = ", ".join(f"{m:.2f} x {name}" for name, m in means.items()) or "no peer"
    left = sorted({str(s) for s in shapes} - {str(r.shape) for r in mine}) if device != "cpu" else []
    line += f", no memory for {', '.join(left)}" if left else ""
    tuned = {" ".join(map(str, key)): row for key, row in load(_path(unit.spec)).package.launch.TUNED.items()}
    line += f", {len(tuned)} configurations tuned" if device != "cpu" else " (means nothing on a CPU)"
    return {
        "ok": bool(mine) and all(r.sample for r in mine),
        "line": line,
        "data": report.as_data(made),
        "means": means,
        "tuned": tuned,
    }


def _shapes(name: str):
    """ "registry-16-128" are the registry's shapes of 16 heads of width 128."""
    from ttrc.tools import bench as tool

    kind, *wanted = name.split("-")
    return [s for s in tool.SHAPES[kind] if not wanted or [str(s.heads), str(s.d_k)] == wanted]


def _profile(unit: Unit, device: str, folder: Path) -> dict:
    from bench.kernel_times import kernel_times
    from ttrc.runtime.workload import Workload

    sizes = PROFILED if device != "cpu" else ((1, 32, 1, 16),)
    data = {}
    for b, t, h, d in sizes:
        shape = Workload(b, t, h, d, d)
        data[str(shape)] = [asdict(row) for row in kernel_times(_path(unit.spec), shape, device)]
    slowest = max((row for rows in data.values() for row in rows), key=lambda r: r["ms"], default=None)
    line = (
        "nothing ran"
        if slowest is None
        else (f"slowest {slowest['kernel']}: {slowest['ms']:.3f} ms, {slowest['bandwidth'] / 1e12:.2f} TB/s")
    )
    return {"ok": slowest is not None, "line": line, "data": data}


def _path(spec: str) -> str:
    return str(ROOT / spec) if spec.endswith(".toml") else spec
