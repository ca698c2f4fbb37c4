"""Refuses what has no value whatever its gates are: log(g) of a g that is never positive would be nan at every token.

Found by trying, at points that are spread over each gate's domain. An expression that has a value at one of them is
let through, for where its gates lie is the user's to say.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from ttrc.errors import SpecError
from ttrc.language.evaluate import evaluate, is_evaluated
from ttrc.language.spec import Domain
from ttrc.language.syntax import Call, Expr, children, names

# Values inside of each domain, small and large; ends that belong to it are last.
POINTS: dict[Domain, tuple[float, ...]] = {
    Domain.REAL: (-3.0, -0.7, 0.2, 1.6, 0.0),
    Domain.POSITIVE: (0.1, 0.6, 1.7, 5.0),
    Domain.NONNEGATIVE: (0.1, 0.6, 1.7, 5.0, 0.0),
    Domain.NEGATIVE: (-5.0, -1.7, -0.6, -0.1),
    Domain.UNIT: (0.1, 0.4, 0.9, 0.0, 1.0),
    Domain.DECAY: (0.1, 0.4, 0.9, 1.0),
    Domain.LOG_DECAY: (-5.0, -1.7, -0.6, -0.1, 0.0),
}
TRIES = 64


def check_values(tree: Expr, gates: Mapping[str, Domain]) -> None:
    """Raise a SpecError with the span of the smallest part of gates alone that has a value nowhere in their domains."""
    for child in children(tree):
        check_values(child, gates)
    match tree:
        case Call("huber", (_, threshold)):
            _check_threshold(threshold, gates)
    if not names(tree) or not _is_of(tree, gates):
        return
    failures = [_failure(tree, values) for values in _points(tree, gates)]
    if all(failures):
        raise SpecError(
            f"{failures[0].message}{_whatever(tree, gates)}",
            span=tree.span,
            expected="an expression that has values where its gates lie",
        )


def _check_threshold(tree: Expr, gates: Mapping[str, Domain]) -> None:
    """huber(x, 0) is 0 for every x, so that a loss made of it would teach nothing."""
    if not _is_of(tree, gates):
        return
    numbers = [evaluate(tree, values) for values in _points(tree, gates) if _failure(tree, values) is None]
    if numbers and max(numbers) <= 0:
        raise SpecError(
            f"the threshold of huber is never above 0{_whatever(tree, gates)}",
            span=tree.span,
            expected='a positive one, such as 1 or a gate whose domain is "positive"',
        )


def _is_of(tree: Expr, gates: Mapping[str, Domain]) -> bool:
    """Whether these gates and numbers are all that its value takes."""
    return names(tree) <= gates.keys() and is_evaluated(tree)


def _points(tree: Expr, gates: Mapping[str, Domain]) -> list[dict[str, float]]:
    draw, used = random.Random(0), sorted(names(tree))
    return [{name: draw.choice(POINTS[gates[name]]) for name in used} for _ in range(TRIES)]


def _whatever(tree: Expr, gates: Mapping[str, Domain]) -> str:
    told = ", ".join(f'"{name}" is declared {gates[name].value}' for name in sorted(names(tree)))
    return f", whatever its gates are: {told}" if told else ""


def _failure(tree: Expr, values: Mapping[str, float]) -> SpecError | None:
    try:
        evaluate(tree, values)
    except SpecError as error:
        return error
    return None
