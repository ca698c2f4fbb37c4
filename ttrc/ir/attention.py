"""What a spec of a kernel memory means, query by query, after SymPy has differentiated and solved it."""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.ir.recurrence import Feature, Gate, Readout
from ttrc.language.spec import Domain
from ttrc.symbolic import Expr, symbol

# What a similarity is made of, beside parameters: products over key channels, the query times the scale. No gate can be
# called so.
DOT, QUERY, KEY = symbol("QK"), symbol("QQ", Domain.NONNEGATIVE), symbol("KK", Domain.NONNEGATIVE)
SIZES = {DOT: "q_t' k_i", QUERY: "q_t' q_t", KEY: "k_i' k_i"}


@dataclass(frozen=True)
class Mean:
    """What a loss with curvature in p makes, the curvature a factor of each weight: sum_i w_ti + ridge_t divides."""

    log_ridge: Expr | None  # None where there is no ridge


@dataclass(frozen=True)
class Line:
    """What it makes of degree 1: beside the constant S a slope W, held by a ridge of its own.

    With the mean c_t of the keys, P_ti the shares of the weights and their divisor D_t, x_t solves

        ( sum_i P_ti (k_i - c_t)(k_i - c_t)' + ridge of W / D_t ) x_t = c_t - q_t,

    and o_t = sum_i P_ti (1 - (k_i - c_t)' x_t) value_i. A ridge of S is one more pair, its key the query and its value
    zero.
    """

    log_ridge: Expr | None
    log_slope: Expr  # the logarithm of W's ridge


@dataclass(frozen=True)
class Sum:
    """What a loss without curvature makes: ridge_t alone divides."""

    log_ridge: Expr


@dataclass(frozen=True)
class Attention:
    """o_t = sum over i <= t of w_ti value_i / divisor_t, with the divisor that `fit` says, and

    log w_ti = similarity(q_t, k_i) + log_weight_i + sum over i < j <= t of log_decay_j;

    of a line with what its system makes of them.

    `similarity` is over DOT, QUERY and KEY and parameters, `value` over v and gates, the others over gates: those of
    token i, of token t and of the tokens between. `log_decay` is None where nothing is forgotten. With a window
    the sums are over t - window < i <= t.
    """

    gates: tuple[Gate, ...]
    gradient: Expr  # dL/dp, the weight included
    similarity: Expr
    log_weight: Expr
    value: Expr
    fit: Mean | Line | Sum
    log_decay: Expr | None
    window: int | None = None
    features: tuple[Feature, ...] = ()
    readout: Readout | None = None


def seen(attention: Attention) -> str:
    """Which tokens i a query at t sees, for readers."""
    return "i <= t" if attention.window is None else f"t - {attention.window} < i <= t"
