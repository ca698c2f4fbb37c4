"""Shape inference: which feature axes each expression carries, "k" (key channels) and "v" (value channels).

A number broadcasts with everything, a vector with the matrix that has its axis. A key vector and a value vector
never combine elementwise: that would be a matrix by accident, so it is an error that points at the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from ttrc.errors import SpecError, did_you_mean
from ttrc.language.functions import FUNCTIONS
from ttrc.language.syntax import Binary, Call, Expr, Name, Negate, Number, Span

Axes = frozenset[str]
Scope = Mapping[str, Axes]

SCALAR: Axes = frozenset()

_SUMS = "reduce them to numbers first, with sum(...) or with dot(a, b) of two vectors of one kind"
_TURNS = "multiply the matrix by one and then by the other, a * (b * S_prev)"


def infer(tree: Expr, scope: Scope) -> Axes:
    """The axes of the expression's value, given the axes of the names it may use."""
    match tree:
        case Number():
            return SCALAR
        case Name(id, span):
            if id not in scope:
                raise _unknown(id, span, scope)
            return scope[id]
        case Negate(operand):
            return infer(operand, scope)
        case Binary(_, left, right, span):
            return _broadcast(infer(left, scope), infer(right, scope), span, scope)
        case Call(function, args, span):
            axes = [infer(arg, scope) for arg in args]
            if FUNCTIONS[function].kind == "elementwise":
                return reduce(lambda a, b: _broadcast(a, b, span, scope), axes)
            _check_reduction(function, axes, span)
            return SCALAR


def describe(axes: Axes) -> str:
    """What a user would call a value with these axes."""
    match sorted(axes):
        case []:
            return "a number"
        case ["k"]:
            return "a key vector [k]"
        case ["v"]:
            return "a value vector [v]"
        case _:
            return "a matrix [k, v]"


def _broadcast(a: Axes, b: Axes, span: Span, scope: Scope) -> Axes:
    if a <= b or b <= a:
        return a | b
    raise SpecError(
        f"{describe(a)} and {describe(b)} do not combine elementwise",
        span=span,
        expected="operands of one shape, or a number and a vector",
        hint=_TURNS if "S_prev" in scope else _SUMS,
    )


def _check_reduction(function: str, axes: list[Axes], span: Span) -> None:
    """A reduction over a number, or over operands of two shapes, would depend on how often they are repeated."""
    if not all(axes):
        raise SpecError(
            f"{function} got a number, which has nothing to reduce",
            span=span,
            expected=f"a vector or a matrix: {FUNCTIONS[function].doc}",
            hint="of a number, write square(x) or abs(x)" if function.startswith("norm") else None,
        )
    if len(set(axes)) > 1:
        raise SpecError(
            f"{function} got {' and '.join(map(describe, axes))}",
            span=span,
            expected="arguments of one shape",
        )


def _unknown(name: str, span: Span, scope: Scope) -> SpecError:
    hint = f"{name} is a function: write {name}(...)" if name in FUNCTIONS else did_you_mean(name, scope)
    return SpecError(
        f'unknown name "{name}"',
        span=span,
        expected="one of " + ", ".join(sorted(scope)) if scope else "numbers only",
        hint=hint or "an input or parameter is declared in [inputs] or [parameters]",
    )
