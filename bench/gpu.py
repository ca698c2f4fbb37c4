"""One command for a day with a GPU: verify, tune, bench, profile. Installs nothing and can be cut off at any time.

    python bench/gpu.py [--stage NAME ...] [--minutes 9] [SPEC ...]

Work comes in units (stages.py), each in a process of its own, so that one that crashes, hangs or takes the device's
context down stops nothing else. What is done is written down as it is done; the same command goes on with the rest.
All of it goes to one folder, bench/results/CHIP-DATE/, and packed to $OUT/results.tar.gz where $OUT is set, after each
unit: on a machine that forgets, unpack that into bench/results/ before the next call (--into names it after midnight).
What was tuned lies there as CHIP.json; copied to ttrc/tuned/ it ships. Specs that are named come first, else those that
the targets are set on. --dry does a little of everything in the interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
if sys.path[0] == str(HERE):  # run as a script
    sys.path[0] = str(ROOT)
# What this machine lacks, behind what it has: on PYTHONPATH it would stand before, though made for another Python.
sys.path.append(str(ROOT / ".wheels"))

from bench.stages import FIRST, STAGES, Unit, every_spec, perform, rounds  # noqa: E402

TRIES = 2  # of a unit that fails, or takes longer than it may
LEAST = 20.0  # seconds: with less than this left, nothing new is begun
TOGETHER = max(1, min(8, (os.cpu_count() or 1) // 2))  # units at a time where no clock is read
LOG = 20_000  # characters kept of what a failed unit said
TAIL = 60  # lines of the closing table at most


@dataclass
class Day:
    """A folder of results and what has become of each unit, kept in state.json."""

    folder: Path
    state: dict[str, dict] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, folder: Path) -> Day:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "state.json"
        return cls(folder, json.loads(path.read_text()) if path.is_file() else {})

    def left(self, unit: Unit) -> bool:
        """Whether a unit still has to be done: it is not right yet, and was not tried too often. That a day ended while
        it was under way is nobody's fault."""
        known = self.state.get(unit.key)
        return known is None or (known["status"] != "ok" and known["tries"] < TRIES)

    def note(self, unit: Unit, status: str, seconds: float, line: str) -> None:
        with self.lock:
            tries = self.state.get(unit.key, {"tries": 0})["tries"] + (status != "ended")
            self.state[unit.key] = {
                "stage": unit.stage,
                "status": status,
                "tries": tries,
                "seconds": round(seconds, 1),
                "line": line,
            }
            staging = self.folder / "state.partial"
            staging.write_text(json.dumps(self.state, indent=1))
            staging.replace(self.folder / "state.json")
            self.pack()

    def pack(self) -> None:
        """For a machine that hands back $OUT alone, and may be taken away at any time."""
        if not os.environ.get("OUT"):
            return
        packed = Path(os.environ["OUT"]) / "results.tar.gz"
        staging = packed.with_suffix(".partial")
        with contextlib.suppress(OSError):  # a file that went or shrank meanwhile: what was packed before remains
            with tarfile.open(staging, "w:gz") as made:
                made.add(self.folder, arcname=self.folder.name)
            staging.replace(packed)


