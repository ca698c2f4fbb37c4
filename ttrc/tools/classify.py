"""The class of a rule, each aspect with what shows it: read off the algebra, never looked up by name."""

from __future__ import annotations

from dataclasses import dataclass

from ttrc import symbolic
from ttrc.ir.module import Module
from ttrc.ir.recurrence import Affine, Hebbian, Implicit, Nonlinear, Recurrence
from ttrc.language.spec import Gradient, Parameter, Spec
from ttrc.tools.account import shown, written


@dataclass(frozen=True)
class Finding:
    """One aspect of the class: what was found, and what shows it."""

    aspect: str
    verdict: str
    because: str


def headline(module: Module) -> str:
    """The class in a few words."""
    r = module.recurrence
    name = {Hebbian: "Hebbian", Affine: "affine", Nonlinear: "nonlinear"}[type(r.error)]
    return f"linear memory, {name} error, {_decay_kind(r)} decay"


def findings(module: Module) -> tuple[Finding, ...]:
    """The class, each aspect with what shows it."""
    return (_error_class(module.recurrence), _decay_class(module.recurrence), _read_class(module), *_forms(module))


def _error_class(r: Recurrence) -> Finding:
    e = symbolic.equation(shown(r, written(r)))
    match r.error:
        case Hebbian():
            return Finding(
                "error",
                "free of p (Hebbian): masked linear attention, no solve",
                f"e = {e} does not contain p, so what is written does not depend on the state",
            )
        case Affine(slope, _):
            rate = symbolic.equation(shown(r, slope))
            return Finding(
                "error",
                "affine in p: one unit lower-triangular solve a chunk (the WY / UT transform)",
                f"e = {e} has slope {rate} in p, the same for all value channels, which share the inverse",
            )
        case Nonlinear(_, sums, root):
            joined = [s for s in sums if "v" in s.axes]
            total = symbolic.equation(shown(r, joined[0].symbol)) if joined else ""
            return Finding(
                "error",
                "nonlinear in p: forward substitution inside a chunk, row after row",
                f"e = {e} is not affine in p with one slope for all value channels"
                + (f"; {total} joins the channels, which stay together" if joined else "; each channel is on its own")
                + (f"; {_search(root)}" if root is not None else ""),
            )
    raise AssertionError(r.error)


def _search(root: Implicit) -> str:
    return (
        f"the left side of the equation for {root.unknown} rises at least as fast as {root.unknown}: it has one root, "
        "Newton's steps with a bracket around them find it, and the implicit function theorem is its adjoint"
    )


def _decay_kind(r: Recurrence) -> str:
    if r.decay == 1:
        return "no"
    fixed = {g.name for g in r.gates if isinstance(g, Parameter)}
    return "constant" if symbolic.names(r.decay) <= fixed else "data-dependent"


def _decay_class(r: Recurrence) -> Finding:
    a = symbolic.equation(shown(r, r.decay))
    match _decay_kind(r):
        case "no":
            return Finding("decay", "none", "a = 1, and nothing is paid for it")
        case "constant":
            return Finding("decay", "constant in time, a scalar a head", f"a = {a} has nothing that comes per token")
        case _:
            return Finding("decay", "data-dependent, a scalar a token and head", f"a = {a} comes per token")


def _read_class(module: Module) -> Finding:
    r = module.recurrence
    match r.error, r.reads_decayed:
        case Hebbian(), _:
            return Finding("reads", "nothing before it writes", "e is free of p, so no prediction is needed")
        case _, True:
            return Finding("reads", "the decayed state", _where_taken(module.spec))
        case _ if r.decay == 1:
            return Finding("reads", "the previous state", "without a decay the retained and the previous state are one")
        case _:
            return Finding("reads", "the previous state, before it decays", _where_taken(module.spec))


def _where_taken(spec: Spec) -> str:
    match spec.update:
        case Gradient(at=at):
            return f'the gradient is taken at "{at.value}"'
        case _:
            return "the implicit step starts from the minimum of the retention, the decayed state"


def _forms(module: Module) -> tuple[Finding, ...]:
    r = module.recurrence
    recurrent = Finding("recurrent form", "exact", "it is the recurrence")
    if "chunk" not in module.forms:
        reason = (
            f"a chunk needs sums of log a, and a = {symbolic.equation(shown(r, r.decay))} may reach zero: "
            "nothing in the domains of its inputs says that it is positive"
        )
        return (Finding("chunk form", "none: this rule runs token by token", reason), recurrent)
    match r.error:
        case Hebbian():
            why = (
                "it is the same sum over tokens regrouped: what earlier chunks wrote comes through the state, "
                "what this one writes through a masked product"
            )
        case Nonlinear():
            why = (
                "the state enters a chunk through its predictions alone, and these solve p = b - A e(p), b from the "
                "state at its start; A is strictly lower, so that each row needs the errors of earlier rows alone: "
                "blocks of 16 rows, 16 sweeps make each of them exact, and products do the rest"
            )
        case _:
            why = (
                "the state enters a chunk through its predictions alone, and these solve (I + A) u = rhs; "
                "A is strictly lower, so the solution exists, is unique and is no approximation"
            )
    return (Finding("chunk form", "exact for every chunk size", why), recurrent)
