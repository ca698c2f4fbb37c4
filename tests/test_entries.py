"""Matrix memories whose entries each move by themselves: scans in chunks, beside recurrences written by hand."""

import functools
from pathlib import Path

import pytest
import torch

import ttrc
from ttrc.backends.triton.signature import signature
from ttrc.compiler import analyse
from ttrc.emit import emit
from ttrc.ir.config import step_tokens
from ttrc.ir.plan import Skeleton, Space
from ttrc.ir.tile import LinearScan
from ttrc.language.load import load_spec, parse_spec
from ttrc.passes.add_totals import taken_once
from ttrc.passes.budget import budget, held_bytes, least_bytes
from ttrc.passes.find_obstacle import is_scan
from ttrc.paths import specs_dir
from ttrc.runtime.verify import Case, fitting, relative_rms, verify
from ttrc.sampling import as_arguments, random_inputs
from ttrc.tools import classify
from ttrc.tools.notation import as_assignment
from ttrc.tools.offline import Job, compile_many
from ttrc.tools.resources import Resources

UNSEEN = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file()) / "tests" / "unseen"
PER = {"head": "head", "key": "key_channel", "value": "value_channel", "element": "element"}
HEBBIAN, KEPT = "-dot(p, v)", "norm2(S - a * S_prev) / 2"
RETAINED, SEGMENT = 'rule = "gradient"\nat = "retained"', 'rule = "gradient"\nat = "segment_start"\nsegment = 16'


def text_of(loss, retention, update=RETAINED, more="", parameters=None, **inputs):
    """Gates by name, each "per domain"; parameters likewise."""

    def table(title, gates):
        rows = (f'{n} = {{ per = "{PER[g.split()[0]]}", domain = "{g.split()[1]}" }}' for n, g in gates.items())
        return "\n".join((f"[{title}]", *rows)) if gates else ""

    return "\n".join((
        'schema = 1\nname = "mine"\nreference = "a test"', table("inputs", inputs),
        table("parameters", parameters or {}), f'[memory]\nkind = "linear"\n[loss]\nexpr = "{loss}"',
        f'[retention]\nexpr = "{retention}"', f"[update]\n{update}", more,
    ))  # fmt: skip


SCANNED = {
    "mamba": (specs_dir() / "mamba.toml").read_text(),
    "separable": (UNSEEN / "separable_decay.toml").read_text(),
    "normed": (UNSEEN / "normed_entries.toml").read_text(),
    "by value": text_of(HEBBIAN, KEPT, a="value unit"),
    "forgets all": text_of(HEBBIAN, KEPT, a="head unit"),
    "by key, may be zero": text_of(HEBBIAN, KEPT, a="key unit"),
    "heavy by key": text_of(HEBBIAN, "norm2(S - exp(a) * S_prev) / 2", f'{RETAINED}\nmomentum = "m"',
                            a="key log_decay", m="head unit"),
    "step may be zero": text_of(HEBBIAN, "norm2(S - S_prev) / 2", f'{RETAINED}\nmomentum = "m"', m="head unit"),
    "fixed": text_of("-sum(w * p * v)", KEPT, w="value real", parameters={"a": "element unit"}),
    "curved": text_of(HEBBIAN, "sum(c * square(S - a * S_prev)) / 2", a="head unit",
                      parameters={"c": "element positive"}),
    "mapped": text_of(HEBBIAN, KEPT, more="[features]\nk = 'k / sqrt(norm2(k) + 0.01) * w'\nq = 'q * c'",
                      a="element unit", w="key unit", parameters={"c": "key real"}),
    "gated output": text_of(HEBBIAN, KEPT, more="[read]\nexpr = 'sigmoid(z) * r + dot(q, k) * v'", a="value unit",
                            z="value real"),
    "held inputs": text_of("-dot(p, v)", "sum(A / (exp(w * A) - 1) * square(S - exp(w * A) * S_prev)) / 2",
                           w="value positive", parameters={"A": "element negative"}),
    "gained output": text_of(HEBBIAN, KEPT, more="[read]\nexpr = 'gain * r / sqrt(norm2(r) / count(r) + 0.01)'",
                             a="value unit", parameters={"gain": "value real"}),
}  # fmt: skip
# Products in chunks, as before; and what no scan of single entries is.
PRODUCTS = {
    "decay by key": text_of(HEBBIAN, "norm2(S - exp(a) * S_prev) / 2", a="key log_decay"),
    "curved by key": text_of(HEBBIAN, "sum(c * square(S - S_prev)) / 2", c="key positive"),
    "a decay": text_of(HEBBIAN, KEPT, a="head decay"),
}
BY_TOKEN = {
    "delta": text_of("norm2(p - v) / 2", KEPT, a="element decay"),
    "frozen": text_of("norm2(p - v) / 2", KEPT, SEGMENT, a="element decay"),
    "normalised": text_of("-dot(p, v) / (1 + norm2(v))", KEPT, a="value unit"),
    "robust": text_of("sum(huber(p - v, 1))", KEPT, a="value unit"),
}
every_rule = pytest.mark.parametrize("rule", SCANNED)


