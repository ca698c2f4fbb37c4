"""A spec's losses -> associations: dL/dp by SymPy, and the error that a step writes under the retention's curvature.

A step is solved per element of S, where the gradient of a loss is k_i e_j with e = dL/dp. What the curvature has by
value channel, the stiffness, is a part of the error that is written.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc import symbolic
from ttrc.ir.recurrence import Affine, Association, ErrorForm, Feature, Hebbian, Nonlinear
from ttrc.language.spec import Located, Loss, Per, Proximal, Spec
from ttrc.language.syntax import Name, walk
from ttrc.passes.derive_features import read_feature
from ttrc.passes.derive_implicit import NoImplicitStep, derive_implicit
from ttrc.passes.have_values import have_values
from ttrc.passes.refuse import refuse
from ttrc.symbolic import ONE, Expr, Scope

PADDED = ("p", "v", "k")
LARGEST = 200  # operations of a nonlinear error


def derive_associations(spec: Spec, scope: Scope, write: Expr, stiffness: Expr) -> tuple[Association, ...]:
    """`write` and `stiffness` are what the retention's curvature has by key and by value channel."""
    return tuple(_association(spec, scope, loss, write, stiffness) for loss in spec.losses)


def _association(spec: Spec, scope: Scope, loss: Loss, write: Expr, stiffness: Expr) -> Association:
    gradient = loss_gradient(spec, scope, loss)
    if isinstance(spec.update, Proximal):
        error = _implicit_step(spec, scope, loss, gradient, write, stiffness)
    else:
        error = _explicit_step(spec, scope, loss, gradient, stiffness)
    check_padding(spec, scope, loss, error)
    gradient = symbolic.factored(gradient) if isinstance(error, Nonlinear) else tidied(gradient)
    plain = Feature("k", scope.symbols["k"], (), ())
    asked = plain if loss.key is None else read_feature(spec, "k", loss.key)
    written = asked if loss.write is None else read_feature(spec, "k", loss.write)
    key, under = None if _same(asked, plain) else asked, None if _same(written, asked) else written
    return Association(loss.origin, gradient, error, key, under)


def check_padding(spec: Spec, scope: Scope, loss: Loss, error: ErrorForm) -> None:
    """Of an error that has no value in padding no kernel may make anything."""
    parts = parts_of(error)
    made = (*parts, *(r.body for r in sums_in(scope, parts)))
    slopes = (symbolic.derivative(part, scope.symbols[x]) for part in made for x in PADDED)
    if not have_values((*made, *slopes), (*spec.inputs, *spec.parameters), dict.fromkeys(PADDED, 0.0)):
        what = "dL/dp has no finite value and derivative where p, v and k are 0, as in padding"
        expected = "a loss that is smooth there, such as one of log(square(v) + 0.01)"
        raise refuse(spec, loss.expr, what, expected=expected)


def _same(a: Feature, b: Feature) -> bool:
    return (a.expr, a.sums) == (b.expr, b.sums)


def loss_gradient(spec: Spec, scope: Scope, loss: Loss) -> Expr:
    weight = ONE if loss.weight is None else symbolic.convert(loss.weight.tree, scope)
    gradient = weight * scope.gradient(symbolic.convert(loss.expr.tree, scope), scope.symbols["p"])
    if tidied(gradient) == 0:
        raise refuse(
            spec,
            loss.expr,
            "the loss does not change with p, so that nothing is ever learned",
            expected="a loss that depends on the prediction p",
        )
    if "k" in scope.axes_of(gradient):
        where, gate = mention(spec, {g.name for g in spec.inputs + spec.parameters if g.per is Per.ELEMENT})
        raise refuse(
            spec,
            where,
            f"'{gate.id}' gives p a number for each key channel, and dL/dp is then a sum over them for each value "
            "channel; no kernel class covers that",
            expected="gates per head or per value channel beside p",
            span=gate.span,
        )
    return gradient


def by_channel(scope: Scope) -> bool:
    """Whether an entry of the state answers for one value channel alone, so that no other one shares its slope."""
    return scope.axes[scope.symbols["S"]] == scope.axes[scope.symbols["p"]]


def affine_error(scope: Scope, gradient: Expr, stiffness: Expr) -> tuple[Expr, Expr] | str:
    """(slope, offset) of a gradient that is affine in p, its slope one for all value channels once it is divided by
    the stiffness, where they share a state; or why it is not."""
    p = scope.symbols["p"]
    solved = symbolic.affine(tidied(gradient), p)
    if solved is None or any(scope.depends(part, p) for part in solved):
        return "is nonlinear in p"
    if by_channel(scope):
        return solved
    if solved[0] != 0 and (scope.axes_of(solved[0]) or scope.axes_of(stiffness)):
        return "is affine in p with a slope that is not the same for every value channel"
    if solved[0] != 0 and any("v" in r.axes for r in sums_in(scope, solved)):
        return "holds a sum over the value channels"
    return solved


