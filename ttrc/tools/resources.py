"""What a compiled kernel needs, what a chip has, and how many blocks of the one fit on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ttrc.errors import TtrcError


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel. Registers are per thread; spills are instructions in the binary, not executions."""

    registers: int
    stack_bytes: int
    spill_loads: int
    spill_stores: int
    shared_bytes: int
    matrix_instructions: Mapping[str, int]
    instructions: int

    @property
    def spills(self) -> int:
        return self.spill_loads + self.spill_stores


@dataclass(frozen=True)
class Chip:
    """Limits of one multiprocessor (a compute unit on AMD), from the vendors' programming guides.

    Warps live on `schedulers` that share nothing: each has `registers` per lane to hand out, in steps of
    `register_step` per thread. A block takes `reserved` bytes of shared memory beside its own.
    """

    backend: str
    arch: int | str
    warp_size: int
    schedulers: int
    warps_per_scheduler: int
    registers: int
    register_step: int
    shared_bytes: int
    shared_per_block: int
    shared_step: int
    reserved: int
    blocks: int


KIB = 1024
CHIPS = {
    "sm_80": Chip("cuda", 80, 32, 4, 16, 512, 8, 164 * KIB, 163 * KIB, 128, KIB, 32),
    "sm_90": Chip("cuda", 90, 32, 4, 16, 512, 8, 228 * KIB, 227 * KIB, 128, KIB, 32),
    "sm_100": Chip("cuda", 100, 32, 4, 16, 512, 8, 228 * KIB, 227 * KIB, 128, KIB, 32),
    "gfx942": Chip("hip", "gfx942", 64, 4, 8, 512, 8, 64 * KIB, 64 * KIB, 512, 0, 16),
}


def chip(target: str) -> Chip:
    """The chip of a target's name."""
    if target not in CHIPS:
        raise TtrcError(f"unknown target {target!r}: expected one of {', '.join(CHIPS)}")
    return CHIPS[target]


def occupancy(resources: Resources, num_warps: int, target: str) -> int:
    """Blocks that one multiprocessor holds at a time; 0 where a block does not fit at all."""
    limits = chip(target)
    if resources.shared_bytes > limits.shared_per_block:
        return 0
    per_thread = _rounded(max(resources.registers, 1), limits.register_step)
    warps = min(limits.warps_per_scheduler, limits.registers // per_thread) * limits.schedulers
    shared = _rounded(resources.shared_bytes, limits.shared_step) + limits.reserved
    by_shared = limits.shared_bytes // shared if shared else limits.blocks
    return min(warps // num_warps, by_shared, limits.blocks)


def _rounded(value: int, step: int) -> int:
    return -(-value // step) * step
