"""The implicit step of a nonlinear loss: the written error as a function of the retained prediction p.

S = S_ret - k e' with e the error at S itself, so its prediction x = S' k solves x + |k|^2 e(x) = p. Where the error of
a channel hangs on that channel alone, that is one equation an entry. Where the error is radial, e = y c(|y|) with y
affine in p (a distance, mostly p - v), it shortens y and does not turn it: one equation a token, for the length of y.
Affine and clipped errors are solved here; of any other the kernels search for the root.

Each of these equations has one root if the loss is convex, which is looked at (`find_fault`).
"""

from __future__ import annotations

from dataclasses import replace

from ttrc import symbolic
from ttrc.ir.recurrence import Implicit, Nonlinear
from ttrc.language.spec import Domain
from ttrc.passes.find_fault import find_fault
from ttrc.symbolic import Expr, Scope, Symbol


class NoImplicitStep(Exception):
    """Why there is none, and what to write instead."""

    def __init__(self, why: str, expected: str):
        self.why, self.expected = why, expected


def derive_implicit(scope: Scope, explicit: Nonlinear, length: Expr, domains: dict[str, Domain]) -> Nonlinear:
    """`explicit` is the error of the explicit step, divided by the retention's curvature; `length` is |k|^2, each key
    channel weighed by what it writes with."""
    p, error = scope.symbols["p"], explicit.written
    if not explicit.sums:
        _look(error, p, domains)
        written, root = _solve(scope, error, p, length, p)
        return Nonlinear(symbolic.factored(written), (), root)

    if scope.axes_of(length):
        raise NoImplicitStep(
            "joins the value channels, and each has a key of its own: no length of p - v solves for all of them",
            'a loss that is a sum over channels; or rule = "gradient"',
        )
    y, slope, share, square = _radial(scope, explicit)
    n = scope.unknown("norm_new", (), Domain.NONNEGATIVE)
    share = symbolic.of_norm(share, square, n)
    pull = n * slope * share
    _look(pull, n, domains, from_zero=True)
    norm = symbolic.finite_at_zero(symbolic.square_root(square), scope, (p,))
    shortened, root = _solve(scope, pull, n, length, norm)
    if root is None:  # the pull at the root, spread along y
        written = y * shortened / slope / symbolic.square_root(square)
    else:
        written = y * share / (1 + length * slope * share)
        root = replace(root, pull=symbolic.substituted(root.pull, n, symbolic.positive_part(n)))
    written = symbolic.finite_at_zero(written, scope, (p, n))
    return Nonlinear(symbolic.factored(written), explicit.sums, root)


def _solve(scope: Scope, pull: Expr, x: Symbol, length: Expr, base: Expr) -> tuple[Expr, Implicit | None]:
    """pull(x) where x + length * pull(x) = base, and the equation where x is to be searched for."""
    line = symbolic.affine(pull, x)
    if line is not None and not any(scope.depends(part, x) for part in line):
        slope, offset = line
        return (slope * base + offset) / (1 + length * slope), None
    found = symbolic.clipped(pull, x)
    if found is not None:
        factor, slope, offset, bound = found
        shrink = 1 + length * factor * slope  # outside of the clip, where it is one factor with the others
        return factor * symbolic.clipped_at(slope * base + offset, bound * shrink) / shrink, None
    unknown = x if x != base else scope.unknown("p_new", ("v",))
    pull = symbolic.substituted(pull, x, unknown)
    return pull, Implicit(unknown, length * pull, base)


def _radial(scope: Scope, explicit: Nonlinear) -> tuple[Expr, Expr, Expr, Symbol]:
    """(y, slope, c, s) with e = y * c(s), y = slope * p + anything a channel, s the symbol of the sum of y**2."""
    p, v = scope.symbols["p"], scope.symbols["v"]
    refusal = NoImplicitStep(
        "joins the value channels: the proximal step can be solved for one by one, or along p - v as a whole",
        'a loss that is a sum over channels, or a function of norm(p - v); or rule = "gradient"',
    )
    if len(explicit.sums) != 1:
        raise refusal
    (total,) = explicit.sums
    y = symbolic.square_of(total.body)
    line = symbolic.affine(y, p) if y is not None else None
    if line is None or total.axes != ("v",) or scope.axes_of(line[0]) or scope.depends(line[1], p):
        raise refusal
    slope = line[0]
    share = symbolic.derivative(explicit.written, p) / slope
    rest = symbolic.tidy(symbolic.expanded(explicit.written - y * share))  # a tidied root may not cancel with its like
    share = symbolic.tidy(share)
    if share.has(p) or share.has(v) or rest != 0:
        raise refusal
    return y, slope, share, total.symbol


def _look(error: Expr, x: Symbol, domains: dict[str, Domain], from_zero: bool = False) -> None:
    """Looks for a place where a loss with this derivative in x is not convex, or has a corner."""
    fault = find_fault(error, x, domains, "norm(p - v)" if from_zero else "p", from_zero)
    if fault is None:
        return
    if not fault.jumps:
        why = f"{fault.where}: the proximal step needs a convex loss"
        raise NoImplicitStep(why, "a convex loss and a weight whose domain is nonnegative")
    raise NoImplicitStep(
        f"{fault.where}: the proximal step needs a loss without corners",
        "a smooth one: sqrt(square(p - v) + 0.01) for abs(p - v), sqrt(norm2(p - v) + 0.01) for norm(p - v)",
    )
