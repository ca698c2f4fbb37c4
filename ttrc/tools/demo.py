"""Trains generated operators on associative recall (`recall`) and compares them: progress, a table, a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ttrc.runtime.load import load as load_operator
from ttrc.tools.console import WholeConsole
from ttrc.tools.recall import Task, Training, train


def associative_recall(
    specs: Sequence[str],
    steps: int = 300,
    out: str | Path = "out/demo",
    *,
    task: Task = Task(),
    training: Training = Training(),
    load: Callable = load_operator,
    console: Console | None = None,
) -> dict[str, list[float]]:
    """{spec: accuracy over training}: trains one model a spec, prints a table and writes OUT/recall.png.

    Each model starts from the same numbers and sees the same sequences; load(name) gives its operator.
    """
    console = console or WholeConsole()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("accuracy {task.fields[accuracy]:.0%}"),
    )
    curves: dict[str, dict[int, float]] = {name: {} for name in specs}
    with Progress(*columns, console=console) as progress:
        bars = {name: progress.add_task(name, total=steps, accuracy=0.0, start=False) for name in specs}
        for name in specs:
            progress.start_task(bars[name])
            for step, share in train(load(name), steps, task, training):
                curves[name][step] = share
                progress.update(bars[name], completed=step, accuracy=share)
    console.print(_table(curves, task))
    console.print(f"[dim]{_plot(curves, task, Path(out) / 'recall.png')}[/dim]")
    return {name: list(curve.values()) for name, curve in curves.items()}


def _table(curves: dict[str, dict[int, float]], task: Task) -> Table:
    table = Table(title_justify="left", title=f"recall of {_describe(task)}")
    table.add_column("step", justify="right")
    for name in curves:
        table.add_column(name, justify="right")
    steps = list(next(iter(curves.values())))
    shown = sorted({steps[round(i * (len(steps) - 1) / 6)] for i in range(7)})
    for step in shown:
        table.add_row(str(step), *(f"{curve[step]:.1%}" for curve in curves.values()))
    return table


def _describe(task: Task) -> str:
    rebound = f", {task.rebound} of them rebinding a key" if task.rebound else ""
    repeats = f", stated {task.repeats} times" if task.repeats > 1 else ""
    noise = f", noise {task.noise:g}" if task.noise else ""
    hits = {"values": task.value_outliers, "keys": task.key_outliers}
    outliers = "".join(f", outliers on {share:.0%} of the {place}" for place, share in hits.items() if share)
    return f"{task.pairs} pairs{rebound}{repeats}{noise}{outliers}"


def _plot(curves: dict[str, dict[int, float]], task: Task, path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), label=name)
    axes.axhline(2 / task.vocabulary, color="grey", linestyle=":", label="chance")
    axes.set(
        xlabel="training step",
        ylabel="accuracy",
        ylim=(0, 1.02),
        title=f"multi-query associative recall: {_describe(task)}",
    )
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
