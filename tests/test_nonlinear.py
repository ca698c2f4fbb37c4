"""Losses whose error is nonlinear in the prediction: any of them, exactly, at their kinks too."""

import functools
import re

import pytest
import torch

import ttrc
from ttrc import oracle
from ttrc.compiler import analyse, generate
from ttrc.ir.recurrence import Nonlinear
from ttrc.ir.tile import Substitute, operands, sums_values
from ttrc.language.load import load_spec, parse_spec
from ttrc.paths import specs_dir
from ttrc.runtime.verify import Case, verify
from ttrc.sampling import random_inputs

SPEC = """
schema = 1
name = "{name}"
reference = "a test"

[inputs]
g = {{ per = "head", domain = "log_decay" }}
beta = {{ per = "head", domain = "unit" }}
delta = {{ per = "head", domain = "positive" }}

[memory]
kind = "linear"

[loss]
weight = "{weight}"
expr = "{loss}"

[retention]
expr = "norm2(S - exp(g) * S_prev) / 2"

[update]
rule = "gradient"
at = "{at}"
"""
SEPARABLE = {
    "huber": "sum(huber(p - v, delta))",
    "threshold_of_any_sign": "sum(huber(p - v, delta * v))",
    "l3": "sum(abs(p - v)**3) / 9",
    "smooth_l_p": "sum((square(p - v) + 0.1)**(3/4))",
    "absolute": "sum(abs(p - v))",
    "log_cosh": "sum(log_cosh(p - v))",
    "pseudo_huber": "sum(delta**2 * (sqrt(1 + square((p - v) / delta)) - 1))",
    "insensitive": "sum(max(abs(p - v) - delta, 0))",
    "quantile": "sum(max(0.2 * (v - p), 0.8 * (p - v)))",
    "asymmetric": "sum(where(p > v, 0.1 * square(p - v), 0.4 * square(p - v)))",
    "logistic": "sum(softplus(-p * v))",
    "hinge": "sum(square(max(1 - p * v, 0))) / 4",
    "by_channel": "sum(square(p - v) * sigmoid(v)) / 2",
    "capped": "sum(min(square(p - v), delta))",
}
JOINED = {
    "huber_of_norm": "huber(norm(p - v), delta)",
    "norm": "norm(p - v)",
    "shift": "norm2(p - v) / 2 + delta * norm(p - v)",
    "root": "sqrt(1 + norm2(p - v))",
    "cross_entropy": "log(sum(exp(p))) - dot(p, tanh(v))",
    "angle": "-dot(p, v) / sqrt((1 + norm2(p)) * (1 + norm2(v)))",
    "cosine": "-dot(p, v) / (norm(p) * norm(v) + 0.1)",
    "relative": "norm2(p - v) / (1 + norm2(v))",
    "two_sums": "norm2(p - v) / 2 + dot(p, v) * sum(p) / 9",
    "sum_in_a_sum": "log_cosh(norm(p - v / (1 + norm2(p)))) * norm2(k)",
    "no_prediction": "-dot(p, v) / (1 + norm(v))",
}
LOSSES = SEPARABLE | JOINED
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_read = pytest.mark.parametrize("at", ["retained", "previous"])
every_form = pytest.mark.parametrize("form", ["chunk", "recurrent"])
CASES = {
    "chunk": (
        Case(B=1, T=19, H=1, HV=2, d_k=5, d_v=20, chunk_size=16),
        Case(T=24, packed=(17, 1, 6), H=1, HV=1, d_k=4, d_v=9, chunk_size=32, extreme="strong"),
    ),
    "recurrent": (Case(B=1, T=4, H=1, HV=2, d_k=5, d_v=20),),
}


@functools.cache
def spec_of(loss, at):
    weight = "beta" if "delta" in LOSSES[loss] else "beta * exp(-delta)"
    return parse_spec(SPEC.format(name=f"{loss}_{at}", weight=weight, loss=LOSSES[loss], at=at))


@functools.cache
def operator(loss, at="previous"):
    return ttrc.load(spec_of(loss, at))


@every_loss
@every_read
@every_form
def test_any_loss_is_exact(loss, at, form):
    for case in CASES[form]:
        assert not verify(operator(loss, at), case, form=form, backend="torch", dtype=torch.float64).failures


@every_loss
@every_form
def test_any_loss_is_exact_in_the_kernels(loss, form):
    case = CASES[form][0]
    assert not verify(operator(loss), case, form=form, backend="triton", dtype=torch.float32).failures


# Every block of 16 rows, all panels


