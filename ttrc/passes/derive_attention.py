"""Spec of a kernel memory -> Attention: the loss differentiated, the fit at each query solved for S.

    S = argmin sum over i <= t of w_ti loss(S, v_i) + retention(S)

With dL/dp = c p - u and a retention's slope ridge * S that is sum w u / (sum w c + ridge). Where the loss is curved,
c > 0, it is a mean of the values u / c, whose weights w c are worked with as logarithms throughout; where it is not,
c = 0, a sum over the ridge. Of degree 1 p = S + W' (k - q), the minimum is over W too, and the same holds of what is
curved (`Line`).
"""

from __future__ import annotations

import math

from ttrc import symbolic
from ttrc.errors import SpecError
from ttrc.ir.attention import DOT, KEY, QUERY, Attention, Line, Mean, Sum
from ttrc.language.document import read_document
from ttrc.language.spec import Located, Per, Spec
from ttrc.language.syntax import Name, names, walk
from ttrc.passes.derive_features import read_features
from ttrc.passes.derive_readout import read_readout
from ttrc.passes.have_values import have_values
from ttrc.passes.refuse import refuse
from ttrc.symbolic import ONE, ZERO, Expr, Scope

LARGEST = 200  # operations of an expression of each pair
SIMILAR = "dot(q, k), norm2(q), norm2(k), norm2(q - k) and parameters"


def derive_attention(spec: Spec) -> Attention:
    similarity = spec.memory.similarity
    gates = (*spec.inputs, *spec.parameters)
    _check_channels(spec)
    _check_queries(spec)
    symbols = {g.name: symbolic.symbol(g.name, g.domain) for g in gates}
    axes: dict[symbolic.Symbol, tuple[str, ...]] = {symbols[g.name]: () for g in gates}
    words = {"p": ("v",), "v": ("v",), "S": ("v",), "W": ("k", "v"), "q": ("k",), "k": ("k",)}
    for name, own in words.items():
        symbols[name] = symbolic.symbol(name)
        axes[symbols[name]] = own
    scope = Scope(symbols, axes)

    fit, weight, value, gradient = _fitted(spec, scope)
    near = _similarity(spec, scope)
    log_weight = symbolic.log_of(weight) if weight != ONE else ZERO
    if fit.log_ridge is None:  # what is the same for all keys of a query leaves the mean alone
        _check_window(spec)
    if fit == Mean(None):
        near = symbolic.without_terms(near, {QUERY.name, *(p.name for p in spec.parameters)})
        log_weight = log_weight if symbolic.names(log_weight) else ZERO
    attention = Attention(
        gates=gates,
        gradient=gradient,
        similarity=_short(spec, similarity, near),
        log_weight=log_weight,
        value=_short(spec, spec.loss.expr, value),
        fit=fit,
        log_decay=_log_decay(spec, scope),
        window=spec.memory.window,
        features=read_features(spec),
        readout=read_readout(spec),
    )
    _check_effects(spec, attention)
    return attention


def _check_window(spec: Spec) -> None:
    if spec.memory.window != 1:
        return
    line = read_document(spec.source.text).line("memory", "window")
    message = "a mean of one token's value is that value: neither queries nor keys have an effect"
    expected = "window = 2 or more, or a ridge beside the token, such as norm2(S) / 2"
    raise SpecError(message, path=spec.source.path, line=line, key="memory.window", expected=expected)


def _check_effects(spec: Spec, a: Attention) -> None:
    ridges = (a.fit.log_ridge, a.fit.log_slope if isinstance(a.fit, Line) else None)
    parts = (a.similarity, a.log_weight, a.value, *ridges, a.log_decay)
    written = (*a.features, *(() if a.readout is None else (a.readout,)))
    bodies = (part for w in written for part in (w.expr, *(s.body for s in w.sums)))
    used = set().union(*(symbolic.names(part) for part in (*parts, *bodies) if part is not None))
    for gate in (*spec.inputs, *spec.parameters):
        if gate.name not in used:
            table = "inputs" if gate in spec.inputs else "parameters"
            raise SpecError(
                f'"{gate.name}" has no effect: it weighs all keys of a query alike, or cancels',
                path=spec.source.path,
                line=gate.line,
                key=f"{table}.{gate.name}",
                expected="gates that the mean depends on: others have no gradient",
            )


