"""Kernel memories: the oracle against torch's own attention, every backend against the oracle, what holds of all."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid, scaled_dot_product_attention

import ttrc
from kernel_memories import heads_first, spec, tensors
from ttrc import oracle
from ttrc.compiler import analyse
from ttrc.errors import ArgumentError, SpecError
from ttrc.language.load import load_spec
from ttrc.passes.budget import budget
from ttrc.runtime.load import import_package
from ttrc.runtime.operator import Operator
from ttrc.runtime.verify import BOUNDS, Case, compare, differentiate, draw, relative_rms, verify

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
SHIPPED = ("softmax_attention", "forgetting_attention")
UNSEEN = {
    # One gate is that of the token, of the tokens between and of the query at once.
    "all_at_once": spec(
        "all_at_once",
        '[inputs]\ng = { per = "head", domain = "log_decay" }\n'
        '[parameters]\ntau = { per = "head", domain = "positive" }',
        similarity="-tau * norm2(q - k) / 2",
        loss="norm2(p - g * v)",
        weight="exp(g)",
        retention="exp(g) * norm2(S) / 2",
        decay="exp(g)",
    ),
    "capped": spec("capped", similarity="2 * tanh(dot(q, k)) / 3 + dot(q, k) / (1 + norm(k) * norm(q))"),
    "sink": spec(
        "sink",
        '[parameters]\nsink = { per = "head", domain = "real", default = "head / heads" }',
        retention="exp(sink) * norm2(S) / 2",
    ),
    "without_v": spec(
        "without_v", '[inputs]\ng = { per = "head", domain = "log_decay" }', loss="sum((p - exp(g))**2)", decay="exp(g)"
    ),
    "half_life": spec("half_life", retention="norm2(S) / 2", decay="1 / 2"),
    "windowed": load_spec(ROOT / "tests" / "unseen" / "windowed_attention.toml"),
    "sigmoid": load_spec(ROOT / "tests" / "unseen" / "sigmoid_attention.toml"),
    "normed": load_spec(ROOT / "tests" / "unseen" / "qk_normed_attention.toml"),
}


@cache
def operator(name):
    return ttrc.load(UNSEEN.get(name, name))


# The oracle, and what it says of a spec


def test_softmax_attention_is_torchs():
    q, k, v = (x.requires_grad_() for x in tensors())
    made, _ = oracle.run(operator("softmax_attention").spec, q, k, v, {})
    theirs = scaled_dot_product_attention(*heads_first(q, k, v), is_causal=True).transpose(1, 2)
    torch.testing.assert_close(made, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn(made.shape, dtype=torch.float64)
    for mine, other in zip(*(torch.autograd.grad((o * weights).sum(), (q, k, v)) for o in (made, theirs))):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_forgetting_attention_is_torchs_with_a_bias():
    q, k, v = tensors()
    g = logsigmoid(torch.randn(q.shape[:3], dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    (sums,) = heads_first(g.cumsum(1))
    unseen = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    bias = (sums[..., :, None] - sums[..., None, :]).masked_fill(unseen, float("-inf"))
    theirs = scaled_dot_product_attention(*heads_first(q, k, v), attn_mask=bias).transpose(1, 2)
    for made, _ in (oracle.run(operator("forgetting_attention").spec, q, k, v, {"g": g}),
                    operator("forgetting_attention")(q, k, v, g=g)):  # fmt: skip
        torch.testing.assert_close(made, theirs, rtol=1e-12, atol=1e-12)


def test_a_sink_is_one_more_key_with_a_value_of_zero():
    q, k, v = tensors()
    sink = torch.tensor([0.3, -1.0], dtype=torch.float64)
    logits = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)) * q.shape[-1] ** -0.5
    logits = logits.masked_fill(torch.ones(11, 11, dtype=torch.bool).triu(1), float("-inf"))
    logits = torch.cat([logits, sink[None, :, None, None].expand(2, 2, 11, 1)], -1)
    expected = (logits.softmax(-1)[..., :-1] @ v.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(operator("sink")(q, k, v, sink=sink)[0], expected, rtol=1e-12, atol=1e-12)


# Every backend against the oracle

CASES = (
    Case(T=9, H=2, HV=4, d_k=7, d_v=5),
    Case(T=40, packed=(17, 1, 22), d_k=3, d_v=4, chunk_size=16),
    Case(B=1, T=20, d_k=4, d_v=3, extreme="strong", chunk_size=16),
)


@pytest.mark.parametrize("name", (*SHIPPED, *UNSEEN))
def test_the_mathematics(name):
    for case in CASES:
        assert not verify(operator(name), case, form="chunk", backend="torch", dtype=torch.float64).failures


@pytest.mark.parametrize("name", (*SHIPPED, "all_at_once", "capped", "without_v", "normed", "windowed", "sigmoid"))
def test_the_kernels(name):
    for case, dtype in (CASES[1], torch.float32), (CASES[2], torch.float32), (CASES[0], torch.float16):
        assert not verify(operator(name), case, form="chunk", backend="triton", dtype=dtype).failures


def test_a_query_may_be_its_own_key():
    """Its distance is 0, or by rounding a little less: no nan there, in outputs or gradients."""
    near = ttrc.load(spec("near", similarity="-norm(q - k)"))
    for dtype, backend in (torch.float64, "torch"), (torch.float32, "triton"):
        x, _, v = (y.to(dtype) for y in tensors(T=40, H=1, d=8))
        x = x.detach().requires_grad_()
        o, _ = near(x, x, v, scale=1.0, backend=backend)
        assert o.isfinite().all() and torch.autograd.grad(o.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("similarity", ["log(square(dot(q, k)))", "sqrt(dot(q, k))"])
def test_similarities_that_are_singular_between_orthogonal_vectors_are_refused(similarity):
    with pytest.raises(SpecError, match="no finite derivative") as error:
        analyse(spec("singular", similarity=similarity))
    assert error.value.key == "memory.similarity"


def test_a_parameter_that_cancels_is_refused():
    with pytest.raises(SpecError, match='"lam" has no effect') as error:
        analyse(spec("idle", '[parameters]\nlam = { per = "head", domain = "real" }', similarity="dot(q, k) + lam"))
    assert error.value.key == "parameters.lam"


def test_decays_are_exact_however_long_ago():
    """Sums of decays of -30 a token are wrong by 1e-4 in single precision: what is next to each other does not see."""
    op, (q, k, v) = operator("forgetting_attention"), (x[:1] for x in tensors(T=150, H=1, d=16))
    strong = torch.rand(q.shape[:3], generator=torch.Generator().manual_seed(1)) < 0.7
    g = torch.where(strong, -30.0, -0.01).double()
    right = op(q, k, v, g=g)[0]
    for size in (32, 128):
        single, _ = op(q.float(), k.float(), v.float(), g=g.float(), backend="triton", chunk_size=size)
        assert relative_rms(single[:, -32:], right[:, -32:]) < 1e-6


# Relations


def single(name, T, **gates):
    q, k, v = (x.float() for x in tensors(T=T, d=16))
    return operator(name), {"q": q, "k": k, "v": v, **gates}


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_token_never_sees_later_ones(backend):
    op, x = single("forgetting_attention", 40, g=-torch.rand(2, 40, 2))
    changed = {n: torch.cat([t[:, :21], t[:, 21:] * 3], 1) for n, t in x.items()}
    before, after = (op(**y, backend=backend, chunk_size=16)[0] for y in (x, changed))
    assert torch.equal(before[:, :21], after[:, :21]) and not torch.equal(before[:, 21:], after[:, 21:])


def test_packed_sequences_are_sequences():
    op, x = single("forgetting_attention", 40, g=-torch.rand(2, 40, 2))
    x = {n: t[:1] for n, t in x.items()}
    ends = [0, 16, 17, 40]
    packed, _ = op(**x, cu_seqlens=torch.tensor(ends, dtype=torch.int32), backend="triton", chunk_size=16)
    apart = [op(**{n: t[:, a:b] for n, t in x.items()}, backend="triton", chunk_size=16)[0]
             for a, b in zip(ends, ends[1:])]  # fmt: skip
    assert torch.equal(packed, torch.cat(apart, 1))


def test_blocks_of_tokens_change_nothing_but_rounding():
    case = Case(B=1, T=40, H=1, HV=1, d_k=8, d_v=8)
    drawn, packing, cotangents = draw(operator("forgetting_attention").spec, case)
    made = [
        differentiate(
            operator("forgetting_attention").spec,
            lambda x, _, size=size: operator("forgetting_attention")(**x, output_final_state=True, backend="triton",
                                                                     chunk_size=size),
            {n: x.float() for n, x in drawn.items()}, packing, cotangents, None, "cpu",
        )
        for size in (16, 32)
    ]  # fmt: skip
    assert not compare(made[0], made[1], BOUNDS["triton", torch.float32]).failures


def test_a_decay_of_one_is_softmax_attention():
    op, x = single("forgetting_attention", 33)
    plain = operator("softmax_attention")(**x, backend="triton", chunk_size=16)[0]
    forgotten = op(**x, g=torch.zeros(2, 33, 2), backend="triton", chunk_size=16)[0]
    assert torch.equal(forgotten, plain)


def test_one_token_reads_its_own_value():
    for backend in ("torch", "triton"):
        op, x = single("softmax_attention", 1)
        leaves = {n: t.requires_grad_() for n, t in x.items()}
        o, final = op(**leaves, output_final_state=True, backend=backend)
        assert torch.equal(o, x["v"]) and final == ()
        d_q, d_k, d_v = torch.autograd.grad(o.sum(), list(leaves.values()))
        assert torch.equal(d_v, torch.ones_like(d_v)) and d_q.abs().max() < 1e-6 and d_k.abs().max() < 1e-6


def test_a_read_outs_backward_pass_keeps_what_was_answered_in_the_place_of_the_output():
    op = operator("windowed")
    x = {n: t.requires_grad_() for n, t in single("windowed", 20)[1].items()}
    x |= {"f": torch.rand(2, 20, 2), "z": torch.rand(2, 20, 2, 16), "sink": torch.zeros(2)}
    o, _ = op(**x, backend="triton", chunk_size=16)
    rows = [t for t in o.grad_fn.saved_tensors if t is not None and t.shape == o.shape]
    assert len(rows) == 5 and o.data_ptr() not in {t.data_ptr() for t in rows}  # q, k, v, z and the answers


def test_it_has_no_state():
    op, x = single("softmax_attention", 4)
    assert op.forms == ("chunk",) and op(**x)[1] is None
    with pytest.raises(ArgumentError, match="initial_state: .*keeps all pairs"):
        op(**x, initial_state=torch.zeros(2, 2, 16, 16))
    with pytest.raises(ArgumentError, match="form: got 'recurrent', expected one of auto, reference, chunk"):
        op(**x, form="recurrent")


# What is refused, and what a plan costs

REFUSED = {
    "similarity": (dict(similarity="dot(q, k) * sum(k)"), "memory.similarity", r"sum.k. has no derivation"),
    "loss": (dict(loss="huber(norm(p - v), 1)"), "loss.expr", "no closed form"),
    "dot": (dict(loss="-dot(p, v)"), "retention.expr", "nothing holds S"),
    "concave": (dict(loss="-norm2(p - v)"), "loss.expr", "not provably convex"),
    "weight": (dict(gates='[inputs]\nb = { per = "head", domain = "unit" }', weight="b"), "loss.weight", "logarithm"),
    "retention": (dict(retention="norm(S)"), "retention.expr", "not a number times norm2"),
    "ridge": (dict(gates='[parameters]\nlam = { per = "head", domain = "real" }', retention="lam * norm2(S)"),
              "retention.expr", "not provably positive"),
    "decay": (dict(gates='[inputs]\nlam = { per = "head", domain = "real" }', decay="lam"),
              "retention.decay", "logarithm"),
    "channels": (dict(gates='[inputs]\nu = { per = "value_channel", domain = "real" }', loss="norm2(p - u * v)"),
                 "inputs.u", "one a head so far"),
    "channels of both": (dict(gates='[inputs]\nu = { per = "key_channel", domain = "real" }\n'
                              '[features]\nq = "u * q"\nk = "u * k"'), "inputs.u", "of keys, in features.k, and of qu"),
    "channels of a key that asks": (dict(gates='[inputs]\nu = { per = "key_channel", domain = "real" }\n[features]\n'
                                         'k = "u * k"\n[read]\nexpr = "r + dot(q, k) * v"'), "inputs.u", "of keys, in"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_why_and_where(case):
    changes, key, message = REFUSED[case]
    with pytest.raises(SpecError, match=message) as caught:
        analyse(spec(**changes))
    assert caught.value.key == key and caught.value.expected


def test_products_of_pairs_grow_with_the_sequence_and_bytes_do_not():
    module = analyse(operator("softmax_attention").spec)
    sizes = dict(d_k=128, d_v=128, dtype_bytes=2)
    short, long = (budget(module, **sizes, length=n)["chunk"] for n in (1024, 65536))
    assert {p: b.bytes for p, b in short.items()} == {p: b.bytes for p, b in long.items()}
    # Twice as many products backwards as forwards, and those that are made again: one in the first kernel, two after.
    assert long["backward"].flops == pytest.approx(3.5 * long["forward"].flops, rel=1e-2)
    assert long["forward"].flops == pytest.approx(4 * 128 * 65536 / 2, rel=1e-2)


# Broken on purpose


BREAKS = {
    "the largest logit is not taken off again": (r"o \* _shrink\[:, None\]", "o"),
    "a query sees the next token": (r"t\[:, None\] >= s\[None, :\]", "t[:, None] + 1 >= s[None, :]"),
    "the mean is not taken off": (r"\(d_weights - delta\[:, None\]\)", "d_weights"),
    "sums are not carried on": (r"_sums \+= ", "_ = "),
}


@pytest.mark.parametrize("mutation", BREAKS)
def test_a_wrong_kernel_is_found(mutation, tmp_path):
    pattern, replacement = BREAKS[mutation]
    op, folder = operator("forgetting_attention"), tmp_path / "forgetting_attention"
    folder.mkdir()
    for path in Path(op.package.__file__).parent.glob("*.py"):
        text = path.read_text()
        if path.name == "kernels.py":
            text, count = re.subn(pattern, replacement, text)
            assert count
        (folder / path.name).write_text(text)
    broken = Operator(op.spec, import_package(folder, op.spec.name))
    case = Case(B=1, T=40, d_k=8, d_v=8, chunk_size=16)
    assert verify(broken, case, form="chunk", backend="triton", dtype=torch.float32).failures
