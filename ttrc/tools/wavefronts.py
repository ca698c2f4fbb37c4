"""How long an instruction holds a multiprocessor's load/store unit, read from its text in a binary.

L1 and shared memory are one unit, which passes one wavefront a clock: at most 128 bytes, a word of each of 32 banks
(CUDA C++ Programming Guide). Loads and stores of global, local and shared memory go through it, shuffles and reads of
special registers too (Nsight Compute's Kernel Profiling Guide). Matrix instructions of sm_90 read their operands out of
shared memory by themselves, of the same 128 bytes a clock, as FlashAttention-4's account has it (arXiv:2603.05451).

Each access is taken to be of full warps that touch as many bytes as they ask for: what bank conflicts and scattered
addresses add is unknown, and so is what lanes save that read the same address. What sm_100's matrix instructions read
is left out: their shapes are not in the text.
"""

from __future__ import annotations

import re

WAVEFRONT = 128  # bytes
WARP_GROUP = 4  # warps that issue a matrix instruction of sm_90 together
ROW_BYTES = 32  # of an operand of such an instruction, whatever its dtype
ACCESSES = ("LD", "ST", "LDG", "STG", "LDL", "STL", "LDS", "STS", "LDGSTS", "ATOM", "ATOMG", "ATOMS", "RED", "REDG")
SINGLE = ("SHFL", "S2R", "S2UR")
MATRICES = ("LDSM", "STSM")  # of 8 x 8 16-bit numbers: 128 bytes each
PRODUCT = re.compile(r"HGMMA\.(\d+)x(\d+)x\d+\S*\s+R\d+, (gdesc)?")


def wavefronts(instruction: str) -> float:
    """Of one warp; `instruction`: from the operation's name on, operands included."""
    name, *how = instruction.split(maxsplit=1)[0].split(".")
    if name in ACCESSES:
        return 32 * _lane_bytes(how) / WAVEFRONT
    if name in SINGLE:
        return 1.0
    if name in MATRICES:
        return float(next((n for n in how if n in ("2", "4")), 1))
    if found := PRODUCT.match(instruction):
        rows = int(found[2]) + (int(found[1]) if found[3] else 0)  # of B, and of A where it is not in registers
        return rows * ROW_BYTES / WAVEFRONT / WARP_GROUP
    return 0.0


def _lane_bytes(how: list[str]) -> int:
    """What a lane asks for; less than a word takes a wavefront as well."""
    return next((int(n) // 8 for n in how if n in ("64", "128")), 4)
