"""What every operator must hold, shipped or not: the oracle's numbers, and relations between its own runs."""

import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest
import torch

import ttrc
from ttrc import oracle
from ttrc.ir.config import is_several_chunks
from ttrc.language.load import load_spec, parse_spec
from ttrc.language.spec import Gradient, KernelMemory
from ttrc.language.state import initial_names, same_channels
from ttrc.runtime.verify import (
    BOUNDS,
    Case,
    as_arguments,
    compare,
    consult,
    differentiate,
    draw,
    fitting,
    relative_rms,
    verify,
)
from ttrc.sampling import random_inputs

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").is_file())
PATHS = {
    path.stem: path
    for folder in ("specs", "tests/unseen")
    for path in sorted((ROOT / folder).glob("*.toml"))
    if not isinstance(load_spec(path).memory, KernelMemory)
}  # which have no state: test_attention.py
FORMS = ("chunk", "recurrent")
LOG_DECAYS = {"gated_deltanet": "g", "retnet": "log_gamma", "lightning_attention": "slope", "ridge_delta": "g",
              "undecayed_read": "g"}  # fmt: skip


def segment(name):
    """Tokens a segment, of a rule that has any."""
    update = load_spec(PATHS[name]).update
    return update.segment if isinstance(update, Gradient) else None


def is_one_chunk(name):
    """Whether a rule has segments that are its chunks."""
    return segment(name) is not None and not is_several_chunks(segment(name))


def chunk_of(name):
    return segment(name) if is_one_chunk(name) else 16


# Whose state moves by no linear law, or by one of its own for each entry, so that there are no chunks.
BY_TOKEN = ("barrier_delta", "elastic_delta", "entropy_delta", "entry_decay", "huber_vector", "softmax_over_values")
CHUNKED = [name for name in PATHS if name not in BY_TOKEN]


def every_rule_with(names, rows):
    """Every rule beside every row, of rows whose form, the first of their names, it has."""
    known = [(name, *row) for name in PATHS for row in rows if row[0] != "chunk" or name in CHUNKED]
    return pytest.mark.parametrize(f"name, {names}", known, ids=str)


every_rule = pytest.mark.parametrize("name", PATHS)
every_rule_and_form = every_rule_with("form", [(form,) for form in FORMS])
every_chunked_rule = pytest.mark.parametrize("name", CHUNKED)
any_chunk = pytest.mark.parametrize("name", [name for name in CHUNKED if not is_one_chunk(name)])
every_form = pytest.mark.parametrize("form", FORMS)


@cache
def operator(name):
    return ttrc.load(PATHS[name])


def inputs(name, dtype=torch.float64, **sizes):
    """Arguments of an operator by name; gates and state in float32 beside half-precision q, k and v."""
    sizes = dict(B=1, T=40, H=1, HV=2, dk=6, dv=5, seed=3) | sizes
    if same_channels(operator(name).spec.memory):
        sizes["dv"] = sizes["dk"]
    single = torch.float64 if dtype == torch.float64 else torch.float32
    drawn = random_inputs(operator(name).spec, dtype=torch.float64, **sizes)
    return {n: x.to(dtype if n in ("q", "k", "v") else single) for n, x in drawn.items()}


def call(name, x, **options):
    """o and the parts of the final state, by name; a chunk that is a segment has no other size."""
    if is_one_chunk(name):
        options["chunk_size"] = None
    o, final = operator(name)(**as_arguments(operator(name).spec, x), output_final_state=True, **options)
    return outputs_of(name, o, final)


def outputs_of(name, o, final):
    ends = [n.replace("initial", "final", 1) for n in initial_names(operator(name).spec)]
    return {"o": o} | dict(zip(ends, (final,) if isinstance(final, torch.Tensor) else final))


def weighed(outputs):
    """A number that every entry of the outputs moves, by as much as in every other run."""
    generator = torch.Generator().manual_seed(11)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16() for y in outputs.values()]
    weights = [w.to(y.dtype) for y, w in zip(outputs.values(), weights)]
    return sum((y * w).sum().to(outputs["o"].dtype) for y, w in zip(outputs.values(), weights))


