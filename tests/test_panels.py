"""Scans whose programs take all value channels: on chip, and for wide heads in panels of key channels."""

import functools

import pytest
import torch

import ttrc
from ttrc.backends.triton.signature import signature
from ttrc.compiler import analyse
from ttrc.emit import emit
from ttrc.ir.config import KEYS, key_block
from ttrc.ir.tile import Substitute, Written
from ttrc.language.load import load_spec
from ttrc.paths import specs_dir
from ttrc.runtime.verify import Case, as_arguments, fitting, relative_rms, verify
from ttrc.sampling import random_inputs
from ttrc.tools.offline import Job, compile_many
from ttrc.tools.resources import occupancy

UNSEEN = specs_dir().parent / "tests" / "unseen"
NORMS = ("robust_delta", "huber_norm", "implicit_huber_norm", "implicit_pseudo_huber_norm")
NAMES = (*NORMS, "moneta_linear")
every_rule = pytest.mark.parametrize("name", NAMES)
FEW = ("robust_delta", "moneta_linear")
few_rules = pytest.mark.parametrize("name", FEW)
PANEL = (16, 4, 1)  # key channels, warps, stages


def path(name):
    shipped = specs_dir() / f"{name}.toml"
    return shipped if shipped.is_file() else UNSEEN / f"{name}.toml"


@functools.cache
def operator(name):
    return ttrc.load(path(name))


@functools.cache
def plan_of(name):
    return analyse(load_spec(path(name))).forms["chunk"].plan


def scans_of(plan):
    return [k for k in plan.kernels if "scan" in k.name]


@pytest.fixture
def in_panels(monkeypatch):
    """The operator of a rule, whose scans take 16 key channels at once."""

    def prepare(name):
        op = operator(name)
        known = op.package.launch.CONFIGS
        rows = {kernel: dict.fromkeys(widths, PANEL) for kernel, widths in known.items() if kernel.endswith(KEYS)}
        assert set(rows) == {"chunk_scan_keys", "chunk_scan_reverse_keys"}
        monkeypatch.setattr(op.package.launch, "CONFIGS", known | rows)
        return op

    return prepare


