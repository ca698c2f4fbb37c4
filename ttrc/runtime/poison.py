"""Memory that shows when nobody wrote it: inside `poisoned`, fresh tensors hold nan instead of what was there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.utils.deterministic

from ttrc.errors import TtrcError


@contextmanager
def poisoned(device: str | torch.device) -> Iterator[None]:
    """torch.empty, new_empty and empty_like give nan (integers: their largest value) on every device.

    torch fills them so under deterministic algorithms. Those are asked for softly, since some operators on CUDA have
    none. An allocator that recycles memory would otherwise hand a kernel the right rows of the run before.
    """
    enabled, softly = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fills = torch.utils.deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = True
            _probe(device)
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=softly)
            torch.utils.deterministic.fill_uninitialized_memory = fills


def _probe(device: str | torch.device) -> None:
    """Poison that does not work would let a kernel pass that leaves rows unwritten: refuse to go on."""
    like = torch.ones(2, 64, dtype=torch.bfloat16, device=device)
    made = (torch.empty(128, device=device), like.new_empty(128, dtype=torch.float32), torch.empty_like(like))
    if not all(bool(x.isnan().all()) for x in made):
        raise TtrcError(f"torch {torch.__version__} does not fill fresh memory on {device}: outputs cannot be poisoned")
