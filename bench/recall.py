"""Associative recall while outliers hit what a memory stores: rules side by side, on the CPU.

Each rule is trained without outliers, with outliers on values and with outliers on keys, a few seeds each, and is then
asked at several shares of hit statements (ttrc/tools/recall.py says what a hit is). Writes results/recall.json,
docs/recall.svg and the table in docs/recall.md. Rules that are named are trained, and join those in the results.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import torch

from ttrc.language.load import load_spec
from ttrc.runtime.load import find_spec, load
from ttrc.tools.recall import Task, Training, accuracy, held_out, learn, new_model

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "recall.json"
DOCS = HERE.parent / "docs"
MARKS = ("<!-- made by bench.recall -->\n", "<!-- until here -->\n")

RULES = (
    "linear_attention",
    "gated_deltanet",
    "momentum_deltanet",
    "huber_delta",
    "robust_delta",
    "lp_delta",
    "titans_linear",
    "moneta_linear",
    "memora_linear",
    "ttt_linear",
    "ttt_mlp",
    "titans",
    "yaad",
    "moneta",
    "memora",
)
PLACES = ("value", "key")  # where outliers hit
SHARES = (0.0, 0.1, 0.2, 0.4)  # of the statements, when a model is asked
LEARNED_AT = 0.2  # the share in training


@dataclass(frozen=True)
class Setting:
    """What all rules share; results of another setting are not kept beside these."""

    task: Task = Task(vocabulary=32, pairs=8, rebound=0, repeats=3, noise=0.1)
    training: Training = Training(channels=16, batch=16, gradient_norm=1.0)
    steps: int = 600
    asked: int = 256  # sequences


@dataclass(frozen=True)
class Run:
    """One model to train: place is where outliers hit in training, None for nowhere."""

    spec: str  # a shipped name or a path
    place: str | None
    seed: int


def answer(run: Run, setting: Setting) -> dict:
    """Trains one model: its accuracy by place and share."""
    torch.set_num_threads(1)
    training = replace(setting.training, seed=run.seed)
    task = disturbed(setting.task, run.place, LEARNED_AT)
    op = load(run.spec)
    model = new_model(op, task, training)
    for _ in learn(model, setting.steps, task, training):
        pass
    found = [
        {
            "place": place,
            "share": share,
            "accuracy": round(accuracy(model, *held_out(asked, setting.asked, training)), 4),
        }
        for place, share in product(PLACES, SHARES)
        for asked in [disturbed(setting.task, place, share)]
    ]
    return {"rule": op.spec.name, "place": run.place, "seed": run.seed, "asked": found}


def disturbed(task: Task, place: str | None, share: float) -> Task:
    return task if place is None else replace(task, **{f"{place}_outliers": share})


def study(specs: Sequence[str], seeds: int, setting: Setting, jobs: int) -> Iterator[dict]:
    """The answers of every run, as they come."""
    runs = [Run(spec, place, seed) for seed, spec, place in product(range(seeds), specs, (None, *PLACES))]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(answer, run, setting) for run in runs]):
            yield done.result()


# The results ----------------------------------------------------------------------------------------------------


def head(setting: Setting) -> dict:
    return {
        "setting": {**asdict(setting), "learned_at": LEARNED_AT},
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "device": "cpu",
    }


def kept(path: Path, setting: Setting, rules: Sequence[str]) -> list[dict]:
    """The runs of other rules in a file of results, where it has the same setting and versions."""
    if not path.exists():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    same = {name: old[name] for name in head(setting)} == json.loads(json.dumps(head(setting)))
    return [run for run in old["runs"] if run["rule"] not in rules] if same else []


def text(runs: Sequence[dict], setting: Setting) -> str:
    """The file of results: a run a line."""
    ordered = sorted(runs, key=lambda run: (run["rule"], run["place"] or "", run["seed"]))
    lines = ",\n".join(f"    {json.dumps(run)}" for run in ordered)
    return json.dumps(head(setting), indent=2)[:-2] + f',\n  "runs": [\n{lines}\n  ]\n}}\n'


def shares(runs: Sequence[dict], rule: str, place: str, learned: bool) -> list[list[float]]:
    """By share of hit statements, the accuracy of each seed."""
    chosen = [run for run in runs if run["rule"] == rule and run["place"] == (place if learned else None)]
    return [
        [a["accuracy"] for run in chosen for a in run["asked"] if (a["place"], a["share"]) == (place, share)]
        for share in SHARES
    ]


# The page -------------------------------------------------------------------------------------------------------


def in_order(runs: Sequence[dict]) -> list[str]:
    """The rules that have runs: ours as listed, then others."""
    present = {run["rule"] for run in runs}
    return [rule for rule in RULES if rule in present] + sorted(present.difference(RULES))


def panels() -> list[tuple[str, bool, str]]:
    """(place, whether training had outliers, title)."""
    told = {False: "none in training", True: f"{LEARNED_AT:.0%} in training"}
    return [(place, learned, f"{place} outliers, {told[learned]}") for place in PLACES for learned in (False, True)]


def table(runs: Sequence[dict]) -> str:
    lines = []
    for place, learned, title in panels():
        lines += [f"{title[0].upper()}{title[1:]}:", ""]
        lines.append("| rule | " + " | ".join(f"{share:.0%} hit" for share in SHARES) + " |")
        lines.append("| --- |" + " ---: |" * len(SHARES))
        for rule in in_order(runs):
            cells = (f"{mean(s):.0%} ({min(s):.0%} to {max(s):.0%})" for s in shares(runs, rule, place, learned))
            lines.append(f"| {rule} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def in_page(page: str, runs: Sequence[dict]) -> str:
    """The page with these figures between its marks."""
    before, rest = page.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return before + MARKS[0] + table(runs) + MARKS[1] + after


def plot(runs: Sequence[dict], setting: Setting, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "ttrc"  # the same runs give the same file
    figure, grid = pyplot.subplots(2, 2, figsize=(9, 6.5), sharex=True, sharey=True, layout="constrained")
    colours = matplotlib.colormaps["tab20"].colors
    for axes, (place, learned, title) in zip(grid.flat, panels()):
        for i, rule in enumerate(in_order(runs)):
            found = shares(runs, rule, place, learned)
            style = {"color": colours[(2 * i + i // 10) % 20], "marker": "os^vD"[i % 5], "markersize": 4}
            axes.plot(SHARES, [mean(s) for s in found], label=rule, **style)
            axes.fill_between(
                SHARES, [min(s) for s in found], [max(s) for s in found], color=style["color"], alpha=0.1, linewidth=0
            )
        axes.axhline(2 / setting.task.vocabulary, color="grey", linestyle=":", label="chance")
        axes.set(title=title, ylim=(0, 1.02))
    for axes in grid[1]:
        axes.set_xlabel("share of statements hit, when asked")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recall", description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", help=f"names or paths of specs; {', '.join(RULES)} where none is named")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=Setting.steps)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="the file of results; the page is made of the usual one"
    )
    given = parser.parse_args(argv)
    setting, specs = Setting(steps=given.steps), given.specs or RULES
    runs = kept(given.out, setting, [load_spec(find_spec(spec)).name for spec in specs])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for run in study(specs, given.seeds, setting, given.jobs):
        runs.append(run)
        given.out.write_text(text(runs, setting), encoding="utf-8")
        print(json.dumps(run), flush=True)
    if given.out == RESULTS:
        plot(runs, setting, DOCS / "recall.svg")
        page = DOCS / "recall.md"
        page.write_text(in_page(page.read_text(encoding="utf-8"), runs), encoding="utf-8")
        print(f"wrote {given.out}, {DOCS / 'recall.svg'}, {page}")


if __name__ == "__main__":
    main()
