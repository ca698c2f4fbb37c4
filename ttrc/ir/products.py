"""Operations of tile programs that are products of matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ttrc.ir.axes import Tile


@dataclass(frozen=True)
class Contract:
    """sum over `axis` of a * b, plus `add` when present: a matrix product."""

    a: Tile
    b: Tile
    axis: str
    add: Optional[Tile] = None


@dataclass(frozen=True)
class Compose:
    """The product a b of two [t, s] tiles, whose inner axis is a token too; transposed ones are taken so."""

    a: Tile
    b: Tile
    a_transposed: bool = False
    b_transposed: bool = False


@dataclass(frozen=True)
class Decayed:
    """A product with a decay between each two tokens that differs by channel c, k or v: for s < t, D is exp of the
    sum of steps[i,c] over the tokens i behind s and up to t, t itself among them if `own`; it is 0 elsewhere. Summed
    over an axis it is a[t,c] b[s,c] D over c, [t, s]; a[t,s] b[s,c] D over s, [t, c]; or a[t,s] b[t,c] D over t,
    [s, c], where a comes as 0 above the diagonal. No step is more than 0, so that D is at most 1.
    """

    a: Tile
    b: Tile
    axis: str
    steps: Tile
    own: bool

    @property
    def channel(self) -> str:
        """The axis of the channels by which decays differ."""
        (axis,) = set(self.steps.axes) - {"t"}
        return axis

    @property
    def pairs(self) -> bool:
        """Whether it makes pairs of tokens, summed over channels."""
        return self.axis == self.channel
