"""Read-outs: a spec with one is the same spec without, and what a caller would make of its output."""

from dataclasses import replace

import pytest
import torch

import ttrc
from ttrc.compiler import analyse
from ttrc.errors import SpecError
from ttrc.language.load import parse_spec
from ttrc.paths import specs_dir
from ttrc.runtime.verify import Case, relative_rms, verify
from ttrc.sampling import random_inputs
from ttrc.tools import account

GATES = {"z": "value_channel", "y": "head", "u": "key_channel"}
GATE, SKIP, TANH = "sigmoid(z) * r", "sigmoid(z) * r + y * v", "tanh(r) * z + v / 4"
NORM = "z * r / sqrt(norm2(r) / count(r) + 0.01)"
BONUS = "r + dot(q, u * k) * v"
MIXED = "r * exp(-norm2(r) / 100) + (sum(v * z) / 8 + dot(q, k)) * y * v"
BEYOND = "r + 1 + sum(z * z + 1) / 100 * v"  # a sum of padded channels would show, and what is past the end
ADDED = "tanh(r) * y + z + v"  # its cotangent is the output's
LOG = "r * (1 + log(norm2(v)) / 9)"  # past the end a sum is of zeros
READOUTS = {"gate": GATE, "skip": SKIP, "tanh": TANH, "norm": NORM, "bonus": BONUS, "mixed": MIXED, "beyond": BEYOND}
READOUTS |= {"added": ADDED, "log": LOG}
OTHERS = [("huber_delta", NORM), ("momentum_deltanet", TANH), ("gla", SKIP), ("gla", NORM), ("kda", GATE)]
OTHERS += [("robust_delta", GATE), ("robust_delta", NORM)]
BY_TOKEN_ALONE = [("entropy_delta", SKIP), ("elastic_delta", NORM)]
BACKENDS = [("torch", torch.float64), ("triton", torch.float32)]
CASE = Case(B=1, T=21, d_k=5, d_v=7, chunk_size=16)  # padded channels, and a ragged last chunk
BY_TOKEN = Case(B=1, T=3, d_k=5, d_v=7)


def dot(a, b):
    return (a * b).sum(-1, keepdim=True)


def count(x):
    return x.shape[-1]


def norm2(x):
    return dot(x, x)


def total(x):
    return x.sum(-1, keepdim=True)


OF_TORCH = {"log": torch.log, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "exp": torch.exp, "sqrt": torch.sqrt}
OF_TORCH |= {"dot": dot, "norm2": norm2, "count": count, "sum": total}


def plain(name):
    return (specs_dir() / f"{name}.toml").read_text()


def reading(name, expr, domains=None):
    """A shipped spec with a read-out, and the gates of it that it has not."""
    text, known = plain(name), ttrc.load(specs_dir() / f"{name}.toml").spec
    words = set("".join(c if c.isalnum() or c == "_" else " " for c in expr).split())
    taken = {g.name for g in (*known.inputs, *known.parameters)}
    new = "".join(
        f'{gate} = {{ per = "{per}", domain = "{(domains or {}).get(gate, "real")}" }}\n'
        for gate, per in GATES.items()
        if gate in words - taken
    )
    if new and "[inputs]" in text:
        text = text.replace("[inputs]\n", f"[inputs]\n{new}", 1)
    elif new:
        text = text.replace("[memory]", f"[inputs]\n{new}\n[memory]", 1)
    return parse_spec(f'{text}\n[read]\nexpr = "{expr}"\n')


def case_of(form, name):
    case = BY_TOKEN if form == "recurrent" else CASE
    if name.startswith("ttt"):
        return Case(B=1, T=21 if form == "chunk" else 3, d_k=6, d_v=6)
    return case


@pytest.mark.parametrize("expr", READOUTS.values(), ids=list(READOUTS))
@pytest.mark.parametrize("name", ["gated_deltanet", "linear_attention", "softmax_attention", "mesanet", "ttt_linear"])
@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_read_outs_agree_with_the_oracle(name, expr, backend, dtype):
    op = ttrc.load(reading(name, expr))
    for form in op.forms:
        assert not verify(op, case_of(form, name), form=form, backend=backend, dtype=dtype).failures, form


