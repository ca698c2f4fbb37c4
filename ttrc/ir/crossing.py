"""How states cross a piece of a sequence, where they do so by an affine law."""

from __future__ import annotations

import math
from dataclasses import dataclass

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

    def blocks(self, d_k: int, d_v: int) -> int:
        """Into how many parts of numbers a join cuts the largest state, where these go by themselves."""
        widths = {"k": d_k, "j": d_k, "v": d_v}
        return -(-max(math.prod(widths[a] for a in s.axes) for s in self.states) // JOINED)
