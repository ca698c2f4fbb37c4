"""How wide channels are, and states, in the words of kernels."""

from __future__ import annotations

from ttrc.backends.triton.widths import numbers
from ttrc.ir.tile import HIDDEN, Tile

WIDTH = {"t": "BT", "s": "BT", "k": "K", "j": "K", "v": "V", **dict.fromkeys(HIDDEN, "HIDDEN")}
BLOCK = {"t": "BT", "s": "BT", "k": "BK", "j": "BK", "v": "BV", **dict.fromkeys(HIDDEN, "BH")}
PANELLED = dict.fromkeys(HIDDEN, "((HIDDEN + BH - 1) // BH * BH)")
VALUES = {"v": "i_v * BV"}  # where the channels of an axis begin that a program holds, of which it holds a part


def room(*tiles: Tile) -> str:
    """How many numbers the blocks of registers take that hold states."""
    return _sum([" * ".join(BLOCK[a] for a in t.axes) for t in tiles])


def waiting_room(*tiles: Tile) -> str:
    """How many numbers what waits takes, every panel of it."""
    return numbers(tiles, BLOCK | PANELLED)


def extent(*tiles: Tile) -> str:
    """How many numbers states take, one behind the other."""
    return _sum([" * ".join(WIDTH[a] for a in t.axes) for t in tiles])


def _sum(sizes: list[str]) -> str:
    same = len(sizes) > 1 and len(set(sizes)) == 1
    return f"{len(sizes)} * {sizes[0]}" if same else sizes[0] if len(sizes) == 1 else f"({' + '.join(sizes)})"


def offset(tile: Tile, parts: tuple[Tile, ...]) -> str:
    """What is added to the place where states begin to come to this one of them."""
    before = parts[: parts.index(tile)]
    return f" + {extent(*before)}" if before else ""
