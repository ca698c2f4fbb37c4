"""A binary's instructions, as often as they run: its loops, and the lines of the source that tell how often.

Triton leaves lines in what it compiles; `bench.trips` has counted how often each runs.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import triton

from bench.paper import Launch
from ttrc.tools.binary import loops_in
from ttrc.tools.wavefronts import wavefronts

FILE = re.compile(r'## File "([^"]+)", line (\d+)')
LABEL = re.compile(r"^\s*(\.L_x_\d+):")
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(([A-Z]\w*)[^;\n]*)")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class Issued:
    """Of a launch, as a whole: instructions that warps issue, how many of those load or store what was spilled, and
    wavefronts that load/store units pass for them."""

    instructions: float
    spills: float
    wavefronts: float


@dataclass(frozen=True)
class Instruction:
    place: int
    name: str
    wavefronts: float
    line: str  # "file:line"
    jumps_to: int | None


def read(binary: bytes) -> list[Instruction]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-g", "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, labels, waiting, line = [], {}, [], ""
    for row in text.splitlines():
        if said := FILE.search(row):
            line = f"{said[1]}:{said[2]}"
        elif said := LABEL.match(row):
            waiting.append(said[1])
        elif (said := LINE.search(row)) and said[3] != "NOP":
            place, to = int(said[1], 16), TARGET.search(said[2])
            labels |= dict.fromkeys(waiting, place)
            waiting = []
            found.append((place, said[3], wavefronts(said[2]), line, to and to[1]))
    return [Instruction(*what, labels.get(to)) for *what, to in found]


def issued(launch: Launch, lines: dict[str, float]) -> Issued:
    """`lines`: executions of each, a program."""
    code = read(launch.binary)
    loops = loops_in((i.place, i.name, i.jumps_to) for i in code)
    innermost = {i.place: _innermost(loops, i.place, i.place) for i in code}
    runs = _runs(code, loops, innermost, lines)
    times = launch.programs * launch.metadata.num_warps
    return Issued(
        times * sum(runs[innermost[i.place]] for i in code),
        times * sum(runs[innermost[i.place]] for i in code if i.name in ("LDL", "STL")),
        times * sum(runs[innermost[i.place]] * i.wavefronts for i in code),
    )


def _innermost(loops, first: int, last: int, but=None):
    around = [loop for loop in loops if loop != but and loop[0] <= first and last <= loop[1]]
    return min(around, key=lambda loop: loop[1] - loop[0], default=None)


def _runs(code: list[Instruction], loops, innermost, lines: dict[str, float]) -> dict:
    """How often the body of each loop runs in a program; None: what stands in no loop.

    A loop is the loop of the source that most of its instructions are from; where several are of one, they share.
    """
    sources = {}
    for loop in loops:
        votes = Counter(_loop_of(i.line) for i in code if innermost[i.place] == loop)
        votes.pop(None, None)
        sources[loop] = votes.most_common(1)[0][0] if votes else None
    copies, runs = Counter(sources.values()), {None: 1.0}
    for loop in sorted(loops, key=lambda x: x[0] - x[1]):  # outer ones first
        source = sources[loop]
        outer = runs[_innermost(loops, *loop, but=loop)]
        # A statement of several lines is told once for each time that it comes back to its first.
        runs[loop] = min((lines[x] for x in source if x in lines), default=0.0) / copies[source] if source else outer
    return runs


def _loop_of(line: str) -> tuple[str, ...] | None:
    """The innermost loop that a line stands in, if it stands in one: the first line of each statement of its body."""
    file, number = line.rsplit(":", 1)
    return _loops_of(file).get(int(number)) if Path(file).is_file() else None


@cache
def _loops_of(file: str) -> dict[int, tuple[str, ...]]:
    found = {}
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):  # outer ones first
        if isinstance(node, ast.While) or (isinstance(node, ast.For) and "static_range" not in ast.unparse(node.iter)):
            body = tuple(f"{file}:{statement.lineno}" for statement in node.body)
            found |= dict.fromkeys(range(node.lineno, node.end_lineno + 1), body)
    return found
