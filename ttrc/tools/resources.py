"""What a compiled kernel needs, what a chip has, how many blocks of the one fit on the other; and what parts reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ttrc.errors import TtrcError


@dataclass(frozen=True)
class ByDepth:
    """Parts of what is counted of a binary's text: outside of loops, inside of one, inside of two or more."""

    outside: float
    middle: float
    inner: float


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel. Registers are per thread; spills are instructions in the binary, not executions.

    `looped` instructions, spills and wavefronts of the load/store unit stand inside of a loop, `inner` ones inside of
    two (NVIDIA's binaries alone are read for that).
    """

    registers: int
    stack_bytes: int
    spill_loads: int
    spill_stores: int
    shared_bytes: int
    matrix_instructions: Mapping[str, int]
    instructions: int
    looped: int = 0
    looped_spills: int = 0
    inner: int = 0
    wavefronts: float = 0.0
    looped_wavefronts: float = 0.0
    inner_wavefronts: float = 0.0

    @property
    def spills(self) -> int:
        return self.spill_loads + self.spill_stores

    @property
    def issued(self) -> ByDepth:
        """Instructions."""
        return ByDepth(self.instructions - self.looped, self.looped - self.inner, self.inner)

    @property
    def load_store(self) -> ByDepth:
        """Wavefronts."""
        looped, inner = self.looped_wavefronts, self.inner_wavefronts
        return ByDepth(self.wavefronts - looped, looped - inner, inner)


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


@dataclass(frozen=True)
class Part:
    """One product with a chip of `target`: multiprocessors, clock in Hz, bytes/s, dense bf16 FLOP/s, bytes of L2 cache.

    These are the vendor's figures; `bandwidth` and `matmul` are what kernels get of them.
    """

    target: str
    multiprocessors: int
    clock: float
    sheet_bandwidth: float
    sheet_matmul: float
    l2_bytes: int

    @property
    def bandwidth(self) -> float:
        """Bytes/s: the share of the data sheet's that an H100 reaches."""
        return REACHED_BANDWIDTH * self.sheet_bandwidth

    @property
    def matmul(self) -> float:
        """FLOP/s: the share of the data sheet's that an H100 reaches."""
        return REACHED_MATMUL * self.sheet_matmul


# On an H100 SXM copies reach about 3.0 of 3.35 TB/s and large products 700 to 800 of 989 TFLOP/s. Nobody has measured
# the other parts for this table: they are taken to reach the same shares.
REACHED_BANDWIDTH = 3.0 / 3.35
REACHED_MATMUL = 750 / 989

# NVIDIA's data sheets (A100, H100, H200, DGX B200: an eighth), dense rates: half of what is given with sparsity;
# multiprocessors and L2 from the architectures' white papers and, for the B200, as published by those who ran one.
# The clock is the one at which the matrix units do what the data sheet says.
PARTS = {
    "A100 SXM 80GB": Part("sm_80", 108, 1.41e9, 2.039e12, 312e12, 40 * 10**6),
    "H100 SXM": Part("sm_90", 132, 1.83e9, 3.35e12, 989e12, 50 * 10**6),
    "H200 SXM": Part("sm_90", 132, 1.83e9, 4.8e12, 989e12, 50 * 10**6),
    "B200": Part("sm_100", 148, 1.86e9, 8.0e12, 2250e12, 126 * 10**6),
}


def parts(target: str) -> dict[str, Part]:
    """The parts with that chip, by name; a chip without one is refused."""
    chip(target)
    found = {name: part for name, part in PARTS.items() if part.target == target}
    if not found:
        known = ", ".join(dict.fromkeys(part.target for part in PARTS.values()))
        raise TtrcError(f"no bandwidth or rate is known here for {target}: expected one of {known}")
    return found


def likeliest(target: str, device: str) -> Part:
    """The part with that chip which a device's name speaks of, "NVIDIA H200" say; else the first of them."""
    known = parts(target)
    return next((part for name, part in known.items() if name.split()[0] in device), next(iter(known.values())))


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
