"""Compiling before the clock matters: a piece of work is gone through once, and what it would launch is compiled.

Triton compiles a kernel where it is launched first, one behind the other, on one core. It holds on to Python's lock
for next to nothing of that, so that threads share the cores.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import torch
from triton.runtime._async_compile import AsyncCompileMode, active_mode
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction


@contextlib.contextmanager
def compiling_ahead(
    work: Callable[[], object], device: str | torch.device, workers: int | None = None
) -> Iterator[None]:
    """Go through work with nothing launched: what it computes means nothing, and tensors keep what was in them.

    Of an autotuner's configurations all are compiled, and none is chosen. Whatever goes wrong here will do so again
    where it is looked for. Compilers are at work while the block runs, which must launch nothing, and done behind it.
    workers: threads; as many as cores where none are named. On a CPU nothing compiles.
    """
    if torch.device(device).type == "cpu":
        yield
        return
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool, AsyncCompileMode(pool, ignore_errors=True) as mode:
        with _compiling_only(mode), contextlib.suppress(Exception):
            work()
        yield


def compile_ahead(work: Callable[[], object], device: str | torch.device, workers: int | None = None) -> None:
    with compiling_ahead(work, device, workers):
        pass


@contextlib.contextmanager
def _compiling_only(mode: AsyncCompileMode) -> Iterator[None]:
    launch = JITFunction.run

    def compile_only(kernel: JITFunction, *args, grid, warmup, **kwargs):
        token = active_mode.set(mode)  # a backward pass is launched by a thread of its own
        try:
            return launch(kernel, *args, grid=grid, warmup=True, **kwargs)
        finally:
            active_mode.reset(token)

    def try_all(tuner: Autotuner, *args, **kwargs) -> None:
        tuner.nargs = dict(zip(tuner.arg_names, args))
        for config in tuner.prune_configs(kwargs):
            tuner.fn.run(*args, **kwargs, **config.all_kwargs())

    with mock.patch.object(JITFunction, "run", compile_only), mock.patch.object(Autotuner, "run", try_all):
        yield
