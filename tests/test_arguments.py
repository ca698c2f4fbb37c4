"""A wrong argument is named, with what came and what was expected, before any kernel sees it."""

import pytest
import torch
from torch.autograd import forward_ad

import ttrc
from ttrc.errors import ArgumentError
from ttrc.runtime.verify import relative_rms
from ttrc.sampling import random_inputs

B, T, H, HV, K, V = 1, 20, 2, 4, 6, 5


@pytest.fixture(scope="module")
def op():
    return ttrc.load("gated_deltanet")


@pytest.fixture
def x(op):
    drawn = random_inputs(op.spec, B=B, T=T, H=H, HV=HV, dk=K, dv=V)
    return {n: t for n, t in drawn.items()}


def ends(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


# what is changed; the argument that is named; what came; what was expected
WRONG = [
    # q, k and v
    ({"q": None}, "q", "NoneType", "a tensor"),
    ({"q": [1.0]}, "q", "a list", "a tensor"),
    ({"q": zeros(T, H, K)}, "q", "shape [20, 2, 6]", "four dimensions, [B, T, heads, d]"),
    ({"v": zeros(B, T, HV, V, 1)}, "v", "shape [1, 20, 4, 5, 1]", "four dimensions"),
    ({"q": zeros(B, T, H, K, dtype=torch.int64)}, "q", "torch.int64", "float16, bfloat16, float32 or float64"),
    ({"q": zeros(B, T, H, K, dtype=torch.complex64)}, "q", "torch.complex64", "float32"),
    ({"k": zeros(B, T, H, K, dtype=torch.float16)}, "k", "torch.float16", "the dtype of q, torch.float32"),
    ({"v": zeros(B, T, HV, V, dtype=torch.float64)}, "v", "torch.float64", "the dtype of q"),
    ({"k": zeros(B, T, H, K, device="meta")}, "k", "device meta", "cpu"),
    ({"v": zeros(B, T, HV, V, device="meta")}, "v", "device meta", "cpu"),
    ({"k": zeros(B, T + 1, H, K)}, "k", "shape [1, 21, 2, 6]", "[1, 20, 2, 6]"),
    ({"k": zeros(B, T, H, K + 1)}, "k", "shape [1, 20, 2, 7]", "[1, 20, 2, 6]"),
    ({"k": zeros(B, T, 1, K)}, "k", "shape [1, 20, 1, 6]", "[1, 20, 2, 6]"),
    ({"v": zeros(B + 1, T, HV, V)}, "v", "shape [2, 20, 4, 5]", "[1, 20, HV, d_v]"),
    ({"v": zeros(B, T - 1, HV, V)}, "v", "shape [1, 19, 4, 5]", "[1, 20, HV, d_v]"),
    ({"v": zeros(B, T, 3, V)}, "v", "3 heads", "a multiple of the 2 heads"),
    ({"v": zeros(B, T, 1, V)}, "v", "1 heads", "a multiple of the 2 heads"),
    ({"q": zeros(B, T, H, 0), "k": zeros(B, T, H, 0)}, "q", "[1, 20, 2, 0]", "no empty dimension"),
    ({"v": zeros(B, T, 0, V)}, "v", "[1, 20, 0, 5]", "no empty dimension"),
    ({"q": zeros(B, 0, H, K)}, "q", "[1, 0, 2, 6]", "no empty dimension"),
    ({"q": zeros(B, T, H, 257), "k": zeros(B, T, H, 257)}, "q", "257", "at most 256"),
    ({"v": zeros(B, T, HV, 300)}, "v", "300", "at most 256"),
    ({"q": zeros(B, T, H, K).to_sparse()}, "q", "sparse", "dense"),
    # gates
    ({"beta": None}, "beta", "NoneType", "a tensor"),
    ({"beta": 0.5}, "beta", "a float", "a tensor"),
    ({"beta": ...}, "beta", "nothing", "[B, T, HV] = [1, 20, 4], unit"),
    ({"beta": ..., "bta": zeros(B, T, HV)}, "bta", "does not declare", "did you mean 'beta'?"),
    ({"gamma": zeros(B, T, HV)}, "gamma", "does not declare", "one of g, beta"),
    ({"head_first": False}, "head_first", "does not declare", "one of g, beta"),
    ({"chunksize": 64}, "chunksize", "does not declare", "one of g, beta"),
    ({"g": zeros(B, T, H)}, "g", "shape [1, 20, 2]", "[B, T, HV] = [1, 20, 4]"),
    ({"g": zeros(B, T, HV, 1)}, "g", "shape [1, 20, 4, 1]", "[1, 20, 4]"),
    ({"g": zeros(HV)}, "g", "shape [4]", "[1, 20, 4]"),
    ({"g": zeros(B, T, HV, dtype=torch.int32)}, "g", "torch.int32", "a floating dtype"),
    ({"beta": zeros(B, T, HV, dtype=torch.bool)}, "beta", "torch.bool", "a floating dtype"),
    ({"g": zeros(B, T, HV, device="meta")}, "g", "device meta", "cpu"),
    ({"g": zeros(B, T, HV) + 0.25}, "g", "0.25", "values <= 0; pass its logarithm"),
    ({"g": zeros(B, T, HV) + float("nan")}, "g", "nan", "values <= 0"),
    ({"g": zeros(B, T, HV) + float("inf")}, "g", "inf", "values <= 0"),
    ({"beta": zeros(B, T, HV) - 0.125}, "beta", "-0.125", "values between 0 and 1"),
    ({"beta": zeros(B, T, HV) + 1.5}, "beta", "1.5", "values between 0 and 1"),
    ({"beta": zeros(B, T, HV) + float("nan")}, "beta", "nan", "values between 0 and 1"),
    # states and packing
    ({"initial_state": 0}, "initial_state", "a int", "a tensor"),
    ({"initial_state": zeros(B, HV, V, K)}, "initial_state", "[1, 4, 5, 6]", "[1, 4, 6, 5]"),
    ({"initial_state": zeros(B, H, K, V)}, "initial_state", "[1, 2, 6, 5]", "[1, 4, 6, 5]"),
    ({"initial_state": zeros(2, HV, K, V)}, "initial_state", "[2, 4, 6, 5]", "[1, 4, 6, 5]"),
    ({"initial_state": zeros(B, HV, K, V, dtype=torch.float16)}, "initial_state", "torch.float16", "torch.float32"),
    ({"initial_state": zeros(B, HV, K, V, dtype=torch.float64)}, "initial_state", "torch.float64", "torch.float32"),
    ({"initial_state": zeros(B, HV, K, V, device="meta")}, "initial_state", "device meta", "cpu"),
    ({"cu_seqlens": ends(0, 7, T)}, "initial_state", "[1, 4, 6, 5]", "[2, 4, 6, 5]"),
    ({"cu_seqlens": [0, T]}, "cu_seqlens", "a list", "an integer tensor [N + 1]"),
    ({"cu_seqlens": ends(0.0, 20.0, dtype=torch.float32)}, "cu_seqlens", "torch.float32", "int32 or int64"),
    ({"cu_seqlens": ends(0, T, dtype=torch.int16)}, "cu_seqlens", "torch.int16", "int32 or int64"),
    ({"cu_seqlens": ends(0, T)[None]}, "cu_seqlens", "shape [1, 2]", "[N + 1]"),
    ({"cu_seqlens": ends(0)}, "cu_seqlens", "shape [1]", "[N + 1]"),
    ({"cu_seqlens": ends()}, "cu_seqlens", "shape [0]", "[N + 1]"),
    ({"cu_seqlens": ends(1, T)}, "cu_seqlens", "1 .. 20", "0 first and the length 20 last"),
    ({"cu_seqlens": ends(0, 19)}, "cu_seqlens", "0 .. 19", "the length 20 last"),
    ({"cu_seqlens": ends(0, 21)}, "cu_seqlens", "0 .. 21", "the length 20 last"),
    ({"cu_seqlens": ends(0, 9, 9, T)}, "cu_seqlens", "[0, 9, 9, 20]", "no empty sequence"),
    ({"cu_seqlens": ends(0, 9, 3, T)}, "cu_seqlens", "[0, 9, 3, 20]", "increasing"),
    ({"cu_seqlens": ends(0, -4, T)}, "cu_seqlens", "[0, -4, 20]", "increasing"),
    ({"cu_seqlens": torch.zeros(2, dtype=torch.int32, device="meta")}, "cu_seqlens", "device meta", "cpu"),
    # options
    ({"form": "chunked"}, "form", "'chunked'", "auto, reference, chunk, recurrent"),
    ({"form": None}, "form", "None", "one of auto"),
    ({"chunk_size": 8}, "chunk_size", "8", "16, 32, 64 or 128"),
    ({"chunk_size": 0}, "chunk_size", "0", "16, 32, 64 or 128"),
    ({"chunk_size": 48}, "chunk_size", "48", "16, 32, 64 or 128"),
    ({"chunk_size": 64.0}, "chunk_size", "64.0", "16, 32, 64 or 128"),
    ({"chunk_size": "64"}, "chunk_size", "'64'", "16, 32, 64 or 128"),
    ({"backend": "cuda"}, "backend", "'cuda'", "auto, torch or triton"),
    ({"scale": "wide"}, "scale", "wide", "a number"),
    ({"scale": [1.0]}, "scale", "list", "a number"),
    ({"scale": torch.ones((), requires_grad=True)}, "scale", "tensor", "a number"),
]  # fmt: skip


def test_a_tangent_is_refused_and_never_lost(op, x):
    state = zeros(B, HV, K, V)
    with forward_ad.dual_level():
        for name, at_rest in (("v", x["v"]), ("g", x["g"]), ("initial_state", state)):
            moving = {name: forward_ad.make_dual(at_rest, torch.ones_like(at_rest))}
            with pytest.raises(ArgumentError, match=f"^{name}: got a tangent .* reverse mode"):
                op(**x | moving)
    with pytest.raises(ArgumentError, match="^v: got a tangent"):
        torch.func.jvp(lambda v: op(**x | {"v": v})[0], (x["v"],), (x["v"],))


@pytest.mark.parametrize("change, name, came, expected", WRONG, ids=lambda p: p if isinstance(p, str) else "")
def test_a_wrong_argument_is_named(op, x, change, name, came, expected):
    given = {n: t for n, t in {**x, **change}.items() if t is not ...}
    with pytest.raises(ArgumentError) as caught:
        op(**given)
    message = str(caught.value)
    assert message.startswith(f"{name}: got "), message
    assert came.lower() in message.lower() and expected in message, message
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)


