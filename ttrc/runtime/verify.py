"""An operator against the oracle: outputs, final state and every gradient, by relative RMS error.

The oracle runs in float64 on the CPU and takes its gradients by autograd, through o and through the final state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Union

import torch
from torch import Tensor

from ttrc import oracle
from ttrc.ir.config import is_several_chunks
from ttrc.language.spec import Gradient, KernelMemory, Softmax, Spec
from ttrc.language.state import initial_names, same_channels
from ttrc.runtime.operator import Operator
from ttrc.sampling import as_arguments, random_inputs, random_state

# (outputs, gradients), RMS(error) / RMS(reference). Half precision rounds each product's operands once; bfloat16
# keeps three bits less than float16, so its bound is eight times that.
BOUNDS = {
    ("torch", torch.float64): (1e-10, 1e-9),
    ("torch", torch.float32): (1e-5, 5e-5),
    ("triton", torch.float32): (1e-5, 5e-5),
    ("triton", torch.float16): (2e-3, 2e-3),
    ("triton", torch.bfloat16): (1.6e-2, 1.6e-2),
}


@dataclass(frozen=True)
class Case:
    """Shapes to check at; `packed` are sequence lengths that sum to T (batch 1), or empty."""

    B: int = 2
    T: int = 70
    H: int = 1
    HV: int = 2
    d_k: int = 16
    d_v: int = 24
    packed: tuple[int, ...] = ()
    extreme: str | None = None
    chunk_size: int | None = None
    schedule: str = "auto"
    seed: int = 0
    HQ: int | None = None  # heads of queries that are not as many as those of keys

    def __str__(self) -> str:
        heads = f"{self.H}/{self.HV}" if self.HQ is None else f"{self.HQ}/{self.H}/{self.HV}"
        text = f"B{self.B} T{self.T} H{heads} d{self.d_k}/{self.d_v}"
        for name in ("packed", "extreme", "chunk_size"):
            if getattr(self, name):
                text += f" {name}={getattr(self, name)}"
        return text if self.schedule == "auto" else f"{text} {self.schedule}"


def fitting(spec: Spec, case: Case) -> Case:
    """The case as a rule can run it: one whose segments are chunks has no other chunks, some want d_v = d_k."""
    segment = spec.update.segment if isinstance(spec.update, Gradient) else None
    if segment is not None and not is_several_chunks(segment):
        case = replace(case, chunk_size=None)
    if same_channels(spec.memory):
        case = replace(case, d_v=case.d_k)
    if isinstance(spec.memory, KernelMemory) and not case.packed:  # of one pair its weight does not matter
        case = replace(case, T=max(2, case.T))
    if isinstance(spec.retention.link, Softmax):  # of one channel it is constant: gradients that cancel to rounding
        case = replace(case, d_k=max(2, case.d_k), d_v=max(2, case.d_v))
    return case


@dataclass(frozen=True)
class Result:
    """Relative RMS error of each output and gradient, and the bounds they have to keep."""

    outputs: dict[str, float]
    gradients: dict[str, float]
    bounds: tuple[float, float]

    @property
    def failures(self) -> tuple[str, ...]:
        """What misses its bound; nan misses every bound."""
        checks = [(n, e, self.bounds[0]) for n, e in self.outputs.items()]
        checks += [(n, e, self.bounds[1]) for n, e in self.gradients.items()]
        return tuple(f"{n} {e:.1e} > {spelled(bound)}" for n, e, bound in checks if not e <= bound)


def spelled(bound: float) -> str:
    """1.6e-02, and 1e-05 without a zero more."""
    return f"{bound:.1e}".replace(".0e", "e")


Outputs = tuple[Tensor, Union[Tensor, tuple[Tensor, ...]]]
Call = Callable[[dict[str, Tensor], Tensor | None], Outputs]


@dataclass(frozen=True)
class Setting:
    """One case ready to run: inputs as the operator gets them, and what the oracle makes of them in float64."""

    case: Case
    given: dict[str, Tensor]
    cu_seqlens: Tensor | None
    cotangents: tuple[Tensor, ...]
    reference: dict[str, Tensor]


def verify(op: Operator, case: Case, *, form: str, backend: str, dtype: torch.dtype, device: str = "cpu") -> Result:
    """One form, backend and dtype of an operator at one case."""
    setting = prepare(op.spec, case, dtype, device)
    return compare(run(op, setting, form, backend), setting.reference, BOUNDS[backend, dtype])


def prepare(spec: Spec, case: Case, dtype: torch.dtype, device: str) -> Setting:
    reference = _reference(spec, replace(case, chunk_size=None, schedule="auto"), dtype)
    return replace(draw_setting(spec, case, dtype, device), reference=reference)


def draw_setting(spec: Spec, case: Case, dtype: torch.dtype, device: str) -> Setting:
    """A case that runs, and that nobody has asked the oracle about."""
    given, cu_seqlens, cotangents = _given(spec, case, dtype)
    return Setting(case, {n: x.to(device) for n, x in given.items()}, cu_seqlens, cotangents, {})


def run(op: Operator, setting: Setting, form: str, backend: str) -> dict[str, Tensor]:
    """What the operator makes of a case, forward and backward."""

    def call(x: dict[str, Tensor], packing: Tensor | None) -> Outputs:
        return op(
            **as_arguments(op.spec, x),
            output_final_state=True,
            cu_seqlens=packing,
            form=form,
            chunk_size=setting.case.chunk_size,
            backend=backend,
            schedule=setting.case.schedule,
        )

    given = setting.given
    return differentiate(op.spec, call, given, setting.cu_seqlens, setting.cotangents, None, given["q"].device)


@lru_cache(maxsize=32)  # forms and schedules are compared at the same cases
def _reference(spec: Spec, case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """The oracle's numbers at a case, which no chunk size and no schedule changes."""
    return consult(spec, *_given(spec, case, dtype))


