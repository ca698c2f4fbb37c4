"""Sums over channels and what errors write, the same in a chunk (axes t and v) and of a token."""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.recurrence import Hebbian, Nonlinear
from ttrc.ir.tile import INSIDE, Relation, Tile
from ttrc.passes.builder import Builder
from ttrc.symbolic import ONE, Expr, Reduction

PADDED = ("k", "v", "p")


def derive_sum(build: Builder, tiles: dict[str, Tile], reduction: Reduction, origin: str = "loss") -> Tile:
    """A sum of each token over its channels; `tiles` are what the names in its body stand for.

    Kernels pad channels with zeros, where most bodies are 0 as well; for the others the padding is masked.
    """
    (axis,) = reduction.axes
    body = build.elementwise("summands", reduction.body, tiles, origin)
    if not symbolic.is_zero_at(reduction.body, PADDED):
        body = build.mask("summands_inside", body, INSIDE[axis], 0.0, origin)
    total = build.reduce(reduction.symbol.name, body, set(body.axes) - {axis}, origin)
    if "t" not in total.axes:
        return total
    # Past the end of a sequence all channels are 0, and a rule may divide by a norm: there the sum reads as 1.
    return build.mask(f"{total.name}_valid", total, Relation.VALID, 1.0, origin)


def written_of_ones(error: Hebbian) -> Expr:
    """u = -e where v is 1."""
    return symbolic.in_terms_of(-error.offset, symbolic.symbol("v"), ONE)


def derive_error(
    build: Builder, tiles: dict[str, Tile], error: Nonlinear, prediction: Tile, origin: str = "loss"
) -> Tile:
    """written(p) for predictions [t, v] or, of one token, [v]."""
    known = tiles | {"p": prediction}
    for reduction in error.sums:
        known[reduction.symbol.name] = derive_sum(build, known, reduction, origin)
    if error.root is not None:
        base = build.elementwise("base", error.root.base, known, "update")
        unknown = error.root.unknown.name
        known[unknown] = build.root(unknown, error.root.pull, unknown, base, known, "update")
    written = build.elementwise("error", error.written, known, origin, prediction.axes)
    if error.sums and not symbolic.is_zero_at(error.written, PADDED):  # or padded channels would enter later sums
        written = build.mask("error_inside", written, Relation.VALUES, 0.0, origin)
    return written
