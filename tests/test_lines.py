"""Kernel memories of degree 1: a line fitted at each query, which a search of each query finds."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

import ttrc
from kernel_memories import spec, tensors
from ttrc import oracle
from ttrc.compiler import analyse
from ttrc.errors import SpecError
from ttrc.passes.budget import STEPS, budget
from ttrc.runtime.load import import_package
from ttrc.runtime.operator import Operator
from ttrc.runtime.verify import Case, relative_rms, verify
from ttrc.tools.counter import count

LAM = '[parameters]\nlam = { per = "head", domain = "positive" }\n'
GATES = LAM + '[inputs]\ng = { per = "head", domain = "log_decay" }\nb = { per = "head", domain = "real" }\n'
RIDGE, BOTH = "lam * norm2(W) / 2", "exp(b) * norm2(S) + lam * norm2(W) / 2"
# A read-out and maps take a gate with channels each, and a ridge a gate of the token that asks.
MAPS = """
[features]
q = "q * sigmoid(q)"
k = "k / sqrt(norm2(k) + 0.01) * exp(g)"
[read]
expr = "sigmoid(z) * (r + dot(q, k) * v)"
"""
KINDS = {
    "plain": dict(gates=LAM, retention=RIDGE),
    "near": dict(gates=LAM, retention=RIDGE, similarity="-lam * norm2(q - k) / 2"),
    "drawn": dict(gates=GATES, retention=BOTH, loss="norm2(p - exp(b) * v)", weight="exp(g)", decay="exp(g)"),
    "windowed": dict(gates=GATES, retention=BOTH, decay="exp(g)", window=20),
    "moving": dict(gates='[inputs]\nlam = { per = "head", domain = "positive" }', retention=RIDGE, window=20),
    "mapped": dict(
        gates=GATES + 'z = { per = "value_channel", domain = "real" }\n',
        retention=BOTH,
        more=MAPS,
    ),
}


@cache
def operator(kind):
    return ttrc.load("local_linear_attention" if kind == "shipped" else spec(f"{kind}_line", degree=1, **KINDS[kind]))


def drawn(T, kind="plain"):
    q, k, v = (x.float() for x in tensors(T=T, d=8))
    gates = {"lam": torch.tensor([0.5, 1.5])} if kind != "moving" else {"lam": 0.2 + torch.rand(2, T, 2)}
    if "g" in {g.name for g in operator(kind).spec.inputs}:
        gates |= {"g": -torch.rand(2, T, 2), "b": torch.randn(2, T, 2)}
    return {"q": q, "k": k, "v": v, **gates}


def gradients(op, x, **call):
    """The output and the gradients of a sum of its squares, in the inputs' order."""
    leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
    o, _ = op(**leaves, chunk_size=16, **call)
    return o.detach(), *torch.autograd.grad(o.square().sum(), list(leaves.values()))


# Against references


def test_the_oracle_is_weighted_least_squares():
    """By the normal equations of one query at a time."""
    q, k, v = tensors(T=9)
    lam = torch.tensor([0.3, 1.0], dtype=torch.float64)
    made, _ = oracle.run(operator("shipped").spec, q, k, v, {"lam": lam})
    for n, t, h in ((0, 0, 0), (0, 4, 1), (1, 8, 1)):
        keys, at = k[n, : t + 1, h], q[n, t, h] * 5**-0.5
        rows = torch.cat([torch.ones(t + 1, 1, dtype=torch.float64), keys - at], 1)
        weights = (keys @ at).exp()[:, None]
        normal = rows.T @ (weights * rows) + lam[h] * torch.diag(torch.tensor([0.0] + [1.0] * 5, dtype=torch.float64))
        right = torch.linalg.solve(normal, rows.T @ (weights * v[n, : t + 1, h]))[0]
        torch.testing.assert_close(made[n, t, h], right, rtol=1e-11, atol=1e-11)


