"""How right each side of a benchmark is, in the same run: against the oracle where it can go, else a float32 run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ttrc.language.spec import Spec
from ttrc.runtime.verify import by_oracle, relative_rms
from ttrc.runtime.workload import Workload, draw_inputs

Call = Callable[[Mapping[str, Tensor]], Tensor]
Errors = dict[str, float]  # {"o": .., "d_q": .., ..}: RMS(error) / RMS(reference)


def small_errors(
    spec: Spec, calls: Mapping[str, Call], shape: Workload, dtype: torch.dtype, device: str
) -> dict[str, Errors | str]:
    """Of each call, at a small shape, against the oracle in float64; or why it gave none."""
    x = draw_inputs(spec, shape, dtype, device, seed=1)
    exact = {n: t.detach().double().cpu().requires_grad_() for n, t in x.items()}
    d_o = torch.randn(exact["v"].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    reference = _made(lambda x: by_oracle(spec, x)[0], exact, d_o)
    return {name: _errors(call, x, d_o, reference) for name, call in calls.items()}


def large_errors(calls: Mapping[str, Call], reference: Call, x: dict[str, Tensor]) -> dict[str, Errors | str]:
    """Of each call's output on inputs too large for the oracle, against one call in float32 on the same numbers."""
    with torch.no_grad():
        wide = {n: t.detach().float() for n, t in x.items()}
        expected = {"o": reference(wide)}
        del wide
    return {name: _errors(call, x, None, expected) for name, call in calls.items()}


def _made(call: Call, x: Mapping[str, Tensor], d_o: Tensor | None) -> dict[str, Tensor]:
    if d_o is None:
        with torch.no_grad():
            return {"o": call(x)}
    o = call(x)
    if not o.requires_grad:
        return {"o": o}
    grads = torch.autograd.grad(o, list(x.values()), d_o.to(o.device, o.dtype), allow_unused=True)
    return {"o": o.detach(), **{f"d_{n}": g for n, g in zip(x, grads, strict=True) if g is not None}}


def _errors(call: Call, x, d_o, reference: Mapping[str, Tensor]) -> Errors | str:
    try:
        made = _made(call, x, d_o)
    except Exception as error:  # a side that does not run is told so, and the others go on
        return f"{type(error).__name__}: {str(error)[:160]}"
    return {n: _relative(made[n], reference[n]) for n in made if n in reference}


def _relative(made: Tensor, reference: Tensor) -> float:
    """RMS(made - reference) / RMS(reference), worked out where the larger one lies."""
    if reference.dtype == torch.float64:
        return relative_rms(made, reference)
    error = (made.float() - reference).pow_(2).mean(dtype=torch.float64).sqrt()
    return (error / reference.pow(2).mean(dtype=torch.float64).sqrt()).item()
