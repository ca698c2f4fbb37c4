"""Normalisers: what a memory would answer, had every value been 1, and its state; against papers, in every form."""

from pathlib import Path

import pytest
import torch

import ttrc
from ttrc.compiler import analyse
from ttrc.errors import SpecError
from ttrc.language.load import parse_spec
from ttrc.oracle import run
from ttrc.paths import specs_dir
from ttrc.runtime.verify import Case, fitting, relative_rms, verify
from ttrc.sampling import random_inputs

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").is_file())
UNSEEN = str(ROOT / "tests/unseen/{}.toml")


def drawn(spec, **sizes):
    """Random inputs of each token, and no state: all begin at zeros."""
    x = random_inputs(spec, B=1, dtype=torch.float64, seed=1, **sizes)
    return {name: y for name, y in x.items() if not name.startswith("initial")}


def heads_by_hand(step, x, start, scale):
    """o [B, T, H, d_v] of one sequence and head at a time; step takes a token's numbers and a state."""
    B, T, HV, _ = x["v"].shape
    repeats, o, finals = HV // x["k"].shape[2], [], []
    for b in range(B):
        for h in range(HV):
            state, row = start, []
            for t in range(T):
                token = {n: y[b, t, h // repeats if n in ("q", "k") else h] for n, y in x.items()}
                out, state = step(token | {"q": token["q"] * scale}, state)
                row.append(out)
            o.append(torch.stack(row))
            finals.append(state)
    return torch.stack(o).unflatten(0, (B, HV)).transpose(1, 2), finals


def stabilised(x, state):
    """xLSTM's equations 19 to 27, the largest exponent so far taken off: C, n [d_k], and that exponent m."""
    C, n, m = state
    following = torch.maximum(x["log_forget"] + m, x["log_input"])
    kept, taken = (x["log_forget"] + m - following).exp(), (x["log_input"] - following).exp()
    C = kept * C + taken * torch.outer(x["k"], x["v"])
    n = kept * n + taken * x["k"]
    h = C.T @ x["q"] / torch.maximum((n @ x["q"]).abs(), (-following).exp())
    return x["z"].sigmoid() * h, (C, n, following)


def test_mlstm_says_what_the_paper_does_with_a_stabiliser():
    spec = ttrc.load("mlstm").spec
    x = drawn(spec, T=9, H=1, HV=2, dk=4, dv=3)
    x["log_input"] = x["log_input"] * 3
    start = torch.zeros(4, 3).double(), torch.zeros(4).double(), torch.tensor(-torch.inf).double()
    expected, finals = heads_by_hand(stabilised, x, start, 0.5)
    gates = {name: x[name] for name in ("log_forget", "log_input", "z")}
    o, (S, Z) = run(spec, x["q"], x["k"], x["v"], gates)
    assert relative_rms(o, expected) < 1e-12
    for number, (C, n, m) in enumerate(finals):
        assert relative_rms(S.flatten(0, 1)[number], C * m.exp()) < 1e-12
        assert relative_rms(Z.flatten(0, 1)[number], n * m.exp()) < 1e-12


@pytest.mark.parametrize("form", ["chunk", "recurrent", "reference"])
def test_a_linear_transformer_is_a_weighted_mean(tmp_path, form):
    path = tmp_path / "whole.toml"
    path.write_text(Path(UNSEEN.format("linear_transformer")).read_text().replace("(normaliser + 0.1)", "normaliser"))
    op = ttrc.load(path)
    x = drawn(op.spec, T=12, H=2, HV=2, dk=5, dv=3)
    q, k = (torch.nn.functional.elu(y).transpose(1, 2) + 1 for y in (x["q"], x["k"]))
    weights = (q @ k.mT).tril()
    expected = (weights / weights.sum(-1, keepdim=True)) @ x["v"].transpose(1, 2)
    o, _ = op(**x, form=form, scale=3.0)  # which cancels
    assert relative_rms(o, expected.transpose(1, 2)) < 1e-12


def test_equal_values_are_answered_as_they_are():
    """Weights that sum to 1 leave a constant alone, whatever they are."""
    op = ttrc.load(UNSEEN.format("receptance_mean"))
    x = drawn(op.spec, T=40, H=2, HV=2, dk=6, dv=6)
    x["v"] = torch.ones_like(x["v"]) * 0.25
    o, _ = op(**x, output_final_state=True)
    assert relative_rms(o, 0.25 * x["q"].sigmoid()) < 1e-12


def test_the_state_is_a_named_pair_that_goes_on():
    op = ttrc.load("mlstm")
    x = drawn(op.spec, T=20, H=1, HV=2, dk=4, dv=3)
    whole, final = op(**x, output_final_state=True)
    assert final._fields == ("S", "Z") and final.Z.shape == (1, 2, 4) and final.S.shape == (1, 2, 4, 3)
    first, between = op(**{n: y[:, :11] for n, y in x.items()}, output_final_state=True)
    second, last = op(**{n: y[:, 11:] for n, y in x.items()}, initial_state=between, output_final_state=True)
    assert relative_rms(torch.cat([first, second], 1), whole) < 1e-12
    assert relative_rms(last.Z, final.Z) < 1e-12


TWO_LOSSES = """
schema = 1
name = "two_losses"
reference = "a test"
[inputs]
w = { per = "value_channel", domain = "log_decay" }
x = { per = "value_channel", domain = "positive" }
[memory]
kind = "vector"
[features]
q = "softplus(q)"
k = "exp(k)"
[loss.first]
expr = "-dot(p, v)"
[loss.second]
key = "x"
expr = "-dot(p, tanh(v))"
[retention]
expr = "norm2(S - exp(w) * S_prev) / 2"
[update]
rule = "gradient"
at = "in_turn"
[read]
expr = "r / (normaliser + 0.1)"
"""


def test_steps_in_turn_that_predict_nothing_are_steps_together():
    in_turn, together = (ttrc.load(parse_spec(TWO_LOSSES.replace("in_turn", at))) for at in ("in_turn", "previous"))
    case = Case(B=1, T=21, H=1, HV=2, d_k=5, d_v=5, chunk_size=16)
    assert "chunk" in in_turn.forms
    for form in in_turn.forms:
        assert not verify(in_turn, case, form=form, backend="torch", dtype=torch.float64).failures
    x = drawn(in_turn.spec, T=21, H=1, HV=2, dk=5, dv=5)
    assert torch.equal(in_turn(**x)[0], together(**x)[0])


@pytest.mark.parametrize("level, right", [(38.0, True), (50.0, False)])
def test_exponents_enter_as_they_are(level, right):
    """Without a stabiliser gradients hold the square of what is 1e16 here, and overflow where it is 5e21."""
    op = ttrc.load("mlstm")
    x = {name: y.float() for name, y in drawn(op.spec, T=20, H=1, HV=1, dk=8, dv=8).items()}
    x["log_input"] = 0.3 * x["log_input"] + level
    errors = []
    for form, dtype in ("chunk", torch.float32), ("reference", torch.float64):
        leaves = {name: y.detach().to(dtype).requires_grad_() for name, y in x.items()}
        o, _ = op(**leaves, form=form, **({"backend": "triton"} if form == "chunk" else {}))
        o.square().sum().backward()
        errors.append(leaves["log_input"].grad.double())
    assert (relative_rms(*errors) < 1e-3) is right


def normalised(**changes):
    """mlstm's text with tables exchanged."""
    text = (specs_dir() / "mlstm.toml").read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return text


LOSS = ('expr = "-dot(p, v)"', 'expr = "norm2(p - v) / 2"')
SUM = ('expr = "-dot(p, v)"', 'expr = "-dot(p, v) * norm2(v)"')
BY_VALUE = ("exp(log_forget) * S_prev", "sigmoid(z) * exp(log_forget) * S_prev")
LINKED = ("[update]", 'link = { kind = "exp" }\n\n[update]')
MIRRORED = ("norm2(S - exp(log_forget) * S_prev) / 2", "sum(S * log(S) - S - exp(log_forget) * S * log(S_prev))")
CLOSED = ('rule = "gradient"\nat = "previous"', 'rule = "closed_form"')
RIDGE = ('expr = "norm2(S - exp(log_forget) * S_prev) / 2"', 'expr = "norm2(S) / 2"\ndecay = "exp(log_forget)"')
PAIRS = ('kind = "linear"', 'kind = "kernel"\ndegree = 0\nsimilarity = "dot(q, k)"')
CANCELLED = ("max(abs(normaliser), 1)", "(1 + normaliser - normaliser)")


@pytest.mark.parametrize("kind", ["linear", "vector"])
def test_what_is_written_may_hang_on_other_sums(kind):
    """Of keys in a vector memory and of gates; not of values, which would be others, had these been 1."""
    weight = (
        '"exp(log_input)"',
        '"exp(log_input) * (1 + tanh(sum(z)))' + (' * norm2(k)"' if kind == "vector" else '"'),
    )
    op = ttrc.load(parse_spec(normalised(weight=weight, memory=('kind = "linear"', f'kind = "{kind}"'))))
    for form in op.forms:
        for backend, dtype in ("torch", torch.float64), ("triton", torch.float32):
            case = fitting(op.spec, Case(B=1, T=21, d_k=5, d_v=5, chunk_size=16))
            assert not verify(op, case, form=form, backend=backend, dtype=dtype).failures


MLP = {"kind": '"mlp"', "layers": 2, "expansion": 2, "activation": '"silu"', "residual": "true", "norm": "false"}
DEEP = ('kind = "linear"', "\n".join(f"{key} = {value}" for key, value in MLP.items()))
IN_A_SUM = ("r / max(abs(normaliser), 1)", "(r + sum(q * normaliser) - dot(normaliser * q, q / q))")
POLE = ("-dot(p, v)", "-dot(p, v / (v - 1))")
REFUSED = {
    "an error that looks": (normalised(loss=LOSS), "what is written depends on what has been predicted"),
    "a sum over values": (normalised(loss=SUM), "depends on a sum of values"),
    "a decay by value": (normalised(keep=BY_VALUE), "a gate makes that differ by value channel"),
    "a link": (normalised(keep=LINKED), "with a link that is no sum of what tokens write"),
    "a closed form": (normalised(loss=LOSS, keep=RIDGE, rule=CLOSED), "with a closed form that is no sum"),
    "a retention": (normalised(keep=MIRRORED), "with this retention that is no sum"),
    "nothing left of it": (normalised(read=CANCELLED), "the normaliser cancels"),
    "a mean": (normalised(memory=PAIRS, keep=RIDGE, rule=CLOSED), "decides whether weights are divided by their sum"),
    "a pole at 1": (normalised(loss=POLE), "what is written has no finite value there"),
    "no effect in sums": (normalised(read=IN_A_SUM), "the normaliser cancels"),
    "a deep memory": (normalised(memory=DEEP), '"normaliser" has no meaning in read.expr'),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refusals_point_at_the_word(why):
    text, expected = REFUSED[why]
    with pytest.raises(SpecError) as caught:
        analyse(parse_spec(text, "mine.toml"))
    message = str(caught.value)
    assert expected in message, message
    lines = message.splitlines()
    line, caret = next((a, b) for a, b in zip(lines, lines[1:]) if set(b.strip()) == {"^"})
    assert line[caret.index("^") : caret.rindex("^") + 1] == "normaliser"
