"""Deep memories whose segments are several chunks: they start from what a segment started with, whatever came since."""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

import ttrc
from test_deep import drawn, moving, network, text
from ttrc.compiler import analyse
from ttrc.ir.plan import Space
from ttrc.language.load import parse_spec
from ttrc.language.state import initial_names
from ttrc.passes.budget import held_bytes
from ttrc.runtime import verify as trust
from ttrc.runtime.verify import Case, Setting, compare, fitting
from ttrc.sampling import as_arguments
from ttrc.tools.classify import findings

LONG = 'at = "segment_start"\nsegment = 256'
SOFTMAX = '\nlink = { kind = "softmax", axis = "key", scale = 2 }\n\n[update]'
PLAIN = {"residual": False, "norm": False}


def rule(memory: str, link: bool = False, **options):
    written = text(memory, weight="beta / 64", update=LONG, **options)
    return parse_spec(written.replace("\n\n[update]", SOFTMAX) if link else written)


RULES = {
    "two layers": rule(network(2, "silu")),
    "plain": rule(network(2, "tanh", **PLAIN), loss="huber(norm(p - v), 0.5)"),
    "momentum": rule(network(2, "gelu", expansion=3), momentum=True),
    "one layer": rule(network(1), momentum=True),
    "one linear layer": rule(network(1, norm=False)),
    "three layers": rule(network(3, "silu")),
    "a link": rule(network(2, "silu", norm=False), link=True),
    "a link, momentum": rule(network(2, "gelu", **PLAIN), link=True, momentum=True),
    "a link of one layer": rule(network(1, norm=False), link=True),
}
# A segment that ends within the sequence, chunks of each length; sequences packed so that some end within one.
PACKED = Case(B=1, T=330, H=1, HV=1, d_k=6, d_v=5, chunk_size=32, packed=(290, 1, 39))
CASES = {
    "two layers": Case(B=1, T=270, H=1, HV=2, d_k=5, d_v=5, chunk_size=128),
    "plain": Case(B=2, T=256, H=1, HV=1, d_k=5, d_v=9, chunk_size=64),
    "momentum": PACKED,
    "one layer": PACKED,
    "one linear layer": Case(B=1, T=260, H=1, HV=1, d_k=4, d_v=4, chunk_size=16),
    "three layers": Case(B=1, T=270, H=1, HV=1, d_k=4, d_v=4, chunk_size=64),
    "a link": PACKED,
    "a link, momentum": Case(B=1, T=270, H=1, HV=1, d_k=5, d_v=3, chunk_size=64),
    "a link of one layer": Case(B=1, T=270, H=1, HV=1, d_k=4, d_v=4, chunk_size=128),
}


@functools.cache
def operator(name: str):
    return ttrc.load(RULES[name])


def wide(x):
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def settings(op, case: Case, dtype) -> tuple[Setting, Setting]:
    """A case in float64 and as it is rounded to a dtype, with what the token form makes of it, which is much quicker
    than the oracle, and whose program is another."""
    case = fitting(op.spec, case)
    given, cu_seqlens, cotangents = trust._given(op.spec, case, dtype)
    exact = Setting(case, {n: wide(x) for n, x in given.items()}, cu_seqlens, tuple(map(wide, cotangents)), {})
    exact = dataclasses.replace(exact, reference=trust.run(op, exact, "recurrent", "torch"))
    return exact, Setting(case, given, cu_seqlens, cotangents, exact.reference)


def failures(op, setting: Setting, backend: str, dtype, form: str = "chunk") -> tuple[str, ...]:
    return compare(trust.run(op, setting, form, backend), setting.reference, trust.BOUNDS[backend, dtype]).failures


@pytest.mark.parametrize("name", ["momentum", "a link, momentum"])
def test_the_oracle_agrees(name):
    """Over the start of a second segment."""
    op, case = operator(name), Case(B=1, T=259, H=1, HV=1, d_k=3, d_v=3, chunk_size=64)
    setting = trust.prepare(op.spec, fitting(op.spec, case), torch.float64, "cpu")
    for form in op.forms:
        assert not failures(op, setting, "torch", torch.float64, form)


@pytest.mark.parametrize("name", RULES)
def test_chunks_are_as_tokens_are(name):
    op = operator(name)
    assert op.forms == ("chunk", "recurrent")
    exact, rounded = settings(op, CASES[name], torch.float32)
    assert not failures(op, exact, "torch", torch.float64)
    assert not failures(op, rounded, "triton", torch.float32)


@pytest.mark.parametrize("name", ["long_titans", "a link"])
def test_half_precision(name):
    op = operator(name) if name in RULES else ttrc.load(Path(__file__).parent / f"unseen/{name}.toml")
    _, rounded = settings(op, Case(B=1, T=280, H=1, HV=1, d_k=32, d_v=32), torch.bfloat16)
    assert not failures(op, rounded, "triton", torch.bfloat16)


