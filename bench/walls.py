"""What kernels issue and move on an H100 that is not there: ttrc and its peers, from binaries. No clock and no GPU.

    python -m bench.walls [SPEC ...] [--install] [--out FILE]

Both sides are called with a GPU on paper (bench.paper), so that their own launches compile. A binary's instructions are
counted as often as they run: Triton's interpreter says how often the lines run that a loop is made of (bench.trips).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import triton
from triton.runtime.autotuner import Autotuner
from triton.runtime.errors import OutOfResources

from bench.issued import Issued, issued
from bench.paper import CHIP, PART, Launch, paper_gpu
from bench.sides import HERE, PEER_VERSION, SIDES, backward_of, by_loops, inputs, peers_at_hand, side
from ttrc.runtime.load import load

LENGTH, WIDTH = 256, 128  # tokens; head dimension
SPECS = (
    "linear_attention",
    "mamba2",
    "deltanet",
    "gated_deltanet",
    "gla",
    "kda",
    "rwkv7",
    "gated_deltaproduct",
    "mesanet",
    "ttt_linear",
    "softmax_attention",
    "forgetting_attention",
)
WALLS = ("memory", "issue", "load_store")
SHAPE = (8, 4096, 16)  # batch, tokens, heads of the times that are told


@dataclass(frozen=True)
class Kernel:
    """Per token and head."""

    which: str
    name: str
    bytes: float
    instructions: float
    spills: float
    wavefronts: float

    @property
    def memory_ms(self) -> float:
        return 1e3 * _tokens() * self.bytes / PART.bandwidth

    @property
    def issue_ms(self) -> float:
        return 1e3 * _tokens() * self.instructions / (CHIP.schedulers * PART.multiprocessors * PART.clock)

    @property
    def load_store_ms(self) -> float:
        return 1e3 * _tokens() * self.wavefronts / (PART.multiprocessors * PART.clock)

    @property
    def binds(self) -> str:
        return max(WALLS, key=lambda wall: getattr(self, f"{wall}_ms"))

    @property
    def ms(self) -> float:
        return getattr(self, f"{self.binds}_ms")


def _cycles(weight: Issued) -> float:
    """Of one multiprocessor."""
    return max(weight.instructions / CHIP.schedulers, weight.wavefronts)


def _tokens() -> int:
    batch, length, heads = SHAPE
    return batch * length * heads


@dataclass
class Ear:
    """Weighs launches on a paper GPU; of an autotuner's configurations it keeps the one that is through first, with
    what it issues and what load/store units pass for it."""

    counted: dict  # what bench.trips found
    which: str = "forward"
    choice: str = ""

    def __post_init__(self) -> None:
        self.heard: list[tuple[str, str, Issued]] = []

    def launch(self, launch: Launch) -> None:
        key = " ".join([self.which, launch.kernel, self.choice])
        programs, lines = self.counted["programs"][key], self.counted["lines"][key]
        per_program = {line: n / programs for line, n in lines.items()}
        self.heard.append((self.which, launch.kernel, issued(launch, per_program)))

    def tune(self, tuner: Autotuner, *args, **kwargs) -> None:
        """In the place of Autotuner.run."""
        tuner.nargs = dict(zip(tuner.arg_names, args))
        before, best = len(self.heard), None
        for self.choice, configs in by_loops(tuner.prune_configs(kwargs)).items():
            for config in {c.num_warps: c for c in reversed(configs)}.values():
                try:
                    tuner.fn.run(*args, **kwargs, **config.all_kwargs())
                except OutOfResources:
                    continue
                found = self.heard.pop()
                if best is None or _cycles(found[2]) < _cycles(best[2]):
                    best = found
        self.choice = ""
        assert best is not None and len(self.heard) == before
        self.heard.append(best)


@contextmanager
def compiled_anew() -> Iterator[None]:
    """A binary in Triton's cache may name files of another checkout with the same text."""
    before = triton.knobs.cache.dir
    with tempfile.TemporaryDirectory(prefix="ttrc-walls-") as triton.knobs.cache.dir:
        try:
            yield
        finally:
            triton.knobs.cache.dir = before


