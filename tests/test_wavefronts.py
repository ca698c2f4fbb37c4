"""What load/store units pass for an instruction, by hand; of whole binaries; and what spills cost by it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttrc.compiler import analyse
from ttrc.runtime.load import load
from ttrc.runtime.workload import Workload
from ttrc.tools.compile import Row
from ttrc.tools.offline import Job, compile_many
from ttrc.tools.predict import predict
from ttrc.tools.resources import PARTS, Resources
from ttrc.tools.wavefronts import wavefronts

HERE = Path(__file__).resolve().parent
WARP_GROUP = 4


@pytest.mark.parametrize(
    ("instruction", "clocks"),
    [
        ("LDS R1, [R2]", 1),  # 32 lanes, 4 bytes each
        ("LDS.64 R2, [R4]", 2),
        ("LDS.128 R4, [R8+0x80]", 4),
        ("LDS.U16 R1, [R2]", 1),  # less than a word takes as long
        ("STS.128 [R8], R4", 4),
        ("LDL.LU R1, [R1+0x40]", 1),
        ("STL.64 [R1], R2", 2),
        ("LDG.E.128 R4, desc[UR4][R2.64]", 4),
        ("LDG.E.U16.CONSTANT R4, [R2.64]", 1),
        ("STG.E.64 [R2.64], R4", 2),
        ("LDGSTS.E.BYPASS.128 [R7+0x8000], [R16.64], P6", 4),
        ("ATOMS.ADD R1, [R2], R3", 1),
        ("LDSM.16.M88.4 R44, [R43+0x4000]", 4),  # matrices of 8 x 8 16-bit numbers
        ("LDSM.16.MT88.2 R44, [R43+0x4000]", 2),
        ("STSM.16.M88 [R48], R24", 1),
        ("SHFL.BFLY PT, R7, R5, 0x10, 0x1f", 1),
        ("S2R R108, SR_TID.X", 1),
        # B is [16, 64] and A [64, 16], of bfloat16, and four warps ask for them together.
        ("HGMMA.64x64x16.F32.BF16 R120, R32, gdesc[UR12], R120, gsb0", 16 * 64 * 2 / 128 / WARP_GROUP),
        ("HGMMA.64x64x16.F32.BF16 R88, gdesc[UR12].tnspA, R88", 2 * 16 * 64 * 2 / 128 / WARP_GROUP),
        ("HGMMA.64x16x8.F32.TF32 R24, gdesc[UR12], RZ, !UPT", (16 + 64) * 8 * 4 / 128 / WARP_GROUP),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", 0),  # all in registers
        ("LDC.64 R2, c[0x0][0x28]", 0),
        ("LDGDEPBAR", 0),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", 0),
        ("FADD R1, R2, R3", 0),
    ],
)
def test_an_instruction(instruction, clocks):
    assert wavefronts(instruction) == clocks


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_copy_through_shared_memory_passes_four_times(target):
    """Read from global memory, stored to shared memory, loaded from there and written: in whichever instructions."""
    signature = {"source": "*fp32", "target": "*fp32"}
    for n, warps in ((64, 4), (64, 8), (128, 8)):
        (found,) = compile_many(
            [Job(str(HERE / "toy_kernels.py"), "transpose", signature, {"N": n}, target, num_warps=warps)]
        )
        tile = 4 * n * n / 128 / warps
        assert found.spills == 0 and found.shared_bytes >= 4 * n * n
        assert 4 * tile <= found.wavefronts <= 4 * tile + 3  # special registers beside: which thread, which program


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_loop_over_products(target):
    """Of a step: two tiles copied to shared memory, and their fragments loaded, by instructions or by products."""
    signature, sizes = {"a": "*bf16", "b": "*bf16", "c": "*bf16", "K": "i32"}, {"M": 64, "N": 128, "BLOCK": 64}
    (found,) = compile_many([Job(str(HERE / "toy_kernels.py"), "matmul", signature, sizes, target, 4, 2, ("K",))])
    copied = 2 * 64 * (64 + 128) / 128 / 4
    read = copied  # wgmma: by four warps together
    if target == "sm_80":  # each warp has 32 rows and 64 columns of the product, and loads 64 of what is summed
        read = 2 * 64 * (32 + 64) / 128
    assert found.looped_wavefronts == pytest.approx(copied + read, rel=0.05) and found.inner_wavefronts == 0


def compiled(registers):
    paths = os.pathsep.join([str(HERE.parent), *sys.path])
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", HERE / "capped.py", "gated_deltanet", "chunk_gradients", "128"]
    done = subprocess.run(
        [*command, str(registers)], env=environment | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return Resources(**json.loads(done.stdout))


def test_a_kernel_that_is_made_to_spill_is_predicted_slower():
    """For the words that it stores and loads, and nearly for these alone."""
    module, shape, target = analyse(load("gated_deltanet").spec), Workload(8, 4096, 16, 128, 128), "sm_90"
    plan, told = module.forms["chunk"].plan, {}
    kernel = next(k for k in plan.kernels if k.name == "chunk_gradients")
    config = kernel.config(plan.chunk, 128, 128)
    for registers in (255, 128):
        others = Resources(128, 0, 0, 0, 1024, {}, 1000)
        results = {k.name: others for k in plan.kernels} | {kernel.name: compiled(registers)}
        rows = [Row(module, "chunk", name, 128, target, config, result) for name, result in results.items()]
        (back,) = [
            p
            for p in predict(rows, shape, "bf16")
            if (p.part, p.schedule, p.which) == ("H100 SXM", "fused", "backward")
        ]
        told[registers] = results[kernel.name], next(k.walls for k in back.kernels if k.name == kernel.name)
    (clean, before), (spilling, after) = told[255], told[128]
    assert spilling.spills > clean.spills + 200 and after.binding == "load_store"
    assert after.ms > 1.1 * before.ms
    part, programs = PARTS["H100 SXM"], 8 * 4096 * 16 // 64
    panels = 128 // config.value_block
    stores = [r.load_store.outside + panels * r.load_store.middle for r in (clean, spilling)]
    words = stores[1] - stores[0]
    assert after.load_store - before.load_store == pytest.approx(
        1e3 * programs * config.warps * words / (part.multiprocessors * part.clock)
    )
    assert words >= spilling.spills - clean.spills
