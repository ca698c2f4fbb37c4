"""Run by test_wavefronts.py, in a process without Triton's interpreter: a kernel compiled with so many registers a
thread at most, where all are wanted, as JSON."""

import json
import sys
import tempfile
from dataclasses import asdict
from importlib import util
from pathlib import Path
from unittest import mock

import triton

from ttrc.backends.triton.signature import signature
from ttrc.compiler import analyse
from ttrc.emit import emit
from ttrc.runtime.load import load
from ttrc.tools.binary import compile_here


def capped(spec: str, kernel: str, width: int, registers: int) -> dict:
    module, compile_freely = analyse(load(spec).spec), triton.compile
    plan = module.forms["chunk"].plan
    s = signature(next(k for k in plan.kernels if k.name == kernel), plan, d_k=width, d_v=width, dtype="bf16")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.py"
        path.write_text(emit(module)["kernels.py"], encoding="utf-8")
        found = util.spec_from_file_location("kernels", path)
        sys.modules["kernels"] = kernels = util.module_from_spec(found)
        found.loader.exec_module(kernels)

        def compile_capped(*args, options, **named):
            return compile_freely(*args, options=options | {"maxnreg": registers}, **named)

        with mock.patch.object(triton, "compile", compile_capped):
            launched = ("sm_90", s.config.warps, s.config.stages, s.divisible)
            return asdict(compile_here(getattr(kernels, kernel), s.types, s.constants, *launched))


if __name__ == "__main__":
    spec, kernel, width, registers = sys.argv[1:]
    print(json.dumps(capped(spec, kernel, int(width), int(registers))))
