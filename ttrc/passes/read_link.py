"""A spec's link -> its description in symbols: the only place that knows links by their kind."""

from __future__ import annotations

from ttrc import symbolic
from ttrc.language.spec import Exp, LqNorm, Sigmoid, Softmax, SoftThreshold
from ttrc.language.spec import Link as Declared
from ttrc.symbolic import Link, Scope, links


def read_link(declared: Declared | None, scope: Scope) -> Link | None:
    """None where the weights are the state."""
    match declared:
        case LqNorm(q, epsilon):
            return links.normalised(scope, q, epsilon)
        case Softmax(axis, scale):
            return links.softmax(scope, axis.value, scale)
        case SoftThreshold(threshold):
            return links.shrunk(scope, symbolic.convert(threshold.tree, scope))
        case Sigmoid():
            return links.logistic(scope)
        case Exp():
            return links.exponential(scope)
    return None
