"""Every function of the language inside of a kernel, and its slope, to float32's rounding over its whole range."""

import pytest
import torch

import ttrc
from ttrc.language.functions import FUNCTIONS

# One token writes f(v) into a vector memory and reads it back: o = f(v), and v's gradient is its slope.
SPEC = """schema = 1
name = "one_function"
reference = "a test"

[memory]
kind = "vector"

[loss]
expr = "-dot(p, {})"

[retention]
expr = "norm2(S - S_prev) / 2"

[update]
rule = "gradient"
at = "previous"
"""
POSITIVE, BOTH = ((1e-6, 80),), ((-80, -1e-6), (1e-6, 80))


def expm1(v: torch.Tensor) -> torch.Tensor:
    """torch's, whose own slope is expm1(v) + 1, and so 0 where exp(v) is small."""
    return torch.expm1(v).detach() + (torch.exp(v) - torch.exp(v).detach())


CASES = {
    "exp": ("exp(v)", torch.exp, BOTH),
    "exp, less 1": ("exp(v) - 1", expm1, BOTH),
    "1, less exp": ("sqrt(1 - exp(-v))", lambda v: torch.sqrt(-expm1(-v)), POSITIVE),
    "log": ("log(v)", torch.log, POSITIVE),
    "sqrt": ("sqrt(v)", torch.sqrt, POSITIVE),
    "square": ("square(v)", torch.square, BOTH),
    "tanh": ("tanh(v)", torch.tanh, BOTH),
    "sigmoid": ("sigmoid(v)", torch.sigmoid, BOTH),
    "softplus": ("softplus(v)", torch.nn.functional.softplus, BOTH),
    "abs": ("abs(v)", torch.abs, BOTH),
    "sign": ("v * sign(v)", torch.abs, BOTH),
    "huber": ("huber(v, 1)", lambda v: torch.nn.functional.huber_loss(v, 0 * v, reduction="none"), BOTH),
    "log_cosh": (
        "log_cosh(v)",
        lambda v: torch.log1p(2 * torch.sinh(v / 2) ** 2),
        BOTH,
    ),
    "min": ("min(v, 1)", lambda v: v.clamp(max=1), BOTH),
    "max": ("max(v, 0.5)", lambda v: v.clamp(min=0.5), BOTH),
    "where": ("where(v > 0.2, v, 2 * v)", lambda v: torch.where(v > 0.2, v, 2 * v), BOTH),
    "a power": ("abs(v) ** 1.5", lambda v: v.abs() ** 1.5, BOTH),
    "a cube": ("v ** 3", lambda v: v**3, BOTH),
}


# Slopes that are made of the function's own value, 1 - tanh(v)**2, are differences where that is near 1.
SATURATED = ("tanh", "sigmoid")


def grid(low: float, high: float) -> torch.Tensor:
    """256 numbers, as many in each decade."""
    size = torch.logspace(*torch.tensor([abs(low), abs(high)]).log10().tolist(), 256, dtype=torch.float64)
    return torch.sign(torch.tensor(low)) * size.float().double()


def test_every_elementwise_function_has_a_case():
    assert {f.name for f in FUNCTIONS.values() if f.kind == "elementwise"} <= CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_function_is_right_at_every_size_of_its_argument(name, tmp_path):
    text, reference, ranges = CASES[name]
    (tmp_path / "one_function.toml").write_text(SPEC.format(text))
    op = ttrc.load(tmp_path / "one_function.toml")
    at = torch.cat([grid(*ends) for ends in ranges]).requires_grad_()
    expected = reference(at)
    (slope,) = torch.autograd.grad(expected.sum(), at)
    v = at.detach().float().reshape(-1, 1, 1, 32).requires_grad_()
    ones = torch.ones_like(v, requires_grad=False)
    o, _ = op(ones, ones, v, backend="triton")
    o.sum().backward()
    torch.testing.assert_close(o.double().flatten(), expected, rtol=2e-5, atol=1e-30)
    saturated = 5e-7 if name in SATURATED else 1e-30
    torch.testing.assert_close(v.grad.double().flatten(), slope, rtol=2e-5, atol=saturated)
