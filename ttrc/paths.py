"""Where the shipped templates, specs and generated kernels lie: beside a source checkout, inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def templates_dir() -> Path:
    return _shipped("templates")


def specs_dir() -> Path:
    return _shipped("specs")


def generated_dir() -> Path:
    return _shipped("generated")


def _shipped(name: str) -> Path:
    """ttrc/_data/NAME where a wheel was installed, else NAME at the top of the checkout (pyproject.toml maps them)."""
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
