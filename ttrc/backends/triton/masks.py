"""Which entries of a tile a mask keeps, as Triton."""

from __future__ import annotations

from ttrc.backends.triton.extents import BLOCK
from ttrc.ir.axes import Axes
from ttrc.ir.tile import Hidden, Relation, Window


def kept(relation: Relation | Hidden | Window, axes: Axes, columns: str, end: str, begins: dict[str, str]) -> str:
    """`axes` are those of the variable; tokens that write are numbered by `columns`, numbers of tokens that exist are
    less than `end`, and `begins` says where the channels of an axis begin that a program has a part of."""
    by_row, by_column = ":, None", "None, :"
    reads, writes = (by_column, by_row) if axes == ("s", "t") else (by_row, by_column)
    match relation:
        case Relation.CAUSAL:
            return f"t[{reads}] >= {columns}[{writes}]"
        case Relation.STRICT:
            return f"t[{reads}] > {columns}[{writes}]"
        case Relation.VALID:
            tokens = "s" if "s" in axes else "t"
            where = ", ".join(":" if a == tokens else "None" for a in axes)
            return f"({tokens} < {end})[{where}]" if len(axes) > 1 else f"{tokens} < {end}"
        case Relation.FIRST | Relation.LAST:
            at = "t == 0" if relation is Relation.FIRST else "t == BT - 1"
            return f"({at})[:{', None' * (len(axes) - 1)}]" if len(axes) > 1 else at
        case Relation.KEYS:
            return f"{_across(axes, 'k', begins)} < K"
        case Relation.VALUES:
            return f"{_across(axes, 'v', begins)} < V"
        case Window(tokens):
            return f"t[{reads}] - {tokens} < {columns}[{writes}]"
        case Hidden(axis):
            return f"{_across(axes, axis, begins)} < HIDDEN"
    raise AssertionError(relation)


def _across(axes: Axes, axis: str, begins: dict[str, str]) -> str:
    """The number of each channel along one of a tile's axes within its block."""
    text = f"tl.arange(0, {BLOCK[axis]})"
    text = text if axes == (axis,) else f"{text}[{', '.join(':' if a == axis else 'None' for a in axes)}]"
    return f"{begins[axis]} + {text}" if axis in begins else text
