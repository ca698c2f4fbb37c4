"""What versions of Triton are known to get wrong on which chips, and whether what runs here is hit.

Where a few lines show a fault, a probe runs them on the chip at hand. Of the others the comparisons with the oracle
tell: a fault that these kernels meet makes one of them miss its bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

from ttrc.tools.probes import chained_products, transposed_accumulator

Version = tuple[int, ...]
Capability = tuple[int, int]

HOPPER: tuple[Capability, ...] = ((9, 0),)
BLACKWELL: tuple[Capability, ...] = ((10, 0), (10, 3), (12, 0), (12, 1))
BLACKWELL_ULTRA: tuple[Capability, ...] = ((10, 3),)


@dataclass(frozen=True)
class Fault:
    """Wrong code from Triton `since` some version up to but not including `before`; None: nobody has seen it mended.

    `probe` says of a device whether it is hit there.
    """

    what: str
    chips: tuple[Capability, ...]
    since: Version
    before: Optional[Version]
    source: str
    probe: Optional[Callable[[str], bool]] = None

    def applies(self, version: Version, chip: Capability) -> bool:
        return chip in self.chips and self.since <= version and (self.before is None or version < self.before)


# Numbers of issues of triton-lang/triton and of fla-org/flash-linear-attention.
FAULTS = (
    Fault(
        "a transposed accumulator as a product's first factor",
        HOPPER,
        (3, 4, 0),
        (3, 7, 1),
        "fla #640, #826",
        transposed_accumulator,
    ),
    Fault(
        "several products beside one another in blocks of 32 on 4 warps, which read past shared memory",
        HOPPER,
        (3, 6, 0),
        (3, 8, 0),
        "triton #11366",
    ),
    Fault("gradients through a triangular solve, in chunks of 64 on 4 warps", HOPPER, (3, 4, 0), None, "fla #984"),
    Fault("a race in recurrences of products", BLACKWELL, (0,), (3, 8, 0), "fla #1228"),
    Fault(
        "two products a step through one accumulator",
        BLACKWELL_ULTRA,
        (3, 6, 0),
        None,
        "triton #10821",
        chained_products,
    ),
)


@dataclass(frozen=True)
class Finding:
    """A fault of the Triton at hand on the chip at hand; what its probe said, or None where it has none."""

    fault: Fault
    hit: Optional[bool]


def parse_version(text: str) -> Version:
    """ "3.6.0+git12" -> (3, 6, 0)."""
    return tuple(map(int, re.findall(r"\d+", text.split("+")[0])[:3]))


def known(version: str, chip: Capability) -> tuple[Fault, ...]:
    return tuple(fault for fault in FAULTS if fault.applies(parse_version(version), chip))


def find(version: str, chip: Capability, device: str) -> tuple[Finding, ...]:
    """Each known fault, probed where it can be."""
    return tuple(Finding(f, None if f.probe is None else f.probe(device)) for f in known(version, chip))


def find_here(device: str) -> tuple[str, tuple[Finding, ...]]:
    """(the compiler and the chip in words, findings) of a CUDA device."""
    import torch
    import triton

    chip = torch.cuda.get_device_capability(device)
    where = f"Triton {triton.__version__} on {torch.cuda.get_device_name(device)} (sm_{chip[0]}{chip[1]})"
    return where, find(triton.__version__, chip, device)


def as_lines(where: str, findings: Sequence[Finding], compared: int, wrong: int) -> list[str]:
    """For a reader; `wrong` of the `compared` comparisons of these kernels with the oracle missed their bounds."""
    if not findings:
        return [f"{where} is not known to miscompile anything that these kernels do"]
    right = f"{compared - wrong} of {compared} comparisons of these kernels are right"
    lines = [f"{where} is known to miscompile:"]
    for finding in findings:
        fault = finding.fault
        mended = "not mended yet" if fault.before is None else f"until {'.'.join(map(str, fault.before))}"
        match finding.hit:
            case True:
                verdict = f"HIT: a probe of it is wrong here; {right}"
            case False:
                verdict = f"not hit: a probe of it is right here; {right}"
            case None:
                verdict = f"{'perhaps hit' if wrong else 'not hit'}: {right}"
        lines.append(f"  {fault.what} ({fault.source}, {mended}): {verdict}")
    return lines