def leaves_of(x):
    return {n: t.detach().clone().requires_grad_() for n, t in x.items()}


def with_gradients(outputs, leaves):
    """The outputs, and the gradient of a fixed weighing of them for every leaf."""
    weighed(outputs).backward()
    grads = {f"d_{n}": torch.zeros_like(t) if t.grad is None else t.grad for n, t in leaves.items()}
    return {n: y.detach() for n, y in outputs.items()} | grads


def run(name, x, **options):
    leaves = leaves_of(x)
    return with_gradients(call(name, leaves, **options), leaves)


def assert_agree(a, b, bound):
    assert set(a) == set(b)
    errors = {n: relative_rms(a[n], b[n]) for n in a}
    assert all(e <= bound for e in errors.values()), {n: e for n, e in errors.items() if not e <= bound}


# The oracle

MATHEMATICS = (
    Case(B=2, T=18, H=2, HV=4, d_k=7, d_v=5, chunk_size=16),
    Case(B=1, T=1, d_k=3, d_v=4),
    Case(B=1, T=16, H=1, HV=1, d_k=1, d_v=1, chunk_size=16),
    Case(B=1, T=34, H=1, HV=3, d_k=5, d_v=9, chunk_size=16),
    Case(T=23, packed=(17, 1, 5), H=1, HV=2, d_k=4, d_v=6, chunk_size=16),
    Case(B=1, T=18, d_k=6, d_v=5, extreme="strong", chunk_size=16),
    Case(B=1, T=18, d_k=6, d_v=5, extreme="weak", chunk_size=16),
)
KERNELS = {
    "chunk": (
        Case(B=1, T=18, H=1, HV=2, d_k=20, d_v=17, chunk_size=16),
        Case(T=18, packed=(17, 1), H=1, HV=1, d_k=16, d_v=9, extreme="strong", chunk_size=16),
    ),
    "recurrent": (
        Case(B=1, T=3, H=1, HV=2, d_k=17, d_v=5),
        Case(T=4, packed=(3, 1), H=1, HV=1, d_k=5, d_v=6, extreme="strong"),
    ),
}


@every_rule
@pytest.mark.parametrize("case", MATHEMATICS, ids=str)
def test_the_mathematics_is_the_oracles(name, case):
    op = operator(name)
    for form in op.forms:
        result = verify(op, fitting(op.spec, case), form=form, backend="torch", dtype=torch.float64)
        assert not result.failures, (form, result.failures)


def test_what_runs_token_by_token_alone():
    assert {name for name in PATHS if operator(name).forms == ("recurrent",)} == set(BY_TOKEN)


@every_rule_with("form, case", [(f, c) for f in FORMS for c in KERNELS[f]])
def test_the_kernels_are_the_oracles(name, form, case):
    assert not verify(
        operator(name), fitting(operator(name).spec, case), form=form, backend="triton", dtype=torch.float32
    ).failures


@every_rule_and_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernels_are_the_oracles_in_half_precision(name, form, dtype):
    case = Case(B=1, T=18 if form == "chunk" else 3, H=1, HV=1, d_k=16, d_v=16, chunk_size=16)
    case = fitting(operator(name).spec, case)
    assert not verify(operator(name), case, form=form, backend="triton", dtype=dtype).failures


@pytest.mark.parametrize("name, d_k, d_v", [("gated_deltanet", 256, 256), ("mamba2", 129, 200), ("longhorn", 16, 256)])
@every_form
def test_wide_heads(name, d_k, d_v, form):
    case = Case(B=1, T=3, H=1, HV=1, d_k=d_k, d_v=d_v, chunk_size=16)
    assert not verify(
        operator(name), fitting(operator(name).spec, case), form=form, backend="torch", dtype=torch.float64
    ).failures