def test_pieces_of_a_sequence_are_whole_segments():
    op = operator("one linear layer")
    assert op.schedules == ("deep", "segments")
    _, rounded = settings(op, Case(B=1, T=2500, H=1, HV=1, d_k=4, d_v=4, chunk_size=128), torch.float32)
    cut = dataclasses.replace(rounded, case=dataclasses.replace(rounded.case, schedule="segments"))
    assert not failures(op, cut, "triton", torch.float32)


def test_what_a_segment_started_with_is_kept_once():
    """The scan backwards finds it among the states that chunks kept, and its cotangent waits in memory of its own."""
    plan = analyse(RULES["momentum"]).forms["chunk"].plan
    ahead, back = plan.kernels
    assert [b.tile.name for b in plan.saved] == ["W1", "W2", "M1", "M2", "norm_weight", "norm_bias"]
    assert {b.tile.name for b in back.loads if b.space is Space.START} == {"W1_start", "W2_start"}
    assert {t.name for t in ahead.waiting} >= {"W1_anchor", "W2_anchor"}
    assert {t.name for t in back.waiting} >= {"d_W1_anchor_next", "d_W2_anchor_next"}
    linked = analyse(RULES["a link"]).forms["chunk"].plan
    assert {"W1_anchor", "W1_moving"} < {b.tile.name for b in linked.saved} and len(linked.cuts) == 1


@pytest.mark.parametrize("name", ["plain", "one linear layer"])
def test_states_at_the_starts_of_segments_are_enough(name):
    op, plan = operator(name), analyse(RULES[name]).forms["chunk"].plan
    every, sparse = (held_bytes(plan, cut, d_k=64, d_v=64, dtype_bytes=2) for cut in plan.cuts)
    assert every == sparse * 256 / plan.chunk
    lengths = {"packed": (300, 5, 295)} if name == "plain" else {}
    _, rounded = settings(op, Case(B=1, T=600, H=1, HV=1, d_k=4, d_v=4, chunk_size=64, **lengths), torch.float32)
    size = held_bytes(plan, plan.cuts[1], d_k=4, d_v=4, dtype_bytes=4, length=600) + 4
    names = ("q", "k", "v", "g", "beta")
    found = []
    for most in (None, size):
        x = {n: t.clone().requires_grad_() for n, t in rounded.given.items()}
        o, _ = op(
            **trust.as_arguments(op.spec, x), output_final_state=True, cu_seqlens=rounded.cu_seqlens, form="chunk",
            chunk_size=64, backend="triton", keep_bytes=most,
        )  # fmt: skip
        found.append((o, *torch.autograd.grad(o.square().sum(), [x[n] for n in names])))
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("at, same", [(256, True), (128, False)])
def test_a_sequence_may_be_split_where_a_segment_begins(at, same):
    """Elsewhere the second part has a start of its own: the private state is not handed over."""
    op = operator("a link, momentum")
    x, names = drawn(op, T=280), initial_names(op.spec)
    whole = op(**as_arguments(op.spec, x), form="chunk", chunk_size=32)[0]
    state, parts = {n: x[n] for n in names}, []
    for part in (slice(0, at), slice(at, 280)):
        piece = {n: t[:, part] if n in moving(op) else t for n, t in x.items()} | state
        o, final = op(**as_arguments(op.spec, piece), output_final_state=True, form="chunk", chunk_size=32)
        parts, state = [*parts, o], dict(zip(names, final))
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-12 * whole.abs().max().item()) is same


def test_what_is_told():
    (told,) = [f for f in findings(analyse(RULES["momentum"])) if f.aspect == "chunk form"]
    assert told.verdict == "exact for every chunk size" and "second weights" in told.because
    odd = parse_spec(text(network(2), update=LONG.replace("256", "130")))
    (told,) = [f for f in findings(analyse(odd)) if f.aspect == "chunk form"]
    assert list(analyse(odd).forms) == ["recurrent"] and "a multiple of 128 tokens" in told.because


SAVED = (("torch", True, "all"), ("triton", True, "all"), ("triton", False, "all"), ("triton", True, "sparse"))


@pytest.mark.parametrize("name", ["one linear layer", "two layers", "a link"])
@pytest.mark.parametrize("backend, save, crossing", SAVED)
def test_ops_pass_opcheck(name, backend, save, crossing):
    """What they return is as large as their fake says, in either backend: PyTorch keeps all that it carries."""
    op = operator(name)
    x = trust.draw(op.spec, fitting(op.spec, Case(B=1, T=270, H=1, HV=1, d_k=4, d_v=4)))[0]
    x = {n: t.float() for n, t in x.items()}
    fixed = [x[n][None] for n in ("norm_weight", "norm_bias") if n in x]
    start = op.package.op.reference.join((*(x[n] for n in initial_names(op.spec)), *fixed))
    crossing = crossing if crossing in getattr(op.package.op, "EVERY", ()) else "all"
    given = (*(x[n] for n in ("q", "k", "v", "g", "beta")), 1.0, start, None, 32, True, save, backend, "deep", crossing)
    torch.library.opcheck(op.package.op.OPS["chunk"], given, test_utils="test_faketensor")
