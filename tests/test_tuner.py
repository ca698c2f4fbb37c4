"""The tuner chooses by time among configurations that are right; every fault that is planted is caught and named."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ttrc.errors import TtrcError
from ttrc.ir.config import Config
from ttrc.paths import generated_dir
from ttrc.runtime import tuned, tuner
from ttrc.runtime.load import load
from ttrc.runtime.poison import poisoned
from ttrc.runtime.trust import Verifier
from ttrc.runtime.tuned import Entry, Key
from ttrc.runtime.tuner import Fate, Footprint, tune
from ttrc.runtime.verify import Case
from ttrc.runtime.workload import Workload

BAD, GOOD = Config(16, 2, 1), Config(16, 2, 2)
SHAPE = Workload(batch=1, length=8, heads=1, d_k=16, d_v=16)
CASE = Case(B=1, T=20, H=1, HV=1, d_k=16, d_v=16, chunk_size=16)


@pytest.fixture(scope="module")
def op():
    return load("linear_attention")


@pytest.fixture(scope="module")
def verifier(op):
    return Verifier(op, "chunk", torch.float32, "cpu", [CASE])


def fake_timer(key, config, call):
    """The smaller the fewer warps, the configuration BAD best of all."""
    call()
    return 0.1 if config == BAD else 1.0 + config.warps + 0.1 * config.stages


def only(*configs):
    """Footprints that leave nothing but these (and the default) to try."""
    return lambda kernel, config, *_: Footprint(spills=0 if config in configs else 9, instructions=100, ms=1.0)


def run(op, verifier, *configs):
    return tune(
        op,
        {"chunk": [SHAPE]},
        dtype=torch.float32,
        device="cpu",
        timer=fake_timer,
        verifier=lambda form, schedule: verifier,
        footprints=only(*configs),
    )


def planted(op, monkeypatch, fault):
    """fault(tensors, run) instead of the launch of chunk_scan, where it would run configuration BAD."""
    launch, config = op.package.op.launch, op.package.launch.config

    def wrapped(kernel, q, v, layout, chunk, tensors, *args, **kwargs):
        def run():
            launch(kernel, q, v, layout, chunk, tensors, *args, **kwargs)

        if kernel == "chunk_scan" and config(kernel, q, v, layout.sequences) == BAD.row:
            fault(tensors, run)
        else:
            run()

    monkeypatch.setattr(op.package.op, "launch", wrapped)


def outputs(tensors):
    """o and the states: what comes after q, k, v among a forward scan's tensors."""
    return [t for t in tensors[3:] if t is not None and t.numel()]


def wrong(tensors, run):
    run()
    outputs(tensors)[0][..., -1] *= 1.01


def not_repeatable(tensors, run):
    run()
    o = outputs(tensors)[0]
    wrong_bits = not_repeatable.calls = not_repeatable.calls + 1
    o[:, -1] *= 1 + 1e-6 * wrong_bits


def rows_unwritten(tensors, run):
    o = outputs(tensors)[0]
    before = o[:, 7].clone()
    run()
    o[:, 7] = before


def does_not_run(tensors, run):
    raise RuntimeError("out of resource: shared memory")


