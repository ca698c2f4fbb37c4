"""Buffers as Triton loads and stores: the address arithmetic of every space, in one place."""

from __future__ import annotations

from ttrc.backends.triton.extents import BLOCK, VALUES, WIDTH, extent, offset, waiting_room
from ttrc.backends.triton.states import load_block, load_state, store_block, store_state
from ttrc.ir.plan import Buffer, Space
from ttrc.ir.tile import HIDDEN, Tile, row_axes
from ttrc.language.spec import Domain

# Where channels begin, by the axis that a kernel walks. Those that walk key channels hold all value channels.
FIRST = {"v": VALUES, "k": {"k": "i_p * BK"}} | {a: VALUES | {a: "i_p * BH"} for a in HIDDEN}
ROWS = {"t": ("token", "left"), "s": ("token", "left")}
OWN_ROWS = ROWS | {"t": ("t_first", "t_left")}  # where a program has a block of a chunk's rows, "t", and sees all, "s"
TOKENS = {"t": "BT", "s": "BT"}
OWN_TOKENS = TOKENS | {"t": "BR"}
# Of what heads of a call may share: which of its heads is the program's, and how many it has.
SHARED = {
    Space.QUERY_TOKEN: ("i_q", "HQ"),
    Space.KEY_TOKEN: ("i_k", "H"),
    Space.VALUE_TOKEN: ("i_v", "HV"),
    Space.GROUP_TOKEN: ("i_g", "HG"),
}
# What a gate reads as past the end of a sequence, and of its channels where it has some: inside of its domain, so that
# nothing in the padding is ever inf or nan.
INTERIOR = {
    Domain.REAL: 0.0,
    Domain.POSITIVE: 1.0,
    Domain.NONNEGATIVE: 1.0,
    Domain.NEGATIVE: -1.0,
    Domain.UNIT: 0.5,
    Domain.DECAY: 1.0,
    Domain.LOG_DECAY: 0.0,
}