@pytest.mark.parametrize(
    "name, d_k, d_v, T",
    [
        ("gated_deltanet", 256, 256, 3),
        ("longhorn", 129, 40, 3),
        ("retnet", 24, 200, 3),
        ("gated_deltanet", 256, 24, 24),
        ("mamba2", 200, 16, 24),
        ("longhorn", 129, 16, 24),
        ("huber_delta", 129, 16, 24),
        ("momentum_deltanet", 65, 16, 24),
    ],
)
def test_wide_heads_in_the_kernels(name, d_k, d_v, T):
    """Also across chunks: gradients of wide heads are a text of their own."""
    case = Case(B=1, T=T, H=1, HV=1, d_k=d_k, d_v=d_v, chunk_size=16)
    assert not verify(
        operator(name), fitting(operator(name).spec, case), form="chunk", backend="triton", dtype=torch.float32
    ).failures


# Gates at and past what is sensible


@pytest.mark.parametrize("name", LOG_DECAYS)
@pytest.mark.parametrize("floor", [-30.0, -1e4, float("-inf")], ids=str)
@pytest.mark.parametrize("backend, dtype, bound", [("torch", torch.float64, 1e-9), ("triton", torch.float32, 5e-5)])
def test_a_decay_that_forgets_everything(name, floor, backend, dtype, bound):
    """Some tokens (or some heads) forget all, the rest keep all: finite and right, gradients included."""
    x = inputs(name, dtype, T=20)
    gate = torch.zeros_like(x[LOG_DECAYS[name]])
    gate[..., 0] = floor
    if gate.dim() == 3:
        gate[:, ::3] = floor
    x[LOG_DECAYS[name]] = gate
    expected = of_oracle(name, x)
    for form in FORMS if backend == "torch" else ("chunk",):
        assert_agree(run(name, x, form=form, chunk_size=16, backend=backend), expected, bound)


def of_oracle(name, x):
    """As `run`, by the reference."""
    leaves = leaves_of({n: t.double() for n, t in x.items()})
    gates = as_arguments(operator(name).spec, leaves)
    q, k, v, state = (gates.pop(n) for n in ("q", "k", "v", "initial_state"))
    o, final = oracle.run(operator(name).spec, q, k, v, gates, initial_state=state)
    return with_gradients(outputs_of(name, o, final), leaves)


@every_form
def test_a_decay_that_enters_as_itself_is_right_as_a_share(form):
    """Chunks work with log a, so their d_a is noise / a; a * d_a is right, and that is what a sigmoid passes on."""
    text = PATHS["gated_deltanet"].read_text().replace("exp(g) * S_prev", "g * S_prev").replace("log_decay", "decay")
    op = ttrc.load(parse_spec(text))
    case = Case(B=1, T=40, H=1, HV=2, d_k=6, d_v=5, extreme="strong")
    x, _, cotangents = draw(op.spec, case)
    assert x["g"].min() < 1e-12 and x["g"].max() == 1

    def call(x, _):
        return op(**x, form=form, backend="torch", chunk_size=16, output_final_state=True)

    made = differentiate(op.spec, call, x, None, cotangents, torch.float64, "cpu")
    right = consult(op.spec, x, None, cotangents)
    share = [grads | {"d_g": x["g"] * grads["d_g"]} for grads in (made, right)]
    assert not compare(*share, BOUNDS["torch", torch.float64]).failures


@pytest.mark.parametrize("value", [0.0, 1.0])
@every_form
def test_a_step_of_nothing_and_of_everything(value, form):
    x = inputs("deltanet", T=20)
    x["beta"] = torch.full_like(x["beta"], value)
    assert_agree(run("deltanet", x, form=form, chunk_size=16, backend="torch"), of_oracle("deltanet", x), 1e-9)


def test_a_rate_that_overflows_the_decay():
    x = inputs("mamba2", T=20)
    x["dt"], x["A"] = torch.full_like(x["dt"], 50.0), torch.full_like(x["A"], -1e3)
    for form in FORMS:
        assert_agree(run("mamba2", x, form=form, chunk_size=16, backend="torch"), of_oracle("mamba2", x), 1e-9)


