"""A kernel's code -> what each of its loops over panels of an axis sums up, in turn.

Loops differ by what their sums wait for: a stage is what can be summed once the loops of those before it have ended.
What a stage sums is cut again where it would not fit the registers.
"""

from __future__ import annotations

from ttrc.ir.tile import Contract, Decayed, Statement, Tile, operands, sums
from ttrc.passes.add_afterwards import stages
from ttrc.passes.slice_program import slice_program

FEW = 2  # C x C sums with decays that one loop over key channels holds, beside all that decays are made of
MANY = 4  # C x C sums that one loop holds, where another that loads their factors again costs next to nothing

Body = tuple[Statement, ...]


def group_sums(body: Body, wanted: tuple[Tile, ...], axis: str) -> list[list[Tile]]:
    """What each loop makes. One loop for all C x C sums of a stage, which have their factors in common; one for each
    accumulator as wide as the keys, for two of them at once do not fit the registers. What is small, or written out
    panel by panel, joins the loop that works out most of what it needs anyway, of several such the emptiest.

    Segments of deep memories are short, and so are their accumulators: one loop for all of a stage. What is written out
    there takes the place of what loops read: it belongs to the last of them. Over key channels too; where products with
    decays are many it has one of its own, in which no C x C tile is held."""
    stage = stages(body, axis)
    summed = [s.target for s in body if sums(s, axis)]
    written = [t for t in wanted if axis in t.axes]
    deep = axis != "v"
    add = {s.target: getattr(s.op, "add", None) for s in body}
    groups: list[list[Tile]] = []
    level: list[int] = []
    numbers = sorted({stage.get(t, 0) for t in (*summed, *written)})
    for number in numbers:
        here = [t for t in summed if stage[t] == number]
        pairs = [t for t in here if len(t.axes) > 1] if deep else [t for t in here if t.axes == ("t", "s")]
        chains: list[list[Tile]] = []
        for target in (t for t in here if t.axes == ("t", "k") and not deep):
            chain = next((c for c in chains if add[target] == c[-1]), None)
            chains.append([target]) if chain is None else chain.append(target)
        joins = groups and not here and number < numbers[-1]
        loops = _by_decays(body, pairs) if axis == "k" else [pairs] if deep else _apart(body, pairs, axis)
        new = [g for g in (*loops, *chains) if g] or ([] if joins else [[]])
        groups += new
        level += [number] * len(new)

    wide = {t for g in groups for t in g}
    if deep:
        groups += [[]] * (axis == "k" and len(_by_decays(body, list(wide))) > 1)
        groups[-1] += written
    for target in (*(t for t in summed if t not in wide), *(() if deep else written)):
        first = next((i for i, n in enumerate(level) if n >= stage[target]), len(groups) - 1)
        last = next((i for i, g in enumerate(groups) if i >= first and target in _all_needs(body, g)), len(groups))
        if any(target in _all_needs(body, [t]) for t in (*summed, *written) if t not in wide and t != target):
            last = level.index(stage[target]) + level.count(stage[target])
        own = _needs(body, [target], axis)

        def fit(i: int, own=own) -> tuple[int, int, int]:
            needs = _needs(body, groups[i], axis)
            return -len(own & needs), sum(t in wide and add[t] not in wide for t in groups[i]), len(needs)

        groups[min(range(first, max(last, first + 1)), key=fit)].append(target)
    position = {t: i for i, t in enumerate((*written, *summed))}
    return [sorted(g, key=position.__getitem__) for g in groups]


def _apart(body: Body, pairs: list[Tile], axis: str) -> list[list[Tile]]:
    """The loops for the C x C sums of a stage. There is one, but for many whose factors take no product to make: then
    there is one for each first factor."""
    narrow = frozenset(s.target for s in body if axis not in s.target.axes) - set(pairs)
    panel = slice_program(body, pairs, narrow)
    products = {s.target: s.op for s in panel if isinstance(s.op, Contract)}
    if len(pairs) <= MANY or products.keys() != set(pairs):
        return [pairs]
    groups: dict[Tile, list[Tile]] = {}
    for target in pairs:
        groups.setdefault(products[target].a, []).append(target)
    return list(groups.values())


def _by_decays(body: Body, pairs: list[Tile]) -> list[list[Tile]]:
    """The loops for the C x C sums of a stage over key channels: of more than two products with decays those that have
    the same ones, which share nothing dear with others; of each as many at a time as there is room for."""
    kinds = {s.target: (s.op.steps, s.op.own) for s in body if isinstance(s.op, Decayed)}
    groups: dict[object, list[Tile]] = {}
    for target in pairs:
        groups.setdefault(kinds.get(target), []).append(target)
    if sum(t in kinds for t in pairs) <= FEW:
        return [pairs]
    return [g[i : i + FEW] for g in groups.values() for i in range(0, len(g), FEW)]


def _needs(body: Body, targets: list[Tile], axis: str) -> set[Tile]:
    """Every tile that a loop over panels touches to make `targets`."""
    narrow = frozenset(s.target for s in body if axis not in s.target.axes) - set(targets)
    return {t for s in slice_program(body, targets, narrow) for t in (s.target, *operands(s.op))}


def _all_needs(body: Body, targets: list[Tile]) -> set[Tile]:
    return {t for s in slice_program(body, targets) for t in operands(s.op)}
