"""Decays by value channel beside an error that looks at its prediction: one inverse serves all channels."""

from pathlib import Path

import pytest
import torch

import ttrc
from ttrc.compiler import analyse
from ttrc.ir.tile import Decayed, Inverse
from ttrc.language.load import load_spec, parse_spec
from ttrc.passes.builder import Builder, sym
from ttrc.runtime.verify import Case, verify
from ttrc.tools.reasons import pieces

PATH = Path(__file__).parent / "unseen/fading_values.toml"
ONE = PATH.read_text()
TWO = ONE.replace('[loss]\nweight = "beta"\nexpr = "norm2(p - v) / 2"', """[loss.learn]
weight = "beta"
expr = "norm2(p - v) / 2"

[loss.recall]
key = "k_2"
expr = "-dot(p, v) / 8"
""").replace('name = "fading_values"', 'name = "fading_pair"').replace(
    "[memory]", 'k_2 = { per = "key_channel", domain = "real" }\n\n[memory]'
)  # fmt: skip
CASES = (
    Case(B=1, T=70, H=1, HV=2, d_k=8, d_v=5),
    Case(B=1, T=1, H=1, HV=2, d_k=3, d_v=2),
    Case(B=1, T=64, H=1, HV=1, d_k=3, d_v=9, extreme="strong", schedule="split"),
    Case(B=1, T=130, H=1, HV=1, d_k=4, d_v=3, extreme="weak"),
    Case(T=39, packed=(17, 1, 21), H=1, HV=2, d_k=5, d_v=4, chunk_size=16),
)


@pytest.mark.parametrize("text", (ONE, TWO), ids=("one loss", "two losses"))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunks_are_the_oracles(text, case):
    op = ttrc.load(parse_spec(text))
    assert not verify(op, case, form="chunk", backend="torch", dtype=torch.float64).failures


@pytest.mark.parametrize("text", (ONE, TWO), ids=("one loss", "two losses"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("extreme", (None, "strong", "weak"))
def test_kernels_are_the_oracles(text, dtype, extreme):
    case = Case(B=1, T=70, H=1, HV=2, d_k=16, d_v=24, extreme=extreme)
    assert not verify(ttrc.load(parse_spec(text)), case, form="chunk", backend="triton", dtype=dtype).failures


def test_one_inverse_stands_for_all_value_channels():
    forward = analyse(load_spec(PATH)).forms["chunk"].forward
    (inverse,) = (s.target for s in forward.statements if isinstance(s.op, Inverse))
    assert inverse.axes == ("t", "s")
    assert [s.op.a for s in forward.statements if isinstance(s.op, Decayed)][0] == inverse


@pytest.mark.parametrize("change", (
    dict(own=False),  # a token that does not decay what it sees
    dict(back=2),  # what comes back to the tokens that wrote counts twice
), ids=("own", "back"))  # fmt: skip
def test_a_wrong_decay_between_tokens_is_found(change, monkeypatch):
    real = Builder.decayed

    def decayed(self, name, a, b, axis, steps, own, origin):
        if "back" in change and axis == "t":
            a = self.make(f"{a.name}_wrong", 2 * sym(a), a, origin=origin)
        return real(self, name, a, b, axis, steps, own and change.get("own", True), origin)

    monkeypatch.setattr(Builder, "decayed", decayed)
    op = ttrc.load(parse_spec(ONE.replace("fading_values", f"fading_{'_'.join(change)}")))
    failures = verify(op, CASES[0], form="chunk", backend="torch", dtype=torch.float64).failures
    named = {f.split()[0] for f in failures}
    assert {"d_v", "d_g"} <= named and ("o" in named) == ("own" in change)


def test_pages_say_why_such_sequences_run_whole():
    found, why = pieces(analyse(load_spec(PATH)))
    assert found.startswith("none") and "value channel" in why and "affine" not in why
