"""Recurrence -> what keeps it from a chunk form; None where it has one.

In chunks states move linearly, and what multiplies up has a logarithm: a chunk is matrix products then, behind systems
of equations for what its tokens write. Where tokens are maps of the state, entry by entry, it can be a scan of these,
which takes no logarithms: of a vector memory always, and of a matrix where products have no form.
"""

from __future__ import annotations

from ttrc.ir.config import SEGMENTS, SHORT_CHUNK, is_several_chunks
from ttrc.ir.obstacle import Obstacle
from ttrc.ir.recurrence import MATRIX, Affine, Hebbian, Nonlinear, Recurrence
from ttrc.symbolic import ONE


def find_obstacle(r: Recurrence) -> Obstacle | None:
    if r.mirror is not None:
        return Obstacle.MIRROR
    if r.link is not None and r.segment is None:
        return Obstacle.LINK
    if r.network is not None and r.segment is None:
        return Obstacle.NETWORK
    if r.segment not in (None, *SEGMENTS) and not _keeps_start(r):
        return Obstacle.SEGMENT
    if r.state != MATRIX:
        return _of_scans(r)
    return None if _moves_by_entry(r) else find_obstacle_to_products(r)


def _keeps_start(r: Recurrence) -> bool:
    """Whether a scan can carry the state of a segment's start beside the running one, over several chunks. Those of
    deep memories have programs that take every value channel anyway."""
    plain = r.state == MATRIX and r.link is None
    split = not any("v" in reduction.axes for reduction in r.reductions)
    return is_several_chunks(r.segment) and (r.network is not None or plain and split)


def is_scan(r: Recurrence) -> bool:
    """Whether the chunk form is a scan of what tokens make of each entry of the state."""
    if r.state != MATRIX:
        return find_obstacle(r) is None
    return find_obstacle(r) is None and find_obstacle_to_products(r) is not None


def find_obstacle_to_products(r: Recurrence) -> Obstacle | None:
    """What keeps the state at a token, a matrix, from being a weighed sum of what tokens before it wrote."""
    match r.axes_of(r.decay):
        case ("k",) if r.momentum is not None:
            return Obstacle.MOMENTUM_BY_KEY
        case ("v",) if not _is_shared(r):
            return Obstacle.DECAY_BY_VALUE
        case ("k", "v"):
            return Obstacle.DECAY_BY_ENTRY
    if "v" in r.axes_of(r.write):
        return Obstacle.WRITE_BY_ENTRY
    if r.log_decay is None and r.decay != ONE:
        return Obstacle.DECAY_MAY_BE_ZERO
    if r.log_momentum is None and r.momentum not in (None, ONE):
        return Obstacle.MOMENTUM_MAY_BE_ZERO
    return None


def _is_shared(r: Recurrence) -> bool:
    """Whether one inverse serves all value channels, whose decays differ. An error that looks at the state in front of
    its own token's decay has a slope by value channel, of what is written behind the decay."""
    alone = r.momentum is None and not r.normalised and r.ridge is None
    asking = [a.error for a in r.associations if not isinstance(a.error, Hebbian)]
    solved = len(asking) == 1 and isinstance(asking[0], Affine)
    return alone and solved and r.segment is None and r.reads_decayed and not r.in_turn


def _moves_by_entry(r: Recurrence) -> bool:
    """Whether a token takes each entry of a matrix to a s + b, whatever the other entries are: a prediction, which sums
    over key channels, has no say then. Nor has a sum over value channels, of which programs have a block each."""
    alone = r.network is None and r.ridge is None and r.segment is None and not r.normalised
    split = not any("v" in reduction.axes for reduction in r.reductions)
    return alone and split and all(isinstance(a.error, Hebbian) for a in r.associations)


def _of_scans(r: Recurrence) -> Obstacle | None:
    """What keeps the tokens of a vector memory from being maps that compose."""
    if r.segment is not None:
        return Obstacle.JOINED if r.segment > SHORT_CHUNK and _joins_channels(r) else None
    if any(isinstance(a.error, Nonlinear) for a in r.associations):
        return Obstacle.NOT_AFFINE
    if r.momentum is not None and not all(isinstance(a.error, Hebbian) for a in r.associations):
        return Obstacle.MAPS_OF_TWO
    return None


def _joins_channels(r: Recurrence) -> bool:
    """Whether a vector memory has sums over its channels."""
    keys = (x for a in r.associations for x in (a.key, a.write))
    parts = (x for x in (*r.features, *keys, r.readout, r.link) if x is not None)
    return bool(r.reductions) or any(x.sums for x in parts)
