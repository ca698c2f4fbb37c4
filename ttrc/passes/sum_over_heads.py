"""A kernel that owns keys -> the same for a group of heads that share these: what they share is summed on chip.

Heads of a call may share a key and a value, and the cotangents of these are sums over those heads. A program that owns
the block goes through the heads in turn then. A sum over blocks whose total is taken linearly, by what heads share
alone, simply goes on from one head to the next: beside it nothing is held, and what is made of it is made once. All
else, as of a value that a gate multiplies, is made and stored head by head, and summed behind the kernel.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc import symbolic
from ttrc.ir.plan import Buffer, Kernel, Segment, Space
from ttrc.ir.tile import GIVEN, Contract, Elementwise, Mask, Reduce, Statement, Tile, operands
from ttrc.passes.builder import sym
from ttrc.passes.slice_program import slice_program

OF_KEYS = (Space.KEY_TOKEN, Space.VALUE_TOKEN)


def sum_over_heads(kernel: Kernel) -> Kernel:
    before, within, behind = kernel.segments
    made = {s.target: s for s in within.statements}
    shared = _shared(kernel)
    ready = tuple(s for s in before.statements if s.target in shared)
    linear = _linear(behind.statements, _startless(within, made), shared)
    summed = _summed(behind, {f"d_{b.name}" for b in kernel.loads if b.space in OF_KEYS}, linear, made)
    if not summed:
        return kernel
    own = tuple(b for b in behind.stores if b not in summed)
    sums = frozenset(_sums(behind.statements, summed, made))
    early = tuple(b for b in before.loads if b.tile in shared)
    last = slice_program(behind.statements, [b.tile for b in summed])
    rest = slice_program(behind.statements, [b.tile for b in own])
    segments = (
        Segment(False, early, ready, (), ()),
        Segment(
            False,
            tuple(b for b in before.loads if b not in early),
            tuple(s for s in before.statements if s not in ready),
            (),
            before.stores,
        ),
        within,
        Segment(False, _taken(behind.loads, rest, own), rest, (), own),
        Segment(False, _taken(behind.loads, last, summed), last, (), _by_group(summed)),
    )
    return replace(kernel, segments=segments, grouped=sums)


def _by_group(stores: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    return tuple(replace(b, space=Space.GROUP_TOKEN) for b in stores)


def _taken(loads: tuple[Buffer, ...], body: tuple[Statement, ...], stores: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    used = {t for s in body for t in operands(s.op)} | {b.tile for b in stores}
    return tuple(b for b in loads if b.tile in used)


def _shared(kernel: Kernel) -> frozenset[Tile]:
    """What is the same for all heads that share a key and a value: these, plain numbers, and what is made of them."""
    before, _, behind = kernel.segments
    found = {b.tile for s in (before, behind) for b in s.loads if b.space in OF_KEYS}
    found |= {t for x in kernel.statements for t in operands(x.op) if t.name in GIVEN}
    for statement in before.statements:
        if found.issuperset(operands(statement.op)):
            found.add(statement.target)
    return frozenset(found)


def _startless(within: Segment, made: dict[Tile, Statement]) -> frozenset[Tile]:
    """Sums over blocks that begin with nothing, or with another such sum: a start would count once a head."""
    found: set[Tile] = set()
    for tile in within.sums:
        start = getattr(made[tile].op, "add", None)
        if isinstance(made[tile].op, (Contract, Reduce)) and (start is None or start in found):
            found.add(tile)
    return frozenset(found)


def _linear(body: tuple[Statement, ...], sums: frozenset[Tile], shared: frozenset[Tile]) -> frozenset[Tile]:
    """What is linear in such sums, by factors that heads share: made of their totals over heads it is its own."""
    linear, factors = set(sums), set(shared)
    for statement in body:
        args = set(operands(statement.op))
        if args <= factors:
            factors.add(statement.target)
        elif args <= linear | factors and _is_linear(statement, linear & args):
            linear.add(statement.target)
    return frozenset(linear)


def _is_linear(statement: Statement, moving: set[Tile]) -> bool:
    match statement.op:
        case Elementwise(expr, _):
            slopes = {t: symbolic.derivative(expr, sym(t)) for t in moving}
            if any(sym(t) in slope.free_symbols for slope in slopes.values() for t in moving):
                return False
            return symbolic.expanded(expr - sum(slope * sym(t) for t, slope in slopes.items())) == symbolic.ZERO
        case Mask(_, _, fill):
            return fill == 0.0
        case Reduce():
            return True
    return False


def _summed(
    behind: Segment, names: set[str], linear: frozenset[Tile], made: dict[Tile, Statement]
) -> tuple[Buffer, ...]:
    """The results that are summed on chip: none that takes a sum which another one needs head by head."""
    summed = tuple(b for b in behind.stores if b.name in names and b.tile in linear)
    while True:
        own = _sums(behind.statements, tuple(b for b in behind.stores if b not in summed), made)
        kept = tuple(b for b in summed if not own & _sums(behind.statements, (b,), made))
        if kept == summed:
            return summed
        summed = kept


def _sums(body: tuple[Statement, ...], stores: tuple[Buffer, ...], made: dict[Tile, Statement]) -> set[Tile]:
    """The sums over blocks that results take, and those which these begin with."""
    goals = [b.tile for b in stores]
    taken = {t for s in slice_program(body, goals) for t in operands(s.op)} | set(goals)
    found: set[Tile] = set()
    for tile in taken:
        while tile in made and tile not in found:
            found.add(tile)
            tile = getattr(made[tile].op, "add", None)
    return found
