"""A spec's path or name -> its operator."""

from __future__ import annotations

import copyreg
import hashlib
import importlib.util
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Union

import torch

from ttrc.errors import SpecError, did_you_mean
from ttrc.language.load import load_spec
from ttrc.language.spec import Spec
from ttrc.paths import specs_dir
from ttrc.runtime.cache import package_of
from ttrc.runtime.operator import Operator
from ttrc.runtime.tuned import apply_tuned

_importing = threading.Lock()  # a module is in sys.modules before its body has run


def load(spec: Union[str, Path, Spec]) -> Operator:
    """The operator of a spec: a path, the name of a shipped spec, or a parsed one.

    A shipped spec runs its checked-in kernels; any other is compiled on first use into a cache.
    Raises SpecError where the spec is wrong.
    """
    parsed = spec if isinstance(spec, Spec) else load_spec(find_spec(spec))
    package = import_package(package_of(parsed), parsed.name)
    if torch.cuda.is_available():
        apply_tuned(package)
    return Operator(parsed, package)


def find_spec(spec: Union[str, Path]) -> Path:
    """A path, of which no shell has expanded a ~; a bare name among the shipped specs."""
    path = Path(os.path.expanduser(spec))
    if path.suffix == ".toml" or os.path.exists(path):  # which says no to what can be no path
        return path
    shipped = shipped_specs()
    if str(spec) in shipped:
        return shipped[str(spec)]
    raise SpecError(
        f"no spec called {str(spec)!r}",
        path=str(spec),
        expected="a path to a .toml file, or a shipped name: " + ", ".join(shipped),
        hint=did_you_mean(str(spec), shipped),
    )


def shipped_specs() -> dict[str, Path]:
    return {path.stem: path for path in sorted(specs_dir().glob("*.toml"))}


def import_package(folder: Path, name: str) -> ModuleType:
    """A generated package, imported once a folder under a name of its own, the same in every process."""
    unique = f"ttrc_generated_{name}_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"
    with _importing:
        return sys.modules.get(unique) or _import_as(unique, folder)


def _import_as(unique: str, folder: Path) -> ModuleType:
    place = importlib.util.spec_from_file_location(
        unique, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(place)
    sys.modules[unique] = module
    try:
        place.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


# Modules are neither copied nor pickled, so an operator travels as its spec and finds its package where it arrives.
copyreg.pickle(Operator, lambda operator: (load, (operator.spec,)))
