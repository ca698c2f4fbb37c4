"""Gates with a number for each key channel, value channel or entry of the state, wherever a spec has room for them."""

import functools

import pytest
import torch

import ttrc
from ttrc.compiler import analyse
from ttrc.errors import ArgumentError
from ttrc.ir.recurrence import Affine, Nonlinear
from ttrc.ir.tile import Solve, Substitute, operands
from ttrc.language.load import parse_spec
from ttrc.runtime.verify import Case, as_arguments, fitting, relative_rms, verify
from ttrc.sampling import random_inputs
from ttrc.tools import classify

SPEC = """
schema = 1
name = "{name}"
reference = "a test"

[inputs]
{inputs}

[parameters]
{parameters}

[memory]
{memory}

[loss]
expr = "{loss}"

[retention]
expr = "{retention}"
{link}

[update]
{update}
"""
SQUARE, RATED, ROBUST = "norm2(p - v) / 2", "sum(w * square(p - v)) / 2", "sum(huber(p - v, delta))"
PLAIN, DECAYED = "norm2(S - S_prev) / 2", "norm2(S - exp(g) * S_prev) / 2"
CURVED, CURVED_TWICE = "sum(c * square(S - S_prev)) / 2", "sum(c * square(S - S_prev) * d) / 2"
PREVIOUS, RETAINED, PROXIMAL = (
    'rule = "gradient"\nat = "previous"',
    'rule = "gradient"\nat = "retained"',
    'rule = "proximal"',
)
SEGMENT = 'rule = "gradient"\nat = "segment_start"\nsegment = 16'
LINEAR = 'kind = "linear"'
MLP = 'kind = "mlp"\nlayers = 2\nexpansion = 2\nactivation = "gelu"\nresidual = false\nnorm = false'
PER = {"head": "head", "key": "key_channel", "value": "value_channel", "element": "element"}


def table(gates):
    rows = ((name, *kind.split()) for name, kind in gates.items())
    return "\n".join(f'{name} = {{ per = "{PER[per]}", domain = "{domain}" }}' for name, per, domain in rows)


def text_of(loss, retention, update, link="", memory=LINEAR, parameters=None, **inputs):
    given = dict(loss=loss, retention=retention, update=update, link=link, memory=memory)
    return SPEC.format(name="of_a_test", inputs=table(inputs), parameters=table(parameters or {}), **given)