@pytest.mark.parametrize("loss", ["huber", "huber_of_norm"])
def test_all_blocks_of_a_chunk_and_all_panels_of_values(loss):
    case = Case(B=1, T=70, H=1, HV=1, d_k=8, d_v=72, chunk_size=64)
    assert not verify(operator(loss), case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("loss", ["huber", "shift", "absolute", "no_prediction"])
def test_every_schedule_is_exact(loss):
    for schedule in operator(loss).schedules:
        case = Case(B=1, T=40, H=1, HV=1, d_k=8, d_v=40, chunk_size=16, schedule=schedule)
        assert not verify(operator(loss), case, form="chunk", backend="triton", dtype=torch.float32).failures


# What splits the value axis is found in the program


@every_loss
def test_what_joins_the_value_channels_is_found_in_the_program(loss):
    plans = {name: form.plan for name, form in analyse(spec_of(loss, "previous")).forms.items()}
    joined = loss in JOINED
    for plan in plans.values():
        scans = [k for k in (*plan.forward, *plan.backward) if "scan" in k.name]
        assert any(k.name.endswith(("_whole", "_keys")) for k in scans) == joined
    for kernel in (*plans["chunk"].forward, *plans["chunk"].backward):
        if "scan" in kernel.name and not joined:
            assert not any(sums_values(s) for s in kernel.statements)


def test_a_rule_that_sums_over_values_alone_takes_them_whole_and_does_not_solve():
    plan = analyse(spec_of("no_prediction", "previous")).forms["chunk"].plan
    assert [k.name for k in plan.forward] == ["chunk_scan_whole"]


def test_gradients_that_are_frozen_may_weigh_values_by_their_sums():
    """Affine in the state, so that pieces of a sequence would compose; programs that take all values are few."""
    text = spec_of("no_prediction", "retained").source.text
    text = re.sub("(?m)^at = .*", 'at = "segment_start"\nsegment = 16', text)
    text = re.sub("(?m)^expr = .*(?=\n\n\\[ret)", 'expr = "delta * norm2(p - v) / sqrt(1 + norm2(v))"', text)
    op = ttrc.load(parse_spec(text))
    assert set(op.schedules) == {"fused", "split"}
    case = Case(B=1, T=37, d_k=5, d_v=7)
    for backend, dtype in ("torch", torch.float64), ("triton", torch.float32):
        assert not verify(op, case, form="chunk", backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "no_prediction"])
def test_substitutions_are_solved_once_and_kept(loss):
    """One each way in the scans; gradients, in parallel over chunks, load what was solved."""
    module = analyse(spec_of(loss, "previous"))
    assert isinstance(module.recurrence.error, Nonlinear)
    flat = loss in (
        "absolute",
        "insensitive",
        "quantile",
    )  # the error is constant almost everywhere: nothing to feed back
    for kernel in (*module.forms["chunk"].plan.forward, *module.forms["chunk"].plan.backward):
        found = sum(isinstance(s.op, Substitute) for s in kernel.statements)
        assert found == ("scan" in kernel.name and not (flat and kernel.reverse)), kernel.name


@every_loss
def test_the_body_of_a_substitution_goes_row_by_row(loss):
    form = analyse(spec_of(loss, "retained")).forms["chunk"]
    for op in (s.op for s in form.backward.statements if isinstance(s.op, Substitute)):
        tiles = {t for s in op.body for t in (s.target, *operands(s.op))}
        assert all("s" not in t.axes and "k" not in t.axes for t in tiles)
        assert all(x in {t for s in body for t in operands(s.op)} for x, body in zip(op.unknowns, op.bodies))


def test_a_row_works_out_no_sign_and_no_quotient():
    """sign(x) |x|^2 is x |x|, and what is one number a token is worked out before the rows: they wait for less."""
    rows = {}
    for name in ("lp_delta", "implicit_huber"):
        text = generate(load_spec(specs_dir() / f"{name}.toml"))["kernels.py"]
        rows[name] = text.split("def _chunk_scan_nonlinear_error(")[1].split("@triton.jit")[0]
    assert "tl.abs(prediction - v)" in rows["lp_delta"] and "sign(" not in rows["lp_delta"]
    assert "clip(prediction - v, " in rows["implicit_huber"] and " / " not in rows["implicit_huber"]


# Kinks


