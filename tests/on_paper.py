"""Run by test_paper.py, in a process without Triton's interpreter: what a GPU on paper is asked to launch, as JSON."""

import json
import sys
from hashlib import sha256

import torch

from bench.paper import paper_gpu
from bench.sides import backward_of, ours
from bench.walls import kernels
from ttrc.runtime.load import load
from ttrc.runtime.workload import Workload, draw_inputs


def launches(name: str) -> list[list[tuple[str, int, str]]]:
    """(kernel, programs, binary) of a forward and a backward pass, length by length."""
    op, call, found = load(name), ours(name), []
    with paper_gpu(lambda launch: found[-1].append((launch.kernel, launch.programs, _hash(launch.binary)))):
        for batch, length in ((1, 512), (1, 1), (2, 100), (3, 1024)):
            found.append([])
            x = draw_inputs(op.spec, Workload(batch, length, 2, 64, 64), torch.bfloat16, "cpu")
            backward_of(call(x), x)
    return found


def _hash(binary: bytes) -> str:
    return sha256(binary).hexdigest()


if __name__ == "__main__":
    what, name = sys.argv[1:]
    made = (
        launches(name)
        if what == "launches"
        else {k.name: (k.instructions, k.wavefronts) for k in kernels(name, "ttrc")}
    )
    print(json.dumps(made))
