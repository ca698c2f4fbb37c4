"""What tuners measured: one readable JSON file a chip, shipped in ttrc/tuned/ or the user's own, which wins.

An entry holds for one text of a spec's kernels and one version of Triton, the two things that decide what runs: other
kernels and another compiler have to be verified again before anything but the default configuration is launched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
import triton

from ttrc.errors import TtrcError
from ttrc.ir.config import Config
from ttrc.runtime.cache import cache_dir

SCHEMA = 1


@dataclass(frozen=True)
class Key:
    """What a configuration is chosen by; never the length or the batch as such."""

    kernel: str
    width: int  # the widest head dimension it serves
    dtype: str  # of q, k, v: "bfloat16"
    regime: str  # "many" or "few" heads times sequences


@dataclass(frozen=True)
class Entry:
    """A verified configuration, its time and the default one's, in ms; `triton` and `kernels` say where it holds."""

    spec: str
    kernels: str
    key: Key
    config: Config
    ms: float
    default_ms: float | None
    triton: str


def apply_tuned(package: ModuleType, device: str | torch.device | None = None) -> int:
    """Put what is known for a CUDA device into package.launch.TUNED; how many configurations that were.

    Reads two small files and measures nothing. Without a CUDA device it does nothing.
    """
    chip = chip_name(device)
    if chip is None:
        return 0
    digest, found = kernels_digest(package), {}
    for path in (shipped_file(chip), user_file(chip)):  # the later one wins
        for entry in read_entries(path):
            if (
                entry.kernels == digest
                and entry.triton == triton.__version__
                and entry.key.kernel in package.launch.CONFIGS
            ):
                found[slot(entry.key)] = entry.config.row
    package.launch.TUNED.update(found)
    return len(found)


def slot(key: Key) -> tuple[str, int, str, str]:
    """The key as a generated package spells it."""
    return key.kernel, key.width, f"torch.{key.dtype}", key.regime


def chip_name(device: str | torch.device | None = None) -> str | None:
    """The CUDA device's name, "NVIDIA H200"; None where there is none."""
    if not torch.cuda.is_available() or (device is not None and torch.device(device).type != "cuda"):
        return None
    return torch.cuda.get_device_name(device)


def slug(chip: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", chip.lower()).strip("-")


def shipped_file(chip: str) -> Path:
    return Path(__file__).resolve().parents[1] / "tuned" / f"{slug(chip)}.json"


def user_file(chip: str) -> Path:
    return cache_dir() / "tuned" / f"{slug(chip)}.json"


def kernels_digest(package: ModuleType) -> str:
    """Names the text of a package's kernels, without its first lines: those name the spec's text, comments and all."""
    text = Path(package.__file__).with_name("kernels.py").read_text(encoding="utf-8")
    body = "\n".join(text.splitlines()[2:])
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def read_entries(path: Path) -> tuple[Entry, ...]:
    """The entries of a file; none where there is no such file. Raises TtrcError where it cannot be read as one."""
    if not path.is_file():
        return ()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            return ()  # of another version of ttrc, which will not find its kernels here anyway
        return tuple(_entry(item) for item in data["entries"])
    except (ValueError, KeyError, TypeError) as error:
        raise TtrcError(f"{path}: not a file of tuned configurations ({error}); delete it or tune again") from error


def write_entries(path: Path, chip: str, entries: Iterable[Entry]) -> None:
    """Add entries to a file; one of the same spec and key takes its predecessor's place, whatever kernels that had."""
    kept = {(e.spec, e.triton, e.key): e for e in (*read_entries(path), *entries)}
    ordered = sorted(
        kept.values(), key=lambda e: (e.spec, e.key.kernel, e.key.width, e.key.dtype, e.key.regime, e.triton)
    )
    lines = ",\n".join("  " + json.dumps(_flat(e)) for e in ordered)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f'{{"schema": {SCHEMA}, "chip": {json.dumps(chip)}, "entries": [\n{lines}\n]}}\n'
    staging = path.with_suffix(".partial")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)


def suspects_file(chip: str) -> Path:
    """Beside the user's file: the configuration that a tuner is trying, left behind where the process ends with it."""
    return user_file(chip).with_suffix(".trying.json")


def read_suspects(path: Path) -> list[tuple[Key, Config]]:
    if not path.is_file():
        return []
    return [(_part(Key, item), _part(Config, item)) for item in json.loads(path.read_text(encoding="utf-8"))]


def write_suspects(path: Path, suspects: Iterable[tuple[Key, Config]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(k) | asdict(c) for k, c in suspects], indent=1), encoding="utf-8")


def _flat(entry: Entry) -> dict:
    own = {n: v for n, v in asdict(entry).items() if n not in ("key", "config")}
    return {"spec": own.pop("spec"), **asdict(entry.key), **asdict(entry.config), **own}


def _entry(item: dict) -> Entry:
    key, config = _part(Key, item), _part(Config, item)
    return Entry(item["spec"], item["kernels"], key, config, item["ms"], item["default_ms"], item["triton"])


def _part(cls, item: dict):
    return cls(**{name: item[name] for name in cls.__dataclass_fields__})
