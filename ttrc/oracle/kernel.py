"""A kernel memory: at each token the value that fits the whole history best, as seen from its query."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad

from ttrc.language.spec import Spec
from ttrc.oracle.closed_form import minimum
from ttrc.oracle.expressions import Scope, evaluate
from ttrc.oracle.minimise import argmin
from ttrc.oracle.read import read_out

IMPORTANCE = "importance"  # of what came before: products of decays, [N, HV, i, 1, 1]
PAST = "past {}"  # a token's tensors, all tokens up to this one, [N, HV, i, ., .]; no expression can name it


def fit(spec: Spec, tokens: Scope, constants: Scope) -> Tensor:
    """tokens: [N, T, HV, ., .]. Returns o [N, T, HV, dv].

    With i the last `window` tokens up to t, or all of them:
    o_t = argmin_S sum over i of (product of decay_j, i < j <= t) exp(similarity(q_t, k_i)) weight_i loss_i(S)
          + retention_t(S)

    Of degree 1 the loss is of S + W' (k_i - q_t), and the minimum is over W too.
    """
    fit_at = _line_at if spec.memory.degree else _constant_at
    history = {name: x.transpose(1, 2) for name, x in tokens.items()}
    importance = tokens["v"].new_zeros(*history["v"].shape[:2], 0, 1, 1)
    outputs = []
    for t in range(tokens["v"].shape[1]):
        scope = {name: x[:, t] for name, x in tokens.items()} | constants
        if spec.retention.decay is not None:
            importance = importance * evaluate(spec.retention.decay.tree, scope)[:, :, None]
        importance = torch.cat([importance, importance.new_ones(*importance.shape[:2], 1, 1, 1)], dim=2)
        first = 0 if spec.memory.window is None else max(0, t + 1 - spec.memory.window)
        scope |= {PAST.format(name): x[:, :, first : t + 1] for name, x in history.items()}
        scope |= {IMPORTANCE: importance[:, :, first:]}
        outputs.append(read_out(spec, scope, fit_at(spec, scope, constants)))
    return torch.stack(outputs, dim=1) if outputs else tokens["v"][..., 0, :]


def _constant_at(spec: Spec, scope: Scope, constants: Scope) -> Tensor:
    """S [N, HV, 1, dv] for the query of one token."""

    def objective(S: Tensor, scope: Scope) -> Tensor:
        return _loss(spec, scope, constants, S[:, :, None]) + evaluate(spec.retention.expr.tree, scope | {"S": S})

    return argmin(objective, objective, scope | {"S_prev": torch.zeros_like(scope["v"])})


def _line_at(spec: Spec, scope: Scope, constants: Scope) -> Tensor:
    """The same where S and a slope W [N, HV, dk, dv] are the minimum together: one matrix, S its first row."""
    away = scope[PAST.format("k")] - scope["q"][:, :, None]

    def objective(both: Tensor, scope: Scope) -> Tensor:
        S, W = both[..., :1, :], both[..., 1:, :]
        p = S[:, :, None] + (W[:, :, None] * away).sum(-2, keepdim=True)
        own = evaluate(spec.retention.expr.tree, scope | {"S": S, "W": W})
        return (_loss(spec, scope, constants, p) + own).sum()

    v = scope["v"]
    like = v.new_zeros(*v.shape[:2], 1 + away.shape[-2], v.shape[-1])
    return minimum(grad(objective), scope, like)[..., :1, :]


def _loss(spec: Spec, scope: Scope, constants: Scope, p: Tensor) -> Tensor:
    """What the pairs of one query come to; p [N, HV, i or 1, 1, dv]."""
    moving = [name for name in scope if PAST.format(name) in scope]
    past = {name: scope[PAST.format(name)] for name in moving} | {n: scope[n][:, :, None] for n in constants}
    near = evaluate(spec.memory.similarity.tree, past | {"q": scope["q"][:, :, None]}).exp()
    loss = evaluate(spec.loss.expr.tree, past | {"p": p})
    if spec.loss.weight is not None:
        loss = evaluate(spec.loss.weight.tree, past) * loss
    return (scope[IMPORTANCE] * near * loss).sum(2)
