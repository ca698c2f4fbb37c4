"""Numbers out of expressions that depend on nothing but constants, and on `head` and `heads` in a default."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

from ttrc.errors import SpecError
from ttrc.language.syntax import Binary, Call, Expr, Name, Negate, Number, walk


def _gelu(x: float) -> float:
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _huber(x: float, delta: float) -> float:
    delta = max(delta, 0.0)
    return x * x / 2 if abs(x) <= delta else delta * (abs(x) - delta / 2)


_OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": math.pow,  # unlike Python's own: always a float, never a complex number
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

# The elementwise functions of the table, in forms that do not overflow where their value does not.
_FUNCTIONS = {
    "abs": abs,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "square": lambda x: x * x,
    "tanh": math.tanh,
    "sigmoid": lambda x: (1 + math.tanh(x / 2)) / 2,
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "log_cosh": lambda x: abs(x) + math.log1p(math.exp(-2 * abs(x))) - math.log(2),
    "gelu": _gelu,
    "huber": _huber,
    "min": min,
    "max": max,
    "where": lambda condition, a, b: a if condition else b,
}


def is_evaluated(tree: Expr) -> bool:
    """Whether the expression has elementwise functions alone, no sums."""
    return all(node.function in _FUNCTIONS for node in walk(tree) if isinstance(node, Call))


def evaluate(tree: Expr, values: Mapping[str, float]) -> float:
    """The finite value of an expression of numbers, or a SpecError with the span of what has none."""
    match tree:
        case Number(digits):
            return float(digits)
        case Name(id):
            return float(values[id])
        case Negate(operand):
            return -evaluate(operand, values)
        case Binary(op, left, right):
            function, arguments = _OPERATORS[op], (left, right)
        case Call(name, arguments):
            function = _FUNCTIONS[name]
    numbers = [evaluate(argument, values) for argument in arguments]
    try:
        result = function(*numbers)
    except ZeroDivisionError:
        raise SpecError("division by zero", span=tree.span) from None
    except ValueError:
        raise SpecError("no real number has this value", span=tree.span) from None
    except OverflowError:
        raise SpecError("the value is too large", span=tree.span) from None
    if not math.isfinite(result):
        raise SpecError("the value is too large", span=tree.span)
    return result


def evaluate_default(tree: Expr, head: int, heads: int) -> float:
    """A parameter's default for one head, counted from 0, of `heads` heads."""
    return evaluate(tree, {"head": head, "heads": heads})