# What may differ by channel, and whether a chunk form follows.
CHUNKED = {
    "rate by value": text_of(RATED, PLAIN, PREVIOUS, w="value unit"),
    "fixed rate by value": text_of(RATED, DECAYED, RETAINED, g="head log_decay", parameters={"w": "value unit"}),
    "hebbian rate": text_of("-sum(w * p * v)", DECAYED, RETAINED, g="head log_decay", w="value real"),
    "threshold": text_of(ROBUST, DECAYED, RETAINED, g="head log_decay", parameters={"delta": "value positive"}),
    "norm of rated": text_of("sqrt(1 + sum(w * square(p - v)))", PLAIN, PREVIOUS, w="value unit"),
    "sum over keys": text_of(f"{SQUARE} / (1 + sum(square(k) / c))", PLAIN, PREVIOUS, c="key positive"),
    "sum over values": text_of(f"{SQUARE} / (1 + sum(square(v) / c))", PLAIN, PREVIOUS, c="value positive"),
    "curvature by key": text_of(SQUARE, CURVED, PREVIOUS, c="key positive"),
    "curvature by value": text_of(SQUARE, CURVED, PREVIOUS, c="value positive"),
    "curvature by key and value": text_of(SQUARE, CURVED_TWICE, PREVIOUS, c="key positive", d="value positive"),
    "hebbian curvature by key": text_of("-dot(p, v)", CURVED, PREVIOUS, parameters={"c": "key positive"}),
    "proximal rate": text_of(RATED, DECAYED, PROXIMAL, w="value unit", g="head log_decay"),
    "proximal by key": text_of(SQUARE, CURVED, PROXIMAL, c="key positive"),
    "proximal by key and value": text_of(ROBUST, CURVED_TWICE, PROXIMAL, c="key positive", d="value positive",
                                         parameters={"delta": "value positive"}),
    "root by key": text_of("sum(log_cosh(p - v))", CURVED, PROXIMAL, c="key positive"),
    "momentum": text_of(RATED, CURVED, f'{PREVIOUS}\nmomentum = "exp(m)"', w="value unit", c="key positive",
                        m="head log_decay"),
    "segment": text_of(RATED, CURVED, SEGMENT, w="value unit", c="key positive"),
    "decay by key": text_of(SQUARE, DECAYED, PREVIOUS, g="key log_decay"),
    "proximal decay": text_of(RATED, DECAYED, PROXIMAL, w="value unit", g="key log_decay"),
    "segment and decay": text_of(SQUARE, DECAYED, SEGMENT, g="key log_decay"),
    "decay by value": text_of(SQUARE, DECAYED, RETAINED, g="value log_decay"),
    "proximal decay by value": text_of(SQUARE, DECAYED, PROXIMAL, g="value log_decay"),
    "decay by entry": text_of("-dot(p, v)", "norm2(S - a * S_prev) / 2", PREVIOUS, a="element decay"),
    "ridge by key": text_of(SQUARE, f"{DECAYED} + sum(lam * square(S)) / 2", RETAINED, g="head log_decay",
                            lam="key nonnegative"),
    "deep segment": text_of(RATED, DECAYED, SEGMENT, memory=MLP, w="value unit", g="head log_decay"),
}  # fmt: skip
BY_TOKEN = {
    "decay by value, undecayed": text_of(SQUARE, DECAYED, PREVIOUS, g="value log_decay"),
    "decay by value, robust": text_of("sum(log_cosh(p - v))", DECAYED, RETAINED, g="value log_decay"),
    "decay by value, momentum": text_of(SQUARE, DECAYED, f'{RETAINED}\nmomentum = "m"', g="value log_decay",
                                        m="head decay"),
    "curvature by entry": text_of(SQUARE, CURVED, PREVIOUS, c="element positive"),
    "momentum and decay": text_of(SQUARE, DECAYED, f'{RETAINED}\nmomentum = "m"', g="key log_decay", m="head decay"),
    "elastic": text_of(SQUARE, f"{PLAIN} + sum(mu * abs(S))", PREVIOUS, parameters={"mu": "element nonnegative"}),
    "entropy": text_of("norm2(p - v) / 9", "sum(S * log(S) - S - a * S * log(S_prev))", PREVIOUS, a="value unit"),
    "softmax": text_of(SQUARE, DECAYED, PREVIOUS, g="key log_decay",
                       link='link = { kind = "softmax", axis = "key", scale = 2 }'),
    "deep": text_of(RATED, DECAYED, PREVIOUS, memory=MLP, w="value unit", g="head log_decay"),
}  # fmt: skip
RULES = CHUNKED | BY_TOKEN
every_rule = pytest.mark.parametrize("rule", RULES)


@functools.cache
def operator(text):
    return ttrc.load(parse_spec(text))