@pytest.mark.parametrize("name, expr", OTHERS)
@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_read_outs_of_every_kind_of_kernel(name, expr, backend, dtype):
    assert not verify(ttrc.load(reading(name, expr)), CASE, form="chunk", backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("name, expr", BY_TOKEN_ALONE)
@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_read_outs_of_rules_that_run_token_by_token(name, expr, backend, dtype):
    op = ttrc.load(reading(name, expr))
    assert op.forms == ("recurrent",)
    assert not verify(op, BY_TOKEN, form="recurrent", backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("name", ["gated_deltanet", "forgetting_attention"])
@pytest.mark.parametrize("expr", [SKIP, NORM])
def test_read_outs_in_half_precision(name, expr):
    case = Case(B=1, T=18, HV=1, d_k=16, d_v=16, chunk_size=16)
    op = ttrc.load(reading(name, expr))
    assert not verify(op, case, form="chunk", backend="triton", dtype=torch.float16).failures


@pytest.mark.parametrize("name", ["softmax_attention", "mesanet", "ttt_linear"])
@pytest.mark.parametrize("expr", [SKIP, MIXED])
def test_read_outs_of_packed_sequences(name, expr):
    """One of them a single token; the linear ones of tests/unseen are among all rules in test_properties.py."""
    op = ttrc.load(reading(name, expr))
    case = Case(T=21, packed=(17, 1, 3), d_k=6, d_v=6, chunk_size=None if name == "ttt_linear" else 16)
    assert not verify(op, case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("domain", ["positive", "negative", "decay"])
def test_a_gate_is_inside_its_domain_in_the_padding(domain):
    op = ttrc.load(reading("gated_deltanet", "r / z + log(abs(z)) * v", {"z": domain}))
    for form in op.forms:
        assert not verify(op, case_of(form, ""), form=form, backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("expr", ["sigmoid(g) * r + beta * v", "r * exp(g) / (1 + norm2(r))"])
@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_a_gate_may_be_of_the_rule_and_of_the_read_out(expr, backend, dtype):
    op = ttrc.load(reading("gated_deltanet", expr) if "beta" in expr else reading("forgetting_attention", expr))
    assert not verify(op, CASE, form="chunk", backend=backend, dtype=dtype).failures


@pytest.mark.parametrize("backend, dtype", BACKENDS)
def test_of_all_pairs_a_gate_may_weigh_keys_and_queries(backend, dtype):
    """Its gradient then takes what both kinds of programs make."""
    text = reading("softmax_attention", "sigmoid(y) * r").source.text.replace(
        "[retention]", 'weight = "exp(y)"\n[retention]'
    )
    assert not verify(ttrc.load(parse_spec(text)), CASE, form="chunk", backend=backend, dtype=dtype).failures


def drawn(op, T=21, seed=0, dtype=torch.float64):
    x = random_inputs(op.spec, B=1, T=T, H=1, HV=2, dk=5, dv=7, dtype=dtype, seed=seed)
    return {n: t for n, t in x.items() if not n.startswith("initial")}


def differentiated(call, x):
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    o = call(leaves)
    weights = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).reshape(o.shape)
    grads = torch.autograd.grad((o * weights).sum(), list(leaves.values()), allow_unused=True)
    return {"o": o.detach()} | {
        f"d_{n}": torch.zeros_like(t) if g is None else g for (n, t), g in zip(leaves.items(), grads)
    }


@pytest.mark.parametrize("expr", READOUTS.values(), ids=list(READOUTS))
@pytest.mark.parametrize("name", ["gated_deltanet", "softmax_attention"])
def test_a_read_out_is_what_a_caller_would_do(name, expr):
    op, bare = ttrc.load(reading(name, expr)), ttrc.load(specs_dir() / f"{name}.toml")
    own = {g.name for g in bare.spec.inputs}

    def by_hand(x):
        r, _ = bare(x["q"], x["k"], x["v"], **{n: t for n, t in x.items() if n in own}, backend="torch")
        repeated = {n: x[n].repeat_interleave(2, 2) for n in ("q", "k")}
        repeated["q"] = repeated["q"] * x["q"].shape[-1] ** -0.5
        gates = {n: t[..., None] if t.dim() == 3 else t for n, t in x.items() if n not in ("q", "k", "v")}
        return eval(expr, {}, OF_TORCH | gates | repeated | {"r": r, "v": x["v"]})

    x = drawn(op)
    made = differentiated(lambda x: op(**x, form="chunk", backend="torch")[0], x)
    right = differentiated(by_hand, x)
    assert max(relative_rms(made[n], right[n]) for n in right) < 1e-10


@pytest.mark.parametrize("name", ["gated_deltanet", "linear_attention", "softmax_attention", "mesanet"])
def test_what_the_memory_answers_is_no_read_out_at_all(name):
    read, bare = (analyse(s) for s in (reading(name, "r"), parse_spec(plain(name))))
    for ours, theirs in zip(account.costs(read), account.costs(bare)):
        assert ours.budget == theirs.budget
    assert [row.held for row in account.kept(read)] == [row.held for row in account.kept(bare)]
    op, other = ttrc.load(reading(name, "r")), ttrc.load(specs_dir() / f"{name}.toml")
    x = drawn(op)
    ours, theirs = (differentiated(lambda x, op=op: op(**x, form="chunk", backend="torch")[0], x) for op in (op, other))
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


@pytest.mark.parametrize("backend, dtype, bound", [("torch", torch.float64, 1e-12), ("triton", torch.float32, 1e-6)])
def test_a_gate_of_ones_is_none(backend, dtype, bound):
    op, bare = ttrc.load(reading("gated_deltanet", "z * r")), ttrc.load(specs_dir() / "gated_deltanet.toml")
    x = drawn(op, dtype=dtype)
    x["z"] = torch.ones_like(x["z"])
    made = differentiated(lambda x: op(**x, form="chunk", backend=backend)[0], x)
    del x["z"]
    right = differentiated(lambda x: bare(**x, form="chunk", backend=backend)[0], x)
    assert max(relative_rms(made[n], right[n]) for n in right) < bound


@pytest.mark.parametrize("name, save", [("gated_deltanet", True), ("gated_deltanet", False), ("mesanet", True),
                                        ("softmax_attention", True), ("softmax_attention", False)])  # fmt: skip
def test_ops_with_a_read_out_pass_opcheck(name, save):
    """What is kept beside the states is told to compilers as it is, whether a backward pass follows or not."""
    op = ttrc.load(reading(name, NORM))
    x = {n: t.requires_grad_(save) for n, t in drawn(op, dtype=torch.float32).items()}
    options = dict(scale=0.4, initial_state=None, cu_seqlens=None, chunk=16, final=True, save=save, backend="triton")
    options |= dict(schedule="auto", crossing="all")
    raw = op.package.op.chunk_op
    names = [argument.name for argument in raw._schema.arguments]
    torch.library.opcheck(raw, tuple((x | options)[n] for n in names), test_utils="test_faketensor")


@pytest.mark.parametrize("schedule", ["fused", "split", "segments"])
@pytest.mark.parametrize("expr", [SKIP, NORM])
def test_every_schedule_reads_out(expr, schedule):
    op = ttrc.load(reading("gated_deltanet", expr))
    case = Case(B=1, T=70, d_k=5, d_v=7, chunk_size=16, schedule=schedule)
    assert not verify(op, case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("name, loss", [("mamba2", '"-dot(p, v)"'), ("gated_deltanet", '"norm2(p - v) / 2"')])
@pytest.mark.parametrize("schedule", ["fused", "split"])
def test_a_loss_may_weigh_values_by_their_sums(name, loss, schedule):
    """The read-out's kernels backwards make such sums too, and what scans take forwards is no result of theirs."""
    text = reading(name, NORM).source.text
    assert loss in text
    op = ttrc.load(parse_spec(text.replace(loss, f'{loss[:-1]} / sqrt(1 + norm2(v))"')))
    case = replace(CASE, schedule=schedule)
    assert not verify(op, case, form="chunk", backend="triton", dtype=torch.float32).failures


@pytest.mark.parametrize("expr", [SKIP, NORM])
def test_what_is_kept_changes_no_gradient(expr):
    op = ttrc.load(reading("gated_deltanet", expr))
    x, made = drawn(op, T=150, dtype=torch.float32), []
    for keep in (None, 60, 10):  # all, what scans made, every 8th state
        call = dict(form="chunk", backend="triton", chunk_size=16, keep_bytes=keep)
        made.append(differentiated(lambda x, call=call: op(**x, **call)[0], x))
    for other in made[1:]:
        assert all(torch.equal(other[n], made[0][n]) for n in other)


def costs(name, expr=None):
    module = analyse(parse_spec(plain(name)) if expr is None else reading(name, expr))
    spent = {(c.form, c.direction): c.budget for c in account.costs(module)}
    return module, spent, {row.cut: row.held for row in account.kept(module) if row.form == "chunk"}


def test_a_gate_and_a_skip_are_read_where_they_are_used_and_nothing_more_is_kept():
    """At d = 128 in bfloat16 a row of channels is 256 bytes."""
    _, bare, held = costs("gated_deltanet")
    module, spent, kept = costs("gated_deltanet", GATE)
    assert kept == held
    assert spent["chunk", "forward"].bytes - bare["chunk", "forward"].bytes == 256  # z
    # The gate for both kernels, its gradient.
    assert spent["chunk", "backward"].bytes - bare["chunk", "backward"].bytes == 3 * 256
    assert spent["chunk", "backward"].launches == bare["chunk", "backward"].launches
    assert {s.name for s in module.forms["chunk"].plan.schedules} == {"fused", "split", "segments"}


def test_a_norm_keeps_the_answer_and_stays_out_of_the_scans():
    _, bare, held = costs("gated_deltanet")
    module, spent, kept = costs("gated_deltanet", NORM)
    assert {cut: kept[cut] - held[cut] for cut in held} == {"all": 256, "scanned": 256, "sparse": 0}
    assert spent["chunk", "forward"].bytes - bare["chunk", "forward"].bytes == 3 * 256  # answer twice, z
    # d_o, the answer and z are read, d_z and the answer's cotangent written; the others take that for d_o.
    assert spent["chunk", "backward"].bytes - bare["chunk", "backward"].bytes == 5 * 256
    names = {k.name for k in module.forms["chunk"].plan.kernels}
    assert {"chunk_read", "chunk_read_reverse"} <= names and not any(n.endswith("_whole") for n in names)
    assert {s.name for s in module.forms["chunk"].plan.schedules} == {"fused", "split", "segments"}


def test_attention_hands_on_the_cotangent_of_the_answer():
    module = analyse(reading("softmax_attention", SKIP))
    (keys,) = (k for k in module.forms["chunk"].plan.kernels if k.name == "attend_keys")
    assert not {"z", "d_o"} & {b.name for b in keys.loads}


@pytest.mark.parametrize(
    "expr, says",
    [
        ("log(r)", "no finite value"),
        ("r / norm2(v - v)", "no finite value"),
        ("v / r + r", "no finite value"),
        ("r - r + v", "r cancels"),
        ("r" + "".join(f" + tanh({i} * r + v)" for i in range(2, 40)), "operations"),
    ],
)
@pytest.mark.parametrize("name", ["gated_deltanet", "softmax_attention"])
def test_a_read_out_that_makes_no_sense_is_refused_in_its_place(name, expr, says):
    with pytest.raises(SpecError) as refused:
        ttrc.load(reading(name, expr))
    assert says in str(refused.value) and refused.value.key == "read.expr" and refused.value.span


def test_a_gate_of_entries_is_refused_where_it_stands():
    text = (
        reading("gated_deltanet", "r * z")
        .source.text.replace("r * z", "r * sum(z)")
        .replace("value_channel", "element")
    )
    with pytest.raises(SpecError) as refused:
        ttrc.load(parse_spec(text))
    assert "each entry" in str(refused.value) and refused.value.text[slice(*vars(refused.value.span).values())] == "z"


def test_of_all_pairs_gates_with_channels_are_for_the_read_out_alone():
    text = reading("softmax_attention", "z * r").source.text.replace("norm2(p - v) / 2", "norm2(p - z * v) / 2")
    with pytest.raises(SpecError, match=r"but in \[features\] and read.expr"):
        ttrc.load(parse_spec(text))