def _check_channels(spec: Spec) -> None:
    """Pairs take one number a head. A token's own maps and its read-out may have channels, but what is of keys and of
    queries has its gradients added up along the sequence, which goes for numbers a head."""
    pairs = (spec.memory.similarity, spec.loss.expr, spec.loss.weight, spec.retention.expr, spec.retention.decay)
    of_pairs, of_keys, of_queries = _used(*pairs), _used(spec.features.k), _used(spec.features.q, spec.read)
    if "k" in _used(spec.read):  # that of the token that asks
        of_queries |= of_keys
    of_both = of_keys & of_queries
    for gate in (*spec.inputs, *spec.parameters):
        if gate.per is Per.HEAD or gate.name not in of_pairs | of_both:
            continue
        if gate.name in of_pairs:
            what = "a kernel memory takes one a head so far, but in [features] and read.expr"
            expected = 'per = "head"'
        else:
            what = "here it is of keys, in features.k, and of queries too, which goes for one a head so far"
            expected = "another gate for keys: a caller may pass the same tensor for both"
        table = "inputs" if gate in spec.inputs else "parameters"
        raise SpecError(
            f'"{gate.name}" has a number for each channel; {what}',
            path=spec.source.path,
            line=gate.line,
            key=f"{table}.{gate.name}",
            expected=expected,
        )


def _check_queries(spec: Spec) -> None:
    """A program of keys sees many queries, whose own keys it does not load."""
    where = spec.features.q
    own = [] if where is None else [n for n in walk(where.tree) if isinstance(n, Name) and n.id == "k"]
    if own:
        expected = "q and gates: what a token's key does to its query goes in front of the operator"
        message = '"k" has no meaning in features.q of a kernel memory'
        raise refuse(spec, where, message, expected=expected, span=own[0].span)


def _used(*parts: Located | None) -> frozenset[str]:
    return frozenset().union(*(names(part.tree) for part in parts if part is not None))


def _ridge(spec: Spec, scope: Scope, word: str) -> Expr:
    """Of a retention whose slope in the word is ridge * word; 0 where there is none."""
    where, x = spec.retention.expr, scope.symbols[word]
    solved = symbolic.affine(symbolic.expanded(scope.gradient(symbolic.convert(where.tree, scope), x)), x)
    if solved is None or scope.axes_of(solved[0]) or _mentions_sums(scope, solved[0]) or solved[1] != 0:
        example = "lam * norm2(S) / 2, or 0" if word == "S" else "lam * norm2(W) / 2"
        both = " and a number times norm2(W)" if spec.memory.degree else ""
        raise refuse(
            spec,
            where,
            f"the retention of a kernel memory is not a number times norm2(S){both}",
            expected=f"a ridge such as {example}",
        )
    ridge = symbolic.tidy(solved[0])
    if ridge != 0 and not symbolic.is_positive(ridge):
        of = " in W" if word == "W" else ""
        raise refuse(
            spec,
            where,
            f"the retention's second derivative{of}, {symbolic.equation(ridge)}, is not provably positive",
            expected="a factor such as exp(lam), or of a parameter whose domain is positive"
            + ("; or no retention, 0" if word == "S" else ""),
        )
    return ridge


def _slope_ridge(spec: Spec, scope: Scope, curvature: Expr) -> Expr:
    """What holds the slope of a local line."""
    ridge = _ridge(spec, scope, "W")
    if ridge == 0:
        raise refuse(
            spec,
            spec.retention.expr,
            "nothing holds the slope W: the keys that a query sees may lie on a line, or be one",
            expected="a ridge on it, such as norm2(W) / 2, beside what there is",
        )
    if curvature == 0:
        raise refuse(
            spec,
            spec.loss.expr,
            "the loss has no curvature in p, so that S does not hang on the slope W",
            expected="a squared error such as norm2(p - v) / 2, or degree = 0",
        )
    return ridge


def _fitted(spec: Spec, scope: Scope) -> tuple[Mean | Line | Sum, Expr, Expr, Expr]:
    """(fit, w, value, gradient): weight times loss has the slope w (p - value) of a mean, and -w value of a sum."""
    ridge, (gradient, slope, offset) = _ridge(spec, scope, "S"), _loss(spec, scope)
    of_slope = _slope_ridge(spec, scope, slope) if spec.memory.degree else None
    if slope == 0 and ridge == 0:
        raise refuse(
            spec,
            spec.retention.expr,
            "nothing holds S: the loss has no curvature in p, so that without a ridge there is no minimum",
            expected="a ridge such as norm2(S) / 2, by which the sum of the values is divided",
        )
    weight = ONE if spec.loss.weight is None else symbolic.convert(spec.loss.weight.tree, scope)
    positive = symbolic.is_positive(weight)
    if _mentions_sums(scope, weight):
        raise refuse(
            spec,
            spec.loss.weight,
            "a sum over channels has no derivation in the weight of a kernel memory's loss",
            expected="a number made of gates alone; what a pair weighs by its key is memory.similarity",
        )
    if slope != 0 and not positive:
        raise refuse(
            spec,
            spec.loss.weight,
            "the weight of a mean is worked with as its logarithm, and is not provably positive",
            expected='exp(...), or gates whose domain is "positive" or "decay"',
        )
    log_ridge, gradient = None if ridge == 0 else symbolic.log_of(ridge), symbolic.tidy(weight * gradient)
    if slope != 0:
        fit = Mean(log_ridge) if of_slope is None else Line(log_ridge, symbolic.log_of(of_slope))
        return fit, symbolic.tidy(weight * slope), _value(spec, scope, -offset / slope), gradient
    if positive:
        return Sum(log_ridge), symbolic.tidy(weight), _value(spec, scope, -offset), gradient
    # A weight of any sign has no logarithm, and goes with the value.
    return Sum(log_ridge), ONE, _value(spec, scope, -weight * offset), gradient


