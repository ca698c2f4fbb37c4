"""Whether an operator can be trusted as it would launch right now: against the oracle, poisoned, twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttrc.runtime.operator import Operator
from ttrc.runtime.poison import poisoned
from ttrc.runtime.verify import BOUNDS, Case, Result, Setting, compare, fitting, prepare, run


def is_lost(device: str | torch.device) -> bool:
    """Whether a device answers this process no more: behind an access out of bounds each call fails as that did."""
    if torch.device(device).type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except Exception:  # torch's or the driver's, by many names
        return True
    return False


@dataclass(frozen=True)
class Verdict:
    """Errors against the oracle, and what is wrong, if anything."""

    result: Result
    reason: str | None


class Verifier:
    """Call it for the reason why an operator must not run as it is configured now, or None.

    The oracle runs once, here; each call then runs the operator twice a case, forward and backward, on fresh poisoned
    memory, and asks that every output and gradient is within its bound and that both runs agree bit for bit.
    """

    def __init__(self, op: Operator, form: str, dtype: torch.dtype, device: str, cases: Sequence[Case]):
        self.op, self.form, self.dtype, self.device = op, form, dtype, device
        self.settings = tuple(prepare(op.spec, fitting(op.spec, case), dtype, device) for case in cases)

    def __call__(self) -> str | None:
        for setting in self.settings:
            reason = self.judge(setting).reason
            if reason is not None:
                return f"{reason} ({setting.case})"
        return None

    def judge(self, setting: Setting) -> Verdict:
        first = self._run(setting)
        result = compare(first, setting.reference, BOUNDS["triton", self.dtype])
        if result.failures:
            return Verdict(result, "wrong: " + ", ".join(result.failures))
        second = self._run(setting)
        moved = [name for name in first if not torch.equal(first[name], second[name])]
        if moved:
            return Verdict(result, f"not repeatable: {', '.join(moved)} differ between two runs on the same inputs")
        return Verdict(result, None)

    def rehearse(self) -> None:
        """Launch all that a verdict would launch."""
        for setting in self.settings:
            run(self.op, setting, self.form, "triton")

    def _run(self, setting: Setting) -> dict[str, Tensor]:
        with poisoned(self.device):
            return run(self.op, setting, self.form, "triton")
