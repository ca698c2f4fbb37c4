"""Windows of kernel memories: a query sees the last tokens alone, and what it does not see costs nothing."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import ttrc
from kernel_memories import heads_first, spec, tensors
from ttrc import oracle
from ttrc.compiler import analyse
from ttrc.errors import SpecError
from ttrc.language.load import parse_spec
from ttrc.passes.budget import budget
from ttrc.runtime.load import import_package
from ttrc.runtime.operator import Operator
from ttrc.runtime.verify import Case, relative_rms, verify
from ttrc.tools.counter import count

GATE = '[inputs]\ng = { per = "head", domain = "log_decay" }'
READ = '[read]\nexpr = "r * exp(g)"\n'
KINDS = {
    "mean": {},
    "faded": dict(gates=GATE, retention="norm2(S) / 2", decay="exp(g)"),
    "summed": dict(gates=GATE, loss="-dot(p, v)", retention="norm2(S) / 2", decay="exp(g)", more=READ),
    "mapped": dict(gates=GATE, retention="norm2(S)", more='[features]\nk = "k / sqrt(norm2(k) + 0.01) * exp(g)"\n'),
}


@cache
def operator(kind, window):
    return ttrc.load(spec(f"{kind}_{window or 'all'}", window=window, **KINDS[kind]))


def drawn(T, kind="mean"):
    q, k, v = (x.float() for x in tensors(T=T, d=16))
    return {"q": q, "k": k, "v": v} | ({} if kind == "mean" else {"g": -torch.rand(2, T, 2)})


def gradients(op, x, **call):
    """The output and the gradients of its sum, in the inputs' order."""
    leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
    o, _ = op(**leaves, chunk_size=16, **call)
    return o.detach(), *torch.autograd.grad(o.square().sum(), list(leaves.values()))


# Against references


@pytest.mark.parametrize("window", [1, 4, 11, 20])
def test_the_oracle_is_torchs_attention_under_a_mask(window):
    q, k, v = tensors()
    apart = torch.arange(11)[:, None] - torch.arange(11)
    seen = (apart >= 0) & (apart < window)
    theirs = scaled_dot_product_attention(*heads_first(q, k, v), attn_mask=seen).transpose(1, 2)
    made, _ = oracle.run(spec(window=window), q, k, v, {})
    torch.testing.assert_close(made, theirs, rtol=1e-12, atol=1e-12)


CASES = (Case(B=1, T=70, H=1, HV=1, d_k=4, d_v=3, chunk_size=16), Case(T=70, packed=(17, 1, 52), d_k=3, chunk_size=16))


LENGTHS = (1, 2, 15, 16, 17, 24, 32, 33, 80)


# A mean of one token without a ridge is refused, see below.
@pytest.mark.parametrize("kind, window", [(k, w) for k in KINDS for w in LENGTHS if (k, w) != ("mean", 1)])
def test_windows_of_any_length_are_exact(kind, window):
    op = operator(kind, window)
    for backend, dtype in ("torch", torch.float64), ("triton", torch.float32):
        for case in CASES:
            assert not verify(op, case, form="chunk", backend=backend, dtype=dtype).failures


# Relations


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_window_that_holds_all_is_none(kind, backend):
    """To the bit, but for kernels beside decays, whose sums are taken from the edge of a block first and so rounded
    otherwise, and for gradients of keys in a last block that is not full, which come in another order."""
    for T, window in (48, 48), (40, 48), (40, 1000), (40, 40):
        x = drawn(T, kind)
        o, d_q, *others = gradients(operator(kind, window), x, backend=backend)
        o_all, d_q_all, *others_all = gradients(operator(kind, None), x, backend=backend)
        if kind in ("mean", "mapped") or backend == "torch":
            assert torch.equal(o, o_all) and torch.equal(d_q, d_q_all)
        for mine, other in zip((o, d_q, *others), (o_all, d_q_all, *others_all)):
            exact = backend == "torch" or (kind in ("mean", "mapped") and window > 40)
            assert torch.equal(mine, other) if exact else relative_rms(mine, other) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_query_sees_neither_later_nor_older_tokens(kind, backend):
    """Of a window of 20 a change of tokens 20 and 21 is seen by queries 20 to 40, to the bit by no other."""
    op, x = operator(kind, 20), drawn(70, kind)
    changed = {n: torch.cat([t[:, :20], t[:, 20:22] * 3, t[:, 22:]], 1) if n != "g" else t for n, t in x.items()}
    before, after = (op(**y, backend=backend, chunk_size=16)[0] for y in (x, changed))
    differs = (before != after).flatten(2).any(2).any(0)
    assert differs.nonzero().flatten().tolist() == list(range(20, 41))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_key_has_no_gradient_of_queries_that_do_not_see_it(backend):
    op, x = operator("mean", 20), {n: t.requires_grad_() for n, t in drawn(70).items()}
    o, _ = op(**x, backend=backend, chunk_size=16)
    for d in torch.autograd.grad(o[:, 45:50].sum(), [x["k"], x["v"]]):
        touched = d.flatten(2).abs().amax(2).amax(0) > 0
        assert touched.nonzero().flatten().tolist() == list(range(26, 50))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_sequences(kind):
    op, x, ends = operator(kind, 20), {n: t[:1] for n, t in drawn(70, kind).items()}, [0, 16, 17, 70]
    packed = gradients(op, x, backend="triton", cu_seqlens=torch.tensor(ends, dtype=torch.int32))
    apart = [gradients(op, {n: t[:, a:b] for n, t in x.items()}, backend="triton") for a, b in zip(ends, ends[1:])]
    for whole, parts in zip(packed, zip(*apart)):
        assert torch.equal(whole, torch.cat(parts, 1))


