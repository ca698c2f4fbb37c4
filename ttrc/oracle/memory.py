"""One token's step of a memory: what it predicts, and what its state becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor
from torch.func import grad

from ttrc.errors import CheckFailed
from ttrc.language.spec import (
    At,
    ClosedForm,
    Gradient,
    LinearMemory,
    Link,
    Loss,
    LqNorm,
    MLPMemory,
    OfSlices,
    Proximal,
    Slice,
    Softmax,
    SoftThreshold,
    Spec,
    VectorMemory,
)
from ttrc.language.spec import Memory as Architecture
from ttrc.language.syntax import Call, Expr, walk
from ttrc.oracle.closed_form import fit, fit_entries
from ttrc.oracle.expressions import Scope, evaluate, total
from ttrc.oracle.minimise import argmin

Matrices = tuple[Tensor, ...]  # one, or one a layer: each [N, HV, rows, columns]; of a vector memory a single row


@dataclass(frozen=True)
class Memory:
    """S is what the update moves, M its last steps (none without momentum), W the weights that predictions read.

    Of a closed form S is what it knows of the past, and W the minimum.
    W is S, or the link of S; inside of a segment with a link it moves on its own. start is W at the segment's start.
    """

    S: Matrices
    M: Matrices
    W: Matrices
    start: Matrices


def enter(spec: Spec, scope: Scope, S: Matrices, M: Matrices) -> Memory:
    """The memory at the start of a sequence or segment. scope holds at least the parameters."""
    W = _linked(spec.retention.link, S, scope)
    return Memory(S, M, W, W)


def step(spec: Spec, scope: Scope, memory: Memory) -> Memory:
    """The memory after one token. scope: k, v and the gates of this token."""
    link, kinked = spec.retention.link, _has_kinks(spec.retention.expr.tree)

    def value_of(own: Loss, W: Matrices, scope: Scope) -> Tensor:
        return of_prediction(own, predict(spec.memory, W, _key(own, scope), scope), scope)

    def slope_of(own: Loss, W: Matrices) -> Matrices:
        """The gradient of one loss by the weights; what the spec writes under another key, where it names one."""
        if own.write is None:
            return grad(lambda W: value_of(own, W, scope).sum())(W)
        p = predict(spec.memory, W, _key(own, scope), scope)
        return (evaluate(own.write.tree, scope) * grad(lambda p: of_prediction(own, p, scope).sum())(p),)

    def retention(S: Tensor, scope: Scope) -> Tensor:
        return evaluate(spec.retention.expr.tree, scope | {"S": S})

    def retained(S_prev: Matrices) -> Matrices:
        return tuple(argmin(retention, retention, scope | {"S_prev": S}, kinked=kinked) for S in S_prev)

    match spec.update:
        case Gradient(at=At.PREVIOUS):
            W_at = memory.W
        case Gradient(at=At.RETAINED | At.IN_TURN):
            W_at = _linked(link, retained(memory.S), scope)
        case Gradient(at=At.SEGMENT_START):
            W_at = memory.start
        case ClosedForm():
            slope = grad(lambda W, scope: value_of(spec.loss, (W,), scope).sum())
            decay = None if spec.retention.decay is None else evaluate(spec.retention.decay.tree, scope)
            fitted = fit_entries if isinstance(spec.memory, VectorMemory) else fit
            past, W = fitted(slope, grad(lambda W, scope: retention(W, scope).sum()), scope, memory.S, decay)
            return replace(memory, S=past, W=(W,))
        case Proximal() if kinked:
            raise CheckFailed("the reference takes no proximal step of a retention with kinks")
        case Proximal():
            (S_prev,) = memory.S

            def objective(S: Tensor, scope: Scope) -> Tensor:
                return value_of(spec.loss, (S,), scope) + retention(S, scope)

            S = argmin(objective, retention, scope | {"S_prev": S_prev})
            return replace(memory, S=(S,), W=(S,))

    def pulled(S: Tensor, scope: Scope) -> Tensor:
        return total(scope[SLOPE] * S) + retention(S, scope)

    def pulled_to(slopes: Matrices) -> Matrices:
        return tuple(
            argmin(pulled, retention, scope | {"S_prev": S_prev, SLOPE: slope}, kinked=kinked)
            for S_prev, slope in zip(memory.S, slopes)
        )

    first, *others = spec.losses
    slopes = slope_of(first, W_at)
    for own in others:
        if spec.update.at is At.IN_TURN:
            W_at = _linked(link, pulled_to(slopes), scope)
        slopes = _each(torch.add, slopes, slope_of(own, W_at))
    S = pulled_to(slopes)
    moves_alone = link is not None and spec.update.at is At.SEGMENT_START
    if spec.update.momentum is None and not moves_alone:
        return replace(memory, S=S, W=_linked(link, S, scope))
    kept = retained(memory.S)
    steps = _each(torch.sub, S, kept)
    M = memory.M
    if spec.update.momentum is not None:
        share = evaluate(spec.update.momentum.tree, scope)
        M = steps = tuple(share * last + own for last, own in zip(memory.M, steps))
    S = _each(torch.add, kept, steps)
    W = _each(torch.add, retained(memory.W), steps) if moves_alone else _linked(link, S, scope)
    return replace(memory, S=S, M=M, W=W)


def of_prediction(loss: Loss, p: Tensor, scope: Scope) -> Tensor:
    value = evaluate(loss.expr.tree, scope | {"p": p})
    return value if loss.weight is None else evaluate(loss.weight.tree, scope) * value


def _key(loss: Loss, scope: Scope) -> Tensor:
    return scope["k"] if loss.key is None else evaluate(loss.key.tree, scope)


SLOPE = "grad loss"  # no expression can name it: names have no blanks


def _each(operation, a: Matrices, b: Matrices) -> Matrices:
    return tuple(operation(x, y) for x, y in zip(a, b))


def _has_kinks(tree: Expr) -> bool:
    return any(isinstance(node, Call) and node.function in ("abs", "min", "max", "where") for node in walk(tree))


# Predictions


NORM_EPS = 1e-6


def predict(memory: Architecture, W: Matrices, key: Tensor, scope: Scope) -> Tensor:
    """f(key), [N, HV, dk, 1] -> [N, HV, 1, dv]; of a vector memory a row already.

    scope: the parameters, norm_weight and norm_bias among them where the memory has a norm.
    """
    match memory:
        case LinearMemory():
            return (W[0] * key).sum(-2, keepdim=True)
        case VectorMemory():
            return W[0] * key
        case MLPMemory():
            x = row = key.mT
            *inner, last = W
            each = iter(inner)
            for weights in each:
                made = evaluate(memory.activation.tree, scope | {"x": x @ weights})
                x = made * (x @ next(each)) if memory.gated else made
            x = x @ last
            if memory.norm:
                centred = x - x.mean(-1, keepdim=True)
                spread = (centred.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()
                x = scope["norm_weight"] * centred / spread + scope["norm_bias"]
            return row + x if memory.residual else x
    raise AssertionError(memory)


# Links


ROWS, COLUMNS = -2, -1
SLICES = {Slice.KEY: (ROWS,), Slice.VALUE: (COLUMNS,), Slice.ALL: (ROWS, COLUMNS)}


def _linked(link: Optional[Link], S: Matrices, scope: Scope) -> Matrices:
    return tuple(_weights(link, A, scope) for A in S)


def _weights(link: Optional[Link], A: Tensor, scope: Scope) -> Tensor:
    """The weights that a link makes of A, both [N, HV, rows, columns]."""
    match link:
        case None:
            return A
        case LqNorm(q, epsilon):
            return A / (_norm2_of_order(A, float(q)) + float(epsilon)) ** (float(q - 2) / 2)
        case Softmax(axis, scale):
            spread = A - torch.logsumexp(A, SLICES[axis], keepdim=True)
            return float(scale) * spread.exp()
        case SoftThreshold(threshold):
            cut = evaluate(threshold.tree, scope | {"S": A})  # of a plain number, the state's dtype
            return A.sign() * torch.relu(A.abs() - cut)
        case OfSlices(expr, axis):
            return _by_slice(axis, lambda S: evaluate(expr.tree, scope | {"S": S}), A)


def _by_slice(axis: Slice, weights: Callable[[Tensor], Tensor], A: Tensor) -> Tensor:
    """Each slice alone, a matrix of one row or column: sums of an expression are over all that it is given."""
    match axis:
        case Slice.KEY:
            return torch.cat([weights(column) for column in A.split(1, COLUMNS)], COLUMNS)
        case Slice.VALUE:
            return torch.cat([weights(row) for row in A.split(1, ROWS)], ROWS)
    return weights(A)


def _norm2_of_order(A: Tensor, q: float) -> Tensor:
    """(sum |A|^q)^(2 / q); zero with a zero derivative where A is zero."""
    powers = (A.abs() ** q).sum((ROWS, COLUMNS), keepdim=True)
    empty = powers == 0
    return (powers.masked_fill(empty, 1.0) ** (2 / q)).masked_fill(empty, 0.0)
