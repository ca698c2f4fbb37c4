"""A nonlinear substitution as Triton: blocks of 16 rows, in each of them row after row. Of several unknowns these are
rows of all of them, of fewer tokens, and one product takes them off: as many numbers rest in registers as of one.

A thread holds the rows of its own value channels, so that what a row takes off the next ones passes through no other
thread; entries of the matrix, and gates, are numbers that all threads read from shared memory, when they need them. A
row is a tile with one row: it is spread over threads as those of a block are, which makes rows a block again where they
are. A block that is done is taken off the rows still to come by one product. Names that begin with _ are nobody
else's: no tile's and no gate's does.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.backends.triton.memory import ChunkMemory
from ttrc.backends.triton.printer import TritonPrinter
from ttrc.ir.plan import Buffer, Kernel
from ttrc.ir.tile import Statement, Substitute, Tile, Written, meets_in_rows, operands, row_axes, taken
from ttrc.language.spec import Domain
from ttrc.passes.slice_program import renamed_operands


def function_name(kernel: str, op: Substitute) -> str:
    """No gate begins so, and hides it."""
    return f"_{kernel}_{op.written[0].name}"


def function(kernel: str, op: Substitute, stored: dict[Tile, Buffer], domains: dict[str, Domain]) -> str:
    """The text of a function: what is written in the 16 rows of a block."""
    rows, every = _rows(op), range(len(op.bases))
    by_row = _by_row(op, stored)
    given = [a for t in rows for a in (_argument(t), *([_stride(t)] if t in by_row else []))]
    begins = [_numbered("_begin", op, i) for i in every]
    matrices = [_numbered("_matrix", op, i, j) for i in every for j in every]
    stride = ["_stride"] if meets_in_rows(op) else []
    arguments = ", ".join([*begins, *given, *matrices, *stride, "left", "i_v"])
    written = [f"_{w.name}" for w in op.written]
    turns = [_turn(op, i, stored, domains) for i in every]
    lines = [
        "@triton.jit",
        f"def {function_name(kernel, op)}({arguments}, V: tl.constexpr, BV: tl.constexpr):",
        f'    """{_told(op)}"""',
        *(f"    {name} = tl.zeros([{op.block}, BV], tl.float32)" for name in written),
        *(f"    {_numbered('_done', op, i)} = ()" for i in every),
        f"    for t in tl.static_range({f'{op.block - 1}, -1, -1' if op.transposed else op.block}):",
        *(f"        {line}" for turn in (reversed(turns) if op.transposed else turns) for line in turn),
        f"    return {', '.join(written)}",
    ]
    return "\n".join(lines)


def _told(op: Substitute) -> str:
    turned, equations = "'" if op.transposed else "", []
    for i, x in enumerate(op.unknowns):
        terms = (f" - {_matrix(op, i, j)[1:]}{turned} @ {w.name}" for j, w in enumerate(op.written))
        equations.append(f"{x.name} = {_numbered('begin', op, i)}{''.join(terms)}")
    written = ", ".join(w.name for w in op.written)
    return f"{written} of {op.block} rows, {', '.join(equations)}, all of them cut into rows."


def _turn(op: Substitute, i: int, stored: dict[Tile, Buffer], domains: dict[str, Domain]) -> list[str]:
    """A row's turn of one unknown. What is known last it takes off last, for sums stay in their order."""
    printer, memory, by_row = TritonPrinter(set()), ChunkMemory(domains), _by_row(op, stored)
    x, body, meets = op.unknowns[i].name, op.bodies[i], meets_in_rows(op)
    written, order = body[-1].target.name, list(range(len(op.bases)))
    order, way = (order[::-1], "column") if op.transposed else (order, "line")
    lines = [f"{x} = {_numbered('_begin', op, i)}[t]"]
    if meets:
        lines += [f"{_line(op, i, j)} = numbers_of(load_{way}({_matrix(op, i, j)}, _stride, t, left))" for j in order]
    entry, before, which = f"{op.block} * t + _s", "t", "_s"
    if op.transposed:
        entry, before, which = f"{op.block} * _s + t", f"{op.block - 1}, t, -1", f"{op.block - 1} - _s"
    lines.append(f"for _s in tl.static_range({before}):")
    for j in order:
        by = f"{_line(op, i, j)}[_s]" if meets else f"{_matrix(op, i, j)}[{entry}]"
        lines.append(f"    {x} -= {by} * {_numbered('_done', op, j)}[{which}]")
    for j in (j for j in order if op.sees_own(i, j)):
        by = f"{_line(op, i, j)}[t]" if meets else f"{_matrix(op, i, j)}[{op.block + 1} * t]"
        lines.append(f"{x} -= {by} * {op.written[j].name}")
    rows = [t for t in _rows(op) if t in taken(body, op.unknowns[i])]
    lines += [f"{t.name} = {_argument(t)}[t]" for t in rows if t.axes and t not in by_row]
    lines += [f"{t.name} = {memory.row_of_block(stored[t], _argument(t), _stride(t))}" for t in rows if t in by_row]
    lines += [line for s in body for line in printer.lines(_of_a_row(s))]
    done = _numbered("_done", op, i)
    return [
        *lines,
        f"_{written} = tl.where(tl.arange(0, {op.block})[:, None] == t, {written}, _{written})",
        f"{done} = {done} + ({written},)",
    ]


def _numbered(name: str, op: Substitute, *numbers: int) -> str:
    """Of one of several unknowns."""
    return name if len(op.bases) == 1 else f"{name}_{''.join(str(n + 1) for n in numbers)}"


def _matrix(op: Substitute, i: int, j: int, name: str = "_matrix") -> str:
    """What unknown i takes by what j writes: as an argument of the function."""
    return _numbered(name, op, *((j, i) if op.transposed else (i, j)))


