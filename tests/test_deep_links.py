"""Deep memories whose weights are a link of the state: exact, related to each other, and masked where kernels pad."""

import dataclasses
import functools
from itertools import product
from pathlib import Path

import pytest
import torch

import ttrc
from test_deep import assert_close, drawn, moving, network, run, text
from ttrc import compiler
from ttrc.compiler import analyse
from ttrc.ir.tile import HIDDEN, Hidden
from ttrc.language.load import parse_spec
from ttrc.language.state import initial_names
from ttrc.passes.builder import Builder
from ttrc.runtime.load import import_package
from ttrc.runtime.operator import Operator
from ttrc.runtime.verify import Case, fitting, verify
from ttrc.sampling import as_arguments

LINKS = {
    "lq_norm": '{ kind = "lq_norm", q = 4, epsilon = 0.01 }',
    "lq_norm of a fraction": '{ kind = "lq_norm", q = 1.5, epsilon = 0.01 }',
    "softmax over inputs": '{ kind = "softmax", axis = "key", scale = 2 }',
    "softmax over outputs": '{ kind = "softmax", axis = "value", scale = 0.5 }',
    "softmax over all": '{ kind = "softmax", axis = "all", scale = 8 }',
    "soft_threshold": '{ kind = "soft_threshold", threshold = "lam / 8" }',
    "soft_threshold of a number": '{ kind = "soft_threshold", threshold = "0.1" }',
    "sigmoid": '{ kind = "sigmoid" }',
    "exp": '{ kind = "exp" }',
    "own, over inputs": '{ kind = "expression", expr = "S / (norm(S) + lam + 0.1)", axis = "key" }',
    "own, over outputs": '{ kind = "expression", expr = "S / (sum(sqrt(square(S) + 0.1)) + 0.1)", axis = "value" }',
    "own, of all": '{ kind = "expression", expr = "S / sqrt(1 + norm2(S))" }',
    "own, by entry": '{ kind = "expression", expr = "S / (1 + abs(S)) + lam / 8" }',
}
WIDE = network(2, "gelu", residual=False, norm=False, expansion=3)  # 3 * d is no power of two
THREE = network(3, "tanh", residual=False, norm=False, expansion=3)
RULES = {
    "segments": {"memory": WIDE},
    "momentum in three layers": {"memory": THREE, "momentum": True},
    "a norm and a residual": {"memory": network(2, "silu", expansion=3)},
    "one layer": {"memory": network(1)},
    "by token": {"memory": network(2, "relu", norm=False, expansion=1), "update": 'at = "retained"'},
    "odd segments": {"memory": WIDE, "update": 'at = "segment_start"\nsegment = 5', "momentum": True},
}
FEW_LINKS = ("lq_norm", "softmax over inputs", "soft_threshold", "sigmoid")
every_link = pytest.mark.parametrize("link", LINKS)
few_links = pytest.mark.parametrize("link", FEW_LINKS)


def linked(rule: str, link: str, name: str = "deep"):
    written = text(**RULES[rule]).replace("\n\n[update]", f"\nlink = {LINKS[link]}\n\n[update]")
    if "lam" in LINKS[link]:
        parameter = '[parameters]\nlam = { per = "head", domain = "nonnegative", default = "0.2" }'
        written = written.replace("\n[memory]", f"\n{parameter}\n\n[memory]")
    return parse_spec(written.replace('name = "deep"', f'name = "{name}"'))


@functools.cache
def operator(rule: str, link: str):
    return ttrc.load(linked(rule, link))


def check(op, case: Case, form: str, backend: str = "torch", dtype=torch.float64) -> None:
    assert not verify(op, fitting(op.spec, case), form=form, backend=backend, dtype=dtype).failures


# Against the oracle


@pytest.mark.parametrize("rule, link", [*(("segments", x) for x in LINKS), *product(list(RULES)[1:], FEW_LINKS[:2])])
def test_every_link_is_exact(rule, link):
    op = operator(rule, link)
    assert ("chunk" in op.forms) == (rule not in ("by token", "odd segments"))
    for form in op.forms:
        check(op, Case(B=1, T=21, d_k=6, d_v=5), form)


