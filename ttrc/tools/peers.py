"""Other libraries to count or time beside a spec. ttrc knows none of them: a peers file does.

A peers file is Python with one function, `peers(spec name) -> Peer and Absent entries`. The one in a checkout's
bench/ folder is found by itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from torch import Tensor

from ttrc.errors import TtrcError

Inputs = Mapping[str, Tensor]  # q, k, v [B, T, H, d] and the spec's gates, by name


@dataclass(frozen=True)
class Peer:
    """One library's operator for a spec: call(inputs) -> o [B, T, HV, d_v], timed forwards alone without a graph."""

    name: str
    call: Callable[[Inputs], Tensor]
    same: bool = True  # computes what the spec says; another function is timed for scale only
    refusal: str = ""  # why it will not run its backward pass here; then its rows are "timed only"
    lifted: Callable[[], AbstractContextManager] = nullcontext  # inside, it does run


@dataclass(frozen=True)
class Absent:
    """A library that might have been a peer, and why it is none."""

    name: str
    reason: str


Table = Callable[[str], Sequence[Union[Peer, Absent]]]


def load_peers(path: str | Path | None = None) -> Table:
    """The `peers` function of a file; of the checkout's own where none is named; of nobody where there is none."""
    default = Path(__file__).resolve().parents[2] / "bench" / "peers.py"
    if path is None and not default.is_file():
        return lambda spec: (Absent("peers", "no peers file"),)
    chosen = default if path is None else Path(path)
    if not chosen.is_file():
        raise TtrcError(f"no peers file {chosen}")
    place = importlib.util.spec_from_file_location("ttrc_peers", chosen)
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    if not callable(getattr(module, "peers", None)):
        raise TtrcError(f"{chosen}: expected a function peers(spec name)")
    return module.peers


def present(entries: Sequence[Union[Peer, Absent]]) -> tuple[Peer, ...]:
    return tuple(e for e in entries if isinstance(e, Peer))


def absent(entries: Sequence[Union[Peer, Absent]]) -> tuple[Absent, ...]:
    return tuple(e for e in entries if isinstance(e, Absent))
