"""A scan's code -> whether each of its programs takes every value channel, or they split these among them."""

from __future__ import annotations

from ttrc.ir.tile import Carry, Statement, Substitute, joins_channels, meets_in_rows, operands, sums_values


def takes_all_values(body: tuple[Statement, ...], partial: bool, carries: tuple[Carry, ...]) -> bool:
    """Whether a scan's programs need every value channel, and cannot split that axis among them.

    A sum over it needs them all. Of gradients that are written as `partial` sums, one a program, it
    matters only where a channel goes on from a sum, or a state without channels of its own.
    """
    sums = {s.target for s in body if sums_values(s)}
    if any(joins_channels(s) or (isinstance(s.op, Substitute) and meets_in_rows(s.op)) for s in body):
        return True
    if not partial:
        return bool(sums)
    for statement in body:
        if sums & set(operands(statement.op)):
            sums.add(statement.target)
    return any("v" in t.axes for t in sums) or not sums.isdisjoint(c.next for c in carries)
