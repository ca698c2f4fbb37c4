"""`ttrc generate`: generated/NAME/ from specs, or a diff where what is there is stale."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from ttrc.compiler import generate
from ttrc.language.spec import Spec


@dataclass(frozen=True)
class Outcome:
    """One generated package: where it is, which of its files differ from the compiler's, and how."""

    folder: Path
    stale: tuple[str, ...]
    diff: str


def write(spec: Spec, out: Path) -> Outcome:
    """Writes out/NAME/, files that no longer belong there removed."""
    outcome, files = compare(spec, out), generate(spec)
    outcome.folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (outcome.folder / name).write_text(text, encoding="utf-8")
    for name in set(outcome.stale) - set(files):
        (outcome.folder / name).unlink()
    return outcome


def compare(spec: Spec, out: Path) -> Outcome:
    """What `write` would change."""
    folder, files = out / spec.name, generate(spec)
    present = {p.name: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.py"))}
    names = [n for n in sorted({*files, *present}) if files.get(n) != present.get(n)]
    diffs = [
        line
        for n in names
        for line in unified_diff(
            present.get(n, "").splitlines(True),
            files.get(n, "").splitlines(True),
            f"{folder / n} (there)",
            f"{n} (compiled)",
        )
    ]
    return Outcome(folder, tuple(names), "".join(diffs))
