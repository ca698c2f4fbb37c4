"""`ttrc generate`: generated/NAME/ from specs, or a diff where what is there is stale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from ttrc.compiler import generate
from ttrc.emit import HEADER
from ttrc.errors import TtrcError
from ttrc.language.spec import Spec
from ttrc.paths import generated_dir
from ttrc.runtime.load import shipped_specs

MARK = HEADER.split("{")[0]  # how every file of ttrc's own begins


@dataclass(frozen=True)
class Outcome:
    """One generated package: where it goes, its files, which of those there differ from them, and how."""

    folder: Path
    files: dict[str, str]
    stale: tuple[str, ...]
    diff: str


def place_of(specs: Sequence[Path]) -> Path:
    """Where packages go if nothing is said: shipped ones beside their specs, a user's own never among them."""
    shipped = {path.resolve() for path in shipped_specs().values()}
    return generated_dir() if {path.resolve() for path in specs} <= shipped else Path("generated")


def compare_all(specs: Sequence[Spec], out: Path) -> list[Outcome]:
    """What `publish` would change, of all specs before any of them is written."""
    twice = [name for name, times in Counter(spec.name for spec in specs).items() if times > 1]
    if twice:
        raise TtrcError(f"more than one spec is called {', '.join(twice)}; {out} has one folder for each name")
    return [compare(spec, out) for spec in specs]


def write(spec: Spec, out: Path) -> Outcome:
    """Writes out/NAME/, files that no longer belong there removed."""
    outcome = compare(spec, out)
    publish(outcome)
    return outcome


def publish(outcome: Outcome) -> None:
    outcome.folder.mkdir(parents=True, exist_ok=True)
    for name, text in outcome.files.items():
        (outcome.folder / name).write_text(text, encoding="utf-8")
    for name in set(outcome.stale) - set(outcome.files):
        (outcome.folder / name).unlink()


def compare(spec: Spec, out: Path) -> Outcome:
    """What `write` would change."""
    folder, files = out / spec.name, generate(spec)
    present = {p.name: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.py"))}
    foreign = [n for n, text in present.items() if not text.startswith(MARK)]
    if set(foreign) & set(files):
        raise TtrcError(
            f"{folder} holds files that ttrc did not write: {', '.join(sorted(set(foreign) & set(files)))}\n"
            "  expected: a folder of ttrc's own, or none; choose another one with --out"
        )
    present = {n: text for n, text in present.items() if n not in foreign}
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
    return Outcome(folder, files, tuple(names), "".join(diffs))
