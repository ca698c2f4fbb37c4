"""The independent reference: what a spec says, token by token, in torch, derivatives by autograd alone.

Nothing here is derived. The syntax tree is interpreted, the loss is differentiated by autograd and each
"argmin" of the spec is searched for by Newton's method, so a mistake of the compiler cannot cancel here.

Shapes. A value of an expression is a tensor [N, HV, dk or 1, dv or 1]: N sequences, HV value heads, then
the feature axes "k" and "v", of size 1 where the value lacks them. So torch's broadcasting is broadcasting
by axis name: S [N, HV, dk, dv], k [N, HV, dk, 1], p and v [N, HV, 1, dv], a per-head gate [N, HV, 1, 1].
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp

from ttrc.errors import CheckFailed
from ttrc.language.spec import At, Gradient, LinearMemory, Per, Proximal, Spec
from ttrc.language.syntax import Binary, Call, Expr, Name, Negate, Number

Scope = dict[str, Tensor]  # name -> [N, HV, dk or 1, dv or 1]
Objective = Callable[[Tensor], Tensor]  # S -> one number a sequence and head, [N, HV, 1, 1]


def run(
    spec: Spec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: dict[str, Tensor],
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Reads the spec literally over all tokens; differentiable once with respect to every tensor.

    q, k           [B, T, H, dk]
    v              [B, T, HV, dv], HV a multiple of H; value head h reads key head h // (HV // H)
    gates          by name: inputs [B, T, HV, *axes], parameters [HV, *axes];
                   axes are (), (dk,), (dv,) or (dk, dv) as the spec's `per` says
    scale          of the read-out, dk ** -0.5 by default
    initial_state  [N, HV, dk, dv], zero by default; N = B, or the number of packed sequences
    cu_seqlens     [N + 1] offsets of sequences packed along T, with B = 1
    returns        o [B, T, HV, dv] and the final state [N, HV, dk, dv], both in `dtype`
    """
    if not isinstance(spec.memory, LinearMemory):
        raise NotImplementedError(f"the oracle has no {type(spec.memory).__name__} yet")
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    repeats = v.shape[2] // k.shape[2]
    tokens = {
        "q": q.to(dtype).repeat_interleave(repeats, dim=2)[..., None] * scale,
        "k": k.to(dtype).repeat_interleave(repeats, dim=2)[..., None],
        "v": v.to(dtype)[..., None, :],
        **{gate.name: _spread(gates[gate.name].to(dtype), gate.per) for gate in spec.inputs},
    }
    constants = {gate.name: _spread(gates[gate.name].to(dtype), gate.per)[None] for gate in spec.parameters}
    offsets = None if cu_seqlens is None else cu_seqlens.tolist()
    sequences = v.shape[0] if offsets is None else len(offsets) - 1
    if initial_state is None:
        initial_state = v.new_zeros(sequences, v.shape[2], k.shape[3], v.shape[3])
    state = initial_state.to(dtype)
    if offsets is None:
        return _sequence(spec, tokens, constants, state)
    pieces = [
        _sequence(spec, {name: x[:, start:end] for name, x in tokens.items()}, constants, state[n : n + 1])
        for n, (start, end) in enumerate(zip(offsets[:-1], offsets[1:]))
    ]
    return torch.cat([o for o, _ in pieces], dim=1), torch.cat([final for _, final in pieces])


def _spread(gate: Tensor, per: Per) -> Tensor:
    """[..., *axes] -> [..., dk or 1, dv or 1]."""
    match per:
        case Per.HEAD:
            return gate[..., None, None]
        case Per.KEY_CHANNEL:
            return gate[..., None]
        case Per.VALUE_CHANNEL:
            return gate[..., None, :]
        case Per.ELEMENT:
            return gate


def _sequence(spec: Spec, tokens: Scope, constants: Scope, S: Tensor) -> tuple[Tensor, Tensor]:
    """tokens: [N, T, HV, ., .]; S [N, HV, dk, dv]. Returns o [N, T, HV, dv] and the last S."""
    outputs = []
    for t in range(tokens["v"].shape[1]):
        scope = {name: x[:, t] for name, x in tokens.items()} | constants
        S = step(spec, scope, S)
        outputs.append(_predict(S, scope["q"])[..., 0, :])
    return (torch.stack(outputs, dim=1) if outputs else tokens["v"][..., 0, :]), S


def step(spec: Spec, scope: Scope, S_prev: Tensor) -> Tensor:
    """The state after one token, [N, HV, dk, dv]. scope: k, v and the gates of this token."""

    def loss(S: Tensor, scope: Scope) -> Tensor:
        value = evaluate(spec.loss.expr.tree, scope | {"p": _predict(S, scope["k"])})
        return value if spec.loss.weight is None else evaluate(spec.loss.weight.tree, scope) * value

    def retention(S: Tensor, scope: Scope) -> Tensor:
        return evaluate(spec.retention.expr.tree, scope | {"S": S})

    scope = scope | {"S_prev": S_prev}
    match spec.update:
        case Gradient(at=At.PREVIOUS, segment=None, momentum=None):
            S_at = S_prev
        case Gradient(at=At.RETAINED, segment=None, momentum=None):
            S_at = argmin(retention, retention, scope)
        case Proximal():
            return argmin(lambda S, scope: loss(S, scope) + retention(S, scope), retention, scope)
        case update:
            raise NotImplementedError(f"the oracle has no {update} yet")
    slope = grad(lambda S: loss(S, scope).sum())(S_at)
    return argmin(lambda S, scope: _total(scope[SLOPE] * S) + retention(S, scope), retention, scope | {SLOPE: slope})