def run(text, x, **options):
    """Outputs and the gradient of a fixed weighing of them for every argument."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in x.items()}
    o, final = operator(text)(**as_arguments(operator(text).spec, leaves), output_final_state=True, **options)
    outputs = (o, *((final,) if isinstance(final, torch.Tensor) else final))
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    sum((y * w).sum() for y, w in zip(outputs, weights)).backward()
    return {f"output {i}": y.detach() for i, y in enumerate(outputs)} | {f"d_{n}": t.grad for n, t in leaves.items()}


def inputs(text, dtype=torch.float64, **sizes):
    sizes = dict(B=1, T=20, H=1, HV=2, dk=5, dv=7, seed=4) | sizes
    return {n: t.to(dtype) for n, t in random_inputs(operator(text).spec, dtype=torch.float64, **sizes).items()}


def assert_agree(a, b, bound):
    errors = {n: relative_rms(a[n], b[n]) for n in a}
    assert set(a) == set(b) and all(e <= bound for e in errors.values()), errors


# The oracle's numbers

MATHEMATICS = (
    Case(B=2, T=18, H=1, HV=2, d_k=5, d_v=7, chunk_size=16),
    Case(T=19, packed=(3, 16), H=2, HV=2, d_k=7, d_v=3, extreme="strong", chunk_size=16),
)
KERNELS = {  # widths that are no power of two: channels are padded; more value channels than a program takes
    "chunk": Case(B=1, T=18, H=1, HV=2, d_k=5, d_v=36, chunk_size=16),
    "recurrent": Case(T=4, packed=(3, 1), H=1, HV=2, d_k=5, d_v=36),
}


@pytest.mark.parametrize("rule", CHUNKED)
def test_kernels_for_wide_heads_are_the_oracles(rule):
    """Beyond some number of key channels sums as wide as they are held transposed, running sums of them too."""
    for width in (40, 130):
        case = Case(B=1, T=18, H=1, HV=1, d_k=width, d_v=5, chunk_size=16)
        result = verify(operator(CHUNKED[rule]), case, form="chunk", backend="triton", dtype=torch.float32)
        assert not result.failures, (width, result.failures)


@every_rule
def test_forms_are_those_that_there_are(rule):
    module = analyse(parse_spec(RULES[rule]))
    assert list(module.forms) == (["chunk", "recurrent"] if rule in CHUNKED else ["recurrent"])
    assert all(f.verdict and f.because for f in classify.findings(module))


@every_rule
@pytest.mark.parametrize("case", MATHEMATICS, ids=str)
def test_the_mathematics_is_the_oracles(rule, case):
    op = operator(RULES[rule])
    for form in op.forms:
        options = dict(form=form, backend="torch", dtype=torch.float64)
        assert not verify(op, fitting(op.spec, case), **options).failures, form


@pytest.mark.parametrize(
    "rule, form", [(rule, f) for rule in RULES for f in KERNELS if f == "recurrent" or rule in CHUNKED]
)
def test_the_kernels_are_the_oracles(rule, form):
    op, case = operator(RULES[rule]), KERNELS[form]
    assert not verify(op, fitting(op.spec, case), form=form, backend="triton", dtype=torch.float32).failures


# Relations

SAME = {  # a rule, and the gate that has channels there and none in its twin
    "decay by key": ("g", "key_channel"),
    "decay by value": ("g", "value_channel"),
    "decay by entry": ("a", "element"),
    "curvature by key": ("c", "key_channel"),
    "curvature by value": ("c", "value_channel"),
    "curvature by entry": ("c", "element"),
    "proximal by key": ("c", "key_channel"),
    "hebbian rate": ("w", "value_channel"),
    "rate by value": ("w", "value_channel"),
    "threshold": ("delta", "value_channel"),
}
SUMMED = {"key_channel": (-1,), "value_channel": (-1,), "element": (-2, -1)}


@pytest.mark.parametrize("rule", SAME)
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_a_gate_that_is_the_same_in_all_channels_is_one_a_head(rule, form):
    """The twin's gate has the gradient that the channels' sum to."""
    name, per = SAME[rule]
    wide = RULES[rule]
    narrow = wide.replace(f'{name} = {{ per = "{per}"', f'{name} = {{ per = "head"')
    assert narrow != wide
    x = inputs(narrow)
    widths = {"key_channel": (5,), "value_channel": (7,), "element": (5, 7)}[per]
    spread = x[name].reshape(*x[name].shape, *(1 for _ in widths)).expand(*x[name].shape, *widths)
    form = form if form in operator(wide).forms else "recurrent"
    made = run(wide, x | {name: spread}, form=form, backend="torch", chunk_size=16)
    made[f"d_{name}"] = made[f"d_{name}"].sum(SUMMED[per])
    assert_agree(made, run(narrow, x, form=form, backend="torch", chunk_size=16), 1e-12)


def test_channels_with_gates_of_their_own_are_rules_of_their_own():
    """Value channels meet nowhere in this rule, so that each is what a spec per head makes of it."""
    rule = text_of(RATED, DECAYED, RETAINED, g="head log_decay", w="value unit")
    x = inputs(rule)
    whole = run(rule, x, form="chunk", backend="torch", chunk_size=16)["output 0"]
    alone = rule.replace('w = { per = "value_channel"', 'w = { per = "head"')
    for channel in range(7):
        own = {n: t[..., channel : channel + 1] if n in ("v", "initial_state") else t for n, t in x.items()}
        own["w"] = x["w"][..., channel]
        part = run(alone, own, form="chunk", backend="torch", chunk_size=16)["output 0"]
        assert relative_rms(whole[..., channel : channel + 1], part) < 1e-12


@every_rule
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_a_sequence_in_two_pieces_packed_and_alone(rule, form):
    text = RULES[rule]
    if form not in operator(text).forms:
        form = "recurrent"
    x, options = inputs(text, T=32), dict(form=form, backend="torch")
    in_time = {g.name for g in operator(text).spec.inputs} | {"q", "k", "v"}

    def part(a, b):
        return {n: t[:, a:b] if n in in_time else t for n, t in x.items()}

    def call(x, **more):
        return operator(text)(**as_arguments(operator(text).spec, x), output_final_state=True, **options, **more)

    whole, _ = call(x)
    first, state = call(part(0, 16))
    start = state if isinstance(state, tuple) else (state,)
    names = [n for n in x if n.startswith("initial")]
    second, _ = call(part(16, 32) | dict(zip(names, start)))
    assert relative_rms(torch.cat([first, second], 1), whole) < 1e-11

    twice = x | {n: torch.cat([x[n]] * 2) for n in names}
    packed, _ = call(twice, cu_seqlens=torch.tensor([0, 16, 32], dtype=torch.int32))
    alone, _ = call(part(16, 32))
    assert relative_rms(packed, torch.cat([first, alone], 1)) < 1e-11

    later = x | {n: torch.cat([x[n][:, :20], x[n][:, 20:].flip(1)], 1) for n in in_time}
    assert relative_rms(call(later)[0][:, :20], whole[:, :20]) < 1e-12


def test_half_precision_gates_are_read_in_full():
    """A gate may be of any dtype; what is worked out of it is float32."""
    for rule in ("decay by key", "decay by entry", "threshold"):
        text = RULES[rule]
        x = inputs(text, T=4, dtype=torch.float32)
        gates = [g.name for g in (*operator(text).spec.inputs, *operator(text).spec.parameters)]
        half = {n: x[n].half() for n in gates}
        form = operator(text).forms[0]
        options = dict(form=form, backend="triton", chunk_size=16)
        a, b = run(text, x | half, **options), run(text, x | {n: t.float() for n, t in half.items()}, **options)
        assert all(a[f"d_{n}"].dtype == torch.float16 for n in gates)
        assert_agree(
            {n: t for n, t in a.items() if n[2:] not in gates}, {n: t for n, t in b.items() if n[2:] not in gates}, 0
        )
        assert all(relative_rms(a[f"d_{n}"], b[f"d_{n}"]) < 1e-3 for n in gates)


def test_gradients_are_as_wide_as_their_gates():
    for rule in RULES:
        x = inputs(RULES[rule], T=3)
        made = run(RULES[rule], x, form="recurrent", backend="torch")
        assert all(made[f"d_{n}"].shape == t.shape for n, t in x.items())


# How it is found


@pytest.mark.parametrize("rule", ["rate by value", "curvature by value"])
def test_a_slope_by_channel_is_substituted(rule):
    """A triangular system for each value channel would have an inverse for each."""
    module = analyse(parse_spec(RULES[rule]))
    assert isinstance(module.recurrence.error, Nonlinear)
    statements = module.forms["chunk"].forward.statements
    assert any(isinstance(s.op, Substitute) for s in statements) and not any(
        isinstance(s.op, Solve) for s in statements
    )
    error = next(f for f in classify.findings(module) if f.aspect == "error")
    assert "slope of its own" in error.verdict and "differs by value channel" in error.because


def test_a_curvature_by_key_channel_keeps_the_triangular_solve():
    module = analyse(parse_spec(RULES["curvature by key"]))
    assert isinstance(module.recurrence.error, Affine) and str(module.recurrence.write) == "1/c"


@pytest.mark.parametrize("rule, says", [
    ("momentum and decay", "a mask that is a product of two"),
    ("decay by value, undecayed", "every value channel decays by itself"),
    ("decay by value, robust", "every value channel decays by itself"),
    ("decay by value, momentum", "every value channel decays by itself"),
    ("decay by entry", "every entry of the state decays by itself"),
    ("curvature by entry", "every entry of the state writes with a weight of its own"),
])  # fmt: skip
def test_why_there_is_no_chunk_form_is_said(rule, says):
    assert any(says in f.because for f in classify.findings(analyse(parse_spec(RULES[rule]))))


# A decay by key channel in chunks


STRENGTHS = {"strong": (-3.0, -3.0), "weak": (-0.01, -0.01), "mixed": (-30.0, -0.01), "some": (-30.0, 0.0)}


@pytest.mark.parametrize("strength", STRENGTHS)
def test_decays_of_any_strength_lose_no_digits(strength):
    """In single precision, of states that hardly decay and of those that are gone within a token, side by side."""
    text = RULES["decay by key"]
    x = inputs(text, T=40, dk=6)
    generator = torch.Generator().manual_seed(3)
    low, high = STRENGTHS[strength]
    strong = torch.rand(x["g"].shape, generator=generator, dtype=torch.float64) < 0.2
    x["g"] = torch.where(strong, low, high) * (1 + 0.5 * torch.rand(x["g"].shape, generator=generator).double())
    x |= {n: t.float().double() for n, t in x.items()}
    exact = run(text, x, form="recurrent", backend="torch")
    single = {n: t.float() for n, t in x.items()}
    assert_agree(run(text, single, form="chunk", backend="torch", chunk_size=32), exact, 6e-6)


@pytest.mark.parametrize("rule", ["decay by key", "proximal decay"])
def test_kernels_forget_and_keep_by_key_channel(rule):
    """Several blocks of 16 tokens a chunk, a third of all decays exp(-30), a third 1; several sequences."""
    op = operator(RULES[rule])
    case = Case(T=52, packed=(49, 3), H=1, HV=1, d_k=5, d_v=6, extreme="strong", chunk_size=64)
    assert not verify(op, case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("weight", ["", "beta * "])
def test_what_a_walk_of_key_channels_takes_of_values_is_made_in_front_of_it(weight):
    """Once, without keys; and what is the cotangent of values but for the sign is stored as that alone."""
    gates = {"beta": "head unit"} if weight else {}
    text = text_of(f"{weight}{SQUARE}", DECAYED, RETAINED, g="key log_decay", **gates)
    plan = analyse(parse_spec(text)).forms["chunk"].plan
    _, values, keys = plan.backward
    made = [{s.target for s in kernel.statements} for kernel in (values, keys)]
    assert (values.axis, keys.axis) == ("v", "k") and not made[0] & made[1]
    assert not [s for s in values.statements for t in (s.target, *operands(s.op)) if "k" in t.axes]
    crossing = set(values.stores) & set(keys.loads)
    assert crossing >= set(values.stores) - set(plan.gradients)
    wide = [b.name for b in crossing if "v" in b.tile.axes]
    assert sorted(wide) == ["d_v", "u"]
    assert plan.kernels.index(values) < plan.kernels.index(keys)


def test_without_a_solve_one_kernel_makes_all_gradients_of_decays_by_key_channel():
    plan = analyse(parse_spec(text_of("-dot(p, v)", DECAYED, RETAINED, g="key log_decay"))).forms["chunk"].plan
    _, keys = plan.backward
    (pairs,) = keys.waiting_pairs
    assert pairs.tile.axes == ("t", "s") and pairs not in plan.gradients


# Arguments

SHAPES = {
    "decay by key": ("g", "[B, T, HV, d_k] = [1, 3, 2, 5]"),
    "decay by value": ("g", "[B, T, HV, d_v] = [1, 3, 2, 7]"),
    "decay by entry": ("a", "[B, T, HV, d_k, d_v] = [1, 3, 2, 5, 7]"),
    "threshold": ("delta", "[HV, d_v] = [2, 7]"),
    "elastic": ("mu", "[HV, d_k, d_v] = [2, 5, 7]"),
}


@pytest.mark.parametrize("rule", SHAPES)
def test_a_gate_of_another_shape_is_refused_by_name(rule):
    name, wanted = SHAPES[rule]
    x = inputs(RULES[rule], T=3)
    with pytest.raises(ArgumentError) as caught:
        operator(RULES[rule])(**as_arguments(operator(RULES[rule]).spec, x | {name: x[name][..., 0]}))
    assert str(caught.value).startswith(f"{name}: got shape") and wanted in str(caught.value)
    doc = operator(RULES[rule])._call.__doc__
    assert f"{name} {wanted.split(' =')[0]}" in doc


def test_defaults_are_the_same_in_all_channels():
    text = text_of(ROBUST, "norm2(S - a * S_prev) / 2", PREVIOUS,
                   parameters={"delta": "value positive", "a": "element decay"})  # fmt: skip
    for row, default in (("delta", "1 + head"), ("a", "0.5")):
        text = "\n".join(
            line.replace(" }", f', default = "{default}" }}') if line.startswith(f"{row} =") else line
            for line in text.splitlines()
        )
    x = inputs(text, T=3)
    given = {"delta": torch.tensor([1.0, 2.0]).double()[:, None].expand(2, 7), "a": torch.full((2, 5, 7), 0.5).double()}
    without = {n: t for n, t in x.items() if n not in given}
    assert_agree({"o": operator(text)(**without)[0]}, {"o": operator(text)(**without, **given)[0]}, 0)