CASES = (
    Case(T=9, H=2, HV=4, d_k=7, d_v=5),
    Case(T=40, packed=(17, 1, 22), d_k=3, d_v=4, chunk_size=16),
    Case(B=1, T=40, d_k=4, d_v=3, extreme="strong", chunk_size=16),
)


@pytest.mark.parametrize("kind", ("shipped", *KINDS))
def test_the_mathematics(kind):
    for case in CASES:
        assert not verify(operator(kind), case, form="chunk", backend="torch", dtype=torch.float64).failures


@pytest.mark.parametrize("kind", ("shipped", *KINDS))
def test_the_kernels(kind):
    dtypes = (torch.float32, torch.float32, torch.bfloat16)
    for case, dtype in zip((CASES[1], CASES[2], CASES[0]), dtypes):
        assert not verify(operator(kind), case, form="chunk", backend="triton", dtype=dtype).failures


# Relations


@pytest.mark.parametrize("backend, dtype, most", [("torch", torch.float64, 1e-6), ("triton", torch.float32, 1e-4)])
def test_values_on_a_line_are_read_from_it(backend, dtype, most):
    """Once there are more keys than channels, and next to no ridge. A weighted mean of them is far off."""
    q, k, _ = (x.to(dtype) for x in tensors(T=60, d=4))
    start, slope = torch.arange(4, dtype=dtype), q[0, :4, 0] * torch.arange(1, 5, dtype=dtype)
    small = torch.full((2,), 1e-8 if dtype == torch.float64 else 1e-5, dtype=dtype)
    o, _ = operator("shipped")(q, k, k @ slope + start, lam=small, scale=0.5, backend=backend)
    assert relative_rms(o[:, 20:], 0.5 * q[:, 20:] @ slope + start) < most
    mean, _ = ttrc.load("softmax_attention")(q, k, k @ slope + start, scale=0.5)
    assert relative_rms(mean[:, 20:], 0.5 * q[:, 20:] @ slope + start) > 0.1


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_slope_that_is_held_fast_leaves_softmax_attention(backend):
    x = drawn(40)
    soft = gradients(ttrc.load("softmax_attention"), {n: x[n] for n in "qkv"}, backend=backend)
    # The latter lies beyond what a ridge is taken for.
    for lam in 1e10, 1e30:
        held = gradients(operator("plain"), x | {"lam": torch.full((2,), lam)}, backend=backend)
        for mine, other in zip(held, soft):
            assert relative_rms(mine, other) < 1e-5
        assert held[-1].abs().max() < 1e-6


def test_equal_values_are_read_as_they_are():
    """A constant is a line; without a ridge on S nothing draws it anywhere, whatever the weights."""
    x = drawn(40) | {"v": torch.ones(2, 40, 2, 8)}
    for call in dict(backend="torch"), dict(backend="triton", chunk_size=16):
        torch.testing.assert_close(operator("plain")(**x, **call)[0], x["v"], rtol=1e-5, atol=1e-5)
    half = {n: t.bfloat16() if n in "qkv" else t for n, t in x.items()}
    o, _ = operator("plain")(**half, backend="triton", chunk_size=16)
    assert (o.float() - 1).abs().max() < 0.01


