"""Products take what is stored in the place of its multiples."""

import pytest

from ttrc.ir.tile import Contract, Elementwise, Tile
from ttrc.passes.builder import Builder, sym
from ttrc.passes.take_multiples import take_multiples
from ttrc.symbolic import ONE, ZERO

PREDICTED, TARGET, KEYS = Tile("p", ("t", "v")), Tile("v", ("t", "v")), Tile("W", ("k", "v"))
TWO = ONE + ONE


def product_of(stored, other):
    """Of `other` times keys, where `stored` is: what stands before the product that is made, and its left factor."""
    build = Builder((PREDICTED, TARGET, KEYS))
    tiles = {t.name: t for t in (PREDICTED, TARGET)}
    kept = build.elementwise("kept", stored, tiles, "loss", ("t", "v"))
    left = build.elementwise("left", other, tiles | {"kept": kept}, "loss", ("t", "v"))
    target = build.contract("made", left, KEYS, "v", "loss")
    found = take_multiples(tuple(build.statements), (kept,))
    (how,) = [s.op for s in found if s.target == target]
    (product,) = [s for s in found if isinstance(s.op, Contract)]
    number = how.expr / sym(product.target) if isinstance(how, Elementwise) else ONE
    return number, product.op.a.name


R, SHARE = sym(PREDICTED) - sym(TARGET), sym(PREDICTED) * sym(TARGET)


@pytest.mark.parametrize("stored, other, number, factor", [
    (SHARE, -SHARE, -ONE, "kept"),  # made of the same, side by side
    (R, -TWO * sym(Tile("kept", ("t", "v"))), -TWO, "kept"),  # made of it
    (R, R * sym(TARGET), ONE, "left"),
    (ZERO, R, ONE, "left"),  # nothing is a multiple of zeros
], ids=["side by side", "made of it", "no multiple", "of zeros"])  # fmt: skip
def test_a_product_takes_what_is_stored(stored, other, number, factor):
    assert product_of(stored, other) == (number, factor)
