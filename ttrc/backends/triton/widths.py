"""How wide channels are, and states, in the words of op.py."""

from __future__ import annotations

from collections import Counter

from ttrc.ir.tile import HIDDEN, Tile

# The widths of channels, and of the blocks of registers that hold them.
WIDTH = {"k": "q.shape[3]", "j": "q.shape[3]", "v": "v.shape[3]", **dict.fromkeys(HIDDEN, "EXPANSION * q.shape[3]")}
BLOCK = {axis: f"block({width})" for axis, width in WIDTH.items()} | {"t": "chunk", "s": "chunk"}


def room(states: tuple[Tile, ...]) -> str:
    """The last dimensions of one state, or of several one behind the other."""
    if len(states) == 1:
        return ", ".join(WIDTH[a] for a in states[0].axes)
    return numbers(states, WIDTH)


def numbers(states: tuple[Tile, ...], widths: dict[str, str] = WIDTH) -> str:
    """How many numbers several states are."""
    counts = Counter(" * ".join(widths[a] for a in t.axes) for t in states)
    return " + ".join(size if count == 1 else f"{count} * {size}" for size, count in counts.items())
