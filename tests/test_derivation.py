"""What SymPy makes of a spec: the class, the recurrence, and a refusal with a place for what is no such class."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import sympy
import torch

from hostile_specs import AT, COMPILE_ROWS, LOSS, RETENTION, WEIGHT, swap
from ttrc import oracle, symbolic
from ttrc.backends.torch.printer import DIALECT
from ttrc.compiler import analyse
from ttrc.emit import _render
from ttrc.errors import SpecError
from ttrc.ir.recurrence import Affine, Hebbian, Nonlinear
from ttrc.language.functions import FUNCTIONS
from ttrc.language.load import load_spec, parse_spec
from ttrc.language.spec import KernelMemory
from ttrc.language.state import same_channels
from ttrc.passes.derive_recurrence import derive_recurrence
from ttrc.runtime.load import load
from ttrc.runtime.verify import Case, verify
from ttrc.sampling import random_inputs

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").is_file())
PATHS = {
    path.stem: path
    for folder in ("specs", "tests/unseen")
    for path in sorted((ROOT / folder).glob("*.toml"))
    if not isinstance(load_spec(path).memory, KernelMemory)
}  # which have no recurrence: test_attention.py
HELPERS = {"torch": torch, "F": torch.nn.functional}  # and the functions that a reference.py may bring along
exec(compile(_render("torch/functions.py.jinja"), "functions.py", "exec"), HELPERS)
exp = torch.exp


def hebbian(decay, offset):
    return Hebbian, decay, None, offset, True


def affine(decay, slope, offset, reads_decayed=True):
    return Affine, decay, slope, offset, reads_decayed


def nonlinear(decay, written, reads_decayed=False):
    return Nonlinear, decay, None, written, reads_decayed


def implicit(decay, written, joined=False):
    """e = written(x, r) at the residual r for which r + |k|^2 written(x, r) = p - v.

    Each of these losses is smallest at r = 0: the way from p - v to 0 is halved, an entry each or for all as one.
    """

    def at_the_root(x):
        start, low, high = residual(x), torch.zeros(3).double(), torch.ones(3).double()
        for _ in range(80):
            middle = (low + high) / 2
            off = (middle * start + x["k"].square().sum() * written(x, middle * start) - start) * torch.sign(start)
            above = (off.sum().expand(3) if joined else off) > 0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return written(x, low * start)

    return nonlinear(decay, at_the_root, True)


def none(x):
    return 1.0


def residual(x):
    return x["p"] - x["v"]


# rule: error class, decay, slope, offset, whether it reads the decayed state; x holds one token's numbers.
# e = slope p + offset (for a nonlinear one e itself stands for the offset), and S = decay S_prev - k e'.
EXPECTED = {
    "linear_attention": hebbian(none, lambda x: -x["v"]),
    "retnet": hebbian(lambda x: exp(x["log_gamma"]), lambda x: -x["v"]),
    "lightning_attention": hebbian(lambda x: exp(x["slope"]), lambda x: -x["v"]),
    "mamba2": hebbian(lambda x: exp(x["dt"] * x["A"]), lambda x: -x["dt"] * x["v"]),
    "mamba": hebbian(lambda x: exp(x["dt"] * x["A"]), lambda x: -x["dt"] * x["v"]),
    "separable_decay": hebbian(lambda x: exp(x["g"] + x["h"]), lambda x: -x["v"]),
    "normed_entries": hebbian(lambda x: x["a"], lambda x: -x["v"]),  # the first
    "deltanet": affine(none, lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),
    "gated_deltanet": affine(lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),
    "fading_values": affine(lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),
    "gla": hebbian(lambda x: exp(x["g"]), lambda x: -x["v"]),
    "kda": affine(lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),
    "gated_deltaproduct": affine(
        lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"]
    ),  # the first
    "three_turns": affine(lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),  # the first
    "huber_product": nonlinear(
        lambda x: exp(x["g"]),
        lambda x: x["beta"] * torch.minimum(torch.maximum(residual(x), -x["delta"]), x["delta"]),
        True,
    ),  # the first
    "two_robust": nonlinear(lambda x: exp(x["w"]), lambda x: x["beta"] * x["rate"] * torch.tanh(residual(x))),
    "robust_beside_delta": nonlinear(lambda x: exp(x["g"]), lambda x: x["beta"] * torch.tanh(residual(x)), True),
    "corrected_query": affine(lambda x: exp(x["g"]), lambda x: x["b"] * x["beta"], lambda x: 0.0),  # of what is removed
    "diagonal_ssm": hebbian(lambda x: exp(exp(x["log_dt"]) * x["A"]), lambda x: -exp(x["log_dt"]) * x["v"]),
    "rwkv7": affine(lambda x: exp(x["w"]), lambda x: 1.0, lambda x: 0.0, False),  # of what is asked at kappa
    "min_gru": affine(none, lambda x: x["z"], lambda x: -x["z"] * x["v"], False),
    "rg_lru": hebbian(
        lambda x: exp(-8 * x["lam"] * x["fade"]),
        lambda x: -x["take"] * x["v"] * (1.000001 - exp(-16 * x["lam"] * x["fade"])) ** 0.5,
    ),
    "exact_flow": affine(
        none,
        lambda x: (1 - exp(-x["beta"] * x["k"].square().sum())) / x["k"].square().sum(),
        lambda x: x["v"] * (exp(-x["beta"] * x["k"].square().sum()) - 1) / x["k"].square().sum(),
    ),
    "ifo_pooling": hebbian(lambda x: x["f"], lambda x: -x["v"]),
    "frozen_vector": nonlinear(lambda x: exp(x["g"]), lambda x: x["w"] * torch.tanh(residual(x))),
    "huber_vector": nonlinear(
        lambda x: exp(x["g"]),
        lambda x: x["beta"] * torch.minimum(torch.maximum(residual(x), -x["delta"]), x["delta"]),
        True,
    ),
    "preconditioned_delta": affine(lambda x: exp(x["g"]), lambda x: 0.1, lambda x: -x["v"] / 10),
    "entry_decay": affine(lambda x: x["a"] * exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),
    "channel_rates": nonlinear(
        lambda x: exp(x["g"]), lambda x: x["w"] * torch.minimum(torch.maximum(residual(x), -x["delta"]), x["delta"])
    ),
    "mesanet": affine(lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),
    "channel_regression": affine(lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),
    "longhorn": affine(
        none,
        lambda x: x["beta"] / (1 + x["beta"] * x["k"].square().sum()),
        lambda x: -x["beta"] * x["v"] / (1 + x["beta"] * x["k"].square().sum()),
    ),
    "memora_linear": affine(lambda x: exp(x["g"]), lambda x: x["theta"], lambda x: -x["theta"] * x["v"], False),
    "moneta_linear": nonlinear(
        lambda x: exp(x["g"]), lambda x: 3 * x["theta"] * residual(x) * torch.sqrt(residual(x).square() + 1e-6)
    ),
    "elastic_delta": affine(none, lambda x: x["beta"], lambda x: -x["beta"] * x["v"], False),  # a mirror, not a decay
    "entropy_delta": affine(none, lambda x: x["beta"], lambda x: -x["beta"] * x["v"], False),
    "thresholded_weights": affine(
        lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * (x["v"] + 0.5), False
    ),
    "softmax_over_values": nonlinear(lambda x: exp(x["g"]), lambda x: x["beta"] * torch.tanh(residual(x)), True),
    "barrier_delta": affine(none, lambda x: x["beta"], lambda x: -x["beta"] * x["v"], False),
    "half_hebbian": affine(none, lambda x: x["beta"], lambda x: -1.25 * x["beta"] * x["v"]),
    "gated_output": affine(lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),
    "mlstm": hebbian(lambda x: exp(x["log_forget"]), lambda x: -exp(x["log_input"]) * x["v"]),
    "linear_transformer": hebbian(none, lambda x: -x["v"]),
    "receptance_mean": hebbian(lambda x: exp(x["w"]), lambda x: -x["v"]),
    "normalised_momentum": hebbian(lambda x: exp(x["g"]), lambda x: -x["b"] * x["v"]),  # the first
    "normalised_channels": hebbian(lambda x: exp(x["g"]), lambda x: -x["v"]),
    "fading_keys": hebbian(lambda x: exp(x["g"] + x["fade"]), lambda x: -x["beta"] * x["v"]),
    "normed_output": hebbian(lambda x: exp(x["g"]), lambda x: -x["v"]),
    "mapped_delta": affine(none, lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),
    "tilted_target": affine(none, lambda x: x["beta"], lambda x: x["beta"] * (0.1 - x["v"])),
    "twice_weighted": affine(none, lambda x: x["eta"] * x["trust"], lambda x: -x["eta"] * x["trust"] * x["v"]),
    "undecayed_read": affine(lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"], False),
    "ridge_delta": affine(
        lambda x: exp(x["g"]) / (1 + x["lam"]),
        lambda x: x["beta"] / (1 + x["lam"]),
        lambda x: -x["beta"] * x["v"] / (1 + x["lam"]),
    ),
    "huber_delta": nonlinear(
        lambda x: exp(x["g"]), lambda x: x["beta"] * torch.minimum(torch.maximum(residual(x), -x["delta"]), x["delta"])
    ),
    "lp_delta": nonlinear(none, lambda x: x["rate"] * x["beta"] * residual(x) * residual(x).abs()),
    "robust_delta": nonlinear(
        lambda x: exp(x["g"]),
        lambda x: x["beta"] * residual(x) * (1 + x["delta"] / torch.linalg.vector_norm(residual(x))),
        True,
    ),
    "huber_norm": nonlinear(
        lambda x: exp(x["g"]),
        lambda x: x["beta"] * residual(x) * torch.clamp(x["delta"] / torch.linalg.vector_norm(residual(x)), max=1),
    ),
    "long_segments": nonlinear(
        lambda x: exp(x["g"] / 16), lambda x: x["beta"] * torch.clamp(residual(x), min=-0.5, max=0.5)
    ),
    "log_cosh_delta": nonlinear(none, lambda x: x["beta"] * torch.tanh(residual(x))),
    "quantile_delta": nonlinear(
        lambda x: exp(x["g"]), lambda x: x["beta"] * torch.where(residual(x) > 0, 1 - x["tau"], -x["tau"]), True
    ),
    "insensitive_delta": nonlinear(
        none, lambda x: x["beta"] * torch.sign(residual(x)) * torch.clamp(residual(x).abs() - x["width"], min=0)
    ),
    "pseudo_huber": nonlinear(
        lambda x: exp(x["g"]),
        lambda x: x["beta"] * residual(x) / torch.sqrt(1 + (residual(x) / x["delta"]).square()),
        True,
    ),
    "logistic_delta": nonlinear(
        lambda x: exp(x["g"]), lambda x: -x["beta"] * x["v"] * torch.sigmoid(-x["p"] * x["v"]), True
    ),
    "half_life": affine(lambda x: 0.9, lambda x: x["beta"], lambda x: -x["beta"] * x["v"]),
    "momentum_deltanet": affine(lambda x: exp(x["g"]), lambda x: x["beta"], lambda x: -x["beta"] * x["v"], False),
    "titans_linear": affine(lambda x: exp(x["g"]), lambda x: x["theta"], lambda x: -x["theta"] * x["v"], False),
    "ttt_linear": affine(none, lambda x: x["eta"] / 16, lambda x: -x["eta"] / 16 * x["v"], False),
    "ttt_mlp": affine(none, lambda x: x["eta"] / 16, lambda x: -x["eta"] / 16 * x["v"], False),
    "titans": affine(lambda x: exp(x["g"] / 64), lambda x: x["theta"] / 64, lambda x: -x["theta"] / 64 * x["v"], False),
    "normed_weights": hebbian(lambda x: exp(x["g"] / 16), lambda x: -x["eta"] / 4 * x["v"]),
    "swiglu_memory": hebbian(lambda x: exp(x["g"] / 16), lambda x: -x["eta"] / 4 * x["v"]),
    "own_activation": nonlinear(lambda x: torch.tensor(0.98), lambda x: x["beta"] / 16 * residual(x).tanh()),
    "long_titans": affine(
        lambda x: exp(x["g"] / 64), lambda x: x["theta"] / 256, lambda x: -x["theta"] / 256 * x["v"], False
    ),
    "memora": affine(lambda x: exp(x["g"] / 16), lambda x: x["theta"], lambda x: -x["theta"] * x["v"], False),
    "moneta": nonlinear(
        lambda x: exp(x["g"] / 16),
        lambda x: 3 / 128 * x["theta"] * residual(x) * torch.sqrt(residual(x).square() + 1e-6),
    ),
    "yaad": nonlinear(
        lambda x: exp(x["g"] / 16),
        lambda x: x["eta"] / 16 * residual(x) * torch.clamp(x["delta"] / torch.linalg.vector_norm(residual(x)), max=1),
    ),
    "implicit_huber": implicit(
        lambda x: exp(x["g"]),
        lambda x, r: x["beta"] * torch.minimum(torch.maximum(r, -x["delta"]), x["delta"]),
    ),
    "implicit_l_p": implicit(lambda x: exp(x["g"]), lambda x, r: x["beta"] * r * torch.sqrt(r.square() + 0.01)),
    "implicit_log_cosh": implicit(
        lambda x: 1 / (1 + x["lam"]), lambda x, r: x["beta"] * x["delta"] * torch.tanh(r / x["delta"]) / (1 + x["lam"])
    ),
    "implicit_huber_norm": implicit(
        lambda x: exp(x["g"]),
        lambda x, r: x["beta"] * r * torch.clamp(x["delta"] / torch.linalg.vector_norm(r), max=1),
        joined=True,
    ),
    "implicit_pseudo_huber_norm": implicit(
        lambda x: exp(x["g"]),
        lambda x, r: x["beta"] * x["delta"] * r / torch.sqrt(x["delta"].square() + r.square().sum()),
        joined=True,
    ),
}


def token(spec, seed=0):
    """One token of one head: v, p [d_v], k [d_k], gates numbers."""
    dk = 3 if same_channels(spec.memory) else 4
    drawn = random_inputs(spec, B=1, T=1, H=1, HV=1, dk=dk, dv=3, dtype=torch.float64, seed=seed)
    x = {n: t[0, 0, 0] if n in ("q", "k", "v") else t.flatten()[0] for n, t in drawn.items()}
    return x | {"p": torch.randn(3, generator=torch.Generator().manual_seed(seed + 9), dtype=torch.float64)}


def evaluate(expr, recurrence, x):
    """An expression of the recurrence in numbers, entry by entry of the value axis, through the torch printer."""
    numbers = dict(x)

    def value(expr):
        names = {s.name for s in expr.free_symbols}
        if not names:
            return torch.tensor(float(expr), dtype=torch.float64)
        code = symbolic.render(expr, DIALECT, {n: n for n in names})
        return eval(code, HELPERS | numbers)

    for reduction in recurrence.reductions:
        assert len(reduction.axes) == 1
        numbers[reduction.symbol.name] = value(reduction.body).sum()
    root = recurrence.error.root if isinstance(recurrence.error, Nonlinear) else None
    if root is not None:
        base = value(root.base)
        low, high = -100 + torch.zeros_like(base), 100 + torch.zeros_like(base)
        for _ in range(80):
            numbers[root.unknown.name] = middle = (low + high) / 2
            above = middle + value(root.pull) > base
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return value(expr).expand(3)


def test_every_rule_is_expected():
    assert set(EXPECTED) == set(PATHS)


def error_free_of_slope(recurrence):
    return recurrence.error.written if isinstance(recurrence.error, Nonlinear) else recurrence.error.offset


@pytest.mark.parametrize("name", PATHS)
def test_the_recurrence(name):
    spec = load_spec(PATHS[name])
    made = derive_recurrence(spec)
    kind, decay, slope, offset, reads_decayed = EXPECTED[name]
    assert type(made.error) is kind
    assert made.reads_decayed == (reads_decayed and decay is not none) or kind is Hebbian
    assert (made.decay == 1) == (made.log_decay is None) == (decay is none)
    for seed in range(3):
        x = token(spec, seed)

        def agrees(expr, expected, x=x):
            value = torch.as_tensor(expected(x), dtype=torch.float64).expand(3)
            torch.testing.assert_close(evaluate(expr, made, x), value)

        agrees(made.decay, decay)
        agrees(error_free_of_slope(made), offset)
        if slope is not None:
            agrees(made.error.slope, slope)
        if made.log_decay is not None:
            agrees(sympy.exp(made.log_decay), decay)


def loss_gradient(loss, x):
    """dL/dp by autograd of the loss itself."""
    tokens = {n: t[:, None] if n == "k" else t[None, :] if t.dim() else t[None, None] for n, t in x.items()}
    scope = {n: t[None, None] for n, t in tokens.items()}
    p = scope["p"].clone().requires_grad_()
    value = oracle.evaluate(loss.expr.tree, scope | {"p": p})
    if loss.weight is not None:
        value = value * oracle.evaluate(loss.weight.tree, scope)
    return torch.autograd.grad(value.sum(), p)[0].flatten()


AFFINE = [
    "-sum(p * tanh(v))",
    "-sum(p * max(v, 0))",
    "-sum(p * huber(v, 1))",
    "-sum(p * v**3) + norm2(p)",
    "norm2(p - v)/2 - dot(p, v)/4 + 0.3 * sum(p)",
    "norm2(p - v * norm2(k))/2",
    "-sum(p * where(v > 0, v, v / 10))",
    "sum((2 * p - v) * (p + 3 * v)) * square(norm(k))",
    "-sum(p * sigmoid(v) * softplus(v) * abs(v) * sign(v))",
    "-sum(p * exp(v / 2) * log(1 + v**2) * sqrt(1 + v**2) * min(v, 1) * log_cosh(v))",
    "norm2(p - v) / sqrt(2) - exp(1) * sum(p * max(v, abs(1 - 3)) * huber(3, 1))",
]


ANY = [
    "sum(huber(p - v, 1))",
    "huber(norm(p - v), exp(g))",
    "sum(abs(p - v)**3)",
    "sum((p - v)**4)",
    "sum((square(p - v) + 0.01)**(3/4))",
    "norm(p - v)",
    "norm2(p - v)**2",
    "sqrt(1 + norm2(p - v))",
    "norm2(p - v) / (1 + norm(v))",
    "dot(p, v) * sum(p)",
    "log(sum(exp(p))) - dot(p, v)",
    "sum(log_cosh(p - v))",
    "sum(abs(p - v))",
    "sum(sqrt(square(p - v)))",
    "sum(max(1 - p * v, 0))",
    "sum(where(p > v, 0.1 * (p - v), 0.9 * (v - p)))",
    "sum(v * (p - v)**2)",
    "sum(square(p - v) * sigmoid(v))",
    "norm(p - v * norm(p) / norm(v)) * norm2(k)",
    "-dot(p, v) / (norm(p) * norm(v))",
]


@pytest.mark.parametrize("loss", AFFINE + ANY)
def test_the_gradient_is_autograds(loss):
    spec = parse_spec(swap(LOSS, f"'{loss}'"))
    made = derive_recurrence(spec)
    for seed in range(3):
        x = token(spec, seed)
        gradient = loss_gradient(spec.loss, x)
        assert isinstance(made.error, Nonlinear) == (loss in ANY)
        slope = made.error.slope if isinstance(made.error, Affine) else sympy.Integer(0)
        error = evaluate(slope, made, x) * x["p"] + evaluate(error_free_of_slope(made), made, x)
        torch.testing.assert_close(error, gradient / float(made.curvature))


EVERY_FUNCTION = (
    "-sum(p * (tanh(v) * sigmoid(v) + huber(v, 1) * exp(-abs(v)) + log(1 + square(v)) * sign(v) + sqrt(1 + v**2)"
    " + gelu(v) + min(v, 1) * softplus(v) + max(v, 0.5) * log_cosh(v) + where(v > 0.2, v, 2 * v) + v**5 / 50"
    " + (1 + v**2)**1.5 / 9 + (1 + v**2)**-3))"
)


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_kernels_have_every_function(form, tmp_path, monkeypatch):
    """Of v, which has either sign; the adjoint goes through the derivative of each. No row divides by nothing."""
    assert {f.name for f in FUNCTIONS.values() if f.kind == "elementwise"} <= set(re.findall(r"\w+", EVERY_FUNCTION))
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path))
    op = load(parse_spec(swap(LOSS, f"'{EVERY_FUNCTION}'", WEIGHT, '"beta / norm(k)"')))
    case = Case(B=1, T=6, H=1, HV=1, d_k=4, d_v=8, chunk_size=16)
    for backend, dtype in (("torch", torch.float64), ("triton", torch.float32)):
        assert not verify(op, case, form=form, backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("name", PATHS)
def test_the_gradient_of_every_rule_is_autograds(name):
    spec = load_spec(PATHS[name])
    made = derive_recurrence(spec)
    x = token(spec)
    for loss, association in zip(spec.losses, made.associations, strict=True):
        torch.testing.assert_close(evaluate(association.gradient, made, x), loss_gradient(loss, x))


RETENTIONS = [  # the retention, and the decay that it means
    ("norm2(S - S_prev) / 2", lambda x: 1.0),
    ("norm2(S - exp(g) * S_prev)", lambda x: exp(x["g"])),
    ("norm2(S)/2 - exp(g) * dot(S, S_prev)", lambda x: exp(x["g"])),
    ("norm2(S - S_prev)/2 + norm2(S)/2", lambda x: 0.5),
    ("norm2(S - exp(g) * S_prev)/2 + exp(g) * norm2(S)", lambda x: exp(x["g"]) / (1 + 2 * exp(x["g"]))),
    ("sum(square(S - S_prev * sigmoid(g)))", lambda x: torch.sigmoid(x["g"])),
    ("norm2(S - S_prev / 3)", lambda x: 1 / 3),
    ("norm2(2 * S + S_prev)", lambda x: -0.5),
]


@pytest.mark.parametrize("retention, decay", RETENTIONS, ids=[r[0] for r in RETENTIONS])
def test_the_decay_of_a_retention(retention, decay):
    text = swap(RETENTION, f'"{retention}"', WEIGHT, '"beta * exp(g)"')
    spec = parse_spec(text)
    made = derive_recurrence(spec)
    x = token(spec)
    expected = torch.as_tensor(decay(x), dtype=torch.float64).expand(3)
    torch.testing.assert_close(evaluate(made.decay, made, x), expected)
    if made.log_decay is not None:
        torch.testing.assert_close(evaluate(sympy.exp(made.log_decay), made, x), expected)


def test_a_decay_that_may_be_zero_or_negative_has_no_chunk_form():
    for decay in ("beta", "(1 - beta)", "tanh(g)", "(0 - 1)"):
        spec = parse_spec(swap(RETENTION, f'"norm2(S - {decay} * S_prev * exp(g)) / 2"'))
        assert tuple(analyse(spec).forms) == ("recurrent",), decay


def test_a_decay_that_shares_keep_above_zero_has_a_chunk_form():
    kept = ("(1 - 0.9 * beta)", "(1 - beta * exp(g) / (exp(g) + 1))", "(exp(g) * (1 - beta) + beta)")
    for decay in kept:
        spec = parse_spec(swap(RETENTION, f'"norm2(S - {decay} * S_prev * exp(g)) / 2"'))
        assert set(analyse(spec).forms) == {"chunk", "recurrent"}, decay
        checked = verify(load(spec), Case(B=1, T=21, H=1, HV=2, d_k=4, d_v=3), form="chunk", backend="torch",
                         dtype=torch.float64)  # fmt: skip
        assert not checked.failures, decay
    for decay in ("(1 - 2 * beta)", "(beta - 0.5)", "(1 - beta)**2"):
        spec = parse_spec(swap(RETENTION, f'"norm2(S - {decay} * S_prev * exp(g)) / 2"'))
        assert tuple(analyse(spec).forms) == ("recurrent",), decay


PROXIMAL, PREVIOUS = 'rule = "proximal"', 'rule = "gradient"\nat = "previous"'
DECAY = 'g = { per = "head", domain = "log_decay" }'
GATE = 'beta = { per = "head", domain = "unit" }'

# What is written; the key and the line; parts of the message.
REFUSED = {
    "no learning": (swap(LOSS, '"sum(p - p) + norm2(v)"'), "loss.expr", 14, ("does not change with p",)),
    "no weight": (swap(WEIGHT, '"beta - beta"'), "loss.expr", 14, ("does not change with p",)),
    "concave": (swap(RETENTION, '"-norm2(S - S_prev) * exp(g)"'), "retention.expr", 17, ("not strictly convex",)),
    "cancelling": (
        swap(RETENTION, '"norm2(S - S_prev) * exp(g) - norm2(S) * exp(g)"'),
        "retention.expr",
        17,
        ("not strictly convex",),
    ),
    "may not grow": (swap(RETENTION, '"norm2(S - S_prev) * (1 - exp(g))"'), "retention.expr", 17, ("convex",)),
    "shrinks": (swap(RETENTION, '"norm2(S - S_prev) * (exp(g - 1) - 1)"'), "retention.expr", 17, ("convex",)),
    "linear": (swap(RETENTION, '"dot(S, S_prev) * exp(g)"'), "retention.expr", 17, ("not strictly convex",)),
    "perhaps flat": (
        swap(RETENTION, '"beta * norm2(S - exp(g) * S_prev)"'), "retention.expr", 17, ("not strictly convex", "beta")
    ),
    "perhaps concave": (
        swap(RETENTION, '"(1 - beta) * norm2(S - exp(g) * S_prev)"'), "retention.expr", 17, ("not strictly convex",)
    ),
    "towards a constant": (swap(RETENTION, '"norm2(S - exp(g)) / 2"'), "retention.expr", 17, ("constant",)),
    "cubic": (swap(RETENTION, '"sum(abs(S - exp(g) * S_prev)**3)"'), "retention.expr", 17, ("not quadratic",)),
    "squared retention": (swap(RETENTION, '"norm2(S - exp(g) * S_prev)**2"'), "retention.expr", 17, ("couples",)),
    "unsquared retention": (swap(RETENTION, '"norm(S - exp(g) * S_prev)"'), "retention.expr", 17, ("couples",)),
    "nonlinear in the past": (
        swap(RETENTION, '"norm2(S - S_prev) / 2 + sum(abs(S)**3 * square(S_prev)) * exp(g)"'),
        "retention.expr",
        17,
        ("not quadratic", "not solved for S"),
    ),
    "closed form": (
        swap(
            f'rule = "gradient"\n{AT}', 'rule = "closed_form"', RETENTION, '"exp(-g) * norm2(S)"', LOSS, '"-dot(p, v)"'
        ),
        "loss.expr",
        14,
        ("linear in p",),
    ),
    "concave proximal": (
        swap(LOSS, '"-norm2(p - v)/2"', f'rule = "gradient"\n{AT}', PROXIMAL), "loss.expr", 14, ("convex loss",)
    ),
    "signed proximal": (
        swap(GATE, GATE.replace("unit", "real"), f'rule = "gradient"\n{AT}', PROXIMAL),
        "loss.expr",
        14,
        ("convex loss",),
    ),
    "nonlinear concave proximal": (
        swap(LOSS, '"sum(-huber(p - v, 1))"', f'rule = "gradient"\n{AT}', PROXIMAL),
        "loss.expr",
        14,
        ("falls from", "convex loss"),
    ),
    "cornered proximal": (
        swap(LOSS, '"sum(abs(p - v))"', f'rule = "gradient"\n{AT}', PROXIMAL),
        "loss.expr",
        14,
        ("jumps at", "without corners"),
    ),
    "mixing proximal": (
        swap(LOSS, '"log(sum(exp(p))) - dot(p, v)"', f'rule = "gradient"\n{AT}', PROXIMAL),
        "loss.expr",
        14,
        ("joins the value channels",),
    ),
    "elements beside p": (
        swap(GATE, GATE.replace("head", "element"), WEIGHT, '"1"', LOSS, '"sum(beta * square(p - v)) / 2"'),
        "loss.expr",
        14,
        ("'beta' gives p a number for each key channel", "per value channel"),
    ),
    "a sum over elements": (
        swap(GATE, GATE.replace("head", "element"), WEIGHT, '"sum(square(beta))"'),
        "loss.weight",
        13,
        ("norm2(beta)", "sums over k or over v"),
    ),
    "proximal over elements": (
        swap(
            DECAY,
            DECAY.replace("head", "element").replace("log_decay", "positive"),
            RETENTION,
            '"sum(g * square(S - S_prev)) / 2"',
            f'rule = "gradient"\n{AT}',
            PROXIMAL,
        ),
        "retention.expr",
        17,
        ("mixes key channels and value channels", 'rule = "gradient"'),
    ),
    "implicit norm of a vector": (
        swap('kind = "linear"', 'kind = "vector"', LOSS, '"norm(p - v)"', f'rule = "gradient"\n{AT}', PROXIMAL),
        "loss.expr",
        14,
        ("each has a key of its own", 'rule = "gradient"'),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_outside_the_class_is_refused_with_its_place(case):
    text, key, line, says = REFUSED[case]
    spec = parse_spec(text, path="mine.toml")
    with pytest.raises(SpecError) as caught:
        analyse(spec)
    error = caught.value
    for part in says:
        assert part in str(error)
    assert key.split(".")[-1] in (error.key or "") and str(error).startswith("mine.toml:")
    assert error.line == line if line is not None else error.line is not None
    assert len(str(error).splitlines()) <= 5
    if key.endswith("expr"):
        assert error.key == key and error.span is not None and error.expected


@pytest.mark.parametrize("row", COMPILE_ROWS, ids=lambda row: row.id)
def test_a_retention_without_a_minimum_is_refused(row):
    spec = parse_spec(row.spec)
    with pytest.raises(SpecError) as caught:
        derive_recurrence(spec)
    assert caught.value.key == row.key and caught.value.line == row.line
    assert all(part in str(caught.value) for part in row.says)


# What a user may write and the compiler has to finish with, one way or the other, in seconds.
GATES = [f"b{i}" for i in range(15)]
SUM = " + ".join(GATES)
LABOUR = {
    "wide weight": (f"({SUM})**16", "norm2(p - v) / 2"),
    "wide loss": ("1", f"norm2(p - v) * ({SUM})**16"),
    "wide power of p": ("1", f"sum((p + v + {SUM})**16)"),
    "factors of p": ("1", f"sum({' * '.join(f'(p + {n})' for n in GATES)})"),
    "fractions": (" + ".join(f"1 / (1 + {n})" for n in GATES[:8]), "norm2(p - v) / 2"),
    "rational": (" * ".join(f"(1 / (1 + {n}) + 1 / (2 + {n}))" for n in GATES), "norm2(p - v) / 2"),
    "nested": (" + ".join(f"exp(-{n} * exp({m}))" for n, m in zip(GATES, GATES[1:])) + " + b0", "norm2(p - v) / 2"),
    "squares": ("1", f"-sum(p * {'tanh(square(' * 20}v{'))' * 20})"),
}

WORK = """
import resource, sys
from ttrc.compiler import generate
from ttrc.errors import SpecError
from ttrc.language.load import load_spec
resource.setrlimit(resource.RLIMIT_CPU, (15, 15))
try:
    generate(load_spec(sys.argv[1]))
except SpecError:
    pass
"""


@pytest.mark.parametrize("case", LABOUR)
def test_no_spec_keeps_the_compiler_busy(case, tmp_path):
    weight, loss = LABOUR[case]
    used = [n for n in GATES if re.search(rf"\b{n}\b", weight + loss)]
    gates = "\n".join(f'{n} = {{ per = "head", domain = "unit" }}' for n in used)
    path = tmp_path / "busy.toml"
    path.write_text(swap(GATE, gates, WEIGHT, f'"{weight}"', LOSS, f'"{loss}"'))
    done = subprocess.run([sys.executable, "-c", WORK, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
