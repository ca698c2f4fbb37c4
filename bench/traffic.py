"""Bytes that the kernels touch, counted in Triton's interpreter: ttrc, its peers, and the least possible.

    python -m bench.traffic [SPEC ...] [--install] [--out FILE]

Writes bench/TRAFFIC.md and, where every shipped spec is counted, the table of the README from the same figures.
Distinct bytes per token and head, each kernel's added up, batch 1, one head: no clock and no GPU in it. Work that
torch does around the kernels counts on neither side.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Optional

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

from bench.interpret import interpretable  # noqa: E402
from bench.sides import HERE, PASSES, PEER_VERSION, Call, Inputs, backward_of, fla, inputs, ours, peers_at_hand  # noqa: E402
from ttrc.compiler import analyse  # noqa: E402
from ttrc.passes.budget import least_bytes  # noqa: E402
from ttrc.runtime.load import load, shipped_specs  # noqa: E402
from ttrc.tools.counter import Tally, count  # noqa: E402
from ttrc.tools.peers import Peer  # noqa: E402

README = HERE.parent / "README.md"
MARKS = ("<!-- made by bench.traffic -->\n", "<!-- until here -->\n")
LENGTH, WIDTH = 512, 128


@dataclass(frozen=True)
class Traffic:
    """What one implementation's kernels touch in each pass: (kernel, launches, distinct bytes per token and head)."""

    forward: tuple[tuple[str, int, float], ...]
    backward: tuple[tuple[str, int, float], ...]

    def bytes(self, *passes: str) -> float:
        return sum(row[2] for name in passes or PASSES for row in getattr(self, name))

    def launches(self, name: str) -> int:
        return sum(row[1] for row in getattr(self, name))


def measure(call: Call, x: Inputs) -> Traffic:
    """The kernels that a call and its backward pass launch."""
    tokens = x["v"].shape[1]
    with count() as forward:
        o = call(x)
    with count() as backward:
        backward_of(o, x)
    return Traffic(_rows(forward, tokens), _rows(backward, tokens))


def in_chunks() -> list[str]:
    """The shipped specs that have a chunk form."""
    return [name for name in shipped_specs() if "chunk" in load(name).forms]


def of_ttrc(name: str, length: int = LENGTH, width: int = WIDTH, schedule: Optional[str] = None) -> Traffic:
    return measure(ours(name, schedule), inputs(load(name).spec, length, width))


def of_peer(name: str, peer: Peer, length: int = LENGTH, width: int = WIDTH) -> Traffic:
    with interpretable(), peer.lifted():
        return measure(peer.call, inputs(load(name).spec, length, width))


def _rows(tally: Tally, tokens: int) -> tuple[tuple[str, int, float], ...]:
    return tuple(
        (k.name, k.launches, (k.distinct_load_bytes + k.distinct_store_bytes) / tokens) for k in tally.kernels.values()
    )


# The page -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    spec: str
    least: dict[str, float]
    traffic: dict[str, Traffic]  # by implementation, "ttrc" first
    split: Optional[Traffic]  # ttrc's other schedule for sequences in one piece, where it has one
    relative: bool  # whether fla's is another rule of the same class


def row(name: str) -> Row:
    module = analyse(load(name).spec)
    least = least_bytes(module, d_k=WIDTH, d_v=WIDTH, dtype_bytes=2)
    counted, relative = {"ttrc": of_ttrc(name)}, False
    peer = fla(name)
    if peer is not None:
        counted[peer.name] = of_peer(name, peer)
        relative = not peer.same
    split = of_ttrc(name, schedule="split") if "split" in load(name).schedules else None
    return Row(name, least, counted, split, relative)


def page(rows: list[Row]) -> str:
    details = (line for r in rows for line in _details(r))
    return "\n".join([*_head(), *_summary(rows), "", *_schedules(rows), "", "## By kernel", "", *details])


