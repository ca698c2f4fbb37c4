"""The command line: thin commands over ttrc.tools.

Exit codes: 0 ok, 1 a check failed, 2 a bad spec or bad usage. Messages go to stderr, tables and JSON to stdout.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ttrc.errors import CheckFailed, TtrcError, plain
from ttrc.ir.config import WIDEST
from ttrc.options import Dtype, Json, OneSpec, Shapes, Specs
from ttrc.tools.console import WholeConsole, print_json, progress_on

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compile 30-line specs of sequence-mixing layers to verified Triton kernels.",
)
out, err = WholeConsole(), WholeConsole(stderr=True)


def _versions(asked: bool) -> None:
    if asked:
        import torch

        from ttrc.tools.about import about

        told = about("cuda" if torch.cuda.is_available() else "cpu")
        out.print(", ".join(f"{what} {which}" for what, which in reversed(told.items())), markup=False, soft_wrap=True)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_versions, help="What is installed, and the GPU.")
    ] = False,
) -> None:
    pass


@app.command("list")
def list_specs(as_json: Json = False) -> None:
    """Shipped specs: their class, their forms, whether they are exact."""
    from ttrc.runtime.load import shipped_specs
    from ttrc.tools import catalogue as tool

    rows = tool.catalogue([_spec(str(path)) for path in shipped_specs().values()])
    print_json(tool.as_data(rows)) if as_json else out.print(tool.as_table(rows))


@app.command()
def explain(
    spec: OneSpec,
    html: Annotated[Optional[Path], typer.Option(help="Write one self-contained page here.")] = None,
    svg: Annotated[Optional[Path], typer.Option(help="Write the drawing of its kernels here.")] = None,
    as_json: Json = False,
) -> None:
    """Every stage of a compilation with its mathematics: class, tile programs, adjoint, plan, budget."""
    from ttrc.tools.explain import as_data
    from ttrc.tools.explain import explain as show
    from ttrc.tools.explain_page import drawing, explain_page

    parsed = _spec(spec)
    files = [(path, make) for path, make in ((html, explain_page), (svg, drawing)) if path is not None]
    for path, make in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(parsed), encoding="utf-8")
        err.print(f"wrote {path}")
    if files:
        return
    if as_json:
        print_json(as_data(parsed))
    else:
        show(parsed, out)


@app.command()
def generate(
    specs: Annotated[
        Optional[list[str]], typer.Argument(metavar="[SPEC...]", help="Default: all shipped specs.")
    ] = None,
    folder: Annotated[Optional[Path], typer.Option("--out", help="Where to write NAME/. Default: generated/.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 with a diff where stale.")] = False,
) -> None:
    """Write generated/NAME/ for each spec, or check that it is current; shipped ones go where these lie."""
    from ttrc.runtime.load import shipped_specs
    from ttrc.tools.generate import compare_all, place_of, publish

    paths = [_path(s) for s in specs or map(str, shipped_specs().values())]
    parsed = [_spec(str(path)) for path in paths]
    outcomes = compare_all(parsed, folder or place_of(paths))
    if not check:
        for outcome in outcomes:
            publish(outcome)
            out.print(f"{outcome.folder}: " + (f"wrote {', '.join(outcome.stale)}" if outcome.stale else "unchanged"))
        _tell_slow(parsed)
        return
    sys.stdout.write("".join(outcome.diff for outcome in outcomes))
    stale = [outcome.folder.name for outcome in outcomes if outcome.stale]
    if stale:
        raise CheckFailed(f"stale: {', '.join(stale)}; run `ttrc generate` and commit what it writes")


@app.command()
def check(
    specs: Specs,
    device: Annotated[str, typer.Option(help="cpu (Triton's interpreter) or cuda.")] = "cpu",
    dtype: Annotated[Optional[str], typer.Option(help="Only this one: float64, float32, float16 or bfloat16.")] = None,
    as_json: Json = False,
) -> None:
    """Verify kernels against the oracle: outputs, final states and every gradient.

    On a GPU this also says what its Triton is known to miscompile there, and whether these kernels are hit.
    """
    _interpret(device)
    from ttrc.runtime.load import load
    from ttrc.tools import check as tool

    _device(device)
    ops = [load(_spec(s)) for s in specs]
    total = sum(len(tool.plan(op, device, dtype)) for op in ops)
    checks = []
    with progress_on(err) as progress:
        bar = progress.add_task("checking", total=total)
        for op in ops:
            for done in tool.run(op, device, dtype):
                checks.append(done)
                progress.update(bar, advance=1, description=f"{done.spec} {done.form} {done.backend}")
    print_json(tool.as_data(checks)) if as_json else out.print(tool.as_table(checks))
    _tell_slow(op.spec for op in ops)
    failed = [c for c in checks if not c.passed]
    if device != "cpu":
        for line in tool.known_faults(checks, device):
            _note(line)
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(checks)} comparisons miss their bound")


@app.command("compile")
def compile_(
    specs: Specs,
    target: Annotated[Optional[list[str]], typer.Option(help="sm_80, sm_90, sm_100, gfx942; all by default.")] = None,
    width: Annotated[
        Optional[list[int]], typer.Option(min=1, max=WIDEST, help="Head dimensions; 64, 128 and 256 by default.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of q, k and v.")] = Dtype.BF16,
    shape: Annotated[
        Optional[str],
        typer.Option(metavar="B,T,HV,d", help="Predict times at this shape too: batch, tokens, heads, head dimension."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile every kernel for GPUs that are not here: registers, spills, shared memory, matrix instructions."""
    from ttrc.tools import compile as tool
    from ttrc.tools import predict

    targets, widths = tuple(target or tool.TARGETS), tuple(width or tool.WIDTHS)
    if shape is not None:
        predict.refuse(target or (), width or (), dtype.value)
        at = predict.parse_shape(shape)
        targets, widths = tuple(target or predict.TARGETS), (at.d_k,)
    parsed = [_spec(s) for s in specs]
    with progress_on(err) as progress:
        bar = progress.add_task("compiling", total=None)
        rows = tool.compile_specs(
            parsed, targets=targets, widths=widths, dtype=dtype.value, on_done=lambda: progress.advance(bar)
        )
    if shape is None:
        print_json(tool.as_data(rows)) if as_json else out.print(tool.as_table(rows))
    else:
        told = predict.predict(rows, at, dtype.value)
        if as_json:
            print_json({"kernels": tool.as_data(rows), "predicted": predict.as_data(told, at)})
        else:
            out.print(tool.as_table(rows), predict.as_table(told, at))
    _tell_slow(parsed)
    problems = [f"{r.spec} {r.kernel} d={r.width} {r.target}: {r.problem}" for r in rows if r.problem]
    if problems:
        raise CheckFailed("\n".join(problems))