# What it costs


def brute(window, length, tokens):
    """Blocks beside its own that hold a pair which a program's queries see, the mean of all programs."""
    blocks = range(-(-length // tokens))
    seen = [j for i in blocks for j in range(i) if i * tokens - (j * tokens + tokens - 1) < window]
    return len(seen) / len(blocks)


@pytest.mark.parametrize("window", [1, 2, 16, 17, 18, 33, 100, None])
def test_a_plan_knows_how_many_blocks_its_programs_visit(window):
    kernels = analyse(spec(window=window, retention="norm2(S)")).forms["chunk"].plan.kernels
    for length in 1, 16, 17, 64, 150:
        expected = brute(window or 1000, length, 16)
        assert all(k.visited(length, 16) == pytest.approx(expected) for k in kernels)


@pytest.mark.parametrize("window", [17, 24, 40, None])
def test_kernels_visit_no_other_blocks(window):
    """Products of d = 16 and blocks of 16 tokens are 2 * 16**3 FLOPs each: two forwards, three and four backwards."""
    op, T = operator("mean", window), 160
    with count() as tally:
        gradients(op, drawn(T), backend="triton")
    for name, products in (("attend", 2), ("attend_queries", 3), ("attend_keys", 4)):
        counted = tally.kernels[name if window is None else f"{name}_windowed"]
        programs = 4 * T // 16  # sequences times heads
        blocks = counted.dot_flops / (2 * 16**3 * products * programs)
        assert blocks == 1 + brute(window or T, T, 16)
        assert counted.programs == programs


def test_work_and_traffic_grow_with_the_window_and_not_with_the_sequence():
    def totals(T, window):
        with count() as tally:
            gradients(operator("mean", window), drawn(T), backend="triton")
        return tally.total.dot_flops / T, tally.total.load_bytes / T

    for short, long in zip(totals(160, 24), totals(320, 24)):
        assert long < 1.1 * short
    for short, long in zip(totals(160, None), totals(320, None)):
        assert long > 1.7 * short
    for narrow, wide in zip(totals(320, 24), totals(320, None)):
        assert narrow < 0.35 * wide


def test_the_budget_knows_the_window():
    flops = {}
    for window in None, 512:
        module = analyse(spec(window=window))
        for length in 4096, 65536:
            spent = budget(module, d_k=128, d_v=128, dtype_bytes=2, length=length)["chunk"]
            flops[window, length] = spent["forward"].flops + spent["backward"].flops
    assert flops[512, 65536] == pytest.approx(flops[512, 4096], rel=0.1)
    assert flops[512, 65536] < flops[None, 65536] / 50


# What is refused


@pytest.mark.parametrize(
    "table, message, expected",
    [
        ('kind = "linear"\nwindow = 8', 'takes no key "window"', "kind"),
        ('kind = "kernel"\ndegree = 0\nsimilarity = "dot(q, k)"\nwindow = 0', "0 is out of range", "how many tokens a"),
        ('kind = "kernel"\ndegree = 0\nsimilarity = "dot(q, k)"\nwindow = "8"', "wrong type", "a whole number"),
        ('kind = "kernel"\ndegree = 0\nsimilarity = "dot(q, k)"\nwindow = 1', "neither queries nor keys", "a ridge"),
    ],
)
def test_what_is_refused_says_why_and_where(table, message, expected):
    text = re.sub(r"kind = .*?(?=\[loss\])", table + "\n", spec().source.text, flags=re.S)
    with pytest.raises(SpecError, match=message) as caught:
        analyse(parse_spec(text))
    assert caught.value.key == "memory.window" and expected in caught.value.expected
    assert text.splitlines()[caught.value.line - 1].startswith("window")
    assert ('which kind = "kernel" keeps' in (caught.value.hint or "")) == ("linear" in table)


# Broken on purpose

BREAKS = {
    "a token too many": (r"t\[:, None\] - 24 <", "t[:, None] - 25 <"),
    "a token too few": (r"t\[:, None\] - 24 <", "t[:, None] - 23 <"),
    "a block too few for queries": (r"oldest = tl.maximum\(own \+ 1 - 24", "oldest = tl.maximum(own + 17 - 24"),
    "a block too few for keys": (r"\(24 \+ 2 \* BT - 2\) // BT", "(24 + BT - 2) // BT"),
    "a block at the edge taken for a whole one by queries": (r"\+ BT - 1 - 24", "- 1 - 24"),
    "a block at the edge taken for a whole one by keys": (r"24 // BT if 24 > BT else 1", "24 // BT + 1"),
    "blocks at the edge in the wrong order": (r"settled - i_turn", "settled - 1 - i_turn"),
    "blocks at the edge taken twice": (r"SETTLED - 1 \+ i_turn", "SETTLED + 0 * i_turn"),
}


@pytest.mark.parametrize("mutation", BREAKS)
def test_a_wrong_kernel_is_found(mutation, tmp_path):
    (pattern, replacement), op = BREAKS[mutation], operator("mean", 24)
    folder = tmp_path / op.spec.name
    folder.mkdir()
    for path in Path(op.package.__file__).parent.glob("*.py"):
        text = path.read_text()
        if path.name == "kernels.py":
            text, found = re.subn(pattern, replacement, text)
            assert found
        (folder / path.name).write_text(text)
    broken = Operator(op.spec, import_package(folder, op.spec.name))
    assert verify(broken, CASES[0], form="chunk", backend="triton", dtype=torch.float32).failures
