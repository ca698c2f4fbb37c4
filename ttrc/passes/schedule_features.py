"""Feature maps that kernels of the memory have no registers for -> parallel kernels of their own, about these.

Worked out where keys are taken, a map is worked out once more in every kernel and for every block of value channels,
beside a state and tiles of pairs; and its adjoint takes several tiles as wide as the keys beside the cotangent that is
led back. So mapped rows are stored in front of the scans as products take them, rounded, and the memory's kernels read
them in the place of queries and keys: 6 d_k bytes a token more in half precision, of either map. The adjoint is worked
out where the gradients are, which load the rows behind all else; of a map that sums over a row in a kernel behind them,
for 4 d_k more. Where there is such a kernel it stores the keys too that gates of key channels make, which are float32;
and these have one of their own where a chunk has one inverse. Of several the gradients have no shared memory for more.

Of a map without an exponential, a root or a quotient none of that is less time than working it out again takes; nor,
where a rule solves nothing, of one with one of them; nor where kernels walk key channels, of which they have few at a
time, unless it sums over these.
"""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.ir.plan import Buffer, Kernel, Launch, Skeleton, Space
from ttrc.ir.tile import Contract, Decayed, Elementwise, Inverse, Program, Reduce, Statement, Substitute, Tile, operands
from ttrc.passes.plan_kernel import planned
from ttrc.passes.slice_program import slice_program
from ttrc.symbolic import special_count

Buffers = tuple[Buffer, ...]
WIDE = ("t", "k")


@dataclass(frozen=True)
class FeaturePlan:
    """What the memory's kernels take in the place of queries and keys, and the cotangents that they end in; the
    launches in front of the forward pass and behind the backward one; the gradients that the latter makes."""

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
    walked = any(isinstance(s.op, Decayed) and s.op.channel == "k" for s in forward.statements)
    known, gates = frozenset(b.tile for b in inputs), {b.tile for b in inputs if b.single and b.tile.axes == WIDE}
    solved = [type(s.op) for s in forward.statements if isinstance(s.op, (Inverse, Substitute))]
    alone = solved == [Inverse]
    apart: dict[Tile, bool] = {}  # and whether a map sums over a row
    for tile in forward.mapped:
        code = slice_program(forward.statements, [tile], known | set(apart))
        sums = any(isinstance(s.op, Reduce) for s in code)
        wide = solves and (apart or alone) and any(gates & set(operands(s.op)) for s in code)
        if sums or not walked and (wide or _special(code) > (0 if solves else 1)):
            apart[tile] = sums
    if not apart:
        return FeaturePlan()
    mapped = tuple(Buffer(t.name, t, Space.TOKEN) for t in apart)
    ahead = Launch(planned("chunk_map", Skeleton.PARALLEL, forward, mapped, inputs))
    led_back = dict(backward.cotangents)
    given = tuple(dict.fromkeys(led_back[t] for t, sums in apart.items() if sums and t in led_back))
    own = tuple(b for b in gradients if _is_led_back(backward, b.tile, known, given))
    if not own:
        return FeaturePlan(mapped, (), (ahead,))
    cotangents = tuple(Buffer(t.name, t, Space.TOKEN) for t in given)
    behind = planned("chunk_map_reverse", Skeleton.PARALLEL, backward, own, (*inputs, *cotangents))
    return FeaturePlan(mapped, cotangents, (ahead,), (Launch(behind),), own)


def _special(code: tuple[Statement, ...]) -> int:
    """How many exponentials, roots and quotients an entry takes."""
    entries = [s.op for s in code if isinstance(s.op, Elementwise)]
    return sum(special_count(op.expr, {t.name for t in op.args if t.axes == WIDE}) for op in entries)


def _is_led_back(program: Program, tile: Tile, known: frozenset[Tile], given: tuple[Tile, ...]) -> bool:
    """Whether a gradient is made of the cotangents of mapped rows, row by row, and of nothing that is not an input."""
    code = slice_program(program.statements, [tile], known | set(given))
    used = {t for s in code for t in operands(s.op)} | {tile}
    inside = known | set(given) | {s.target for s in code} | {t for t in program.inputs if not t.axes}
    of_pairs = any(isinstance(s.op, (Contract, Decayed)) or {"t", "s"} <= set(s.target.axes) for s in code)
    return bool(used & set(given)) and used <= inside and not of_pairs
