"""Every function of the language inside of a kernel, and its slope, to float32's rounding over its whole range."""

import pytest
import torch

import ttrc
from ttrc.language.functions import FUNCTIONS

# One token writes v f(x) into a vector memory and reads it back: for v = 1, o = f(x), and x's gradient is its slope.
SPEC = """schema = 1
name = "one_function"
reference = "a test"

[inputs]
x = {{ per = "value_channel", domain = "{domain}" }}

[memory]
kind = "vector"

[loss]
expr = "-dot(p, v * ({function}))"

[retention]
expr = "norm2(S - S_prev) / 2"

[update]
rule = "gradient"
at = "previous"
"""
POSITIVE, BOTH = ((1e-6, 80),), ((-80, -1e-6), (1e-6, 80))
BELOW_1 = (-80, -1e-6), (1e-6, 0.5)


def expm1(v: torch.Tensor) -> torch.Tensor:
    """torch's, whose own slope is expm1(v) + 1, and so 0 where exp(v) is small."""
    return torch.expm1(v).detach() + (torch.exp(v) - torch.exp(v).detach())


CASES = {
    "exp": ("exp(x)", torch.exp, BOTH),
    "exp, less 1": ("exp(x) - 1", expm1, BOTH),
    "1, less exp": ("sqrt(1 - exp(-x))", lambda v: torch.sqrt(-expm1(-v)), POSITIVE),
    "log": ("log(x)", torch.log, POSITIVE),
    "sqrt": ("sqrt(x)", torch.sqrt, POSITIVE),
    "square": ("square(x)", torch.square, BOTH),
    "tanh": ("tanh(x)", torch.tanh, BOTH),
    "sigmoid": ("sigmoid(x)", torch.sigmoid, BOTH),
    "softplus": ("softplus(x)", torch.nn.functional.softplus, BOTH),
    "gelu": ("gelu(x)", lambda v: v * torch.sigmoid((8 / torch.pi) ** 0.5 * (v + 0.044715 * v**3)), BOTH),
    "abs": ("abs(x)", torch.abs, BOTH),
    "sign": ("x * sign(x)", torch.abs, BOTH),
    "huber": ("huber(x, 1)", lambda v: torch.nn.functional.huber_loss(v, 0 * v, reduction="none"), BOTH),
    "huber, of any threshold": ("huber(1, x)", lambda v: v.clamp(min=0) * (1 - v.clamp(min=0) / 2), BELOW_1),
    "log_cosh": (
        "log_cosh(x)",
        lambda v: torch.log1p(2 * torch.sinh(v / 2) ** 2),
        BOTH,
    ),
    "min": ("min(x, 1)", lambda v: v.clamp(max=1), BOTH),
    "max": ("max(x, 0.5)", lambda v: v.clamp(min=0.5), BOTH),
    "where": ("where(x > 0.2, x, 2 * x)", lambda v: torch.where(v > 0.2, v, 2 * v), BOTH),
    "a power": ("abs(x) ** 1.5", lambda v: v.abs() ** 1.5, BOTH),
    "a cube": ("x ** 3", lambda v: v**3, BOTH),
}


# Slopes that are made of the function's own value, 1 - tanh(v)**2, are differences where that is near 1.
SATURATED = ("tanh", "sigmoid", "gelu")


def grid(low: float, high: float) -> torch.Tensor:
    """256 numbers, as many in each decade."""
    size = torch.logspace(*torch.tensor([abs(low), abs(high)]).log10().tolist(), 256, dtype=torch.float64)
    return torch.sign(torch.tensor(low)) * size.float().double()


def test_every_elementwise_function_has_a_case():
    assert {f.name for f in FUNCTIONS.values() if f.kind == "elementwise"} <= CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_function_is_right_at_every_size_of_its_argument(name, tmp_path):
    text, reference, ranges = CASES[name]
    domain = "positive" if ranges == POSITIVE else "real"
    (tmp_path / "one_function.toml").write_text(SPEC.format(domain=domain, function=text))
    op = ttrc.load(tmp_path / "one_function.toml")
    at = torch.cat([grid(*ends) for ends in ranges]).requires_grad_()
    expected = reference(at)
    (slope,) = torch.autograd.grad(expected.sum(), at)
    x = at.detach().float().reshape(-1, 1, 1, 32).requires_grad_()
    ones = torch.ones_like(x, requires_grad=False)
    o, _ = op(ones, ones, ones, x=x, backend="triton")
    o.sum().backward()
    torch.testing.assert_close(o.double().flatten(), expected, rtol=2e-5, atol=1e-30)
    saturated = 5e-7 if name in SATURATED else 1e-30
    torch.testing.assert_close(x.grad.double().flatten(), slope, rtol=2e-5, atol=saturated)
