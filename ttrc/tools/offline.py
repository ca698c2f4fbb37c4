"""Compile Triton kernels for GPUs that are not there, and read from the binaries what they need.

Registers, stack, spills, shared memory and matrix instructions come from `cuobjdump` (it ships inside triton)
or from the text of the AMD assembler. Compiling runs in worker processes without TRITON_INTERPRET, so it works
from a process where that is set: there `triton.jit` gives interpreted functions, which nothing can compile.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Union

from ttrc.errors import TtrcError
from ttrc.tools.resources import Resources, chip

TIMEOUT = 300.0  # seconds a kernel may take to compile
WORKER = "ttrc.tools.compile_worker"


@dataclass(frozen=True)
class Job:
    """One kernel of a standalone module, for one GPU.

    `signature` gives each runtime argument its type ("*bf16", "fp32", "i32"); everything else, None for a
    pointer that is not passed included, is in `constexprs`. Pointers are 16-byte aligned, as torch's are;
    `divisible` names the integers that are multiples of 16.
    """

    module_path: str
    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, object]
    target: str
    num_warps: int = 4
    num_stages: int = 2
    divisible: tuple[str, ...] = ()
    maxnreg: int | None = None  # registers a thread is given, of NVIDIA's GPUs

    def __post_init__(self) -> None:
        chip(self.target)  # an unknown target is refused here, not in a worker


@dataclass(frozen=True)
class CompileFailure:
    """A kernel that did not compile, and the compiler's words."""

    kernel: str
    target: str
    reason: str


Result = Union[Resources, CompileFailure]


def compile_kernel(
    fn,
    signature: Mapping[str, str],
    constexprs: Mapping[str, object],
    *,
    target: str,
    num_warps: int = 4,
    num_stages: int = 2,
    divisible: Sequence[str] = (),
) -> Resources:
    """Compile a `@triton.jit` function in this process, which must not run Triton's interpreter."""
    from ttrc.tools.binary import compile_here

    return compile_here(fn, signature, constexprs, target, num_warps, num_stages, divisible)


def compile_many(
    jobs: Sequence[Job],
    workers: int = 2,
    on_done: Callable[[Job, Result], None] | None = None,
    timeout: float = TIMEOUT,
) -> list[Result]:
    """Compile the jobs in worker processes; results come in the order of the jobs.

    A kernel that does not compile, takes too long or takes its worker down is a CompileFailure: the rest goes
    on. `on_done` is called after each job, in a thread of its own but never twice at once: advance a progress
    bar there.
    """
    if not jobs:
        return []
    done = threading.Lock()
    pool: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    crew = [_Worker(timeout) for _ in range(max(1, min(workers, len(jobs))))]
    for worker in crew:
        pool.put(worker)

    def run(job: Job) -> Result:
        worker = pool.get()
        try:
            result = worker.compile(job)
        finally:
            pool.put(worker)
        if on_done is not None:
            with done:
                on_done(job, result)
        return result

    try:
        with ThreadPoolExecutor(len(crew)) as threads:
            return list(threads.map(run, jobs))
    finally:
        for worker in crew:
            worker.stop()


@dataclass
class _Worker:
    """A process that compiles one job after another: a line of JSON in, a line of JSON out."""

    timeout: float
    process: subprocess.Popen | None = field(default=None, init=False)

    def compile(self, job: Job) -> Result:
        if self.process is None or self.process.poll() is not None:
            self.process = _start()
        late = threading.Timer(self.timeout, self.process.kill)
        started = time.monotonic()
        late.start()
        try:
            self.process.stdin.write(json.dumps(_request(job)) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            late.cancel()
        if not answer:
            reason = f"the compiler stopped with status {self.process.wait()}"
            if time.monotonic() - started >= self.timeout:
                reason = f"no result in {self.timeout:g} s"
            return CompileFailure(job.kernel, job.target, reason)
        told = json.loads(answer)
        if "reason" in told:
            return CompileFailure(job.kernel, job.target, told["reason"])
        return Resources(**told["resources"])

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def _request(job: Job) -> dict:
    request = asdict(job) | {"module_path": str(Path(job.module_path).resolve())}
    for name, value in job.constexprs.items():
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise TtrcError(f"constexpr {name} of {job.kernel} must be a number, a string or None, not {value!r}")
    return request


def _start() -> subprocess.Popen:
    package = str(Path(__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
