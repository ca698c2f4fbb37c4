"""Memories of one number a channel: scans in chunks, token by token where no scan is, beside rules written by hand."""

import functools
import importlib
import itertools

import pytest
import torch

import ttrc
from ttrc import oracle
from ttrc.backends.derivation import derivation
from ttrc.compiler import analyse
from ttrc.errors import ArgumentError
from ttrc.ir.plan import Skeleton
from ttrc.ir.tile import LinearScan, Relation
from ttrc.language.load import load_spec, parse_spec
from ttrc.passes.budget import budget, least_bytes
from ttrc.paths import specs_dir
from ttrc.runtime.verify import Case, fitting, relative_rms, verify
from ttrc.sampling import as_arguments, random_inputs
from ttrc.tools import classify
from ttrc.tools.compile import compile_specs
from ttrc.tools.mathematics import steps
from ttrc.tools.notation import as_text


def text_of(loss, retention, update, more="", link="", parameters=None, memory="vector", **inputs):
    """Gates by name, each "per domain"; parameters likewise. loss: the one's expression, or tables of several."""
    long = {"value": "value_channel", "head": "head"}

    def table(title, gates):
        rows = (f'{n} = {{ per = "{long[g.split()[0]]}", domain = "{g.split()[1]}" }}' for n, g in gates.items())
        return "\n".join((f"[{title}]", *rows)) if gates else ""

    losses = loss if loss.startswith("[") else f'[loss]\nexpr = "{loss}"'
    return "\n".join((
        'schema = 1\nname = "mine"\nreference = "a test"', table("inputs", inputs),
        table("parameters", parameters or {}), f'[memory]\nkind = "{memory}"', losses,
        f'[retention]\nexpr = "{retention}"', link, f"[update]\n{update}", more,
    ))  # fmt: skip


PREVIOUS, RETAINED, PROXIMAL = ('rule = "gradient"\nat = "previous"', 'rule = "gradient"\nat = "retained"',
                                'rule = "proximal"')  # fmt: skip
SEGMENT = 'rule = "gradient"\nat = "segment_start"\nsegment = 16'
CLOSED, RIDGE = 'rule = "closed_form"', 'sum(lam * square(S)) / 2"\ndecay = "a'
SQUARE, RATED, PLAIN = "norm2(p - v) / 2", "sum(w * square(p - v)) / 2", "norm2(S - S_prev) / 2"
KEPT, FORGOT = "norm2(S - a * S_prev) / 2", "norm2(S - exp(g) * S_prev) / 2"
SOFTMAX = 'link = { kind = "softmax", axis = "value", scale = 2 }'
NORM_3 = 'link = { kind = "lq_norm", q = 3, epsilon = 0.1 }'
TWO = "[loss.erase]\nexpr = 'norm2(p) / 2'\nkey = 'k * w'\nwrite = 'k * c'\n[loss.learn]\nexpr = '{}'\nweight = 'c'"
IN_TURN = 'rule = "gradient"\nat = "in_turn"'
NORMED = "[read]\nexpr = 'r / sqrt(norm2(r) / count(r) + 0.01) + v'"

