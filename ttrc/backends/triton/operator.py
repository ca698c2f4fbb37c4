"""Plans -> the holes of the files around a package's kernels: the operator, its launches, its choices, its layout."""

from __future__ import annotations

from ttrc.backends import arguments
from ttrc.backends.triton import launch, pieces, registers
from ttrc.backends.triton.widths import room
from ttrc.ir.config import (
    ENTRIES,
    JOINED,
    LONG_CHUNK,
    SEARCHED,
    SHORT_CHUNK,
    WIDTHS,
    Takes,
    default_configs,
    is_several_chunks,
)
from ttrc.ir.module import Module
from ttrc.ir.plan import Kernel, Plan, Skeleton
from ttrc.language.state import default_scale, needs_initial_state
from ttrc.passes.budget import launch_costs


def op_holes(module: Module) -> dict[str, object]:
    spec, plans = module.spec, _plans(module)
    gates, still = arguments.moving(module), arguments.still(module)
    parameters = tuple(g.name for g in spec.parameters if g.name not in still)
    states = [t for t in arguments.handed(module) if t.name not in still]
    costs, chunked = _costs(module), "chunk" in plans
    return {
        "name": spec.name,
        "gates": gates,
        "still": still,
        "parameters": parameters,
        "forms": list(plans),
        "gate_doc": arguments.gate_doc(spec, still),
        "states": [t.name for t in states],
        "state_type": "Tensor" if len(states) == 1 else "State",
        "states_doc": arguments.states_doc(states, arguments.expansion(module)),
        "default_scale": str(default_scale(spec.memory) or "q.shape[-1] ** -0.5"),
        "required": needs_initial_state(spec),
        "room": room(arguments.handed(module)),
        "fixed": next((p.chunk for p in plans.values() if p.chunk == p.segment and p.form == "chunk"), 0),
        "saved": {f: [b.name for b in launch.blocks(p.saved)] for f, p in plans.items()},
        "returned": {f: [launch.returned(p, b) for b in launch.blocks(p.saved)] for f, p in plans.items()},
        "final": {f: launch.handed_out(p, "final_state") for f, p in plans.items()},
        "saved_fake": {f: {b.name: launch.saved_fake(p, b) for b in launch.blocks(p.saved)} for f, p in plans.items()},
        "allocate": {
            f: {"forward": launch.allocate_forward(p), "backward": launch.allocate_backward(p)}
            for f, p in plans.items()
        },
        "launch": {
            f: {"forward": launch.launches(p, "forward"), "backward": launch.launches(p, "backward")}
            for f, p in plans.items()
        },
        "cuts": _cuts(plans),
        "again": {f: launch.again(p) for f, p in plans.items()},
        "results": {f: launch.results(p, gates, parameters) for f, p in plans.items()},
        "schedules": list(costs.get("chunk", ())),
        "costed": list(costs),
        "numbered": any(k.numbered for k in _kernels(plans)),
        "chunks_apart": {f: launch.chunks_apart(p) for f, p in plans.items()},
        "auto_rule": '"recurrent" if q.shape[1] <= 16 else "chunk"' if chunked else '"recurrent"',
        "auto_doc": "recurrent up to 16 tokens, chunk beyond" if chunked else "the recurrent form, the only one",
    }


def launch_holes(module: Module) -> dict[str, object]:
    plans = _plans(module)
    kernels = _kernels(plans)
    longest = {k.name: p.chunk for p in plans.values() for k in p.kernels}
    return {
        "expansion": arguments.expansion(module),
        "configs": {n: {w: c.row for w, c in default_configs(n, most).items()} for n, most in longest.items()},
        "whole": _taking(kernels, Takes.WHOLE),
        "panels": _taking(kernels, Takes.HIDDEN),
        "keys": _taking(kernels, Takes.KEYS),
        "rows": [k.name for k in kernels if k.skeleton is Skeleton.ROWS],
        "searched": SEARCHED,
        "parallel": [k.name for k in kernels if k.skeleton in launch.AT_ONCE],
        "matrix": [k.name for k in kernels if k.skeleton in launch.MATRIX_SKELETONS],
        "crowded": [k.name for k in kernels if registers.is_crowded(k)],
        "registers": (registers.MOST, registers.OF_WARPS),
        "entries": _taking(kernels, Takes.ENTRIES),
        "numbers": ENTRIES,
        "steps": {k.name: p.step for p in plans.values() for k in p.kernels if k.skeleton is Skeleton.SCAN},
        "numbered": [k.name for k in kernels if k.numbered],
        "joined": JOINED,
        **pieces.join_sizes(plans),
    }


def choices_holes(module: Module) -> dict[str, object]:
    plans = _plans(module)
    kernels = _kernels(plans)
    return {
        "chunks": {f: _chunks(p) for f, p in plans.items()},
        "entries": _taking(kernels, Takes.ENTRIES),
        "numbers": ENTRIES,
        "between": (SHORT_CHUNK, LONG_CHUNK),
        "costs": _costs(module),
        "scan": next((k.name for k in kernels if k.skeleton is Skeleton.SCAN), ""),
        "keys": _taking(kernels, Takes.KEYS),
        "aligned": _aligned(plans),
        "cuts": _cuts(plans),
        "every": {c.name: c.tokens or c.every for p in plans.values() if len(p.cuts) > 1 for c in p.cuts},
        "in_tokens": any(c.tokens for p in plans.values() for c in p.cuts),
        "held": {f: {c.name: launch.held(c) for c in p.cuts} for f, p in plans.items()},
    }


def layout_holes(module: Module) -> dict[str, object]:
    plans = _plans(module)
    return {"numbered": any(k.numbered for k in _kernels(plans)), "aligned": _aligned(plans)}


def _plans(module: Module) -> dict[str, Plan]:
    return {form: m.plan for form, m in module.forms.items()}


def _kernels(plans: dict[str, Plan]) -> list[Kernel]:
    return [k for p in plans.values() for k in p.kernels]


def _taking(kernels: list[Kernel], takes: Takes) -> list[str]:
    return [k.name for k in kernels if k.takes is takes]


def _cuts(plans: dict[str, Plan]) -> list[str]:
    """The forms that may keep less than all for their backward pass."""
    return [f for f, p in plans.items() if len(p.cuts) > 1]


def _aligned(plans: dict[str, Plan]) -> int:
    """Tokens a segment of the rule, where these are several chunks and pieces have to be whole ones, or else 0."""
    return next((p.segment for p in plans.values() if p.crossing and is_several_chunks(p.segment)), 0)


def _chunks(plan: Plan) -> dict[int, tuple[int, int]]:
    """{widest head dimension: tokens a chunk, with inputs of two bytes and of more}."""
    return {w: tuple(plan.tokens(w, w, size) for size in (2, 4)) for w in WIDTHS}


def _costs(module: Module) -> dict[str, dict]:
    """{form: {schedule: {pass: {width: rows}}}} where a form has several schedules."""
    return {
        form: {
            s.name: {
                direction: {w: launch_costs(plan.plan, getattr(s, direction), width=w) for w in WIDTHS}
                for direction in ("forward", "backward")
            }
            for s in plan.plan.schedules
        }
        for form, plan in module.forms.items()
        if len(plan.plan.schedules) > 1
    }
