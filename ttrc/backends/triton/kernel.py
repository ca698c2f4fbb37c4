"""A planned kernel -> the holes of its skeleton's template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ttrc.backends.triton import substitution
from ttrc.backends.triton.carried import kept_room
from ttrc.backends.triton.docstrings import doc
from ttrc.backends.triton.extents import BLOCK, WIDTH, room, waiting_room
from ttrc.backends.triton.pieces import join_holes
from ttrc.backends.triton.pointers import asks_begins, has_hidden, lead, pointers
from ttrc.backends.triton.stream import stream_holes, walk_holes
from ttrc.backends.triton.writer import Writer
from ttrc.ir.config import WIDE
from ttrc.ir.plan import Kernel, Segment, Skeleton
from ttrc.ir.tile import Substitute, operands
from ttrc.language.spec import Domain
from ttrc.passes.slice_program import slice_program


def holes(kernel: Kernel, domains: dict[str, Domain], tags: dict[str, str]) -> dict[str, object]:
    own = {"name": kernel.name, "doc": doc(kernel)}
    common = own | {"pointers": ", ".join([*(f"{b.name}_ptr" for b in pointers(kernel)), *["ones_ptr"] * kernel.ones])}

    def writer(of: Kernel = kernel, wide: bool = False) -> Writer:
        return Writer(of, domains, tags, wide)

    match kernel.skeleton:
        case Skeleton.JOIN:
            return own | join_holes(kernel)
        case Skeleton.WALK:
            return common | walk_holes(kernel, domains, tags)
        case Skeleton.STREAM:
            return common | {"lead": lead(kernel, domains), **stream_holes(kernel, domains, tags)}
        case Skeleton.ROWS:
            return common | {"lead": lead(kernel, domains), "body": writer().panels()}
        case Skeleton.PARALLEL:
            return common | {
                "axis": kernel.axis,
                "body": writer().panels(),
                "wide": "" if kernel.wide is None else writer(kernel.wide, wide=True).panels(),
                "widest": WIDE.get(kernel.name),
                "lead": lead(kernel, domains),
                "narrow": bool(kernel.narrow),
            }
        case Skeleton.SCAN:
            return common | {"lead": lead(kernel, domains), "hidden": has_hidden(kernel), **_scan(kernel, writer)}
        case Skeleton.STEPS_REVERSE:
            chunks = {"lead": lead(kernel, domains), "checkpoints": writer().checkpoints()}
            return common | chunks | _both_ways(kernel, writer)
        case Skeleton.TOKENS:
            ahead = writer()
            body = ahead.straight(kernel.segments[0])  # which names what the states become
            return common | _by_token(kernel) | {"body": body, **ahead.states(False)}
        case Skeleton.TOKENS_REVERSE:
            return common | _by_token(kernel) | _both_ways(kernel, writer)


def _scan(kernel: Kernel, writer: Callable[..., Writer]) -> dict[str, object]:
    # A chunk's last step is the sequence's last where that ends inside it.
    at_bound = "((i_s + 1) % EVERY == 0) | (i_turn == 0)" if kernel.reverse else "i_s % EVERY == 0"
    walking = kernel if kernel.in_memory else kernel.wide
    ahead, panels = writer(), None if walking is None else writer(walking)
    return {
        "body": "" if kernel.in_memory else ahead.straight(kernel.segments[0]),
        "panels": "" if panels is None else panels.walked(),
        "moving": [] if panels is None else panels.states(kernel.reverse)["states"],
        "width": "" if panels is None else WIDTH[walking.axis],
        "block": "" if panels is None else BLOCK[walking.axis],
        "step": "steps - 1 - i_turn" if kernel.reverse else "i_turn",
        "at_bound": at_bound,
        "begins": asks_begins(kernel),
        "starts": kernel.asks_start,
        "waiting": waiting_room(*kernel.room),
        "numbered": kernel.numbered,
        "partial": kernel.partial,
        "totals": ahead.totals(),
        **ahead.states(kernel.reverse),
    }


def _by_token(kernel: Kernel) -> dict[str, object]:
    return {"hidden": has_hidden(kernel), "begins": asks_begins(kernel), "kept": kept_room(kernel)}


def _both_ways(kernel: Kernel, writer: Callable[..., Writer]) -> dict[str, object]:
    """Of a kernel that walks backwards, and makes states again ahead of itself."""
    forward, backward = writer(), writer()
    again, body = forward.straight(_forward_part(kernel)), backward.straight(_backward_part(kernel))
    ahead, back = forward.states(False), backward.states(True)
    return {
        "again": again,
        "body": body,
        "states": ahead["states"],
        "advance": ahead["advance"],
        "cotangents": back["states"],
        "retreat": back["advance"],
        "size": back["size"],
        "room": room(*(c.state for c in kernel.carries if not c.reverse)),
        "totals": writer().totals(),
    }


def functions(kernel: Kernel, domains: dict[str, Domain]) -> list[str]:
    """The functions that a kernel calls, one for each substitution."""
    stored = {b.tile: b for b in kernel.loads}
    solved = [s.op for s in kernel.statements if isinstance(s.op, Substitute)]
    return [substitution.function(kernel.name, op, stored, domains) for op in solved]


def _forward_part(kernel: Kernel) -> Segment:
    """What carries the states over one token, out of a token's whole adjoint."""
    (segment,) = kernel.segments
    carries = [c for c in kernel.carries if not c.reverse]
    following, states = [c.next for c in carries], frozenset(c.state for c in carries)
    statements = slice_program(segment.statements, following, states)
    used = {t for s in statements for t in operands(s.op)}
    loads = tuple(b for b in segment.loads if b.tile in used)
    return Segment(False, loads, statements, (), ())


def _backward_part(kernel: Kernel) -> Segment:
    """The rest, which makes some of that again."""
    (segment,) = kernel.segments
    results = [*(b.tile for b in segment.stores), *(c.next for c in kernel.carries if c.reverse)]
    return replace(segment, statements=slice_program(segment.statements, results))
