"""Sequences cut into pieces that run side by side: of every rule that is affine in its states, whatever these are."""

from dataclasses import replace

import pytest
import torch

import ttrc
from test_mutations import build  # noqa: F401
from test_properties import PATHS, operator
from test_schedules import kept_and_made, sizes_held
from test_segments import RULES, SQUARED, rule
from ttrc.compiler import analyse
from ttrc.ir.obstacle import Uncut
from ttrc.language.load import load_spec, parse_spec
from ttrc.passes.linearize_tile import linearize_tile
from ttrc.passes.lower_solve import lower_solve
from ttrc.runtime.verify import Case, fitting, verify
from ttrc.tools.classify import findings

# Four pieces, of which the last chunk is not full; and of the sequence of another case one.
CASE = Case(B=2, T=50, H=1, HV=2, d_k=6, d_v=5, chunk_size=16, schedule="segments")
ONE = replace(CASE, B=1, T=9, extreme="strong")
ONE_LAYER = parse_spec("""
schema = 1
name = "one_layer"
reference = "a test"

[inputs]
eta = { per = "head", domain = "unit" }
g = { per = "head", domain = "log_decay" }

[memory]
kind = "mlp"
layers = 1
expansion = 1
activation = "gelu"
residual = true
norm = false

[loss]
weight = "eta"
expr = "norm2(p - v) / 2"

[retention]
expr = "norm2(S - exp(g) * S_prev) / 2"

[update]
rule = "gradient"
at = "segment_start"
segment = 16
momentum = "1/2"
""")
NUMBERS = """
schema = 1
name = "numbers"
reference = "a test"

[memory]
kind = "{memory}"

[loss]
expr = "-dot(p, v)"

[retention]
expr = "norm2(S - {kept}) / 2"

[update]
rule = "gradient"
at = "retained"
"""
FROZEN = rule(SQUARED.replace("beta", "m * beta"))
CHANNELS = parse_spec(PATHS["channel_rates"].read_text().replace("huber(p - v, delta)", "delta * square(p - v)"))
CROSSINGS = {  # the states that become one another, what factors differ by, and whether there are products
    "mlstm": ("S|Z", "k", False),
    "normalised_channels": ("S|Z", "k", False),
    "normalised_momentum": ("SM|ZMZ", "k", False),
    "momentum_deltanet": ("SM", "kj", True),
    "titans_linear": ("SM", "kj", True),
    "mesanet": ("H|G", "k", False),
    "min_gru": ("S", "v", False),
    "ifo_pooling": ("S", "v", False),
    "receptance_mean": ("S|Z", "v", False),
    "mamba": ("S", "kv", False),
    "separable_decay": ("SM", "kv", False),
    "normed_entries": ("S", "kv", False),
    "gated_deltanet": ("S", "kj", True),
    "gated_deltaproduct": ("S", "kj", True),
    "gla": ("S", "k", False),
}


def crossing_of(spec):
    return analyse(spec).forms["chunk"].plan.crossing


@pytest.fixture
def in_pieces(monkeypatch):
    """Pieces of as few chunks as there can be."""

    def make(op):
        monkeypatch.setattr(op.package.choices, "SEGMENT_CHUNKS", 1)
        return op

    return make


def wrong(op, case, dtype=torch.float32):
    return verify(op, fitting(op.spec, case), form="chunk", backend="triton", dtype=dtype).failures


@pytest.mark.parametrize("name", CROSSINGS)
def test_how_states_cross(name):
    groups, entry, products = CROSSINGS[name]
    found = crossing_of(operator(name).spec)
    assert "|".join("".join(s.name for s in group) for group in found.groups) == groups
    assert ("".join(found.entry), found.products) == (entry, products)


@pytest.mark.parametrize("name", CROSSINGS)
def test_pieces_make_what_a_whole_sequence_does(in_pieces, name):
    """Outputs, final states and every gradient, from initial states, with cotangents of the final ones."""
    op = in_pieces(operator(name))
    long = replace(CASE, B=1, T=200) if name == "titans_linear" else CASE  # in chunks of 64
    for case in (long, ONE):
        assert not wrong(op, case)


