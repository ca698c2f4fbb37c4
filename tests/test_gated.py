"""Deep memories with activations of a spec's own and with gated hidden layers: exact, related, masked where padded."""

import dataclasses
import functools

import pytest
import torch

from test_deep import DECAYED, SQUARED, assert_close, drawn, moving, network, run
from test_deep import text as deep
from ttrc.compiler import analyse, generate
from ttrc.ir.tile import Hidden, operands
from ttrc.language.activations import ACTIVATIONS
from ttrc.language.load import parse_spec
from ttrc.language.state import axis_widths, formula, initial_names, state_parts
from ttrc.passes import derive_network
from ttrc.passes.builder import Builder
from ttrc.runtime.load import load
from ttrc.runtime.verify import Case, as_arguments, fitting, verify
from ttrc.symbolic import ZERO
from ttrc.tools.classify import findings, headline

SLOPE = '[parameters]\nslope = { per = "head", domain = "real", default = "1 + head / heads" }\n\n[memory]'
HILL = "1 / (1 + square(x - 1))"  # of what is not there it is 1/2


def plain(activation: str, layers=2, expansion=2) -> str:
    return network(layers, activation, residual=False, norm=False, expansion=expansion)


def gated(activation="silu", layers=2, expansion=2) -> str:
    return plain(activation, layers, expansion) + "\ngated = true"


def linked(text: str, link: str) -> str:
    return text.replace('"\n\n[update]', f'"\nlink = {link}\n\n[update]')


RULES = {
    "squared relu": deep(plain("max(x, 0) ** 2")),
    "a slope that is learned": deep(plain("x * sigmoid(slope * x)"), momentum=True).replace("[memory]", SLOPE),
    "none": deep(plain("x")),
    "a hill": deep(network(2, HILL), SQUARED, "beta / 4"),
    "a hill without a weight": deep(plain(HILL, expansion=3), "norm2(p - v) / 64 + 0 * beta", "1"),
    "three of a kind": deep(network(3, "where(x > 0, x, exp(min(x, 0)) - 1)", norm=False)),
    "by token, a hill": deep(plain(HILL), update='at = "retained"'),
    "gated": deep(gated(), "-dot(p, v)", "beta / 4"),
    "gated, a hill": deep(gated(HILL)),
    "gated, with a norm and a residual": deep(network(2, "gelu") + "\ngated = true"),
    "gated, with a momentum": deep(gated("gelu", expansion=3), "sum(huber(p - v, 0.5))", momentum=True),
    "two gated layers": deep(gated("tanh", layers=3), momentum=True),
    "gated, by token": deep(gated("max(x, 0) ** 2"), update='at = "previous"'),
    "gated, odd segments": deep(gated(), update='at = "segment_start"\nsegment = 5'),
    "gated, behind a softmax": linked(deep(gated(expansion=3)), '{ kind = "softmax", axis = "key", scale = 2 }'),
    "gated, behind a sigmoid": linked(deep(gated(HILL, expansion=3)), '{ kind = "sigmoid" }'),
}
SEGMENTS = [name for name in RULES if not {"by token", "odd segments"} & set(name.split(", "))]
every_rule = pytest.mark.parametrize("name", RULES)
some_rules = pytest.mark.parametrize("name", ["a hill without a weight", "gated", "two gated layers"])
in_kernels = pytest.mark.parametrize("name", [n for n in SEGMENTS if n not in ("none", "three of a kind")])


@functools.cache
def operator(name: str):
    return load(parse_spec(RULES[name]))


def check(op, case: Case, form: str, backend: str = "torch", dtype=torch.float64) -> None:
    assert not verify(op, fitting(op.spec, case), form=form, backend=backend, dtype=dtype).failures


# Against the oracle


@every_rule
def test_agrees_with_the_oracle(name):
    op = operator(name)
    assert ("chunk" in op.forms) == (name in SEGMENTS)
    for form in op.forms:
        check(op, Case(B=1, T=21, d_k=6, d_v=5), form)


@some_rules
def test_agrees_at_the_edges(name):
    op = operator(name)
    for form in op.forms:
        check(op, Case(B=1, T=1, d_k=4, d_v=3), form)
        check(op, Case(B=1, T=21, packed=(17, 1, 3), H=1, HV=2, d_k=3, d_v=7, extreme="strong"), form)