def at_the_kink(loss, dtype):
    """The prediction is the value: a state of zeros and values of zeros, for whole tokens and for single channels."""
    x = random_inputs(spec_of(loss, "previous"), B=1, T=20, H=1, HV=1, dk=4, dv=5, dtype=dtype, seed=2)
    x["initial_state"] = torch.zeros_like(x["initial_state"])
    x["v"][:, :6] = 0.0
    x["v"][..., 2] = 0.0
    return {n: t.to(dtype) for n, t in x.items()}


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "no_prediction"])
@every_form
@pytest.mark.parametrize("backend, dtype", [("torch", torch.float64), ("triton", torch.float32)])
def test_kinks_are_finite_and_predictions_there_are_the_oracles(loss, form, backend, dtype):
    x = at_the_kink(loss, dtype)
    if (form, backend) == ("recurrent", "triton"):
        x = {n: t[:, :3] if n != "initial_state" else t for n, t in x.items()}
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    o, final = operator(loss)(**leaves, output_final_state=True, form=form, chunk_size=16, backend=backend)
    (o.square().sum() + final.square().sum()).backward()
    assert all(torch.isfinite(t.grad).all() for t in leaves.values())
    if loss in ("quantile", "asymmetric", "capped"):  # one-sided where torch takes a side of its own or half of each
        return
    gates = {n: t.double() for n, t in x.items() if n not in ("q", "k", "v", "initial_state")}
    expected, state = oracle.run(spec_of(loss, "previous"), x["q"], x["k"], x["v"], gates)
    torch.testing.assert_close(o.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(final.double(), state, atol=1e-6, rtol=1e-5)


@every_form
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("size", [1e-11, 1e-14, 1e-30])
def test_the_powers_of_a_norm_that_is_almost_zero_are_finite(size, form, backend):
    """Of 1e-14 the slope of a norm takes 1e42, which no float32 is, beside as small numbers that bring it back."""
    x = {n: t[:, :1] for n, t in at_the_kink("cosine", torch.float32).items() if n != "initial_state"}
    start = torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(1)) * size
    x |= {"v": x["v"] + 1, "initial_state": start}
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    o, _ = operator("cosine")(**leaves, form=form, chunk_size=16, backend=backend)
    made = torch.autograd.grad(o.sum(), list(leaves.values()))
    assert all(torch.isfinite(t).all() for t in made)
    if size < 1e-13:  # single precision knows no direction there
        return
    leaves = {n: t.double().requires_grad_() for n, t in x.items()}
    gates = {n: leaves[n] for n in ("g", "beta", "delta")}
    o, _ = oracle.run(
        spec_of("cosine", "previous"), *(leaves[n] for n in "qkv"), gates, initial_state=leaves["initial_state"]
    )
    for a, b in zip(made, torch.autograd.grad(o.sum(), list(leaves.values()), materialize_grads=True)):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-5)


def test_gradients_at_a_kink_are_one_sided():
    """Huber's loss exactly at its threshold: as inside."""
    x = {n: torch.zeros(1, 1, 1, 2, dtype=torch.float64) for n in ("q", "k")}
    x["q"][..., 0] = x["k"][..., 0] = 1.0
    x["v"] = torch.tensor([[[[0.5, -0.5, 0.25]]]], dtype=torch.float64, requires_grad=True)
    gates = {"g": 0.0, "beta": 1.0, "delta": 0.5}
    gates = {n: torch.full((1, 1, 1), value, dtype=torch.float64) for n, value in gates.items()}
    for form in ("chunk", "recurrent"):
        o, _ = operator("huber")(**x, **gates, scale=1.0, form=form, chunk_size=16, backend="torch")
        (gradient,) = torch.autograd.grad(o.sum(), x["v"])
        assert torch.equal(gradient, torch.ones_like(gradient))


# Known closed forms


def test_a_threshold_that_is_never_reached_is_the_delta_rule():
    x = random_inputs(spec_of("huber", "retained"), B=2, T=40, H=1, HV=2, dk=6, dv=5, dtype=torch.float64, seed=4)
    x["delta"] = torch.full_like(x["delta"], 1e6)
    x["initial_state"] = x["initial_state"].double()
    without = {n: t for n, t in x.items() if n != "delta"}
    expected, state = ttrc.load("gated_deltanet")(**without, output_final_state=True, form="chunk", backend="torch")
    for loss in ("huber", "huber_of_norm"):
        for form in ("chunk", "recurrent"):
            o, final = operator(loss, "retained")(**x, output_final_state=True, form=form, backend="torch")
            torch.testing.assert_close(o, expected, atol=1e-12, rtol=1e-10)
            torch.testing.assert_close(final, state, atol=1e-12, rtol=1e-10)
