"""Several associations a token, and keys other than k: what the memory is asked, and what errors are written under."""

import pytest
import torch

import ttrc
from ttrc.compiler import analyse
from ttrc.emit import emit
from ttrc.errors import SpecError
from ttrc.ir.tile import Compose, Inverse
from ttrc.language.load import parse_spec
from ttrc.passes.derive_recurrence import derive_recurrence
from ttrc.runtime.verify import Case, relative_rms, verify
from ttrc.sampling import random_inputs
from ttrc.tools import classify, mathematics
from ttrc.tools.notation import as_mathml, as_text

HEAD = {"g": "log_decay", "beta": "unit", "c": "unit", "b": "decay"}
KEYS = {"w": "log_decay", "a": "unit", "kappa": "real", "other": "real"}
VALUES = {"y": "real"}
GATES = {
    **{name: ("head", domain) for name, domain in HEAD.items()},
    **{name: ("key_channel", domain) for name, domain in KEYS.items()},
    **{name: ("value_channel", domain) for name, domain in VALUES.items()},
}
BY_HEAD, BY_KEY, NONE = "exp(g) * S_prev", "exp(w) * S_prev", "S_prev"
STORE = '[loss.store]\nexpr = "-dot(p, v)"'
FORGET = '[loss.forget]\nkey = "kappa"\nwrite = "a * kappa"\nexpr = "norm2(p) / 2"'
HUBER = '[loss.robust]\nweight = "beta"\nkey = "kappa"\nexpr = "sum(huber(p - y, 1))"'
NORM = '[loss.robust]\nkey = "c * kappa"\nexpr = "huber(norm(p - v), 1)"'
ASIDE = '[loss.aside]\nkey = "kappa"\nwrite = "other"\nexpr = "-dot(p, y)"'
ASKED_APART = '[loss]\nkey = "c * k"\nwrite = "k"\nweight = "beta"\nexpr = "norm2(p - v) / 2"'
DELTA, DELTA_TOO = (
    f'[loss.{name}]\nkey = "{key}"\nweight = "{weight}"\nexpr = "norm2(p - {target}) / 2"'
    for name, key, weight, target in (("first", "k", "beta", "v"), ("second", "kappa", "c", "y"))
)
OF_LENGTH_1 = '[loss.store]\nexpr = "-dot(p, v)"\n[loss.unit]\nkey = "other / norm(other)"\nexpr = "norm2(p - y) / 2"'


def text(losses, kept, at="previous", update=""):
    """A spec of these losses, with the gates that it mentions."""
    body = f'{losses}\n[retention]\nexpr = "norm2(S - {kept}) / 2"\n[update]\nrule = "gradient"\nat = "{at}"\n'
    body += f"{update}\n"
    words = set("".join(c if c.isalnum() else " " for c in body).split())
    gates = "".join(f'{n} = {{ per = "{p}", domain = "{d}" }}\n' for n, (p, d) in GATES.items() if n in words)
    top = 'schema = 1\nname = "associated"\nreference = ""\n'
    return f'{top}[inputs]\n{gates}[memory]\nkind = "linear"\n{body}'


RULES = {
    "dplr": text(f"{STORE}\n{FORGET}", BY_KEY),
    "dplr_scalar": text(f"{STORE}\n{FORGET}", BY_HEAD),
    "dplr_retained": text(f"{STORE}\n{FORGET}", BY_KEY, "retained"),
    "iplr": text(f"{FORGET}\n{STORE}", NONE),
    "asked_apart": text(ASKED_APART, BY_HEAD),
    "asked_apart_by_channel": text(ASKED_APART, BY_KEY, "retained"),
    "two_writers": text(f"{STORE}\n{ASIDE}", BY_HEAD),
    "two_writers_by_channel": text(f"{STORE}\n{ASIDE}", BY_KEY),
    "three": text(f"{STORE}\n{ASIDE}\n{FORGET}", BY_HEAD, "retained"),
    "robust": text(f"{STORE}\n{HUBER}", BY_HEAD),
    "robust_by_channel": text(f"{STORE}\n{HUBER}", BY_KEY, "retained"),
    "of_a_norm": text(f"{STORE}\n{NORM}", BY_HEAD),
    "momentum": text(f"{STORE}\n{FORGET}", BY_HEAD, update='momentum = "b"'),
    "robust_momentum": text(f"{STORE}\n{HUBER}", NONE, "retained", 'momentum = "b"'),
    "of_length_1": text(OF_LENGTH_1, BY_HEAD),
    "frozen": text(f"{DELTA}\n{DELTA_TOO}", BY_HEAD, "segment_start", "segment = 16"),
}
for at in ("previous", "retained", "in_turn"):  # block elimination
    RULES[f"two_predictions_{at}"] = text(f"{DELTA}\n{DELTA_TOO}", BY_HEAD, at)
    RULES[f"two_predictions_by_channel_{at}"] = text(f"{DELTA}\n{DELTA_TOO}", BY_KEY, at)
