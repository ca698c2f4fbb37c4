"""How a Contract becomes one matrix product: which operand stands left, and which are transposed."""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.ir.tile import Contract, Tile


@dataclass(frozen=True)
class Product:
    """target = left @ right, each transposed first where its flag says so."""

    left: Tile
    left_transposed: bool
    right: Tile
    right_transposed: bool


def as_product(op: Contract, target: Tile) -> Product:
    left, right = op.a, op.b
    if target.axes[0] not in left.axes or target.axes[0] == op.axis:
        left, right = right, left
    return Product(left, left.axes[0] == op.axis, right, right.axes[0] != op.axis)
