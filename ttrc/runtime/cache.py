"""Compiled packages on disk: shipped ones where they fit the spec's text, else a cache keyed by text and versions."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import platformdirs

from ttrc.compiler import generate
from ttrc.emit import fingerprint_line
from ttrc.errors import TtrcError
from ttrc.language.spec import Spec
from ttrc.paths import generated_dir, templates_dir


def package_of(spec: Spec) -> Path:
    """The folder of a spec's generated package, compiled now if need be."""
    shipped = generated_dir() / spec.name
    if fingerprint_line(spec) in _first_lines(shipped / "op.py"):
        return shipped
    target = cache_dir() / f"{spec.name}-{_key(spec)}"
    if not target.is_dir():
        _publish(generate(spec), target)
    return target


def cache_dir() -> Path:
    """$TTRC_CACHE, else the user's cache folder."""
    chosen = os.environ.get("TTRC_CACHE")
    return Path(os.path.expanduser(chosen)) if chosen else Path(platformdirs.user_cache_dir("ttrc"))


def _publish(files: dict[str, str], target: Path) -> None:
    """Write a folder beside its place and move it there whole: another process sees all of it or nothing."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        for name, text in files.items():
            (staging / name).write_text(text, encoding="utf-8")
        _move(staging, target)
    except OSError as error:
        raise TtrcError(
            f"{target.parent}: compiled specs are kept here, and it cannot be written ({error.strerror})\n"
            "  hint: set TTRC_CACHE to a folder that can"
        ) from error


def _move(staging: Path, target: Path) -> None:
    try:
        os.rename(staging, target)
    except OSError:  # another process was first, with the same text
        shutil.rmtree(staging)
        if not target.is_dir():
            raise


def _key(spec: Spec) -> str:
    parts = [spec.source.text, _compiler_fingerprint(), *(version(p) for p in ("sympy", "jinja2", "ruff"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@cache
def _compiler_fingerprint() -> str:
    """The text of the compiler itself, so that a working copy never runs kernels of its own past."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted([*package.rglob("*.py"), *templates_dir().rglob("*.jinja")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _first_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()[:3] if path.is_file() else []
