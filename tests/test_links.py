"""Weights that are a link of the state, and retentions that are not quadratic: exact, and related to each other."""

import functools
from pathlib import Path

import pytest
import torch

import ttrc
from ttrc import compiler
from ttrc.backends.triton.printer import TritonPrinter
from ttrc.compiler import analyse
from ttrc.errors import ArgumentError, SpecError
from ttrc.ir.plan import Space
from ttrc.ir.tile import Largest, Reduce, Tile, sums_values
from ttrc.language.load import parse_spec
from ttrc.passes import chunk as chunk_pass
from ttrc.passes import derive_link as link_pass
from ttrc.passes.builder import Builder
from ttrc.runtime.load import import_package
from ttrc.runtime.operator import Operator
from ttrc.runtime.verify import Case, relative_rms, verify
from ttrc.sampling import random_inputs

SPEC = """schema = 1
name = "{name}"
reference = "a test"

[inputs]
g = {{ per = "head", domain = "log_decay" }}
beta = {{ per = "head", domain = "unit" }}
m = {{ per = "head", domain = "log_decay" }}

[parameters]
lam = {{ per = "head", domain = "nonnegative", default = "0.2" }}

[memory]
kind = "linear"

[loss]
weight = "beta * exp(0 * (g + m + lam))"
expr = "{loss}"

[retention]
expr = "{retention}"
{link}

[update]
rule = "gradient"
{update}
"""
SQUARED, HUBER = "norm2(p - v) / 2", "sum(huber(p - v - 0.3, 1))"
DECAYED = "norm2(S - exp(g) * S_prev) / 2"
UPDATES = {
    "previous": 'at = "previous"',
    "retained": 'at = "retained"',
    "segments": 'at = "segment_start"\nsegment = 16',
    "segments with momentum": 'at = "segment_start"\nsegment = 16\nmomentum = "exp(m)"',
    "momentum": 'at = "previous"\nmomentum = "exp(m)"',
    "odd segments": 'at = "segment_start"\nsegment = 5',
}
LINKS = {
    "lq_norm": '{ kind = "lq_norm", q = 4, epsilon = 0.01 }',
    "lq_norm of a fraction": '{ kind = "lq_norm", q = 1.5, epsilon = 0.01 }',
    "softmax over keys": '{ kind = "softmax", axis = "key", scale = 2 }',
    "softmax over values": '{ kind = "softmax", axis = "value", scale = 0.5 }',
    "softmax over all": '{ kind = "softmax", axis = "all", scale = 8 }',
    "soft_threshold": '{ kind = "soft_threshold", threshold = "lam / 2" }',
    "sigmoid": '{ kind = "sigmoid" }',
    "exp": '{ kind = "exp" }',
    "own, by entry": '{ kind = "expression", expr = "tanh(S + lam) - S / 4" }',
    "own, by column": '{ kind = "expression", expr = "S / (norm(S) + 0.3)", axis = "key" }',
    "own, by row": '{ kind = "expression", expr = "S / (sum(exp(S)) + lam)", axis = "value" }',
    "own, of all": '{ kind = "expression", expr = "lam * S / sqrt(1 + norm2(S - sum(S) / 9))" }',
}
RETENTIONS = {
    "entropy": "sum(S * log(S) - S - exp(g) * S * log(S_prev))",
    "divergence": "sum(S * log(S / S_prev) - S)",
    "logit": "sum(S * log(S) + (1 - S) * log(1 - S) - S * log(S_prev) - (1 - S) * log(1 - S_prev))",
    "logit of ratios": "sum(S * log(S / S_prev) + (1 - S) * log((1 - S) / (1 - S_prev)))",
    "elastic net": "norm2(S - exp(g) * S_prev) / 2 + lam * norm2(S) / 2 + lam * sum(abs(S))",
    "fourth powers": "sum(abs(S)**4) / 4 - exp(g) * dot(S, S_prev**3)",
    "barrier": "norm2(S - exp(g) * S_prev) / 2 - (lam + 0.1) * sum(log(S))",
    "powers beside squares": "norm2(S - exp(g) * S_prev) / 2 + lam * sum(S**4)",
    "log cosh beside squares": "norm2(S - exp(g) * S_prev) / 2 + sum(log_cosh(3 * S)) + lam * sum(abs(S))",
    "entropy beside squares": "exp(g) * sum(S * log(S / S_prev) - S) + lam * norm2(S) / 2",
    "bent past": "norm2(S - exp(g) * tanh(S_prev)) / 2",
}
JOINED = (
    *("lq_norm", "lq_norm of a fraction", "softmax over values", "softmax over all"),
    *("own, by row", "own, of all"),
)
INSIDE = "entropy", "divergence", "logit", "logit of ratios", "barrier", "entropy beside squares"
SEARCHED = "powers beside squares", "log cosh beside squares", "entropy beside squares"
every_link = pytest.mark.parametrize("link", LINKS)
SMALL = Case(B=1, T=20, H=1, HV=2, d_k=5, d_v=20)
PACKED = Case(T=40, packed=(17, 1, 22), H=1, HV=1, d_k=4, d_v=9, extreme="strong")
FEW = Case(B=1, T=6, H=1, HV=2, d_k=5, d_v=20)


