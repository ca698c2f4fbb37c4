"""Read-outs: a spec's expression of what the memory answers -> SymPy, and that as tile statements behind every program.

`r` is what a program without a read-out of its own puts out, the read-out's scale in it: S' q, f(q), a weighted mean.
The query of the expression has the scale in it too, so that dot(q, k) * v is what a memory answers that has just been
told k v'. Differentiation leads back through the expression as through all else; what a kernel wants of it, it works
out again.
"""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.axes import ordered
from ttrc.ir.recurrence import Readout
from ttrc.ir.tile import INSIDE, SCALE, Relation, Tile
from ttrc.language.sections import NORMALISER, word_axes
from ttrc.language.spec import Per, Spec
from ttrc.language.state import is_normalised
from ttrc.language.syntax import Name, walk
from ttrc.passes.builder import Builder, sym
from ttrc.passes.derive_association import sums_in
from ttrc.passes.have_values import have_values
from ttrc.passes.refuse import refuse
from ttrc.symbolic import Scope

ORIGIN = "read"
WORDS = ("r", "v", "q", "k")  # what is 0 in padding; the normaliser is 1 there, and may be divided by
PADDED = ("q", "k")  # what is 0 in the padding of its channels: an answer may hold anything there
LARGEST = 100  # operations


def read_readout(spec: Spec) -> Readout | None:
    where = spec.read
    if where is None:
        return None
    gates = (*spec.inputs, *spec.parameters)
    own = word_axes(spec.memory)
    known = {word: symbolic.symbol(word) for word in (*WORDS, NORMALISER) if word in own}
    words = {word: known[word] for word in WORDS}
    symbols = {g.name: symbolic.symbol(g.name, g.domain) for g in gates} | known
    axes = {symbols[g.name]: g.per.axes for g in gates} | {known[w]: ordered(own[w]) for w in known}
    scope = Scope(symbols, axes)
    expr = symbolic.finite_at_zero(symbolic.convert(where.tree, scope), scope, tuple(words.values()))
    if symbolic.size(expr) > LARGEST:
        message = f"the read-out has {symbolic.size(expr)} operations, and its derivatives many times as many"
        raise refuse(spec, where, message, expected=f"at most {LARGEST} operations")
    elements = {g.name for g in gates if g.per is Per.ELEMENT}
    if any(len(r.axes) > 1 for r in scope.reductions):
        gate = next(n for n in walk(where.tree) if isinstance(n, Name) and n.id in elements)
        message = f'"{gate.id}" has a number for each entry of the state; a read-out takes gates of channels'
        expected = 'gates with per = "head", "key_channel" or "value_channel"'
        raise refuse(spec, where, message, expected=expected, span=gate.span)
    made = (expr, *(r.body for r in scope.reductions))
    slopes = (symbolic.derivative(part, x) for part in made for x in words.values())
    if not have_values((*made, *slopes), gates, dict.fromkeys(WORDS, 0.0) | {NORMALISER: 1.0}):
        ones = " and the normaliser 1" if is_normalised(spec) else ""
        message = f"the read-out has no finite value and derivative where r, v, q and k are 0{ones}, as in padding"
        raise refuse(spec, where, message, expected="one that is smooth there, such as sqrt(square(r) + 0.01)")
    if not scope.depends(expr, words["r"]):
        raise refuse(spec, where, "r cancels, so that nothing is read", expected="an expression that r makes different")
    return Readout(expr, tuple(sums_in(scope, (expr,))))


def answer_name(readout: Readout | None) -> str:
    """What a program calls what the memory answers: its output, where nothing else is made of that."""
    return "o" if readout is None else "answer"


def derive_readout(
    build: Builder,
    tiles: dict[str, Tile],
    readout: Readout | None,
    answer: Tile,
    normaliser: Tile | None = None,
) -> Tile:
    """The output, of what the memory answers; `tiles` are what names stand for, those of one role or of one token.

    Padded value channels of the answer may hold anything finite, and past the end of a sequence a read-out may divide
    by a sum: neither enters a sum.
    """
    if readout is None:
        return answer
    known, q, scale = tiles | {"r": answer}, tiles["q"], tiles[SCALE]
    if normaliser is not None:
        known[NORMALISER] = _one_in_padding(build, normaliser)
    for reduction in readout.sums:
        (axis,) = reduction.axes
        if "q" in symbolic.names(reduction.body):
            known["q"] = build.make("query", sym(scale) * sym(q), scale, q, origin=ORIGIN)
        summands = build.elementwise("summands", reduction.body, known, ORIGIN, reduction.axes)
        if not symbolic.is_zero_at(reduction.body, PADDED):
            summands = build.mask("summands_inside", summands, INSIDE[axis], 0.0, ORIGIN)
        total = build.reduce(f"{reduction.symbol.name}_read", summands, set(summands.axes) - {axis}, ORIGIN)
        if total.axes:
            total = build.mask(f"{total.name}_valid", total, Relation.VALID, 1.0, ORIGIN)
        known[reduction.symbol.name] = total
    return build.elementwise("o", readout.expr, known, ORIGIN, answer.axes)


def _one_in_padding(build: Builder, normaliser: Tile) -> Tile:
    """Nothing has been written there, and a read-out may divide by it."""
    for axis, relation in (("t", Relation.VALID), ("v", Relation.VALUES)):
        if axis in normaliser.axes:
            normaliser = build.mask("normaliser_inside", normaliser, relation, 1.0, ORIGIN)
    return normaliser
