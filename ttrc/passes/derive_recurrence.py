"""Spec -> Recurrence: differentiate the loss, solve the stationarity condition of the update for S.

gradient:  S = argmin <grad loss(S_at), S> + retention(S, S_prev)
proximal:  S = argmin loss(S' k, v) + retention(S, S_prev)
closed:    see derive_closed

The first two are solved per element of S, where the gradient of the loss is k_i e_j with e = dL/dp. Divided by the
retention's curvature m that is k_i (w_i e_j), for m = m_j / w_i: what m has by value channel is a part of the error
that is written, what it has by key channel a weight w of the keys that write.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc import symbolic
from ttrc.errors import SpecError
from ttrc.ir.recurrence import Affine, ErrorForm, Gate, Hebbian, Nonlinear, Recurrence
from ttrc.language.document import read_document
from ttrc.language.spec import At, ClosedForm, Domain, Gradient, LinearMemory, Located, MLPMemory, Per, Proximal, Spec
from ttrc.language.state import state_domain
from ttrc.language.syntax import Name, walk
from ttrc.passes.derive_closed import NoClosedForm, solve_closed
from ttrc.passes.derive_features import read_features
from ttrc.passes.derive_implicit import NoImplicitStep, derive_implicit
from ttrc.passes.derive_readout import read_readout
from ttrc.passes.read_link import read_link
from ttrc.passes.refuse import refuse
from ttrc.symbolic import Expr, Scope

LARGEST = 200  # operations of a nonlinear error


def derive_recurrence(spec: Spec) -> Recurrence:
    if not isinstance(spec.memory, (LinearMemory, MLPMemory)):
        what = 'this memory has no derivation yet; kinds "linear", "mlp" and "kernel" have one'
        line = read_document(spec.source.text).line("memory", "kind")
        raise SpecError(what, path=spec.source.path, line=line, key="memory.kind")
    network = spec.memory if isinstance(spec.memory, MLPMemory) else None
    gates = (*spec.inputs, *spec.parameters)
    symbols = {g.name: symbolic.symbol(g.name, g.domain) for g in gates}
    axes: dict[symbolic.Symbol, tuple[str, ...]] = {symbols[g.name]: g.per.axes for g in gates}
    for name, own in {"p": ("v",), "v": ("v",), "k": ("k",), "S": ("k", "v"), "S_prev": ("k", "v")}.items():
        symbols[name] = symbolic.symbol(name)
        axes[symbols[name]] = own
    scope = Scope(symbols, axes)
    if isinstance(spec.update, ClosedForm):
        return _closed_form(spec, scope, gates)

    link = read_link(spec.retention.link, scope)
    curvature, decay, mirror = _solve_retention(spec, scope)
    write, stiffness = _shares(scope, curvature)
    gradient = _loss_gradient(spec, scope)
    if network is not None and mirror is not None:
        raise refuse(
            spec,
            spec.retention.expr,
            "a retention of a deep memory that is not quadratic has no derivation yet",
            expected="a sum of squares such as norm2(S - exp(g) * S_prev) / 2",
        )
    match spec.update:
        case Proximal() if mirror is not None:
            what = "implicit steps of a retention that is not quadratic have no derivation"
            message, where = f'{what}; rule "gradient" has one', {"path": spec.source.path, "line": spec.update.line}
            raise SpecError(message, **where, key="update.rule")
        case Proximal():
            error = _implicit_step(spec, scope, gradient, write, stiffness)
            reads_decayed = True
        case Gradient(at=at):
            error = _explicit_step(spec, scope, gradient, stiffness)
            reads_decayed = at is At.RETAINED

    momentum = _momentum(spec, scope)
    moved = [e for e in (momentum, mirror) if e is not None]
    used = _sums_in(scope, (*_parts(error), curvature, decay, *moved))
    _check_sums(spec, used)
    # What a linear memory writes without a prediction is the same wherever the gradient is taken.
    frozen = not isinstance(error, Hebbian) or link is not None or network is not None
    return Recurrence(
        gates=gates,
        reductions=tuple(used),
        gradient=symbolic.factored(gradient) if isinstance(error, Nonlinear) else _tidy(gradient),
        curvature=curvature,
        decay=decay,
        log_decay=_log(decay),
        reads_decayed=reads_decayed and (decay != 1 or mirror is not None),
        error=error,
        momentum=momentum,
        log_momentum=None if momentum is None else _log(momentum),
        segment=getattr(spec.update, "segment", None) if frozen else None,
        link=link,
        mirror=mirror,
        write=write,
        network=network,
        features=read_features(spec),
        readout=read_readout(spec),
    )


def _closed_form(spec: Spec, scope: Scope, gates: tuple[Gate, ...]) -> Recurrence:
    gradient, where = _loss_gradient(spec, scope), spec.retention.decay
    slope = symbolic.expanded(scope.gradient(symbolic.convert(spec.retention.expr.tree, scope), scope.symbols["S"]))
    try:
        error, ridge = solve_closed(scope, _affine(scope, gradient, symbolic.ONE), slope)
    except NoClosedForm as found:
        raise refuse(spec, getattr(spec, found.section).expr, found.why, expected=found.expected) from None
    decay = symbolic.ONE if where is None else symbolic.tidy(symbolic.convert(where.tree, scope))
    if not symbolic.is_positive(decay + symbolic.symbol("any", Domain.POSITIVE)):
        what = f"the decay {symbolic.equation(decay)} may be negative, and then no S is the minimum"
        raise refuse(spec, where, what, expected="exp(g), or a gate of domain unit or decay")
    used = _sums_in(scope, (*_parts(error), ridge, decay))
    _check_sums(spec, used)
    return Recurrence(
        gates=gates,
        reductions=tuple(used),
        gradient=_tidy(gradient),
        curvature=ridge,
        decay=decay,
        log_decay=_log(decay),
        reads_decayed=True,
        error=error,
        ridge=ridge,
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


def _log(decay: Expr) -> Expr | None:
    return symbolic.log_of(decay) if decay != 1 and symbolic.is_positive(decay) else None


def _parts(error: ErrorForm) -> tuple[Expr, ...]:
    match error:
        case Hebbian(offset):
            return (offset,)
        case Affine(slope, offset):
            return slope, offset
        case Nonlinear(written, root=None):
            return (written,)
        case Nonlinear(written, root=root):
            return written, root.pull, root.base


def _sums_in(scope: Scope, parts: tuple[Expr, ...]) -> list[symbolic.Reduction]:
    """The reductions that these expressions mention, and those that the reductions mention, in order."""
    used: list[symbolic.Reduction] = []
    for reduction in reversed(scope.reductions):
        if any(e.has(reduction.symbol) for e in (*parts, *(r.body for r in used))):
            used.insert(0, reduction)
    return used


def _solve_retention(spec: Spec, scope: Scope) -> tuple[Expr, Expr, Expr | None]:
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
        mirror = symbolic.invert(slope, s, previous, symbolic.symbol("own"), state_domain(spec))
        if mirror is None:
            raise refuse(
                spec,
                where,
                "the retention is not quadratic in S and S_prev, and the minimum of the update, "
                f"{symbolic.equation(slope)} = -k e', was not solved for S",
                expected="a sum of squares such as norm2(S - exp(g) * S_prev) / 2, or a sum over entries whose "
                "derivative is an increasing function of S less one of S_prev, such as sum(S * log(S / S_prev) - S)",
            )
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


def _loss_gradient(spec: Spec, scope: Scope) -> Expr:
    weight = symbolic.ONE
    if spec.loss.weight is not None:
        weight = symbolic.convert(spec.loss.weight.tree, scope)
    loss = symbolic.convert(spec.loss.expr.tree, scope)
    gradient = weight * scope.gradient(loss, scope.symbols["p"])
    if _tidy(gradient) == 0:
        raise refuse(
            spec,
            spec.loss.expr,
            "the loss does not change with p, so that nothing is ever learned",
            expected="a loss that depends on the prediction p",
        )
    if "k" in scope.axes_of(gradient):
        where, gate = _mention(spec, {g.name for g in spec.inputs + spec.parameters if g.per is Per.ELEMENT})
        raise refuse(
            spec,
            where,
            f"'{gate.id}' gives p a number for each key channel, and dL/dp is then a sum over them for each value "
            "channel; no kernel class covers that",
            expected="gates per head or per value channel beside p",
            span=gate.span,
        )
    return gradient


def _mention(spec: Spec, gates: set[str]) -> tuple[Located, Name]:
    """Where one of these gates stands first."""
    parts = [where for where in (spec.loss.weight, spec.loss.expr, spec.retention.expr) if where is not None]
    named = ((where, node) for where in parts for node in walk(where.tree) if isinstance(node, Name))
    return next((where, node) for where, node in named if node.id in gates)


def _tidy(gradient: Expr) -> Expr:
    return symbolic.tidy(symbolic.expanded(gradient))


def _affine(scope: Scope, gradient: Expr, stiffness: Expr) -> tuple[Expr, Expr] | str:
    """(slope, offset) of a gradient that is affine in p, its slope one for all value channels once it is divided by
    the stiffness; or why it is not."""
    p = scope.symbols["p"]
    solved = symbolic.affine(_tidy(gradient), p)
    if solved is None or any(scope.depends(part, p) for part in solved):
        return "is nonlinear in p"
    if solved[0] != 0 and (scope.axes_of(solved[0]) or scope.axes_of(stiffness)):
        return "is affine in p with a slope that is not the same for every value channel"
    if solved[0] != 0 and any("v" in r.axes for r in _sums_in(scope, solved)):
        return "holds a sum over the value channels"
    return solved


def _explicit_step(spec: Spec, scope: Scope, gradient: Expr, stiffness: Expr) -> ErrorForm:
    p, channels = scope.symbols["p"], (scope.symbols["p"], scope.symbols["v"])
    for number, reduction in enumerate(scope.reductions):
        scope.reductions[number] = replace(reduction, body=symbolic.finite_at_zero(reduction.body, scope, channels))
    match _affine(scope, gradient, stiffness):
        case (slope, offset):
            slope, offset = (symbolic.tidy(part / stiffness) for part in (slope, offset))
            offset = symbolic.finite_at_zero(offset, scope, channels)
            return Hebbian(offset) if slope == 0 else Affine(slope, offset)
    written = symbolic.finite_at_zero(symbolic.factored(gradient / stiffness), scope, channels)
    if symbolic.size(written) > LARGEST:
        raise refuse(
            spec,
            spec.loss.expr,
            f"the error dL/dp has {symbolic.size(written)} operations, and its derivatives many times as many",
            expected=f"at most {LARGEST} operations",
        )
    sums = tuple(r for r in _sums_in(scope, (written,)) if scope.depends(r.symbol, p))
    return Nonlinear(written, sums)


def _check_sums(spec: Spec, used: list[symbolic.Reduction]) -> None:
    for reduction in used:
        if reduction.axes == ("k", "v"):
            total = symbolic.equation(symbolic.spelled_out(reduction.symbol, tuple(used)))
            elements = {g.name for g in spec.inputs + spec.parameters if g.per is Per.ELEMENT}
            where, gate = _mention(spec, elements & symbolic.names(reduction.body))
            raise refuse(
                spec,
                where,
                f"there is a sum over key and value channels at once, {total}; no kernel class covers that yet",
                expected="sums over k or over v",
                span=gate.span,
            )


def _implicit_step(spec: Spec, scope: Scope, gradient: Expr, write: Expr, stiffness: Expr) -> ErrorForm:
    """The error at the implicit point, p' + sum(w k^2) / m * e(p') = p, as a function of the retained prediction p."""
    if "v" in scope.axes_of(write):
        raise refuse(
            spec,
            spec.retention.expr,
            "an implicit step takes k by the curvature of the retention, "
            f"{symbolic.equation(1 / write)}, which mixes key channels and value channels",
            expected='a product of gates per key channel and gates per value channel before S**2; or rule = "gradient"',
        )
    length = scope.reduce(write * scope.symbols["k"] ** 2)
    solved = _affine(scope, gradient, stiffness)
    if isinstance(solved, str):
        explicit = _explicit_step(spec, scope, gradient, stiffness)
        domains = {g.name: g.domain for g in (*spec.inputs, *spec.parameters)}
        try:
            return derive_implicit(scope, explicit, length, domains)
        except NoImplicitStep as found:
            error = symbolic.equation(symbolic.spelled_out(symbolic.factored(gradient), tuple(scope.reductions)))
            message = f"the error dL/dp = {error} {found.why}"
            raise refuse(spec, spec.loss.expr, message, expected=found.expected) from None
    slope, offset = solved
    kappa = length / stiffness
    shrink = 1 + kappa * slope
    if not symbolic.is_positive(shrink):
        raise refuse(
            spec,
            spec.loss.expr,
            "the proximal step needs a convex loss, and this one is not provably so "
            f"(its second derivative in p is {symbolic.equation(slope)})",
            expected="a convex loss and a weight whose domain is nonnegative",
        )
    shrink = shrink * stiffness
    if slope == 0:
        return Hebbian(symbolic.tidy(offset / stiffness))
    return Affine(symbolic.tidy(slope / shrink), symbolic.tidy(offset / shrink))
