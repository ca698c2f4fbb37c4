"""A GPU on paper: Triton compiles for an H100 that is not there, and what would be launched is told and not run.

Calls go their whole way, through operators, autotuners and Triton's own binding of arguments; no value comes of them.
Libraries that ask what they run on are told an H100.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ttrc.tools.resources import PARTS, chip

PART = PARTS["H100 SXM"]
CHIP = chip(PART.target)
TOLD = {"get_device_name": "NVIDIA H100 80GB HBM3", "get_device_capability": (9, 0), "device_count": 1}


@dataclass(frozen=True)
class Launch:
    """What would have been launched: the grid's size and the compiled kernel."""

    programs: int
    source: object  # triton.compiler.ASTSource
    metadata: object
    binary: bytes

    @property
    def kernel(self) -> str:
        return self.metadata.name


@contextmanager
def paper_gpu(on_launch: Callable[[Launch], None] = lambda launch: None) -> Iterator[None]:
    """Inside the block kernels compile, and `on_launch` hears of each launch, from tensors on the CPU.

    In Triton's interpreter nothing is launched: then it is only what libraries are told.
    """
    with ExitStack() as told:
        for name, answer in TOLD.items():
            told.enter_context(mock.patch.object(torch.cuda, name, lambda *_, answer=answer: answer))
        told.enter_context(mock.patch.object(driver, "_active", _Driver(on_launch)))
        yield


class _Driver:
    """What Triton asks of a driver."""

    def __init__(self, on_launch: Callable[[Launch], None]):
        self.utils = SimpleNamespace(load_binary=_load, get_device_properties=lambda device: _PROPERTIES)
        self._on_launch = on_launch

    def launcher_cls(self, source, metadata) -> Callable[..., None]:
        def launch(x, y, z, _stream, function, *_) -> None:
            self._on_launch(Launch(x * y * z, source, metadata, function))

        return launch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget(CHIP.backend, CHIP.arch, CHIP.warp_size)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device) -> int:
        return 0


_PROPERTIES = {"max_shared_mem": CHIP.shared_per_block, "multiprocessor_count": PART.multiprocessors}


def _load(_name: str, binary: bytes, _shared: int, _device: int) -> tuple:
    """(module, function, registers, spills, threads): the binary stands for the function."""
    return None, binary, 0, 0, 1024
