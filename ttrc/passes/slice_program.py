"""The statements that some results need, stopping at what is already at hand: dead code stays out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ttrc import symbolic
from ttrc.ir.tile import (
    Attend,
    Compose,
    Conjugate,
    Contract,
    CumulativeSum,
    Decayed,
    Difference,
    Elementwise,
    Further,
    Inverse,
    Joint,
    Largest,
    LinearScan,
    Mask,
    Normaliser,
    Op,
    Program,
    Reduce,
    Relabel,
    Root,
    RunningSum,
    Solve,
    Statement,
    Substitute,
    Tile,
    Written,
    operands,
)


def slice_program(
    statements: tuple[Statement, ...], targets, at_hand: frozenset[Tile] = frozenset()
) -> tuple[Statement, ...]:
    needed, kept = set(targets) - at_hand, []
    for statement in reversed(statements):
        if statement.target in needed:
            kept.append(statement)
            needed |= set(operands(statement.op)) - at_hand
    return tuple(reversed(kept))


def edge_of(program: Program, outside: str) -> tuple[Tile, ...]:
    """What is made of inputs without these axes alone, and used with more than such."""
    return edge_within(program.statements, program.inputs, outside)


def edge_within(statements: tuple[Statement, ...], known: Iterable[Tile], outside: str) -> tuple[Tile, ...]:
    """What is made, without these axes, of what is known without them alone, and used with more than such."""
    made = {s.target for s in made_within(statements, known, outside)}
    users = [s for s in statements if s.target not in made]
    return tuple(dict.fromkeys(t for s in users for t in operands(s.op) if t in made))


def made_within(statements: tuple[Statement, ...], known: Iterable[Tile], outside: str) -> tuple[Statement, ...]:
    """What is made, without these axes, of what is known without them alone."""
    inside, made = {t for t in known if not set(outside) & set(t.axes)}, []
    for statement in statements:
        if not set(outside) & set(statement.target.axes) and inside.issuperset(operands(statement.op)):
            inside.add(statement.target)
            made.append(statement)
    return tuple(made)


def names_of(statements: tuple[Statement, ...]) -> dict[Tile, Tile]:
    """Relabels resolved: each tile to the tile that holds its numbers."""
    source: dict[Tile, Tile] = {}
    for statement in statements:
        if isinstance(statement.op, Relabel):
            source[statement.target] = source.get(statement.op.arg, statement.op.arg)
    return source


def renamed_operands(op: Op, names: dict[Tile, Tile]) -> Op:
    """The operation on other tiles, of the same axes."""
    tiles = {t: names.get(t, t) for t in operands(op)}
    match op:
        case Elementwise(expr, args):
            expr = symbolic.renamed(expr, {t.name: symbolic.symbol(tiles[t].name) for t in args})
            return Elementwise(expr, tuple(dict.fromkeys(tiles[t] for t in args)))
        case Contract(a, b, axis, add):
            return Contract(tiles[a], tiles[b], axis, None if add is None else tiles[add])
        case Compose(a, b):
            return replace(op, a=tiles[a], b=tiles[b])
        case Decayed(a, b, _, steps):
            return replace(op, a=tiles[a], b=tiles[b], steps=tiles[steps])
        case Solve(matrix, rhs, transposed):
            return Solve(tiles[matrix], tiles[rhs], transposed)
        case Joint(_, systems, rhs):
            return replace(op, systems=_renamed_table(systems, tiles), rhs=tuple(tiles[t] for t in rhs))
        case Inverse(matrix):
            return Inverse(tiles[matrix])
        case LinearScan(decay, write, start):
            return replace(op, decay=tiles[decay], write=tiles[write], start=None if start is None else tiles[start])
        case Root(pull, base, args):
            pull = symbolic.renamed(pull, {t.name: symbolic.symbol(tiles[t].name) for t in args})
            return Root(pull, tiles[base], tuple(dict.fromkeys(tiles[t] for t in args)))
        case Substitute(matrices, bases, _, bodies):
            matrices, bases = _renamed_table(matrices, tiles), tuple(tiles[t] for t in bases)
            return replace(op, matrices=matrices, bases=bases, bodies=tuple(_renamed_body(b, names) for b in bodies))
        case Further(first):
            return replace(op, first=tiles[first])
        case Written(solved):
            return Written(tiles[solved])
        case Conjugate(rhs, diagonal):
            return replace(op, rhs=tiles[rhs], diagonal=tiles[diagonal], body=_renamed_body(op.body, names))
        case Difference(rows, columns):
            return Difference(tiles[rows], tiles[columns])
        case Normaliser(logits, rest):
            return Normaliser(tiles[logits], None if rest is None else tiles[rest])
        case Attend(logits, normaliser, values, rest):
            return Attend(tiles[logits], tiles[normaliser], tiles[values], None if rest is None else tiles[rest])
        case Reduce(arg) | Largest(arg) | Mask(arg) | CumulativeSum(arg) | RunningSum(arg) | Relabel(arg):
            return replace(op, arg=tiles[arg])


def _renamed_table(table: tuple[tuple[Tile, ...], ...], names: dict[Tile, Tile]) -> tuple[tuple[Tile, ...], ...]:
    return tuple(tuple(names[t] for t in row) for row in table)


def _renamed_body(body: tuple[Statement, ...], names: dict[Tile, Tile]) -> tuple[Statement, ...]:
    return tuple(replace(s, op=renamed_operands(s.op, names)) for s in body)