# One operator against itself


@any_chunk
def test_the_chunk_size_never_shows(name):
    x = inputs(name, T=70)
    whole = run(name, x, form="chunk", chunk_size=128, backend="torch")
    for size in (16, 32, 64):
        assert_agree(run(name, x, form="chunk", chunk_size=size, backend="torch"), whole, 1e-11)


@any_chunk
def test_the_chunk_size_never_shows_in_the_kernels(name):
    x = inputs(name, torch.float32, T=20, HV=1)
    whole = run(name, x, form="chunk", chunk_size=64, backend="triton")
    for size in (16, 32, 128) if name == "gated_deltanet" else (16,):
        assert_agree(run(name, x, form="chunk", chunk_size=size, backend="triton"), whole, 2e-5)


@every_rule
def test_all_forms_agree(name):
    x = inputs(name, T=35)
    token = run(name, x, form="recurrent", backend="torch")
    assert_agree(run(name, x, form="reference"), token, 0.0)
    if name in CHUNKED:
        assert_agree(run(name, x, form="chunk", chunk_size=16, backend="torch"), token, 1e-10)
    assert_agree(run(name, x), token, 1e-10)


def past_and_future(name, dtype, cut, T):
    """Inputs, and the same with everything that stands per token changed from `cut` on."""
    x = inputs(name, dtype, T=T)
    other = inputs(name, dtype, T=T, seed=8)
    per_token = ["q", "k", "v", *(g.name for g in operator(name).spec.inputs)]
    changed = {n: torch.cat([x[n][:, :cut], other[n][:, cut:]], 1) if n in per_token else x[n] for n in x}
    return x, changed, per_token


SETTINGS = [
    ("chunk", "torch", torch.float64, 40, 21),
    ("recurrent", "torch", torch.float64, 20, 7),
    ("chunk", "triton", torch.float32, 20, 9),
    ("recurrent", "triton", torch.float32, 3, 2),
]


@every_rule_with("form, backend, dtype, T, cut", SETTINGS)
def test_the_future_never_shows(name, form, backend, dtype, T, cut):
    x, changed, per_token = past_and_future(name, dtype, cut, T)
    options = dict(form=form, chunk_size=16, backend=backend)
    leaves = leaves_of(x)
    o, other = call(name, leaves, **options)["o"], call(name, changed, **options)["o"]
    assert torch.equal(o[:, :cut], other[:, :cut])
    assert not torch.equal(o[:, cut:], other[:, cut:])
    o[:, :cut].square().sum().backward()
    for n in per_token:
        assert torch.count_nonzero(leaves[n].grad[:, cut:]) == 0, n
        if n != "q" and torch.count_nonzero(leaves[n].grad[:, : cut - 1]) == 0:  # a loss may be flat, nothing else
            assert torch.count_nonzero(of_oracle(name, x)[f"d_{n}"][:, : cut - 1]) == 0, n


def piecewise(name, x, ends, **options):
    """The sequence in pieces, each starting from the state that the last one left, gradients through the states."""
    leaves = leaves_of(x)
    names = initial_names(operator(name).spec)
    per_token = {"q", "k", "v", *(g.name for g in operator(name).spec.inputs)}
    made, state = [], {n: leaves[n] for n in names}
    for a, b in zip(ends, ends[1:]):
        piece = {n: t[:, a:b] if n in per_token else t for n, t in leaves.items()} | state
        made.append(call(name, piece, **options))
        state = {n: made[-1][n.replace("initial", "final", 1)] for n in names}
    return with_gradients(made[-1] | {"o": torch.cat([y["o"] for y in made], 1)}, leaves)