@pytest.mark.parametrize("name", ["mlstm", "momentum_deltanet", "min_gru", "mamba", "mesanet"])
def test_half_precision(in_pieces, name):
    case = Case(B=1, T=70, H=1, HV=1, d_k=16, d_v=16, chunk_size=16, schedule="segments")
    assert not wrong(in_pieces(operator(name)), case, torch.bfloat16)


@pytest.mark.parametrize("name", ["mlstm", "momentum_deltanet"])
def test_pieces_keep_the_states_of_stretches_too(monkeypatch, in_pieces, name):
    monkeypatch.setitem(in_pieces(operator(name)).package.choices.EVERY, "sparse", 2)
    _, wanted = kept_and_made(name, None)
    _, made = kept_and_made(name, sizes_held(name)["sparse"], schedule="segments")
    for a, b in zip(made, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", ["linear", "vector"])
@pytest.mark.parametrize("kept", ["S_prev", "0.9 * S_prev"])
def test_a_crossing_of_plain_numbers(in_pieces, memory, kept):
    """No buffer says how a state crosses: the kernel that finds out, if any, takes none."""
    spec = parse_spec(NUMBERS.format(memory=memory, kept=kept))
    op = in_pieces(ttrc.load(spec))
    assert not wrong(op, CASE) and not wrong(op, ONE)


def test_a_layer_that_is_linear(in_pieces):
    op = in_pieces(ttrc.load(ONE_LAYER))
    assert op.schedules == ("deep", "segments") and not wrong(op, CASE)


@pytest.mark.parametrize("spec", [FROZEN, RULES["squares, momentum"]], ids=["plain", "momentum"])
def test_pieces_are_whole_segments_of_the_rule(in_pieces, spec):
    """What a segment started with is carried over its chunks: no piece starts inside of one."""
    op = in_pieces(ttrc.load(spec))
    case = Case(B=1, T=300, H=1, HV=1, d_k=4, d_v=3, chunk_size=128, schedule="segments")
    assert not wrong(op, case)
    x = torch.empty(2, 900, 1, 4)
    layout = op.package.layout.lay_out(x, None, 128)
    pieces = op.package.layout.cut(layout, 2, 128, x.device)
    assert pieces.cu_seqlens.tolist() == [0, 512, 900, 1412, 1800]
    _, segments = op.package.choices.choose("chunk", "forward", "segments", x, x, layout, 128)
    assert segments == 4


@pytest.mark.parametrize("spec, why", [
    (RULES["huber"], "the error is not affine in p"),
    (load_spec(PATHS["robust_delta"]), "the error is not affine in p"),
    (CHANNELS, "no slope is shared by all value channels"),
    (load_spec(PATHS["memora_linear"]), "weights are a link of the state"),
    (load_spec(PATHS["ttt_mlp"]), "errors go through the network"),
    (load_spec(PATHS["entropy_delta"]), "there is no chunk form"),
], ids=lambda x: "" if isinstance(x, str) else x.name)  # fmt: skip
def test_what_is_not_affine_runs_whole_and_says_why(spec, why):
    module = analyse(spec)
    (told,) = [f for f in findings(module) if f.aspect == "pieces"]
    assert told.verdict == "none: sequences run whole" and why in told.because
    assert not any("segments" in [s.name for s in form.plan.schedules] for form in module.forms.values())


def test_what_is_affine_says_how():
    told = {n: next(f for f in findings(analyse(operator(n).spec)) if f.aspect == "pieces") for n in CROSSINGS}
    assert all("segments" in f.verdict for f in told.values())
    assert "(S, Z)" in told["mlstm"].because and "a number for each key channel;" in told["mlstm"].because
    assert "a matrix of key channels for each two of them" in told["momentum_deltanet"].because
    assert "key channel and value channel" in told["mamba"].because


def test_a_decay_that_hangs_on_values_is_not_cut():
    """Unit states have other columns than values, of which a sum over these channels takes all."""
    text = PATHS["gated_deltanet"].read_text().replace("exp(g) * S_prev", "exp(g * sum(square(z))) * S_prev")
    text = text.replace("[inputs]\n", '[inputs]\nz = { per = "value_channel", domain = "real" }\n')
    module = analyse(parse_spec(text))
    assert module.forms["chunk"].plan.uncut is Uncut.BY_VALUES and module.forms["chunk"].plan.crossing is None
    (told,) = [f for f in findings(module) if f.aspect == "pieces"]
    assert "hangs on a sum over value channels" in told.because


def test_what_crosses_is_never_made_of_queries_or_values():
    for name in CROSSINGS:
        plan = analyse(operator(name).spec).forms["chunk"].plan
        (scan,) = (k for k in plan.kernels if "transition" in k.name)
        assert not {"q", "v"} & {b.name for b in scan.loads} and not scan.stores


def test_states_of_a_group_are_units_one_by_one():
    launch = operator("momentum_deltanet").package.launch
    x = torch.empty(3, 1, 2 * 4 * 5)
    unit = launch.units(x, 4, 4)
    assert unit.shape == (2, 3, 1, 2, 4, 4)
    assert torch.equal(unit[1, 0, 0].reshape(8, 4), torch.cat([torch.zeros(4, 4), torch.eye(4)]))
    assert torch.equal(operator("mlstm").package.launch.units(x, 4), torch.ones(1, 3, 1, 4))


@pytest.mark.parametrize("name", ["mlstm", "momentum_deltanet", "titans_linear", "mesanet", "min_gru", "mamba"])
def test_the_cost_model_knows_when_pieces_pay(name):
    """For few heads and long sequences; never where heads fill the chip."""
    package = operator(name).package
    for (batch, length, heads), cut in (((1, 65536, 4), True), ((8, 4096, 64), False), ((1, 64, 4), False)):
        x = torch.empty(batch, length, heads, 128, dtype=torch.bfloat16, device="meta")
        chunk = package.choices.default_chunk("chunk", x, x)
        layout = package.layout.lay_out(x, None, chunk)
        for which in ("forward", "backward"):
            chosen, _ = package.choices.choose("chunk", which, "auto", x, x, layout, chunk)
            assert (chosen == "segments") == cut


# Joins that are broken


MOMENTUM_CASE = replace(CASE, B=1, HV=1)


@pytest.mark.parametrize("name, old, new", [
    ("mlstm", "e, Z, mask=inside)", "e, Z * 0.0, mask=inside)"),  # the row of the normaliser
    ("mlstm", "+ K * V + e, mask=inside, other=0.0)", "+ e, mask=inside, other=0.0)"),  # where it lies
    ("mlstm", "segment = i_n * segments + i\n", "segment = i_n * segments + segments - 1 - i\n"),  # the order
    ("mlstm", "segment = i_n * segments + segments - 1 - i\n", "segment = i_n * segments + i\n"),
    ("momentum_deltanet", "(1 * pieces + segment)", "(0 * pieces + segment)"),  # whose unit it was
    ("momentum_deltanet", " + 1 * K * K", ""),  # what became of it
    ("mesanet", "+ K * K + e, mask", "+ e, mask"),
    ("gla", "e // V", "e // K"),  # of matrices that are not square
    ("separable_decay", "* M\n", "* 0.0\n"),  # a momentum that is forgotten between pieces
])  # fmt: skip
def test_joins_that_are_wrong(build, in_pieces, name, old, new):  # noqa: F811
    op = in_pieces(build(name, kernels=[(old, new)]))
    whole = "fused" if "fused" in op.schedules else op.schedules[0]
    assert wrong(op, MOMENTUM_CASE) and not wrong(op, replace(MOMENTUM_CASE, schedule=whole))


def test_groups_that_cross_in_ways_of_their_own_are_not_joined(monkeypatch):
    """A join has one transition for all groups: what is found for the first of them has to be right for the others."""
    forward = lower_solve(analyse(operator("mlstm").spec).forms["chunk"].forward)
    *others, z = forward.carries
    assert not isinstance(linearize_tile(forward), Uncut)
    assert linearize_tile(replace(forward, carries=(*others, replace(z, next=z.state)))) is Uncut.BY_VALUES
