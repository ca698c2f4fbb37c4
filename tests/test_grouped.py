"""Heads of a call that share queries, keys or values in groups: kernel memories have them, states do not."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import ttrc
from kernel_memories import heads_first, spec
from ttrc import oracle
from ttrc.compiler import analyse
from ttrc.errors import ArgumentError
from ttrc.ir.plan import Segment, Space
from ttrc.language.load import load_spec
from ttrc.passes.sum_over_heads import sum_over_heads
from ttrc.runtime.load import import_package
from ttrc.runtime.operator import Operator
from ttrc.runtime.verify import Case, relative_rms, verify
from ttrc.sampling import as_arguments, random_inputs
from ttrc.tools.counter import count

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
UNSEEN = ROOT / "tests" / "unseen"
G = 'g = { per = "head", domain = "log_decay" }\n'
B = 'b = { per = "head", domain = "real" }\n'
Z = 'z = { per = "value_channel", domain = "real" }\n'
RIDGE = "exp(lam) * norm2(S) / 2"
LAM = '[parameters]\nlam = { per = "head", domain = "real", default = "head / heads" }\n'
KINDS = {
    "softmax_attention": None,
    "forgetting_attention": None,
    "local_linear_attention": None,
    "windowed": load_spec(UNSEEN / "windowed_attention.toml"),
    "sigmoid": load_spec(UNSEEN / "sigmoid_attention.toml"),
    "normed": load_spec(UNSEEN / "qk_normed_attention.toml"),
    "near": spec("near_grouped", similarity="-norm2(q - k) / 2", window=20),
    "mapped": spec("mapped_grouped", more='[features]\nk = "k / sqrt(norm2(k) + 0.01)"\n'),
    # What a gate of each head adds to values makes its gradient of the sum that theirs is.
    "shifted": spec("shifted_grouped", f"[inputs]\n{B}", loss="norm2(p - v - b)"),
    # A gate of each head multiplies values, and weighs the token beside its own pair.
    "gated": spec("gated_grouped", f"[inputs]\n{G}{B}{Z}{LAM}", loss="norm2(p - exp(b) * v)", weight="exp(g)",
                  retention=RIDGE, decay="exp(g)", more='[read]\nexpr = "sigmoid(z) * (r + dot(q, k) * v)"\n'),
    "line": spec("line_grouped", f"[inputs]\n{G}{LAM}", degree=1, retention="exp(lam) * (norm2(W) + norm2(S)) / 2",
                 decay="exp(g)", window=20),
}  # fmt: skip
LINES = ("local_linear_attention", "line")  # which search, in the interpreter for long
HEADS = ((8, 2, 2), (8, 2, 1), (4, 4, 2), (4, 1, 1), (6, 3, 2), (1, 4, 2))  # of queries, values and keys


@cache
def operator(kind):
    return ttrc.load(KINDS[kind] or kind)


def case(heads, **sizes):
    HQ, HV, H = heads
    return Case(**dict(B=1, T=33, d_k=4, d_v=3, chunk_size=16) | sizes, HQ=HQ, HV=HV, H=H)


def drawn(op, heads, T=20, dtype=torch.float32, width=8):
    HQ, HV, H = heads
    return random_inputs(op.spec, B=2, T=T, H=H, HV=HV, HQ=HQ, dk=width, dv=width, dtype=dtype)


def gradients(op, x, **call):
    """The output and the gradients of a weighted sum of it, in the inputs' order."""
    leaves = {name: t.clone().requires_grad_() for name, t in x.items()}
    o, _ = op(**as_arguments(op.spec, leaves), **call)
    weights = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(o.dtype)
    return o.detach(), *torch.autograd.grad((o * weights).sum(), list(leaves.values()))


