"""States, and blocks of registers that wait, as Triton loads and stores."""

from __future__ import annotations

from ttrc.backends.triton.extents import BLOCK, VALUES, WIDTH
from ttrc.ir.tile import Tile


def load_state(base: str, tile: Tile, begins: dict[str, str] = VALUES) -> str:
    """A state's matrix, or row, from where it begins."""
    *_, across = tile.axes
    first = begins.get(across, "0")
    match tile.axes:
        case (down, _):
            width, top = WIDTH[across], begins.get(down, "0")
            rows = f"{top}, {_left(WIDTH[down], top)}, {width}, {width}, {BLOCK[down]}"
            return f"load_rows({base}, {rows}, {BLOCK[across]}, {first})"
        case _:
            return f"load_vector({base}, {first}, {_left(WIDTH[across], first)}, 1, {BLOCK[across]}, 0.0)"


def store_state(base: str, name: str, tile: Tile, begins: dict[str, str] = VALUES, condition: str = "") -> str:
    """The mirror image of load_state; with a condition all of it or nothing."""
    *_, across = tile.axes
    first = begins.get(across, "0")

    def where(width: str) -> str:
        return f"tl.where({condition}, {width}, 0)" if condition else width

    match tile.axes:
        case (down, _):
            width, top = WIDTH[across], begins.get(down, "0")
            rows = f"{top}, {_left(where(WIDTH[down]), top)}, {width}, {width}, {BLOCK[down]}"
            return f"store_rows({base}, {name}, {rows}, {BLOCK[across]}, {first})"
        case _:
            return f"store_vector({base}, {name}, {first}, {_left(where(WIDTH[across]), first)}, 1, {BLOCK[across]})"


def _left(width: str, first: str) -> str:
    return width if first == "0" else f"{width} - {first}"


def load_block(base: str, tile: Tile, number: str = "i_in") -> str:
    """The i-th of the blocks of registers that a program lays one behind the other in its own scratch."""
    *down, across = (BLOCK[a] for a in tile.axes)
    if down:
        return f"load_rows({base}, {number} * {down[0]}, {down[0]}, {across}, {across}, {down[0]}, {across}, 0)"
    return f"load_row({base} + {number} * {across}, {across}, {across}, 0)"


def store_block(base: str, name: str, tile: Tile, number: str = "i_in") -> str:
    *down, across = (BLOCK[a] for a in tile.axes)
    if down:
        return (
            f"store_rows({base}, {name}, {number} * {down[0]}, {down[0]}, {across}, {across}, {down[0]}, {across}, 0)"
        )
    return f"store_row({base} + {number} * {across}, {name}, {across}, {across}, 0)"
