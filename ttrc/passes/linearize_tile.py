"""A chunk's program -> the part of it that is linear in the entering state: how a state alone crosses a chunk.

Where a program is affine in the state, S_next = M S + B, this is M; a whole segment of a sequence is then affine as
well, and segments that ran side by side, each from an empty state, can be composed afterwards.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from ttrc import symbolic
from ttrc.ir.tile import Carry, Contract, CumulativeSum, Elementwise, Mask, Op, Program, Reduce, Relabel, Tile, operands
from ttrc.passes.builder import Builder, sym
from ttrc.passes.slice_program import slice_program


def linearize_tile(program: Program, carry: Carry) -> Optional[Program]:
    """The program that carries a tangent of `carry` through a chunk, in the state's own tile; None if not affine."""
    build = Builder((*program.inputs, *(c.state for c in program.carries)), program.statements)
    tangents: dict[Tile, Tile] = {carry.state: carry.state}
    for statement in slice_program(program.statements, [carry.next], frozenset({carry.state})):
        moved = [t for t in operands(statement.op) if t in tangents]
        if moved and not _push(build, tangents, statement.target, statement.op, moved, statement.origin):
            return None
    following = tangents.get(carry.next)
    if following is None:
        return None
    body = slice_program(tuple(build.statements), [following], frozenset({carry.state}))
    return Program(program.inputs, body, (Carry(carry.label, carry.state, following, carry.reverse),), ())


def is_elementwise(program: Program) -> bool:
    """Whether each entry of the state crosses on its own: nothing that depends on the state is in a product or sum."""
    (carry,) = program.carries
    moved = {carry.state}
    for statement in program.statements:
        if moved & set(operands(statement.op)):
            if not isinstance(statement.op, Elementwise):
                return False
            moved.add(statement.target)
    return True


def _push(build: Builder, tangents: dict[Tile, Tile], target: Tile, op: Op, moved: list[Tile], origin: str) -> bool:
    """Adds the tangent of `target`, which depends on the tiles `moved`; False where it is not affine in them."""
    name = f"{target.name}_moved"
    match op:
        case Elementwise(expr, args):
            slopes = {t: symbolic.derivative(expr, sym(t)) for t in moved}
            if any(sym(t) in slope.free_symbols for slope in slopes.values() for t in moved):
                return False
            tangent = sum((slope * sym(tangents[t]) for t, slope in slopes.items()), symbolic.ZERO)
            given = {t.name: t for t in (*args, *(tangents[t] for t in moved))}
            tangents[target] = build.elementwise(name, tangent, given, origin, target.axes)
        case Contract(a, b, axis, add):
            if a in tangents and b in tangents:
                return False
            start = tangents.get(add) if add is not None else None
            if a in tangents or b in tangents:
                start = build.contract(name, tangents.get(a, a), tangents.get(b, b), axis, origin, add=start)
            tangents[target] = start
        case Reduce() | CumulativeSum() | Relabel() | Mask(fill=0):
            tangents[target] = build.emit(name, target.axes, replace(op, arg=tangents[op.arg]), origin)
        case _:
            return False
    return True
