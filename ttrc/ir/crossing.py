"""How states cross a piece of a sequence, where they do so by an affine law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from ttrc.ir.axes import Axes, Tile
from ttrc.ir.config import JOINED


@dataclass(frozen=True)
class Crossing:
    """What is left of carried states, of all but what a piece writes itself: T S, and a piece takes S to T S + B.

    States that hang on one another are a group; all groups cross alike, as S and its normaliser do. What becomes of a
    member is a sum over the members, each times a factor of its own, which is a number for each entry of the axes
    `entry`, the first ones of every state; or, with `products`, a matrix of key channels.
    """

    states: tuple[Tile, ...]
    groups: tuple[tuple[Tile, ...], ...]
    entry: Axes
    products: bool

    @property
    def members(self) -> int:
        return len(self.groups[0])

    def columns(self, d_k: int) -> Optional[int]:
        """How many columns states have while it is found how they cross: those of unit matrices, or one where there is
        nothing by value channel; None where they have value channels."""
        return d_k if self.products else None if "v" in self.entry else 1

    def chain(self, d_k: int) -> int:
        """How many products long a segment is for a join: of float32 operands, in panels of 16 key channels."""
        return self.members**2 * -(-d_k // 16) if self.products else 1

    def blocks(self, d_k: int, d_v: int) -> int:
        """Into how many parts of numbers a join cuts the largest state, where these go by themselves."""
        widths = {"k": d_k, "j": d_k, "v": d_v}
        return -(-max(math.prod(widths[a] for a in s.axes) for s in self.states) // JOINED)