@app.command()
def tune(
    specs: Specs,
    width: Annotated[
        Optional[list[int]], typer.Option(min=1, max=WIDEST, help="Head dimensions; 128 by default.")
    ] = None,
    dtype: Annotated[Optional[list[Dtype]], typer.Option(help="Of q, k and v; bf16 by default.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Tune once more what this chip's file has already.")] = False,
    ship: Annotated[bool, typer.Option("--ship", help="Copy this chip's file into ttrc/tuned/.")] = False,
    report: Annotated[Optional[Path], typer.Option(help="Write every trial, rejections too, as JSON here.")] = None,
    as_json: Json = False,
) -> None:
    """On a GPU: verify each candidate configuration, time those that are right, keep the best."""
    from ttrc.tools import tune as tool

    _device("cuda")
    with progress_on(err) as progress:
        bar = progress.add_task("tuning", total=None)

        def told(name, trial) -> None:
            progress.update(bar, advance=1, description=f"{name} {trial.key.kernel}")

        reports = tool.tune(
            [_path(s) for s in specs],
            widths=tuple(width or (128,)),
            dtypes=tuple(d.value for d in dtype or (Dtype.BF16,)),
            again=again,
            on_trial=told,
        )
    if report is not None:
        tool.write(reports, report)
    if ship:
        tool.ship()
    print_json(tool.as_data(reports)) if as_json else out.print(tool.as_table(reports))
    for line in tool.rejections(reports):
        err.print(line, markup=False, highlight=False)