def repeated(x, heads):
    most = max(heads)
    return {n: t.repeat_interleave(most // t.shape[2], 2) if n in "qkv" else t for n, t in x.items()}


# Against references


@pytest.mark.parametrize("heads", [(8, 2, 2), (4, 1, 1)])
def test_the_oracle_is_torchs_grouped_attention(heads):
    op = operator("softmax_attention")
    x = {n: t.requires_grad_() for n, t in drawn(op, heads, T=11, dtype=torch.float64).items()}
    made, _ = oracle.run(op.spec, **x, gates={})
    theirs = scaled_dot_product_attention(*heads_first(*x.values()), is_causal=True, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(made, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn(made.shape, dtype=torch.float64)
    for mine, other in zip(*(torch.autograd.grad((o * weights).sum(), list(x.values())) for o in (made, theirs))):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mathematics(kind, heads):
    for sizes in {}, dict(T=24, packed=(17, 1, 6), extreme="strong"):
        result = verify(operator(kind), case(heads, **sizes), form="chunk", backend="torch", dtype=torch.float64)
        assert not result.failures


@pytest.mark.parametrize("kind, heads", [(k, h) for k in KINDS for h in (HEADS[1:2] if k in LINES else HEADS[:4])])
def test_the_kernels(kind, heads):
    for sizes, dtype in (dict(T=24, packed=(17, 1, 6)), torch.float32), (dict(T=20), torch.bfloat16):
        assert not verify(operator(kind), case(heads, **sizes), form="chunk", backend="triton", dtype=dtype).failures


# Relations


@pytest.mark.parametrize("kind", KINDS)
def test_shared_heads_are_repeated_heads(kind):
    """To the bit forwards and of queries; sums of what heads share are taken in another order."""
    op, heads = operator(kind), (4, 2, 1)
    x = drawn(op, heads)
    shared = gradients(op, x, backend="triton", chunk_size=16)
    apart = gradients(op, repeated(x, heads), backend="triton", chunk_size=16)
    assert torch.equal(shared[0], apart[0]) and torch.equal(shared[1], apart[1])
    for name, mine, other in zip(x, shared[1:], apart[1:]):
        if name in "kv":
            other = other.unflatten(2, (mine.shape[2], -1)).sum(3)
        assert relative_rms(mine, other) < 1e-6, name


@pytest.mark.parametrize("kind", ["softmax_attention", "mapped", "normed"])
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_how_many_groups_are_summed_apart_changes_nothing_but_rounding(kind, groups, monkeypatch):
    op, heads = operator(kind), (8, 2, 2)
    x = drawn(op, heads)
    fewest = gradients(op, x, backend="triton", chunk_size=16)
    monkeypatch.setattr(
        op.package.launch, "processors", lambda device: groups
    )  # of 4 programs each, as there are 4 blocks
    q, k, v = (x[n] for n in "qkv")
    name = next(n for n in op.package.launch.CONFIGS if n.startswith("attend_keys"))
    assert op.package.launch.group_count(name, q, k, v, None, 16) == groups
    for mine, other in zip(fewest, gradients(op, x, backend="triton", chunk_size=16)):
        assert relative_rms(other, mine) < 1e-6


def test_groups_are_as_many_as_divide():
    """Six heads in two of keys and three of values: none but each by itself shares both."""
    module = operator("softmax_attention").package.launch
    x = {n: torch.zeros(1, 40, h, 8) for n, h in zip("qkv", (12, 2, 3))}
    assert module.group_count("attend_keys", **x, cu_seqlens=None, chunk=16) == 6
    assert module.rows_of(**x) == (1, 40, 12)


def test_what_was_tuned_for_a_head_each_is_not_taken_for_groups_of_them():
    module = operator("softmax_attention").package.launch
    x = {n: torch.zeros(1, 40, h, 8) for n, h in zip("qkv", (12, 2, 2))}
    found = [module.regime_of(**x, cu_seqlens=None, **g) for g in ({}, {"HG": 12}, {"HG": 4})]
    assert found == ["few", "few", "grouped"]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_an_op_passes_opcheck(backend):
    op = operator("forgetting_attention")
    x = {n: t.requires_grad_() for n, t in drawn(op, (4, 2, 1), T=20).items()}
    raw = op.package.op.OPS["chunk"]
    torch.library.opcheck(raw, (*x.values(), 1.0, None, 16, True, backend))
    o, *saved = raw(*(t.detach() for t in x.values()), 1.0, None, 16, True, backend)
    back = op.package.op.chunk_backward_op
    given = (*(t.detach() for t in x.values()), 1.0, o, *saved, torch.ones_like(o), None, 16, backend)
    torch.library.opcheck(back, given, test_utils=("test_schema", "test_faketensor"))


def test_it_compiles_without_a_break():
    op = operator("forgetting_attention")
    x = drawn(op, (4, 2, 1), T=20)
    compiled = torch.compile(lambda **x: op(**x, backend="torch")[0], fullgraph=True, backend="eager")
    assert torch.equal(compiled(**x), op(**x, backend="torch")[0])


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_an_output_that_nothing_asks_for_has_gradients_of_zero(backend):
    op = operator("softmax_attention")
    x = {n: t.requires_grad_() for n, t in drawn(op, (4, 2, 1)).items()}
    (o, normaliser) = op.package.op.OPS["chunk"](*x.values(), 1.0, None, 16, True, backend)
    grads = torch.autograd.grad(normaliser.sum(), list(x.values()))
    assert o.shape[2] > x["v"].shape[2] and all(g.shape == t.shape and not g.any() for g, t in zip(grads, x.values()))


def test_a_default_is_one_of_each_head_of_the_call():
    op, heads = operator("gated"), (4, 2, 1)
    x = drawn(op, heads, dtype=torch.float64)
    given = {n: t for n, t in x.items() if n != "lam"}
    lam = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    assert torch.equal(op(**given)[0], op(**given, lam=lam)[0])


# What it costs


def traffic(op, x, **call):
    with count() as tally:
        gradients(op, x, backend="triton", **call)
    return tally.kernels


def test_what_heads_share_is_summed_on_chip():
    """Cotangents of keys and values are written once a group, and keys and values read once."""
    op, heads = operator("softmax_attention"), (8, 2, 2)
    x, rows = drawn(op, heads, T=64, width=16, dtype=torch.bfloat16), 2 * 64 * 16 * 2  # bytes of all rows of a head
    once = traffic(op, x, chunk_size=16)["attend_keys"]
    apart = traffic(op, repeated(x, heads), chunk_size=16)["attend_keys"]
    assert once.store_bytes == 2 * 2 * rows and apart.store_bytes == 2 * 8 * rows
    assert once.programs * 4 == apart.programs and once.dot_flops == apart.dot_flops
    assert once.distinct_load_bytes == apart.distinct_load_bytes - 2 * 6 * rows


def test_equal_heads_are_a_group_each():
    op = operator("softmax_attention")
    x = drawn(op, (2, 2, 2))
    assert op.package.launch.group_count("attend_keys", *(x[n] for n in "qkv"), None, 16) == 2
    assert traffic(op, x, chunk_size=16)["attend_keys"].programs == 2 * 2 * 2


ON_CHIP = {
    "softmax_attention": "kv",
    "near": "kv",
    "mapped": "kv",
    "line": "kv",
    "gated": "",
    "normed": "v",
    "shifted": "k",
}


@pytest.mark.parametrize("kind", ON_CHIP)
def test_a_sum_goes_on_over_heads_where_its_total_is_all_that_is_asked(kind):
    """Not by a gate of each head that multiplies it, nor from a start that each head has, nor for two results of which
    one is of each head."""
    kernels = analyse(operator(kind).spec).forms["chunk"].plan.kernels
    stored = {b.name for k in kernels if k.grouped for b in k.segments[-1].stores}
    assert stored == {f"d_{name}" for name in ON_CHIP[kind]}


def not_grouped(kernel):
    first, own, within, rest, last = kernel.segments
    before = Segment(False, (*first.loads, *own.loads), (*first.statements, *own.statements), (), own.stores)
    stores = (*rest.stores, *(replace(b, space=Space.TOKEN) for b in last.stores))
    behind = Segment(False, (*rest.loads, *last.loads), (*rest.statements, *last.statements), (), stores)
    return replace(kernel, segments=(before, within, behind), grouped=frozenset())


CHANGES = {"none": lambda x: x, "a factor": lambda x: -3 * x, "a square": lambda x: x**2, "a number": lambda x: x + 1}


@pytest.mark.parametrize("change", CHANGES)
def test_totals_are_taken_linearly_or_not_at_all(change):
    kernels = analyse(operator("softmax_attention").spec).forms["chunk"].plan.kernels
    (kernel,) = (k for k in kernels if k.grouped)
    before, within, behind = not_grouped(kernel).segments
    (scaled,) = behind.statements
    scaled = replace(scaled, op=replace(scaled.op, expr=CHANGES[change](scaled.op.expr)))
    segments = (before, within, replace(behind, statements=(scaled,)))
    made = sum_over_heads(replace(kernel, segments=segments, grouped=frozenset()))
    assert {b.name for b in made.segments[-1].stores} == ({"d_k", "d_v"} if change in ("none", "a factor") else {"d_v"})
    assert (made == kernel) is (change == "none")


# What is refused


def test_heads_that_divide_nothing_are_refused():
    op = operator("forgetting_attention")
    x = drawn(op, (4, 2, 1), T=4)
    with pytest.raises(ArgumentError, match=r"^k: got 3 heads, expected a divisor of 4, the most that q, k or v has$"):
        op(**x | {"k": torch.zeros(2, 4, 3, 8)})
    with pytest.raises(ArgumentError, match=r"^q: got 4 heads, expected a divisor of 6, the most"):
        op(**x | {"v": torch.zeros(2, 4, 6, 8), "k": torch.zeros(2, 4, 2, 8)})
    with pytest.raises(ArgumentError, match=r"^k: got shape \[2, 4, 1, 7\], expected \[2, 4, H, 8\], batch, length"):
        op(**x | {"k": torch.zeros(2, 4, 1, 7)})


def test_gates_are_of_the_heads_of_the_call():
    op = operator("forgetting_attention")
    x = drawn(op, (4, 2, 1), T=4)
    with pytest.raises(ArgumentError, match=r"^g: got shape \[2, 4, 2\], expected \[B, T, HO\] = \[2, 4, 4\], HO "):
        op(**x | {"g": torch.zeros(2, 4, 2)})


REPEAT = "; each head has a state of its own here: repeat what several share, {}.repeat_interleave({}, dim=2)"
STATES = {
    (8, 2, 2): "k: got shape [2, 4, 2, 8], expected the shape of q, [2, 4, 8, 8]" + REPEAT.format("k", 4),
    (2, 4, 4): "k: got shape [2, 4, 4, 8], expected the shape of q, [2, 4, 2, 8]" + REPEAT.format("q", 2),
    (8, 2, 8): "v: got 2 heads, expected a multiple of the 8 heads of q and k" + REPEAT.format("v", 4),
    (3, 2, 2): "k: got shape [2, 4, 2, 8], expected the shape of q, [2, 4, 3, 8]",
}


@pytest.mark.parametrize("heads", STATES)
def test_a_memory_with_a_state_says_what_to_repeat(heads):
    op = ttrc.load("linear_attention")
    with pytest.raises(ArgumentError) as caught:
        op(**drawn(op, heads, T=4))
    assert str(caught.value) == STATES[heads]


def test_what_it_says_to_do_works():
    op = ttrc.load("linear_attention")
    x = drawn(op, (4, 2, 2), T=20)
    o, _ = op(**{n: t for n, t in repeated(x, (4, 2, 2)).items() if n in "qkv"})
    assert o.shape == (2, 20, 4, 8)


# Broken on purpose


BREAKS = {
    "keys of another group": ("kernels.py", r"i_h // \(HO // H\)", "i_h % H"),
    "values of another group": ("kernels.py", r"i_h // \(HO // HV\)", "i_h % HV"),
    "keys of another group where these are owned": ("kernels.py", r"i_g // \(HG // H\)", "i_g % H"),
    "queries of another head": ("kernels.py", r"i_q = i_h // \(HO // HQ\)", "i_q = i_g"),
    "one head of a group is summed": ("kernels.py", r"tl\.range\(0, HO // HG", "tl.range(0, 1"),
    "sums begin anew with each head": (
        "kernels.py", r"(for i_share in .*\n)", r"\1        d_v = tl.zeros([BT, BV], tl.float32)\n"),
    "groups are not summed behind": ("op.py", r"x = x\.unflatten\(2, \(like\.shape\[2\], -1\)\)\.sum\(3\)",
                                     "x = x[:, :, :: x.shape[2] // like.shape[2]]"),
}  # fmt: skip


@pytest.mark.parametrize("mutation", BREAKS)
def test_a_wrong_kernel_is_found(mutation, tmp_path):
    name, pattern, replacement = BREAKS[mutation]
    op = operator("forgetting_attention")
    folder = tmp_path / op.spec.name
    folder.mkdir()
    for path in Path(op.package.__file__).parent.glob("*.py"):
        text = path.read_text()
        if path.name == name:
            text, changes = re.subn(pattern, replacement, text)
            assert changes
        (folder / path.name).write_text(text)
    broken = Operator(op.spec, import_package(folder, op.spec.name))
    wrong = [verify(broken, case(heads), form="chunk", backend="triton", dtype=torch.float32).failures
             for heads in ((8, 4, 2), (8, 2, 4))]  # fmt: skip
    assert any(wrong)