@pytest.mark.parametrize("kind", ["plain", "drawn", "windowed"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_query_sees_neither_later_nor_older_tokens(kind, backend):
    op, x = operator(kind), drawn(60, kind)
    changed = {n: torch.cat([t[:, :20], t[:, 20:22] * 3, t[:, 22:]], 1) if n in "qkv" else t for n, t in x.items()}
    before, after = (op(**y, backend=backend, chunk_size=16)[0] for y in (x, changed))
    differs = (before != after).flatten(2).any(2).any(0).nonzero().flatten().tolist()
    assert differs == list(range(20, 41 if kind == "windowed" else 60))


@pytest.mark.parametrize("kind", ["plain", "windowed", "drawn"])
def test_packed_sequences_are_sequences(kind):
    op, x, ends = operator(kind), drawn(40, kind), [0, 16, 17, 40]
    x = {n: t[:1] if t.dim() > 1 else t for n, t in x.items()}
    packed = gradients(op, x, backend="triton", cu_seqlens=torch.tensor(ends, dtype=torch.int32))
    apart = [
        gradients(op, {n: t[:, a:b] if t.dim() > 1 else t for n, t in x.items()}, backend="triton")
        for a, b in zip(ends, ends[1:])
    ]
    for name, whole, parts in zip(("o", *x), packed, zip(*apart)):
        if name == "lam":
            torch.testing.assert_close(whole, sum(parts), rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(whole, torch.cat(parts, 1)), name


def test_a_decay_of_one_and_a_window_that_holds_all_change_nothing():
    x = drawn(33, "windowed") | {"g": torch.zeros(2, 33, 2)}
    op = ttrc.load(spec("free_line", degree=1, **KINDS["windowed"] | {"decay": "", "window": None, "more": "", "gates":
                        GATES.replace('g = { per = "head", domain = "log_decay" }\n', "")}))  # fmt: skip
    wide = ttrc.load(spec("wide_line", degree=1, **KINDS["windowed"] | {"window": 64}))
    free = gradients(op, {n: t for n, t in x.items() if n != "g"}, backend="triton")
    kept = gradients(wide, x, backend="triton")
    for mine, other in zip(free, [t for n, t in zip(("o", *x), kept) if n != "g"]):
        assert relative_rms(mine, other) < 1e-5


def test_what_it_keeps_is_what_it_says():
    op, x = operator("plain"), {n: t.requires_grad_() for n, t in drawn(20).items()}
    o, _ = op(**x, backend="triton", chunk_size=16)
    given = {t.data_ptr() for t in x.values()}
    kept = [t for t in o.grad_fn.saved_tensors if t is not None and t.data_ptr() not in given and t.numel()]
    held = sum(t.numel() * t.element_size() for t in kept) // (2 * 20 * 2)
    assert held == 8 * 4 + 8 * 4 + 4  # the mean key, what was solved for, and what divided the weights
    with pytest.raises(ValueError, match=f"at least {held}"):
        op(**x, backend="triton", keep_bytes=held - 1)
    op(**x, backend="triton", keep_bytes=held)


# What a plan costs


def test_a_search_goes_over_pairs_in_each_step():
    spent = budget(analyse(operator("plain").spec), d_k=64, d_v=64, dtype_bytes=2, length=1024)["chunk"]
    flops = {name: traffic.flops for name, traffic in spent["forward"].kernels}
    # Of a pair q' k, and products of operands in two parts: two in each step, and one in a read-out, beside the values.
    assert flops["attend_solve_lines"] == pytest.approx(STEPS * 5 / 4 * flops["attend_lines"])
    short, long = (budget(analyse(operator("plain").spec), d_k=64, d_v=64, dtype_bytes=2, length=n)["chunk"]["forward"]
                   for n in (1024, 8192))  # fmt: skip
    assert short.bytes == long.bytes and long.flops > 6 * short.flops


def test_a_window_bounds_what_a_search_visits():
    def products(kind, T):
        with count() as tally:
            operator(kind)(**drawn(T, kind), backend="triton", chunk_size=16)
        return tally.kernels["attend_solve_lines"].dot_flops / T

    assert products("moving", 160) < 1.3 * products("moving", 80)
    assert products("plain", 160) > 1.6 * products("plain", 80)


# What is refused

REFUSED = {
    "no ridge": (dict(retention="norm2(S) / 2"), "retention.expr", "nothing holds the slope W"),
    "nothing": (dict(retention="0"), "retention.expr", "nothing holds the slope W"),
    "sign": (dict(gates=LAM.replace("positive", "real"), retention=RIDGE), "retention.expr", "in W, lam, is not prov"),
    "norm": (dict(retention="norm(W)"), "retention.expr", "and a number times norm2.W."),
    "both": (dict(retention="norm2(S) * norm2(W)"), "retention.expr", "not a number times norm2"),
    "loss": (dict(retention="norm2(S) + norm2(W)", loss="-dot(p, v)"), "loss.expr", "no curvature in p"),
    "one": (dict(retention="norm2(W)", window=1), "memory.window", "a mean of one token's value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_why_and_where(case):
    changes, key, message = REFUSED[case]
    with pytest.raises(SpecError, match=message) as caught:
        analyse(spec(degree=1, **changes))
    assert caught.value.key == key and caught.value.expected
    assert key == "memory.window" or "^" in str(caught.value)


def test_a_constant_has_no_slope():
    with pytest.raises(SpecError, match='unknown name "W"|"W" has no meaning') as caught:
        spec(degree=0, retention="norm2(W)")
    assert caught.value.key == "retention.expr" and "degree 1" in caught.value.hint


# Small ridges


def lopsided(dtype=torch.float32, lam=1.0, shift=3.0):
    """Keys and queries that lie far from zero: weights are large, and next to them a ridge of 1 is small."""
    q, k, v = tensors(T=64, d=16)
    x = {"q": (q + shift).to(dtype), "k": (k / 2 + shift / 4).to(dtype), "v": v.to(dtype)}
    return x | {"lam": torch.full((2,), lam)}


def error(op, x):
    """Of the output, beside the same sums in double precision."""
    right, _ = op(**{n: t.double() for n, t in x.items()}, backend="torch")
    return relative_rms(op(**x, backend="triton", chunk_size=32)[0].double(), right)


def test_a_search_is_of_a_symmetric_matrix_whatever_rounding_does(tmp_path):
    """Distances from the mean key sum to 0 but for rounding, which a small ridge would not forgive."""
    assert error(operator("shipped"), lopsided()) < 0.03
    broken = changed(operator("shipped"), r"-centre \* level\[:, None\]", "0 * level[:, None]", tmp_path)
    assert error(broken, lopsided()) > 0.1


@pytest.mark.parametrize("lam", [1.0, 0.1, 0.01])
def test_half_precision_costs_what_rounding_the_output_does(lam):
    """What is solved for may be large where no key of a query differs, and is not rounded."""
    x = {n: t[:1, :, :1] if t.dim() > 1 else t[:1] for n, t in lopsided(torch.bfloat16, lam, 0.0).items()}
    assert error(operator("plain"), x) < 4e-3


# Broken on purpose

BREAKS = {
    "a search goes on from a mean of rounded weights": (r"exact_dot\(_weights, k", "exact_dot(0.99 * _weights, k"),
    "queries past the diagonal": (r"tl.range\(0, i_c \+ 1\)", "tl.range(0, i_c)"),
    "a ridge is left out": (r"stiffness_valid\[:, None\] \* x_tried", "0.5 * stiffness_valid[:, None] * x_tried"),
    "a search stops at once": (r"_x_going = 2 \* BK \+ 8", "_x_going = 2"),
    "what the weights' divisor does is left out": (r"d_normaliser_via_normaliser_valid\[:, None\] \* weights",
                                                   "0 * weights"),
}  # fmt: skip


def changed(op, pattern, replacement, tmp_path):
    folder = tmp_path / op.spec.name
    folder.mkdir()
    for path in Path(op.package.__file__).parent.glob("*.py"):
        text = path.read_text()
        if path.name == "kernels.py":
            text, found = re.subn(pattern, replacement, text)
            assert found
        (folder / path.name).write_text(text)
    return Operator(op.spec, import_package(folder, op.spec.name))


@pytest.mark.parametrize("mutation", BREAKS)
def test_a_wrong_kernel_is_found(mutation, tmp_path):
    broken = changed(operator("shipped"), *BREAKS[mutation], tmp_path)
    case = Case(B=1, T=40, d_k=8, d_v=8, chunk_size=16)
    assert verify(broken, case, form="chunk", backend="triton", dtype=torch.float32).failures