def test_packing_is_one_batch(op):
    x = random_inputs(op.spec, B=2, T=T, H=H, HV=HV, dk=K, dv=V)
    with pytest.raises(ArgumentError, match=r"^q: got batch 2, expected batch 1 with cu_seqlens"):
        op(**x, cu_seqlens=ends(0, T))


def test_a_parameter_has_one_number_a_head():
    op = ttrc.load("mamba2")
    x = random_inputs(op.spec, B=B, T=T, H=H, HV=HV, dk=K, dv=V)
    with pytest.raises(ArgumentError, match=r"^A: got shape \[1, 20, 4\], expected \[HV\] = \[4\]"):
        op(**x | {"A": -torch.ones(B, T, HV)})
    with pytest.raises(ArgumentError, match="^A: got the value 0, expected values < 0"):
        op(**x | {"A": torch.zeros(HV)})
    with pytest.raises(ArgumentError, match="^dt: got the value 0, expected values > 0"):
        op(**x | {"dt": torch.zeros(B, T, HV)})
    with pytest.raises(ArgumentError, match="^A: got nothing, expected a tensor"):
        op(**{n: t for n, t in x.items() if n != "A"})


def test_a_rule_without_gates_says_so():
    op = ttrc.load("linear_attention")
    x = random_inputs(op.spec, B=B, T=T, H=H, HV=HV, dk=K, dv=V)
    with pytest.raises(ArgumentError, match="^g: got .* expected one of no gates at all"):
        op(**x, g=torch.zeros(B, T, HV))


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_kernels_have_no_float64(op, form):
    x = random_inputs(op.spec, B=B, T=T, H=H, HV=HV, dk=K, dv=V, dtype=torch.float64)
    x["initial_state"] = x["initial_state"].double()
    with pytest.raises(ArgumentError, match="float64"):
        op(**x, backend="triton", form=form)


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_bfloat16_runs_in_the_interpreter_where_it_is_asked_for(op, form):
    """And by plain PyTorch otherwise."""
    x = random_inputs(op.spec, B=B, T=T, H=H, HV=HV, dk=K, dv=V)
    x |= {n: x[n].bfloat16() for n in ("q", "k", "v")}
    plain = op(**x, form=form, backend="torch")[0]
    assert torch.equal(op(**x, form=form)[0], plain)
    assert relative_rms(op(**x, form=form, backend="triton")[0], plain) < 8e-3


def test_kernels_need_a_gpu_or_the_interpreter(op, x, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ArgumentError, match="^backend: got 'triton'"):
        op(**x, backend="triton")
    op(**x, backend="auto")


def test_what_is_right_passes(op, x):
    for options in ({}, {"scale": 1}, {"chunk_size": 16}, {"form": "reference"}, {"cu_seqlens": ends(0, T)}):
        o, final = op(**x, **options)
        assert o.shape == (B, T, HV, V) and final is None
    edge = x | {"g": torch.full((B, T, HV), float("-inf")), "beta": torch.ones(B, T, HV)}
    assert op(**edge)[0].isfinite().all()


def test_shapes_can_be_asked_for_on_meta(op, x):
    o, final = op(**{n: t.to("meta") for n, t in x.items()}, output_final_state=True)
    assert o.shape == (B, T, HV, V) and final.shape == (B, HV, K, V)
    with pytest.raises(ArgumentError, match="^k: got shape"):
        op(**{n: t.to("meta") for n, t in x.items()} | {"k": zeros(B, T, H, 1, device="meta")})
