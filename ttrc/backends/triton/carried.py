"""What a kernel carries, as its template's holes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ttrc.backends.triton.extents import extent, offset, room
from ttrc.backends.triton.printer import TAKEN, shape
from ttrc.backends.triton.states import load_block, load_state, store_block, store_state
from ttrc.ir.plan import Kernel
from ttrc.ir.tile import Tile


@dataclass(frozen=True)
class State:
    """A carried tile, where it lies among those that are handed in, and among all that are kept; "" at their start.

    In panels it is one of these, which begins where `begins` says. A private one is not handed in; where states are not
    on chip `waits` puts it where it waits.
    """

    tile: Tile
    handed: str | None
    kept: str
    block: str
    begins: dict[str, str]
    waits: str

    @property
    def name(self) -> str:
        return TAKEN.get(self.tile.name, self.tile.name)

    @property
    def zeros(self) -> str:
        return f"tl.zeros({shape(self.tile)}, tl.float32)"

    def load(self, base: str) -> str:
        return load_state(base, self.tile, self.begins)

    @property
    def in_panels(self) -> bool:
        return any(a in self.begins for a in self.tile.axes if a != "v")

    def store(self, base: str) -> str:
        return store_state(base, self.name, self.tile, self.begins)

    def begin(self) -> str:
        """From where it enters to where it will be left, or will wait."""
        if self.handed is None:
            return f"{self.name} = {self.zeros}\n{self.waits}"
        lines = [
            f"{self.name} = {self.zeros}",
            "if ENTER:",
            f"    {self.name} += {self.load(f'enter_ptr + own{self.handed}')}",
        ]
        return "\n".join([*lines, self.store(f"leave_ptr + own{self.handed}")])

    def pop(self, base: str) -> str:
        return load_block(base + self.block, self.tile)

    def push(self, base: str, number: str = "i_in") -> str:
        return store_block(base + self.block, self.name, self.tile, number)


def carried_states(
    kernel: Kernel,
    reverse: bool,
    begins: dict[str, str],
    name: Callable[[Tile], str],
    steps: str = "BT",
    waits: Mapping[Tile, str] = MappingProxyType({}),
) -> dict:
    """The carried tiles, the line that moves them on, and the room that they take; `name` gives a tile's variable, and
    a trail has room for so many `steps`. `waits` puts those that are neither on chip nor left where they wait."""
    carries = [c for c in kernel.carries if c.reverse is reverse]
    every, handed = tuple(c.state for c in carries), tuple(c.state for c in kernel.carried(reverse))
    states = [
        State(
            c.state,
            None if c.private else offset(c.state, handed),
            offset(c.state, every),
            f" + {steps} * {room(*every[:i])}" if i else "",
            begins,
            waits.get(c.state, ""),
        )
        for i, c in enumerate(carries)
    ]
    names, following = ", ".join(s.name for s in states), ", ".join(name(c.next) for c in carries)
    return {"states": states, "advance": f"{names} = {following}", "size": extent(*handed)}


def kept_room(kernel: Kernel) -> str:
    """The room of all that is carried forward, private states among it."""
    return extent(*(c.state for c in kernel.carries if not c.reverse))
