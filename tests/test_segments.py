"""Frozen gradients in segments that are longer than a chunk: their start is carried over several chunks."""

import pytest
import torch

import ttrc
from ttrc.compiler import analyse
from ttrc.language.load import parse_spec
from ttrc.runtime.verify import Case, verify
from ttrc.tools.classify import findings

RULE = """
schema = 1
name = "frozen"
reference = "a test"

[inputs]
g = {{ per = "{per}", domain = "log_decay" }}
beta = {{ per = "head", domain = "unit" }}
m = {{ per = "head", domain = "decay" }}

[memory]
kind = "linear"

{loss}

[retention]
expr = "norm2(S - exp(g / 16) * S_prev) / 2"
{link}

[update]
rule = "gradient"
at = "segment_start"
segment = {segment}
{momentum}
"""
HUBER = '[loss]\nweight = "m * beta / 16"\nexpr = "sum(huber(p - v, 0.5))"'
SQUARED = '[loss]\nweight = "beta / 8"\nexpr = "norm2(p - v) / 2"'
TWO = (
    '[loss.store]\nweight = "beta"\nexpr = "-dot(p, v)"\n'
    '[loss.remove]\nkey = "tanh(k)"\nweight = "m / 8"\nexpr = "sum(log_cosh(p))"'
)
NORM = '[loss]\nweight = "m * beta"\nexpr = "huber(norm(p - v), 0.5)"'
MOMENTUM = 'momentum = "m"'


def rule(loss=HUBER, per="head", momentum="", segment=256, link=""):
    return parse_spec(RULE.format(loss=loss, per=per, momentum=momentum, segment=segment, link=link))


RULES = {
    "huber": rule(),
    "squares, momentum": rule(SQUARED, momentum=MOMENTUM),
    "two losses": rule(TWO),
    "decays by key channel": rule(per="key_channel"),
}
# Segments that end within a sequence and at its end, chunks of each length, sequences that are packed in between.
CASES = (
    Case(B=1, T=270, H=1, HV=2, d_k=6, d_v=5, chunk_size=128),
    Case(B=2, T=256, H=1, HV=1, d_k=5, d_v=9, chunk_size=64),
    Case(B=1, T=330, H=1, HV=1, d_k=6, d_v=5, chunk_size=32, packed=(290, 1, 39)),
    Case(B=1, T=260, H=1, HV=1, d_k=3, d_v=2, chunk_size=16, schedule="split"),
)


@pytest.mark.parametrize("name, case", list(zip(RULES, CASES)), ids=str)
def test_kernels_and_programs_are_exact(name, case):
    op = ttrc.load(RULES[name])
    assert op.forms == ("chunk", "recurrent")
    assert not verify(op, case, form="chunk", backend="torch", dtype=torch.float64).failures
    assert not verify(op, case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("name", ["two losses", "squares, momentum"])
def test_half_precision(name):
    """Of errors without kinks: which side of one they are on rounding decides there."""
    case = Case(B=1, T=280, H=1, HV=1, d_k=32, d_v=32)
    assert not verify(ttrc.load(RULES[name]), case, form="chunk", backend="triton", dtype=torch.bfloat16).failures


def test_a_segment_that_no_sequence_reaches_the_end_of():
    case = Case(B=1, T=70, H=1, HV=1, d_k=6, d_v=5, chunk_size=32)
    op = ttrc.load(rule(segment=1024))
    for form in op.forms:
        assert not verify(op, case, form=form, backend="torch", dtype=torch.float64).failures
    assert not verify(op, case, form="chunk", backend="triton", dtype=torch.float32).failures


def test_what_is_kept_and_handed_over():
    """A caller sees the running state alone; parallel kernels load the start, and no other state is kept."""
    module = analyse(RULES["huber"])
    form = module.forms["chunk"]
    assert [(c.label, c.private) for c in form.forward.carries] == [("S", False), ("anchor", True)]
    assert {b.name for b in form.plan.saved} >= {"states", "weights"}
    assert [s.name for s in form.plan.schedules] == ["fused", "split"]
    (told,) = [f for f in findings(module) if f.aspect == "chunk form"]
    assert told.verdict == "exact for every chunk size" and "second state" in told.because


@pytest.mark.parametrize("spec", [
    rule(NORM), rule(segment=192), rule(segment=130),
    rule(link='link = { kind = "softmax", axis = "key", scale = 2 }'),
])  # fmt: skip
def test_where_segments_are_not_cut(spec):
    module = analyse(spec)
    assert list(module.forms) == ["recurrent"]
    (told,) = [f for f in findings(module) if f.aspect == "chunk form"]
    assert "no size of a chunk" in told.because
