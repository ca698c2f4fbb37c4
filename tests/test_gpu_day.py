"""The command for GPU days, small and without a GPU: every stage runs, failures stay alone, a day goes on."""

import json
import os
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.stages import FIRST, SHAPES, STAGES, Unit, _shapes, comparisons, every_spec, rounds
from ttrc.ir.config import Config
from ttrc.runtime import tuned
from ttrc.runtime.load import load
from ttrc.tools import check
from ttrc.tools.bench import REGISTRY


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in (
        "PYTHONPATH",
        "PYTHONUNBUFFERED",
        "TRITON_CACHE_AUTOTUNING",
        "TRITON_INTERPRET",
    ):  # main sets them for its children
        monkeypatch.setenv(name, "1" if name == "TRITON_INTERPRET" else "")
    monkeypatch.setenv("OUT", str(tmp_path))


def test_every_stage_runs_and_a_spec_that_fails_stops_nothing(tmp_path, capsys):
    day = tmp_path / "day"
    arguments = ["--dry", "--into", str(day), "linear_attention", "tests/unseen/no_such_spec.toml"]
    assert gpu.main(arguments) == 1
    state = json.loads((day / "state.json").read_text())
    missing = state.pop("verify-no_such_spec")
    assert missing["status"] == "crashed" and "no_such_spec" in missing["line"]
    keys = {stage: f"{stage}-{'triton' if stage == 'compiler' else 'linear_attention'}" for stage in STAGES}
    assert {k: v["status"] for k, v in state.items()} == dict.fromkeys(keys.values(), "ok")
    told = {stage: json.loads((day / stage / f"{key}.json").read_text()) for stage, key in keys.items()}
    assert all(answer["ok"] and answer["data"] for answer in told.values())
    assert {(r["form"], r["case"].endswith("split")) for r in told["verify"]["data"]} >= {
        ("chunk", True),
        ("chunk", False),
        ("recurrent", False),
    }
    assert (tmp_path / "results.tar.gz").stat().st_size > 0
    assert [p.stem for p in (day / "logs").iterdir()] == ["verify-no_such_spec"]
    printed = capsys.readouterr().out
    assert "5 of 6 units are right (dry" in printed and len(printed) < 12_000

    before = {k: v["tries"] for k, v in state.items()}
    gpu.main(arguments)  # only what failed is tried again, and that not for ever
    gpu.main(arguments)
    state = json.loads((day / "state.json").read_text())
    assert state.pop("verify-no_such_spec")["tries"] == gpu.TRIES
    assert {k: v["tries"] for k, v in state.items()} == before


def test_a_unit_that_takes_too_long_is_cut(tmp_path):
    day = gpu.Day.open(tmp_path / "day")
    unit = Unit("verify", "linear_attention", (), 0.5)
    gpu._run(unit, day, "cpu", time.monotonic() + 100)
    assert day.state[unit.key]["status"] == "cut"
    assert gpu.Day.open(day.folder).left(unit)
    gpu._run(unit, day, "cpu", time.monotonic() + 100)
    assert not gpu.Day.open(day.folder).left(unit)