SCANNED = {
    "pooling": text_of("-dot(p, v)", KEPT, RETAINED, a="value unit"),
    "constant": text_of("-dot(p, v)", FORGOT, RETAINED, parameters={"g": "value log_decay"}),
    "summed": text_of("-dot(p, v)", PLAIN, PREVIOUS),
    "delta": text_of(RATED, FORGOT, RETAINED, g="head log_decay", w="value unit"),
    "before it decays": text_of(SQUARE, KEPT, PREVIOUS, a="head unit"),
    "curved": text_of(SQUARE, "sum(c * square(S - a * S_prev)) / 2", RETAINED, a="value unit",
                      parameters={"c": "value positive"}),
    "implicit": text_of(RATED, KEPT, PROXIMAL, a="value unit", w="head nonnegative"),
    "normalised": text_of("norm2(p - v) / (2 * norm2(k) + 1)", KEPT, PREVIOUS, a="head unit"),
    "mapped and normed": text_of(SQUARE, KEPT, PREVIOUS, NORMED + "\n[features]\nk = 'k * b + 0.1'\n"
                                 "q = 'q / sqrt(norm2(q) + 0.01)'", a="value decay", b="value unit"),
    "heavy pooling": text_of("-dot(p, v)", KEPT, f'{RETAINED}\nmomentum = "m"', a="value unit", m="head unit"),
    "heavy by channel": text_of("-dot(p, v)", KEPT, f'{RETAINED}\nmomentum = "m"', a="value unit", m="value unit"),
    "closed": text_of(RATED, RIDGE, CLOSED, w="value unit", a="value unit", parameters={"lam": "value positive"}),
    "closed and joined": text_of("norm2(p - v) / (2 * norm2(k) + 1)", RIDGE, CLOSED, NORMED, a="head decay",
                                 lam="value positive"),
    "two losses": text_of(TWO.format(SQUARE), FORGOT, RETAINED, g="value log_decay", w="value unit", c="head unit"),
    "in turn": text_of(TWO.format(SQUARE), KEPT, IN_TURN, a="value unit", w="value real", c="head unit"),
    "two that only store": text_of("[loss.a]\nexpr = '-dot(p, v)'\n[loss.b]\nexpr = 'sum(w * p)'\nkey = 'square(k)'",
                                   KEPT, f'{RETAINED}\nmomentum = "m"', a="value unit", w="value real", m="head unit"),
    "two frozen losses": text_of(TWO.format("sum(huber(p - v, 1))"), KEPT, f'{SEGMENT}\nmomentum = "c"', a="head unit",
                                 w="value unit", c="head unit"),
    "frozen": text_of(RATED, FORGOT, SEGMENT, g="value log_decay", w="head unit"),
    "frozen Huber": text_of("sum(huber(p - v, d))", KEPT, f'{SEGMENT}\nmomentum = "m"', a="value unit", m="head unit",
                            parameters={"d": "value positive"}),
    "frozen weights": text_of(SQUARE, KEPT, SEGMENT, link=SOFTMAX, a="value unit"),
}  # fmt: skip
BY_TOKEN = {
    "robust": text_of("sum(huber(p - v, d))", KEPT, f'{PREVIOUS}\nmomentum = "m"', a="value unit", m="head unit",
                      parameters={"d": "value positive"}),
    "robust in turn": text_of(TWO.format("sum(huber(p - v, 1))"), KEPT, IN_TURN, a="head unit", w="value unit",
                              c="head unit"),
    "distance": text_of("sqrt(norm2(p - v) + 0.01)", KEPT, RETAINED, a="value unit"),
    "implicit log cosh": text_of("sum(w * log_cosh(p - v))", KEPT, PROXIMAL, a="value unit", w="head unit"),
    "heavy delta": text_of(SQUARE, KEPT, f'{PREVIOUS}\nmomentum = "m"', a="value unit", m="head unit"),
    "entropy": text_of("norm2(p - v) / 9", "sum(S * log(S) - S - a * S * log(S_prev))", PREVIOUS, a="value unit"),
    "weights": text_of(SQUARE, KEPT, PREVIOUS, link=SOFTMAX, a="value unit"),
    "norm of weights": text_of(SQUARE, KEPT, PREVIOUS, link=NORM_3, a="value unit"),
    "logistic": text_of(SQUARE, KEPT, RETAINED, link='link = { kind = "sigmoid" }', a="value unit"),
    "long segments that join": text_of("norm2(p - v) / (2 * norm2(k) + 1)", KEPT, SEGMENT.replace("16", "64"),
                                       a="head unit"),
}  # fmt: skip
RULES = SCANNED | BY_TOKEN
every_rule = pytest.mark.parametrize("rule", RULES)


@functools.cache
def operator(text):
    return ttrc.load(parse_spec(text))


def inputs(text, **sizes):
    sizes = dict(B=1, T=20, H=1, HV=2, dk=5, dv=5, seed=4) | sizes
    return {n: t.double() for n, t in random_inputs(operator(text).spec, dtype=torch.float64, **sizes).items()}


