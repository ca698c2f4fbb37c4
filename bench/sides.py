"""The two sides that are counted: ttrc's operators and fla's, fetched, and called on the same inputs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor
from triton import Config

from ttrc.runtime.load import load
from ttrc.runtime.workload import Workload, draw_inputs
from ttrc.sampling import as_arguments
from ttrc.tools.peers import Peer, load_peers, present

HERE = Path(__file__).resolve().parent
PEER_VERSION = "0.6.0"
FLA = (f"fla-core=={PEER_VERSION}", "einops")
SIDES = ("ttrc", "fla")
PASSES = ("forward", "backward")

Inputs = dict[str, Tensor]
Call = Callable[[Inputs], Tensor]


def inputs(spec, length: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Inputs:
    """q, k, v in dtype and gates in float32 but those of the read-out, all differentiable; batch 1, one head."""
    return draw_inputs(spec, Workload(1, length, 1, width, width), dtype, "cpu")


def ours(name: str, schedule: Optional[str] = None) -> Call:
    """A shipped spec's operator in its chunk form; where it has several schedules, in the first if none is named."""
    op = load(name)
    call = getattr(op.package, op.spec.name)  # an operator asks for a GPU that is there
    options = dict(form="chunk", backend="triton", schedule=schedule or next(iter(op.schedules), "auto"))
    return lambda x: call(**as_arguments(op.spec, x), **options)[0]


def fla(name: str) -> Peer | None:
    """flash-linear-attention's operator for a shipped spec, where it has one and is at hand."""
    return next((peer for peer in present(load_peers()(name)) if peer.name == "fla"), None)


@contextmanager
def side(name: str, who: str) -> Iterator[Call]:
    """The call of one of SIDES for a shipped spec; inside, fla refuses nothing."""
    if who == "ttrc":
        yield ours(name)
        return
    peer = fla(name)
    with peer.lifted():
        yield peer.call


def backward_of(o: Tensor, x: Inputs) -> None:
    torch.autograd.grad(o, list(x.values()), torch.ones_like(o), allow_unused=True)


@contextmanager
def peers_at_hand(install: bool) -> Iterator[None]:
    """fla on the path: from .wheels/ where `make wheels` left it, or fetched into a folder that goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="ttrc-peers-") as room:
        if install:
            options = ["--disable-pip-version-check", "--quiet", "--no-deps", "--target", room]
            subprocess.run([sys.executable, "-m", "pip", "install", *options, *FLA], check=True)
        added = [room, str(HERE.parent / ".wheels")]
        sys.path.extend(added)
        try:
            yield
        finally:
            for folder in added:
                sys.path.remove(folder)


def by_loops(configs: Sequence[Config]) -> dict[str, list[Config]]:
    """An autotuner's configurations by what shapes a kernel's loops: not warps, and not stages."""
    found = defaultdict(list)
    for config in configs:
        found[json.dumps(config.kwargs, sort_keys=True, default=str)].append(config)
    return found
