"""Kernel memories whose loss has no curvature: what a query reads is a sum of values, and no sum of weights divides."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

import ttrc
from kernel_memories import heads_first, spec, tensors
from ttrc import oracle
from ttrc.compiler import analyse
from ttrc.errors import SpecError
from ttrc.ir.attention import Mean, Sum
from ttrc.ir.tile import Attend, Normaliser
from ttrc.runtime.verify import Case, relative_rms, verify

SIGMOID = Path(__file__).parent / "unseen" / "sigmoid_attention.toml"
HEBBIAN = dict(loss="-dot(p, v)", retention="norm2(S) / 2")
G = 'g = { per = "head", domain = "log_decay" }'
SPECS = {
    "exponential": spec("exponential", **HEBBIAN),
    "polynomial": spec("polynomial", **HEBBIAN, similarity="log(square(dot(q, k)) + 0.5)"),
    "squashed": spec(
        "squashed",
        f'[inputs]\n{G}\n[parameters]\nb = {{ per = "head", domain = "real" }}',
        similarity="-softplus(b - dot(q, k)) - norm2(k) / 4",
        loss="-dot(p, v)",
        weight="exp(g)",
        retention="exp(g) * norm2(S)",
        decay="exp(g)",
        more='[read]\nexpr = "r + g * v"\n',
    ),
    # Weights of any sign, a ridge that comes with each query, and pairs that weigh no exponential.
    "signed": spec(
        "signed",
        '[inputs]\nw = { per = "head", domain = "real" }\nr_0 = { per = "head", domain = "positive" }',
        similarity="-softplus(-dot(q, k))",
        loss="-dot(p, v + w)",
        weight="w",
        retention="r_0 * norm2(S) / 2",
    ),
    "distance": spec("distance", **HEBBIAN, similarity="dot(q, k) - norm2(q) / 2 - norm2(k) / 2"),
}


@cache
def operator(name):
    return ttrc.load(SPECS[name])


def weights(x, T):
    """x [.., t, s] of the pairs that a query sees."""
    return x.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), 0.0)


def products(q, k):
    q, k = heads_first(q, k)
    return q @ k.mT * q.shape[-1] ** -0.5


# Against references


def test_sigmoid_attention_is_the_sum_that_it_is_defined_by():
    q, k, v = tensors()
    b = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    expected = weights(torch.sigmoid(products(q, k) + b[:, None, None]), 11) @ v.transpose(1, 2)
    op = ttrc.load(SIGMOID)
    for made, _ in oracle.run(op.spec, q, k, v, {"b": b}), op(q, k, v, b=b):
        torch.testing.assert_close(made.transpose(1, 2), expected, rtol=1e-12, atol=1e-12)


def test_dot_products_make_the_exponential_kernels_linear_attention():
    q, k, v = tensors()
    expected = weights(products(q, k).exp(), 11) @ v.transpose(1, 2)
    for made, _ in oracle.run(SPECS["exponential"], q, k, v, {}), operator("exponential")(q, k, v):
        torch.testing.assert_close(made.transpose(1, 2), expected, rtol=1e-12, atol=1e-12)


CASES = (
    Case(T=9, H=2, HV=4, d_k=7, d_v=5),
    Case(T=40, packed=(17, 1, 22), d_k=3, d_v=4, chunk_size=16),
    Case(B=1, T=37, d_k=4, d_v=3, extreme="strong", chunk_size=16),
)


@pytest.mark.parametrize("name", SPECS)
def test_the_mathematics_and_the_kernels(name):
    for case in CASES:
        for backend, dtype in ("torch", torch.float64), ("triton", torch.float32):
            assert not verify(operator(name), case, form="chunk", backend=backend, dtype=dtype).failures
    assert not verify(operator(name), CASES[0], form="chunk", backend="triton", dtype=torch.float16).failures


# What follows from the loss


def test_the_loss_decides_and_nothing_else():
    """One fit for all: the curvature's share of the divisor goes as it does."""
    made = {
        loss: analyse(spec(loss=loss, retention="norm2(S) / 2")).recurrence
        for loss in ("-dot(p, v)", "norm2(p - v) / 2")
    }
    assert isinstance(made["-dot(p, v)"].fit, Sum) and isinstance(made["norm2(p - v) / 2"].fit, Mean)
    q, k, v = tensors()
    summed = operator("exponential")(q, k, v)[0]
    for c in 1e-3, 1e-6:  # S = sum w v / (1 + c sum w)
        nearly = ttrc.load(spec(loss=f"{c:.6f} * norm2(p) / 2 - dot(p, v)", retention="norm2(S) / 2"))(q, k, v)[0]
        assert 0.1 * c < relative_rms(nearly, summed) < 100 * c