RULES |= {
    "three_predictions": text(f"{DELTA}\n{FORGET}\n{STORE}\n{DELTA_TOO}", BY_HEAD),
    "three_in_turn": text(f"{DELTA}\n{FORGET}\n{STORE}\n{DELTA_TOO}", BY_KEY, "in_turn"),
    "no_decay_in_turn": text(f"{DELTA_TOO}\n{DELTA}", NONE, "in_turn"),
    "robust_first": text(f"{HUBER}\n{DELTA}", BY_KEY),
    "robust_first_in_turn": text(f"{HUBER}\n{DELTA}\n{STORE}", BY_HEAD, "in_turn"),
    "robust_last_in_turn": text(f"{DELTA}\n{STORE}\n{HUBER}", BY_KEY, "in_turn"),
    "two_with_momentum": text(f"{DELTA}\n{DELTA_TOO}", BY_HEAD, "retained", 'momentum = "b"'),
}
BY_TOKEN = {
    "linked_in_turn": text(f"{DELTA}\n{DELTA_TOO}", BY_HEAD, "in_turn").replace(
        "[update]", 'link = { kind = "sigmoid" }\n[update]'
    ),
    "mirrored_in_turn": text(f"{DELTA}\n{DELTA_TOO}", NONE, "in_turn").replace(
        "norm2(S - S_prev) / 2", "sum(S * log(S / S_prev) - S + S_prev)"
    ),
}
BACKENDS = [("torch", torch.float64), ("triton", torch.float32)]
CASE = Case(B=1, T=21, d_k=5, d_v=7, chunk_size=16)  # padded channels, and a ragged last chunk
FEW = Case(B=1, T=3, d_k=5, d_v=7)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_chunks_agree_with_the_oracle(name, backend, dtype):
    op = ttrc.load(parse_spec(RULES[name]))
    case = CASE if "segment" not in RULES[name] else Case(B=1, T=21, d_k=5, d_v=7)
    assert not verify(op, case, form="chunk", backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("name", (*RULES, *BY_TOKEN))
@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_tokens_agree_with_the_oracle(name, backend, dtype):
    op = ttrc.load(parse_spec((RULES | BY_TOKEN)[name]))
    assert ("chunk" in op.forms) == (name in RULES)
    assert not verify(op, FEW, form="recurrent", backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("name", ["dplr", "robust", "three"])
def test_packed_sequences(name):
    case = Case(T=21, packed=(17, 1, 3), d_k=6, d_v=6, chunk_size=16)
    op = ttrc.load(parse_spec(RULES[name]))
    assert not verify(op, case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("name", ["dplr", "dplr_scalar"])
@pytest.mark.parametrize("extreme", ["strong", "weak"])
def test_extreme_gates(name, extreme):
    case = Case(B=1, T=21, d_k=5, d_v=7, chunk_size=16, extreme=extreme)
    op = ttrc.load(parse_spec(RULES[name]))
    for backend, dtype in BACKENDS:
        assert not verify(op, case, form="chunk", backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("name", ["dplr", "asked_apart"])
def test_half_precision(name):
    case = Case(B=1, T=18, HV=1, d_k=16, d_v=16, chunk_size=16)
    op = ttrc.load(parse_spec(RULES[name]))
    assert not verify(op, case, form="chunk", backend="triton", dtype=torch.float16).failures


def plan_of(rule):
    form = analyse(parse_spec(RULES[rule])).forms["chunk"]
    return form, {k.name.removeprefix("chunk_"): k for k in form.plan.kernels}


@pytest.mark.parametrize(
    "name", ["two_predictions_in_turn", "three_predictions", "two_predictions_by_channel_retained"]
)
def test_no_cotangent_goes_through_an_elimination(name):
    """That of a system takes its solution and the transposed system's alone, which scans find and store."""
    form, kernels = plan_of(name)
    adjoint = [s for s in form.backward.statements if s not in form.forward.statements]
    assert form.forward.unknowns and not any(isinstance(s.op, Compose) for s in adjoint)
    ahead, back = ({b.tile for b in kernels[f"scan{kind}_joint"].stores} for kind in ("", "_reverse"))
    count = len(form.forward.unknowns)
    assert ahead.issuperset(form.forward.unknowns) and back.issuperset(form.backward.unknowns[count:])
    assert len(form.backward.unknowns) == 2 * count
    gradients = next(k for name, k in kernels.items() if name.startswith("gradients_joint"))
    assert not any(isinstance(s.op, (Inverse, Compose)) for s in gradients.statements)


def test_many_sums_of_pairs_share_a_loop_with_those_of_one_factor_alone():
    _, kernels = plan_of("three_predictions")
    loops = [[s for s in x.statements if s.target in x.sums] for x in kernels["gradients_joint"].segments if x.panelled]
    sums = [[s.op for s in loop if s.target.axes == ("t", "s")] for loop in loops]
    assert sum(map(len, sums)) == 14 and max(map(len, sums)) == 3
    assert all(len({op.a for op in ops}) == 1 for ops in sums if ops)


@pytest.mark.parametrize("name, rounded", [("two_predictions_previous", ["kappa_rounded"]), ("of_length_1", [])])
def test_only_a_key_that_nothing_but_products_take_is_rounded(name, rounded):
    _, kernels = plan_of(name)
    prepare = next(k for name, k in kernels.items() if name.startswith("prepare"))
    assert [b.name for b in prepare.stores if b.tile.axes == ("t", "k")] == rounded
    for kernel in (k for k in kernels.values() if k.loads and k != prepare and not k.name.startswith("token")):
        assert not {"kappa"} & {b.name for b in kernel.loads} or not rounded


def drawn(op, T=21, seed=0):
    x = random_inputs(op.spec, B=2, T=T, H=2, HV=2, dk=5, dv=7, dtype=torch.float64, seed=seed)
    return {n: t for n, t in x.items() if not n.startswith("initial")}


def test_a_rule_of_two_parts_is_what_its_equation_says():
    """S_t = (diag(e^w) - (a kappa) kappa') S_{t-1} + k v' (arXiv:2503.14456, Eq 16, transposed), o = S_t' q."""
    op = ttrc.load(parse_spec(RULES["dplr"]))
    x = drawn(op)
    S, outputs = torch.zeros(2, 2, 5, 7, dtype=torch.float64), []
    for t in range(21):
        q, k, v, w, a, kappa = (x[n][:, t] for n in ("q", "k", "v", "w", "a", "kappa"))
        removed = (a * kappa)[..., :, None] * (kappa[..., None, :] @ S)
        S = w.exp()[..., :, None] * S - removed + k[..., :, None] * v[..., None, :]
        outputs.append((q[..., None, :] @ S)[..., 0, :] * 5**-0.5)
    o, final = op(**x, output_final_state=True)
    assert relative_rms(o, torch.stack(outputs, 1)) < 1e-13 and relative_rms(final, S) < 1e-13


def alike(one, other, **more):
    """The same outputs and the same gradients of what both take."""
    ops = [ttrc.load(parse_spec(t)) for t in (one, other)]
    x = drawn(ops[1]) | {n: f(drawn(ops[1])) for n, f in more.items()}
    found = []
    for op in ops:
        names = ("q", "k", "v", *(g.name for g in op.spec.inputs))
        leaves = {n: x[n].clone().requires_grad_() for n in names}
        o, _ = op(**leaves)
        (o * torch.cos(torch.arange(o.numel(), dtype=o.dtype)).view_as(o)).sum().backward()
        found.append({"o": o} | {n: t.grad for n, t in leaves.items()})
    for n in found[0].keys() & found[1].keys() - set(more):
        assert relative_rms(found[0][n], found[1][n]) < 1e-12, n


def test_steps_in_turn_are_a_longer_sequence():
    """Of the delta rule: all first steps at even tokens, all second ones at odd tokens, which do not decay."""
    op = ttrc.load(parse_spec(RULES["two_predictions_in_turn"]))
    x = drawn(op)

    def turns(first, second):
        return torch.stack((first, second), 2).flatten(1, 2)

    longer = {
        "q": turns(torch.zeros_like(x["q"]), x["q"]),
        "k": turns(x["k"], x["kappa"]),
        "v": turns(x["v"], x["y"].expand_as(x["v"])),
        "g": turns(x["g"], torch.zeros_like(x["g"])),
        "beta": turns(x["beta"], x["c"]),
    }
    o, final = op(**x, output_final_state=True)
    expected, last = ttrc.load("gated_deltanet")(**longer, output_final_state=True)
    assert relative_rms(o, expected[:, 1::2]) < 1e-13 and relative_rms(final, last) < 1e-13


PLAIN = '[loss]\nweight = "beta"\nexpr = "norm2(p - v) / 2"'
IN_PARTS = '[loss.one]\nweight = "beta"\nexpr = "-dot(p, v)"\n[loss.two]\nweight = "beta"\nexpr = "norm2(p) / 2"'


@pytest.mark.parametrize("kept", [BY_HEAD, BY_KEY])
@pytest.mark.parametrize("at", ["previous", "retained"])  # in turn, each part is a step of its own
def test_a_loss_in_parts_is_the_loss(kept, at):
    alike(text(PLAIN, kept, at), text(IN_PARTS, kept, at))


def test_a_key_that_is_k_is_no_key():
    named = text(f'{PLAIN}\nkey = "k"\nwrite = "k"', BY_HEAD)
    (association,) = derive_recurrence(parse_spec(named)).associations
    assert association.key is None and association.write is None
    alike(text(PLAIN, BY_HEAD), named)


def test_the_order_of_losses_is_of_no_account():
    alike(RULES["iplr"], text(f"{STORE}\n{FORGET}", NONE))


def test_keys_that_are_k_given_as_an_input():
    """kappa = k: what is removed is what the delta rule removes."""
    removed = FORGET.replace('write = "a * kappa"\n', "").replace("norm2(p) / 2", "c * norm2(p) / 2")
    apart = text(f"{STORE.replace('-dot(p, v)', '-c * dot(p, v)')}\n{removed}", BY_HEAD)
    alike(text(PLAIN.replace("beta", "c"), BY_HEAD), apart, kappa=lambda x: x["k"], k=lambda x: x["k"])


REFUSED = [
    ("proximal", 'rule = "proximal"', f"{STORE}\n{FORGET}", "several losses make no sense", "loss.forget"),
    ("closed", 'rule = "closed_form"', f"{ASKED_APART}", 'takes no key "key"', "loss.key"),
]


@pytest.mark.parametrize("_, rule, losses, says, key", REFUSED)
def test_rules_that_take_one_loss_say_so(_, rule, losses, says, key):
    spec = text(losses, NONE).replace('rule = "gradient"\nat = "previous"', rule)
    spec = spec.replace("norm2(S - S_prev)", "norm2(S)") if "closed" in rule else spec
    with pytest.raises(SpecError, match=says) as refused:
        parse_spec(spec)
    assert refused.value.key == key


def test_explain_tells_of_each_association():
    module = analyse(parse_spec(RULES["dplr"]))
    assert classify.headline(module) == "linear memory, Hebbian and affine errors, data-dependent decay"
    lines = [as_text(line) for step in mathematics.steps(module) for line in step.lines]
    assert "S_t = exp(w) S_prev - (k e_store' + write_forget e_forget')" in lines
    assert "write_forget = a*kappa" in lines and "p_forget = S_prev' key_forget" in lines
    assert all("<mfrac>" in as_mathml(line) for line in mathematics.steps(module)[0].lines[:2])
    steps = mathematics.steps(analyse(parse_spec(RULES["two_predictions_in_turn"])))
    assert "p_second = (a S_prev - k e_first')' key_second" in [as_text(line) for line in steps[-1].lines]


def told(name):
    from ttrc.compiler import analyse
    from ttrc.tools import classify
    from ttrc.tools.choices import choices

    module = analyse(parse_spec((RULES | BY_TOKEN)[name]))
    (update,) = [c.says for c in choices(module.spec) if c.section == "update"]
    return update, {f.aspect: f.because for f in classify.findings(module)}


def test_explain_tells_where_steps_in_turn_take_their_gradients():
    update, _ = told("three_in_turn")
    assert "what those before it have left" in update and "in_turn" not in update


@pytest.mark.parametrize("name", ["robust_first", "robust_first_in_turn", "robust_last_in_turn"])
def test_explain_tells_of_substitution_beside_affine_errors(name):
    _, because = told(name)
    assert "row after row" in because["chunk form"] and "taken out of these equations first" in because["chunk form"]
    assert "taken out" not in told("robust")[1]["chunk form"]


def test_explain_tells_what_a_momentum_keeps_of_all_associations():
    assert "- ( k e_first' + key_second e_second' ) with b = b" in told("two_with_momentum")[1]["momentum"]


def test_generated_derivations_call_each_prediction_by_its_name():
    from ttrc.backends.derivation import derivation
    from ttrc.compiler import analyse

    lines = derivation(analyse(parse_spec(RULES["robust_first_in_turn"])))
    assert "dL/dp_robust = beta*clip(p_robust - y, 1)" in lines and "e_first = (beta) p_first + (" in lines


def test_products_with_the_same_decays_are_one_loop_over_lengths_of_pieces():
    """Of rwkv7's gradients those of pairs that read, and of pairs that predict; and in front of the scans."""
    text = emit(analyse(ttrc.load("rwkv7").spec))["kernels.py"]
    for kernel in ("chunk_prepare_joint_keys", "chunk_gradients_joint_keys"):
        body = text[text.index(f"def {kernel}(") :].split("@triton.jit")[0]
        assert body.count("for _level in") == 2, kernel
