"""The class of a kernel memory and its derivation, for readers: what classify.py and mathematics.py show of it."""

from __future__ import annotations

from ttrc import symbolic
from ttrc.ir.attention import SIZES, Attention, Line, Mean, Sum, seen
from ttrc.ir.recurrence import answered
from ttrc.language.spec import Parameter
from ttrc.symbolic import ZERO
from ttrc.tools import notation
from ttrc.tools.notation import line


def headline(a: Attention) -> str:
    error, ridge = ("Hebbian", None) if isinstance(a.fit, Sum) else ("affine", a.fit.log_ridge)
    more = (", line" if isinstance(a.fit, Line) else "") + ("" if ridge is None else ", ridge")
    more += "" if a.window is None else ", window"
    return f"kernel memory, {error} error, {_decay_kind(a)} decay{more}"


def _decay_kind(a: Attention) -> str:
    if a.log_decay is None:
        return "no"
    fixed = {g.name for g in a.gates if isinstance(g, Parameter)}
    return "constant" if symbolic.names(a.log_decay) <= fixed else "data-dependent"


def aspects(a: Attention) -> tuple[tuple[str, str, str], ...]:
    """(aspect, verdict, because) of each finding."""
    e, value = symbolic.equation(a.gradient), symbolic.equation(a.value)
    near = symbolic.equation(a.similarity)
    match a.fit:
        case Mean():
            fit, why = "mean", f"is a positive number times p less {value}, so that the minimum is a mean of the latter"
            worked, sums = "worked with as a logarithm throughout", ", relative to the largest logit so far"
        case Line():
            why = (
                f"is a positive number times p less {value}, and p = S + W' (k - q), so that S is a mean of the latter"
            )
            fit, why = "mean", f"{why} whose weights a system of each query corrects"
            worked, sums = "worked with as a logarithm throughout", "; a search goes over them in each of its steps"
        case Sum(log_ridge):
            ridge = f" exp({symbolic.equation(log_ridge)})" if log_ridge != ZERO else ""
            fit, why = "sum", f"is free of p, so that the minimum is a sum of {value}, divided by the ridge{ridge}"
            worked, sums = "and nothing divides by the weights' sum: they are taken as they are", ""
    found = [
        ("fit", f"a value for each query: a weighted {fit} of all that it sees", f"dL/dp = {e} {why}"),
        ("weights", "exp(similarity), of each pair", f"similarity = {near}, {worked}"),
    ]
    match _decay_kind(a):
        case "no":
            found.append(("decay", "none", "all pairs keep their importance, and nothing is paid for it"))
        case kind:
            log = symbolic.equation(a.log_decay)
            every = "comes per token" if kind == "data-dependent" else "has nothing that comes per token"
            found.append(
                ("decay", f"{kind}, a scalar a head", f"log a = {log} {every}; pairs take differences of sums")
            )
    if a.window is not None:
        skipped = "blocks of older pairs alone are not visited, and only those that its edge crosses are masked"
        found.append(("window", f"the last {a.window} tokens of each query, its own among them", skipped))
    if isinstance(a.fit, Line):
        log = symbolic.equation(a.fit.log_slope)
        found.append(
            ("slope", "held by a ridge, which every system has", f"exp({log}) on the diagonal, provably positive")
        )
    if not isinstance(a.fit, Sum) and a.fit.log_ridge is not None:
        log = symbolic.equation(a.fit.log_ridge)
        found.append(("ridge", "a weight that pulls towards 0", f"exp({log}) stands beside the weights of the pairs"))
    return (
        *found,
        ("chunk form", "exact for every block of tokens", f"sums over pairs, block by block{sums}"),
        ("recurrent form", "none: all pairs are kept", "a query weighs every pair anew: no state holds them all"),
    )


def derivation(a: Attention) -> tuple[tuple[str, tuple[notation.Line, ...], str], ...]:
    """(title, lines, note) of each step."""
    sizes = [line(f"{{}} = {text}", s) for s, text in SIZES.items() if s in a.similarity.free_symbols]
    weight, used = "log w_ti = {}", [a.similarity]
    if a.log_weight != ZERO:
        weight, used = weight + " + {}", [*used, a.log_weight]
    if a.log_decay is not None:
        weight += " + A_t - A_i"
        sizes.append(line("A_t = A_prev + {}", a.log_decay))
    ridge = () if a.fit.log_ridge is None else (line("log r = {}", a.fit.log_ridge),)
    match a.fit:
        case Mean(None):
            mean = "S_t = sum_i w_ti {} / sum_i w_ti"
        case Mean():
            mean = "S_t = sum_i w_ti {} / ( r + sum_i w_ti )"
        case Line():
            mean = "S_t = sum_i P_ti ( 1 - (k_i - c_t)' x_t ) {}"
        case Sum():
            mean = "S_t = sum_i w_ti {} / r"
    system = () if not isinstance(a.fit, Line) else (("System", _system(a.fit), "of each query, solved by a search"),)
    return (
        ("Loss", (line("dL/dp = {}", a.gradient),), "weight included; p = S is the value fitted at a query"),
        ("Weights", (line(weight, *used), *sizes), f"of each pair, {seen(a)}; gates are those of token i"),
        *system,
        (
            "Fit",
            (line(mean, a.value), *ridge, line(f"{answered(a.readout)}_t = S_t")),
            "where the slope of the sum over all pairs is 0",
        ),
    )


def _system(fit: Line) -> tuple[notation.Line, ...]:
    """What stands beside the weights of a line: c_t the mean of the keys, x_t what corrects them."""
    pulled = fit.log_ridge is not None
    divisor = "( r + sum_i w_ti )" if pulled else "sum_i w_ti"
    own, mean = (" + d_t (q_t - c_t)(q_t - c_t)'", " + d_t q_t") if pulled else ("", "")
    return (
        line(f"P_ti = w_ti / {divisor}" + (f", d_t = r / {divisor}" if pulled else "")),
        line(f"c_t = sum_i P_ti k_i{mean}"),
        line(f"( sum_i P_ti (k_i - c_t)(k_i - c_t)'{own} + l_t ) x_t = c_t - q_t"),
        line(f"log l_t = {{}} - log {divisor}", fit.log_slope),
    )