@pytest.mark.parametrize(
    "fault, named",
    [
        (wrong, "wrong: o"),
        (not_repeatable, "not repeatable: o"),
        (rows_unwritten, "wrong: o nan"),
        (does_not_run, "does not run: RuntimeError: out of resource"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_planted_fault_is_caught_and_named_although_it_is_the_fastest(op, verifier, monkeypatch, fault, named):
    not_repeatable.calls = 0
    planted(op, monkeypatch, fault)
    report = run(op, verifier, BAD, GOOD)
    (caught,) = report.rejected
    assert (caught.key.kernel, caught.config, caught.ms) == ("chunk_scan", BAD, None)
    assert caught.reason.startswith(named)
    best = {key.kernel: trial.config for key, trial in report.best.items()}
    assert best.pop("chunk_scan") == GOOD
    assert set(best.values()) == {BAD}  # in the other kernels nothing was planted


def test_the_fastest_wins_where_all_are_right(op, verifier):
    report = run(op, verifier, BAD, GOOD)
    assert not report.rejected
    assert {t.config for t in report.best.values()} == {BAD}
    key = Key("chunk_scan", 64, "float32", "few")
    assert report.best[key].ms == 0.1 and report.default_ms[key] > report.best[key].ms
    assert op.package.launch.TUNED == {}


def test_known_keys_stay_and_a_suspect_is_rejected_unseen(op, verifier):
    """A configuration that took the process down with it is not tried a second time."""
    started = []
    key = Key("chunk_scan", 64, "float32", "few")
    others = {Key(name, 64, "float32", "few") for name in ("chunk_scan_reverse", "chunk_gradients", "chunk_output")}
    report = tune(
        op,
        {"chunk": [SHAPE]},
        dtype=torch.float32,
        device="cpu",
        timer=fake_timer,
        verifier=lambda form, schedule: verifier,
        footprints=only(BAD, GOOD),
        known=others,
        suspects=[(key, BAD)],
        on_start=lambda key, config: started.append(config),
    )
    assert set(report.best) == {key} and report.best[key].config == GOOD
    assert [(t.config, t.reason) for t in report.rejected] == [(BAD, "a run ended while this was tried")]
    assert BAD not in started and GOOD in started


def test_suspects_read_back(tmp_path):
    suspects = [(Key("chunk_scan", 64, "float32", "few"), BAD)]
    tuned.write_suspects(tmp_path / "new" / "x.json", suspects)
    assert tuned.read_suspects(tmp_path / "new" / "x.json") == suspects
    assert tuned.read_suspects(tmp_path / "none.json") == []


def test_new_lengths_and_batches_find_the_configuration_that_others_did(op):
    assert set(Key.__dataclass_fields__) == {"kernel", "width", "dtype", "regime"}
    with tuner.using(op.package, {Key("chunk_scan", 64, "float32", "few"): BAD}):
        for batch, length in ((1, 1), (1, 1 << 17), (3, 5), (tuner.MANY // 2 - 1, 2048)):
            q = torch.empty(1).expand(batch, length, 2, 16)
            assert op.package.launch.config("chunk_scan", q, q, batch) == BAD.row


STEP = """
import json
import sys
import torch
import ttrc

op = ttrc.load("linear_attention")
x = [torch.randn(1, 8, 1, 16, requires_grad=True) for _ in "qkv"]
op(*x, form="chunk", backend="triton")[0].sum().backward()
assert all(t.grad is not None for t in x)
print(json.dumps([name for name in sys.modules if "tune" in name]))
"""


def test_a_training_step_has_no_tuner_in_its_process():
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert "ttrc.runtime.tuner" not in found and "ttrc.runtime.tuned" in found, found
    for path in generated_dir().rglob("*.py"):
        assert "autotune" not in path.read_text(), path


def test_pruned_ones_are_told_with_the_reason(op, verifier):
    report = run(op, verifier, GOOD)
    pruned = [t for t in report.trials if t.fate is Fate.PRUNED]
    assert pruned and all(t.reason == "spills (9 instructions), which others do not" for t in pruned)


def test_candidates_are_few_and_the_default_is_among_them(op):
    from ttrc.compiler import analyse

    wide = Workload(32, 4096, 4, 256, 256)
    for kernel in (*analyse(op.spec).forms["chunk"].plan.forward, *analyse(op.spec).forms["chunk"].plan.backward):
        default = Config(64, 4, 2)
        for footprints in (
            lambda *_: None,
            lambda k, c, *_: Footprint(0, 1000, c.value_block / c.warps),
        ):
            chosen, pruned = tuner.candidates(kernel, default, wide, "fused", footprints, 24)
            chosen = list(chosen)
            assert chosen[0] == default and len(chosen) == 24 == len(set(chosen))
            assert not set(chosen) & {config for config, _ in pruned}


def test_where_all_spill_the_fastest_predicted_is_tried(op):
    from ttrc.compiler import analyse

    kernel = analyse(op.spec).forms["chunk"].plan.forward[0]
    quick = {Config(64, 8, 1): 1.0}

    def footprints(name, config, shape, schedule):
        return Footprint(900, 1000, quick.get(config, 2.0))

    wide, default = Workload(32, 4096, 4, 256, 256), Config(64, 4, 2)
    chosen, pruned = tuner.candidates(kernel, default, wide, "fused", footprints, 2)
    assert list(chosen.items()) == [(default, 2.0), (Config(64, 8, 1), 1.0)]
    assert all("predicted slower" in reason for _, reason in pruned)


def test_a_few_spills_are_tried_where_they_save_much(op):
    """As wider panels of gradients do: half as many loops for some dozens of spills outside them."""
    from ttrc.compiler import analyse

    kernel = analyse(op.spec).forms["chunk"].plan.backward[-1]
    known = {Config(16, 4, 1): Footprint(0, 3500, 2.0), Config(32, 4, 1): Footprint(44, 4200, 1.5)}
    known[Config(64, 4, 1)] = Footprint(400, 4900, 1.0)
    chosen, pruned = tuner.candidates(
        kernel,
        Config(16, 4, 1),
        Workload(16, 2048, 16, 128, 128),
        "fused",
        lambda name, config, *_: known.get(config, Footprint(0, 0, None)),
        24,
    )
    assert list(chosen) == [Config(16, 4, 1), Config(32, 4, 1)]
    assert (Config(64, 4, 1), "spills (400 instructions), which others do not") in pruned


def test_each_regime_verifies_in_the_schedules_it_runs(op, verifier, monkeypatch):
    monkeypatch.setattr(tuner, "MANY", 4)  # 128 heads would take the interpreter a minute
    calls = []

    def judge():
        calls.append(1)
        return verifier()

    many = Workload(batch=4, length=8, heads=1, d_k=16, d_v=16)
    report = tune(
        op,
        {"chunk": [SHAPE, many]},
        dtype=torch.float32,
        device="cpu",
        timer=fake_timer,
        verifier=lambda form, schedule: judge,
        footprints=only(GOOD),
    )
    tuned_for = {r: {key.kernel for key in report.best if key.regime == r} for r in ("few", "many")}
    assert tuned_for["many"] == {"chunk_scan", "chunk_scan_reverse", "chunk_gradients"}  # of the first schedule
    assert tuned_for["few"] == tuned_for["many"] | {"chunk_output"}
    # The default and GOOD: in each schedule that launches the kernel, then once more in the first alone.
    assert len(calls) == 2 * (3 + 3 + 3 + 1) + 2 * 3


def test_a_config_that_only_one_schedule_gets_wrong_is_rejected(op):
    def verifier(form, schedule):
        return lambda: "wrong: o" if schedule == "segments" else None

    report = tune(
        op,
        {"chunk": [SHAPE]},
        dtype=torch.float32,
        device="cpu",
        timer=fake_timer,
        verifier=verifier,
        footprints=only(GOOD),
    )
    assert {key.kernel for key in report.best} == {"chunk_output"}
    assert {t.reason for t in report.rejected} == {"wrong: o"}


# Poison ---------------------------------------------------------------------------------------------------------


def test_fresh_memory_is_nan_inside_and_nothing_changes_outside():
    like = torch.ones(3, 4, dtype=torch.float16)
    with poisoned("cpu"):
        for made in (
            torch.empty(5),
            torch.empty_like(like),
            like.new_empty(7),
            like.new_empty(2, 2, dtype=torch.float32),
        ):
            assert made.isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_rows_that_nobody_writes_hide_in_recycled_memory_without_poison(op, verifier, monkeypatch):
    """The reason for the poison: memory that still holds the right rows makes such a kernel look right."""
    kept = {}

    def recycled(like, **_options):  # an allocator that hands out the memory of the run before
        return kept.setdefault(tuple(like.shape), torch.zeros_like(like))

    planted(op, monkeypatch, rows_unwritten)
    x = verifier.settings[0].given
    key = Key("chunk_scan", 64, "float32", "few")
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(op.package.op.torch, "empty_like", recycled)
        right = op(**x, form="chunk", backend="triton")[0].clone()
        with tuner.using(op.package, {key: BAD}):
            assert torch.equal(op(**x, form="chunk", backend="triton")[0], right)
    with tuner.using(op.package, {key: BAD}):
        assert verifier().startswith("wrong: o nan")


def test_poison_that_does_not_work_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: None)
    with pytest.raises(TtrcError, match="cannot be poisoned"), poisoned("cpu"):
        pass


# The file -------------------------------------------------------------------------------------------------------


def entry(op, config=GOOD, **changes):
    import triton

    key = Key("chunk_scan", 64, "bfloat16", "many")
    made = {
        "spec": op.spec.name,
        "kernels": tuned.kernels_digest(op.package),
        "key": key,
        "config": config,
        "ms": 0.5,
        "default_ms": 0.75,
        "triton": triton.__version__,
    }
    return Entry(**(made | changes))


@pytest.fixture
def chip(tmp_path, monkeypatch, op):
    """A machine with an "NVIDIA Test 1"; its shipped and its user's file are under tmp_path."""
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path / "user"))
    monkeypatch.setattr(tuned, "chip_name", lambda device=None: "NVIDIA Test 1")
    monkeypatch.setattr(tuned, "shipped_file", lambda chip: tmp_path / "shipped" / f"{tuned.slug(chip)}.json")
    yield "NVIDIA Test 1"
    op.package.launch.TUNED.clear()


def test_a_file_reads_back_and_a_line_is_an_entry(op, chip, tmp_path):
    path = tuned.user_file(chip)
    assert path == tmp_path / "user" / "tuned" / "nvidia-test-1.json"
    one, other = entry(op), entry(op, key=Key("chunk_scan", 64, "bfloat16", "few"))
    tuned.write_entries(path, chip, [one])
    tuned.write_entries(path, chip, [other, entry(op, ms=0.25)])
    assert set(tuned.read_entries(path)) == {entry(op, ms=0.25), other}
    assert json.loads(path.read_text())["chip"] == chip
    assert len(path.read_text().splitlines()) == 2 + 2


def test_shipped_entries_apply_and_the_users_win(op, chip):
    place = ("chunk_scan", 64, "torch.bfloat16", "many")
    tuned.write_entries(tuned.shipped_file(chip), chip, [entry(op)])
    assert tuned.apply_tuned(op.package) == 1
    assert op.package.launch.TUNED == {place: (16, 2, 2)}
    tuned.write_entries(tuned.user_file(chip), chip, [entry(op, config=BAD)])
    tuned.apply_tuned(op.package)
    assert op.package.launch.TUNED == {place: (16, 2, 1)}
    q = SimpleNamespace(shape=(64, 8, 2, 16), dtype=torch.bfloat16)
    assert op.package.launch.config("chunk_scan", q, q, 64) == (16, 2, 1)


@pytest.mark.parametrize("change", [{"kernels": "0" * 16}, {"triton": "0.0.1"}], ids=str)
def test_an_entry_for_other_kernels_or_another_compiler_never_applies(op, chip, change):
    tuned.write_entries(tuned.user_file(chip), chip, [entry(op, **change)])
    assert tuned.apply_tuned(op.package) == 0
    assert op.package.launch.TUNED == {}


def test_without_a_gpu_nothing_is_read(op):
    assert tuned.apply_tuned(op.package, "cpu") == 0


def test_a_broken_file_is_named(op, chip):
    path = tuned.user_file(chip)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(TtrcError, match="nvidia-test-1.json"):
        tuned.apply_tuned(op.package)
