"""The syntax tree of a spec's expressions: frozen nodes, each with the span it came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Union


@dataclass(frozen=True)
class Span:
    """Half-open character range [start, end) within one expression's text."""

    start: int
    end: int


@dataclass(frozen=True)
class Number:
    """A decimal literal, kept as its validated digits so that no precision is lost: "0.5", "1e-6"."""

    digits: str
    span: Span


@dataclass(frozen=True)
class Name:
    """A declared input, or one of the words a section provides (p, v, k, q, S, S_prev)."""

    id: str
    span: Span


@dataclass(frozen=True)
class Negate:
    operand: Expr
    span: Span


@dataclass(frozen=True)
class Binary:
    """op is one of + - * / ** < <= > >= ; comparisons are allowed only as where()'s condition."""

    op: str
    left: Expr
    right: Expr
    span: Span


@dataclass(frozen=True)
class Call:
    """A function of the fixed table, see ttrc.language.functions."""

    function: str
    args: tuple[Expr, ...]
    span: Span


Expr = Union[Number, Name, Negate, Binary, Call]


def children(tree: Expr) -> tuple[Expr, ...]:
    """The nodes directly below this one, from left to right."""
    match tree:
        case Negate(operand):
            return (operand,)
        case Binary(_, left, right):
            return (left, right)
        case Call(_, args):
            return args
        case _:
            return ()


def walk(tree: Expr) -> Iterator[Expr]:
    """The tree's nodes, each before those below it, in the order of the text. Needs no recursion."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(reversed(children(node)))


def names(tree: Expr) -> frozenset[str]:
    """The names that the expression uses."""
    return frozenset(node.id for node in walk(tree) if isinstance(node, Name))
