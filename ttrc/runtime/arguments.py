"""An operator's arguments, checked before any kernel sees them: which one, what came, what was expected.

A message is put together only where it is raised: torch.compile traces these checks, and would take a length that
is printed for a constant, one compilation each.
"""

from __future__ import annotations

import os
from difflib import get_close_matches

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.forward_ad import unpack_dual

from ttrc.errors import ArgumentError
from ttrc.ir.config import WIDEST
from ttrc.language.spec import Domain, Input, KernelMemory, Parameter, Spec
from ttrc.language.state import axis_widths, part_domain, same_channels, state_parts

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHUNK_SIZES = (16, 32, 64, 128)
_WITHIN = {
    Domain.POSITIVE: (lambda x: x > 0, "values > 0"),
    Domain.NONNEGATIVE: (lambda x: x >= 0, "values >= 0"),
    Domain.NEGATIVE: (lambda x: x < 0, "values < 0"),
    Domain.UNIT: (lambda x: (x >= 0) & (x <= 1), "values between 0 and 1"),
    Domain.DECAY: (lambda x: (x > 0) & (x <= 1), "values above 0 and up to 1"),
    Domain.LOG_DECAY: (lambda x: x <= 0, "logarithms of a decay, values <= 0"),
}


def check_arguments(spec: Spec, q, k, v, gates: dict, initial_state, cu_seqlens, required: bool) -> None:
    """Raises ArgumentError for the first argument that is not as the contract says; a state may be `required`."""
    check_names(spec, gates)
    for name, x in (("q", q), ("k", k), ("v", v), *gates.items()):
        _check_tensor(name, x)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise _wrong(name, f"shape {_shape(x)}", "four dimensions, [B, T, heads, d]")
        if x.dtype not in DTYPES:
            raise _wrong(name, f"dtype {x.dtype}", "float16, bfloat16, float32 or float64")
        if x.dtype != q.dtype:
            raise _wrong(name, f"dtype {x.dtype}", f"the dtype of q, {q.dtype}")
        if x.device != q.device:
            raise _wrong(name, f"device {x.device}", f"the device of q, {q.device}")
        if min(x.shape) < 1:
            raise _wrong(name, f"shape {_shape(x)}", "no empty dimension")
        if x.shape[3] > WIDEST:
            raise _wrong(name, f"head dimension {x.shape[3]}", f"at most {WIDEST}")
    B, T, _, d_k = q.shape
    d_v = v.shape[3]
    _check_queries_and_keys(spec, q, k)
    if v.shape[:2] != (B, T):
        raise _wrong("v", f"shape {_shape(v)}", f"[{B}, {T}, HV, d_v], batch and length as in q")
    heads = _check_heads(spec, q, k, v)
    joined = same_channels(spec.memory)
    if joined and d_k != d_v:
        raise _wrong("v", f"head dimension {d_v}", f"the {d_k} of q and k: {joined}")
    check_gates(spec, gates, B, T, heads, q.device, {"k": d_k, "v": d_v})
    sequences = B if cu_seqlens is None else _check_packing(cu_seqlens, B, T, q.device)
    if initial_state is None and required:
        names = ", ".join(part.name for part in state_parts(spec))
        raise _wrong("initial_state", "None", f"{names}: this memory cannot start at zeros")
    if initial_state is not None:
        _check_states(spec, initial_state, sequences, heads, d_k, d_v, q)


def call_heads(spec: Spec, q: Tensor, k: Tensor, v: Tensor) -> int:
    """How many heads a call has: as many as the argument with the most, which in a memory with a state is v. What
    traces a call is not asked for more than that, and would hold on to the answer."""
    return max(q.shape[2], k.shape[2], v.shape[2]) if isinstance(spec.memory, KernelMemory) else v.shape[2]


def _check_queries_and_keys(spec: Spec, q: Tensor, k: Tensor) -> None:
    if k.shape == q.shape:
        return
    alike = (*q.shape[:2], q.shape[3]) == (*k.shape[:2], k.shape[3])
    if isinstance(spec.memory, KernelMemory):
        if not alike:
            B, T, _, d_k = q.shape
            raise _wrong("k", f"shape {_shape(k)}", f"[{B}, {T}, H, {d_k}], batch, length and head dimension as in q")
    else:
        hint = _repeat({"q": q.shape[2], "k": k.shape[2]}) if alike else ""
        raise _wrong("k", f"shape {_shape(k)}", f"the shape of q, {_shape(q)}{hint}")


