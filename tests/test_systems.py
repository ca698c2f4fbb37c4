"""Several errors a token that are not affine: one substitution of several unknowns, row after row of a chunk."""

import functools
import itertools

import pytest
import torch

import ttrc
from test_associations import BY_HEAD, BY_KEY, DELTA, FORGET, HUBER, NONE, NORM, STORE, text
from ttrc.compiler import analyse
from ttrc.ir.tile import Further, Substitute
from ttrc.language.load import load_spec, parse_spec
from ttrc.passes.measure_chain import chained_products
from ttrc.paths import specs_dir
from ttrc.runtime.verify import Case, relative_rms, verify
from ttrc.sampling import random_inputs
from ttrc.tools import classify
from ttrc.tools.notation import as_assignment

OWN = '[loss.own]\nweight = "beta"\nexpr = "sum(huber(p - v, 1))"'
SMOOTH = '[loss.smooth]\nkey = "other"\nwrite = "a * other"\nexpr = "sum(y * log_cosh(p - v))"'
FLAT = '[loss.flat]\nkey = "c * kappa"\nexpr = "c * sum(abs(p - v))"'
LEVEL = '[loss.level]\nweight = "beta"\nexpr = "sum(abs(p - y))"'
SMALL = '[loss.small]\nkey = "other"\nweight = "c"\nexpr = "norm(p - y)"'
RULES = {
    f"{name}_{at}": text(losses, kept, at)
    for (name, losses, kept), at in itertools.product(
        [
            ("two", f"{OWN}\n{HUBER}", NONE),
            ("two_by_head", f"{OWN}\n{HUBER}", BY_HEAD),
            ("two_by_key", f"{OWN}\n{SMOOTH}", BY_KEY),
            ("three", f"{OWN}\n{HUBER}\n{SMOOTH}", BY_HEAD),
            ("one_linear_between", f"{OWN}\n{FORGET}\n{HUBER}", BY_HEAD),
            ("beside_all", f"{STORE}\n{OWN}\n{DELTA}\n{SMOOTH}", BY_KEY),
        ],
        ("previous", "retained", "in_turn"),
    )
}
RULES |= {
    "momentum": text(f"{OWN}\n{HUBER}", BY_HEAD, "retained", 'momentum = "b"'),
    "momentum_previous": text(f"{OWN}\n{SMOOTH}", BY_HEAD, "previous", 'momentum = "b"'),
    "one_flat": text(f"{FLAT}\n{OWN}", BY_HEAD, "in_turn"),
    "one_flat_last": text(f"{OWN}\n{FLAT}\n{SMOOTH}", BY_KEY, "in_turn"),
    "all_flat": text(f"{FLAT}\n{LEVEL}", BY_HEAD),
    "frozen": text(f"{OWN}\n{HUBER}", BY_HEAD, "segment_start", "segment = 16"),
}
JOINED = {  # sums over value channels
    "two_norms": text(f"{NORM}\n{SMALL}", NONE),
    "two_norms_in_turn": text(f"{NORM}\n{SMALL}", BY_KEY, "in_turn"),
    "norm_and_huber": text(f"{NORM}\n{HUBER.replace('robust', 'too')}", BY_HEAD, "in_turn"),
    "huber_and_norm": text(f"{HUBER.replace('robust', 'too')}\n{NORM}\n{DELTA}", BY_HEAD),
}
UNSEEN = ("huber_product", "two_robust", "robust_beside_delta")
CASE = Case(B=1, T=21, d_k=5, d_v=7, chunk_size=16)  # padded channels, and a ragged last chunk


@functools.cache
def operator(name):
    if name in UNSEEN:
        return ttrc.load(load_spec(specs_dir().parent / f"tests/unseen/{name}.toml"))
    return ttrc.load(parse_spec((RULES | JOINED)[name]))


@pytest.mark.parametrize("name", (*RULES, *JOINED))
def test_systems_are_exact(name):
    case = Case(B=1, T=21, d_k=5, d_v=7) if name == "frozen" else CASE
    assert not verify(operator(name), case, form="chunk", backend="torch", dtype=torch.float64).failures