def run(op, x, weights, **options):
    """Outputs and gradients in Triton's interpreter, and of the chunk form."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in x.items()}
    o, final = op(**as_arguments(op.spec, leaves), form="chunk", backend="triton", output_final_state=True, **options)
    (o * weights[: o.shape[1]] + 0.1 * final.sum()).sum().backward()
    return {"o": o.detach(), "final": final.detach()} | {f"d_{n}": t.grad for n, t in leaves.items()}


def drawn(op, T, dk=40, dv=9, HV=2):
    x = random_inputs(op.spec, B=1, T=T, H=1, HV=HV, dk=dk, dv=dv, dtype=torch.float32, seed=5)
    return x, torch.randn(T, HV, dv, generator=torch.Generator().manual_seed(7))


def assert_agree(a, b, bound):
    errors = {n: relative_rms(a[n], b[n]) for n in a}
    assert all(e <= bound for e in errors.values()), errors


CASES = (
    Case(B=1, T=37, H=1, HV=2, d_k=40, d_v=9, chunk_size=16),
    Case(B=1, T=70, H=1, HV=1, d_k=17, d_v=33, chunk_size=64),
    Case(T=41, packed=(17, 1, 23), H=1, HV=1, d_k=33, d_v=5, chunk_size=16, extreme="strong"),
    Case(B=1, T=1, H=1, HV=1, d_k=20, d_v=17),
)


# The last of three panels is not full; every block of a chunk's rows; sequences that end in a chunk; one token.
@pytest.mark.parametrize(
    "name, case", [(n, CASES[0]) for n in NAMES] + [(n, c) for n in FEW for c in CASES[1:]], ids=str
)
def test_scans_in_panels_are_the_oracles(in_panels, name, case):
    op = in_panels(name)
    assert not verify(op, fitting(op.spec, case), form="chunk", backend="triton", dtype=torch.float32).failures


@few_rules
def test_wide_heads_are_walked_in_panels_whoever_asks(name):
    """As configured: 130 key channels are three panels of 64."""
    case = fitting(operator(name).spec, Case(B=1, T=19, H=1, HV=1, d_k=130, d_v=20, chunk_size=16))
    assert not verify(operator(name), case, form="chunk", backend="triton", dtype=torch.float32).failures


@few_rules
def test_panels_change_nothing(in_panels, name):
    """Nor does the size of a chunk, or a sequence that goes on from the first half of it."""
    x, weights = drawn(operator(name), 37, HV=1)
    on_chip = run(operator(name), x, weights)
    op = in_panels(name)
    assert_agree(run(op, x, weights), on_chip, 2e-6)
    if plan_of(name).segment is None:
        assert_agree(run(op, x, weights, chunk_size=16), on_chip, 5e-6)
    half = 16
    first = {n: t[:, :half] if t.ndim > 2 and t.shape[1] == 37 else t for n, t in x.items()}
    last = {n: t[:, half:] if t.ndim > 2 and t.shape[1] == 37 else t for n, t in x.items()}
    before = run(op, first, weights)
    after = run(op, last | {"initial_state": before["final"]}, weights)
    assert relative_rms(torch.cat([before["o"], after["o"]], 1), on_chip["o"]) < 2e-6
    assert relative_rms(after["final"], on_chip["final"]) < 2e-6


@pytest.mark.parametrize("schedule", ["fused", "split"])
@few_rules
def test_packed_sequences_in_panels_are_those_alone(in_panels, name, schedule):
    op, lengths = in_panels(name), (18, 1, 17)
    x, weights = drawn(op, sum(lengths), HV=1)
    x["initial_state"] = x["initial_state"].repeat(len(lengths), 1, 1, 1)
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = run(op, x, weights, cu_seqlens=ends, schedule=schedule)
    for i, (start, end) in enumerate(zip(ends, ends[1:])):
        own = {n: t[:, start:end] if t.shape[1] == sum(lengths) else t[i : i + 1] for n, t in x.items()}
        alone = run(op, own, weights[start:end], schedule=schedule)
        assert relative_rms(packed["o"][:, start:end], alone["o"]) < 2e-6
        assert relative_rms(packed["final"][i : i + 1], alone["final"]) < 2e-6


@few_rules
def test_what_is_made_again_in_panels_is_the_same_to_the_bit(in_panels, name):
    op = in_panels(name)
    x, weights = drawn(op, 16 * 9, HV=1)
    least = min(op.package.choices.held("chunk", x["q"], x["v"], None, 16).values())
    kept, again = (run(op, x, weights, chunk_size=16, keep_bytes=n, schedule="fused") for n in (None, least))
    assert all(torch.equal(kept[n], again[n]) for n in kept)


def test_nobody_is_handed_the_place_where_states_move():
    x, _ = drawn(operator("robust_delta"), 5)
    given = as_arguments(operator("robust_delta").spec, x)
    assert operator("robust_delta")(**given, form="chunk", backend="triton")[1] is None


# The plan


@every_rule
def test_wide_texts_walk_keys_and_take_all_values(name):
    for kernel in (k for k in plan_of(name).kernels if k.name.endswith(KEYS)):
        assert not kernel.in_memory and kernel.wide.in_memory and kernel.moves_in_memory
        assert kernel.wide.axis == "k" and [s.panelled for s in kernel.wide.segments][-1]
        assert kernel.of(128, 128) is kernel and kernel.of(256, 64) is kernel.wide and kernel.of(16, 64) is kernel
        moved = {c.next for c in kernel.carries}
        for segment in kernel.wide.segments[:-1]:
            assert not moved & {s.target for s in segment.statements}  # else loops would read what has moved


@pytest.mark.parametrize("name", NORMS)
def test_what_rows_write_is_read_back_and_not_worked_out_again(name):
    for kernel in (k for k in plan_of(name).kernels if k.name.endswith(KEYS)):
        for text in (kernel, kernel.wide):
            (op,) = [s.op for s in text.statements if isinstance(s.op, Substitute)]
            (back,) = [s for s in text.statements if isinstance(s.op, Written)]
            assert (back.target,) == op.written and back.target in text.waiting
            rest = {s.target for s in text.statements} - {*op.written, *op.unknowns}
            assert not rest & {s.target for s in op.body}
        assert kernel.room[: len(kernel.waiting)] == kernel.waiting


def test_losses_without_a_sum_over_values_stay_as_they_were():
    for name in ("huber_delta", "gated_deltanet"):
        for kernel in plan_of(name).kernels:
            assert not kernel.waiting and not any(isinstance(s.op, Written) for s in kernel.statements)
            assert not kernel.moves_in_memory


def test_keys_taken_at_once_are_bounded_by_the_keys():
    kernel = next(k for k in plan_of("robust_delta").kernels if k.name == "chunk_scan_keys")
    for d_k, d_v, taken in ((16, 256, 16), (256, 16, 64), (128, 128, 128), (64, 64, 64)):
        assert key_block(kernel.takes, kernel.config(64, d_k, d_v), d_k) == taken


def test_read_outs_of_a_scan_for_its_states_alone_are_left_out(tmp_path):
    module = analyse(load_spec(path("robust_delta")))
    (tmp_path / "kernels.py").write_text(emit(module)["kernels.py"], encoding="utf-8")
    kernel = next(k for k in plan_of("robust_delta").kernels if k.name == "chunk_scan_keys")
    s = signature(kernel, plan_of("robust_delta"), d_k=256, d_v=256, dtype="bf16")
    launched = ("sm_90", s.config.warps, s.config.stages, s.divisible)
    jobs = [
        Job(str(tmp_path / "kernels.py"), kernel.name, s.types, s.constants | {"READ": read}, *launched)
        for read in (True, False)
    ]
    read, scanned = compile_many(jobs)
    assert scanned.matrix_instructions["HGMMA"] <= read.matrix_instructions["HGMMA"] - 8


# Registers on sm_90: instructions that spill, by rule and head dimension, forwards and backwards.
SPILLS = {
    ("robust_delta", 128): (8, 0),
    ("robust_delta", 256): (40, 8),
    ("moneta_linear", 128): (0, 0),
    ("moneta_linear", 256): (0, 0),
}


def test_states_of_a_loss_with_a_norm_fit_and_hardly_spill(tmp_path):
    jobs, most = [], []
    for (name, width), bounds in SPILLS.items():
        module = analyse(load_spec(path(name)))
        (tmp_path / f"{name}.py").write_text(emit(module)["kernels.py"], encoding="utf-8")
        plan = module.forms["chunk"].plan
        for kernel, spills in zip([k for k in plan.kernels if k.name.endswith(KEYS)], bounds, strict=True):
            s = signature(kernel, plan, d_k=width, d_v=width, dtype="bf16")
            launched = (s.types, s.constants, "sm_90", s.config.warps, s.config.stages, s.divisible)
            jobs.append(Job(str(tmp_path / f"{name}.py"), kernel.name, *launched))
            most.append(spills)
    found = compile_many(jobs)
    assert not [(j.module_path, j.kernel, r) for j, r, n in zip(jobs, found, most) if r.spills > n]
    assert all(occupancy(r, j.num_warps, "sm_90") for j, r in zip(jobs, found))
