"""An operator's arguments, checked before any kernel sees them: which one, what came, what was expected."""

from __future__ import annotations

import os
from difflib import get_close_matches

import torch
from torch import Tensor

from ttrc.errors import ArgumentError
from ttrc.ir.config import WIDEST
from ttrc.language.spec import Domain, Input, Parameter, Spec

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


def check_arguments(spec: Spec, q, k, v, gates: dict, initial_state, cu_seqlens) -> None:
    """Raises ArgumentError for the first argument that is not as the contract says."""
    check_names(spec, gates)
    for name, x in (("q", q), ("k", k), ("v", v), *gates.items()):
        _require(isinstance(x, Tensor), name, f"a {type(x).__name__}", "a tensor")
        _require(x.layout is torch.strided, name, f"layout {x.layout}", "a dense tensor")
    for name, x in (("q", q), ("k", k), ("v", v)):
        _require(x.dim() == 4, name, f"shape {_shape(x)}", "four dimensions, [B, T, heads, d]")
        _require(x.dtype in DTYPES, name, f"dtype {x.dtype}", "float16, bfloat16, float32 or float64")
        _require(x.dtype == q.dtype, name, f"dtype {x.dtype}", f"the dtype of q, {q.dtype}")
        _require(x.device == q.device, name, f"device {x.device}", f"the device of q, {q.device}")
        _require(min(x.shape) >= 1, name, f"shape {_shape(x)}", "no empty dimension")
        _require(x.shape[3] <= WIDEST, name, f"head dimension {x.shape[3]}", f"at most {WIDEST}")
    B, T, H, d_k = q.shape
    _require(k.shape == q.shape, "k", f"shape {_shape(k)}", f"the shape of q, {_shape(q)}")
    _require(v.shape[:2] == (B, T), "v", f"shape {_shape(v)}", f"[{B}, {T}, HV, d_v], batch and length as in q")
    HV, d_v = v.shape[2:]
    _require(HV % H == 0, "v", f"{HV} heads", f"a multiple of the {H} heads of q and k")
    check_gates(spec, gates, B, T, HV, q.device)
    sequences = B
    if cu_seqlens is not None:
        sequences = _check_packing(cu_seqlens, B, T, q.device)
    if initial_state is not None:
        wanted = (sequences, HV, d_k, d_v)
        _require(isinstance(initial_state, Tensor), "initial_state", f"a {type(initial_state).__name__}", "a tensor")
        _require(
            tuple(initial_state.shape) == wanted, "initial_state", f"shape {_shape(initial_state)}", f"{list(wanted)}"
        )
        single = torch.float64 if q.dtype == torch.float64 else torch.float32
        _require(initial_state.dtype == single, "initial_state", f"dtype {initial_state.dtype}", str(single))
        _require(initial_state.device == q.device, "initial_state", f"device {initial_state.device}", f"{q.device}")


def check_names(spec: Spec, gates: dict) -> None:
    declared = {g.name: g for g in (*spec.inputs, *spec.parameters)}
    for name in gates:
        near = get_close_matches(name, declared, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        _require(
            name in declared,
            name,
            "an argument that the spec does not declare",
            f"one of {', '.join(declared) or 'no gates at all'}{hint}",
        )


def check_options(form, forms, chunk_size, backend, scale, q) -> None:
    """How to run, as opposed to what on."""
    known = ("auto", "reference", *forms)
    _require(form in known, "form", repr(form), f"one of {', '.join(known)}")
    plain = chunk_size is None or (isinstance(chunk_size, int) and chunk_size in CHUNK_SIZES)
    _require(plain, "chunk_size", repr(chunk_size), "16, 32, 64 or 128")
    _require(backend in ("auto", "torch", "triton"), "backend", repr(backend), "auto, torch or triton")
    number = scale is None or isinstance(scale, (int, float))
    _require(number, "scale", f"{scale!r:.40}, a {type(scale).__name__}", "a number, or None for d_k ** -0.5")
    if backend == "triton" and form != "reference":
        _require(q.dtype != torch.float64, "backend", "triton with float64", "float32 or less, or backend='torch'")
        runs = q.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
        _require(
            runs, "backend", f"'triton' on {q.device}", "a GPU, or TRITON_INTERPRET=1 set before Triton is imported"
        )


def check_gates(spec: Spec, gates: dict, B: int, T: int, HV: int, device) -> None:
    declared = {g.name: g for g in (*spec.inputs, *spec.parameters)}
    for name, gate in declared.items():
        _require(name in gates, name, "nothing", f"a tensor {_gate_shape(gate, B, T, HV)}, {gate.domain.value}")
        x = gates[name]
        wanted = (B, T, HV) if isinstance(gate, Input) else (HV,)
        _require(tuple(x.shape) == wanted, name, f"shape {_shape(x)}", _gate_shape(gate, B, T, HV))
        _require(x.dtype in DTYPES, name, f"dtype {x.dtype}", "a floating dtype, best float32")
        _require(x.device == device, name, f"device {x.device}", f"the device of q, {device}")
        _check_domain(name, x, gate)


def _check_domain(name: str, x: Tensor, gate: Input | Parameter) -> None:
    """Looks at the values on the CPU only: on a GPU that would wait for the device at every call."""
    if gate.domain not in _WITHIN or x.device.type != "cpu" or torch.compiler.is_compiling():
        return
    holds, expected = _WITHIN[gate.domain]
    inside = holds(x.detach())
    if not bool(inside.all()):
        worst = x.detach()[~inside].flatten()[0].item()
        hint = "; pass its logarithm" if gate.domain is Domain.LOG_DECAY else ""
        _require(False, name, f"the value {worst:.6g}", f"{expected}{hint}")


def _check_packing(cu_seqlens, B: int, T: int, device) -> int:
    name = "cu_seqlens"
    _require(isinstance(cu_seqlens, Tensor), name, f"a {type(cu_seqlens).__name__}", "an integer tensor [N + 1]")
    _require(cu_seqlens.dtype in (torch.int32, torch.int64), name, f"dtype {cu_seqlens.dtype}", "int32 or int64")
    _require(cu_seqlens.dim() == 1 and cu_seqlens.numel() >= 2, name, f"shape {_shape(cu_seqlens)}", "[N + 1], N >= 1")
    _require(B == 1, "q", f"batch {B}", "batch 1 with cu_seqlens: sequences are packed along the length")
    _require(cu_seqlens.device == device, name, f"device {cu_seqlens.device}", f"the device of q, {device}")
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        ends = cu_seqlens.tolist()
        _require(ends[0] == 0 and ends[-1] == T, name, f"{ends[0]} .. {ends[-1]}", f"0 first and the length {T} last")
        _require(all(a < b for a, b in zip(ends, ends[1:])), name, f"{ends}", "increasing ends, no empty sequence")
    return cu_seqlens.numel() - 1


def _gate_shape(gate: Input | Parameter, B: int, T: int, HV: int) -> str:
    return f"[B, T, HV] = [{B}, {T}, {HV}]" if isinstance(gate, Input) else f"[HV] = [{HV}]"


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)


def _require(condition: bool, name: str, came: str, expected: str) -> None:
    if not condition:
        raise ArgumentError(f"{name}: got {came}, expected {expected}")
