"""What calls cost the host: ttrc and fla, side by side in one run. No GPU.

    python -m bench.host [SPEC ...] [--install] [--out FILE]

Kernels of short sequences are through before a host has launched the next, so that its time is theirs. Both sides are
called with a GPU on paper (bench.paper): checks of arguments, torch's dispatch, buffers, and Triton's binding of
arguments are theirs, the driver's own launch is missing on both.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.runtime.autotuner import Autotuner

from bench.paper import paper_gpu
from bench.sides import HERE, PEER_VERSION, SIDES, Call, backward_of, inputs, peers_at_hand, side
from bench.walls import SPECS
from ttrc.runtime import arguments
from ttrc.runtime.load import load
from ttrc.sampling import as_arguments

LENGTH, WIDTH = 64, 64  # so little that what the CPU itself computes for a buffer is nothing
WARM_UP = 5  # calls: the first ones compile
COLUMNS = ("inference", "forward", "backward")


@contextmanager
def as_on_a_gpu(name: str) -> Iterator[Call]:
    """The operator that `ttrc.load` gives, its checks included; values of gates are looked at on a CPU alone."""
    op = load(name)
    with (
        mock.patch.object(op.package.op, "uses_triton", lambda backend, x: True),
        mock.patch.object(arguments, "_check_domain", lambda name, x, domain: None),
    ):
        yield lambda x: op(**as_arguments(op.spec, x), form="chunk")[0]


def microseconds(name: str, repeats: int, sides: tuple[str, ...] = SIDES) -> dict[str, dict[str, float]]:
    """Medians by side and column, calls of the sides in turn."""
    x, found = inputs(load(name).spec, LENGTH, WIDTH), defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        stack.enter_context(paper_gpu())
        stack.enter_context(mock.patch.object(Autotuner, "_bench", lambda *a, **k: 1.0))  # it takes its first
        calls = {who: stack.enter_context(as_on_a_gpu(name) if who == "ttrc" else side(name, who)) for who in sides}
        for number in range(-WARM_UP, repeats):
            for who, call in calls.items():
                for column, seconds in _timed(call, x).items():
                    found[who][column] += [1e6 * seconds] if number >= 0 else []
    return {who: {column: statistics.median(own) for column, own in rows.items()} for who, rows in found.items()}


def _timed(call: Call, x) -> dict[str, float]:
    start = time.perf_counter()
    with torch.no_grad():
        call(x)
    inferred = time.perf_counter()
    o = call(x)
    forward = time.perf_counter()
    backward_of(o, x)
    return dict(zip(COLUMNS, (inferred - start, forward - inferred, time.perf_counter() - forward)))


def page(found: dict[str, dict[str, dict[str, float]]], repeats: int) -> str:
    """By spec and side."""
    lines = [
        "# What a call costs the host",
        "",
        "Made by `python -m bench.host`; do not edit. Microseconds of the host until there is nothing left to do but",
        f"to launch, which is missing on both sides: medians of {repeats} calls in turn, in one run, of one head and",
        f"{LENGTH} tokens with d = {WIDTH}, bfloat16. Operators of `ttrc.load`, their checks included, against fla's",
        "functions. Inference is a forward pass without a graph. Ratios carry over to other hosts, times do not.",
        f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton.__version__}, "
        f"fla-core {PEER_VERSION}.",
        "",
        f"| spec | {' | '.join(f'{c}, ttrc | fla | ratio' for c in COLUMNS)} |",
        f"| --- |{' ---: |' * 3 * len(COLUMNS)}",
    ]
    for name, rows in found.items():
        cells = [name]
        for column in COLUMNS:
            ours, theirs = (rows[who][column] for who in SIDES)
            cells += [f"{ours:.0f}", f"{theirs:.0f}", f"{theirs / ours:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", default=SPECS, help="shipped specs that fla has too")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--install", action="store_true", help="fetch fla-core into a folder that goes afterwards")
    parser.add_argument("--out", type=Path, default=HERE / "HOST.md", help="the page to write")
    given = parser.parse_args(argv)
    with peers_at_hand(given.install):
        found = {name: microseconds(name, given.repeats) for name in given.specs}
    given.out.write_text(page(found, given.repeats), encoding="utf-8")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