def run(text, x, **options):
    """Outputs and the gradient of a fixed weighing of them for every argument."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in x.items()}
    o, final = operator(text)(**as_arguments(operator(text).spec, leaves), output_final_state=True, **options)
    outputs = (o, *((final,) if isinstance(final, torch.Tensor) else final))
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    sum((y * w).sum() for y, w in zip(outputs, weights)).backward()
    return {f"output {i}": y.detach() for i, y in enumerate(outputs)} | {f"d_{n}": t.grad for n, t in leaves.items()}


def assert_agree(a, b, bound):
    errors = {n: relative_rms(a[n], b[n]) for n in a}
    assert set(a) == set(b) and all(e <= bound for e in errors.values()), errors


# The oracle's numbers

MATHEMATICS = (
    Case(B=2, T=37, H=1, HV=2, d_k=5, chunk_size=16),
    Case(B=1, T=1, H=2, HV=2, d_k=1),
    Case(T=38, packed=(3, 1, 34), H=2, HV=4, d_k=7, extreme="strong", chunk_size=16),
    Case(T=20, d_k=3, extreme="weak", chunk_size=16),
)
KERNELS = {  # more channels than a program takes, which are no power of two
    "chunk": (
        Case(B=1, T=35, H=1, HV=2, d_k=36, chunk_size=32),
        Case(T=19, packed=(17, 2), H=1, HV=1, d_k=6, extreme="strong", chunk_size=16),
    ),
    "recurrent": (Case(T=5, packed=(4, 1), H=1, HV=2, d_k=36),),
}


@every_rule
@pytest.mark.parametrize("case", MATHEMATICS, ids=str)
def test_the_mathematics_is_the_oracles(rule, case):
    op = operator(RULES[rule])
    assert op.forms == (("chunk", "recurrent") if rule in SCANNED else ("recurrent",))
    for form in op.forms:
        result = verify(op, fitting(op.spec, case), form=form, backend="torch", dtype=torch.float64)
        assert not result.failures, (form, result.failures)


@pytest.mark.parametrize(
    "rule, form, case", [(r, f, c) for r in RULES for f in KERNELS if f != "chunk" or r in SCANNED for c in KERNELS[f]]
)
def test_the_kernels_are_the_oracles(rule, form, case):
    op = operator(RULES[rule])
    result = verify(op, fitting(op.spec, case), form=form, backend="triton", dtype=torch.float32)
    assert not result.failures, result.failures


def test_gates_that_forget_all_and_steps_that_learn_all():
    """No logarithm: a decay of exactly 0 is as good as any, and so is a token that leaves nothing of the state."""
    for rule in ("pooling", "delta"):
        x = inputs(RULES[rule], dk=3, dv=3)
        for gate in {"a", "w"} & set(x):
            x[gate][:, 3::4] = 0.0
            x[gate][:, 2::4] = 1.0
        x["k"][:, 2::4] = 1.0
        assert_agree(run(RULES[rule], x, form="chunk", backend="torch", chunk_size=16), run(RULES[rule], x,
                     form="recurrent", backend="torch"), 1e-12)  # fmt: skip


# The combining function: the interpreter goes token by token, a GPU in any grouping


def combined(then, parts, cut):
    """What all of these do, those before the cut and those behind it combined first."""
    if len(parts) == 1:
        return parts[0]
    at = min(max(1, cut(len(parts))), len(parts) - 1)
    return then(combined(then, parts[:at], cut), combined(then, parts[at:], cut))


@pytest.mark.parametrize("cut", [lambda n: 1, lambda n: n // 2, lambda n: n - 1, lambda n: n // 3],
                         ids=["right", "halves", "left", "thirds"])  # fmt: skip
def test_tokens_are_combined_alike_in_any_grouping(cut):
    module = importlib.import_module(f"{ttrc.load('min_gru').package.__name__}.kernels")
    generator = torch.Generator().manual_seed(1)
    decays, writes = (torch.randn(11, generator=generator, dtype=torch.float64).tolist() for _ in range(2))
    parts = [(a, x, 1.0, 0.0) for a, x in zip(decays, writes)]
    all_of_them, start = combined(lambda left, right: module.then.fn(*left, *right), parts, cut), 0.3
    state = before = start
    for a, x in zip(decays, writes):
        before, state = state, a * state + x
    kept, added, kept_before, added_before = all_of_them
    assert abs(kept * start + added - state) < 1e-12 * (1 + abs(state))
    assert abs(kept_before * start + added_before - before) < 1e-12 * (1 + abs(before))


# Rules written by hand


def test_min_gru_is_the_papers():
    """h_t = (1 - z_t) h_{t-1} + z_t v_t of keys and queries of ones, through every form; nothing is scaled."""
    op = ttrc.load(specs_dir() / "min_gru.toml")
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(2, 50, 3, 8, generator=generator, dtype=torch.float64)
    z = torch.rand(2, 50, 3, 8, generator=generator, dtype=torch.float64)
    h, rows = torch.zeros(2, 3, 8, dtype=torch.float64), []
    for t in range(50):
        h = (1 - z[:, t]) * h + z[:, t] * v[:, t]
        rows.append(h)
    one = torch.ones(2, 50, 1, 8, dtype=torch.float64)
    for form in ("chunk", "recurrent", "auto"):
        o, final = op(one, one, v, z=z, form=form, output_final_state=True)
        assert relative_rms(o, torch.stack(rows, 1)) < 1e-14 and relative_rms(final, h) < 1e-14
        assert final.shape == (2, 3, 8)
    assert relative_rms(op(one, one, v, z=z, scale=0.5)[0], 0.5 * torch.stack(rows, 1)) < 1e-14


def test_rg_lru_is_the_papers():
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t) with log a_t = -c softplus(Lambda) r_t (arXiv:2402.19427), and the
    millionth that the spec adds under the root."""
    op = ttrc.load(specs_dir() / "rg_lru.toml")
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(2, 50, 3, 8, generator=generator, dtype=torch.float64)
    r, i = torch.rand(2, 2, 50, 3, 8, generator=generator, dtype=torch.float64)
    lam = torch.nn.functional.softplus(torch.randn(3, 8, generator=generator, dtype=torch.float64))
    h, rows = torch.zeros(2, 3, 8, dtype=torch.float64), []
    for t in range(50):
        a = torch.exp(-8 * lam * r[:, t])
        h = a * h + torch.sqrt(1.000001 - a.square()) * i[:, t] * v[:, t]
        rows.append(h)
    one = torch.ones(2, 50, 1, 8, dtype=torch.float64)
    for form in ("chunk", "recurrent"):
        o, _ = op(one, one, v, fade=r, take=i, lam=lam, form=form)
        assert relative_rms(o, torch.stack(rows, 1)) < 1e-12


