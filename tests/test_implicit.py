"""Implicit steps of any convex loss: exact, refused where there is none, and like what they are known to be like."""

import functools

import pytest
import torch

import ttrc
from test_derivation import HELPERS
from test_nonlinear import JOINED, LOSSES, SEPARABLE, SPEC
from ttrc import symbolic
from ttrc.backends.torch.printer import DIALECT
from ttrc.compiler import analyse
from ttrc.errors import SpecError
from ttrc.ir.tile import Root
from ttrc.language.load import parse_spec
from ttrc.runtime.load import load
from ttrc.runtime.verify import Case, verify
from ttrc.sampling import random_inputs
from ttrc.tools.explain import as_data

EXPLICIT, IMPLICIT = 'rule = "gradient"\nat = "{at}"', 'rule = "proximal"'
CORNERED = ("absolute", "insensitive", "quantile", "norm", "shift")
CONCAVE = ("capped",)
MIXED = ("cross_entropy", "angle", "cosine", "two_sums", "sum_in_a_sum")
SOLVED = ("huber", "threshold_of_any_sign", "by_channel", "huber_of_norm", "relative")  # without a search
SEARCHED = ("l3", "smooth_l_p", "log_cosh", "pseudo_huber", "asymmetric", "logistic", "hinge", "root")
CASES = {
    "chunk": Case(B=1, T=18, H=1, HV=1, d_k=5, d_v=6, chunk_size=16),
    "recurrent": Case(B=1, T=3, H=1, HV=2, d_k=5, d_v=6),
}
STRONG = Case(T=20, packed=(17, 1, 2), H=1, HV=1, d_k=4, d_v=9, chunk_size=32, extreme="strong")
every_form = pytest.mark.parametrize("form", CASES)


@functools.cache
def spec_of(loss, implicit=True, weight=None):
    expr = LOSSES.get(loss, loss)
    weight = weight or ("beta" if "delta" in expr else "beta * exp(-delta)")
    text = SPEC.replace(EXPLICIT, IMPLICIT) if implicit else SPEC
    return parse_spec(text.format(name="of_a_test", weight=weight, loss=expr, at="retained"))


@functools.cache
def operator(loss, implicit=True):
    return ttrc.load(spec_of(loss, implicit))


def root_of(module):
    error = module.recurrence.error
    return getattr(error, "root", None)


def test_every_loss_is_sorted():
    assert {*CORNERED, *CONCAVE, *MIXED, *SOLVED, *SEARCHED, "no_prediction"} == set(LOSSES)
    assert set(MIXED) < set(JOINED) and set(CONCAVE) < set(SEPARABLE)


