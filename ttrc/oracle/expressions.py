"""The syntax tree of an expression, in torch.

A value is a tensor [N, HV, rows or 1, columns or 1]: N sequences, HV value heads, then the feature axes, of size 1
where the value lacks them. So torch's broadcasting is broadcasting by axis name: S [N, HV, dk, dv], k [N, HV, dk, 1],
p and v [N, HV, 1, dv], a per-head gate [N, HV, 1, 1].
"""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

from ttrc.language.syntax import Binary, Call, Expr, Name, Negate, Number

Scope = dict[str, Tensor]  # name -> [N, HV, rows or 1, columns or 1]


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


def total(x: Tensor) -> Tensor:
    return x.sum((-2, -1), keepdim=True)


def norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), beyond 40 x itself, which float64 cannot tell from it; derivatives of any order are finite."""
    return torch.nn.functional.softplus(x, threshold=40.0)


def _huber(x: Tensor, delta: Tensor) -> Tensor:
    """Elementwise: x^2 / 2 where |x| <= delta, delta (|x| - delta / 2) beyond; a delta below 0 is 0."""
    delta = torch.where(delta < 0, 0.0, delta)
    return torch.where(x.abs() <= delta, x * x / 2, delta * (x.abs() - delta / 2))


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
    "softplus": _softplus,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "log_cosh": lambda x: _softplus(2 * x) - x - math.log(2),
    "square": lambda x: x * x,
    "min": torch.minimum,
    "max": torch.maximum,
    "where": torch.where,
    "huber": _huber,
    "sum": total,
    "dot": lambda x, y: total(x * y),
    "norm2": lambda x: total(x * x),
    "norm": norm,
    "count": lambda x: x.new_full((1, 1, 1, 1), float(x.shape[-2] * x.shape[-1])),
}