def test_pooling_is_the_papers():
    """c_t = f c_{t-1} + i z, h_t = o c_t (arXiv:1611.01576), by the oracle as well."""
    text = RULES["pooling"]
    x = inputs(text, T=9, dk=4, dv=4)
    c, rows = x["initial_state"], []
    for t in range(9):
        c = x["a"][:, t] * c + x["k"][:, t] * x["v"][:, t]
        rows.append(x["q"][:, t] * c)
    made = operator(text)(**x, output_final_state=True)
    told = oracle.run(operator(text).spec, x["q"], x["k"], x["v"], {"a": x["a"]}, initial_state=x["initial_state"])
    for o, final in (made, told):
        assert relative_rms(o, torch.stack(rows, 1)) < 1e-14 and relative_rms(final, c) < 1e-14


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_a_closed_form_is_a_regression_a_channel(form):
    """Of all tokens so far, weighed, by a solver of least squares; the ridge is a token more, of key 1 and value 0."""
    x = {n: t for n, t in inputs(RULES["closed"], T=9, dk=4, dv=4).items() if not n.startswith("initial")}
    o, _ = operator(RULES["closed"])(**x, form=form)
    for t, h, c in itertools.product(range(9), range(2), range(4)):
        age = torch.stack([x["a"][0, s + 1 : t + 1, h, c].prod() for s in range(t + 1)])
        root = (age * x["w"][0, : t + 1, h, c]).sqrt()
        keys = torch.cat([root * x["k"][0, : t + 1, 0, c], x["lam"][h, c].sqrt()[None]])
        values = torch.cat([root * x["v"][0, : t + 1, h, c], torch.zeros(1, dtype=torch.float64)])
        fit = torch.linalg.lstsq(keys[:, None], values[:, None]).solution[0, 0]
        torch.testing.assert_close(o[0, t, h, c], x["q"][0, t, 0, c] * fit, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rule", ["delta", "implicit", "robust", "frozen Huber", "entropy"])
def test_a_channel_is_a_matrix_of_one_entry(rule):
    """Where channels do not meet each of them is what a linear memory of one key and one value channel makes of it."""
    text, matrix = RULES[rule], RULES[rule].replace('kind = "vector"', 'kind = "linear"')
    x = inputs(text, T=18, H=2, dk=3, dv=3)
    o, final = operator(text)(**as_arguments(operator(text).spec, x), output_final_state=True, form="recurrent")
    for channel in range(3):
        own = {n: t if n in gates_by_head(operator(text).spec) else t[..., channel : channel + 1] for n, t in x.items()}
        own = {n: t[..., None] if n.startswith("initial") else t for n, t in own.items()}
        part, end = operator(matrix)(
            **as_arguments(operator(matrix).spec, own), output_final_state=True, form="recurrent", scale=1.0
        )
        assert relative_rms(o[..., channel : channel + 1], part) < 1e-13
        ends = (final, end) if isinstance(final, torch.Tensor) else (final[0], end[0])
        assert relative_rms(ends[0][..., channel], ends[1][..., 0, 0]) < 1e-13


def gates_by_head(spec):
    return {g.name for g in (*spec.inputs, *spec.parameters) if not g.per.axes}


# Relations


@pytest.mark.parametrize("rule", SCANNED)
def test_forms_and_chunk_sizes_agree(rule):
    x = inputs(RULES[rule], T=70)
    token = run(RULES[rule], x, form="recurrent", backend="torch")
    sizes = (16, 32, 64, 128) if "segment" not in RULES[rule] else (None,)
    for size in sizes:
        assert_agree(run(RULES[rule], x, form="chunk", chunk_size=size, backend="torch"), token, 1e-12)


@every_rule
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_a_sequence_in_two_pieces_packed_and_alone(rule, form):
    text = RULES[rule]
    form = form if form in operator(text).forms else "recurrent"
    cut = 64 if "segment = 64" in text else 16
    x, options = inputs(text, T=2 * cut), dict(form=form, backend="torch")
    in_time = {g.name for g in operator(text).spec.inputs} | {"q", "k", "v"}

    def part(a, b):
        return {n: t[:, a:b] if n in in_time else t for n, t in x.items()}

    def call(x, **more):
        return operator(text)(**as_arguments(operator(text).spec, x), output_final_state=True, **options, **more)

    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    whole, end = call(leaves)
    ends = (end,) if isinstance(end, torch.Tensor) else end
    (whole.square().sum() + sum(e.sum() for e in ends)).backward()
    grads = {n: t.grad for n, t in leaves.items()}

    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    names = [n for n in x if n.startswith("initial")]
    first, state = call({n: t[:, :cut] if n in in_time else t for n, t in leaves.items()})
    later = {n: t[:, cut:] if n in in_time else t for n, t in leaves.items()}
    second, end = call(later | dict(zip(names, (state,) if isinstance(state, torch.Tensor) else state)))
    ends = (end,) if isinstance(end, torch.Tensor) else end
    both = torch.cat([first, second], 1)
    (both.square().sum() + sum(e.sum() for e in ends)).backward()
    assert relative_rms(both, whole) < 1e-12
    assert_agree(grads, {n: t.grad for n, t in leaves.items()}, 1e-10)

    twice = x | {n: torch.cat([x[n]] * 2) for n in names}
    packed, _ = call(twice, cu_seqlens=torch.tensor([0, cut, 2 * cut], dtype=torch.int32))
    alone = torch.cat([call(part(0, cut))[0], call(part(cut, 2 * cut))[0]], 1)
    assert relative_rms(packed, alone) < 1e-12

    changed = {n: torch.cat([t[:, : cut - 3], t[:, cut - 3 :].flip(1)], 1) if n in in_time else t for n, t in x.items()}
    o, _ = call(changed)
    assert torch.equal(o[:, : cut - 3], whole[:, : cut - 3].detach()) and not torch.equal(o, whole.detach())


# What it costs


def test_chunks_move_the_least_possible():
    module = analyse(load_spec(specs_dir() / "min_gru.toml"))
    sizes = dict(d_k=128, d_v=128, dtype_bytes=2)
    passes, least = budget(module, **sizes)["chunk"], least_bytes(module, **sizes)
    for which in ("forward", "backward"):
        assert passes[which].launches == 1
        assert least[which] <= passes[which].bytes <= 1.02 * least[which]


def test_a_chunk_is_one_scan_and_its_adjoint_another():
    form = analyse(load_spec(specs_dir() / "min_gru.toml")).forms["chunk"]
    scans = [s.op for s in form.backward.statements if isinstance(s.op, LinearScan)]
    assert [x.reverse for x in scans] == [False, True] and scans[1].start is None
    (ahead,), (back,) = form.plan.forward, form.plan.backward
    assert ahead.skeleton is back.skeleton is Skeleton.SCAN
    assert back.partial and not ahead.partial and not back.name.endswith("_whole")
    assert any(getattr(s.op, "relation", None) is Relation.LAST for s in form.forward.statements)


def test_programs_that_sum_over_channels_take_all_of_them_and_few_tokens():
    plan = analyse(parse_spec(SCANNED["normalised"])).forms["chunk"].plan
    assert all(k.name.endswith("_whole") for k in (*plan.forward, *plan.backward)) and plan.chunk == 16


def test_nothing_spills():
    specs = [
        load_spec(specs_dir() / "min_gru.toml"),
        *(parse_spec(RULES[r]) for r in ("delta", "normalised", "robust")),
    ]
    for row in compile_specs(specs, targets=("sm_90",), widths=(64, 128, 256), dtype="bf16"):
        assert row.result.spills == row.result.stack_bytes == 0, (row.spec, row.kernel, row.width)


# What is said


@every_rule
def test_explanations_hold_no_transposes(rule):
    module = analyse(parse_spec(RULES[rule]))
    assert classify.headline(module).startswith("vector memory")
    assert all(f.verdict and f.because and "triangular" not in f.because for f in classify.findings(module))
    told = [as_text(line) for step in steps(module) for line in step.lines]
    assert told and not any("'" in text for text in told)
    assert not any("'" in line for line in derivation(module).splitlines() if line.startswith(("# state", "#     ")))


@pytest.mark.parametrize("rule, says", [
    ("robust", "no affine maps of the state"),
    ("heavy delta", "two numbers a channel move each other"),
    ("long segments that join", "all channels of 64 tokens"),
    ("entropy", "a state that moves linearly"),
    ("weights", "weights are a link of the state at every token"),
])  # fmt: skip
def test_why_there_is_no_chunk_form_is_said(rule, says):
    assert any(says in f.because for f in classify.findings(analyse(parse_spec(RULES[rule]))))


def test_an_error_that_joins_channels_is_not_called_nonlinear():
    module = analyse(parse_spec(text_of("square(dot(p, v)) / 100", KEPT, PREVIOUS, a="value unit")))
    error, *_ = classify.findings(module)
    assert error.verdict == "not affine in each channel's own p" and "joins the channels" in error.because


# Arguments


def test_key_and_value_channels_are_as_many():
    x = inputs(RULES["pooling"], T=3)
    wrong = x | {"q": x["q"][..., :4], "k": x["k"][..., :4]}
    with pytest.raises(ArgumentError, match="v: got head dimension 5, expected the 4 of q and k: .* the same channels"):
        operator(RULES["pooling"])(**wrong)
    with pytest.raises(ArgumentError, match="as many key channels as value channels, not 4 and 5"):
        oracle.run(operator(RULES["pooling"]).spec, wrong["q"], wrong["k"], wrong["v"], {"a": x["a"]})


def test_states_are_rows():
    op = operator(RULES["heavy pooling"])
    x = inputs(RULES["heavy pooling"], T=3)
    _, final = op(**as_arguments(op.spec, x), output_final_state=True)
    assert final._fields == ("S", "M") and all(part.shape == (1, 2, 5) for part in final)
    with pytest.raises(ArgumentError, match=r"initial_state.M: got shape \[1, 2, 5, 5\], expected \[1, 2, 5\]"):
        op(x["q"], x["k"], x["v"], a=x["a"], m=x["m"], initial_state=(x["initial_S"], torch.zeros(1, 2, 5, 5).double()))
    assert "[N, HV, d_v]" in op._call.__doc__