SLOPE = "grad loss"  # no expression can name it: names have no blanks


# The syntax tree in torch


def evaluate(tree: Expr, scope: Scope) -> Tensor:
    """The value of an expression; every value keeps its four axes."""
    match tree:
        case Number(digits):
            return next(iter(scope.values())).new_full((1, 1, 1, 1), float(digits))
        case Name(id):
            return scope[id]
        case Negate(operand):
            return -evaluate(operand, scope)
        case Binary(op, left, right):
            return OPERATORS[op](evaluate(left, scope), evaluate(right, scope))
        case Call(function, args):
            return FUNCTIONS[function](*(evaluate(arg, scope) for arg in args))


def _total(x: Tensor) -> Tensor:
    return x.sum((-2, -1), keepdim=True)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)


def _huber(x: Tensor, delta: Tensor) -> Tensor:
    """Elementwise: x^2 / 2 where |x| <= delta, delta (|x| - delta / 2) beyond."""
    return torch.where(x.abs() <= delta, x * x / 2, delta * (x.abs() - delta / 2))


def _predict(S: Tensor, key: Tensor) -> Tensor:
    """S' key: [N, HV, dk, dv], [N, HV, dk, 1] -> [N, HV, 1, dv]."""
    return (S * key).sum(-2, keepdim=True)


OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

# At a kink the derivative is torch's: 0 at abs(0), sign(0) and norm(0), half each at a tie of min or max.
FUNCTIONS = {
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sign": torch.sign,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "log_cosh": lambda x: torch.logaddexp(x, -x) - math.log(2),
    "square": lambda x: x * x,
    "min": torch.minimum,
    "max": torch.maximum,
    "where": torch.where,
    "huber": _huber,
    "sum": _total,
    "dot": lambda x, y: _total(x * y),
    "norm2": lambda x: _total(x * x),
    "norm": _norm,
}


# argmin


def argmin(objective: Callable[[Tensor, Scope], Tensor], retention: Callable, scope: Scope) -> Tensor:
    """argmin_S objective(S, scope) with exact first derivatives with respect to the scope's tensors.

    At the minimum the objective's slope g(S, scope) is zero, so dS = -H^-1 dg (implicit function theorem).
    The value comes from Newton's method on detached tensors; its derivative is that of -g, and on the way
    back a hook sends the cotangent through H^-1 (H is symmetric).
    """
    fixed = {name: x.detach() for name, x in scope.items()}
    with torch.no_grad():
        start = fixed["S_prev"]
        (curvature,) = vjp(_slope(lambda S: retention(S, fixed)), start)[1](torch.ones_like(start))
        S, solve = _newton(lambda S: objective(S, fixed), start, curvature)
    residual = _slope(lambda S: objective(S, scope))(S)  # zero, but not its derivatives
    if not residual.requires_grad:
        return S
    residual.register_hook(solve)
    return S - (residual - residual.detach())


def _slope(objective: Objective) -> Callable[[Tensor], Tensor]:
    return grad(lambda S: objective(S).sum())


def _newton(objective: Objective, S: Tensor, curvature: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The minimiser S, to rounding, and x -> H^-1 x there; each sequence and head is its own problem.

    curvature [N, HV, dk, dv]: row sums of the retention's Hessian, that is the Hessian itself where the
    retention is separable; it only preconditions.
    """
    slope = _slope(objective)
    eps = torch.finfo(S.dtype).eps

    def look(S: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        g, product = vjp(slope, S)
        return g, _norm(g), lambda x: conjugate_gradients(lambda y: product(y)[0], x, curvature)

    g, size, solve = look(S)
    scale = size
    for _ in range(100):
        scale = torch.maximum(scale, _norm(curvature * S))
        done = size <= 4 * eps * scale
        if done.all():
            return S, solve
        newton, length = solve(g), 1.0 - done.to(S.dtype)
        for _ in range(30):  # halve the step of each problem until its slope shrinks
            g_there, size_there, solve_there = look(S - length * newton)
            worse = ~done & ~(size_there < size)
            if not worse.any():
                break
            length = torch.where(worse, length / 2, length)
        else:  # no step helps: rounding is reached, or there is no smooth minimum
            if (size <= 1e4 * eps * scale)[worse].all():
                return S, solve
            break
        S, g, size, solve = S - length * newton, g_there, size_there, solve_there
    raise CheckFailed("the reference found no minimum of the update's objective: is it strictly convex in S?")


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, diagonal: Tensor) -> Tensor:
    """x with H x = b for symmetric positive definite H, to rounding, preconditioned by `diagonal`.

    All tensors [N, HV, dk, dv]; product is x -> H x. One step where H is diagonal, one more for each
    distinct eigenvalue that a loss adds to it.
    """
    diagonal = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal))
    x, r = torch.zeros_like(b), b
    z = direction = r / diagonal
    rz = _total(r * z)
    for _ in range(4 * max(b.shape[-2:]) + 16):
        image = product(direction)
        length = _ratio(rz, _total(direction * image))
        x, r = x + length * direction, r - length * image
        if (_norm(r) <= torch.finfo(b.dtype).eps * _norm(b)).all():
            break
        z = r / diagonal
        rz, previous = _total(r * z), rz
        direction = z + _ratio(rz, previous) * direction
    return x


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0: a problem that is already solved stays where it is."""
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b))
