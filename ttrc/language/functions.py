"""The functions that an expression may call: a fixed table, nothing else can be called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["elementwise", "reduction"]


@dataclass(frozen=True)
class Function:
    """An elementwise function broadcasts its arguments; a reduction takes vectors or matrices to one number."""

    name: str
    arity: tuple[int, int]  # fewest and most arguments
    kind: Kind
    doc: str


_TABLE = (
    Function("sum", (1, 1), "reduction", "sum of all entries"),
    Function("dot", (2, 2), "reduction", "sum of the entries of a * b"),
    Function("norm", (1, 1), "reduction", "square root of the sum of squares"),
    Function("norm2", (1, 1), "reduction", "sum of squares: the norm squared"),
    Function("count", (1, 1), "reduction", "number of entries, of a vector its channels"),
    Function(
        "huber",
        (2, 2),
        "elementwise",
        "huber(x, delta): x**2 / 2 up to |x| = delta, then a line; below 0 delta counts as 0",
    ),
    Function("log_cosh", (1, 1), "elementwise", "log of the hyperbolic cosine"),
    Function("abs", (1, 1), "elementwise", "absolute value"),
    Function("sign", (1, 1), "elementwise", "-1, 0 or 1"),
    Function("exp", (1, 1), "elementwise", "exponential"),
    Function("log", (1, 1), "elementwise", "natural logarithm"),
    Function("sqrt", (1, 1), "elementwise", "square root"),
    Function("square", (1, 1), "elementwise", "x * x"),
    Function("tanh", (1, 1), "elementwise", "hyperbolic tangent"),
    Function("sigmoid", (1, 1), "elementwise", "1 / (1 + exp(-x))"),
    Function("softplus", (1, 1), "elementwise", "log(1 + exp(x))"),
    Function("gelu", (1, 1), "elementwise", "x times the normal distribution function, by its tanh approximation"),
    Function("min", (2, 2), "elementwise", "the smaller of two"),
    Function("max", (2, 2), "elementwise", "the larger of two"),
    Function("where", (3, 3), "elementwise", "where(condition, a, b): a where the comparison holds, else b"),
)

FUNCTIONS = {function.name: function for function in _TABLE}

# What people write by habit, and how it is written here.
HABITS = {
    "pow": "a power is written a ** b",
    "ln": 'the natural logarithm is "log"',
    "relu": "write max(x, 0)",
    "silu": "write x * sigmoid(x)",
    "swish": "write x * sigmoid(x)",
    "clip": "write min(max(x, low), high)",
    "mean": "write sum(x) and put the constant in front",
    "mse": "write norm2(p - v)",
    "softmax": "write exp(x) / sum(exp(x))",
    "transpose": "nothing here needs a transpose: dot(a, b) contracts, the rest is elementwise",
}
