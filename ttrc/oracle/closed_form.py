"""The minimum over all tokens so far: the past's objective as a quadratic, found by autograd, and a linear solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor
from torch.func import vmap

from ttrc.errors import CheckFailed
from ttrc.oracle.expressions import Scope

Slope = Callable[[Tensor, Scope], Tensor]  # the gradient of an objective at S, [N, HV, dk, dv]


def fit(
    loss: Slope, retention: Slope, scope: Scope, past: tuple[Tensor, Tensor], decay: Optional[Tensor]
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """(H, G) with this token's loss, the past's part decayed, and S = argmin of their objective plus the retention.

    The past's slope at S is H S - G, [N, HV, dk, dk] and [N, HV, dk, dv].
    """
    return _fitted(_quadratic, torch.linalg.solve, loss, retention, scope, past, decay)


def fit_entries(
    loss: Slope, retention: Slope, scope: Scope, past: tuple[Tensor, Tensor], decay: Optional[Tensor]
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The same of a vector memory, whose entries are regressions of their own: H, G and S are [N, HV, 1, dv]."""
    return _fitted(_parabolas, lambda H, G: G / H, loss, retention, scope, past, decay)


def _fitted(
    quadratic: Callable[[Slope, Scope, Tensor], tuple[Tensor, Tensor]],
    solve: Callable[[Tensor, Tensor], Tensor],
    loss: Slope,
    retention: Slope,
    scope: Scope,
    past: tuple[Tensor, Tensor],
    decay: Optional[Tensor],
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """`quadratic` finds an objective's curvature and pull, `solve` where the two balance."""
    H, G = past if decay is None else (decay * past[0], decay * past[1])
    curvature, pull = quadratic(loss, scope, G)
    H, G = H + curvature, G + pull
    curvature, pull = quadratic(retention, scope, G)
    return (H, G), solve(H + curvature, G + pull)


def _parabolas(slope: Slope, scope: Scope, like: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) with slope(S) = a S - b, entry by entry."""
    at_zero = slope(torch.zeros_like(like), scope)
    a = slope(torch.ones_like(like), scope) - at_zero
    _check(slope, scope, like, lambda S: a * S + at_zero, "quadratic objectives, each entry of a vector on its own")
    return a, -at_zero


def minimum(slope: Slope, scope: Scope, like: Tensor) -> Tensor:
    """argmin of the objective with that slope, shaped as `like`."""
    curvature, pull = _quadratic(slope, scope, like)
    return torch.linalg.solve(curvature, pull)


def _quadratic(slope: Slope, scope: Scope, like: Tensor) -> tuple[Tensor, Tensor]:
    """(A, B) with slope(S) = A S - B, [N, HV, dk, dk] and [N, HV, dk, dv]; checked at another S, for it may not be so.

    A's columns are slopes at unit rows, all value channels at once: they are the same for each of these.
    """
    at_zero = slope(torch.zeros_like(like), scope)
    rows = torch.eye(like.shape[-2], dtype=like.dtype, device=like.device)
    units = rows[:, None, None, :, None].expand(-1, *like.shape)
    A = (vmap(lambda S: slope(S, scope))(units) - at_zero)[..., 0].movedim(0, -1)
    _check(slope, scope, like, lambda S: A @ S + at_zero, "quadratic objectives, alike in all value channels")
    return A, -at_zero


def _check(slope: Slope, scope: Scope, like: Tensor, known: Callable[[Tensor], Tensor], which: str) -> None:
    """That the slope is the known function at an S of no special kind too."""
    with torch.no_grad():
        S = torch.linspace(-1.0, 1.0, like.numel(), dtype=like.dtype, device=like.device).reshape(like.shape)
        found, expected = slope(S, scope), known(S)
        if (found - expected).abs().max() > 1e-6 * (1 + expected.abs().max()):
            raise CheckFailed(f"the reference finds closed forms of {which}")
