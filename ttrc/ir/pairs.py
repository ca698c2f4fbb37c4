"""Operations of programs over all pairs of tokens of a sequence, of which kernels hold one tile at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ttrc.ir.axes import Tile


@dataclass(frozen=True)
class RunningSum:
    """Inclusive sum along "t" over a whole sequence, in double precision; from the last token backwards if reverse."""

    arg: Tile
    reverse: bool


@dataclass(frozen=True)
class Difference:
    """rows[t] - columns[s] of two running sums, [t, s]: small differences of large sums."""

    rows: Tile
    columns: Tile


@dataclass(frozen=True)
class Normaliser:
    """The logarithm of the sum over s of exp(logits[t, s]), and of exp(rest[t]) where there is one.

    Its adjoint is of what hangs on it beside Attend, whose own rule has the rest.
    """

    logits: Tile
    rest: Optional[Tile]


@dataclass(frozen=True)
class Attend:
    """The sum over s of exp(logits[t, s] - normaliser[t]) values[s, v], the normaliser that of these logits and rest;
    of keys in the place of values their mean, [t, k].

    A weighted mean: no tile of pairs waits until the normaliser is known.
    """

    logits: Tile
    normaliser: Tile
    values: Tile
    rest: Optional[Tile]
