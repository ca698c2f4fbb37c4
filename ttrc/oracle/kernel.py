"""A kernel memory: at each token the value that fits the whole history best, as seen from its query."""

from __future__ import annotations

import torch
from torch import Tensor

from ttrc.errors import CheckFailed
from ttrc.language.spec import KernelMemory, Spec
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
    """
    if not isinstance(spec.memory, KernelMemory) or spec.memory.degree != 0:
        raise CheckFailed("the reference fits a constant at each query: degree = 0")
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
        outputs.append(read_out(spec, scope, _fit_at(spec, scope, constants, torch.zeros_like(scope["v"]))))
    return torch.stack(outputs, dim=1) if outputs else tokens["v"][..., 0, :]


def _fit_at(spec: Spec, scope: Scope, constants: Scope, start: Tensor) -> Tensor:
    """S [N, HV, 1, dv] for the query of one token."""
    moving = [name for name in scope if PAST.format(name) in scope]

    def objective(S: Tensor, scope: Scope) -> Tensor:
        fixed = {name: scope[name][:, :, None] for name in constants}
        past = {name: scope[PAST.format(name)] for name in moving} | fixed
        near = evaluate(spec.memory.similarity.tree, past | {"q": scope["q"][:, :, None]}).exp()
        loss = evaluate(spec.loss.expr.tree, past | {"p": S[:, :, None]})
        if spec.loss.weight is not None:
            loss = evaluate(spec.loss.weight.tree, past) * loss
        own = evaluate(spec.retention.expr.tree, scope | {"S": S})
        return (scope[IMPORTANCE] * near * loss).sum(2) + own

    return argmin(objective, objective, scope | {"S_prev": start})
