"""A read-out that is differentiated where the memory's answer is known -> kernels of its own, about the memory's.

An output that is affine in the answer, entry by entry, is made where the answer is, and its adjoint needs none of it on
the serial path: a gate, a skip. What the answer's cotangent takes besides it would have to make the answer again from
the states, and a sum over value channels would have every program take all of them, both in front of the reverse scan.
So the answer is stored then, 2 d_v bytes a token, and kept: the memory's kernels put it out, and take its cotangent. A
parallel kernel makes the cotangents of answers, and of the gates of the read-out alone; another one makes outputs of
answers, where these take sums over value channels, and reads each number once as well. Else they are made where answers
are, which nobody stores if no backward pass will follow.
"""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.ir.plan import Buffer, Kernel, Launch, Skeleton, Space
from ttrc.ir.tile import Contract, Decayed, Program, Tile, operands, sums_values
from ttrc.passes.place_buffers import as_output
from ttrc.passes.plan_kernel import planned
from ttrc.passes.slice_program import slice_program


@dataclass(frozen=True)
class ReadoutPlan:
    """What the memory's kernels put out, and take of its adjoint; the launches behind the forward pass, and in front of
    the backward one; what crosses between the passes for these; the gradients that they make."""

    outputs: tuple[Buffer, ...]
    back: tuple[Buffer, ...]
    behind: tuple[Launch, ...]
    ahead: tuple[Launch, ...]
    kept: tuple[Buffer, ...]
    gradients: tuple[Buffer, ...]

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return tuple(x.kernel for x in (*self.behind, *self.ahead))


def schedule_readout(
    forward: Program, backward: Program, inputs: tuple[Buffer, ...], gradients: tuple[Buffer, ...]
) -> ReadoutPlan:
    answers, outputs = forward.answers, tuple(as_output(name, tile) for name, tile in forward.outputs)
    given = tuple(dict(backward.cotangents)[t] for t in answers)
    known = frozenset(b.tile for b in inputs).union(answers)
    made = slice_program(forward.statements, [b.tile for b in outputs], known)
    back = slice_program(backward.statements, given, known)
    if not any(map(sums_values, (*made, *back))) and not any(set(answers) & set(operands(s.op)) for s in back):
        return ReadoutPlan(outputs, (), (), (), (), ())
    at_once = not any(map(sums_values, made))
    kept = tuple(_row(t, Space.SOLVED if at_once else Space.TOKEN) for t in answers)
    cotangents = tuple(_row(t, Space.TOKEN) for t in given if t not in known)
    memory = (*inputs, *kept)
    alone = _made_alone(backward, known, given)
    own = tuple(b for b in gradients if b.tile in alone)
    rest = _handed_on(backward, known, given, alone, [b.tile for b in gradients if b not in own])
    back = (*cotangents, *rest)
    forth = () if at_once else (planned("chunk_read", Skeleton.PARALLEL, forward, outputs, memory),)
    reverse = [planned("chunk_read_reverse", Skeleton.PARALLEL, backward, (*own, *back), memory)] if own or back else []
    outputs = (*outputs, *kept) if at_once else kept
    return ReadoutPlan(outputs, back, tuple(map(Launch, forth)), tuple(map(Launch, reverse)), kept, own)


def _row(tile: Tile, space: Space) -> Buffer:
    """A number a token is float32, as gates are."""
    return Buffer(tile.name, tile, space, single="v" not in tile.axes)


def _made_alone(program: Program, known: frozenset[Tile], given: tuple[Tile, ...]) -> set[Tile]:
    """What is made of the known tiles row by row, without a state and without a second token; and not of the cotangent
    of an answer, unless that is the output's. A sum over rows, the gradient of a parameter, is none of a row."""
    found = known | {t for t in program.inputs if not t.axes}
    made: set[Tile] = set()
    for statement in program.statements:
        used = set(operands(statement.op))
        of_pairs = isinstance(statement.op, (Contract, Decayed)) or {"t", "s"} <= {a for t in used for a in t.axes}
        over_rows = "t" not in statement.target.axes and any("t" in t.axes for t in used)
        if not (of_pairs or over_rows) and used <= found | made and statement.target not in given:
            made.add(statement.target)
    return made


def _handed_on(
    program: Program, known: frozenset[Tile], given: tuple[Tile, ...], alone: set[Tile], gradients: list[Tile]
) -> tuple[Buffer, ...]:
    """What the other gradients take of the read-out's adjoint beside the cotangents of answers, where it takes an
    answer or a sum over value channels to make it; for less, they make it again."""
    code = slice_program(program.statements, gradients, frozenset(given))
    edge = dict.fromkeys(t for s in code if s.target not in alone for t in operands(s.op) if t in alone)
    dear = [t for t in edge if _is_dear(program, known, t)]
    return tuple(Buffer(t.name, t, Space.TOKEN) for t in dear)


def _is_dear(program: Program, known: frozenset[Tile], tile: Tile) -> bool:
    code = slice_program(program.statements, [tile], known)
    return any(sums_values(s) or set(program.answers) & set(operands(s.op)) for s in code)