@in_kernels
def test_kernels_that_pad_agree(name):
    """Hidden channels are no multiple of a panel, and no segment but the first is full."""
    op = load(parse_spec(RULES[name].replace("expansion = 2", "expansion = 7")))
    case = Case(B=1, T=21, packed=(17, 4), H=1, HV=1, d_k=5, d_v=5)
    check(op, case, "chunk", "triton", torch.float32)
    check(op, dataclasses.replace(case, T=3, packed=()), "recurrent", "triton", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["squared relu", "a slope that is learned", "gated", "gated, with a momentum"])
def test_kernels_agree_in_half_precision(name, dtype):
    check(operator(name), Case(B=1, T=37, d_k=16, d_v=16), "chunk", "triton", dtype)


# How rules and runs relate


@pytest.mark.parametrize("word", ACTIVATIONS)
def test_a_word_is_its_expression(word):
    """To the letter of the generated code, but for what its comments and its name quote."""
    made = [generate(parse_spec(deep(plain(a)))) for a in (word, ACTIVATIONS[word])]
    codes = [[line for line in m["reference.py"].splitlines() if not line.startswith("#")] for m in made]
    assert codes[0] == codes[1]


def test_gates_without_an_activation_may_change_places():
    op = load(parse_spec(deep(gated("x"))))
    x = drawn(op, d_v=5)
    a, b = initial_names(op.spec)[:2]
    (o, final, grads), (p, last, others) = run(op, x), run(op, x | {a: x[b], b: x[a]})
    assert_close((o, *final, grads["k"], grads[a]), (p, last[1], last[0], last[2], others["k"], others[b]))


@some_rules
def test_segments_one_by_one_are_the_whole(name):
    op = operator(name)
    x, names = {n: t.requires_grad_() for n, t in drawn(op, d_v=5).items()}, initial_names(op.spec)
    whole, final = op(**as_arguments(op.spec, x), output_final_state=True, form="chunk")
    pieces, state = [], tuple(x[n] for n in names)
    for a, b in ((0, 16), (16, 32), (32, 40)):
        piece = {n: t[:, a:b] if n in moving(op) else t for n, t in x.items()} | dict(zip(names, state))
        made, state = op(**as_arguments(op.spec, piece), output_final_state=True, form="chunk")
        pieces.append(made)
    one, other = (whole, *final), (torch.cat(pieces, 1), *state)
    assert_close(other, one)
    gradients = [torch.autograd.grad(sum(y.square().sum() for y in made), list(x.values())) for made in (one, other)]
    assert_close(gradients[1], gradients[0])


@some_rules
def test_packed_sequences_are_separate_ones(name):
    op = operator(name)
    x, ends, names = drawn(op, d_v=5), (0, 17, 40), initial_names(op.spec)
    x |= {n: torch.cat([x[n], 0.9 * x[n]]) for n in names}
    o, final, grads = run(op, x, cu_seqlens=torch.tensor(ends, dtype=torch.int32), form="chunk")
    parts = []
    for i, (a, b) in enumerate(zip(ends, ends[1:])):
        own = {n: t[:, a:b] if n in moving(op) else t[i : i + 1] if n in names else t for n, t in x.items()}
        parts.append(run(op, own, form="chunk"))
    assert_close([o], [torch.cat([p[0] for p in parts], 1)])
    assert_close(final, [torch.cat(own) for own in zip(*(p[1] for p in parts))])
    for n in x:
        own = [p[2][n] for p in parts]
        one = torch.cat(own, 1) if n in moving(op) else torch.cat(own) if n in names else sum(own)
        assert_close([grads[n]], [one])


# What is stated, and what it costs


def test_states_of_gated_layers_have_names_and_shapes():
    spec = parse_spec(RULES["two gated layers"])
    parts, widths = state_parts(spec), axis_widths(spec.memory, 6, 5)
    assert [p.name for p in parts] == [f"{x}{i}" for x in "WM" for i in range(1, 6)]
    shapes = [tuple(widths[a] for a in p.axes) for p in parts]
    assert shapes == [(6, 12), (6, 12), (12, 12), (12, 12), (12, 5)] * 2
    op = operator("two gated layers")
    _, final = op(**as_arguments(spec, drawn(op, d_v=5)), output_final_state=True)
    assert [tuple(x.shape[2:]) for x in final] == shapes