@functools.cache
def operator(rule):
    return ttrc.load(parse_spec(SCANNED[rule]))


@functools.cache
def mamba():
    return analyse(load_spec(specs_dir() / "mamba.toml"))


def inputs(rule, dtype=torch.float64, **sizes):
    sizes = dict(B=1, T=20, H=1, HV=2, dk=5, dv=3, seed=4) | sizes
    return {n: t.to(dtype) for n, t in random_inputs(operator(rule).spec, dtype=torch.float64, **sizes).items()}


def run(rule, x, **options):
    """Outputs and the gradient of a fixed weighing of them for every argument."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in x.items()}
    o, final = operator(rule)(**as_arguments(operator(rule).spec, leaves), output_final_state=True, **options)
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
    Case(B=2, T=37, H=1, HV=4, d_k=5, d_v=3, chunk_size=16),
    Case(B=1, T=1, H=2, HV=2, d_k=1, d_v=2),
    Case(T=38, packed=(3, 1, 34), H=2, HV=4, d_k=7, d_v=4, extreme="strong", chunk_size=16),
    Case(T=20, d_k=3, d_v=2, extreme="weak", chunk_size=16),
)
KERNELS = (  # more value channels than a program takes, and keys that make chunks several steps
    Case(B=1, T=35, H=1, HV=4, d_k=5, d_v=36, chunk_size=16),
    Case(T=19, packed=(17, 2), H=1, HV=1, d_k=18, d_v=6, extreme="strong", chunk_size=32),
    Case(B=1, T=1, H=1, HV=2, d_k=3, d_v=2),
)


@every_rule
@pytest.mark.parametrize("case", MATHEMATICS, ids=str)
def test_the_mathematics_is_the_oracles(rule, case):
    op = operator(rule)
    assert op.forms == ("chunk", "recurrent")
    for form in op.forms:
        result = verify(op, fitting(op.spec, case), form=form, backend="torch", dtype=torch.float64)
        assert not result.failures, (form, result.failures)


@every_rule
@pytest.mark.parametrize("case", KERNELS, ids=str)
def test_the_kernels_are_the_oracles(rule, case):
    result = verify(operator(rule), fitting(operator(rule).spec, case), form="chunk", backend="triton",
                    dtype=torch.float32)  # fmt: skip
    assert not result.failures, result.failures


# A recurrence written by hand


def test_mamba_is_the_papers():
    """h_t = exp(dt A) h_{t-1} + dt B x, y = C h + D x (arXiv:2312.00752, section 2), of all heads one B and C."""
    x = inputs("mamba", T=40, HV=4, dk=4, dv=6)
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    h, rows = leaves["initial_state"], []
    for t in range(40):
        b, c = (leaves[n][:, t, :, :, None] for n in ("k", "q"))
        dt, v = (leaves[n][:, t, :, None, :] for n in ("dt", "v"))
        h = torch.exp(dt * leaves["A"]) * h + b * dt * v
        rows.append((c * h).sum(-2) + leaves["D"] * leaves["v"][:, t])
    told, generator = (torch.stack(rows, 1), h), torch.Generator().manual_seed(5)
    sum((y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in told).backward()
    wanted = dict(zip(("output 0", "output 1"), told)) | {f"d_{n}": t.grad for n, t in leaves.items()}
    for form in ("chunk", "recurrent"):
        assert_agree(run("mamba", x, form=form, backend="torch", scale=1.0), wanted, 1e-12)
    single = {n: t.float() for n, t in x.items()}
    assert_agree(run("mamba", single, form="chunk", backend="triton", scale=1.0, chunk_size=16), wanted, 2e-6)


# Relations


@every_rule
def test_forms_and_chunk_sizes_agree(rule):
    x = inputs(rule, T=70)
    token = run(rule, x, form="recurrent", backend="torch")
    for size in (16, 32, 64, 128):
        assert_agree(run(rule, x, form="chunk", chunk_size=size, backend="torch"), token, 1e-12)


@pytest.mark.parametrize("rule", ["mamba", "separable", "normed"])
def test_kernels_agree_whatever_is_kept(rule):
    """A chunk of many steps, whose states are made again, and of few; not a bit hangs on it."""
    x = inputs(rule, torch.float32, T=40)
    few, many = (run(rule, x, form="chunk", chunk_size=size, backend="triton") for size in (16, 64))
    for name in few:
        assert torch.equal(few[name], many[name]), name


@pytest.mark.parametrize("rule", ["mamba", "by value", "fixed"])
@pytest.mark.parametrize("log_decay", [0.0, -30.0, -300.0])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_decays_of_nothing_and_of_everything(rule, log_decay, backend):
    """exp(-300) is 0 in single precision, and nothing is divided by it."""
    x = inputs(rule, torch.float64 if backend == "torch" else torch.float32)
    if rule == "mamba":
        x["dt"][:, 5:9], x["A"] = 1.0, x["A"] * 0 + log_decay
    else:
        x["a"] = x["a"].fill_(torch.tensor(log_decay).double().exp().item())
    found = run(rule, x, form="chunk", backend=backend, chunk_size=16)
    wanted = run(rule, {n: t.double() for n, t in x.items()}, form="recurrent", backend="torch")
    errors = {n: relative_rms(found[n], wanted[n]) for n in wanted if wanted[n].abs().max() > 1e-30}
    assert len(errors) > 5 and all(e <= (1e-12 if backend == "torch" else 2e-6) for e in errors.values()), errors
    assert all(t.isfinite().all() for t in found.values())


@every_rule
def test_a_sequence_in_two_pieces_packed_and_alone(rule):
    cut, x = 16, inputs(rule, T=32)
    options, op = dict(form="chunk", backend="torch", chunk_size=16), operator(rule)
    in_time = {g.name for g in op.spec.inputs} | {"q", "k", "v"}
    names = [n for n in x if n.startswith("initial")]

    def part(x, a, b):
        return {n: t[:, a:b] if n in in_time else t for n, t in x.items()}

    def call(x, **more):
        o, final = op(**as_arguments(op.spec, x), output_final_state=True, **options, **more)
        return o, (final,) if isinstance(final, torch.Tensor) else tuple(final)

    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    whole, ends = call(leaves)
    (whole.square().sum() + sum(e.sum() for e in ends)).backward()
    grads = {n: t.grad for n, t in leaves.items()}
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    first, states = call(part(leaves, 0, cut))
    second, ends = call(part(leaves, cut, 32) | dict(zip(names, states)))
    both = torch.cat([first, second], 1)
    (both.square().sum() + sum(e.sum() for e in ends)).backward()
    assert relative_rms(both, whole) < 1e-12
    assert_agree(grads, {n: t.grad for n, t in leaves.items()}, 1e-10)

    twice = x | {n: torch.cat([x[n]] * 2) for n in names}
    packed, _ = call(twice, cu_seqlens=torch.tensor([0, cut, 32], dtype=torch.int32))
    alone = torch.cat([call(part(x, 0, cut))[0], call(part(x, cut, 32))[0]], 1)
    assert relative_rms(packed, alone) < 1e-12

    changed = {n: torch.cat([t[:, :13], t[:, 13:].flip(1)], 1) if n in in_time else t for n, t in x.items()}
    o, _ = call(changed)
    assert torch.equal(o[:, :13], whole[:, :13].detach()) and not torch.equal(o, whole.detach())


def test_keys_of_one_head_for_many():
    """q and k of H heads are those of HV / H heads each: gradients are sums over these."""
    x = inputs("mamba", H=2, HV=8)
    own = x | {n: x[n].repeat_interleave(4, 2) for n in ("q", "k")}
    shared, alone = (run("mamba", y, form="chunk", backend="torch") for y in (x, own))
    for name in ("d_q", "d_k"):
        alone[name] = alone[name].unflatten(2, (2, 4)).sum(3)
    assert_agree(shared, alone, 1e-12)


# What runs as what, and what that costs


def test_only_what_has_no_products_is_a_scan():
    assert all(is_scan(analyse(parse_spec(text)).recurrence) for text in SCANNED.values())
    for text in PRODUCTS.values():
        module = analyse(parse_spec(text))
        assert "chunk" in module.forms and not is_scan(module.recurrence)
        assert not any(isinstance(s.op, LinearScan) for s in module.forms["chunk"].forward.statements)
    for text in BY_TOKEN.values():
        module = analyse(parse_spec(text))
        assert list(module.forms) == ["recurrent"] and not is_scan(module.recurrence)


def test_a_scan_forwards_and_one_backwards_that_makes_states_again():
    form = mamba().forms["chunk"]
    (ahead,), (back,) = form.plan.forward, form.plan.backward
    assert (ahead.skeleton, back.skeleton) == (Skeleton.SCAN, Skeleton.STEPS_REVERSE)
    assert [s.op.reverse for s in form.backward.statements if isinstance(s.op, LinearScan)] == [False, True]
    assert back.partial and not any(k.name.endswith("_whole") for k in (ahead, back))


def test_gradients_of_parameters_are_sums_over_tokens():
    for form in mamba().forms.values():
        totals = {b.name: b.tile.axes for b in form.plan.gradients if b.space is Space.TOTAL}
        assert totals == {"d_A": ("k", "v"), "d_D": ("v",)}
    assert {t.name for t in taken_once(mamba().forms["chunk"].forward)} == {"A", "D"}
    # Those that come by key channel are shares of programs, token by token.
    by_key = analyse(parse_spec(SCANNED["mapped"])).forms["chunk"].plan
    assert not any(b.space is Space.TOTAL for b in by_key.gradients)


def test_bytes_are_near_the_least_where_states_are_small():
    sizes = dict(d_k=16, d_v=128, dtype_bytes=2)
    passes, least = budget(mamba(), **sizes), least_bytes(mamba(), **sizes)
    moved = {form: sum(passes[form][p].bytes for p in least) for form in passes}
    assert moved["chunk"] <= 1.2 * sum(least.values()) and moved["recurrent"] <= 1.45 * sum(least.values())
    plan = mamba().forms["chunk"].plan
    assert plan.tokens(16, 128, 2) == 128 and held_bytes(plan, plan.cuts[0], **sizes) == 4 * 16 * 128 / 128


def test_chunks_are_shorter_where_states_are_larger():
    """The operator and the plan say the same; of either a caller may ask for others."""
    plan, op = mamba().forms["chunk"].plan, operator("mamba")
    for d_k, tokens in ((3, 128), (16, 128), (33, 32), (128, 16), (256, 16)):
        q, v = (torch.zeros(1, 1, 1, d, dtype=torch.bfloat16) for d in (d_k, 64))
        assert plan.tokens(d_k, 64, 2) == tokens == op.package.choices.default_chunk("chunk", q, v)


def test_tiles_have_as_many_tokens_as_their_numbers_leave():
    """The operator and the plan say the same."""
    plan, op = mamba().forms["chunk"].plan, operator("mamba").package.launch
    (scan,) = plan.forward
    for d_k, d_v, tokens in ((3, 64, 4), (16, 128, 4), (64, 64, 2), (128, 16, 2)):
        q, v = torch.zeros(1, 1, 1, d_k), torch.zeros(1, 1, 1, d_v)
        config = scan.config(plan.chunk, d_k, d_v)
        assert op.config(scan.name, q, v, 1)[0] == config.value_block
        assert op.step_tokens(scan.name, q, v, 1, 128) == tokens
        assert tokens == step_tokens(scan.takes, config, 128, plan.step, d_k, d_v)


def test_a_read_out_that_joins_channels_has_kernels_of_its_own():
    plan = analyse(parse_spec(SCANNED["normed"])).forms["chunk"].plan
    assert [k.name for k in plan.forward] == ["entry_scan", "chunk_read"]
    assert [k.name for k in plan.backward] == ["chunk_read_reverse", "entry_scan_reverse"]


def test_nothing_spills(tmp_path):
    path = tmp_path / "mamba.py"
    path.write_text(emit(mamba())["kernels.py"])
    plan, jobs = mamba().forms["chunk"].plan, []
    for d_k, d_v in ((16, 64), (16, 128), (64, 64), (128, 128), (256, 256)):
        for kernel in plan.kernels:
            s = signature(kernel, plan, d_k=d_k, d_v=d_v, dtype="bf16")
            config = s.config.warps, s.config.stages, s.divisible
            jobs.append(Job(str(path), kernel.name, s.types, s.constants, "sm_90", *config))
    for job, found in zip(jobs, compile_many(jobs), strict=True):
        assert isinstance(found, Resources), (job, found)
        assert found.spills == found.stack_bytes == 0, (job.kernel, job.constexprs["K"], job.constexprs["V"])


# What is said


@pytest.mark.parametrize("rule, says", [
    ("mamba", "every entry of the state decays by itself"), ("by value", "every value channel decays by itself"),
    ("forgets all", "a = a may reach zero"), ("heavy by key", "a decay by key channel has none"),
    ("curved", "every entry of the state writes with a weight of its own"),
    ("step may be zero", "b = m may reach zero"),
])  # fmt: skip
def test_why_a_chunk_is_a_scan_is_said(rule, says):
    found = {f.aspect: f for f in classify.findings(analyse(parse_spec(SCANNED[rule])))}
    assert says in found["chunk form"].because and "it is a scan, not matrix products" in found["chunk form"].because
    assert found["chunk form"].verdict == "exact for every chunk size"
    assert "masked linear attention" not in found["error"].verdict


def test_scans_are_written_with_all_their_axes():
    told = [as_assignment(s)[1] for s in mamba().forms["chunk"].backward.statements if isinstance(s.op, LinearScan)]
    assert "S_before[t+1,k,v] = " in told[0] and "[t-1,k,v] = " in told[1] and len(told) == 2
