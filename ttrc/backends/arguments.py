"""What a generated package's functions take, carry and return: gates, states, and how they are told to a reader."""

from __future__ import annotations

from collections.abc import Iterable

from ttrc.ir.module import Module
from ttrc.ir.tile import HIDDEN, Tile
from ttrc.language.spec import Spec


def handed(module: Module) -> tuple[Tile, ...]:
    """The states that a pass enters with and leaves with, the same for all forms; a caller's stand first."""
    return tuple(c.state for c in module.forms["recurrent"].forward.carries if not c.private)


def still(module: Module) -> tuple[str, ...]:
    """Parameters that are carried, and never move."""
    return tuple(c.state.name for c in module.forms["recurrent"].forward.carries if c.state == c.next)


def moving(module: Module) -> tuple[str, ...]:
    """The gates that steps take beside the states."""
    fixed = still(module)
    return tuple(g.name for g in (*module.spec.inputs, *module.spec.parameters) if g.name not in fixed)


def expansion(module: Module) -> int:
    """How many times as wide as a key hidden layers are; 0 where there are none."""
    return module.forms["recurrent"].plan.expansion or 0


def quoted(names: Iterable[str]) -> str:
    """What stands in a tuple of names."""
    return "".join(f'"{n}", ' for n in names)


SIZES = {"k": "d_k", "j": "d_k", "v": "d_v", **dict.fromkeys(HIDDEN, "EXPANSION * d_k")}


def shape_text(state: Tile) -> str:
    return "(" + ", ".join([*(SIZES[a] for a in state.axes), ""]) + ")"


def gate_doc(spec: Spec, still: tuple[str, ...], heads: str = "HV") -> str:
    fixed = [g for g in spec.parameters if g.name not in still]
    kinds: dict[str, list[str]] = {}
    for lead, gates in (f"B, T, {heads}", spec.inputs), (heads, fixed):
        for gate in sorted(gates, key=lambda g: len(g.per.axes)):
            shape = ", ".join([lead, *(SIZES[a] for a in gate.per.axes)])
            kinds.setdefault(f"[{shape}]", []).append(gate.name)
    kinds["[HV, d_v]"] = [*kinds.get("[HV, d_v]", []), *still]
    parts = [f"{', '.join(names)} {shape}" for shape, names in kinds.items() if names]
    return "; ".join(parts) + (";" if parts else "no gates;")


def states_doc(states: list[Tile], expansion: int) -> str:
    """The parts of a state and their shapes."""
    widths = {"k": "d_k", "j": "d_k", "v": "d_v", **dict.fromkeys(HIDDEN, f"{expansion} d_k")}
    shapes = [f"[N, HV, {', '.join(widths[a] for a in t.axes)}]" for t in states]
    if len(states) == 1:
        return shapes[0]
    if len(set(shapes)) == 1:
        return f"({', '.join(t.name for t in states)}), each {shapes[0]}"
    return "(" + ", ".join(f"{t.name} {shape}" for t, shape in zip(states, shapes)) + ")"
