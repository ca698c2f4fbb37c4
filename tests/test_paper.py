"""A GPU on paper: operators bind and compile what they launch, as on a GPU; and binaries are counted as they run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ttrc.ir.config import plain_name
from ttrc.runtime.load import load
from ttrc.runtime.workload import Workload
from ttrc.tools.compile import compile_specs
from ttrc.tools.predict import predict
from ttrc.tools.resources import CHIPS, PARTS

HERE = Path(__file__).resolve().parent


def on_paper(what, name):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    paths = os.pathsep.join([str(HERE.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / "on_paper.py", what, name],
        env=environment | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name, least", [("gated_deltanet", 3), ("forgetting_attention", 3), ("min_gru", 2)])
def test_new_lengths_and_batches_launch_the_same_binaries(name, least):
    """From one token on: a training step never waits for a compiler because its sequences are of another length."""
    first, *others = on_paper("launches", name)
    assert len(first) >= least
    for other in others:
        assert [(kernel, binary) for kernel, _, binary in other] == [(kernel, binary) for kernel, _, binary in first]
    assert [n for _, n, _ in others[-1]] > [n for _, n, _ in first]


@pytest.mark.parametrize("name, told", [("ttt_mlp", 255), ("ttt_linear", None)])
def test_programs_that_hold_weights_of_several_layers_ask_for_registers(name, told):
    launched = on_paper("registers", name)
    assert [(warps, registers) for _, warps, registers in launched] == [(8, told)] * 2


def test_what_was_rehearsed_is_not_compiled_where_it_is_launched():
    elsewhere, rehearsed, new = on_paper("late", "linear_attention")
    assert elsewhere == rehearsed == 0 < new


@pytest.mark.parametrize("name", ["gated_deltanet", "mamba", "ttt_mlp"])
def test_what_a_tuner_compiles_is_what_it_launches(name):
    """A candidate is compiled once, for its resources and to be tried: a GPU's time is not spent on compilers."""
    compiled, anew = on_paper("candidates", name)
    assert len(compiled) >= 2 and not anew


def test_two_counts_of_instructions_and_wavefronts_agree():
    """Loops as often as the interpreter saw their lines run; and as often as the plan's budget says."""
    shape, target, part = Workload(1, 256, 1, 128, 128), "sm_90", "H100 SXM"
    counted = on_paper("instructions", "mamba2")
    rows = compile_specs([load("mamba2").spec], targets=[target], widths=[128], dtype="bf16")
    predicted = [p for p in predict(rows, shape, "bf16") if p.part == part and p.schedule == "fused"]
    cycles = 1e-3 * PARTS[part].multiprocessors * PARTS[part].clock / shape.tokens
    kernels = [kernel for p in predicted for kernel in p.kernels]
    assert {k.name for k in kernels} == set(counted)
    for kernel in kernels:
        expected = CHIPS[target].schedulers * cycles * kernel.walls.issue, cycles * kernel.walls.load_store
        # Not the same binaries: those of the table take a state and leave one, where an operator was handed none, and
        # know less of what their integers are.
        least = 0.8 if plain_name(kernel.name).startswith("chunk_scan") else 0.98
        for told, n in zip(expected, counted[kernel.name], strict=True):
            assert least * told <= n <= 1.001 * told, kernel.name
    page = (HERE.parent / "bench" / "WALLS.md").read_text()
    for name, counts in counted.items():
        stated = re.search(rf"\| mamba2 \| ttrc \| \w+ \| {name} \| [\d,]+ \| ([\d,]+) \| \d+ \| ([\d,]+) \|", page)
        assert [int(n.replace(",", "")) for n in stated.groups()] == pytest.approx(counts, abs=1), name
