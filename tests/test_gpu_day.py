"""The command for GPU days, small and without a GPU: every stage runs, failures stay alone, a day goes on."""

import json
import os
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from bench import gpu
from bench.stages import SHAPES, STAGES, Unit, _shapes, every_spec, units
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
    everything = [u for stage in STAGES for u in units(stage, specs, dry=False)]
    assert len({u.key for u in everything}) == len(everything)
    assert {u.spec for u in everything if u.stage == "verify"} == set(specs)
    assert any(s.startswith("tests/unseen/") for s in specs)
    assert all(u.seconds < 600 for u in everything)
    assert all(Path(s).suffix == ".toml" or "/" not in s for s in specs)