@pytest.mark.parametrize(
    "memory, told",
    [
        (network(3, "silu", norm=True), "x + LN(silu(silu(x W1) W2) W3)"),
        (plain("max(x, 0) ** 2"), "act(x W1) W2, act(x) = max(x, 0) ** 2"),
        (gated("silu"), "h1 W3, h1 = silu(x W1) * (x W2)"),
        (
            gated("max(x, 0)", layers=3),
            "h2 W5, h1 = act(x W1) * (x W2), h2 = act(h1 W3) * (h1 W4), act(x) = max(x, 0)",
        ),
    ],
)
def test_a_network_is_told_as_one_reads_it(memory, told):
    spec = parse_spec(deep(memory))
    assert formula(spec.memory) == told
    assert f"# memory     f(x) = {told}" in generate(spec)["reference.py"]


def test_both_matrices_of_a_gate_are_walked_in_the_same_loops():
    for kernel in analyse(parse_spec(RULES["gated, with a momentum"])).forms["chunk"].plan.kernels:
        assert kernel.in_memory and kernel.axis == "h1"
        loops = [s for s in kernel.segments if s.panelled]
        assert len(loops) == (4 if kernel.reverse else 2)
        read = [{t.name for s in x.statements for t in operands(s.op)} for x in loops]
        assert any("W1" in names for names in read)
        assert all(("W1" in names) == ("W2" in names) for names in read)


def test_what_a_loss_without_curvature_reads_is_told():
    """Its error is free of p, and those of the layers in front of the last are not free of weights."""
    told = {f.aspect: f.verdict for f in findings(analyse(parse_spec(RULES["gated"])))}
    assert told["reads"] == "the state at the start of its segment"
    assert headline(analyse(parse_spec(RULES["gated"]))).startswith("gated 2-layer memory")


# Whether a mistake would be seen


def broken(tmp_path, monkeypatch, name: str):
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path))
    return load(parse_spec(RULES[name].replace('"a test"', '"a mistake"')))


def failures(op, backend="torch", dtype=torch.float64):
    case = Case(B=1, T=20, H=1, HV=1, d_k=6, d_v=6)
    return verify(op, fitting(op.spec, case), form="chunk", backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("lost", [0, 1])
def test_a_matrix_of_a_gate_that_does_not_learn(tmp_path, monkeypatch, lost):
    real = derive_network.pull_back

    def without(build, statements, result, cotangent, wanted, origin):
        found = real(build, statements, result, cotangent, wanted, origin)
        found[lost] = build.constant("forgotten", ZERO, found[lost].axes, origin)
        return found

    monkeypatch.setattr(derive_network, "pull_back", without)
    assert any(f.startswith("o ") for f in failures(broken(tmp_path, monkeypatch, "gated")))


def test_matrices_of_a_gate_that_changed_places(tmp_path, monkeypatch):
    real = derive_network.derive_network

    def swapped(build, recurrence, tiles, x, apply, origin):
        return real(build, recurrence, tiles, x, lambda i, y: apply((1, 0, 2)[i], y), origin)

    monkeypatch.setattr(derive_network, "derive_network", swapped)
    monkeypatch.setattr("ttrc.passes.derive_deep.derive_network", swapped)
    assert failures(broken(tmp_path, monkeypatch, "gated"))


@pytest.mark.parametrize("kept", ["channels", "tokens"])
def test_a_padding_that_an_activation_fills(tmp_path, monkeypatch, kept):
    """In kernels alone there is any; tokens past the end write where nothing else of what they write is 0."""
    real = Builder.mask

    def mask(self, name, arg, relation, fill, origin):
        lost = isinstance(relation, Hidden) if kept == "channels" else name == "hidden_valid"
        return arg if lost else real(self, name, arg, relation, fill, origin)

    name = "a hill without a weight"
    assert not failures(operator(name), "triton", torch.float32)
    monkeypatch.setattr(Builder, "mask", mask)
    op = broken(tmp_path, monkeypatch, name)
    assert failures(op, "triton", torch.float32)
    assert DECAYED in RULES[name] and not (kept == "channels" and failures(op))
