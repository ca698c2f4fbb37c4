"""A nonlinear substitution as Triton: blocks of 16 rows, in each of them row after row.

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
from ttrc.ir.tile import Statement, Substitute, Tile, Written, meets_in_rows, operands, row_axes
from ttrc.language.spec import Domain
from ttrc.passes.slice_program import renamed_operands


def function_name(kernel: str, op: Substitute) -> str:
    """No gate begins so, and hides it."""
    return f"_{kernel}_{op.written.name}"


def function(kernel: str, op: Substitute, stored: dict[Tile, Buffer], domains: dict[str, Domain]) -> str:
    """The text of a function: what is written in the 16 rows of a block."""
    printer = TritonPrinter(set())
    x, written = op.unknown.name, op.written.name
    rows = _rows(op)
    turned = "'" if op.transposed else ""
    order, before = ("15, -1, -1", "15, t, -1") if op.transposed else ("16", "t")
    entry, which = ("16 * _s + t", "15 - _s") if op.transposed else ("16 * t + _s", "_s")
    memory, by_row = ChunkMemory(domains), _by_row(op, stored)
    taken = [a for t in rows for a in (_argument(t), *([_stride(t)] if t in by_row else []))]
    arguments = ["_begin", *taken, "_matrix", "left", "i_v"]
    line, entries = [], f"_matrix[{entry}]"
    if meets_in_rows(op):
        arguments.insert(-2, "_stride")
        line = [f"_line = numbers_of(load_{'column' if op.transposed else 'line'}(_matrix, _stride, t, left))"]
        entries = "_line[_s]"
    lines = [
        "@triton.jit",
        f"def {function_name(kernel, op)}({', '.join(arguments)}, V: tl.constexpr, BV: tl.constexpr):",
        f'    """{written} of 16 rows, {x} = begin - matrix{turned} @ {written}, all of them cut into rows."""',
        f"    _{written} = tl.zeros([16, BV], tl.float32)",
        "    _done = ()",
        f"    for t in tl.static_range({order}):",
        f"        {x} = _begin[t]",
        *(f"        {text}" for text in line),
        f"        for _s in tl.static_range({before}):",
        f"            {x} -= {entries} * _done[{which}]",
        *(f"        {t.name} = {_argument(t)}[t]" for t in rows if t.axes and t not in by_row),
        *(f"        {t.name} = {memory.row_of_block(stored[t], _argument(t), _stride(t))}" for t in by_row),
        *(f"        {line}" for s in op.body for line in printer.lines(_of_a_row(s))),
        f"        _{written} = tl.where(tl.arange(0, 16)[:, None] == t, {written}, _{written})",
        f"        _done = _done + ({written},)",
        f"    return _{written}",
    ]
    return "\n".join(lines)


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
    target: Tile,
    op: Substitute,
    printer: TritonPrinter,
    stored: dict[Tile, Buffer],
    domains: dict[str, Domain],
    waiting: Buffer | None,
) -> list[str]:
    """The loop over blocks; `stored` says where tiles lie in memory, the matrix among them, and `waiting` where what is
    written is to lie, if it is.

    What comes last is read last: of all that a block takes from shared memory the entries of its matrix are most, and
    read behind the last barrier they need not rest in registers until it is their turn.
    """
    memory, by_row = ChunkMemory(domains), _by_row(op, stored)
    x, matrix = printer.name(target), stored[op.matrix]
    columns, number = memory.lower(matrix, "columns"), "i_b"
    if op.transposed:
        columns = f"tl.trans({memory.lower(matrix, 'rows')})"
        number = "BT // 16 - 1 - i_b"
    corner, stride = memory.corner(matrix)
    given = [
        f"rows_of(block_rows({x}, n, BV), BV)",
        *(
            a
            for t in _rows(op)
            for a in (memory.block_begin(stored[t]) if t in by_row else [_block(t, printer, stored, memory)])
        ),
        *([corner, stride] if meets_in_rows(op) else [f"entries_of({memory.lower(matrix, 'block')}.to(tl.float32))"]),
        "left - n * 16",
    ]
    return [
        f"{x} = {printer.upright(op.base)}",
        "for i_b in tl.range(0, BT // 16, disable_licm=True):",
        f"    n = {number}",
        f"    block = {function_name(kernel, op)}({', '.join(given)}, i_v, V, BV)",
        *([] if waiting is None else [f"    {memory.store_block(waiting, 'block')}"]),
        f"    {x} = tl.dot({columns}.to(tl.float32), -block, {x}, input_precision=PRECISION)",
    ]


def is_read_by_block(tile: Tile) -> bool:
    """Whether a row operand is loaded where a block needs it; a number a token waits in registers."""
    return "v" in tile.axes


def _block(tile: Tile, printer: TritonPrinter, stored: dict[Tile, Buffer], memory: ChunkMemory) -> str:
    """Its rows of block n."""
    match tile.axes:
        case ("t",):
            return f"numbers_of(block_numbers({printer.name(tile)}, n).to(tl.float32))"
        case ("t", "v"):
            rows = memory.block(stored[tile]) if tile in stored else f"block_rows({printer.name(tile)}, n, BV)"
            return f"rows_of({rows}.to(tl.float32), BV)"
    return printer.name(tile)
