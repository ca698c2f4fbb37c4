"""Spec -> Recurrence: differentiate the loss, solve the stationarity condition of the update for S.

gradient:  S = argmin <grad loss(S_at), S> + retention(S, S_prev)
proximal:  S = argmin loss(S' k, v) + retention(S, S_prev)
closed:    see derive_closed

The first two are solved per element of S, where the gradient of the loss is k_i e_j with e = dL/dp. Divided by the
retention's curvature m that is k_i (w_i e_j), for m = m_j / w_i: what m has by value channel is a part of the error
that is written, what it has by key channel a weight w of the keys that write.
"""

from __future__ import annotations

from ttrc import symbolic
from ttrc.errors import SpecError
from ttrc.ir.axes import ordered
from ttrc.ir.recurrence import Association, Gate, Hebbian, Mirror, Recurrence
from ttrc.language.sections import word_axes
from ttrc.language.spec import At, ClosedForm, Domain, Gradient, MLPMemory, Per, Proximal, Spec
from ttrc.passes.check_normaliser import check_normaliser
from ttrc.passes.derive_association import (
    affine_error,
    check_padding,
    derive_associations,
    loss_gradient,
    mention,
    parts_of,
    sums_in,
    tidied,
)
from ttrc.passes.derive_closed import NoClosedForm, solve_closed
from ttrc.passes.derive_features import read_features
from ttrc.passes.derive_mirror import derive_mirror
from ttrc.passes.derive_network import read_activation
from ttrc.passes.derive_readout import read_readout
from ttrc.passes.read_link import read_link
from ttrc.passes.refuse import refuse
from ttrc.symbolic import Expr, Scope

SHARES = (Domain.UNIT, Domain.DECAY)


def derive_recurrence(spec: Spec) -> Recurrence:
    recurrence = _derived(spec)
    check_normaliser(spec, recurrence)
    return recurrence


def _derived(spec: Spec) -> Recurrence:
    network = spec.memory if isinstance(spec.memory, MLPMemory) else None
    gates = (*spec.inputs, *spec.parameters)
    symbols = {g.name: symbolic.symbol(g.name, g.domain) for g in gates}
    axes: dict[symbolic.Symbol, tuple[str, ...]] = {symbols[g.name]: g.per.axes for g in gates}
    own = word_axes(spec.memory)
    for name in ("p", "v", "k", "S", "S_prev"):
        symbols[name] = symbolic.symbol(name)
        axes[symbols[name]] = ordered(own[name])
    scope = Scope(symbols, axes)
    if isinstance(spec.update, ClosedForm):
        return _closed_form(spec, scope, gates)

    link = read_link(spec, scope)
    curvature, decay, mirror = _solve_retention(spec, scope)
    write, stiffness = _shares(scope, curvature)
    if network is not None and mirror is not None:
        raise refuse(
            spec,
            spec.retention.expr,
            "a retention of a deep memory that is not quadratic has no derivation yet",
            expected="a sum of squares such as norm2(S - exp(g) * S_prev) / 2",
        )
    if isinstance(spec.update, Proximal) and mirror is not None:
        what = "implicit steps of a retention that is not quadratic have no derivation"
        message, where = f'{what}; rule "gradient" has one', {"path": spec.source.path, "line": spec.update.line}
        raise SpecError(message, **where, key="update.rule")
    associations = derive_associations(spec, scope, write, stiffness)
    reads_decayed = isinstance(spec.update, Proximal) or spec.update.at in (At.RETAINED, At.IN_TURN)

    momentum = _momentum(spec, scope)
    moved = [*([] if momentum is None else [momentum]), *([] if mirror is None else mirror.parts)]
    parts = [part for association in associations for part in parts_of(association.error)]
    used = sums_in(scope, (*parts, curvature, decay, *moved))
    _check_sums(spec, used)
    # What a linear or vector memory writes without a prediction is the same wherever the gradient is taken.
    predicts = any(not isinstance(association.error, Hebbian) for association in associations)
    frozen = predicts or link is not None or network is not None
    return Recurrence(
        gates=gates,
        reductions=tuple(used),
        associations=associations,
        curvature=curvature,
        decay=decay,
        log_decay=_log(scope, gates, decay),
        reads_decayed=reads_decayed and (decay != 1 or mirror is not None),
        in_turn=predicts and len(associations) > 1 and spec.update.at is At.IN_TURN,
        momentum=momentum,
        log_momentum=None if momentum is None else _log(scope, gates, momentum),
        segment=getattr(spec.update, "segment", None) if frozen else None,
        link=link,
        mirror=mirror,
        write=write,
        network=network,
        activation=None if network is None or network.layers == 1 else read_activation(spec),
        state=axes[symbols["S"]],
        features=read_features(spec),
        readout=read_readout(spec),
    )