def main(argv: list[str] | None = None) -> int:
    given = _arguments(argv)
    if given.unit:
        return _child(given)
    device = "cpu" if given.dry else "cuda"
    _prepare(given.dry)
    day = Day.open(given.into or HERE / "results" / _folder_name(given.dry))
    _restore_tuned(day, device)
    deadline = time.monotonic() + 60 * given.minutes
    specs = given.specs or (["linear_attention", "tests/unseen/half_hebbian.toml"] if given.dry else every_spec())
    seen: set[str] = set()
    for units in rounds(specs, given.specs or FIRST, given.dry):
        asked = [u for u in units if u.stage in (given.stage or STAGES) and u.key not in seen]
        seen |= {u.key for u in asked}
        todo = [u for u in asked if given.again or day.left(u)]
        with ThreadPoolExecutor(TOGETHER if {u.stage for u in todo} == {"verify"} and not given.dry else 1) as pool:
            list(pool.map(lambda unit: _run(unit, day, device, deadline), todo))
    return _close(day, given.dry)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python bench/gpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", help="shipped names or paths; all of them by default")
    parser.add_argument("--stage", action="append", choices=STAGES, help="only this one; may be given again")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after this long")
    parser.add_argument("--into", type=Path, help="the folder of results; bench/results/CHIP-DATE by default")
    parser.add_argument("--again", action="store_true", help="do what is done already once more")
    parser.add_argument("--dry", action="store_true", help="a little of everything on the CPU, in the interpreter")
    parser.add_argument("--unit", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _prepare(dry: bool) -> None:
    """What children inherit: where modules lie, and on the CPU the interpreter."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["TRITON_CACHE_AUTOTUNING"] = "1"  # what a peer tuned for one unit serves the next
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)


def _folder_name(dry: bool) -> str:
    today = datetime.date.today().isoformat()
    if dry:
        return f"dry-{today}"
    import torch

    from ttrc.runtime.tuned import chip_name, slug

    chip = chip_name()
    if chip is None:
        raise SystemExit(f"torch {torch.__version__} sees no GPU here; --dry runs a little of everything without one")
    return f"{slug(chip)}-{today}"


def _run(unit: Unit, day: Day, device: str, deadline: float) -> None:
    """One unit in a process of its own, within what time is left."""
    left = deadline - time.monotonic()
    if left < LEAST:
        return
    started, suspects = time.monotonic(), _suspects(device) if unit.stage == "tune" else []
    with tempfile.TemporaryDirectory() as room:
        answer = Path(room) / "answer.json"
        command = [
            sys.executable,
            str(HERE / "gpu.py"),
            "--unit",
            json.dumps(asdict(unit)),
            "--result",
            str(answer),
            "--into",
            str(day.folder),
            *(["--dry"] if device == "cpu" else []),
        ]
        log = day.folder / "logs" / f"{unit.key}.txt"
        log.parent.mkdir(exist_ok=True)
        try:
            with log.open("w") as words:
                code = subprocess.run(
                    command,
                    stdout=words,
                    stderr=subprocess.STDOUT,
                    timeout=min(left, unit.seconds),
                    cwd=ROOT,
                    env=_environment(unit),
                ).returncode
            status, line = "crashed", f"exit {code}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            status, line = "cut", f"not done after {time.monotonic() - started:.0f} s"
            if left < unit.seconds:
                status = "ended"
        if answer.is_file():
            told = json.loads(answer.read_text())
            status, line = "ok" if told["ok"] else "failed", told["line"]
            kept = day.folder / unit.stage / f"{unit.key}.json"
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(told, indent=1))
        if status == "ok":
            log.unlink()
        else:
            log.write_text(log.read_text(errors="replace")[-LOG:])
    if unit.stage == "tune":
        _keep_tuned(day, device)
        if status == "ended":
            _acquit(suspects, device)
    day.note(unit, status, time.monotonic() - started, line)
    print(f"{status:8}{time.monotonic() - started:6.0f} s  {unit.key}: {line}"[:200], flush=True)


def _child(given: argparse.Namespace) -> int:
    told = json.loads(given.unit)
    unit = Unit(told["stage"], told["spec"], tuple(map(tuple, told["options"])), told["seconds"])
    try:
        answer = perform(unit, "cpu" if given.dry else "cuda", given.into)
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")  # the line that is quoted
        return 1
    staging = given.result.with_suffix(".partial")
    staging.write_text(json.dumps(answer))
    staging.replace(given.result)
    return 0


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:150] if lines else "no output"


def _restore_tuned(day: Day, device: str) -> None:
    """An earlier part of the day's tuned configurations, on a machine that has forgotten them."""
    kept, here = _tuned_files(day, device)
    if kept is not None and kept.is_file() and not here.is_file():
        here.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, here)


def _keep_tuned(day: Day, device: str) -> None:
    kept, here = _tuned_files(day, device)
    if kept is not None and here.is_file():
        shutil.copyfile(here, kept)


def _environment(unit: Unit) -> dict[str, str]:
    """The oracle's threads: half the cores, or what units that run together leave each other."""
    cores = os.cpu_count() or 1
    return os.environ | {"OMP_NUM_THREADS": str(max(1, cores // (TOGETHER if unit.stage == "verify" else 2)))}


def _suspects(device: str) -> list:
    from ttrc.runtime.tuned import chip_name, read_suspects, suspects_file

    chip = chip_name(device)
    return [] if chip is None else read_suspects(suspects_file(chip))


def _acquit(before: list, device: str) -> None:
    """Of the configuration that was tried when time was up nothing is known: those that were suspects remain."""
    from ttrc.runtime.tuned import chip_name, suspects_file, write_suspects

    chip = chip_name(device)
    if chip is not None:
        write_suspects(suspects_file(chip), before)


def _tuned_files(day: Day, device: str) -> tuple[Path, Path] | tuple[None, None]:
    from ttrc.runtime.tuned import chip_name, user_file

    chip = chip_name(device)
    if chip is None:
        return None, None
    return day.folder / user_file(chip).name, user_file(chip)


def _close(day: Day, dry: bool) -> int:
    """The closing table, the page beside it, and the folder packed for a machine that hands back $OUT alone."""
    rows = sorted(day.state.items(), key=lambda item: (STAGES.index(item[1]["stage"]), item[1]["status"] == "ok"))
    lines = [f"{v['status']:8}{v['seconds']:7.0f} s  {key}: {v['line']}"[:180] for key, v in rows]
    done = sum(v["status"] == "ok" for v in day.state.values())
    head = f"{done} of {len(rows)} units are right{' (dry: no time means anything)' if dry else ''}; {day.folder}"
    (day.folder / "SUMMARY.txt").write_text("\n".join([head, *lines]) + "\n")
    day.pack()
    print(
        "\n".join(
            ["", *lines[:TAIL], *([f"... {len(lines) - TAIL} more in SUMMARY.txt"] if len(lines) > TAIL else []), head]
        )
    )
    return 0 if done == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
