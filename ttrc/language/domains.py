"""What each domain of an input means: an interval of the real line, and a line of words about it."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, isfinite

from ttrc.language.spec import Domain


@dataclass(frozen=True)
class Interval:
    """Numbers between two ends; an open end is not itself included."""

    low: float
    high: float
    open_low: bool
    open_high: bool
    meaning: str

    def holds(self, x: float) -> bool:
        above = x > self.low if self.open_low else x >= self.low
        below = x < self.high if self.open_high else x <= self.high
        return above and below

    def at(self, normal: float) -> float:
        """A number between the ends for any number at all."""
        if isfinite(self.low) and isfinite(self.high):
            return self.low + (self.high - self.low) / (1 + exp(-normal))
        if isfinite(self.low):
            return self.low + exp(normal)
        return self.high - exp(normal) if isfinite(self.high) else normal


INTERVALS = {
    Domain.REAL: Interval(-inf, inf, True, True, "any real number"),
    Domain.POSITIVE: Interval(0, inf, True, True, "x > 0, such as a step size out of a softplus"),
    Domain.NONNEGATIVE: Interval(0, inf, False, True, "x >= 0, such as a penalty that may vanish"),
    Domain.NEGATIVE: Interval(-inf, 0, True, True, "x < 0, such as the rate of a continuous-time decay"),
    Domain.UNIT: Interval(0, 1, False, False, "0 <= x <= 1, such as a write strength out of a sigmoid"),
    Domain.DECAY: Interval(0, 1, True, False, "0 < x <= 1, the share of the memory that is kept"),
    Domain.LOG_DECAY: Interval(-inf, 0, True, False, "x <= 0, the logarithm of the share that is kept"),
}