def _closed_form(spec: Spec, scope: Scope, gates: tuple[Gate, ...]) -> Recurrence:
    gradient, where = loss_gradient(spec, scope, spec.loss), spec.retention.decay
    slope = symbolic.expanded(scope.gradient(symbolic.convert(spec.retention.expr.tree, scope), scope.symbols["S"]))
    try:
        error, ridge = solve_closed(scope, affine_error(scope, gradient, symbolic.ONE), slope)
    except NoClosedForm as found:
        raise refuse(spec, getattr(spec, found.section).expr, found.why, expected=found.expected) from None
    check_padding(spec, scope, spec.loss, error)
    decay = symbolic.ONE if where is None else symbolic.tidy(symbolic.convert(where.tree, scope))
    if not symbolic.is_positive(decay + symbolic.symbol("any", Domain.POSITIVE)):
        what = f"the decay {symbolic.equation(decay)} may be negative, and then no S is the minimum"
        raise refuse(spec, where, what, expected="exp(g), or a gate of domain unit or decay")
    used = sums_in(scope, (*parts_of(error), ridge, decay))
    _check_sums(spec, used)
    return Recurrence(
        gates=gates,
        reductions=tuple(used),
        associations=(Association(spec.loss.origin, tidied(gradient), error),),
        curvature=ridge,
        decay=decay,
        log_decay=_log(scope, gates, decay),
        reads_decayed=True,
        ridge=ridge,
        state=scope.axes[scope.symbols["S"]],
        features=read_features(spec),
        readout=read_readout(spec),
    )


def _momentum(spec: Spec, scope: Scope) -> Expr | None:
    """How much of the last step is kept, where any is."""
    where = spec.update.momentum if isinstance(spec.update, Gradient) else None
    if where is None:
        return None
    momentum = symbolic.tidy(symbolic.convert(where.tree, scope))
    return None if momentum == 0 else momentum


def _log(scope: Scope, gates: tuple[Gate, ...], decay: Expr) -> Expr | None:
    shares = tuple(scope.symbols[g.name] for g in gates if g.domain in SHARES)
    return symbolic.log_of(decay) if decay != 1 and symbolic.is_positive(decay, shares) else None


def _solve_retention(spec: Spec, scope: Scope) -> tuple[Expr, Expr, Mirror | None]:
    """(m, a, None) with d retention / dS = m (S - a S_prev), the curvature and the decay; (1, 1, mirror) otherwise."""
    where = spec.retention.expr
    s, previous = scope.symbols["S"], scope.symbols["S_prev"]
    slope = symbolic.expanded(scope.gradient(symbolic.convert(where.tree, scope), s))
    if any(scope.depends(r.symbol, on) for r in scope.reductions if slope.has(r.symbol) for on in (s, previous)):
        raise refuse(
            spec,
            where,
            "this retention couples the elements of S through a reduction; no kernel class covers it yet",
            expected="a sum of squares such as norm2(S - S_prev) / 2",
        )
    solved = symbolic.affine(slope, s)
    carried = symbolic.affine(solved[1], previous) if solved else None
    if solved is None or carried is None:
        mirror = derive_mirror(spec, scope, slope)
        return symbolic.ONE, symbolic.ONE, mirror
    curvature = solved[0]
    if not symbolic.is_positive(curvature):
        raise refuse(
            spec,
            where,
            "the retention is not strictly convex in S, so that S cannot be solved for "
            f"(its second derivative is {symbolic.equation(curvature)}, not provably positive)",
            expected="a term such as norm2(S - S_prev) / 2, with gates whose domain keeps it positive",
        )
    if carried[1] != 0:
        raise refuse(
            spec,
            where,
            "the retention pulls S towards a constant "
            f"({symbolic.equation(symbolic.tidy(-carried[1] / curvature))}); no kernel class covers that yet",
            expected="terms in S and S_prev alone",
        )
    return curvature, symbolic.tidy(-carried[0] / curvature), None


def _shares(scope: Scope, curvature: Expr) -> tuple[Expr, Expr]:
    """(w, m) with curvature = m / w, w over key channels and m free of them; where that is not so w is over both."""
    if "k" not in scope.axes_of(curvature):
        return symbolic.ONE, curvature
    by_key, rest = symbolic.separated(curvature, lambda part: scope.axes_of(part) == ("k",))
    if "k" in scope.axes_of(rest) or not symbolic.names(rest):
        by_key, rest = curvature, symbolic.ONE
    return symbolic.tidy(1 / by_key), rest


def _check_sums(spec: Spec, used: list[symbolic.Reduction]) -> None:
    for reduction in used:
        if reduction.axes == ("k", "v"):
            total = symbolic.equation(symbolic.spelled_out(reduction.symbol, tuple(used)))
            elements = {g.name for g in spec.inputs + spec.parameters if g.per is Per.ELEMENT}
            where, gate = mention(spec, elements & symbolic.names(reduction.body))
            raise refuse(
                spec,
                where,
                f"there is a sum over key and value channels at once, {total}; no kernel class covers that yet",
                expected="sums over k or over v",
                span=gate.span,
            )
