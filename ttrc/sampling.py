"""Random inputs for a spec: every gate inside its domain, ordinary or at its extremes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from ttrc.language.evaluate import evaluate_default
from ttrc.language.spec import Domain, Input, Parameter, Spec

# A normal number to a value of the domain, as layers produce them.
INTO_DOMAIN: dict[Domain, Callable[[Tensor], Tensor]] = {
    Domain.REAL: lambda x: x,
    Domain.POSITIVE: lambda x: softplus(x) * 0.5,
    Domain.NONNEGATIVE: lambda x: softplus(x) * 0.5,
    Domain.NEGATIVE: lambda x: -torch.exp(x * 0.5),
    Domain.UNIT: torch.sigmoid,
    Domain.DECAY: lambda x: torch.sigmoid(x + 2),
    Domain.LOG_DECAY: logsigmoid,
}

# The ends of a domain (forget all, keep all); the smallest decay is positive because the domain is.
ENDS: dict[Domain, tuple[float, float]] = {
    Domain.UNIT: (0.0, 1.0),
    Domain.DECAY: (1e-13, 1.0),
    Domain.LOG_DECAY: (-30.0, 0.0),
}


def random_inputs(
    spec: Spec,
    *,
    B: int,
    T: int,
    H: int,
    HV: int,
    dk: int,
    dv: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    extreme: str | None = None,
) -> dict[str, Tensor]:
    """{"q", "k", "v", "initial_state", one entry a gate}, drawn on the CPU so that a seed means the same anywhere.

    q [B, T, H, dk] normal; k [B, T, H, dk] of norm 1; v [B, T, HV, dv] normal; initial_state [B, HV, dk, dv] float32;
    inputs [B, T, HV, *axes]; parameters [HV, *axes], their default where they have one.
    extreme="strong": a third of each gate's entries at one end of its domain, a third at the other;
    extreme="weak": every decay and every unit gate 1 (log decay 0).
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {"k": dk, "v": dv}

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def gate(declared: Input | Parameter, *shape: int) -> Tensor:
        shape = shape + tuple(sizes[axis] for axis in declared.per.value)
        value = INTO_DOMAIN[declared.domain](normal(*shape))
        third = torch.randint(3, shape, generator=generator)
        if extreme is None or declared.domain not in ENDS:
            return value
        low, high = ENDS[declared.domain]
        if extreme == "weak":
            return torch.full_like(value, high)
        return value.masked_fill(third == 0, low).masked_fill(third == 1, high)

    drawn = {
        "q": normal(B, T, H, dk),
        "k": normalize(normal(B, T, H, dk), dim=-1),
        "v": normal(B, T, HV, dv),
        **{declared.name: gate(declared, B, T, HV) for declared in spec.inputs},
        **{
            declared.name: gate(declared, HV) if declared.default is None else default_value(declared, HV, sizes)
            for declared in spec.parameters
        },
    }
    drawn = {name: x.to(dtype).to(device) for name, x in drawn.items()}
    return drawn | {"initial_state": (normal(B, HV, dk, dv) * 0.5).float().to(device)}


def default_value(parameter: Parameter, heads: int, sizes: dict[str, int]) -> Tensor:
    """[HV, *axes] float64: the default of each head, the same in every channel. sizes: {"k": dk, "v": dv}."""
    axes = tuple(sizes[axis] for axis in parameter.per.value)
    values = [evaluate_default(parameter.default.tree, head, heads) for head in range(heads)]
    return torch.tensor(values, dtype=torch.float64).reshape(heads, *(1 for _ in axes)).repeat(1, *axes)