def test_the_ridge_divides():
    q, k, v = tensors()
    lam = torch.tensor([2.0, 0.25], dtype=torch.float64)
    ridged = ttrc.load(
        spec("ridged", '[parameters]\nlam = { per = "head", domain = "positive" }', loss="-dot(p, v)",
             retention="lam * norm2(S) / 2")
    )  # fmt: skip
    expected = operator("exponential")(q, k, v)[0] / lam[:, None]
    torch.testing.assert_close(ridged(q, k, v, lam=lam)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_kernels_look_for_no_largest_weight_and_keep_no_normaliser(name):
    module = analyse(SPECS[name])
    plan = module.forms["chunk"].plan
    assert not any(isinstance(s.op, (Attend, Normaliser)) for k in plan.kernels for s in k.statements)
    assert {b.name for b in plan.saved} <= {"sums", "answer"}
    text = (Path(operator(name).package.__file__).parent / "kernels.py").read_text()
    kernels = text[text.index("@triton.jit(do_not_specialize") :]
    assert "tl.max(" not in kernels and "log2" not in text and "logarithms of what divides" not in text


def test_a_sigmoid_is_one():
    """Not the exponential of a logarithm, which would take several functions a pair; nor is a polynomial."""
    for op, word in (ttrc.load(SIGMOID), " sigmoid("), (operator("polynomial"), "scaled * scaled"):
        text = (Path(op.package.__file__).parent / "kernels.py").read_text()
        kernels = re.sub("#.*", "", text[text.index("def attend(") :])
        assert word in kernels and not any(f in kernels for f in (" exp(", "softplus(", "log("))


@pytest.mark.parametrize("loss, first", [("-dot(p, v)", "attend_keys"), ("norm2(p - v) / 2", "attend_queries")])
def test_a_similarity_may_be_free_of_queries(loss, first):
    """Of a sum no kernel of queries has anything to make then; of a mean it makes what rows share."""
    op = ttrc.load(spec("of_keys", similarity="-norm2(k)", loss=loss, retention="norm2(S) / 2"))
    for backend, dtype in ("torch", torch.float64), ("triton", torch.float32):
        assert not verify(op, CASES[0], form="chunk", backend=backend, dtype=dtype).failures
    (schedule,) = analyse(op.spec).forms["chunk"].plan.schedules
    assert schedule.backward[0].kernel.name == first


def test_a_backward_pass_wants_nothing_beside_the_inputs():
    q, k, v = (x.float().requires_grad_() for x in tensors(T=20, d=16))
    o, _ = operator("exponential")(q, k, v, backend="triton", keep_bytes=0)
    kept = {x.data_ptr() for x in o.grad_fn.saved_tensors if x is not None}
    assert kept == {q.data_ptr(), k.data_ptr(), v.data_ptr()}
    assert all(d.isfinite().all() for d in torch.autograd.grad(o.sum(), [q, k, v]))


def finite_gradients(op, x, **gates):
    leaves = [t.requires_grad_() for t in x]
    o, _ = op(*leaves, **gates, backend="triton", chunk_size=16)
    return o.isfinite().all() and all(d.isfinite().all() for d in torch.autograd.grad(o.sum(), leaves))


def test_what_is_not_seen_may_be_too_large_for_a_float():
    """A key behind the query that it would meet."""
    q, k, v = (x.float()[:1] for x in tensors(T=20, H=1, d=16))
    q[:, 10:], k[:, 10] = 0, 400 * q[:, 9]
    assert products(q, k).exp()[0, 0, 9, 10].isinf() and finite_gradients(operator("exponential"), (q, k, v))


def test_queries_past_the_end_weigh_nothing():
    """Behind decays that are strong they would be infinitely near, for sums of decays are 0 there."""
    x = [t.float()[:1] for t in tensors(T=20, H=1, d=16)]
    assert finite_gradients(operator("squashed"), x, g=torch.full((1, 20, 1), -30.0), b=torch.zeros(1))


def test_packed_sequences_are_sequences():
    x, ends = [t.float()[:1] for t in tensors(T=40, d=16)], [0, 16, 17, 40]
    op = operator("exponential")
    packed, _ = op(*x, cu_seqlens=torch.tensor(ends, dtype=torch.int32), backend="triton", chunk_size=16)
    apart = [op(*(t[:, a:b] for t in x), backend="triton", chunk_size=16)[0] for a, b in zip(ends, ends[1:])]
    assert torch.equal(packed, torch.cat(apart, 1))


# What is refused

REFUSED = {
    "no ridge": (dict(retention="0"), "retention.expr", "nothing holds S", "a ridge such as"),
    "no square": (dict(retention="norm(S)"), "retention.expr", "not a number times norm2", "a ridge such as"),
    "ridge": (dict(gates='[parameters]\nlam = { per = "head", domain = "real" }', retention="lam * norm2(S)"),
              "retention.expr", "not provably positive", "exp"),
    "value": (dict(loss="-dot(p, log(square(v)))"), "loss.expr", "no finite value and derivative", "smooth there"),
    "value of a mean": (dict(loss="norm2(p - log(abs(v)))"), "loss.expr", "no finite value", "smooth there"),
    "concave": (dict(loss="-norm2(p) / 2 - dot(p, v)"), "loss.expr", "not provably convex", "-dot"),
    "weight of a sum": (dict(weight="exp(norm2(k))"), "loss.weight", "a sum over channels", "of gates alone"),
    "weight": (dict(gates='[inputs]\nu = { per = "value_channel", domain = "real" }', weight="sum(u)"), "inputs.u",
               "one a head so far", "head"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_why_and_where(case):
    changes, key, message, expected = REFUSED[case]
    with pytest.raises(SpecError, match=message) as caught:
        analyse(spec(**HEBBIAN | changes))
    assert caught.value.key == key and expected in caught.value.expected
    assert key.startswith("inputs") or "^" in str(caught.value)
