"""The files of a package whose kernels stream over pairs of tokens, as their templates' holes."""

from __future__ import annotations

from collections.abc import Callable

from ttrc import symbolic
from ttrc.backends import arguments
from ttrc.backends.torch.emit import print_backward, print_forward
from ttrc.backends.triton import launch_pairs
from ttrc.ir.attention import SIZES, Attention, Line, Mean, Sum, seen
from ttrc.ir.config import default_configs
from ttrc.ir.module import Module
from ttrc.ir.plan import Skeleton
from ttrc.ir.recurrence import answered
from ttrc.language.spec import Spec


def derivation(spec: Spec, a: Attention, comment: Callable[[str], str]) -> list[str]:
    """From the spec's choices to the mean that the kernels compute, line by line."""
    weight, decay = spec.loss.weight, spec.retention.decay
    lines = [
        f"similarity {comment(spec.memory.similarity.text)}",
        f"loss       {comment(spec.loss.expr.text)}" + (f", weight {comment(weight.text)}" if weight else ""),
        f"retention  {comment(spec.retention.expr.text)}" + (f", decay {comment(decay.text)}" if decay else ""),
        f"error      dL/dp = {symbolic.equation(a.gradient)}",
        f"fit        {answered(a.readout)}_t = {_fitted(a)}, u = {symbolic.equation(a.value)}"
        + ("" if a.fit.log_ridge is None else f", r = {symbolic.equation(a.fit.log_ridge)}"),
        *_system(a.fit),
    ]
    log = f"           log w_ti = {symbolic.equation(a.similarity)}"
    if a.log_weight != symbolic.ZERO:
        log += f" + {symbolic.equation(a.log_weight)} of token i"
    if a.log_decay is not None:
        log += f" + sum over i < j <= t of {symbolic.equation(a.log_decay)}"
    told = [f"{s} = {text}" for s, text in SIZES.items() if s in a.similarity.free_symbols]
    return [*lines, ", ".join([log, *told])]


def _fitted(a: Attention) -> str:
    if isinstance(a.fit, Line):
        return f"sum over {seen(a)} of P_ti (1 - (k_i - c_t)' x_t) u_i, P_ti = w_ti / {_divisor(a.fit)}"
    return f"sum over {seen(a)} of w_ti u_i / {_divisor(a.fit)}"


def _system(fit: Mean | Line | Sum) -> list[str]:
    """What a line takes beside its weights."""
    if not isinstance(fit, Line):
        return []
    ridge, drawn = f"exp({symbolic.equation(fit.log_slope)})", fit.log_ridge is not None
    own, pulled = (" + d_t (q_t - c_t)(q_t - c_t)'", " + d_t q_t") if drawn else ("", "")
    return [
        f"           ( sum of P_ti (k_i - c_t)(k_i - c_t)'{own} + {ridge} / {_divisor(fit)} ) x_t = c_t - q_t",
        f"           c_t = sum of P_ti k_i{pulled}" + (f", d_t = exp(r_t) / {_divisor(fit)}" if drawn else ""),
    ]


def _divisor(fit: Mean | Line | Sum) -> str:
    match fit:
        case Mean(None) | Line(None):
            return "sum of w_ti"
        case Mean() | Line():
            return "(sum of w_ti + exp(r_t))"
        case Sum():
            return "exp(r_t)"


def reference_holes(module: Module, tags: dict[str, str]) -> dict[str, str]:
    spec, form = module.spec, module.forms["chunk"]
    names = ["q", "k", "v", *(g.name for g in (*spec.inputs, *spec.parameters))]
    return {
        "step_args": ", ".join(names),
        "forward": print_forward(form.forward, tags),
        "backward": print_backward(form.backward, form.forward.inputs, tags),
        "tensor_names": arguments.quoted(names),
        "parameter_names": arguments.quoted(g.name for g in spec.parameters),
        "window": module.recurrence.window,
        "channels": any(g.per.axes for g in spec.parameters),
    }


def op_holes(module: Module) -> dict[str, object]:
    spec, plan = module.spec, module.forms["chunk"].plan
    gates = tuple(g.name for g in (*spec.inputs, *spec.parameters))
    parameters = tuple(g.name for g in spec.parameters)
    (only,) = plan.schedules
    return {
        "name": spec.name,
        "gates": gates,
        "gate_doc": arguments.gate_doc(spec, (), heads="HO"),
        "parameters": parameters,
        "crossing": launch_pairs.crossing(plan),
        "saved": [b.name for b in launch_pairs.saved(plan)],
        "kept": launch_pairs.kept(plan),
        "least": launch_pairs.least(plan),
        "wanted": launch_pairs.wanted(plan),
        "fake": launch_pairs.fake(plan),
        "allocate": {
            "forward": launch_pairs.allocate_forward(plan),
            "backward": launch_pairs.allocate_backward(plan),
        },
        "launch": {
            "forward": launch_pairs.launches(only.forward),
            "backward": launch_pairs.launches(only.backward),
        },
        "results": launch_pairs.results(plan, gates, parameters),
        "grouped": next((k.name for k in plan.kernels if k.grouped), None),
    }


def launch_holes(module: Module) -> dict[str, object]:
    plan = module.forms["chunk"].plan
    return {
        "configs": {k.name: {w: c.row for w, c in default_configs(k.name, plan.chunk).items()} for k in plan.kernels},
        "walks": [k.name for k in plan.kernels if k.skeleton is Skeleton.WALK],
    }


def layout_holes(module: Module) -> dict[str, object]:
    return {"numbered": False, "aligned": 0}
