"""A benchmark as a table, as JSON and as plots."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from ttrc.tools.bench import OURS, Bench, Row

CPU_WARNING = "no GPU: everything ran at toy sizes in float32, and the times mean nothing"


def as_table(run: Bench) -> Table:
    roof = (
        f"measured roof: copy {run.roof.bandwidth / 1e12:.2f} TB/s, bf16 product {run.roof.matmul / 1e12:.0f} TFLOP/s"
    )
    caption = "\n".join(
        [
            roof if "no GPU" not in run.device["device"] else CPU_WARNING,
            "x: time over ttrc's. % wall: share that the plan's binding wall alone would take; % least: that the least "
            "possible traffic would. error: the worst of outputs and gradients, against the oracle | a float32 run.",
            *(f"not there: {reason}" for reason in run.absent),
        ]
    )
    table = Table(
        title=f"{run.device['device']}, torch {run.device['torch']}, triton {run.device['triton']}", caption=caption
    )
    for column in ("spec", "B x T x H x d", "pass", "side"):
        table.add_column(column)
    for column in ("ms", "x", "% wall", "% least", "GiB", "error"):
        table.add_column(column, justify="right")
    table.add_column("notes", max_width=60, overflow="fold")
    for row in run.rows:
        table.add_row(*_cells(row), style=None if row.sample else "red")
    return table


def _cells(row: Row) -> tuple[str, ...]:
    share = "" if row.of_wall is None else f"{100 * row.of_wall:.0f} {row.wall}"
    return (
        row.spec,
        str(row.shape),
        {"forward": "fwd", "both": "fwd+bwd"}[row.which],
        row.side,
        "-" if row.sample is None else f"{row.sample.ms:.3f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        share,
        "" if row.of_least is None else f"{100 * row.of_least:.0f}",
        "" if row.peak is None else f"{row.peak / 2**30:.2f}",
        f"{_worst(row.small)} | {_worst(row.large)}",
        "; ".join(row.notes),
    )


def _worst(errors) -> str:
    if isinstance(errors, str):
        return "failed"
    if not errors:
        return "-"
    worst = max(errors.values(), key=lambda e: math.inf if math.isnan(e) else e)
    return f"{worst:.0e}"


def as_data(run: Bench) -> dict:
    return {
        "device": run.device,
        "roof": asdict(run.roof),
        "absent": list(run.absent),
        "rows": [asdict(r) for r in run.rows],
    }


def geometric_means(run: Bench) -> dict[tuple[str, str, str], float]:
    """{(spec, side, pass): mean over the shapes of its time over ttrc's}."""
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for row in run.rows:
        if row.side != OURS and row.ratio is not None:
            ratios.setdefault((row.spec, row.side, row.which), []).append(row.ratio)
    return {key: math.exp(sum(map(math.log, seen)) / len(seen)) for key, seen in ratios.items()}


def write(run: Bench, folder: Path, name: str = "bench") -> list[Path]:
    """FOLDER/NAME.json and one plot a spec and kind of comparison; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.json"
    data.write_text(json.dumps(as_data(run), indent=1), encoding="utf-8")
    return [data, *plots(run, folder, name)]


def plots(run: Bench, folder: Path, name: str) -> list[Path]:
    """Times against the length, or against heads, where a run walked along one of them; else bars by shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    for spec in dict.fromkeys(row.spec for row in run.rows):
        rows = [r for r in run.rows if r.spec == spec and r.sample is not None]
        passes = list(dict.fromkeys(r.which for r in rows))
        if not rows:
            continue
        figure, axes = pyplot.subplots(
            1, len(passes), figsize=(5.5 * len(passes), 4), squeeze=False, layout="constrained"
        )
        for panel, which in zip(axes[0], passes, strict=True):
            _panel(panel, [r for r in rows if r.which == which])
            panel.set_title(f"{spec}, {'forward' if which == 'forward' else 'forward + backward'}")
        figure.suptitle(run.device["device"])
        path = folder / f"{name}-{spec}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        made.append(path)
    return made


def _panel(panel, rows: list[Row]) -> None:
    along, label = _axis(rows)
    for side in dict.fromkeys(r.side for r in rows):
        seen = [r for r in rows if r.side == side]
        panel.plot(
            [along(r) for r in seen],
            [r.sample.ms for r in seen],
            marker="o",
            label=side,
            linewidth=2 if side == OURS else 1,
            linestyle="-" if label else "",
        )
    panel.set_yscale("log")
    panel.set_ylabel("ms")
    if label:
        panel.set_xscale("log", base=2)
        panel.set_xlabel(label)
    else:
        panel.tick_params("x", labelrotation=30)
    panel.legend()


def _axis(rows: list[Row]):
    """What the shapes differ in alone: the length, or batch times heads; else the shape itself."""
    lengths = {r.shape.length for r in rows}
    others = {(r.shape.batch * r.shape.heads, r.shape.d_k) for r in rows}
    if len(lengths) > 1 and len(others) == 1:
        return lambda r: r.shape.length, "tokens"
    if len(lengths) == 1 and len({d for _, d in others}) == 1 and len(others) > 1:
        return lambda r: r.shape.batch * r.shape.heads, "batch x heads"
    return lambda r: str(r.shape), ""
