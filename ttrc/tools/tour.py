"""`ttrc demo`: one spec from its text to a trained layer, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from rich.console import Console
from rich.progress import track
from rich.syntax import Syntax

from ttrc.compiler import analyse
from ttrc.errors import CheckFailed
from ttrc.language.spec import Spec
from ttrc.runtime.load import load
from ttrc.tools import check, compile
from ttrc.tools.classify import headline
from ttrc.tools.demo import associative_recall
from ttrc.tools.explain import derivation
from ttrc.tools.explain_page import explain_page


def tour(spec: Spec, against: Optional[Spec], steps: int, folder: Path, console: Console) -> None:
    """Prints each stage; writes FOLDER/NAME.html and FOLDER/recall.png. Raises CheckFailed where a stage fails."""
    folder.mkdir(parents=True, exist_ok=True)
    console.rule("the spec")
    console.print(Syntax(spec.source.text.strip(), "toml", background_color="default", word_wrap=True))
    console.rule("what it means")
    module = analyse(spec)
    console.print(derivation(module))
    console.print(f"{headline(module)}; every stage: `ttrc explain {spec.name}`", markup=False)
    page = folder / f"{spec.name}.html"
    page.write_text(explain_page(spec), encoding="utf-8")
    console.print(f"[dim]{page}[/dim]")
    console.rule("verified against the oracle: the mathematics, in float64")
    _verify(spec, console)
    console.rule("compiled for a GPU that is not here")
    rows = compile.compile_specs([spec], targets=("sm_90",), widths=(128,))
    console.print(compile.as_table(rows))
    console.rule("trained on the CPU")
    names = {s.name: s for s in (spec, against) if s is not None}
    associative_recall(tuple(names), steps, folder, load=lambda name: load(names[name]), console=console)
    console.print("[dim]more rules, on noisy keys and values: docs/recall.md, by `python -m bench.recall`[/dim]")


def _verify(spec: Spec, console: Console) -> None:
    op = load(spec)
    rungs = len(check.plan(op, "cpu", "float64"))
    compared = check.run(op, dtype="float64")
    checks = list(track(compared, "checking", total=rungs, console=console, transient=True))
    console.print(check.as_table(checks))
    if not all(c.passed for c in checks):
        raise CheckFailed("the kernels miss the oracle; see the table")
