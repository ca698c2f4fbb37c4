"""Feature maps: a spec's expressions -> SymPy, and those as tile statements in front of every program.

What a kernel wants of a mapped key it works out again from the key, as of any other statement: no bytes are added. A
gate of a map is one of a value head, and so is the key that it makes.
"""

from __future__ import annotations

import math

from ttrc import symbolic
from ttrc.ir.recurrence import Feature
from ttrc.ir.tile import INSIDE, Relation, Tile
from ttrc.language.domains import INTERVALS
from ttrc.language.spec import Located, Spec
from ttrc.passes.builder import Builder
from ttrc.passes.refuse import refuse
from ttrc.symbolic import Scope

ORIGIN = "features.{}"
SOME = 0.7  # a sum, and where in its domain a gate is, when a map is looked at in one place


def read_features(spec: Spec) -> tuple[Feature, ...]:
    maps = (("q", spec.features.q), ("k", spec.features.k))
    return tuple(_read(spec, word, where) for word, where in maps if where is not None)


def _read(spec: Spec, word: str, where: Located) -> Feature:
    gates, x = (*spec.inputs, *spec.parameters), symbolic.symbol(word)
    symbols = {g.name: symbolic.symbol(g.name, g.domain) for g in gates} | {word: x}
    scope = Scope(symbols, {symbols[g.name]: g.per.axes for g in gates} | {x: ("k",)})
    expr = symbolic.finite_at_zero(symbolic.convert(where.tree, scope), scope, (x,))
    made = (expr, *(r.body for r in scope.reductions))
    anywhere = {g.name: INTERVALS[g.domain].at(SOME) for g in gates} | {r.symbol.name: SOME for r in scope.reductions}
    for part in (*made, *(symbolic.derivative(part, x) for part in made)):
        if not math.isfinite(symbolic.value(part, anywhere | {word: 0.0})):
            raise refuse(
                spec,
                where,
                f"the map has no finite value and derivative where an entry of {word} is 0, as in padding",
                expected=f"one that is smooth there, such as sqrt(square({word}) + 0.01)",
            )
    return Feature(word, expr, tuple(scope.reductions))


def derive_features(build: Builder, tiles: dict[str, Tile], features: tuple[Feature, ...]) -> dict[str, Tile]:
    """What q and k stand for, those that have a map; `tiles` are what names stand for, those of gates in the same role.

    A map of zeros need not be zero: padded channels, and tokens past the end of a sequence, are masked.
    """
    mapped = {}
    for feature in features:
        known, x, origin = dict(tiles), tiles[feature.word], ORIGIN.format(feature.word)
        for reduction in feature.sums:
            summands = build.elementwise("summands", reduction.body, known, origin, reduction.axes)
            if not symbolic.is_zero_at(reduction.body, (feature.word,)):
                summands = build.mask("summands_inside", summands, INSIDE["k"], 0.0, origin)
            total = build.reduce(f"sum_{feature.word}", summands, set(summands.axes) - {"k"}, origin)
            known[reduction.symbol.name] = total
        made = build.elementwise(f"mapped_{feature.word}", feature.expr, known, origin, x.axes)
        zero = symbolic.is_zero_at(feature.expr, (feature.word,))
        if not zero:
            made = build.mask(f"{made.name}_inside", made, INSIDE["k"], 0.0, origin)
        if len(x.axes) > 1 and (feature.sums or not zero):  # a map may divide by a sum, which is of zeros there
            made = build.mask(f"{made.name}_valid", made, Relation.VALID, 0.0, origin)
        mapped[feature.word] = made
    return mapped
