"""argmin over one matrix of the state, by Newton's method, differentiable by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.autograd import grad

from ttrc.errors import CheckFailed
from ttrc.oracle.expressions import Scope, norm, total

Objective = Callable[[Tensor, Scope], Tensor]  # S [N, HV, rows, columns] -> one number a sequence and head
Slope = Callable[[Tensor], Tensor]  # S -> the objective's gradient, of the same shape


def argmin(objective: Objective, retention: Objective, scope: Scope, *, kinked: bool = False) -> Tensor:
    """argmin_S objective(S, scope) with exact first derivatives with respect to the scope's tensors.

    The search starts at scope["S_prev"] and never leaves the objective's domain: a step to where the slope is not
    finite, such as log(S) at S <= 0, is halved. So S_prev has to lie inside of the domain.

    At the minimum the objective's slope g(S, scope) is zero, so dS = -H^-1 dg (implicit function theorem).
    The value comes from Newton's method on detached tensors; its derivative is that of -g, and on the way
    back a hook sends the cotangent through H^-1 (H is symmetric).

    kinked: the objective may have a kink at entries that are zero, abs(S), and must then be a sum of functions of
    single entries. An entry rests on the kink where the slope changes its sign there; its derivative is zero.
    """
    fixed = {name: x.detach() for name, x in scope.items()}
    start = fixed["S_prev"]
    pinned = None

    def equation(S: Tensor, scope: Scope) -> Tensor:
        """What is zero at the minimum: the slope, or the entry itself where it rests on a kink."""
        slope = _slope(objective, scope)(S)
        return slope if pinned is None else torch.where(pinned, S, slope)

    def inside(S: Tensor) -> Tensor:
        """The same, no number outside of the objective's domain: a slope such as 1 / S of a log(S) has values there."""
        return torch.where(objective(S, fixed).isfinite(), equation(S, fixed), torch.nan)

    def curvature(S: Tensor) -> Tensor:
        """Row sums of the retention's Hessian, the Hessian itself where the retention is separable."""
        return _linearized(_slope(retention, fixed), S)[1](torch.ones_like(S))

    with torch.no_grad():
        if kinked:
            start, pinned = _beside_kinks(_slope(objective, fixed), start)
        S, solve = _newton(inside, start, curvature)
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in scope.values())):
        return S
    residual = equation(S, scope)  # zero, but not its derivatives
    residual.register_hook(solve)
    return S - (residual - residual.detach())


def _slope(objective: Objective, scope: Scope) -> Slope:
    """Differentiable itself, by the scope's tensors and by S where that asks for it."""

    def slope(S: Tensor) -> Tensor:
        with torch.enable_grad():
            S = S if S.requires_grad else S.detach().requires_grad_()
            return grad(objective(S, scope).sum(), S, create_graph=True)[0]

    return slope


def _linearized(slope: Slope, S: Tensor) -> tuple[Tensor, Slope]:
    """The slope at S, and x -> H x there; H is symmetric."""
    with torch.enable_grad():
        S = S.detach().requires_grad_()
        g = slope(S)

    def product(x: Tensor) -> Tensor:
        return grad(g, S, x, retain_graph=True, materialize_grads=True)[0] if g.requires_grad else torch.zeros_like(x)

    return g.detach(), product


def _beside_kinks(slope: Slope, S: Tensor) -> tuple[Tensor, Tensor]:
    """(start, pinned): S moved to the minimum's side of a kink at zero; which entries have their minimum on it.

    The slope of a convex objective grows with S. Just below and just above zero it differs by far more than the
    curvature there explains, where zero is a kink.
    """
    gap = torch.full_like(S, torch.finfo(S.dtype).tiny ** 0.5)
    (below, product_below), (above, product_above) = (_linearized(slope, side) for side in (-gap, gap))
    bend = sum(product(torch.ones_like(S)).abs() for product in (product_below, product_above))
    kink = above - below > 1e3 * gap * (1 + bend)
    pinned = kink & (below <= 0) & (above >= 0)
    start = torch.where(kink, torch.where(above < 0, S.abs(), -S.abs()), S)
    return start.masked_fill(pinned, 0.0), pinned


def _newton(slope: Slope, S: Tensor, curvature: Callable[[Tensor], Tensor]) -> tuple[Tensor, Slope]:
    """The S where the slope is zero, to rounding, and x -> H^-1 x there; each sequence and head is its own problem.

    curvature: S -> a diagonal near H; it preconditions, and sizes the slope's rounding: that of S itself, which may be
    far smaller than what the search starts with, or where terms of the slope cancel, that of the largest S on the way.
    """
    eps = torch.finfo(S.dtype).eps

    def look(S: Tensor) -> tuple[Tensor, Tensor, Slope]:
        g, product = _linearized(slope, S)
        return g, norm(g), product

    g, size, product = look(S)
    scale, done = size, torch.zeros_like(size, dtype=torch.bool)
    for _ in range(100):
        stiffness = curvature(S)
        solve = partial(conjugate_gradients, product, diagonal=stiffness)
        scale = torch.maximum(scale, norm(stiffness * S))
        done = done | (size <= 4 * eps * norm(stiffness * S))
        if done.all():
            return S, solve
        newton, length = solve(g), 1.0 - done.to(S.dtype)
        for _ in range(30):  # halve the step of each problem until its slope shrinks; nan is no shrinking
            g_there, size_there, product_there = look(S - length * newton)
            worse = ~done & ~(size_there < size)
            if not worse.any():
                break
            done = done | (worse & (size <= 4 * eps * scale))
            length = torch.where(done, 0.0, torch.where(worse, length / 2, length))
        else:  # no step helps: rounding is reached, or there is no smooth minimum
            if (size <= 1e4 * eps * scale)[worse].all():
                return S, solve
            break
        S, g, size, product = S - length * newton, g_there, size_there, product_there
    raise CheckFailed(
        "the reference found no minimum of the update's objective: "
        "is it strictly convex in S, smooth but for kinks at 0, and S_prev inside of its domain?"
    )


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, diagonal: Tensor) -> Tensor:
    """x with H x = b for symmetric positive definite H, to rounding, preconditioned by `diagonal`.

    All tensors [N, HV, rows, columns]; product is x -> H x. One step where H is diagonal, one more for each
    distinct eigenvalue that a loss adds to it.
    """
    diagonal = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal))
    x, r = torch.zeros_like(b), b
    z = direction = r / diagonal
    rz = total(r * z)
    for _ in range(4 * max(b.shape[-2:]) + 16):
        going = norm(r) > torch.finfo(b.dtype).eps * norm(b)
        if not going.any():
            break
        image = product(direction)
        length = _ratio(rz, total(direction * image)) * going  # no head's last bits hang on another's
        x, r = x + length * direction, r - length * image
        z = r / diagonal
        rz, previous = total(r * z), rz
        direction = z + _ratio(rz, previous) * direction
    return x


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0: a problem that is already solved stays where it is."""
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b))
