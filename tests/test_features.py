"""Feature maps: a spec with them is the same spec without, fed with what the maps make of q and k."""

from pathlib import Path

import pytest
import torch

import ttrc
from ttrc.compiler import analyse
from ttrc.emit import emit
from ttrc.errors import SpecError
from ttrc.language.load import parse_spec
from ttrc.paths import specs_dir
from ttrc.runtime.verify import Case, fitting, verify
from ttrc.tools import account

UNSEEN = Path(__file__).parent / "unseen"
UNIT = ("q / sqrt(norm2(q) + 0.000001)", "k / sqrt(norm2(k) + 0.000001)")
ELU = ("where(q > 0, q + 1, exp(min(q, 0)))", "where(k > 0, k + 1, exp(min(k, 0))) / 4")
SOFTMAX = ("exp(q) / sum(exp(q))", "exp(k) / sum(exp(k))")  # padded channels would be summed
RMS = ("q / sqrt(norm2(q) / count(q) + 0.000001)", "k / sqrt(norm2(k) / count(k) + 0.000001)")
NO_FLOOR = ("q", "k / norm2(k)")  # past the end a key is 0
OF_TORCH = {
    UNIT: lambda x: x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt(),
    ELU: lambda x: torch.nn.functional.elu(x) + 1,
}
BACKENDS = [("torch", torch.float64), ("triton", torch.float32)]
CASE = Case(T=21, d_k=5, d_v=7, chunk_size=16)  # padded channels, and a ragged last chunk


def with_features(name, maps, more=""):
    text = (specs_dir() / f"{name}.toml").read_text()
    return parse_spec(text.replace("[memory]", f'{more}[features]\nq = "{maps[0]}"\nk = "{maps[1]}"\n\n[memory]', 1))