def _value(spec: Spec, scope: Scope, expr: Expr) -> Expr:
    """What a pair is weighed with, in its simplest form; refused where padding has none."""
    v = scope.symbols["v"]
    value = symbolic.finite_at_zero(symbolic.tidy(expr), scope, (v,))
    if not have_values((value, symbolic.derivative(value, v)), (*spec.inputs, *spec.parameters), {v.name: 0.0}):
        what = f"{symbolic.equation(value)} has no finite value and derivative where v is 0, as in padding"
        expected = "values that are smooth there, such as log(square(v) + 0.01)"
        raise refuse(spec, spec.loss.expr, what, expected=expected)
    return value


def _loss(spec: Spec, scope: Scope) -> tuple[Expr, Expr, Expr]:
    """(dL/dp, slope, offset) with dL/dp = slope p + offset, without the weight."""
    where, p = spec.loss.expr, scope.symbols["p"]
    gradient = scope.gradient(symbolic.convert(where.tree, scope), p)
    solved = symbolic.affine(symbolic.tidy(symbolic.expanded(gradient)), p)
    if solved is None or any(_mentions_sums(scope, part) for part in solved) or scope.axes_of(solved[0]):
        raise refuse(
            spec,
            where,
            f"dL/dp = {symbolic.equation(symbolic.spelled_out(gradient, tuple(scope.reductions)))} is not a number a "
            "token times p, and something free of p; the fit at a query has no closed form then",
            expected="a squared error such as norm2(p - v) / 2, or -dot(p, v) and a ridge in retention.expr",
        )
    slope, offset = solved
    if slope != 0 and not symbolic.is_positive(slope):
        raise refuse(
            spec,
            where,
            f"the loss is not provably convex in p (its second derivative is {symbolic.equation(slope)}), so that "
            "there is no value that fits best",
            expected="a squared error such as norm2(p - v) / 2, or -dot(p, v) and a ridge in retention.expr",
        )
    return gradient, slope, offset


def _similarity(spec: Spec, scope: Scope) -> Expr:
    where, (q, k) = spec.memory.similarity, (scope.symbols["q"], scope.symbols["k"])
    first = len(scope.reductions)
    # A query that is its own key is no distance away: differences of norms may then be a little less than 0.
    near = symbolic.finite_at_zero(symbolic.convert(where.tree, scope), scope, (q, k))
    for reduction in scope.reductions[first:]:
        form = symbolic.quadratic_form(reduction.body, q, k)
        if form is None:
            total = symbolic.equation(symbolic.spelled_out(reduction.symbol, tuple(scope.reductions)))
            raise refuse(
                spec, where, f"{total} has no derivation in a similarity", expected=f"an expression of {SIMILAR}"
            )
        squared, product, other = form
        near = symbolic.in_terms_of(near, reduction.symbol, squared * QUERY + product * DOT + other * KEY)
    near = symbolic.tidy(near)
    slope = symbolic.derivative(near, DOT)
    others = {s.name: 0.7 for s in slope.free_symbols}
    if not math.isfinite(symbolic.value(slope, others | {DOT.name: 0.0})):  # as of padding
        what = "the similarity has no finite derivative where dot(q, k) = 0"
        raise refuse(spec, where, what, expected="one that is smooth there, such as log(square(dot(q, k)) + 0.01)")
    return near


def _log_decay(spec: Spec, scope: Scope) -> Expr | None:
    where = spec.retention.decay
    if where is None:
        return None
    decay = symbolic.tidy(symbolic.convert(where.tree, scope))
    if not symbolic.is_positive(decay):
        raise refuse(
            spec,
            where,
            "a kernel memory works with the logarithm of the decay, which is not provably positive",
            expected="exp(g), or a gate of domain decay",
        )
    return None if decay == 1 else symbolic.log_of(decay)


def _mentions_sums(scope: Scope, expr: Expr) -> bool:
    return any(expr.has(r.symbol) for r in scope.reductions)


def _short(spec: Spec, where: Located, expr: Expr) -> Expr:
    if symbolic.size(expr) > LARGEST:
        message = f"this comes to {symbolic.size(expr)} operations, for each pair or each entry"
        raise refuse(spec, where, message, expected=f"at most {LARGEST} operations")
    return expr
