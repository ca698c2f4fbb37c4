"""Operations of tile programs on triangular systems of linear equations."""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.ir.axes import Tile


@dataclass(frozen=True)
class Solve:
    """x with (I + matrix) x = rhs, or (I + matrix') x = rhs; matrix [t, s] is strictly lower."""

    matrix: Tile
    rhs: Tile
    transposed: bool


@dataclass(frozen=True)
class Joint:
    """One of several unknowns: u_number, where u_i + sum_j A_ij u_j = rhs_i with A_ij = systems[i][j], or A_ji' in its
    place. Tiles A_ij are strictly lower, but for those left of the diagonal, which are lower."""

    number: int
    systems: tuple[tuple[Tile, ...], ...]
    rhs: tuple[Tile, ...]
    transposed: bool


@dataclass(frozen=True)
class Inverse:
    """(I + matrix)^-1 for a strictly lower matrix [t, s]."""

    matrix: Tile