def kernels(name: str, who: str) -> list[Kernel]:
    """A side's, in the order of first launch."""
    with tempfile.TemporaryDirectory() as room:
        out = Path(room) / "trips.json"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
        subprocess.run(
            [sys.executable, "-m", "bench.trips", name, who, str(LENGTH), str(WIDTH), out], check=True, env=environment
        )
        counted = json.loads(out.read_text())
    ear, x = Ear(counted), inputs(load(name).spec, LENGTH, WIDTH)
    with paper_gpu(ear.launch), mock.patch.object(Autotuner, "run", lambda *a, **k: ear.tune(*a, **k)):
        with side(name, who) as call, compiled_anew():
            o = call(x)
            ear.which = "backward"
            backward_of(o, x)
    found: dict[tuple[str, str], list[Issued]] = defaultdict(list)
    for which, kernel, weight in ear.heard:
        found[which, kernel].append(weight)
    return [
        Kernel(
            which,
            kernel,
            counted["bytes"][which][kernel],
            sum(w.instructions for w in weights) / LENGTH,
            sum(w.spills for w in weights) / LENGTH,
            sum(w.wavefronts for w in weights) / LENGTH,
        )
        for (which, kernel), weights in found.items()
    ]


# The page -------------------------------------------------------------------------------------------------------


def page(counted: dict[str, dict[str, list[Kernel]]]) -> str:
    """By spec and side."""
    batch, length, heads = SHAPE
    lines = [
        "# Which wall",
        "",
        "Made by `python -m bench.walls`; do not edit. Nothing here was timed. Instructions are those that warps",
        "issue, of binaries for sm_90, loops as often as they run. Wavefronts, of at most 128 bytes, are what",
        "passes L1 and shared memory for them, one a cycle and multiprocessor; bank conflicts are unknown. Of an",
        "autotuner's configurations it is the one that is through first by both. Bytes are distinct ones, as in",
        f"TRAFFIC.md. Per token and head, bfloat16, d = {WIDTH}, {LENGTH} tokens.",
        f"Milliseconds: what an H100 takes for {batch} x {length} tokens and {heads} heads, to move, to issue and",
        "to load and store that; and the longest of the three, kernel by kernel. Serial chains and launches are",
        "not in it: an estimate, nearly from below, of both sides alike. What attention issues a token grows with",
        f"the length, and is told of {LENGTH} tokens. Triton {triton.__version__}, fla-core {PEER_VERSION}.",
        "",
        "| spec | by | bytes | instructions | of spills | wavefronts | memory ms | issue ms | load_store ms "
        "| longest ms | fla / ttrc |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, sides in counted.items():
        ours, theirs = (sum(k.ms for k in sides[who]) for who in SIDES)
        lines += [_summary(name, who, sides[who], f"{theirs / ours:.2f}" if who == "ttrc" else "") for who in SIDES]
    lines += ["", "## By kernel", ""]
    lines += ["| spec | by | pass | kernel | bytes | instructions | of spills | wavefronts | binds |"]
    lines += ["| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for name, sides in counted.items():
        for who in SIDES:
            for k in sides[who]:
                counts = (f"{x:,.0f}" for x in (k.bytes, k.instructions, k.spills, k.wavefronts))
                cells = [name, who, k.which, k.name, *counts, k.binds]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _summary(name: str, who: str, found: list[Kernel], ratio: str) -> str:
    sums = [sum(getattr(k, part) for k in found) for part in ("bytes", "instructions", "spills", "wavefronts")]
    times = [sum(getattr(k, f"{wall}_ms") for k in found) for wall in WALLS] + [sum(k.ms for k in found)]
    cells = [name, who, *(f"{x:,.0f}" for x in sums), *(f"{x:.2f}" for x in times), ratio]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.walls", description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", default=SPECS, help="shipped specs that fla has too")
    parser.add_argument("--install", action="store_true", help="fetch fla-core into a folder that goes afterwards")
    parser.add_argument("--out", type=Path, default=HERE / "WALLS.md", help="the page to write")
    given = parser.parse_args(argv)
    counted = {}
    with peers_at_hand(given.install):
        for name in given.specs:
            counted[name] = {who: kernels(name, who) for who in SIDES}
            print(*(_summary(name, who, counted[name][who], "") for who in SIDES), sep="\n", flush=True)
    given.out.write_text(page(counted), encoding="utf-8")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
