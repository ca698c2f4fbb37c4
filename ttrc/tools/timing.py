"""Time on a device: interleaved, medians of many, inputs rotated past the cache; and the roofs of the chip at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

QUEUE_CYCLES = 4_000_000  # about 2 ms of nothing: the host enqueues all of a call while the device still waits
COPY_BYTES = 4 << 30
MATRIX = 8192


@dataclass(frozen=True)
class Sample:
    """Milliseconds a call: the median, the 20th and 80th percentile, and of how many calls."""

    ms: float
    low: float
    high: float
    repeats: int


@dataclass(frozen=True)
class Roof:
    """What the chip was seen to do: device-to-device copy in bytes/s (read and written), bf16 products in FLOP/s."""

    bandwidth: float
    matmul: float


Step = Callable[[int], object]  # runs on input set number i; the caller sees to it that there are enough of them


def interleaved(steps: Mapping[str, Step], device: str | torch.device, budget_ms: float = 400.0) -> dict[str, Sample]:
    """Time several calls in turns, A B C A B C, so that clocks and heat favour none; about budget_ms for each.

    On a CPU the clock is the wall's, a call is made three times, and the figures mean nothing.
    """
    clock = _cuda_ms if torch.device(device).type == "cuda" else _wall_ms
    repeats = {}
    for name, step in steps.items():
        clock(step, 0)  # compiles
        once = statistics.median(clock(step, i) for i in range(3))
        repeats[name] = 3 if clock is _wall_ms else max(10, min(200, int(budget_ms / max(once, 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(max(repeats.values(), default=0)):
        for name, step in steps.items():
            if i < repeats[name]:
                times[name].append(clock(step, i))
    return {name: _sample(seen) for name, seen in times.items()}


def timer(device: str | torch.device, budget_ms: float = 60.0) -> Callable:
    """What the tuner asks for: ms of a call."""
    return lambda key, config, call: interleaved({"call": lambda i: call()}, device, budget_ms)["call"].ms


def sets_past_cache(one_set_bytes: int, device: str | torch.device) -> int:
    """How many input sets to rotate among, so that together they are three times the last-level cache."""
    if torch.device(device).type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(16, -(-3 * cache // max(one_set_bytes, 1))))


def peak_bytes(step: Step, device: str | torch.device) -> int | None:
    """The most memory that one call holds at a time beyond what was allocated before it; None on a CPU.

    Of a second call: in its first an autotuner, of a peer say, holds buffers of its own.
    """
    step(0)
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step(0)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def measure_roof(device: str | torch.device) -> Roof:
    """A large copy and a large bf16 product, each on random data (zeros run faster than real data does)."""
    on_gpu = torch.device(device).type == "cuda"
    size, n = (COPY_BYTES, MATRIX) if on_gpu else (1 << 22, 128)
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    times = interleaved({"copy": lambda i: target.copy_(source), "matmul": lambda i: a @ b}, device, 100.0)
    return Roof(2e3 * size / times["copy"].ms, 2e3 * n**3 / times["matmul"].ms)


def _sample(times: list[float]) -> Sample:
    ordered = sorted(times)
    fifth = len(ordered) // 5
    return Sample(statistics.median(ordered), ordered[fifth], ordered[-1 - fifth], len(ordered))


def _cuda_ms(step: Step, i: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(QUEUE_CYCLES)
    start.record()
    step(i)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _wall_ms(step: Step, i: int) -> float:
    start = time.perf_counter()
    step(i)
    return 1e3 * (time.perf_counter() - start)
