"""Feature maps that kernels of the memory have no registers for -> two parallel kernels of their own, about these.

A map is entry by entry of a row of keys, or divides it by a sum of its own. Worked out where the keys are taken, that
is once more in every kernel and for every block of value channels, beside a state and tiles of pairs; and its adjoint
takes several tiles as wide as the keys beside the cotangent that is led back. So mapped rows are stored in front of the
scans as products take them, rounded, in the place of which the memory's kernels would read the rows, and the gradients
end in the cotangents of these: 10 d_k bytes a token in half precision, forwards and backwards, for either map.

Where a rule solves nothing, and a map is entry by entry, that would be more time than working it out again takes; so it
would where kernels walk key channels, which have few of them at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.ir.plan import Buffer, Kernel, Launch, Skeleton, Space
from ttrc.ir.tile import Contract, Decayed, Program, Reduce, Tile, operands
from ttrc.passes.plan_kernel import planned
from ttrc.passes.slice_program import slice_program

Buffers = tuple[Buffer, ...]


@dataclass(frozen=True)
class FeaturePlan:
    """What the memory's kernels take in the place of queries and keys, and the cotangents that they end in; the launches
    in front of the forward pass and behind the backward one; the gradients that the latter makes."""

    mapped: Buffers = ()
    cotangents: Buffers = ()
    ahead: tuple[Launch, ...] = ()
    behind: tuple[Launch, ...] = ()
    gradients: Buffers = ()

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return tuple(x.kernel for x in (*self.ahead, *self.behind))


def schedule_features(
    forward: Program, backward: Program, inputs: Buffers, gradients: Buffers, solves: bool
) -> FeaturePlan:
    """`solves`: whether a chunk of the rule solves a system, or works with products of masks."""
    known = frozenset(b.tile for b in inputs)
    apart = tuple(t for t in forward.mapped if solves or _sums_keys(forward, known, t))
    if not apart:
        return FeaturePlan()
    mapped = tuple(Buffer(t.name, t, Space.TOKEN) for t in apart)
    ahead = planned("chunk_map", Skeleton.PARALLEL, forward, mapped, inputs)
    led_back = dict(backward.cotangents)
    summed = (led_back.get(t) for t in apart if _sums_keys(forward, known, t))
    given = tuple(dict.fromkeys(t for t in summed if t is not None))
    own = tuple(b for b in gradients if _is_led_back(backward, b.tile, known, given))
    if not own:
        return FeaturePlan(mapped, (), (Launch(ahead),))
    cotangents = tuple(Buffer(t.name, t, Space.TOKEN) for t in given)
    behind = planned("chunk_map_reverse", Skeleton.PARALLEL, backward, own, (*inputs, *cotangents))
    return FeaturePlan(mapped, cotangents, (Launch(ahead),), (Launch(behind),), own)


def _sums_keys(program: Program, known: frozenset[Tile], mapped: Tile) -> bool:
    return any(isinstance(s.op, Reduce) for s in slice_program(program.statements, [mapped], known))


def _is_led_back(program: Program, tile: Tile, known: frozenset[Tile], given: tuple[Tile, ...]) -> bool:
    """Whether a gradient is made of the cotangents of mapped rows, row by row, and of nothing that is not an input."""
    code = slice_program(program.statements, [tile], known | set(given))
    used = {t for s in code for t in operands(s.op)} | {tile}
    inside = known | set(given) | {s.target for s in code} | {t for t in program.inputs if not t.axes}
    of_pairs = any(isinstance(s.op, (Contract, Decayed)) or {"t", "s"} <= set(s.target.axes) for s in code)
    return bool(used & set(given)) and used <= inside and not of_pairs