@few_links
def test_links_are_exact_at_the_edges(link):
    op = operator("segments", link)
    for form in op.forms:
        check(op, Case(B=1, T=1, d_k=4, d_v=3), form)
        check(op, Case(B=1, T=21, packed=(17, 1, 3), H=1, HV=1, d_k=3, d_v=4, extreme="strong"), form)


@every_link
def test_every_link_is_exact_in_kernels_that_pad(link):
    """72 hidden channels in a block of 128, 24 keys and 20 values in blocks of 32."""
    op = operator("segments", link)
    case = Case(B=1, T=21, H=1, HV=1, d_k=24, d_v=20)
    check(op, case, "chunk", "triton", torch.float32)
    check(op, dataclasses.replace(case, T=3), "recurrent", "triton", torch.float32)


@pytest.mark.parametrize("link", FEW_LINKS[:2])
def test_links_between_hidden_layers_are_exact_in_the_kernels(link):
    op = operator("momentum in three layers", link)
    check(op, Case(B=1, T=21, packed=(17, 4), H=1, HV=1, d_k=6, d_v=5), "chunk", "triton", torch.float32)


# A threshold's gradient is a sum over all weights that nearly cancels: of rounded ones it is noise.
@pytest.mark.parametrize("link", ["lq_norm", "softmax over inputs", "soft_threshold of a number", "sigmoid"])
def test_links_are_exact_in_half_precision(link):
    check(operator("segments", link), Case(B=1, T=37, d_k=16, d_v=16), "chunk", "triton", torch.float16)


@pytest.mark.parametrize("name", ["moneta", "memora"])
def test_shipped_rules_agree(name):
    op = ttrc.load(name)
    for form in op.forms:
        check(op, Case(B=1, T=20, H=1, HV=2, d_k=8, d_v=8), form)


# How runs relate


@few_links
def test_segments_one_by_one_are_the_whole(link):
    op = operator("segments", link)
    x, names = drawn(op, d_v=5), initial_names(op.spec)
    o, final = op(**as_arguments(op.spec, x), output_final_state=True, form="chunk")
    pieces, state = [], tuple(x[n] for n in names)
    for a, b in ((0, 16), (16, 32), (32, 40)):
        piece = {n: t[:, a:b] if n in moving(op) else t for n, t in x.items()} | dict(zip(names, state))
        made, state = op(**as_arguments(op.spec, piece), output_final_state=True, form="chunk")
        pieces.append(made)
    assert_close((torch.cat(pieces, 1), *state), (o, *final))


@few_links
def test_packed_sequences_are_separate_ones(link):
    op = operator("segments", link)
    x, names = drawn(op, T=24, d_v=5), initial_names(op.spec)
    x |= {n: torch.cat([x[n], 0.9 * x[n]]) for n in names}
    o, final, _ = run(op, x, cu_seqlens=torch.tensor([0, 17, 24], dtype=torch.int32), form="chunk")
    parts = []
    for i, (a, b) in enumerate(((0, 17), (17, 24))):
        own = {n: t[:, a:b] if n in moving(op) else t[i : i + 1] if n in names else t for n, t in x.items()}
        parts.append(run(op, own, form="chunk"))
    assert_close([o, *final], [torch.cat([p[0] for p in parts], 1), *map(torch.cat, zip(*(p[1] for p in parts)))])


@every_link
def test_forms_agree(link):
    op = operator("segments", link)
    x = drawn(op, T=37, d_v=5)
    (o, final, grads), (p, last, others) = (run(op, x, form=form) for form in ("chunk", "recurrent"))
    assert_close((o, *final, *grads.values()), (p, *last, *others.values()))


