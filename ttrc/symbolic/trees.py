"""Checked syntax trees as elementwise SymPy expressions: the one place where the text of a spec becomes algebra."""

from __future__ import annotations

import sympy

from ttrc.language.syntax import Binary, Call, Name, Negate, Number
from ttrc.language.syntax import Expr as Tree
from ttrc.symbolic.algebra import Expr, Scope, number
from ttrc.symbolic.functions import (
    choose,
    gelu,
    huber,
    larger,
    log_cosh,
    magnitude,
    sigmoid,
    smaller,
    softplus,
    step_sign,
)


def convert(tree: Tree, scope: Scope) -> Expr:
    """A checked syntax tree as an elementwise SymPy expression."""
    match tree:
        case Number(digits):
            return number(digits)
        case Name(name):
            return scope.symbols[name]
        case Negate(operand):
            return -convert(operand, scope)
        case Call("where", (Binary(relation, left, right), yes, no)):
            return _where(relation, *(convert(t, scope) for t in (left, right, yes, no)))
        case Binary(op, left, right):
            return _BINARY[op](convert(left, scope), convert(right, scope))
        case Call(function, args):
            return _call(function, tuple(convert(a, scope) for a in args), scope)
    raise AssertionError(tree)


_BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: _plain(a**b),
}


def _plain(power: Expr) -> Expr:
    """SymPy makes sqrt(x**2) its own |x|: ours has a derivative at 0."""
    return power.replace(sympy.Abs, magnitude)


def _where(relation: str, left: Expr, right: Expr, yes: Expr, no: Expr) -> Expr:
    """Every comparison in terms of <=."""
    match relation:
        case "<=":
            return choose(left, right, yes, no)
        case ">=":
            return choose(right, left, yes, no)
        case "<":
            return choose(right, left, no, yes)
        case _:
            return choose(left, right, no, yes)


def _huber(x: Expr, delta: Expr) -> Expr:
    """A threshold below 0 is 0, and what nothing is known of has to be looked at."""
    return huber(x, delta if delta.is_nonnegative else larger(delta, sympy.S.Zero))


_ELEMENTWISE = {
    "abs": magnitude,
    "sign": step_sign,
    "exp": sympy.exp,
    "log": sympy.log,
    "sqrt": lambda x: _plain(sympy.sqrt(x)),
    "tanh": sympy.tanh,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "gelu": gelu,
    "log_cosh": log_cosh,
    "square": lambda x: x**2,
    "min": smaller,
    "max": larger,
    "huber": _huber,
}


def _call(function: str, args: tuple[Expr, ...], scope: Scope) -> Expr:
    match function, args:
        case "sum", (x,):
            return scope.reduce(x)
        case "dot", (x, y):
            return scope.reduce(x * y)
        case "count", (x,):
            return scope.count(x)
        case "norm2", (x,):
            return scope.reduce(x**2)
        case "norm", (x,):
            return sympy.sqrt(scope.reduce(x**2))
    return _ELEMENTWISE[function](*args)