def _line(op: Substitute, i: int, j: int) -> str:
    """Its row, or column, of the row at hand."""
    return _matrix(op, i, j, "_line")


def reads_back(kernel: Kernel) -> bool:
    """Whether what its rows have written waits in memory."""
    return any(isinstance(s.op, Written) for s in kernel.statements)


def _by_row(op: Substitute, stored: dict[Tile, Buffer]) -> list[Tile]:
    """What each row loads when it is its turn. Where threads wait for one another in each row, for a sum, what is read
    earlier would rest in registers."""
    return [t for t in _rows(op) if t in stored and t.axes] if meets_in_rows(op) else []


def _of_a_row(statement: Statement) -> Statement:
    """A statement of the body, of one token."""
    tiles = {t: Tile(t.name, row_axes(t)) for t in operands(statement.op)}
    target = Tile(statement.target.name, row_axes(statement.target))
    return replace(statement, target=target, op=renamed_operands(statement.op, tiles))


def _rows(op: Substitute) -> list[Tile]:
    """What the rows take, in the order in which it is read: numbers rest in registers once they are."""
    return sorted(op.rows, key=lambda t: "v" not in t.axes)


def _argument(tile: Tile) -> str:
    """What a function calls a row operand: the rows of a block, or a number."""
    return f"_{tile.name}" if tile.axes else tile.name


def _stride(tile: Tile) -> str:
    return f"{_argument(tile)}_stride"


def solve(
    kernel: str,
    op: Substitute,
    printer: TritonPrinter,
    stored: dict[Tile, Buffer],
    domains: dict[str, Domain],
    waiting: dict[Tile, Buffer],
) -> list[str]:
    """The loop over blocks; `stored` says where tiles lie in memory, the matrices among them, and `waiting` where what
    is written is to lie, if it is.

    What comes last is read last: of all that a block takes from shared memory the entries of its matrices are most, and
    read behind the last barrier they need not rest in registers until it is their turn.
    """
    memory, by_row, every = ChunkMemory(domains), _by_row(op, stored), range(len(op.bases))
    unknowns, pairs = [printer.name(x) for x in op.unknowns], [stored[t] for t in op.pairs]
    number = f"BT // {op.block} - 1 - i_b" if op.transposed else "i_b"
    corners = [memory.corner(matrix) for matrix in pairs]
    entries = [f"{memory.lower(matrix, 'block', op.block)}.to(tl.float32)" for matrix in pairs]
    given = [
        *(f"rows_of(block_rows({x}, i_block, BV, {op.block}), BV)" for x in unknowns),
        *(
            a
            for t in _rows(op)
            for a in (
                memory.block_begin(stored[t], op.block)
                if t in by_row
                else [_block(t, printer, stored, memory, op.block)]
            )
        ),
        *([*(c for c, _ in corners), corners[0][1]] if meets_in_rows(op) else [f"entries_of({e})" for e in entries]),
        f"left - i_block * {op.block}",
    ]
    blocks = [_numbered("_block", op, i) for i in every] if len(unknowns) > 1 else ["block"]
    lines = [
        f"i_block = {number}",
        f"{', '.join(blocks)} = {function_name(kernel, op)}({', '.join(given)}, i_v, V, BV)",
        *(memory.store_block(waiting[w], b) for w, b in zip(op.written, blocks) if w in waiting),
    ]
    at_once = len(blocks) if op.block < 16 else 1  # of as many unknowns one product takes what they have written
    for i, x in enumerate(unknowns):
        parts = [_columns(stored[op.matrix(i, j)], memory, op) for j in every]
        for j in range(0, len(blocks), at_once):
            part, block = (
                _in_turn(name, tiles[j : j + at_once]) for name, tiles in (("columns", parts), ("rows", blocks))
            )
            lines.append(f"{x} = tl.dot({part}.to(tl.float32), -{block}, {x}, input_precision=PRECISION)")
    return [
        *(f"{x} = {printer.upright(base)}" for x, base in zip(unknowns, op.bases)),
        f"for i_b in tl.range(0, BT // {op.block}, disable_licm=True):",
        *(f"    {line}" for line in lines),
    ]


def _columns(matrix: Buffer, memory: ChunkMemory, op: Substitute) -> str:
    """By which a block is taken off all rows."""
    if op.transposed:
        return f"tl.trans({memory.lower(matrix, 'rows', op.block)})"
    return memory.lower(matrix, "columns", op.block)


def _in_turn(what: str, tiles: list[str]) -> str:
    """Columns or rows of several tiles as those of one: of 2, or of 4, the last of which may be zeros."""
    if len(tiles) == 1:
        return tiles[0]
    if len(tiles) == 3:
        tiles = [*tiles, f"tl.zeros_like({tiles[-1]})"]
    while len(tiles) > 1:
        tiles = [f"{what}_of_both({a}, {b})" for a, b in zip(tiles[::2], tiles[1::2])]
    return tiles[0]


def is_read_by_block(tile: Tile) -> bool:
    """Whether a row operand is loaded where a block needs it; a number a token waits in registers."""
    return "v" in tile.axes


def _block(tile: Tile, printer: TritonPrinter, stored: dict[Tile, Buffer], memory: ChunkMemory, size: int) -> str:
    """Its rows of block `i_block`."""
    match tile.axes:
        case ("t",):
            return f"numbers_of(block_numbers({printer.name(tile)}, i_block, {size}).to(tl.float32))"
        case ("t", "v"):
            rows = (
                memory.block(stored[tile], size)
                if tile in stored
                else f"block_rows({printer.name(tile)}, i_block, BV, {size})"
            )
            return f"rows_of({rows}.to(tl.float32), BV)"
    return printer.name(tile)
