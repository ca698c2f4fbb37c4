"""What is different on a GPU, with something that stands for one: where kernels are launched, waits, measurements."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ttrc
from ttrc.compiler import analyse
from ttrc.runtime import operator, trust, tuner
from ttrc.runtime.tuned import Key
from ttrc.runtime.tuner import key_of, tune
from ttrc.runtime.workload import Workload
from ttrc.sampling import as_arguments, random_inputs
from ttrc.tools import timing
from ttrc.tools import tune as tool
from ttrc.tools.bench import _small
from ttrc.tools.compile import compile_specs
from ttrc.tools.offline import CompileFailure
from ttrc.tools.predict import predict


def inputs(op, **sizes):
    return random_inputs(op.spec, **(dict(B=1, T=20, H=1, HV=2, dk=16, dv=16) | sizes))


@pytest.mark.parametrize("name", ["gated_deltanet", "forgetting_attention"])
def test_kernels_are_launched_on_the_device_of_the_tensors(name, monkeypatch):
    """Which need not be the current one; Triton asks for that alone."""
    op, inside = ttrc.load(name).package.op, []

    @contextmanager
    def device_of(x):
        inside.append(x)
        yield
        inside.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    q, v = torch.zeros(1), torch.zeros(2)
    assert op._on_its_device(lambda *given: (inside[0] is q, *given))(q, v) == (True, q, v) and not inside
    backward = [getattr(op, f"{form}_backward_op") for form in op.OPS]
    for each in (*op.OPS.values(), *backward):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(each.name(), "CUDA")


def test_defaults_are_handed_to_the_device_once(monkeypatch):
    """The host's numbers wait for all that a GPU has to do, and a CUDA graph cannot have them at all."""
    op, made = ttrc.load(ttrc.load("retnet").spec), []
    of = operator.default_value
    monkeypatch.setattr(operator, "default_value", lambda *args: made.append(args) or of(*args))
    x = inputs(op, HV=4)
    slope = x.pop(op.spec.parameters[0].name)
    given = as_arguments(op.spec, x)
    with torch.inference_mode():
        first = op(**given)[0].clone()
    given["v"].requires_grad_()
    o = op(**given)[0]
    o.sum().backward()  # what was made in inference mode could not be kept for this
    torch.testing.assert_close(o, first)
    torch.testing.assert_close(o, op(**given, **{op.spec.parameters[0].name: slope})[0])
    assert len(made) == 1
    op(**as_arguments(op.spec, inputs(op, HV=2) | {op.spec.parameters[0].name: slope[:2]}))
    assert len(made) == 1
    del (y := inputs(op, HV=2))[op.spec.parameters[0].name]
    op(**as_arguments(op.spec, y))
    assert len(made) == 2  # another number of heads
    with FakeTensorMode() as mode:
        fake = op(**{n: mode.from_tensor(t) for n, t in as_arguments(op.spec, y).items()})[0]
    assert fake.shape == y["v"].shape
    assert op(**as_arguments(op.spec, y))[0].isfinite().all()


def test_a_peak_is_that_of_a_call_in_which_nothing_is_tuned(monkeypatch):
    held, calls = [0], []

    def step(i):
        calls.append(i)
        held[0] = 256 if len(calls) == 1 else 10  # what an autotuner flushes caches with

    for name, answer in (("synchronize", None), ("memory_allocated", 2), ("reset_peak_memory_stats", None)):
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held[0])
    assert timing.peak_bytes(step, "cuda") == 8


def test_a_device_that_is_lost_ends_the_search_and_another_fault_does_not(monkeypatch):
    """What it would say of the next candidates is not about them."""
    op, shape = ttrc.load("linear_attention"), Workload(1, 8, 1, 16, 16)

    def faulty():
        raise RuntimeError("CUDA error: misaligned address")

    def search(lost):
        monkeypatch.setattr(tuner, "is_lost", lambda device: lost)
        return tune(
            op,
            {"chunk": [shape]},
            dtype=torch.float32,
            device="cpu",
            timer=lambda *_: 1.0,
            verifier=lambda form, schedule: faulty,
            most=2,
        )

    assert {t.reason.split(":")[0] for t in search(False).rejected} == {"does not run"}
    with pytest.raises(RuntimeError, match="misaligned"):
        search(True)