@app.command()
def bench(
    specs: Specs,
    against: Annotated[Optional[list[str]], typer.Option(help="Only peers of these names.")] = None,
    peers: Annotated[
        Optional[Path], typer.Option(help="A peers file; bench/peers.py of a checkout by default.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of q, k and v.")] = Dtype.BF16,
    shapes: Annotated[
        Shapes, typer.Option(help="The field's registry of shapes, or along the length, or along batch times heads.")
    ] = Shapes.REGISTRY,
    device: Annotated[Optional[str], typer.Option(help="cuda where there is one; cpu runs toy sizes.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where JSON and plots go.")] = Path("out/bench"),
    as_json: Json = False,
) -> None:
    """Forward and forward + backward beside other implementations, in one run, each checked against the oracle."""
    if device == "cpu":
        _interpret(device)
    import torch

    from ttrc.tools import bench as tool
    from ttrc.tools import bench_report

    if device is not None:
        _device(device)
    on_gpu = device != "cpu" and torch.cuda.is_available()
    with progress_on(err) as progress:
        bar = progress.add_task("timing", total=None)
        done = tool.bench(
            [_path(s) for s in specs],
            shapes=tool.SHAPES[shapes.value] if on_gpu else None,
            dtype=dtype.value,
            device=device,
            peers=peers,
            against=tuple(against or ()),
            on_done=lambda what: progress.update(bar, advance=1, description=what),
        )
    bench_report.write(done, folder)
    print_json(bench_report.as_data(done)) if as_json else out.print(bench_report.as_table(done))


@app.command()
def schema() -> None:
    """The JSON schema of specs, for editors."""
    from ttrc.language.schema import json_schema

    print_json(json_schema())


@app.command()
def demo(
    spec: OneSpec,
    against: Annotated[Optional[str], typer.Option(help="A spec to train beside it.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 300,
    folder: Annotated[Path, typer.Option("--out", help="Where the page and the plot go.")] = Path("out/demo"),
) -> None:
    """One spec end to end: its text, derivation, verification, offline table, and training on the CPU."""
    from ttrc.tools.tour import tour

    tour(_spec(spec), None if against is None else _spec(against), steps, folder, out)


def main() -> None:
    """The entry point: turns ttrc's own errors, and files that cannot be had, into one message and an exit code."""
    try:
        app(standalone_mode=True)
    except TtrcError as error:
        _complain(str(error))
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
    except OSError as error:
        _complain(": ".join(plain(part) for part in (error.filename, error.strerror or error) if part is not None))
        raise SystemExit(TtrcError.exit_code) from None


def _complain(message: str) -> None:
    err.print(message, style="red", markup=False, highlight=False, soft_wrap=True)


def _path(name: str) -> Path:
    from ttrc.runtime.load import find_spec

    return find_spec(name)


def _spec(name: str):
    from ttrc.language.load import load_spec

    return load_spec(_path(name))


def _interpret(device: str) -> None:
    """Triton decides at import whether it interprets."""
    if device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _device(device: str) -> None:
    import torch

    if device not in ("cpu", "cuda"):
        raise TtrcError(f"--device: got {device!r}, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise TtrcError("--device cuda: torch sees no GPU here; TRITON_INTERPRET=1 runs kernels on the CPU")


def _tell_slow(specs) -> None:
    """Nobody should find out on a GPU that a rule has no chunk form."""
    from ttrc.tools.reasons import why_by_token

    for spec in specs:
        if why := why_by_token(spec):
            _note(f"{spec.name} runs token by token: {why}")


def _note(line: str) -> None:
    err.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