def _check_heads(spec: Spec, q: Tensor, k: Tensor, v: Tensor) -> int:
    """How many heads the call has, which divides into groups that share those of an argument."""
    heads = call_heads(spec, q, k, v)
    if isinstance(spec.memory, KernelMemory):
        for name, x in (("q", q), ("k", k), ("v", v)):
            if heads % x.shape[2] != 0:
                raise _wrong(name, f"{x.shape[2]} heads", f"a divisor of {heads}, the most that q, k or v has")
    elif v.shape[2] % k.shape[2] != 0:
        hint = _repeat({"v": v.shape[2], "k": k.shape[2]}) if k.shape[2] > v.shape[2] else ""
        raise _wrong("v", f"{v.shape[2]} heads", f"a multiple of the {k.shape[2]} heads of q and k{hint}")
    return heads


def _repeat(heads: dict[str, int]) -> str:
    """What to do where a memory with a state is given arguments that share heads as only kernel memories allow."""
    (name, few), (_, many) = sorted(heads.items(), key=lambda item: item[1])
    if many % few != 0:
        return ""
    what = f"{name}.repeat_interleave({many // few}, dim=2)"
    return f"; each head has a state of its own here: repeat what several share, {what}"


def _check_tensor(name: str, x) -> None:
    if not isinstance(x, Tensor):
        raise _wrong(name, f"a {type(x).__name__}", "a tensor")
    if x.layout is not torch.strided:
        raise _wrong(name, f"layout {x.layout}", "a dense tensor")
    if torch.compiler.is_compiling():
        return
    # A custom op would lose a tangent without a word, and results would look constant.
    if unpack_dual(x).tangent is not None:
        raise _wrong(name, "a tangent of forward-mode differentiation", "none: gradients are taken in reverse mode")
    if functorch.is_gradtrackingtensor(x):
        expected = "an ordinary one: gradients are those of torch.autograd, by backward() or torch.autograd.grad"
        raise _wrong(name, "a tensor within a transform of torch.func that differentiates", expected)


def _has_values(x: Tensor) -> bool:
    """To look at here and now: on a GPU that would wait for the device at every call."""
    return x.device.type == "cpu" and not (torch.compiler.is_compiling() or is_fake(x) or functorch.is_batchedtensor(x))


