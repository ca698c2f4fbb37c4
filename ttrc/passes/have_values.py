"""Whether expressions have finite values in one place: what is padded is 0 there, gates are inside of their domains.

Of padding nothing is kept, but a product with what is not finite is not 0: sums over channels and tokens would show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ttrc.ir.recurrence import Gate
from ttrc.language.domains import INTERVALS
from ttrc.symbolic import Expr, names, value

SOME = 0.7  # where in its domain a gate is, and what all else is that has no place of its own


def have_values(parts: Iterable[Expr], gates: Iterable[Gate], place: Mapping[str, float]) -> bool:
    inside = {g.name: INTERVALS[g.domain].at(SOME) for g in gates} | dict(place)
    return all(math.isfinite(value(part, dict.fromkeys(names(part), SOME) | inside)) for part in parts)
