"""Sequences that are cut into pieces: the lines of op.py that cut them, and the holes of the kernels that join."""

from __future__ import annotations

from ttrc.backends.triton.extents import WIDTH as OWN_WIDTH
from ttrc.backends.triton.extents import extent, offset
from ttrc.backends.triton.widths import WIDTH, numbers, room
from ttrc.ir.crossing import Crossing
from ttrc.ir.plan import UNIT, Kernel, Launch, Plan
from ttrc.ir.tile import Tile


def cut_lines(plan: Plan, way: tuple[Launch, ...], direction: str) -> list[str]:
    """The segments, and the float32 states that cross between their launches."""
    sparse, crossing = direction == "forward" and len(plan.cuts) > 1, plan.crossing
    whole = "kept, segments, every * chunk, v.device" if sparse else "layout, segments, chunk, v.device"
    every = ", every" if sparse and any(x.kernel.numbered for x in way) else ""
    entry = ", ".join(WIDTH[a] for a in crossing.entry)
    return [
        f"pieces = cut({whole}{every})",
        f"sums = v.new_empty(pieces.sequences, v.shape[2], {room(crossing.states)}, dtype=torch.float32)",
        "starts = torch.empty_like(sums)",
        f"{UNIT} = units(sums, {entry})",
        f"transition = {'torch.empty_like(unit)' if any(x.crosses for x in way) else 'unit'}",
    ]


def columns(crossing: Crossing) -> str:
    """How many columns states have while they are found to cross: those of unit matrices, none, or value channels."""
    if crossing.products:
        return ", columns=unit.shape[-1]"
    return "" if "v" in crossing.entry else ", columns=1"


def join_sizes(plans: dict[str, Plan]) -> dict[str, object]:
    """What the launch of a join wants to know."""
    found = next((p.crossing for p in plans.values() if p.crossing is not None), None)
    if found is None:
        return {"joins": False, "members": 0, "products": False, "largest": ""}
    sizes = tuple(dict.fromkeys(numbers((s,)) for s in found.states))
    largest = sizes[0] if len(sizes) == 1 else f"max({', '.join(sizes)})"
    return {"joins": True, "members": found.members, "products": found.products, "largest": largest}


def join_holes(kernel: Kernel) -> dict[str, object]:
    """States by group, each with where it lies among all, and what each member of a group is made of."""
    crossing = kernel.crossing
    share = " * ".join(OWN_WIDTH[a] for a in crossing.entry)
    return {
        "products": crossing.products,
        "size": extent(*crossing.states),
        "share": share,
        "groups": [_group(group, crossing) for group in crossing.groups],
        "members": crossing.members,
        "reverse": kernel.reverse,
    }


def _group(group: tuple[Tile, ...], crossing: Crossing) -> dict[str, object]:
    rest = () if crossing.products else group[0].axes[len(crossing.entry) :]
    width = " * ".join(OWN_WIDTH[a] for a in rest)
    return {
        "states": [{"name": s.name, "at": offset(s, crossing.states)} for s in group],
        "numbers": extent(group[0]),
        "entry": "e" + (f" // {width}" if len(rest) == 1 else f" // ({width})" if rest else ""),
    }