def cuts(name, *ends):
    """The ends themselves, or those of as many segments: a state is handed over between segments alone."""
    own = segment(name)
    return ends if own is None else tuple(own * i for i in range(len(ends) - 1)) + (own * (len(ends) - 1) - own // 2,)


@every_rule_and_form
def test_a_split_sequence_is_the_whole(name, form):
    ends = cuts(name, 0, 1, 22, 40)
    x = inputs(name, T=ends[-1])
    options = dict(form=form, chunk_size=16, backend="torch")
    assert_agree(piecewise(name, x, ends, **options), run(name, x, **options), 1e-11)


@every_chunked_rule
def test_a_split_sequence_is_the_whole_in_the_kernels(name):
    ends = cuts(name, 0, 17, 20)
    x = inputs(name, torch.float32, T=ends[-1], HV=1)
    options = dict(form="chunk", chunk_size=16, backend="triton")
    assert_agree(piecewise(name, x, ends, **options), run(name, x, **options), 2e-5)


def separately(name, x, ends, **options):
    """Packed sequences one by one."""
    leaves = leaves_of(x)
    per_token = {"q", "k", "v", *(g.name for g in operator(name).spec.inputs)}
    results = []
    for n_th, (a, b) in enumerate(zip(ends, ends[1:])):
        piece = {n: t[:, a:b] if n in per_token else t for n, t in leaves.items()}
        piece |= {n: leaves[n][n_th : n_th + 1] for n in initial_names(operator(name).spec)}
        results.append(call(name, piece, **options))
    joined = {n: torch.cat([r[n] for r in results], 1 if n == "o" else 0) for n in results[0]}
    return with_gradients(joined, leaves)


PACKED = "form, backend, dtype, ends, bound, integer"


def packings(*rows):
    return pytest.mark.parametrize(PACKED, rows, ids=str)


@every_rule_with(
    PACKED,
    [
        ("chunk", "torch", torch.float64, (0, 17, 18, 40), 1e-12, torch.int32),
        ("recurrent", "torch", torch.float64, (0, 17, 18, 24), 1e-12, torch.int64),
    ],
)
def test_packed_sequences_are_separate_ones(name, form, backend, dtype, ends, bound, integer):
    x = inputs(name, dtype, T=ends[-1])
    states = inputs(name, dtype, B=len(ends) - 1, T=1)
    x |= {n: states[n] for n in initial_names(operator(name).spec)}
    options = dict(form=form, chunk_size=16, backend=backend)
    packed = run(name, x, cu_seqlens=torch.tensor(ends, dtype=integer), **options)
    assert_agree(packed, separately(name, x, ends, **options), bound)


@pytest.mark.parametrize("name", ["gated_deltanet", "mamba2", "longhorn"])
@packings(
    ("chunk", "triton", torch.float32, (0, 17, 18, 22), 1e-5, torch.int64),
    ("recurrent", "triton", torch.float32, (0, 1, 4), 1e-5, torch.int64),
)
def test_packed_sequences_are_separate_ones_in_the_kernels(name, form, backend, dtype, ends, bound, integer):
    """Some rules: all of them meet the oracle on packed sequences, with offsets in int32."""
    test_packed_sequences_are_separate_ones(name, form, backend, dtype, ends, bound, integer)


def test_packing_offsets_may_be_strided():
    """In a process of its own: kernels that read past the offsets' memory take theirs down."""
    code = """
        import torch, ttrc
        torch.manual_seed(0)
        q, v = torch.randn(1, 6, 1, 4), torch.randn(1, 6, 1, 4)
        k, beta = torch.nn.functional.normalize(q, dim=-1), torch.rand(1, 6, 1)
        ends = torch.tensor([0, 2, 6], dtype=torch.int32)
        strided = torch.stack([ends, torch.full_like(ends, 6)], 1)[:, 0]
        op = ttrc.load("deltanet")
        for form in ("chunk", "recurrent"):
            options = dict(beta=beta, backend="triton", form=form, chunk_size=16)
            made, _ = op(q, k, v, cu_seqlens=strided, **options)
            assert torch.equal(made, op(q, k, v, cu_seqlens=ends, **options)[0]), "the offsets were misread"
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("backend, dtype", [("torch", torch.float64), ("triton", torch.float32)])
@every_form
def test_the_layout_of_inputs_never_shows(backend, dtype, form):
    T = 20 if form == "chunk" else 4
    x = inputs("gated_deltanet", dtype, B=2, T=T, H=2, HV=2)
    options = dict(form=form, chunk_size=16, backend=backend)
    heads_first = {n: t.transpose(1, 2).contiguous().transpose(1, 2) for n, t in x.items() if t.dim() == 4}
    heads_first["initial_state"] = x["initial_state"].mT.contiguous().mT
    gates = {n: torch.stack([t, t], -1)[..., 0] for n, t in x.items() if t.dim() == 3}
    strided = heads_first | gates
    assert not any(t.is_contiguous() for t in strided.values())
    plain = run("gated_deltanet", x, **options)
    leaves = {n: t.detach().requires_grad_() for n, t in strided.items()}
    o, final = operator("gated_deltanet")(**leaves, output_final_state=True, **options)
    assert torch.equal(o, plain["o"]) and torch.equal(final, plain["final_state"])
    generator = torch.Generator().manual_seed(11)
    weights = [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).bfloat16().to(y.dtype) for y in (o, final)
    ]
    (o.transpose(1, 2).contiguous() * weights[0].transpose(1, 2)).sum().add((final * weights[1]).sum()).backward()
    for n, t in leaves.items():
        assert torch.equal(t.grad, plain[f"d_{n}"]), n


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_an_expanded_input_gets_its_gradient(backend):
    x = inputs("deltanet", torch.float32, B=2, T=20)
    beta = torch.full((1, 1, 1), 0.5, requires_grad=True)
    o, _ = operator("deltanet")(**x | {"beta": beta.expand(2, 20, 2)}, form="chunk", chunk_size=16, backend=backend)
    o.sum().backward()
    assert beta.grad.shape == (1, 1, 1) and beta.grad.abs() > 0


@every_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_without_kernels(name, dtype):
    x, form = inputs(name, dtype, T=20), "chunk" if name in CHUNKED else "recurrent"
    made = run(name, x, form=form, chunk_size=16, backend="torch")
    assert made["o"].dtype == dtype and all(t.dtype == torch.float32 for n, t in made.items() if n.startswith("final"))
    assert all(made[f"d_{n}"].dtype == t.dtype for n, t in x.items())
    exact = run(name, {n: t.double() for n, t in x.items()}, form=form, chunk_size=16, backend="torch")
    assert_agree(made, exact, 8e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", ["gated_deltanet", "mamba2"])
def test_gates_in_half_precision(name, backend, dtype):
    x = inputs(name, torch.float32, T=20)
    declared = operator(name).spec
    gates = [g.name for g in (*declared.inputs, *declared.parameters)]
    short = {n: t.to(dtype) if n in gates else t for n, t in x.items()}
    options = dict(form="chunk", chunk_size=16, backend=backend)
    made = run(name, short, **options)
    same = run(name, {n: t.float() for n, t in short.items()}, **options)
    assert torch.equal(made["o"], same["o"])
    for n in gates:
        assert made[f"d_{n}"].dtype == dtype
        assert relative_rms(made[f"d_{n}"], same[f"d_{n}"]) < 5e-3


@pytest.mark.parametrize("form, backend, T", [(f, b, T) for f, b, _, T, _ in SETTINGS])
@pytest.mark.parametrize("name", ["linear_attention", "gated_deltanet", "mamba2"])
def test_the_scale_multiplies_the_read_out_alone(name, form, backend, T):
    x = inputs(name, torch.float64 if backend == "torch" else torch.float32, T=T, dk=4)
    options = dict(form=form, chunk_size=16, backend=backend)
    one, three = run(name, x, scale=1.0, **options), run(name, x, scale=3.0, **options)
    assert relative_rms(three["o"], 3 * one["o"]) < 1e-6
    assert torch.equal(three["final_state"], one["final_state"])
    assert relative_rms(three["d_q"], 3 * one["d_q"]) < 1e-6
    assert_agree(run(name, x, scale=0.5, **options), run(name, x, **options), 0.0)


@pytest.mark.parametrize(
    "name, parameter", [("retnet", "log_gamma"), ("lightning_attention", "slope"), ("mamba2", "A")]
)
@pytest.mark.parametrize("backend, dtype, bound", [("torch", torch.float64, 1e-9), ("triton", torch.float32, 5e-5)])
def test_parameters_learn(name, parameter, backend, dtype, bound):
    x = inputs(name, dtype, B=2, T=20, H=2, HV=4)
    x[parameter] = -torch.linspace(0.1, 2.0, 4, dtype=x[parameter].dtype)
    made = run(name, x, form="chunk", chunk_size=16, backend=backend)[f"d_{parameter}"]
    assert made.shape == (4,)
    assert relative_rms(made, of_oracle(name, x)[f"d_{parameter}"]) <= bound


def test_a_default_is_the_parameter_it_stands_for():
    x = inputs("retnet", T=20, HV=4)
    given = torch.log(1 - 2.0 ** (-5 - torch.arange(4, dtype=torch.float64)))
    o, _ = operator("retnet")(**x | {"log_gamma": given}, form="chunk")
    del x["log_gamma"]
    assert torch.equal(operator("retnet")(**x, form="chunk")[0], o)


# One operator against another


def same(name, x, other, y, bound=1e-11, outputs=("o", "final_state", "d_q", "d_k", "d_v", "d_initial_state")):
    for form in FORMS:
        options = dict(form=form, chunk_size=16, backend="torch")
        a, b = run(name, x, **options), run(other, y, **options)
        assert_agree({n: a[n] for n in outputs}, {n: b[n] for n in outputs}, bound)


def plain(x):
    return {n: x[n] for n in ("q", "k", "v", "initial_state")}


def test_no_decay_is_the_plain_delta_rule():
    x = inputs("gated_deltanet")
    base = plain(x) | {"beta": x["beta"]}
    none = torch.zeros_like(x["g"])
    same("gated_deltanet", base | {"g": none}, "deltanet", base)
    same("undecayed_read", base | {"g": none}, "deltanet", base)
    same("ridge_delta", x | {"lam": torch.zeros_like(none)}, "gated_deltanet", x)
    same("twice_weighted", plain(x) | {"eta": x["beta"] ** 0.5, "trust": x["beta"] ** 0.5}, "deltanet", base, 1e-10)


def test_no_decay_is_linear_attention():
    x = plain(inputs("linear_attention"))
    none = torch.zeros(2, dtype=torch.float64)
    same("retnet", x | {"log_gamma": none}, "linear_attention", x)
    same("lightning_attention", x | {"slope": none}, "linear_attention", x)


def test_a_step_of_one_is_retention():
    x = plain(inputs("linear_attention"))
    rate = torch.tensor([-0.5, -0.01], dtype=torch.float64)
    ones = torch.ones(1, 40, 2, dtype=torch.float64)
    same("mamba2", x | {"dt": ones, "A": rate}, "retnet", x | {"log_gamma": rate})


def test_the_implicit_step_is_the_explicit_one_with_a_shorter_stride():
    x = inputs("longhorn")
    length = x["k"].square().sum(-1).expand(1, 40, 2)
    y = plain(x) | {"beta": x["beta"] / (1 + x["beta"] * length)}
    same("longhorn", x, "deltanet", y, outputs=("o", "final_state", "d_q", "d_v", "d_initial_state"))


def test_a_shifted_target_is_the_delta_rule_with_another_value():
    x = inputs("deltanet")
    forward = ("o", "final_state", "d_q", "d_k", "d_initial_state")
    same("half_hebbian", x, "deltanet", x | {"v": x["v"] * 1.25}, outputs=forward)
    same("tilted_target", x, "deltanet", x | {"v": x["v"] - 0.1}, outputs=forward)
