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
    H, G = past if decay is None else (decay * past[0], decay * past[1])
    curvature, pull = _quadratic(loss, scope, G)
    H, G = H + curvature, G + pull
    curvature, pull = _quadratic(retention, scope, G)
    return (H, G), torch.linalg.solve(H + curvature, G + pull)


def _quadratic(slope: Slope, scope: Scope, like: Tensor) -> tuple[Tensor, Tensor]:
    """(A, B) with slope(S) = A S - B, [N, HV, dk, dk] and [N, HV, dk, dv]; checked at another S, for it may not be so.

    A's columns are slopes at unit rows, all value channels at once: they are the same for each of these.
    """
    at_zero = slope(torch.zeros_like(like), scope)
    rows = torch.eye(like.shape[-2], dtype=like.dtype, device=like.device)
    units = rows[:, None, None, :, None].expand(-1, *like.shape)
    A = (vmap(lambda S: slope(S, scope))(units) - at_zero)[..., 0].movedim(0, -1)
    with torch.no_grad():
        S = torch.linspace(-1.0, 1.0, like.numel(), dtype=like.dtype, device=like.device).reshape(like.shape)
        found, expected = slope(S, scope), A @ S + at_zero
        if (found - expected).abs().max() > 1e-6 * (1 + expected.abs().max()):
            raise CheckFailed("the reference finds closed forms of quadratic objectives, alike in all value channels")
    return A, -at_zero
