"""Feature maps, and keys of losses: a spec's expressions -> SymPy, and those as tile statements in front of programs.

What a kernel wants of a mapped key it works out again from the key, as of any other statement, or finds stored where
that is less time (schedule_features). A gate of a map is one of a value head, and so is the key that it makes.
"""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.axes import ordered
from ttrc.ir.recurrence import Association, Feature
from ttrc.ir.tile import INSIDE, Relation, Tile
from ttrc.language.sections import word_axes
from ttrc.language.spec import Domain, Located, Spec
from ttrc.language.syntax import Name, walk
from ttrc.passes.builder import Builder
from ttrc.passes.have_values import have_values
from ttrc.passes.refuse import refuse
from ttrc.symbolic import Scope

ORIGIN = "features.{}"


def read_features(spec: Spec) -> tuple[Feature, ...]:
    maps = (("q", spec.features.q), ("k", spec.features.k))
    return tuple(read_feature(spec, word, where) for word, where in maps if where is not None)


def read_feature(spec: Spec, word: str, where: Located) -> Feature:
    gates, words = (*spec.inputs, *spec.parameters), ("q", "k") if word == "q" else (word,)
    symbols = {g.name: symbolic.symbol(g.name, g.domain) for g in gates} | {x: symbolic.symbol(x) for x in words}
    own = ordered(word_axes(spec.memory)[word])
    scope = Scope(symbols, {symbols[g.name]: g.per.axes for g in gates} | {symbols[x]: own for x in words})
    zeros = (*words, *(g.name for g in spec.inputs if g.domain is Domain.REAL and g.per.axes == own))
    padded = tuple(symbols[name] for name in zeros)
    converted = symbolic.convert(where.tree, scope)
    _check_sums(spec, where, scope, own)
    expr = symbolic.finite_at_zero(converted, scope, padded)
    if expr == 0:
        message = f"{where.key} is 0 whatever its words are, and does nothing"
        raise refuse(spec, where, message, expected="one that depends on its words or gates")
    made = (expr, *(r.body for r in scope.reductions))
    slopes = (symbolic.derivative(part, zero) for part in made for zero in padded)
    if not have_values((*made, *slopes), gates, dict.fromkeys(zeros, 0.0)):
        raise refuse(
            spec,
            where,
            f"{where.key} has no finite value and derivative where its vectors are 0, as in padding",
            expected=f"one that is smooth there, such as sqrt(square({word}) + 0.01)",
        )
    return Feature(word, expr, tuple(scope.reductions), zeros)


def _check_sums(spec: Spec, where: Located, scope: Scope, own: tuple[str, ...]) -> None:
    """A program has a block of value channels, and keys are the same for all of them."""
    across = {axis for reduction in scope.reductions for axis in reduction.axes} - set(own)
    if not across:
        return
    gates = {g.name for g in (*spec.inputs, *spec.parameters) if across & set(g.per.axes)}
    gate = next(node for node in walk(where.tree) if isinstance(node, Name) and node.id in gates)
    raise refuse(
        spec,
        where,
        f"'{gate.id}' is summed over value channels in {where.key}; no kernel class covers that",
        expected="sums over key channels, of gates per head or per key channel",
        span=gate.span,
    )


def derive_features(build: Builder, tiles: dict[str, Tile], features: tuple[Feature, ...]) -> dict[str, Tile]:
    """What q and k stand for, those with a map; `tiles` are what names stand for, those of gates in the same role."""
    return {f.word: _mapped(build, tiles, f, f"mapped_{f.word}", ORIGIN.format(f.word)) for f in features}


def derive_keys(build: Builder, tiles: dict[str, Tile], association: Association) -> tuple[Tile, Tile]:
    """What the memory is asked, and what the error is written under."""
    key, origin = tiles["k"], association.origin
    if association.key is not None:
        key = _mapped(build, tiles, association.key, "key", origin)
    if association.write is None:
        return key, key
    return key, _mapped(build, tiles, association.write, "write", origin)


def _mapped(build: Builder, tiles: dict[str, Tile], feature: Feature, name: str, origin: str) -> Tile:
    """A map of zeros need not be zero: padded channels, and tokens past the end of a sequence, are masked."""
    known, x = dict(tiles), tiles[feature.word]
    axis = x.axes[-1]
    for reduction in feature.sums:
        summands = build.elementwise("summands", reduction.body, known, origin, reduction.axes)
        if not symbolic.is_zero_at(reduction.body, feature.zeros):
            summands = build.mask("summands_inside", summands, INSIDE[axis], 0.0, origin)
        total = build.reduce(f"sum_{feature.word}", summands, set(summands.axes) - {axis}, origin)
        known[reduction.symbol.name] = total
    made = build.elementwise(name, feature.expr, known, origin, x.axes)
    zero = symbolic.is_zero_at(feature.expr, feature.zeros)
    if not zero:
        made = build.mask(f"{made.name}_inside", made, INSIDE[axis], 0.0, origin)
    if len(x.axes) > 1 and (feature.sums or not zero):  # a map may divide by a sum, which is of zeros there
        made = build.mask(f"{made.name}_valid", made, Relation.VALID, 0.0, origin)
    return made