@few_links
def test_one_plain_layer_is_a_linear_memory(link):
    plain = network(1, residual=False, norm=False)
    deep = linked("one layer", link).source.text.replace(network(1), plain)
    deep, linear = (ttrc.load(parse_spec(t)) for t in (deep, deep.replace(plain, 'kind = "linear"')))
    x = drawn(deep, d_v=5)
    renamed = {n.replace("initial_W1", "initial_state"): t for n, t in x.items()}
    for form in ("chunk", "recurrent"):
        found, wanted = run(deep, x, form=form), run(linear, renamed, form=form, scale=1.0)
        assert_close((found[0], *found[1], *found[2].values()), (wanted[0], *wanted[1], *wanted[2].values()), 1e-12)


def test_large_states_do_not_overflow_a_softmax():
    for link in ("softmax over inputs", "softmax over outputs", "softmax over all"):
        op = operator("segments", link)
        x = {n: t.float() for n, t in drawn(op, T=18, d_v=5).items()}
        x |= {n: (4000 * x[n]).requires_grad_() for n in initial_names(op.spec)}
        for form in op.forms:
            o, final = op(**as_arguments(op.spec, x), output_final_state=True, backend="triton", form=form)
            slopes = torch.autograd.grad(o.sum() + sum(y.sum() for y in final), [x[n] for n in initial_names(op.spec)])
            assert all(y.isfinite().all() for y in (o, *slopes))


def test_a_norm_of_order_two_is_no_link():
    plain = parse_spec(text(WIDE))
    spec = parse_spec(plain.source.text.replace("\n\n[update]", f"\nlink = {LINKS['lq_norm']}\n\n[update]"
                                                .replace("q = 4", "q = 2")))  # fmt: skip
    assert analyse(spec).recurrence == analyse(plain).recurrence


# Broken on purpose


def broken(tmp_path, rule: str, link: str) -> Operator:
    """An operator whose custom ops are its own."""
    spec = linked(rule, link, "broken_deep_link")
    files = compiler.generate(spec)
    files["op.py"] = files["op.py"].replace('"ttrc::"', f'"ttrc::{tmp_path.name.replace("-", "_")}_"')
    for file, made in files.items():
        Path(tmp_path / file).write_text(made)
    return Operator(spec, import_package(tmp_path, spec.name))


# Of what is not there: the largest entry and the sum of a slice; weights, on either side of a hidden layer.
@pytest.mark.parametrize("lost", ["state_among", "W_inside"])
def test_a_padding_of_hidden_channels_that_is_not_masked(tmp_path, monkeypatch, lost):
    real = Builder.mask

    def mask(self, name, arg, relation, fill, origin):
        return arg if name == lost and isinstance(relation, Hidden) else real(self, name, arg, relation, fill, origin)

    rule, link = "momentum in three layers", "softmax over inputs"
    case = Case(B=1, T=20, H=1, HV=1, d_k=6, d_v=5)
    check(operator(rule, link), case, "chunk", "triton", torch.float32)
    monkeypatch.setattr(Builder, "mask", mask)
    op = broken(tmp_path, rule, link)
    check(op, case, "chunk")  # what is not padded is as it was
    assert verify(op, case, form="chunk", backend="triton", dtype=torch.float32).failures


def test_every_hidden_axis_of_linked_weights_is_masked():
    """A norm sums over 0 where there is nothing; other links do not leave 0 at 0."""
    for form in analyse(linked("momentum in three layers", "sigmoid")).forms.values():
        masked = [
            (s.op.relation.axis, s.target.axes)
            for s in form.forward.statements
            if s.origin == "link" and isinstance(getattr(s.op, "relation", None), Hidden)
        ]
        made = [("k", "h1"), ("h1", "h2"), ("h2", "v")]
        assert {(a, axes) for axes in made for a in axes if a in HIDDEN} <= set(masked)


def test_a_chunk_that_reads_the_state_for_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("ttrc.passes.derive_deep.derive_link", lambda build, gates, link, state: state)
    op = broken(tmp_path, "segments", "lq_norm")
    assert verify(op, Case(B=1, T=20, d_k=4, d_v=3), form="chunk", backend="torch", dtype=torch.float64).failures