def _head() -> list[str]:
    return [
        "# What the kernels touch",
        "",
        "Made by `python -m bench.traffic`; do not edit. Distinct bytes per token and head, every kernel's added up,",
        f"for a sequence of {LENGTH} tokens, one head, d = {WIDTH}, bfloat16, gates in float32; launches in brackets.",
        "Counted in Triton's interpreter: exact, and no clock in it. Least: each input read once, each output written",
        "once. Torch code around the kernels is not counted, and neither side is asked for a final state. A deep",
        "memory has to be given one to start from: read once a sequence, as its gradient is written, and counted here;",
        "so is, once each way, what its scans hold in memory of their own, where weights have two layers. So are, once",
        "a launch, the tables by which sums of decays by key channel are taken, the same for all heads and sequences.",
        f"Triton {_version('triton')}, fla-core {_version('fla-core')}.",
        "",
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not found"


def _summary(rows: list[Row]) -> list[str]:
    lines = [
        "| spec | least | ttrc forward | ttrc backward | ttrc | fla forward | fla backward | fla "
        "| fla / ttrc | ttrc / least |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        ours, theirs, least = r.traffic["ttrc"], r.traffic.get("fla"), sum(r.least.values())
        cells = [_marked(r), f"{least:,.0f}", *_cells(ours), *(_cells(theirs) if theirs else ["-"] * 3)]
        cells += [f"{theirs.bytes() / ours.bytes():.2f}" if theirs else "-", f"{ours.bytes() / least:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, *_footnote(rows)]


def _marked(r: Row) -> str:
    return f"{r.spec} *" if r.relative else r.spec


def _footnote(rows: list[Row]) -> list[str]:
    if not any(r.relative for r in rows):
        return []
    return ["", "\\* fla has a near relative of this rule, of the same class: a bias more, another residual."]


def _schedules(rows: list[Row]) -> list[str]:
    lines = [
        "## By schedule",
        "",
        "fused is for batch times heads that fill the chip, split for few of them: read-outs leave the serial path.",
        "The schedule that cuts sequences adds, to the bytes a token that `ttrc explain` states, states by segment.",
        "",
        "| spec | fused | split | split / fla |",
        "| --- | ---: | ---: | ---: |",
    ]
    for r in (r for r in rows if r.split is not None):
        theirs = r.traffic.get("fla")
        share = f"{100 * r.split.bytes() / theirs.bytes():.0f}%" if theirs else "-"
        lines.append(f"| {r.spec} | {_total(r.traffic['ttrc'])} | {_total(r.split)} | {share} |")
    return lines


def _cells(traffic: Traffic) -> list[str]:
    each = [f"{traffic.bytes(name):,.0f} ({traffic.launches(name)})" for name in PASSES]
    return [*each, f"**{traffic.bytes():,.0f}**"]


def _details(r: Row) -> list[str]:
    lines = [f"### {r.spec}", "", "| by | pass | kernel | launches | bytes |", "| --- | --- | --- | ---: | ---: |"]
    for who, traffic in r.traffic.items():
        for name in PASSES:
            lines += [f"| {who} | {name} | {k} | {n} | {b:,.1f} |" for k, n, b in getattr(traffic, name)]
    return [*lines, ""]


def in_readme(text: str, rows: list[Row]) -> str:
    """The README with these figures between its marks."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return before + MARKS[0] + "\n".join(_short(rows)) + "\n" + MARKS[1] + after


def _short(rows: list[Row]) -> list[str]:
    lines = [
        f"| spec | least possible | ttrc (launches fwd + bwd) | flash-linear-attention {PEER_VERSION} | ratio |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        ours, theirs = r.traffic["ttrc"], r.traffic.get("fla")
        cells = [_marked(r), f"{sum(r.least.values()):,.0f}", _total(ours)]
        cells += [_total(theirs), f"{theirs.bytes() / ours.bytes():.2f}"] if theirs else ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, *_footnote(rows)]


def _total(traffic: Traffic) -> str:
    return f"{traffic.bytes():,.0f} ({' + '.join(str(traffic.launches(name)) for name in PASSES)})"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.traffic", description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", help="shipped specs; all of them where none is named")
    parser.add_argument("--install", action="store_true", help="fetch fla-core into a folder that goes afterwards")
    parser.add_argument("--out", type=Path, default=HERE / "TRAFFIC.md", help="the page to write")
    given = parser.parse_args(argv)
    rows = []
    with peers_at_hand(given.install):
        for name in given.specs or in_chunks():
            rows.append(row(name))
            print(_summary(rows[-1:])[2], flush=True)
        given.out.write_text(page(rows), encoding="utf-8")
    print(f"wrote {given.out}")
    if not given.specs and given.out == HERE / "TRAFFIC.md":
        README.write_text(in_readme(README.read_text(encoding="utf-8"), rows), encoding="utf-8")
        print(f"wrote {README}")


if __name__ == "__main__":
    main()
