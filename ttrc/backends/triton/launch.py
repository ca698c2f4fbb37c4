"""A plan -> the lines of op.py that allocate its buffers and launch its kernels."""

from __future__ import annotations

from ttrc.backends.triton.kernel import pointers
from ttrc.ir.plan import Buffer, Kernel, Plan, Skeleton, Space

MATRIX_SKELETONS = (Skeleton.PARALLEL, Skeleton.SCAN)


def allocate_forward(plan: Plan) -> str:
    shape = "*(state_shape(q, v, cu_seqlens) if final else (0,))"
    lines = ["o = torch.empty_like(v)", f"final_state = v.new_empty({shape}, dtype=torch.float32)"]
    read = {b for k in plan.forward for b in k.loads}
    for buffer in plan.saved:
        text = _new(buffer, plan.form)
        lines.append(
            f"{buffer.name} = {text}" if buffer in read else f"{buffer.name} = {text} if save else v.new_empty(0)"
        )
    return "\n".join(lines)


def saved_fake(plan: Plan, buffer: Buffer) -> str:
    """What the op returns for a saved buffer, as the fake implementation sees it."""
    if buffer.space is Space.CHUNK:
        wide = "state_dtype(v)" if plan.form == "recurrent" else "v.dtype if triton else reference.working_dtype(v)"
        shape = "all_chunks(v, cu_seqlens, chunk), *state_shape(q, v, cu_seqlens)[1:]"
        return f"{buffer.name} = v.new_empty({shape}, dtype={wide}) if save else v.new_empty(0)"
    if "v" in buffer.tile.axes:
        return f"{buffer.name} = v.new_empty(v.shape) if save and triton else v.new_empty(0)"
    return f"{buffer.name} = v.new_empty(*v.shape[:3], chunk) if triton else v.new_empty(0)"


def allocate_backward(plan: Plan) -> str:
    lines = [f"{b.name} = {_new(b, plan.form)}" for b in plan.scratch]
    partial = plan.form == "recurrent"
    if partial:
        lines.append(f'blocks = -(-v.shape[-1] // config("{plan.backward[-1].name}", q, v, layout.sequences)[0])')
    for buffer in plan.backward[-1].stores:
        lines.append(f"{buffer.name} = {_new_gradient(buffer, partial)}")
    lines.append("d_initial = v.new_empty(*(state_shape(q, v, cu_seqlens) if initial else (0,)), dtype=torch.float32)")
    if partial:
        lines.append(
            "trail = v.new_empty(layout.sequences * v.shape[2] * blocks, chunk, block(q.shape[-1]), "
            "block(v.shape[-1]), dtype=torch.float32)"
        )
    return "\n".join(lines)


def launches(plan: Plan, kernels: tuple[Kernel, ...]) -> str:
    return "\n".join(_launch(plan, k) for k in kernels)


def results(plan: Plan, gates: tuple[str, ...], parameters: tuple[str, ...]) -> str:
    """The backward function's return values; partial sums over value blocks end here."""
    stored = {b.name: b for b in plan.backward[-1].stores}
    partial = plan.form == "recurrent"
    parts = []
    for name in ("q", "k", "v", *gates):
        buffer = stored.get(f"d_{name}")
        if buffer is None:  # no output depends on this input
            parts.append(f"torch.zeros_like({name})")
            continue
        text = buffer.name
        if partial and "v" not in buffer.tile.axes:
            text = f"{text}.sum(0)"
        if name in parameters:
            text = f"{text}.sum((0, 1)).to({name}.dtype)"
        elif buffer.space is Space.KEY_TOKEN:
            text = f"per_key_head({text}, {name})"
        elif name in gates:
            text = f"{text}.to({name}.dtype)"
        parts.append(text)
    return ", ".join([*parts, "d_initial"])


def _launch(plan: Plan, kernel: Kernel) -> str:
    tensors = [b.name for b in pointers(kernel)]
    extra, flags = "", ""
    match kernel.skeleton:
        case Skeleton.SCAN | Skeleton.TOKENS if not kernel.reverse:
            states = ["states"] if kernel.skeleton is Skeleton.TOKENS else []
            tensors += [*states, "initial_state", "final_state"]
            flags = ", ENTER=initial_state is not None, LEAVE=final, SAVE=save"
        case Skeleton.SCAN:
            tensors += ["d_final_state", "d_initial"]
            flags = ", ENTER=d_final_state is not None, LEAVE=initial, SAVE=False"
        case Skeleton.TOKENS_REVERSE:
            tensors += ["states", "trail", "d_final_state", "d_initial"]
            flags, extra = ", ENTER=d_final_state is not None, LEAVE=initial", ", extra=(v.shape[0] * v.shape[1],)"
    given = ", ".join(tensors)
    return f'launch("{kernel.name}", q, v, layout, chunk, ({given},), scale{extra}{flags})'


def _new(buffer: Buffer, form: str) -> str:
    if buffer.space is Space.CHUNK:
        dtype = ", dtype=torch.float32" if form == "recurrent" else ""
        return f"v.new_empty(layout.all_chunks, v.shape[2], q.shape[3], v.shape[3]{dtype})"
    return "v.new_empty(v.shape)" if "v" in buffer.tile.axes else "v.new_empty(*v.shape[:3], chunk)"


def _new_gradient(buffer: Buffer, partial: bool) -> str:
    match buffer.tile.axes[-1:] if partial else buffer.tile.axes[1:]:
        case ("v",):
            return "torch.empty_like(v)"
        case ("k",):
            blocks, dtype = ("blocks, ", ", dtype=torch.float32") if partial else ("", "")
            return f"v.new_empty({blocks}*v.shape[:3], q.shape[3]{dtype})"
    blocks = "blocks, " if partial else ""
    return f"v.new_empty({blocks}*v.shape[:3], dtype=torch.float32)"
