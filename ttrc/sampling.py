"""Random inputs for a spec: every gate inside its domain, ordinary or at its extremes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from ttrc.language.evaluate import evaluate_default
from ttrc.language.spec import Domain, Input, KernelMemory, MLPMemory, Parameter, Per, Softmax, Spec
from ttrc.language.state import Part, axis_widths, initial_names, part_domain, state_parts
from ttrc.language.syntax import names

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
    HQ: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    extreme: str | None = None,
) -> dict[str, Tensor]:
    """{"q", "k", "v", one entry a gate, one each of initial_names(spec)}.

    Drawn on the CPU, so that a seed means the same anywhere.

    q [B, T, H, dk], or with HQ heads, normal; k [B, T, H, dk] of norm 1, or about 1 of a kernel memory, whose
    similarity may hang on it; v [B, T, HV, dv] normal; the initial state as `random_state` draws it, in float32; inputs
    [B, T, HV, *axes], HV or more where q has more heads, real ones by key channel that the keys of losses are made of
    drawn as k is; parameters [HV, *axes], their default where they have one, or a number near it where it may be any.
    extreme="strong": a third of each gate's entries at one end of its domain, a third at the other;
    extreme="weak": every decay and every unit gate 1 (log decay 0).
    """
    heads = max(H if HQ is None else HQ, H, HV)
    generator = torch.Generator().manual_seed(seed)
    sizes = {"k": dk, "v": dv}

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def gate(declared: Input | Parameter, *shape: int) -> Tensor:
        shape = shape + tuple(sizes[axis] for axis in declared.per.axes)
        value = INTO_DOMAIN[declared.domain](normal(*shape))
        third = torch.randint(3, shape, generator=generator)
        if extreme is None or declared.domain not in ENDS:
            return value
        low, high = ENDS[declared.domain]
        if extreme == "weak":
            return torch.full_like(value, high)
        return value.masked_fill(third == 0, low).masked_fill(third == 1, high)

    def parameter(declared: Parameter) -> Tensor:
        if declared.default is None:
            return gate(declared, heads)
        default = default_value(declared, heads, sizes)
        return default + 0.2 * normal(*default.shape) if declared.domain is Domain.REAL else default

    def key(x: Tensor) -> Tensor:
        return x / dk**0.5 if isinstance(spec.memory, KernelMemory) else normalize(x, dim=-1)

    asked = {name for loss in spec.losses for part in (loss.key, loss.write) if part for name in names(part.tree)}

    def of_tokens(declared: Input) -> Tensor:
        x = gate(declared, B, T, heads)
        is_key = declared.name in asked and declared.domain is Domain.REAL and declared.per is Per.KEY_CHANNEL
        return key(x) if is_key else x

    drawn = {
        "q": normal(B, T, H if HQ is None else HQ, dk),
        "k": key(normal(B, T, H, dk)),
        "v": normal(B, T, HV, dv),
        **{declared.name: of_tokens(declared) for declared in spec.inputs},
        **{declared.name: parameter(declared) for declared in spec.parameters},
    }
    drawn = {name: x.to(dtype).to(device) for name, x in drawn.items()}
    state = random_state(spec, sequences=B, HV=HV, dk=dk, dv=dv, generator=generator)
    return drawn | {name: x.float().to(device) for name, x in state.items()}


def random_state(
    spec: Spec, *, sequences: int, HV: int, dk: int, dv: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """The parts of a state by the names of initial_names(spec), float64 [sequences, HV, *axes].

    What a closed form has of the keys is symmetric, and none of its eigenvalues negative. A deep memory's last steps
    are a tenth of the size of its weights; where the retention has logarithms of the state, all entries are inside of
    its domain.
    """
    widths = axis_widths(spec.memory, dk, dv)

    def draw(part: Part) -> Tensor:
        shape = tuple(widths[axis] for axis in part.axes)
        size = entry_size(spec, shape[0])
        if isinstance(spec.memory, MLPMemory) and part.is_step:
            size *= 0.1
        x = torch.randn(sequences, HV, *shape, generator=generator, dtype=torch.float64) * size
        if "j" in part.axes:  # a sum of k k'
            return x @ x.mT
        return INTO_DOMAIN[part_domain(spec, part)](x)

    return {name: draw(part) for name, part in zip(initial_names(spec), state_parts(spec))}


def entry_size(spec: Spec, rows: int) -> float:
    """The deviation of a fresh state's entries, matrices of so many rows.

    Half a normal number's; in a deep memory what keeps activations' sizes, except that logits, of which a softmax makes
    weights, are normal numbers: were they smaller, each layer would make the same number in all of its channels.
    """
    if not isinstance(spec.memory, MLPMemory):
        return 0.5
    return 1.0 if isinstance(spec.retention.link, Softmax) else rows**-0.5


def as_arguments(spec: Spec, x: Mapping[str, Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
    """Drawn tensors as an operator takes them: the parts of the state, where they are among them, as one argument."""
    parts = [x[n] for n in initial_names(spec) if n in x]
    rest = {n: t for n, t in x.items() if n not in initial_names(spec)}
    if not parts:
        return rest
    return rest | {"initial_state": parts[0] if len(parts) == 1 else tuple(parts)}


def default_value(parameter: Parameter, heads: int, sizes: dict[str, int]) -> Tensor:
    """[HV, *axes] float64: the default of each head, the same in every channel. sizes: {"k": dk, "v": dv}."""
    axes = tuple(sizes[axis] for axis in parameter.per.axes)
    values = [evaluate_default(parameter.default.tree, head, heads) for head in range(heads)]
    return torch.tensor(values, dtype=torch.float64).reshape(heads, *(1 for _ in axes)).repeat(1, *axes)
