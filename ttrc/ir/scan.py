"""Operations along the tokens of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ttrc.ir.axes import Tile


@dataclass(frozen=True)
class CumulativeSum:
    """Running sum along "t" within the chunk, from the last token backwards if reverse; of a token's own number too,
    unless it is exclusive."""

    arg: Tile
    reverse: bool
    exclusive: bool = False


@dataclass(frozen=True)
class LinearScan:
    """x[t, ..], what each token finds of a first-order linear recurrence, each channel or entry of its own: x is
    `start` at the first token, zeros where that is None, and x[t + 1] = decay[t] x[t] + write[t]. If reverse, x is
    `start` at the last token, and what stands on the left is x[t - 1].
    """

    decay: Tile
    write: Tile
    start: Optional[Tile]
    reverse: bool