def spec_of(update, link=None, retention=DECAYED, loss=HUBER, name="linked"):
    link = "" if link is None else f"link = {LINKS.get(link, link)}"
    return parse_spec(
        SPEC.format(name=name, loss=loss, retention=retention, link=link, update=UPDATES.get(update, update))
    )


@functools.cache
def operator(update, link=None, retention=DECAYED, loss=HUBER):
    return ttrc.load(spec_of(update, link, retention, loss))


# The oracle


@every_link
@pytest.mark.parametrize("update", UPDATES)
def test_every_link_is_exact(link, update):
    op = operator(update, link)
    assert ("chunk" in op.forms) == (update in ("segments", "segments with momentum"))
    for form in op.forms:
        for case in (SMALL, PACKED):
            assert not verify(op, case, form=form, backend="torch", dtype=torch.float64).failures


@every_link
@pytest.mark.parametrize("form, update", [("chunk", "segments"), ("recurrent", "segments"), ("recurrent", "previous")])
def test_every_link_is_exact_in_the_kernels(link, form, update):
    case = SMALL if form == "chunk" else FEW
    assert not verify(operator(update, link), case, form=form, backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("link", ["own, by row", "own, of all"])
def test_the_gradient_of_a_parameter_beside_a_sum_over_several_panels(link):
    """Kernels that make it walk value channels, a loop for the sum and one behind it."""
    case = Case(B=1, T=20, H=1, HV=2, d_k=5, d_v=72)
    assert not verify(operator("segments", link), case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("link", ["lq_norm", "softmax over keys", "soft_threshold"])
def test_segments_in_half_precision_and_every_schedule(link):
    op = operator("segments with momentum", link, DECAYED, SQUARED)
    for schedule in op.schedules:
        case = Case(B=1, T=40, packed=(17, 23), H=1, HV=2, d_k=8, d_v=40, schedule=schedule)
        assert not verify(op, case, form="chunk", backend="triton", dtype=torch.float16).failures


@pytest.mark.parametrize("retention", RETENTIONS)
@pytest.mark.parametrize("update", ["previous", "retained", "odd segments", "momentum"])
def test_retentions_that_are_not_quadratic_are_exact(retention, update):
    if update == "momentum" and retention in INSIDE:
        pytest.skip("the last step may carry such a state out of its domain")
    op = operator(update, None, RETENTIONS[retention])
    assert op.forms == ("recurrent",)
    assert not verify(op, SMALL, form="recurrent", backend="torch", dtype=torch.float64).failures


@pytest.mark.parametrize("retention", ["entropy", "logit", "elastic net", "barrier", *SEARCHED])
def test_retentions_that_are_not_quadratic_are_exact_in_the_kernels(retention):
    op = operator("previous", None, RETENTIONS[retention])
    assert not verify(op, FEW, form="recurrent", backend="triton", dtype=torch.float32).failures


def test_a_link_of_a_state_that_is_mirrored():
    op = operator("segments", "softmax over all", RETENTIONS["elastic net"])
    assert not verify(op, SMALL, form="recurrent", backend="torch", dtype=torch.float64).failures
    assert not verify(op, FEW, form="recurrent", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("retention", SEARCHED)
def test_a_retention_that_is_not_solved_is_searched(retention):
    mirror = analyse(spec_of("previous", None, RETENTIONS[retention])).recurrence.mirror
    assert mirror.root is not None and mirror.root.unknown.name in {s.name for s in mirror.law.free_symbols}


@pytest.mark.parametrize(
    "part, said",
    [
        ("0 - sum(square(S)**2)", "falls from"),
        ("sum(abs(S)**1.5)", "no finite value and derivative where S_new = 0"),
        ("0 - sum(log(1 - square(S)))", "need not have one root"),
    ],
)
def test_what_need_not_have_one_root_is_refused(part, said):
    with pytest.raises(SpecError, match=said):
        analyse(spec_of("previous", None, f"{DECAYED} + 0.1 * ({part})"))


# Relations


def drawn(op, T=40, d_k=6, d_v=5, seed=3):
    sizes = dict(B=1, T=T, H=1, HV=2, dk=d_k, dv=d_v, seed=seed, dtype=torch.float64)
    x = random_inputs(op.spec, **sizes)
    return x | {"initial_state": x["initial_state"].double()}


def run(op, x, **options):
    return op(**x, output_final_state=True, backend="torch", **options)


def test_a_norm_of_order_two_is_no_link():
    linked = spec_of("segments", '{ kind = "lq_norm", q = 2, epsilon = 1 }')
    assert analyse(linked).recurrence == analyse(spec_of("segments")).recurrence


@pytest.mark.parametrize(
    "retention, link, into, back",
    [
        ("divergence", "exp", torch.log, torch.exp),
        ("entropy", "exp", torch.log, torch.exp),
        ("logit", "sigmoid", torch.logit, torch.sigmoid),
    ],
)
def test_a_mirror_is_its_link(retention, link, into, back):
    """The same rule, whether its state is the weights or what the link makes them of."""
    mirrored = operator("previous", None, RETENTIONS[retention])
    dual = operator("previous", link, DECAYED if retention == "entropy" else "norm2(S - S_prev) / 2")
    x = drawn(mirrored)
    o, S = run(mirrored, x)
    o_dual, A = run(dual, x | {"initial_state": into(x["initial_state"])})
    assert relative_rms(o_dual, o) < 1e-12 and relative_rms(back(A), S) < 1e-12


def test_a_softmax_does_not_see_what_is_the_same_for_its_slice():
    op = operator("segments", "softmax over keys")
    x = drawn(op)
    shift = torch.linspace(-200, 700, 5, dtype=torch.float64)
    x["g"] = torch.zeros_like(x["g"])  # a decay would move the shift
    o, S = run(op, x, form="chunk")
    o_shifted, S_shifted = run(op, x | {"initial_state": x["initial_state"] + shift}, form="chunk")
    assert relative_rms(o_shifted, o) < 1e-12 and relative_rms(S_shifted - shift, S) < 1e-12


@pytest.mark.parametrize("slice", ["key", "value", "all"])
def test_an_expression_is_the_word_that_it_spells(slice):
    word = operator("segments", f'{{ kind = "softmax", axis = "{slice}", scale = 2 }}')
    spelled = f'{{ kind = "expression", expr = "2 * exp(S) / sum(exp(S))", axis = "{slice}" }}'
    own, x = operator("segments", spelled), drawn(word)
    for form in word.forms:
        for a, b in zip(run(own, x, form=form), run(word, x, form=form)):
            assert relative_rms(a, b) < 1e-12


def test_large_states_do_not_overflow_a_softmax():
    for link in ("softmax over keys", "softmax over values", "softmax over all"):
        op = operator("segments", link)
        x = {n: t.float() for n, t in drawn(op, T=20).items()}
        x["initial_state"] = (x["initial_state"] * 4000).requires_grad_()
        for form in op.forms:
            o, final = op(**x, output_final_state=True, backend="triton", form=form)
            (slope,) = torch.autograd.grad(o.sum() + final.sum(), x["initial_state"])
            assert o.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("link", ["lq_norm", "softmax over keys", "soft_threshold"])
def test_forms_agree_and_segments_split_the_sequence(link):
    op = operator("segments", link)
    x = drawn(op)
    o, final = run(op, x, form="chunk")
    by_token, final_by_token = run(op, x, form="recurrent")
    assert relative_rms(by_token, o) < 1e-12 and relative_rms(final_by_token, final) < 1e-12
    state, parts = x["initial_state"], []
    for begin, end in ((0, 16), (16, 32), (32, 40)):
        part = {n: t[:, begin:end] if t.dim() > 2 and n != "initial_state" else t for n, t in x.items()}
        made, state = run(op, part | {"initial_state": state}, form="chunk")
        parts.append(made)
    assert relative_rms(torch.cat(parts, 1), o) < 1e-12 and relative_rms(state, final) < 1e-12


@pytest.mark.parametrize("link", ["lq_norm", "softmax over all"])
def test_the_future_never_shows(link):
    op = operator("segments", link)
    x, cut = drawn(op), 21
    later = {n: torch.cat([t[:, :cut], t[:, cut:].flip(1)], 1) for n, t in x.items() if n in ("q", "k", "v", "beta")}
    for form in op.forms:
        o, changed = run(op, x, form=form)[0], run(op, x | later, form=form)[0]
        assert (o[:, :cut] == changed[:, :cut]).all() and not (o[:, cut:] == changed[:, cut:]).all()


# What the program shows


@every_link
def test_what_joins_the_value_channels_is_found_in_the_program(link):
    plans = {name: form.plan for name, form in analyse(spec_of("segments", link)).forms.items()}
    joined = link in JOINED
    for plan in plans.values():
        scans = [k for k in (*plan.forward, *plan.backward) if "scan" in k.name]
        assert all(k.name.endswith(("_whole", "_keys")) == joined for k in scans)
    for kernel in (*plans["chunk"].forward, *plans["chunk"].backward):
        if "scan" not in kernel.name:  # they load weights, and make none
            assert not any(isinstance(s.op, Largest) for s in kernel.statements)
            assert "lam" in LINKS[link] or not any(sums_values(s) and s.origin == "link" for s in kernel.statements)
            assert any(b.name == "weights" and b.space is Space.CHUNK for b in kernel.loads)


def test_a_rule_without_a_link_keeps_no_weights():
    plan = analyse(spec_of("segments")).forms["chunk"].plan
    assert "weights" not in {b.name for b in plan.saved}


# Refusals


@pytest.mark.parametrize(
    "retention, says",
    [
        ("sum(S * log(S) - S - S * log(S_prev)) - norm2(S)", "need not have one root"),
        ("sum(abs(S - exp(g) * S_prev)**3)", "not solved for S"),
        ("norm2(S - S_prev) / 2 - lam * sum(abs(S))", "not solved for S"),
    ],
)
def test_what_has_no_inverse_is_refused_with_its_place(retention, says):
    with pytest.raises(SpecError) as caught:
        analyse(spec_of("previous", None, retention))
    assert says in str(caught.value) and caught.value.key == "retention.expr" and caught.value.span is not None


@pytest.mark.parametrize(
    "expr", ["sqrt(S)", "log(S)", "S / norm(S)", "1 / S", "S / sum(S)", "S / (exp(S) - 1)", "log(abs(S)) * S"]
)
def test_a_link_without_a_value_at_zero_is_refused(expr):
    with pytest.raises(SpecError, match="no finite value and derivative at S = 0") as caught:
        analyse(spec_of("segments", f'{{ kind = "expression", expr = "{expr}" }}'))
    assert caught.value.key == "retention.link.expr" and caught.value.span is not None


def test_implicit_steps_of_mirrors_are_refused():
    text = spec_of("previous", None, RETENTIONS["entropy"]).source.text
    with pytest.raises(SpecError, match="implicit steps of"):
        analyse(parse_spec(text.replace('rule = "gradient"\nat = "previous"', 'rule = "proximal"')))


def test_a_state_has_to_start_inside_of_its_domain():
    op = operator("previous", None, RETENTIONS["entropy"])
    x = drawn(op)
    with pytest.raises(ArgumentError, match="initial_state: got the value"):
        run(op, x | {"initial_state": -x["initial_state"]})
    del x["initial_state"]
    with pytest.raises(ArgumentError, match="cannot start at zeros"):
        run(op, x)


# Broken on purpose


def broken(tmp_path, update, link, **settings):
    """An operator whose custom ops are its own."""
    spec = spec_of(update, link, name="broken_link", **settings)
    files = compiler.generate(spec)
    files["op.py"] = files["op.py"].replace('"ttrc::"', f'"ttrc::{tmp_path.name.replace("-", "_")}_"')
    for file, text in files.items():
        Path(tmp_path / file).write_text(text)
    return Operator(spec, import_package(tmp_path, spec.name))


def test_a_chunk_that_reads_the_state_for_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(chunk_pass, "derive_link", lambda build, gates, link, state: state)
    op = broken(tmp_path, "segments", "exp")
    assert verify(op, SMALL, form="chunk", backend="torch", dtype=torch.float64).failures


def test_sums_over_a_padding_that_is_not_masked(tmp_path, monkeypatch):
    real = Builder.mask

    def mask(self, name, arg, relation, fill, origin):
        return (
            arg if origin == link_pass.ORIGIN and "first" not in name else real(self, name, arg, relation, fill, origin)
        )

    monkeypatch.setattr(Builder, "mask", mask)
    op = broken(tmp_path, "segments", "lq_norm")
    assert verify(op, SMALL, form="chunk", backend="triton", dtype=torch.float32).failures


def test_a_link_whose_adjoint_forgets_its_sum(tmp_path, monkeypatch):
    real = Builder.reduce

    def reduce(self, name, arg, keep, origin):
        return (
            real(self, name, arg, keep, origin)
            if origin != "adjoint of W"
            else self.constant(name, 0 * link_pass.symbolic.ONE, keep, origin)
        )

    monkeypatch.setattr(Builder, "reduce", reduce)
    op = broken(tmp_path, "segments", "softmax over keys")
    assert verify(op, SMALL, form="chunk", backend="torch", dtype=torch.float64).failures


def test_triton_folds_every_axis_that_a_result_lacks():
    x, kept = Tile("x", ("t", "k", "v")), Tile("y", ("t",))
    printer = TritonPrinter(raw=set())
    assert printer.text(Largest(x), kept) == "tl.max(tl.max(x, 2), 1)"
    assert printer.text(Largest(x), Tile("y", ())) == "tl.max(x)"
    assert printer.text(Reduce(x), kept) == "tl.sum(tl.sum(x, 2), 1)"
