"""Products with decays by channel: all that have the same decays are made in one loop over lengths of pieces."""

from __future__ import annotations

from dataclasses import replace

from ttrc.backends.triton.printer import TritonPrinter, shape
from ttrc.backends.triton.tables import ACROSS, LEVELS, table
from ttrc.ir.tile import Decayed, Statement, Tile, operands
from ttrc.passes.slice_program import names_of, renamed_operands

Together = tuple[Statement, ...]


def together(statements: tuple[Statement, ...]) -> dict[Statement, Together]:
    """By its first statement, what one loop makes: all that it takes is known by then, of tiles that have several names
    the first. Nothing for the others of it."""
    groups: dict[Statement, list[Statement]] = {}
    made, names = {s.target: number for number, s in enumerate(statements)}, names_of(statements)
    for statement in (s for s in statements if isinstance(s.op, Decayed)):
        op = renamed_operands(statement.op, names)
        known = max((made.get(t, -1) for t in operands(op)), default=-1)
        ready = (f for f, g in groups.items() if g and _decays(f) == _decays(statement) and known < made[f.target])
        first = next(ready, statement)
        groups.setdefault(first, []).append(replace(statement, op=op))
        groups.setdefault(statement, [])
    return {first: tuple(group) for first, group in groups.items()}


def taken(group: Together) -> tuple[Tile, ...]:
    return tuple(dict.fromkeys(t for s in group for t in operands(s.op)))


def lines(group: Together, printer: TritonPrinter, summed: set[Tile]) -> list[str]:
    """The loop, and in front of it what starts from nothing: what is `summed` over panels goes on from where it is."""
    ahead = [f"_high, _low = in_halves({printer.upright(group[0].op.steps)}, dtype)"]
    ahead += [f"{s.target.name} = tl.zeros({shape(s.target)}, tl.float32)" for s in group if s.target not in summed]
    body = [
        f"_decay = decay_by_half({table(group[0].op)}, _level, _high, _low, BT, PRECISION)",
        f"_across = across({ACROSS}, _level, t, BT)",
    ]
    factors: dict[str, str] = {}

    def factor(tile: Tile) -> str:
        """A factor of rows or columns, decayed by half; made once."""
        text = printer.upright(tile)
        if text not in factors:
            factors[text] = f"_factor{len(factors)}"
            body.append(f"{factors[text]} = ({text}.to(tl.float32) * _decay).to(dtype)")
        return factors[text]

    for statement in group:
        name, op = statement.target.name, statement.op
        if op.pairs:
            body.append(f"{name} = decayed_pairs({name}, _across, {factor(op.a)}, {factor(op.b)}, PRECISION)")
        else:
            known, matrix = factor(op.b), printer.operand(op.a, turned=op.axis == "t")
            body.append(f"{name} += decayed_back({matrix}, _across, _decay, {known}, PRECISION)")
    return [
        *ahead,
        f"for _level in tl.range(0, {LEVELS}, disable_licm=True):",
        *(f"    {line}" for line in body),
    ]


def closed(statement: Statement) -> list[str]:
    """What ends a sum over channels: it has no meaning but below the diagonal."""
    if not isinstance(statement.op, Decayed) or not statement.op.pairs:
        return []
    name = statement.target.name
    return [f"{name} = tl.where(t[:, None] > t[None, :], {name}, 0.0)"]


def _decays(statement: Statement) -> tuple[Tile, bool]:
    return statement.op.steps, statement.op.own
