"""Named axes, and the values that tile programs are made of."""

from __future__ import annotations

from dataclasses import dataclass

Axes = tuple[str, ...]
HIDDEN = tuple(f"h{i}" for i in range(1, 8))
AXIS_ORDER = ("t", "s", "k", "j", *HIDDEN, "v")


@dataclass(frozen=True)
class Tile:
    """A named value and its axes; () is a scalar of the chunk."""

    name: str
    axes: Axes


def is_matrix(tile: Tile) -> bool:
    """Whether it has no tokens and several axes of channels, as most states have."""
    return len(tile.axes) > 1 and not {"t", "s"} & set(tile.axes)


def ordered(axes) -> Axes:
    """The axes in canonical order."""
    return tuple(a for a in AXIS_ORDER if a in axes)
