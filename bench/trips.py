"""How often each line of a side's kernels runs, counted in Triton's interpreter; `bench.walls` weighs binaries with it.

python -m bench.trips SPEC ttrc|fla LENGTH WIDTH OUT.json
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from contextlib import ExitStack
from functools import cache, partialmethod
from pathlib import Path
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

import numpy  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402
from triton.runtime import interpreter  # noqa: E402
from triton.runtime.autotuner import Autotuner  # noqa: E402

from bench.interpret import interpretable  # noqa: E402
from bench.paper import paper_gpu  # noqa: E402
from bench.sides import backward_of, by_loops, inputs, side  # noqa: E402
from ttrc.runtime.load import load  # noqa: E402
from ttrc.tools.counter import count  # noqa: E402

LIBRARIES = tuple(f"{Path(m.__file__).parent}{os.sep}" for m in (triton, numpy, torch, os))
RUN, PLACE = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder.set_grid_idx


class Lines:
    """Executions of each line, "file:line", and programs, by pass, kernel and configuration."""

    def __init__(self) -> None:
        self.lines: dict[str, Counter] = defaultdict(Counter)
        self.programs: Counter = Counter()
        self.which, self._choice, self._key = "", "", ""

    def run(self, executor, *args, **kwargs):
        """In the place of GridExecutor.__call__."""
        self._key = " ".join([self.which, executor.fn.__name__, self._choice])
        sys.settrace(self._enter)
        try:
            return RUN(executor, *args, **kwargs)
        finally:
            sys.settrace(None)

    def place(self, builder, *grid):
        """In the place of InterpreterBuilder.set_grid_idx, which begins a program."""
        self.programs[self._key] += 1
        return PLACE(builder, *grid)

    def tune(self, tuner: Autotuner, *args, **kwargs):
        """In the place of Autotuner.run: of configurations with the same loops one."""
        tuner.nargs = dict(zip(tuner.arg_names, args))
        for self._choice, (config, *_) in by_loops(tuner.prune_configs(kwargs)).items():
            result = tuner.fn.run(*args, **kwargs, **config.all_kwargs())
        self._choice = ""
        return result

    def _enter(self, frame, event, _arg):
        return self._step if _is_a_kernels(frame.f_code.co_filename) else None

    def _step(self, frame, event, _arg):
        if event == "line":
            self.lines[self._key][f"{frame.f_code.co_filename}:{frame.f_lineno}"] += 1
        return self._step


@cache
def _is_a_kernels(file: str) -> bool:
    return file.endswith(".py") and not file.startswith(LIBRARIES)


def _call(instance, method, *args, **kwargs):
    return method(instance, *args, **kwargs)


def main(name: str, who: str, length: int, width: int, out: str) -> None:
    found, tallies, moved = Lines(), {}, {}
    x = inputs(load(name).spec, length, width)
    replaced = (
        (interpreter.GridExecutor, "__call__", found.run),
        (interpreter.InterpreterBuilder, "set_grid_idx", found.place),
        (Autotuner, "run", found.tune),
    )
    with ExitStack() as told:
        told.enter_context(paper_gpu())
        told.enter_context(interpretable())
        call = told.enter_context(side(name, who))
        with count() as tallies["forward"]:
            o = call(x)
        with count() as tallies["backward"]:
            backward_of(o, x)
        for owner, method, by in replaced:
            told.enter_context(mock.patch.object(owner, method, partialmethod(_call, by)))
        found.which = "forward"
        o = call(x)
        found.which = "backward"
        backward_of(o, x)
    for which, tally in tallies.items():
        touched = {k.name: k.distinct_load_bytes + k.distinct_store_bytes for k in tally.kernels.values()}
        moved[which] = {kernel: n / length for kernel, n in touched.items()}
    Path(out).write_text(json.dumps({"lines": found.lines, "programs": found.programs, "bytes": moved}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