def test_a_unit_that_the_end_of_the_day_cuts_is_begun_again_however_often(tmp_path, monkeypatch):
    """And nobody suspects the configuration that was being tried; of those that were suspects before all remain."""
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path))
    monkeypatch.setattr(tuned, "chip_name", lambda device=None: "NVIDIA H200")
    monkeypatch.setattr(gpu, "LEAST", 0.0)
    file = tuned.suspects_file("NVIDIA H200")
    before, tried = ((tuned.Key("chunk_scan", 64, "bfloat16", "few"), Config(32, w, 1)) for w in (4, 8))
    day, unit = gpu.Day.open(tmp_path / "day"), Unit("tune", "linear_attention")
    for limit, status, suspects in (
        (500.0, "ended", [before]),
        (500.0, "ended", [before]),
        (0.3, "cut", [before, tried]),
    ):
        tuned.write_suspects(file, [before])
        run = gpu.subprocess.run

        def killed(*args, run=run, **kwargs):
            tuned.write_suspects(file, [before, tried])  # as a tuner does when it begins
            return run(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(gpu.subprocess, "run", killed)
            unit = Unit("tune", "linear_attention", (), limit)
            gpu._run(unit, day, "cpu", time.monotonic() + (0.5 if status == "ended" else 100))
        assert day.state[unit.key]["status"] == status
        assert tuned.read_suspects(file) == suspects
    assert day.state[unit.key]["tries"] == 1 and day.left(unit)


def test_results_are_packed_unit_by_unit(tmp_path):
    """A machine may be taken away before the last one is done."""
    day = gpu.Day.open(tmp_path / "day")
    for number in range(2):
        day.note(Unit("verify", f"spec_{number}"), "ok", 1.0, "")
        with tarfile.open(tmp_path / "results.tar.gz") as packed:
            state = json.loads(packed.extractfile("day/state.json").read())
        assert len(state) == number + 1


def test_nothing_is_begun_when_no_time_is_left(tmp_path):
    day = gpu.Day.open(tmp_path / "day")
    gpu._run(Unit("verify", "linear_attention"), day, "cpu", time.monotonic() + 1)
    assert day.state == {}


def test_what_a_machine_lacks_stands_behind_what_it_has():
    """Made for another Python, `.wheels` in front would hide a working package."""
    gpu._prepare(dry=True)
    assert ".wheels" not in os.environ["PYTHONPATH"]
    assert sys.path.index(str(gpu.ROOT / ".wheels")) > sys.path.index(sysconfig.get_path("purelib"))


def test_without_a_gpu_it_says_so(tmp_path):
    with pytest.raises(SystemExit, match="no GPU"):
        gpu.main([])


def test_the_registry_is_covered_by_its_parts():
    parts = [shape for name in SHAPES if name.startswith("registry") for shape in _shapes(name)]
    assert sorted(map(str, parts)) == sorted(map(str, REGISTRY))


def test_units_have_names_of_their_own_and_cover_every_spec():
    specs = every_spec()
    everything = {u for units in rounds(specs, FIRST, dry=False) for u in units}
    assert len({u.key for u in everything}) == len(everything)
    assert {u.stage for u in everything} == set(STAGES)
    assert {u.spec for u in everything if u.stage == "verify" and not u.options} == set(specs)
    assert {u.spec for u in everything if u.stage in ("tune", "bench")} == {s for s in specs if not s.endswith(".toml")}
    assert any(s.startswith("tests/unseen/") for s in specs)
    assert all(u.seconds < 600 for u in everything)
    assert all(Path(s).suffix == ".toml" or "/" not in s for s in specs)


def test_what_the_targets_are_set_on_is_looked_at_and_timed_before_anything_else():
    """A day may be ten minutes long."""
    compiler, looked_at, timed, *others = rounds(every_spec(), FIRST, dry=False)
    assert [u.stage for u in compiler] == ["compiler"]
    assert [(u.stage, u.spec) for u in looked_at] == [("verify", s) for s in FIRST]
    assert [(u.stage, u.spec, u.options) for u in timed] == [
        ("bench", s, (("shapes", "registry-16-128"),)) for s in FIRST
    ]
    flat = [u for units in others for u in units]
    again = [u for u in flat if ("configs", "tuned") in u.options]
    assert [flat[flat.index(u) - 1].key for u in again] == [f"tune-{s}-128-chunk" for s in FIRST]
    own = [u.spec for units in list(rounds(every_spec(), ["kda"], dry=False))[1:3] for u in units]
    assert own == ["kda", "kda"]


@pytest.mark.parametrize("name", ["ttt_mlp", "gated_deltanet", "forgetting_attention"])
def test_a_day_compares_what_check_does(name):
    """What half precision cannot tell would be told as wrong."""
    op = load(name)
    known = {(form, dtype, case) for form, backend, dtype, case in check.plan(op, "cuda", None) if backend == "triton"}
    every = comparisons(op, shipped=True, few=False)
    assert set(every) <= known and {d for _, d, _ in every} == {torch.bfloat16, torch.float16, torch.float32}
    few = comparisons(op, shipped=True, few=True)
    assert {form for form, *_ in few} == set(op.forms) and len(few) < len(every)