class ChunkMemory:
    """Rows of one chunk: `token` is its first token, `left` how many there are, `i_chunk` its number."""

    def __init__(
        self,
        domains: dict[str, Domain],
        begins: dict[str, str] = VALUES,
        rows: dict[str, tuple[str, str]] = ROWS,
        tokens: dict[str, str] = TOKENS,
        number: str = "i_chunk",
        partial: bool = False,
        heads: str = "HV",
        along: str = "",
    ):
        """`begins` says where the channels of a tile begin, axis by axis; `rows`, of either role, what the first token
        and the count of those that are left are called, `tokens` how many a tile holds; `number` what chunks are
        counted by of which all lie there. `partial`: what is stored without value channels is a share of a sum.
        `heads`: what the number of a call's heads is called. Tokens of the role that is `along`, if any, are columns of
        tiles, so that numbers of theirs lie along the rows."""
        self.domains, self.begins, self.rows, self.tokens = domains, begins, rows, tokens
        self.number, self.partial, self.heads, self.along = number, partial, heads, along

    def load(self, buffer: Buffer) -> str:
        base, row = self._base(buffer)
        match buffer.space, buffer.tile.axes:
            case ((Space.CHUNK | Space.START | Space.SEQUENCE), _):
                return load_state(base, buffer.tile, self.begins)
            case Space.HEAD, (("k" | "v"), *_):  # once for all tokens
                return self._of_token(buffer, _of_head(buffer))
            case Space.HEAD, (_, _):
                return self._rows(buffer, self.tokens[buffer.tile.axes[0]])
            case Space.HEAD, _:
                tokens = self.tokens[buffer.tile.axes[0]]
                return f"tl.full([{tokens}], tl.load({buffer.name}_ptr + i_h).to(tl.float32), tl.float32)"
            case Space.NUMBER, ():
                return f"tl.load({base})"
            case Space.NUMBER, (axis,):
                return f"load_row({base}, {WIDTH[axis]}, {BLOCK[axis]}, {self._column(axis)})"
            case Space.WAITING, _:
                return load_block(base, buffer.tile, self._number(buffer.tile))
            case _, (("t" | "s") as role,):
                rows = f"{base}, {', '.join(self.rows[role])}, {row}, {self.tokens[role]}"
                if role in self.along:
                    x = f"load_along({rows}, {self._other(buffer)})"
                    return x if buffer.double else f"{x}.to(tl.float32)"
                return f"load_double({rows})" if buffer.double else f"load_vector({rows}, {self._other(buffer)})"
            case _, ("t", "s"):
                return f"load_lower({base}, token, left, {row}, BT)"
            case _, (("t" | "s") as role, _):
                return self._rows(buffer, self.tokens[role], *self.rows[role])
            case _, ("t", "k", "v"):
                return f"load_entries({base}, {row}, {self._entries()}, {self._other(buffer)})"
        raise AssertionError(buffer)

    def _of_token(self, buffer: Buffer, at: str) -> str:
        """Channels of one token, or of all of them, in float32."""
        *down, axis = buffer.tile.axes
        window = f"{BLOCK[axis]}, {self._column(axis)}, {self._other(buffer)}"
        if down:
            rows = f"0, {WIDTH[down[0]]}, {WIDTH[axis]}, {WIDTH[axis]}, {BLOCK[down[0]]}"
            return f"load_gate({at}, {rows}, {window})"
        return f"load_gate_row({at}, {WIDTH[axis]}, {window})"

    def _entries(self) -> str:
        """The tokens and channels of a tile that has both kinds of these."""
        rows = ", ".join(self.rows["t"])
        return f"{rows}, K, V, {self.tokens['t']}, BK, BV, {self._column('v')}"

    def factor(self, buffer: Buffer) -> str:
        """A gate that only products take."""
        base, row = self._base(buffer)
        role, axis = buffer.tile.axes
        window = f"{', '.join(self.rows[role])}, {row}, {WIDTH[axis]}, {self.tokens[role]}, {BLOCK[axis]}"
        return f"load_factor({base}, {window}, {self._column(axis)}, dtype)"

    def begin(self, buffer: Buffer) -> str:
        """Where a state begins."""
        return _base(buffer, *self._where(buffer))[0]

    def lower(self, buffer: Buffer, part: str, rows: int) -> str:
        """Of a causal tile "rows" or "columns" of block `i_block`, so many, the other axis whole, or the "block" where
        they meet."""
        base, row = self._base(buffer)
        return f"load_lower_{part}({base}, token, left, {row}, i_block, {'' if part == 'block' else 'BT, '}{rows})"

    def one(self, buffer: Buffer, token: str, present: str) -> str:
        """That of one token, where it is present."""
        base, row = self._base(buffer)
        return f"tl.load({base} + ({token}) * {row}, mask={present}, other=0.0)"

    def corner(self, buffer: Buffer) -> tuple[str, str]:
        """Where that block begins, and the distance from one of its rows to the next."""
        base, row = self._base(buffer)
        return f"{base} + (token + i_block * 16) * {row} + i_block * 16", row

    def block_begin(self, buffer: Buffer, rows: int) -> tuple[str, str]:
        """Where the rows of block `i_block` begin, and the distance from one to the next."""
        if buffer.space is Space.HEAD:
            return _of_head(buffer), "0"
        base, row = _base(buffer, *self._where(buffer))
        return f"{base} + (token + i_block * {rows}) * {row}", row

    def row_of_block(self, buffer: Buffer, begin: str, stride: str) -> str:
        """Row t of such a block, in float32."""
        at, other = f"{begin}, {stride}, t, left", self._other(buffer)
        match buffer.tile.axes:
            case (_,):
                return f"number_of_block({at}, {other})"
            case _, axis:
                return f"row_of_block({at}, {WIDTH[axis]}, {BLOCK[axis]}, {self._column(axis)}, {other})"
        raise AssertionError(buffer)

    def store_block(self, buffer: Buffer, name: str) -> str:
        """Of a tile [t, v] that waits the rows of block `i_block`."""
        base, _ = _base(buffer, *self._where(buffer))
        width = BLOCK[buffer.tile.axes[1]]
        return f"store_rows({base}, {name}, i_block * 16, 16, {width}, {width}, 16, {width}, 0)"

    def block(self, buffer: Buffer, rows: int) -> str:
        """Of a tile [t, v] the rows of block `i_block`, so many."""
        return self._rows(buffer, str(rows), f"token + i_block * {rows}", f"left - i_block * {rows}")

    def _rows(self, buffer: Buffer, rows: str, first: str = "token", left: str = "left") -> str:
        base, row = self._base(buffer)
        _, axis = buffer.tile.axes
        width, block, column = WIDTH[axis], BLOCK[axis], self._column(axis)
        if buffer.space is Space.HEAD:
            one = f"load_gate_row({_of_head(buffer)}, {width}, {block}, {column}, {self._other(buffer)})"
            return f"tl.broadcast_to({one}[None, :], [{rows}, {block}])"
        window = f"{first}, {left}, {row}, {width}, {rows}, {block}, {column}"
        other = self._other(buffer)
        return f"load_gate({base}, {window}, {other})" if buffer.single or other else f"load_rows({base}, {window})"

    def store(self, buffer: Buffer, name: str) -> str:
        base, row = self._base(buffer)
        if self.partial and not _has_values(buffer.tile):
            base = f"{base} + partial * {row}"
        match buffer.space, buffer.tile.axes:
            case ((Space.TOTAL | Space.SEQUENCE), _):
                return store_state(base, name, buffer.tile, self.begins)
            case Space.CHUNK, _:
                # All rows or none: with a store that only some of a loop's steps reach, Triton 3.6 fails for sm_100.
                return store_state(base, name, buffer.tile, self.begins, "at_bound")
            case Space.NUMBER, ():
                return f"tl.store({base}, {name})"
            case Space.NUMBER, (axis,):
                return f"store_row({base}, {name}, {WIDTH[axis]}, {BLOCK[axis]}, {self._column(axis)})"
            case Space.WAITING, _:
                return store_block(base, name, buffer.tile, self._number(buffer.tile))
            case _, (("t" | "s") as role,):
                return f"store_vector({base}, {name}, {', '.join(self.rows[role])}, {row}, {self.tokens[role]})"
            case _, ("t", "s"):
                return f"store_lower({base}, {name}, token, left, {row}, BT)"
            case _, (("t" | "s") as role, axis):
                rows, block, column = ", ".join(self.rows[role]), BLOCK[axis], self._column(axis)
                return (
                    f"store_rows({base}, {name}, {rows}, {row}, {WIDTH[axis]}, {self.tokens[role]}, {block}, {column})"
                )
            case _, ("t", "k", "v"):
                return f"store_entries({base}, {name}, {row}, {self._entries()})"
        raise AssertionError(buffer)

    def _other(self, buffer: Buffer) -> float:
        return INTERIOR[self.domains.get(buffer.name, Domain.REAL)]

    def _number(self, tile: Tile) -> str:
        """Which of the panels that lie one behind the other it is, where it is one of several."""
        return "i_p" if any(a in self.begins for a in tile.axes if a != "v") else "0"

    def _column(self, axis: str) -> str:
        return self.begins.get(axis, "0")

    def _base(self, buffer: Buffer) -> tuple[str, str]:
        """A pointer expression for the program's head, and the distance from one token to the next."""
        if buffer.space is Space.NUMBER:
            where = f"{self.number} * {self.heads} + i_h"
            size = "".join(f" * {WIDTH[a]}" for a in buffer.tile.axes)
            return f"{buffer.name}_ptr + " + (f"({where}){size}" if size else where), ""
        return _base(buffer, *self._where(buffer))

    def _where(self, buffer: Buffer) -> tuple[str, str]:
        """Which head, of how many. Cotangents of what heads share come for each; the launcher sums the groups."""
        if buffer.space is Space.KEY_TOKEN and buffer.name.startswith("d_"):
            return "i_h", self.heads
        return SHARED.get(buffer.space, ("i_h", self.heads))


