"""A plan as a drawing: kernels top to bottom in launch order, the caller's tensors left, what crosses right.

Each buffer that crosses has a lane of its own, a vertical line from the kernel that stores it to the last that loads
it, and each kernel a port of its own for every lane it touches, so that no two labels can meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from ttrc.ir.cost import Budget
from ttrc.ir.plan import Buffer, Kernel, Plan, Skeleton
from ttrc.tools.account import passes, runs, shaped

WIDTH = 1000
BOX_LEFT, BOX_RIGHT = 300, 610
LANES_LEFT, LANE_STEP = 660, 95  # the first lane, and at most how far apart two stand
CHIP, CHIP_GAP, LETTER = 22, 6, 7.3  # a chip's height, the space between two, the width of one letter
ROW, GAP, TOP = 32, 34, 58  # a port's height, the space between two kernels, where the first one starts
INK, IN_PARALLEL, IN_ORDER = "#4a5563", "#e7f0fb", "#fdf1dc"
AT_ONCE = (Skeleton.PARALLEL, Skeleton.ROWS, Skeleton.STREAM)
FILL = {skeleton: IN_PARALLEL if skeleton in AT_ONCE else IN_ORDER for skeleton in Skeleton}


@dataclass(frozen=True)
class Lane:
    """A buffer that crosses: the numbers of the kernels that store and load it, and where its line runs."""

    buffer: Buffer
    source: int
    sinks: tuple[int, ...]
    x: float


@dataclass(frozen=True)
class Place:
    """Where a kernel stands, and the caller's tensors beside it."""

    kernel: Kernel
    direction: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    top: float
    height: float


def draw(plan: Plan, budgets: dict[str, Budget]) -> str:
    """SVG text. `budgets` holds the cost of each pass, "forward" and "backward"."""
    kernels = [(direction, k) for direction, own in passes(plan) for k in own]
    lanes = _lanes(plan, [k for _, k in kernels])
    places = _places(kernels, lanes)
    spent = {name: traffic for b in budgets.values() for name, traffic in b.kernels}
    height = places[-1].top + places[-1].height + 24
    parts = [_headings(), *_stripes(places)]
    for place in places:
        parts += [_box(place, spent[place.kernel.name]), *_caller(place)]
    parts += [_lane(lane, places, lanes) for lane in lanes]
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="dataflow of the {escape(plan.form)} form">{"".join(parts)}</svg>'
    )


def _lanes(plan: Plan, kernels: list[Kernel]) -> tuple[Lane, ...]:
    """In the order of their sources: a lane's label then stands above every line that begins to its right."""
    touched = {
        buffer: [i for i, k in enumerate(kernels) if buffer in (*k.loads, *k.stores) or _keeps(k, plan, buffer)]
        for buffer in (*plan.saved, *plan.scratch)
    }
    order = sorted(touched, key=lambda buffer: touched[buffer][0])
    widest = max((LETTER * len(shaped(b)) for b in order), default=0)
    step = min(LANE_STEP, (WIDTH - 16 - widest - LANES_LEFT) / max(len(order) - 1, 1))
    return tuple(
        Lane(buffer, touched[buffer][0], tuple(touched[buffer][1:]), LANES_LEFT + step * number)
        for number, buffer in enumerate(order)
    )


def _keeps(kernel: Kernel, plan: Plan, buffer: Buffer) -> bool:
    """Checkpoints that a token kernel keeps are no store of its body: they are the carried state itself."""
    listed = any(buffer in k.stores for k in (*plan.forward, *plan.backward))
    return not listed and any(c.state == buffer.tile for c in kernel.carries)


def _places(kernels: list[tuple[str, Kernel]], lanes: tuple[Lane, ...]) -> list[Place]:
    crossing = {lane.buffer for lane in lanes}
    places, top, before = [], float(TOP), "forward"
    for number, (direction, kernel) in enumerate(kernels):
        reads = [b.name for b in kernel.loads if b not in crossing]
        writes = [b.name for b in kernel.stores if b not in crossing]
        for carry in kernel.carries:
            if carry.reverse:
                reads, writes = [*reads, "d_final_state"], [*writes, "d_initial_state"]
            elif direction == "forward":
                reads, writes = [*reads, "initial_state"], [*writes, "final_state"]
        top += GAP if direction != before else 0
        ports = sum(number in (lane.source, *lane.sinks) for lane in lanes)
        height = max(84, ROW * ports + 14, _chips_height(reads) + _chips_height(writes) + 26)
        places.append(Place(kernel, direction, tuple(reads), tuple(writes), top, height))
        top, before = top + height + GAP, direction
    return places