@pytest.mark.parametrize("name", ["two_by_head_previous", "three_in_turn", "beside_all_in_turn", "one_flat_last"])
def test_systems_are_exact_in_the_kernels(name):
    case = Case(B=1, T=37, H=1, HV=1, d_k=5, d_v=7, chunk_size=32)  # of two blocks of 16 rows, the last one ragged
    assert not verify(operator(name), case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("name", JOINED)
def test_rows_that_meet_in_sums_over_values(name):
    case = Case(B=1, T=21, H=1, HV=1, d_k=5, d_v=7, chunk_size=32)
    assert not verify(operator(name), case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("name", ["huber_product", "norm_and_huber"])
def test_keys_in_panels_and_every_schedule(name):
    """Wide heads, whose states lie in memory where rows meet."""
    case = Case(B=1, T=20, H=1, HV=1, d_k=144, d_v=5, chunk_size=16)
    for schedule in operator(name).schedules:
        own = Case(**vars(case) | {"schedule": schedule})
        assert not verify(operator(name), own, form="chunk", backend="triton", dtype=torch.float32).failures


def test_packed_sequences_in_the_kernels():
    case = Case(T=24, packed=(17, 1, 6), H=1, HV=2, d_k=4, d_v=5, chunk_size=32, extreme="strong")
    assert not verify(operator("huber_product"), case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("name", UNSEEN)
def test_half_precision_over_several_blocks(name):
    case = Case(B=1, T=37, H=1, HV=1, d_k=16, d_v=16, chunk_size=32)
    assert not verify(operator(name), case, form="chunk", backend="triton", dtype=torch.bfloat16).failures


def drawn(op, **more):
    x = random_inputs(op.spec, B=1, T=21, H=1, HV=2, dk=5, dv=7, dtype=torch.float64, seed=3)
    x["initial_state"] = x["initial_state"].double()
    return x | more


def test_thresholds_that_are_never_reached_are_two_steps_of_the_delta_rule():
    op = operator("huber_product")
    x = drawn(op)
    x["delta"] = torch.full_like(x["delta"], 1e6)
    without = {n: t for n, t in x.items() if n != "delta"}
    expected, state = ttrc.load("gated_deltaproduct")(**without, output_final_state=True, form="chunk")
    o, final = op(**x, output_final_state=True, form="chunk")
    assert relative_rms(o, expected) < 1e-12 and relative_rms(final, state) < 1e-12


def test_steps_in_turn_are_a_longer_sequence():
    """All first steps at even tokens, all second ones at odd tokens, which do not decay."""
    op, one = operator("huber_product"), '[loss]\nweight = "beta"\nexpr = "sum(huber(p - v, c))"'
    x = drawn(op)
    x["delta"] = x["delta"] / x["delta"].max()

    def turns(first, second):
        return torch.stack(torch.broadcast_tensors(first, second), 2).flatten(1, 2)

    pairs = {"k": "k_2", "v": "v_2", "beta": "beta_2", "delta": "delta"}
    longer = {n: turns(x[n], x[other]) for n, other in pairs.items()}
    longer |= {"q": turns(torch.zeros_like(x["k_2"]), x["q"]), "g": turns(x["g"], 0 * x["g"]), "c": longer.pop("delta")}
    op_of_one = ttrc.load(parse_spec(text(one, BY_HEAD, "retained")))
    expected, last = op_of_one(**longer, initial_state=x["initial_state"], output_final_state=True)
    o, final = op(**x, output_final_state=True)
    assert relative_rms(o, expected[:, 1::2]) < 1e-12 and relative_rms(final, last) < 1e-12


@pytest.mark.parametrize("name", UNSEEN)
def test_a_sequence_in_two_is_the_sequence(name):
    op = operator(name)
    x = drawn(op)
    o, final = op(**x, output_final_state=True, form="chunk", chunk_size=16)
    first = {n: t if n == "initial_state" else t[:, :9] for n, t in x.items()}
    o_1, state = op(**first, output_final_state=True, form="chunk", chunk_size=16)
    rest = {n: t[:, 9:] for n, t in x.items() if n != "initial_state"}
    o_2, last = op(**rest, initial_state=state, output_final_state=True, form="chunk", chunk_size=32)
    assert relative_rms(torch.cat((o_1, o_2), 1), o) < 1e-12 and relative_rms(last, final) < 1e-12
    again, _ = op(**x, form="recurrent")
    assert relative_rms(again, o) < 1e-12


def test_the_order_of_losses_counts_in_turn_alone():
    x, found = None, {}
    for at, losses in itertools.product(("previous", "in_turn"), (f"{OWN}\n{HUBER}", f"{HUBER}\n{OWN}")):
        op = ttrc.load(parse_spec(text(losses, BY_HEAD, at)))
        x = drawn(op) if x is None else x
        found.setdefault(at, []).append(op(**x, form="chunk")[0])
    assert relative_rms(*found["previous"]) < 1e-12 and relative_rms(*found["in_turn"]) > 1e-3


def test_what_a_flat_loss_writes_is_no_part_of_the_transposed_system():
    """Nothing comes back through what the flat one writes."""
    form = analyse(parse_spec(RULES["one_flat"])).forms["chunk"]
    (ahead,) = [s.op for s in form.forward.statements if isinstance(s.op, Substitute)]
    back = [s.op for s in form.backward.statements if isinstance(s.op, Substitute) and s.op.transposed]
    assert len(ahead.unknowns) == 2 and [len(op.unknowns) for op in back] == [1]


def test_one_substitution_each_way_stands_in_the_scans():
    plan = analyse(parse_spec(RULES["three_previous"])).forms["chunk"].plan
    for kernel in plan.kernels:
        ops = [s.op for s in kernel.statements if isinstance(s.op, Substitute)]
        further = {s.op.number for s in kernel.statements if isinstance(s.op, Further)}
        assert len(ops) == ("chunk_scan" in kernel.name) and further == ({1, 2} if ops else set())


def test_a_chain_of_rows_in_turn_is_as_long_as_both_are():
    """Huber's row is five instructions behind the last; side by side two wait for one more that takes off the other."""
    rows = {}
    for name in ("two_by_head_previous", "two_by_head_in_turn"):
        program = analyse(parse_spec(RULES[name])).forms["chunk"].forward
        (statement,) = [s for s in program.statements if isinstance(s.op, Substitute)]
        rows[name] = (chained_products(statement, 64) - 2 * 4) * 175 / 64
    assert rows == pytest.approx({"two_by_head_previous": 6, "two_by_head_in_turn": 10})


def test_explain_tells_of_all_unknowns():
    for name, solved in (("two_in_turn", "and of errors before it in its own alone"), ("two_previous", "rows alone")):
        module = analyse(parse_spec(RULES[name]))
        (form,) = [f for f in classify.findings(module) if f.aspect == "chunk form"]
        assert form.verdict.startswith("exact") and solved in form.because and "sum_j A_ij e_j(p_j)" in form.because
    module = analyse(parse_spec(RULES["two_in_turn"]))
    told = [
        as_assignment(s) for s in module.forms["chunk"].forward.statements if isinstance(s.op, (Substitute, Further))
    ]
    (first, equations), (second, further) = told
    assert first == "prediction[t,v]" and "of error s = t too" in equations and "prediction_2[t,v] = " in equations
    assert second == "prediction_2[t,v]" and further == "unknown 2 of the substitution of prediction[t,v]"