class TokenMemory(ChunkMemory):
    """One row: the token itself. Cotangents without a value axis are written as partial sums, one a value block."""

    def load(self, buffer: Buffer) -> str:
        base, row = self._base(buffer)
        at = _of_head(buffer) if buffer.space is Space.HEAD else f"{base} + token * {row}"
        match buffer.tile.axes:
            case ():
                return f"tl.load({at}).to(tl.float32)"
            case (_,) if buffer.single or self._other(buffer):
                return self._of_token(buffer, at)
            case (_, _):
                return self._of_token(buffer, at)
            case (axis,):
                return f"load_row({at}, {WIDTH[axis]}, {BLOCK[axis]}, {self._column(axis)})"
        raise AssertionError(buffer)

    def store(self, buffer: Buffer, name: str) -> str:
        if buffer.space is Space.TOTAL:
            return super().store(buffer, name)
        base, row = self._base(buffer)
        token = "token" if _has_values(buffer.tile) else "(partial + token)"
        match buffer.tile.axes:
            case ():
                return f"tl.store({base} + {token} * {row}, {name}.to({buffer.name}_ptr.dtype.element_ty))"
            case (axis,):
                return (
                    f"store_row({base} + {token} * {row}, {name}, {WIDTH[axis]}, {BLOCK[axis]}, {self._column(axis)})"
                )
            case (down, axis):
                window = f"{WIDTH[axis]}, {BLOCK[down]}, {BLOCK[axis]}, {self._column(axis)}"
                return f"store_rows({base} + token * {row}, {name}, 0, {WIDTH[down]}, {WIDTH[axis]}, {window})"
        raise AssertionError(buffer)


def _has_values(tile: Tile) -> bool:
    return "v" in tile.axes


def _of_head(buffer: Buffer) -> str:
    """Where a parameter begins, which has no token."""
    return f"{buffer.name}_ptr + i_h{_width(buffer)}"


def _width(buffer: Buffer) -> str:
    return "".join(f" * {WIDTH[a]}" for a in row_axes(buffer.tile))


def _base(buffer: Buffer, head: str, heads: str) -> tuple[str, str]:
    if buffer.space in (Space.CHUNK, Space.START):
        own, size = offset(buffer.tile, buffer.parts), extent(*buffer.parts)
        chunk = "i_chunk" if buffer.space is Space.CHUNK else "i_start"
        return f"{buffer.name}_ptr + ({chunk} * {heads} + i_h) * {size}{own}", ""
    if buffer.space is Space.TOTAL:
        return f"{buffer.name}_ptr + (i_n * {heads} + i_h) * {extent(buffer.tile)}", ""
    if buffer.space is Space.SEQUENCE:
        return f"{buffer.name}_ptr + own{offset(buffer.tile, buffer.parts)}", ""
    if buffer.space is Space.WAITING:
        own = [i for i, t in enumerate(buffer.parts) if t == buffer.tile]  # twice, if rounded too
        before = buffer.parts[: own[0 if buffer.single else -1]]
        base = "waiting" + (f" + {waiting_room(*before)}" if before else "")
        return base if buffer.single else f"({base}).to(tl.pointer_type(dtype))", ""
    width = _width(buffer)
    return f"{buffer.name}_ptr + {head}{width}", f"{heads}{width}" if width else heads