def check_names(spec: Spec, gates: dict) -> None:
    declared = {g.name: g for g in (*spec.inputs, *spec.parameters)}
    for name in gates:
        if name not in declared:
            # torch.compile cannot trace difflib
            near = [] if torch.compiler.is_compiling() else get_close_matches(name, declared, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            expected = f"one of {', '.join(declared) or 'no gates at all'}{hint}"
            raise _wrong(name, "an argument that the spec does not declare", expected)


def check_options(form, forms, chunk_size, segment, backend, scale, keep_bytes, q) -> None:
    """How to run, as opposed to what on."""
    known = ("auto", "reference", *forms)
    if form not in known:
        raise _wrong("form", repr(form), f"one of {', '.join(known)}")
    if not (chunk_size is None or (isinstance(chunk_size, int) and chunk_size in CHUNK_SIZES)):
        raise _wrong("chunk_size", repr(chunk_size), "16, 32, 64 or 128")
    if segment is not None and chunk_size not in (None, segment):
        expected = f"None or {segment}, the segment whose start the spec takes gradients at"
        raise _wrong("chunk_size", repr(chunk_size), expected)
    if backend not in ("auto", "torch", "triton"):
        raise _wrong("backend", repr(backend), "auto, torch or triton")
    if not (scale is None or isinstance(scale, (int, float))):
        raise _wrong("scale", f"{scale!r:.40}, a {type(scale).__name__}", "a number, or None for the default")
    if not (keep_bytes is None or (isinstance(keep_bytes, (int, float)) and keep_bytes >= 0)):
        raise _wrong("keep_bytes", f"{keep_bytes!r:.40}", "a number of bytes, or None for no bound")
    if backend == "triton" and form != "reference":
        if q.dtype == torch.float64:
            raise _wrong("backend", "triton with float64", "float32 or less, or backend='torch'")
        if not (q.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
            expected = "a GPU, or TRITON_INTERPRET=1 set before Triton is imported"
            raise _wrong("backend", f"'triton' on {q.device}", expected)
        if not q.is_cuda:
            from ttrc.runtime.interpreter import mend_interpreter  # Triton is loaded only where it runs

            mend_interpreter()


def check_schedule(schedule, schedules, form: str, packed: bool) -> None:
    known = ("auto", *(schedules if form in ("auto", "chunk") else ()))
    if packed and schedule == "segments" and schedule in known:
        expected = "another: packed sequences (cu_seqlens) run side by side as they are, and are not cut"
        raise _wrong("schedule", "'segments' with cu_seqlens", expected)
    if schedule not in known:
        raise _wrong("schedule", repr(schedule), f"{'one of ' if known[1:] else ''}{', '.join(known)}")


def check_gates(spec: Spec, gates: dict, B: int, T: int, heads: int, device, widths: dict[str, int]) -> None:
    declared = {g.name: g for g in (*spec.inputs, *spec.parameters)}
    for name, gate in declared.items():
        if name not in gates:
            raise _wrong(
                name, "nothing", f"a tensor {_gate_shape(spec, gate, B, T, heads, widths)}, {gate.domain.value}"
            )
        x = gates[name]
        wanted = (B, T, heads) if isinstance(gate, Input) else (heads,)
        if tuple(x.shape) != (*wanted, *(widths[axis] for axis in gate.per.axes)):
            raise _wrong(name, f"shape {_shape(x)}", _gate_shape(spec, gate, B, T, heads, widths))
        if x.dtype not in DTYPES:
            raise _wrong(name, f"dtype {x.dtype}", "a floating dtype, best float32")
        if x.device != device:
            raise _wrong(name, f"device {x.device}", f"the device of q, {device}")
        _check_domain(name, x, gate.domain)


def _check_domain(name: str, x: Tensor, domain: Domain) -> None:
    if domain not in _WITHIN or not _has_values(x):
        return
    holds, expected = _WITHIN[domain]
    inside = holds(x.detach())
    if not bool(inside.all()):
        worst = x.detach()[~inside].flatten()[0].item()
        hint = "; pass its logarithm" if domain is Domain.LOG_DECAY else ""
        raise _wrong(name, f"the value {worst:.6g}", f"{expected}{hint}")


def _check_packing(cu_seqlens, B: int, T: int, device) -> int:
    name = "cu_seqlens"
    if not isinstance(cu_seqlens, Tensor):
        raise _wrong(name, f"a {type(cu_seqlens).__name__}", "an integer tensor [N + 1]")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise _wrong(name, f"dtype {cu_seqlens.dtype}", "int32 or int64")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        raise _wrong(name, f"shape {_shape(cu_seqlens)}", "[N + 1], N >= 1")
    if B != 1:
        raise _wrong("q", f"batch {B}", "batch 1 with cu_seqlens: sequences are packed along the length")
    if cu_seqlens.device != device:
        raise _wrong(name, f"device {cu_seqlens.device}", f"the device of q, {device}")
    if _has_values(cu_seqlens):
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or ends[-1] != T:
            raise _wrong(name, f"{ends[0]} .. {ends[-1]}", f"0 first and the length {T} last")
        if not all(a < b for a, b in zip(ends, ends[1:])):
            raise _wrong(name, f"{ends}", "increasing ends, no empty sequence")
    return cu_seqlens.numel() - 1


def _check_states(spec: Spec, given, sequences: int, HV: int, d_k: int, d_v: int, q: Tensor) -> None:
    parts, widths = state_parts(spec), axis_widths(spec.memory, d_k, d_v)
    if not parts:
        if given != ():
            expected = "None: this memory keeps all pairs, and has no state"
            raise _wrong("initial_state", f"a {type(given).__name__}", expected)
        return
    if len(parts) > 1:
        names = ", ".join(part.name for part in parts)
        if not isinstance(given, tuple) or len(given) != len(parts):
            many = f" of {len(given)}" if isinstance(given, (tuple, list)) else ""
            raise _wrong("initial_state", f"a {type(given).__name__}{many}", f"a tuple of {len(parts)}: {names}")
    for part, state in zip(parts, given if len(parts) > 1 else (given,)):
        name = "initial_state" if len(parts) == 1 else f"initial_state.{part.name}"
        _check_state(name, state, (sequences, HV, *(widths[axis] for axis in part.axes)), q)
        if _has_values(state):
            _check_domain(name, state, part_domain(spec, part))


def _check_state(name: str, state, wanted: tuple[int, ...], q: Tensor) -> None:
    single = torch.float64 if q.dtype == torch.float64 else torch.float32
    _check_tensor(name, state)
    if tuple(state.shape) != wanted:
        raise _wrong(name, f"shape {_shape(state)}", f"{list(wanted)}")
    if state.dtype != single:
        raise _wrong(name, f"dtype {state.dtype}", str(single))
    if state.device != q.device:
        raise _wrong(name, f"device {state.device}", f"{q.device}")


def _gate_shape(spec: Spec, gate: Input | Parameter, B: int, T: int, heads: int, widths: dict[str, int]) -> str:
    shared = isinstance(spec.memory, KernelMemory)
    sizes = ({"B": B, "T": T} if isinstance(gate, Input) else {}) | {"HO" if shared else "HV": heads}
    sizes |= {f"d_{axis}": widths[axis] for axis in gate.per.axes}
    told = ", HO the most heads that q, k or v has" if shared else ""
    return f"[{', '.join(sizes)}] = [{', '.join(map(str, sizes.values()))}]{told}"


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)


def _wrong(name: str, came: str, expected: str) -> ArgumentError:
    return ArgumentError(f"{name}: got {came}, expected {expected}")