@pytest.mark.parametrize("loss", SOLVED + SEARCHED)
@every_form
def test_an_implicit_step_of_any_convex_loss_is_exact(loss, form):
    assert not verify(operator(loss), CASES[form], form=form, backend="torch", dtype=torch.float64).failures
    assert not verify(operator(loss), CASES[form], form=form, backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("loss", ["huber", "l3", "root"])
@every_form
def test_strong_gates_and_packed_sequences(loss, form):
    assert not verify(operator(loss), STRONG, form=form, backend="torch", dtype=torch.float64).failures


@pytest.mark.parametrize("loss", ["l3", "root", "huber"])
def test_half_precision_and_all_blocks_of_a_chunk(loss):
    case = Case(B=1, T=34, H=1, HV=1, d_k=8, d_v=34, chunk_size=32)
    for dtype in (torch.float32, torch.float16):
        assert not verify(operator(loss), case, form="chunk", backend="triton", dtype=dtype).failures


@pytest.mark.parametrize("loss", SOLVED + SEARCHED)
def test_what_has_no_closed_form_is_searched_for(loss):
    module = analyse(spec_of(loss))
    roots = [s for form in module.forms.values() for s in form.forward.statements if isinstance(s.op, Root)]
    assert bool(root_of(module)) == (loss in SEARCHED) and bool(roots) == (loss in SEARCHED)
    assert all(s.target.axes in ((("t", "v"), ("v",)) if loss in SEPARABLE else (("t",), ())) for s in roots)


def test_the_search_is_explained():
    for loss, unknown, base in (("l3", "p_new", "p"), ("root", "norm_new", "sqrt(norm2(p - v))")):
        told = as_data(spec_of(loss))
        lines = [line for step in told["derivation"] for line in step["lines"]]
        assert any(x.startswith(f"{unknown} + ") and x.endswith(f" = {base}") and "norm2(k)" in x for x in lines)
        assert any("Newton's steps" in finding["because"] for finding in told["findings"])
        assert any(a["meaning"].startswith("root x of x + ") for a in told["forms"]["chunk"]["forward"])
        assert told["forms"]["chunk"]["adjoint_operations"].get("root") is None  # its adjoint is arithmetic


@pytest.mark.parametrize("loss", ["sum(sqrt(square(p - v) + 0.01))", "sqrt(norm2(p - v) + 0.01)"])
def test_what_a_refusal_says_to_write_instead_of_a_corner_is_taken(loss):
    assert root_of(analyse(spec_of(loss)))


# Refusals: a loss that is not convex, has a corner, or mixes the channels

REFUSED = {
    **{loss: ("jumps at", "without corners") for loss in CORNERED},
    **{loss: ("falls from", "convex loss") for loss in CONCAVE},
    **{loss: ("joins the value channels",) for loss in MIXED},
    "-sum(log_cosh(p - v))": ("falls from", "convex loss"),
    "sum(log_cosh(p - v)) * g": ("falls from", "g = -"),
    "sum(log(1 + square(p - v)))": ("falls from", "convex loss"),
    "log(1 + norm2(p - v))": ("falls from", "norm(p - v)"),
    "sum(where(p > v, p - v, square(p - v)))": ("jumps at",),
    "sum(log_cosh(p - v)) - sum(abs(p - v)) / 9": ("falls from",),
    "norm2(p - v)**2 + sum(abs(p)**3)": ("joins the value channels",),
}


@pytest.mark.parametrize("loss", REFUSED)
def test_what_has_no_implicit_step_is_refused_with_a_place(loss):
    with pytest.raises(SpecError) as refused:
        analyse(spec_of(loss))
    message = str(refused.value)
    assert "loss.expr" in message and "^" in message and "expected" in message
    assert all(part in message for part in REFUSED[loss]), message


CONVEX = [
    "sum(exp(p - v) - p)",
    "norm(p - v)**3",
    "(1 + norm2(p - v))**0.75",
    "log_cosh(norm(2 * p - v))",
    "norm2(p - v) / 2 + norm(p - v)**3",
    "sum(max(p - v, 0)**2) + norm2(p)",
    "sum(abs(p - v)**1.5)",
    "sum(square(p - v) / 2 + huber(p - v, delta))",
]


@pytest.mark.parametrize("loss", CONVEX)
def test_more_losses_have_one(loss):
    op = load(spec_of(loss))
    for form, case in CASES.items():
        assert not verify(op, case, form=form, backend="torch", dtype=torch.float64).failures


# The search


@pytest.fixture(scope="module")
def find_root():
    return operator("l3").package.reference.find_root


PULLS = {  # and its slope
    "root": (lambda y: y.sign() * y.abs() ** 0.5, lambda y: torch.where(y == 0, 0.0, 0.5 * y.abs() ** -0.5)),
    "square": (lambda y: y * y.abs(), lambda y: 2 * y.abs()),
    "ninth": (lambda y: y**9, lambda y: 9 * y**8),
    "tanh": (torch.tanh, lambda y: 1 - torch.tanh(y) ** 2),
    "steep": (lambda y: torch.tanh(1e3 * y), lambda y: 1e3 * (1 - torch.tanh(1e3 * y) ** 2)),
    "clip": (lambda y: y.clamp(-0.3, 0.3), lambda y: (y.abs() <= 0.3).to(y.dtype)),
    "kink": (lambda y: torch.where(y > 0, 100 * y, y), lambda y: torch.where(y > 0, 100.0, 1.0).to(y.dtype)),
    "flat": (lambda y: y.sign() * (y.abs() - 1).clamp(min=0), lambda y: (y.abs() > 1).to(y.dtype)),
    "overflow": (torch.expm1, torch.exp),
    "none": (torch.zeros_like, torch.zeros_like),
}


@pytest.mark.parametrize("name", PULLS)
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_a_root_is_found_from_anywhere(name, dtype, bound, find_root):
    """On either side of what is found the equation is off to either side."""
    pull, slope = PULLS[name]
    generator = torch.Generator().manual_seed(5)
    spread = [torch.rand(4000, generator=generator, dtype=torch.float64) for _ in range(3)]
    signs = [torch.randn(4000, generator=generator, dtype=torch.float64) for _ in range(2)]
    rate = (10 ** (10 * spread[0] - 5)).to(dtype)
    v, base = ((x * 10 ** (3 * s - 2)).to(dtype) for x, s in zip(signs, spread[1:]))
    looks = []

    def pulled(x):
        looks.append(x)
        return rate * pull(x - v), rate * slope(x - v)

    x = find_root(pulled, base).double()
    reach = bound * (x.abs() + v.abs().double() + base.abs().double())
    off = [y + rate.double() * pull(y - v.double()) - base.double() for y in (x - reach, x + reach)]
    assert (off[0] <= 0).all() and (off[1] >= 0).all()
    assert len(looks) < 250


def test_an_expression_in_numbers_is_the_printed_one():
    """What convexity is judged by, against what kernels work out."""
    terms = "log_cosh(p - v) + softplus(p) + huber(p, delta) + max(p, v)**2 * exp(-abs(p - v)) * log(1 + p**2)"
    module = analyse(spec_of(f"sum({terms})", False))
    helpers = HELPERS
    written = module.recurrence.error.written
    for seed in range(20):
        numbers = dict(zip("pv", torch.randn(2, generator=torch.Generator().manual_seed(seed)).tolist()))
        numbers |= {"beta": 0.7, "delta": 0.4}
        code = symbolic.render(written, DIALECT, {n: n for n in symbolic.names(written)})
        tensors = {n: torch.tensor(x, dtype=torch.float64) for n, x in numbers.items()}
        assert symbolic.value(written, numbers) == pytest.approx(eval(code, helpers | tensors).item(), abs=1e-12)


# Known relations


def inputs(spec, T=40, **changed):
    x = random_inputs(spec, B=1, T=T, H=1, HV=2, dk=6, dv=5, dtype=torch.float64, seed=3)
    x["initial_state"] = x["initial_state"].double()
    return x | {n: torch.full_like(x[n], value) for n, value in changed.items()}


def outputs(op, x, form):
    return torch.cat([y.flatten() for y in op(**x, output_final_state=True, form=form, backend="torch")])


@pytest.mark.parametrize("loss", ["huber", "l3", "root", "by_channel"])
@every_form
def test_a_small_implicit_step_is_the_explicit_one(loss, form):
    """They differ by the square of the rate."""
    x = inputs(spec_of(loss), beta=0.0)
    none = outputs(operator(loss), x, form)
    x["beta"] = torch.full_like(x["beta"], 1e-5)
    implicit, explicit = outputs(operator(loss), x, form) - none, outputs(operator(loss, False), x, form) - none
    assert (implicit - explicit).norm() < 1e-3 * explicit.norm()
    assert (implicit - explicit).norm() > 1e-9 * explicit.norm()


@pytest.mark.parametrize("loss", ["huber", "huber_of_norm", "pseudo_huber"])
@every_form
def test_a_threshold_that_is_never_reached_is_the_affine_step(loss, form):
    x = inputs(spec_of(loss), delta=1e6)
    affine = ttrc.load(spec_of("norm2(p - v) / 2", weight="beta * delta / delta"))
    torch.testing.assert_close(outputs(operator(loss), x, form), outputs(affine, x, form), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("loss", ["huber", "l3", "smooth_l_p", "log_cosh", "huber_of_norm", "root"])
def test_an_implicit_step_never_overshoots(loss):
    """However long the key: what is then predicted lies between what was predicted and the value."""
    x = inputs(spec_of(loss), T=1, g=0.0)
    x["k"] = x["k"] * 1e3
    x["q"] = x["k"]
    after = operator(loss)(**x, scale=1.0, form="recurrent", backend="torch")[0]
    before = torch.einsum("bthk,bhkv->bthv", x["k"].expand(1, 1, 2, 6), x["initial_state"])
    share = (after - x["v"]) / (before - x["v"])
    assert (share > -1e-9).all() and (share < 1).all()


@pytest.mark.parametrize("loss", ["l3", "root"])
def test_the_chunk_is_as_long_as_one_likes(loss):
    x = inputs(spec_of(loss))
    runs = [operator(loss)(**x, form="chunk", chunk_size=c, backend="torch")[0] for c in (16, 32, 64)]
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0], atol=1e-12, rtol=1e-12)