def _explicit_step(spec: Spec, scope: Scope, loss: Loss, gradient: Expr, stiffness: Expr) -> ErrorForm:
    p, channels = scope.symbols["p"], (scope.symbols["p"], scope.symbols["v"])
    for number, reduction in enumerate(scope.reductions):
        scope.reductions[number] = replace(reduction, body=symbolic.finite_at_zero(reduction.body, scope, channels))
    match affine_error(scope, gradient, stiffness):
        case (slope, offset):
            slope, offset = (symbolic.tidy(part / stiffness) for part in (slope, offset))
            offset = symbolic.finite_at_zero(offset, scope, channels)
            return Hebbian(offset) if slope == 0 else Affine(slope, offset)
    written = symbolic.finite_at_zero(symbolic.factored(gradient / stiffness), scope, channels)
    if symbolic.size(written) > LARGEST:
        raise refuse(
            spec,
            loss.expr,
            f"the error dL/dp has {symbolic.size(written)} operations, and its derivatives many times as many",
            expected=f"at most {LARGEST} operations",
        )
    sums = tuple(r for r in sums_in(scope, (written,)) if scope.depends(r.symbol, p))
    return Nonlinear(written, sums)


def _implicit_step(spec: Spec, scope: Scope, loss: Loss, gradient: Expr, write: Expr, stiffness: Expr) -> ErrorForm:
    """The error at the implicit point, p' + sum(w k^2) / m * e(p') = p, as a function of the retained prediction p."""
    if "v" in scope.axes_of(write):
        raise refuse(
            spec,
            spec.retention.expr,
            "an implicit step takes k by the curvature of the retention, "
            f"{symbolic.equation(1 / write)}, which mixes key channels and value channels",
            expected='a product of gates per key channel and gates per value channel before S**2; or rule = "gradient"',
        )
    length = write * scope.symbols["k"] ** 2
    if not by_channel(scope):
        length = scope.reduce(length)
    solved = affine_error(scope, gradient, stiffness)
    if isinstance(solved, str):
        explicit = _explicit_step(spec, scope, loss, gradient, stiffness)
        domains = {g.name: g.domain for g in (*spec.inputs, *spec.parameters)}
        try:
            return derive_implicit(scope, explicit, length, domains)
        except NoImplicitStep as found:
            error = symbolic.equation(symbolic.spelled_out(symbolic.factored(gradient), tuple(scope.reductions)))
            message = f"the error dL/dp = {error} {found.why}"
            raise refuse(spec, loss.expr, message, expected=found.expected) from None
    slope, offset = solved
    kappa = length / stiffness
    shrink = 1 + kappa * slope
    if not symbolic.is_positive(shrink):
        raise refuse(
            spec,
            loss.expr,
            "the proximal step needs a convex loss, and this one is not provably so "
            f"(its second derivative in p is {symbolic.equation(slope)})",
            expected="a convex loss and a weight whose domain is nonnegative",
        )
    shrink = shrink * stiffness
    if slope == 0:
        return Hebbian(symbolic.tidy(offset / stiffness))
    return Affine(symbolic.tidy(slope / shrink), symbolic.tidy(offset / shrink))


def parts_of(error: ErrorForm) -> tuple[Expr, ...]:
    match error:
        case Hebbian(offset):
            return (offset,)
        case Affine(slope, offset):
            return slope, offset
        case Nonlinear(written, root=None):
            return (written,)
        case Nonlinear(written, root=root):
            return written, root.pull, root.base


def sums_in(scope: Scope, parts: tuple[Expr, ...]) -> list[symbolic.Reduction]:
    """The reductions that these expressions mention, and those that the reductions mention, in order."""
    used: list[symbolic.Reduction] = []
    for reduction in reversed(scope.reductions):
        if any(e.has(reduction.symbol) for e in (*parts, *(r.body for r in used))):
            used.insert(0, reduction)
    return used


def mention(spec: Spec, gates: set[str]) -> tuple[Located, Name]:
    """Where one of these gates stands first."""
    losses = (part for loss in spec.losses for part in (loss.weight, loss.expr) if part is not None)
    parts = (*losses, spec.retention.expr)
    named = ((where, node) for where in parts for node in walk(where.tree) if isinstance(node, Name))
    return next((where, node) for where, node in named if node.id in gates)


def tidied(gradient: Expr) -> Expr:
    return symbolic.tidy(symbolic.expanded(gradient))
