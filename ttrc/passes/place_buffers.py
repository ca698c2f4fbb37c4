"""A rule's inputs, states and results -> where they live in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Union

from ttrc.ir.attention import Attention
from ttrc.ir.plan import Buffer, Space
from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import GIVEN, Carry, Program, Tile, operands
from ttrc.language.spec import Parameter
from ttrc.passes.slice_program import slice_program

Rule = Union[Recurrence, Attention]
# What has heads of its own: queries and keys the same ones where there is a state, in a kernel memory each argument.
KEY_HEADS = dict.fromkeys(("q", "k", "d_q", "d_k"), Space.KEY_TOKEN)
OWN_HEADS = {"q": Space.QUERY_TOKEN, "k": Space.KEY_TOKEN, "v": Space.VALUE_TOKEN}


def state_buffers(name: str, carries: tuple[Carry, ...]) -> tuple[Buffer, ...]:
    parts = tuple(c.state for c in carries)
    return tuple(Buffer(name, tile, Space.CHUNK, parts) for tile in parts)


def input_buffers(rule: Rule, program: Program) -> tuple[Buffer, ...]:
    parameters = {g.name for g in rule.gates if isinstance(g, Parameter)}
    shared = OWN_HEADS if isinstance(rule, Attention) else KEY_HEADS

    def space(name: str) -> Space:
        return shared.get(name, Space.HEAD if name in parameters else Space.TOKEN)

    wide = _wide_gates(rule, program)
    return tuple(Buffer(t.name, t, space(t.name), single=t.name in wide) for t in program.inputs if t.name not in GIVEN)


def gradient_buffers(rule: Rule, program: Program) -> tuple[Buffer, ...]:
    wide = {f"d_{name}" for name in _wide_gates(rule, program)}
    made = [replace(as_output(name, tile), single=name in wide) for name, tile in program.outputs]
    # Of a kernel memory each head of a call makes its own, whoever's the input is.
    return tuple(replace(b, space=Space.TOKEN) if isinstance(rule, Attention) else b for b in made)


def _wide_gates(rule: Rule, program: Program) -> set[str]:
    """Gates of the memory with channels: as gates are, they and their gradients are no less than float32. One of the
    read-out alone is a row of a token, as v is."""
    goals = [*program.answers, *(c.next for c in program.carries if not c.reverse)]
    used = {t.name for s in slice_program(program.statements, goals) for t in operands(s.op)}
    return {g.name for g in rule.gates if g.per.axes and g.name in used}


def as_output(name: str, tile: Tile) -> Buffer:
    return Buffer(name, tile, KEY_HEADS.get(name, Space.TOKEN))