def _box(place: Place, traffic) -> str:
    x, y = BOX_LEFT + 16, place.top + place.height / 2
    moved = f"reads {traffic.read_bytes:,.0f} B, writes {traffic.written_bytes:,.0f} B"
    return (
        f'<rect x="{BOX_LEFT}" y="{place.top:g}" width="{BOX_RIGHT - BOX_LEFT}" height="{place.height:g}" rx="6" '
        f'fill="{FILL[place.kernel.skeleton]}" stroke="{INK}" stroke-width="1.2"/>'
        + _text(x, y - 14, place.kernel.name, "kernel")
        + _text(x, y + 6, runs(place.kernel), "quiet")
        + _text(x, y + 25, f"{len(place.kernel.statements)} statements; {moved}", "quiet")
    )


def _caller(place: Place) -> list[str]:
    """The caller's tensors: read ones above, written ones below, each group with its arrow."""
    parts, right = [], BOX_LEFT - 44
    reads, writes = _chips_height(place.reads), _chips_height(place.writes)
    top = place.top + (place.height - reads - writes - 14) / 2
    if place.reads:
        parts += _chips(place.reads, right, top)
        parts.append(_arrow(right + 6, top + reads / 2, BOX_LEFT))
    if place.writes:
        below = top + reads + 14
        parts += _chips(place.writes, right, below)
        parts.append(_arrow(BOX_LEFT, below + writes / 2, right + 6))
    return parts


def _chip_rows(names) -> list[list[str]]:
    """Names in rows that fit beside the boxes."""
    rows: list[list[str]] = [[]]
    for name in names:
        if rows[-1] and sum(_chip_width(n) + CHIP_GAP for n in [*rows[-1], name]) > BOX_LEFT - 52:
            rows.append([])
        rows[-1].append(name)
    return rows


def _chip_width(name: str) -> float:
    return LETTER * len(name) + 14


def _chips_height(names) -> float:
    return (CHIP + CHIP_GAP) * len(_chip_rows(names)) - CHIP_GAP if names else 0


def _chips(names, right: float, top: float) -> list[str]:
    parts = []
    for number, row in enumerate(_chip_rows(names)):
        x = right
        y = top + number * (CHIP + CHIP_GAP)
        for name in reversed(row):
            width = _chip_width(name)
            x -= width
            parts.append(
                f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{CHIP}" rx="4" fill="#ffffff" stroke="#aab4c0"/>'
                + _text(x + width / 2, y + 15, name, "chip")
            )
            x -= CHIP_GAP
    return parts


def _port(number: int, lane: Lane, places: list[Place], lanes: tuple[Lane, ...]) -> float:
    """The height at which a kernel touches a lane: what it loads above what it stores."""
    loads = [x for x in lanes if number in x.sinks]
    stores = [x for x in lanes if number == x.source]
    place, ports = places[number], [*loads, *stores]
    return place.top + (place.height - ROW * len(ports)) / 2 + ROW * (ports.index(lane) + 0.5)


def _lane(lane: Lane, places: list[Place], lanes: tuple[Lane, ...]) -> str:
    start = _port(lane.source, lane, places, lanes)
    ends = [_port(sink, lane, places, lanes) for sink in lane.sinks]
    last = max(ends, default=start)
    parts = [_path(f"M{BOX_RIGHT} {start:g} H{lane.x:g} V{last:g}")]
    parts += [_arrow(lane.x, y, BOX_RIGHT) for y in ends]
    parts += [f'<circle cx="{lane.x:g}" cy="{y:g}" r="2.6" fill="{INK}"/>' for y in ends if y != last]
    parts.append(_text(lane.x + 8, start + 4, shaped(lane.buffer), "lane"))
    return "".join(parts)


def _headings() -> str:
    return (
        _text(BOX_LEFT - 44, 20, "the caller's tensors", "heading end")
        + _text((BOX_LEFT + BOX_RIGHT) / 2, 20, "kernels, in launch order", "heading middle")
        + _text(LANES_LEFT, 20, "from kernel to kernel", "heading")
    )


def _stripes(places: list[Place]) -> list[str]:
    """The name of each pass above its first kernel."""
    firsts = {p.direction: p for p in reversed(places)}
    return [
        f'<path d="M8 {p.top - 12:g} H{WIDTH - 8}" stroke="#d5dbe2" stroke-dasharray="3 4"/>'
        + _text(8, p.top - 17, f"{p.direction} pass", "pass")
        for p in firsts.values()
    ]


def _arrow(x: float, y: float, to: float) -> str:
    back = -8 if to > x else 8
    return _path(f"M{x:g} {y:g} H{to + back / 2:g}") + f'<path d="M{to:g} {y:g} l{back} -3.5 v7 z" fill="{INK}"/>'


def _path(d: str) -> str:
    return f'<path d="{d}" fill="none" stroke="{INK}" stroke-width="1.3"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>'