def test_a_device_is_lost_where_it_cannot_be_waited_for(monkeypatch):
    assert not trust.is_lost("cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert not trust.is_lost("cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: 1 / 0)
    assert trust.is_lost("cuda")


def test_only_kernels_with_something_to_tune_are_compiled_beforehand(monkeypatch):
    op, jobs = ttrc.load("gated_deltanet"), []
    shapes = {"chunk": [Workload(16, 2048, 16, 128, 128), Workload(2, 8192, 16, 128, 128)]}

    def compile_many(given, **_):
        jobs.extend(given)
        return [CompileFailure(job.kernel, job.target, "") for job in given]

    monkeypatch.setattr(tool, "compile_many", compile_many)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    left = tool._left(op, shapes, torch.bfloat16, ())
    tool.footprints(op, left, 128, "bf16", "cuda")
    kernels = {job.kernel for job in jobs}
    assert kernels == {
        "chunk_prepare", "chunk_scan", "chunk_scan_reverse", "chunk_gradients", "chunk_output", "chunk_transition"
    }  # fmt: skip
    known = {Key(name, 128, "bfloat16", regime) for name in kernels - {"chunk_scan"} for regime in ("many", "few")}
    known.add(key_of(op.package, "chunk_scan", shapes["chunk"][0], torch.bfloat16))
    left = tool._left(op, shapes, torch.bfloat16, known)
    assert [kernel.name for kernel in left["chunk"]] == ["chunk_scan"]


def test_candidates_are_ranked_by_what_predictions_say(monkeypatch):
    """One cost model: a tuner's figure for the default is the one that `ttrc compile --shape` shows."""
    op, shape = ttrc.load("linear_attention"), Workload(2, 8192, 16, 64, 64)
    rows = [r for r in compile_specs([op.spec], targets=["sm_90"], widths=[64]) if r.form == "chunk"]
    default = {r.kernel: r.config for r in rows}
    plan = analyse(op.spec).forms["chunk"].plan
    monkeypatch.setattr(tool, "space_of", lambda takes, width: list(dict.fromkeys(default.values())))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tool.tuned, "chip_name", lambda device: "NVIDIA H200")
    known = tool.footprints(op, {"chunk": plan.kernels}, 64, "bf16", "cuda")
    shown = [p for p in predict(rows, shape, "bf16") if p.part == "H200 SXM" and p.which != "again"]
    for schedule in plan.schedules:
        passes = [p for p in shown if p.schedule == schedule.name]
        for name in {k.name for p in passes for k in p.kernels}:
            ms = sum(k.walls.ms for p in passes for k in p.kernels if k.name == name)
            assert known(name, default[name], shape, schedule.name).ms == pytest.approx(ms), (schedule.name, name)


def test_the_oracle_sees_as_many_heads_as_are_timed_where_they_are_few():
    """A library tunes for each number of heads, for longer than it is timed."""
    assert _small(Workload(2, 16384, 16, 128, 128), "cuda") == Workload(1, 128, 16, 128, 128)
    assert _small(Workload(8, 1024, 8, 64, 64), "cuda:0") == Workload(1, 256, 8, 64, 64)
    assert _small(Workload(1, 8192, 96, 128, 128), "cuda") == Workload(1, 256, 2, 128, 128)
    assert _small(Workload(1, 64, 2, 16, 16), "cpu") == Workload(1, 40, 1, 16, 16)


def test_the_oracle_is_asked_while_compilers_run_and_not_where_all_is_tuned(monkeypatch):
    op, events = ttrc.load("linear_attention"), []
    monkeypatch.setattr(tool, "prepare", lambda spec, case, dtype, device: events.append(case))
    monkeypatch.setattr(tool, "search", lambda *_, **__: events.append("search"))
    monkeypatch.setattr(tool, "_left", lambda *_: {"chunk": [1]})
    shapes = {"chunk": [Workload(1, 16, 1, 16, 16)]}
    tool._tune(op, shapes, 16, "fp32", "cpu", 2, False, None)
    assert len(events) == 2 and events[-1] == "search"
    monkeypatch.setattr(tool, "_left", lambda *_: {"chunk": []})
    tool._tune(op, shapes, 16, "fp32", "cpu", 2, False, None)
    assert events[2:] == ["search"]