@pytest.mark.parametrize(
    "name, maps",
    [
        ("linear_attention", ELU),
        ("gated_deltanet", UNIT),
        ("gated_deltanet", ELU),  # a key past the end that is not 0 would be written where the state has grown
        ("linear_attention", SOFTMAX),
        ("gated_deltanet", NO_FLOOR),
        ("gla", UNIT),
        ("momentum_deltanet", UNIT),
        ("huber_delta", SOFTMAX),
        ("gated_deltanet", ("q - beta * dot(q, k) * k", UNIT[1])),  # of the key that comes, not the mapped one
        ("mesanet", ("q - 0.5 * k", UNIT[1])),
        ("rg_lru", ("q - fade * k", "k")),
        ("ttt_linear", ("q + k / 2", "k")),
        ("linear_attention", ("q", "k / (1 - norm2(k / 40))")),
        ("softmax_attention", RMS),  # a count of channels is a number of no token
        ("forgetting_attention", RMS),
    ],
)
@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_kernels_with_features_agree_with_the_oracle(name, maps, backend, dtype):
    op = ttrc.load(with_features(name, maps))
    for form in op.forms:
        assert not verify(op, fitting(op.spec, CASE), form=form, backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_nothing_is_written_past_the_end(backend, dtype):
    """This error is not 0 where there is no token, and the mapped key is not, either."""
    text = with_features("linear_attention", ELU).source.text.replace("-dot(p, v)", "sum(p) - dot(p, v)")
    op = ttrc.load(parse_spec(text))
    assert not verify(op, CASE, form="chunk", backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_a_gate_may_be_of_both_maps_and_of_the_rule(backend, dtype):
    maps = ("q * sigmoid(g)", "k / (1 - g)")
    for name in ("gated_deltanet", "forgetting_attention"):
        op = ttrc.load(with_features(name, maps))
        assert not verify(op, CASE, form="chunk", backend=backend, dtype=dtype).failures, name


@pytest.mark.parametrize("backend, dtype", BACKENDS)
@pytest.mark.parametrize("name", ["gated_deltanet", "softmax_attention", "forgetting_attention"])
@pytest.mark.parametrize("key", [UNIT[1], SOFTMAX[1], "k"])
def test_a_read_out_sees_the_mapped_key(name, key, backend, dtype):
    """And one gate, w, is of both maps and of the read-out."""
    gate = '[inputs.w]\nper = "head"\ndomain = "unit"\n'
    op = ttrc.load(
        with_features(name, ("w * q", f"{key} / (1 + w)"), f'{gate}[read]\nexpr = "r + w * dot(q, k) * v"\n')
    )
    assert not verify(op, CASE, form="chunk", backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("backend, dtype", BACKENDS)
@pytest.mark.parametrize("name", ["gated_deltanet", "softmax_attention", "forgetting_attention"])
def test_gains_of_key_channels_are_learned(name, backend, dtype):
    """A number a key channel, of a token (c) or of all of them (a, b): of either map, a of the read-out too."""
    gates = (f'[{n}]\nper = "key_channel"\ndomain = "real"\n' for n in ("parameters.a", "parameters.b", "inputs.c"))
    more = "".join(gates) + '[read]\nexpr = "r + sum(a * q) * v"\n'
    op = ttrc.load(with_features(name, (f"a * {UNIT[0]}", f"(b + c) * {UNIT[1]}"), more))
    assert not verify(op, CASE, form="chunk", backend=backend, dtype=dtype).failures


def test_a_map_is_looked_at_inside_the_domains_of_its_gates():
    assert ttrc.load(with_features("gated_deltanet", ("q", "k * sqrt(-g)"))).forms


def test_features_are_what_a_caller_would_do():
    mapped, plain = ttrc.load(with_features("gated_deltanet", UNIT)), ttrc.load(specs_dir() / "gated_deltanet.toml")
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 21, h, d, generator=draw, dtype=torch.float64) for h, d in ((1, 5), (1, 5), (2, 7)))
    gates = {"g": -torch.rand(1, 21, 2, generator=draw), "beta": torch.rand(1, 21, 2, generator=draw)}
    gates = {name: x.double() for name, x in gates.items()}
    made = {}
    for op, phi in (mapped, lambda x: x), (plain, OF_TORCH[UNIT]):
        x = [t.clone().requires_grad_() for t in (q, k, v)]
        o, _ = op(phi(x[0]), phi(x[1]), x[2], **gates, form="chunk", backend="torch")
        made[op] = o, *torch.autograd.grad(o.square().sum(), x)
    for ours, theirs in zip(made[mapped], made[plain]):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "k, says",
    [
        ("norm2(k)", "comes to a number"),
        ("k + q", '"q" has no meaning in features.k'),
        ("k * v", '"v" has no meaning in features.k'),
        ("log(abs(k))", "no finite value"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused_in_its_place(k, says):
    with pytest.raises(SpecError) as refused:
        ttrc.load(with_features("linear_attention", ("q", k)))
    assert says in str(refused.value) and refused.value.key == "features.k" and refused.value.span


def test_a_query_of_all_pairs_does_not_see_its_key():
    with pytest.raises(SpecError, match="of a kernel memory") as refused:
        ttrc.load(with_features("softmax_attention", ("q - k", "k")))
    assert refused.value.key == "features.q" and refused.value.span


SILU = ("q * sigmoid(q)", "k * sigmoid(k)")
RELU = ("max(q, 0)", "square(max(k, 0))")
# Bytes of a token and key channel that both maps move beside what the rule does, in half precision; and launches.
WITHIN, AHEAD, BOTH_WAYS = (0, 0), (12, 1), (20, 2)


@pytest.mark.parametrize(
    "name, maps, more",
    [
        ("linear_attention", RELU, WITHIN),
        ("linear_attention", ELU, WITHIN),
        ("linear_attention", SILU, AHEAD),
        ("linear_attention", UNIT, BOTH_WAYS),
        ("gated_deltanet", RELU, WITHIN),
        ("gated_deltanet", ELU, AHEAD),
        ("gated_deltanet", UNIT, BOTH_WAYS),
        ("huber_delta", SILU, AHEAD),
        ("gla", SILU, WITHIN),
        ("gla", UNIT, BOTH_WAYS),
    ],
)
def test_a_map_is_stored_where_that_is_less_time_than_to_work_it_out_again(name, maps, more):
    mapped, plain = (
        {c.direction: c.budget for c in account.costs(analyse(s)) if c.form == "chunk"}
        for s in (with_features(name, maps), with_features(name, ("q", "k")))
    )
    bytes_more = sum(mapped[p].bytes - plain[p].bytes for p in plain)
    assert (bytes_more, sum(mapped[p].launches - plain[p].launches for p in plain)) == (128 * more[0], more[1])


def test_kernels_of_the_memory_work_no_dear_map_out():
    kernels = analyse(with_features("gated_deltanet", UNIT)).forms["chunk"].plan.kernels
    working = {k.name for k in kernels if any(s.origin.startswith("features") for s in k.statements)}
    assert working == {"chunk_map", "chunk_map_reverse"}


ERASE = """[loss.erase]
weight = "beta"
key = "erase * k"
expr = "norm2(p) / 2"

[loss.store]
weight = "beta"
expr = "-dot(p, v)"
"""
SQUARED = '[loss]\nweight = "beta"\nexpr = "norm2(p - v) / 2"\n'


def test_keys_that_gates_make_are_stored_where_one_unknown_is_solved_for():
    def has_own_kernel(text):
        plan = analyse(parse_spec(text)).forms["chunk"].plan
        return "chunk_map" in {k.name for k in plan.kernels}

    plain = (specs_dir() / "gated_deltanet.toml").read_text()
    assert plain.count(SQUARED) == 1
    erased = plain.replace(SQUARED, ERASE).replace(
        "[inputs]\n", '[inputs]\nerase = { per = "key_channel", domain = "unit" }\n'
    )
    assert has_own_kernel(erased)
    assert not has_own_kernel(erased.replace("key_channel", "head"))
    assert not has_own_kernel((UNSEEN / "three_turns.toml").read_text())


def test_rows_that_no_product_takes_come_when_they_are_wanted():
    text = emit(analyse(with_features("gated_deltanet", SILU)))["kernels.py"]
    body = text[text.index("def chunk_gradients(") :].split("@triton.jit")[0].split("\n    else:\n")[-1]
    lines = [line.strip().split(" = ")[0] for line in body.split("\n")]
    assert (
        lines.index("mapped_k") < next(i for i, line in enumerate(lines) if line.startswith("for ")) < lines.index("k")
    )
