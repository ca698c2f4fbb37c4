"""Run by test_paper.py, in a process without Triton's interpreter: what a GPU on paper is asked to launch, as JSON."""

import json
import os
import sys
import tempfile
import threading
from hashlib import sha256
from pathlib import Path
from unittest import mock

import torch
from triton import knobs

from bench.paper import paper_gpu
from bench.sides import backward_of, ours
from bench.walls import kernels
from ttrc.backends.triton.signature import signature
from ttrc.compiler import analyse
from ttrc.runtime.ahead import compile_ahead
from ttrc.runtime.load import load
from ttrc.runtime.tuner import tunable
from ttrc.runtime.workload import Workload, draw_inputs
from ttrc.sampling import as_arguments
from ttrc.tools import tune


def launches(name: str) -> list[list[tuple[str, int, str]]]:
    """(kernel, programs, binary) of a forward and a backward pass, length by length."""
    op, call, found = load(name), ours(name), []
    with paper_gpu(lambda launch: found[-1].append((launch.kernel, launch.programs, _hash(launch.binary)))):
        for batch, length in ((1, 512), (1, 1), (2, 100), (3, 1024)):
            found.append([])
            x = draw_inputs(op.spec, Workload(batch, length, 2, 64, 64), torch.bfloat16, "cpu")
            backward_of(call(x), x)
    return found


def registers(name: str) -> list[tuple[str, int, int | None]]:
    """(kernel, warps, registers a thread is given) of a forward and a backward pass, token by token."""
    op, found = load(name), []
    x = draw_inputs(op.spec, Workload(1, 40, 2, 64, 64), torch.bfloat16, "cpu")
    call = getattr(op.package, op.spec.name)  # an operator asks for a GPU that is there
    with paper_gpu(lambda launch: found.append((launch.kernel, launch.metadata.num_warps, launch.metadata.maxnreg))):
        backward_of(call(**as_arguments(op.spec, x), form="recurrent", backend="triton")[0], x)
    return found


def compiled_late(name: str) -> list[int]:
    """How many kernels compile outside of a rehearsal's threads in its time; where they are launched behind it; and
    where there was none."""
    op, late = load(name), []
    x = draw_inputs(op.spec, Workload(1, 512, 2, 64, 64), torch.bfloat16, "cpu")
    knobs.compilation.listener = lambda **_: late.append(threading.current_thread().name)

    def work(schedule: str = "split") -> None:
        backward_of(ours(name, schedule)(x), x)

    def elsewhere() -> None:  # as on a GPU, where the backward pass has a thread of its own
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    found, launched = [], []
    with paper_gpu(launched.append):
        compile_ahead(elsewhere, "cuda", 2)
        assert not launched and late
        found.append(sum("ThreadPool" not in name for name in late))
        for schedule in ("split", "segments"):
            late.clear()
            work(schedule)
            found.append(len(late))
    return found


def candidates(name: str) -> list[list[str]]:
    """Of which kernels a tuner compiles its candidates; and which still compile where one of these is launched."""
    op, found = load(name), []
    plan = analyse(op.spec).forms["chunk"].plan
    x = draw_inputs(op.spec, Workload(1, 512, 16, 64, 64), torch.bfloat16, "cpu")
    with tempfile.TemporaryDirectory() as knobs.cache.dir, paper_gpu():
        os.environ["TRITON_CACHE_DIR"] = knobs.cache.dir  # of the processes that compile candidates
        left = [k for k, schedules in tunable(plan, "many")]
        default = {k.name: signature(k, plan, d_k=64, d_v=64, dtype="bf16").config for k in left}
        with mock.patch.object(tune, "space_of", lambda takes, width: list(dict.fromkeys(default.values()))):
            tune.footprints(op, {"chunk": left}, 64, "bf16", "cuda")
        found.append(binaries := sorted(Path(knobs.cache.dir).glob("*/*.cubin")))
        backward_of(ours(name, plan.schedules[0].name)(x), x)
        found.append([x for x in Path(knobs.cache.dir).glob("*/*.cubin") if x not in binaries])
    return [sorted({x.stem for x in paths}) for paths in found]


def _hash(binary: bytes) -> str:
    return sha256(binary).hexdigest()


if __name__ == "__main__":
    what, name = sys.argv[1:]
    doing = {
        "launches": launches,
        "candidates": candidates,
        "late": compiled_late,
        "registers": registers,
        "instructions": lambda name: {k.name: (k.instructions, k.wavefronts) for k in kernels(name, "ttrc")},
    }
    print(json.dumps(doing[what](name)))