def _given(spec: Spec, case: Case, dtype: torch.dtype):
    """As `draw`, rounded to what an operator is given."""
    drawn, cu_seqlens, cotangents = draw(spec, case)
    return {n: x.to(_dtype_of(n, dtype)) for n, x in drawn.items()}, cu_seqlens, cotangents


def draw(spec: Spec, case: Case) -> tuple[dict[str, Tensor], Tensor | None, tuple[Tensor, ...]]:
    """Inputs in float64, the packing, and the cotangents of o and of each part of the final state."""
    batch = 1 if case.packed else case.B
    x = random_inputs(
        spec,
        B=batch,
        T=case.T,
        H=case.H,
        HV=case.HV,
        HQ=case.HQ,
        dk=case.d_k,
        dv=case.d_v,
        dtype=torch.float64,
        seed=case.seed,
        extreme=case.extreme,
    )
    cu_seqlens = None
    generator = torch.Generator().manual_seed(case.seed + 1)
    sequences = batch
    if case.packed:
        cu_seqlens = torch.tensor([0, *case.packed]).cumsum(0).to(torch.int32)
        sequences = len(case.packed)
    state = random_state(spec, sequences=sequences, HV=case.HV, dk=case.d_k, dv=case.d_v, generator=generator)
    heads = max(x[n].shape[2] for n in ("q", "k", "v"))
    shapes = [(*x["v"].shape[:2], heads, case.d_v), *(part.shape for part in state.values())]
    return x | state, cu_seqlens, tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


def consult(spec: Spec, given: dict[str, Tensor], cu_seqlens, cotangents) -> dict[str, Tensor]:
    """What the oracle makes of the same inputs, in float64 on the CPU."""
    return differentiate(spec, partial(by_oracle, spec), given, cu_seqlens, cotangents, torch.float64, "cpu")


def by_oracle(spec: Spec, x: Mapping[str, Tensor], packing: Tensor | None = None) -> Outputs:
    gates = as_arguments(spec, x)
    q, k, v, start = (gates.pop(n, None) for n in ("q", "k", "v", "initial_state"))
    return oracle.run(spec, q, k, v, gates, initial_state=start, cu_seqlens=packing)


def differentiate(
    spec: Spec, call: Call, given: dict[str, Tensor], cu_seqlens, cotangents, dtype, device
) -> dict[str, Tensor]:
    """{"o", "final_state", "d_q", ...} of a call on `given`, cast to dtype and device where those are named."""
    x = {n: t.detach().to(device, dtype or t.dtype).requires_grad_() for n, t in given.items()}
    packing = None if cu_seqlens is None else cu_seqlens.to(device)
    o, final = call(x, packing)
    names = ["o", *(n.replace("initial", "final", 1) for n in initial_names(spec))]
    outputs = (o, final) if isinstance(final, Tensor) else (o, *final)
    cotangents = [c.to(device, y.dtype) for c, y in zip(cotangents, outputs)]
    grads = torch.autograd.grad(outputs, list(x.values()), cotangents, allow_unused=True)
    made = {f"d_{n}": torch.zeros_like(t) if g is None else g for (n, t), g in zip(x.items(), grads)}
    return {n: y.detach() for n, y in zip(names, outputs)} | made


def compare(made: dict[str, Tensor], reference: dict[str, Tensor], bounds: tuple[float, float]) -> Result:
    errors = {n: relative_rms(made[n], reference[n]) for n in reference}
    outputs = {n: e for n, e in errors.items() if not n.startswith("d_")}
    return Result(outputs, {n: e for n, e in errors.items() if n.startswith("d_")}, bounds)


def relative_rms(made: Tensor, reference: Tensor) -> float:
    """RMS(made - reference) / RMS(reference); 0 for two tensors of zeros, inf where only the reference is zero."""
    made, reference = made.detach().double().cpu(), reference.detach().double().cpu()
    error, size = (made - reference).pow(2).mean().sqrt().item(), reference.pow(2).mean().sqrt().item()
    if error == 0.0:
        return 0.0
    return error / size if size > 0.0 else float("inf")


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Gates and states stay in float32 beside half-precision q, k and v."""
    if dtype == torch.float64 or name in ("q", "k", "v"):
        return dtype
    return torch.float32
