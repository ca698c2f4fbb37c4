"""A nonlinear substitution as Triton: blocks of 16 rows, in each of them row after row.

A thread holds the rows of its own value channels, so that what a row takes off the next ones passes through no other
thread; entries of the matrix are scalars, which all threads read alike. A block that is done is taken off the rows
still to come by one product. Names that begin with _ are nobody else's: no tile's and no gate's does.
"""

from __future__ import annotations

from dataclasses import replace

from ttrc.backends.triton.memory import ChunkMemory
from ttrc.backends.triton.printer import TritonPrinter
from ttrc.ir.plan import Buffer
from ttrc.ir.tile import Statement, Substitute, Tile, operands, row_axes
from ttrc.language.spec import Domain
from ttrc.passes.slice_program import renamed_operands


def function_name(kernel: str, op: Substitute) -> str:
    return f"{kernel}_{op.written.name}"


def function(kernel: str, op: Substitute, stored: dict[Tile, Buffer], domains: dict[str, Domain]) -> str:
    """The text of a function: what is written in the 16 rows of a block."""
    memory, printer = ChunkMemory(domains), TritonPrinter(set())
    x, written = op.unknown.name, op.written.name
    arguments = ["matrix", "stride", "zeros", "begin", *(_argument(t, stored) for t in op.rows), "left", "i_v"]
    constants = "HV: tl.constexpr, V: tl.constexpr, BV: tl.constexpr"
    taken = [t for t in op.rows if t.axes and t not in stored]
    rows = [f"_{t.name}_rows = rows_of(_{t.name}, {'BV' if 'v' in t.axes else 1})" for t in taken]
    row = [f"{t.name} = {memory.row(stored[t]) if t in stored else f'_{t.name}_rows[t]'}" for t in op.rows if t.axes]
    lines = [
        "@triton.jit",
        f"def {function_name(kernel, op)}({', '.join(arguments)}, {constants}):",
        f'    """{written} of 16 rows, {x} = begin - matrix @ {written}; `zeros` stands for lines past `left`."""',
        f"    _rows{'' if op.transposed else ', _done'} = rows_of(begin, BV){'' if op.transposed else ', ()'}",
        *(f"    {line}" for line in rows),
        f"    _{written} = tl.zeros([16, BV], tl.float32)",
        f"    for t in tl.static_range({'15, -1, -1' if op.transposed else '16'}):",
        "        _line = tl.where(t < left, matrix + t * stride, zeros)",
        f"        {x} = _rows[t]",
        *(f"        {line}" for line in ([] if op.transposed else _taken_off_it(x, written))),
        *(f"        {line}" for line in row),
        *(f"        {line}" for s in op.body for line in printer.lines(_of_a_row(s))),
        *(f"        {line}" for line in (_taken_off_others(written) if op.transposed else [])),
        f"        _{written} = tl.where(tl.arange(0, 16)[:, None] == t, {written}[None, :], _{written})",
        *([] if op.transposed else [f"        _done = _done + ({written},)"]),
        f"    return _{written}",
    ]
    return "\n".join(lines)


def _taken_off_it(x: str, written: str) -> list[str]:
    """What the rows that are done take off row t; its line of the matrix says how much of each."""
    return [
        "for _s in tl.static_range(t):",
        f"    {x} -= tl.load(_line + _s).to(tl.float32) * _done[_s]",
    ]


def _taken_off_others(written: str) -> list[str]:
    """What row t takes off those above it; its line of the matrix says how much off each."""
    return [
        "_above = ()",
        "for _s in tl.static_range(t):",
        f"    _above = _above + (_rows[_s] - tl.load(_line + _s).to(tl.float32) * {written},)",
        "_rows = _above",
    ]


def _of_a_row(statement: Statement) -> Statement:
    """A statement of the body, of one token."""
    tiles = {t: Tile(t.name, row_axes(t)) for t in operands(statement.op)}
    target = Tile(statement.target.name, row_axes(statement.target))
    return replace(statement, target=target, op=renamed_operands(statement.op, tiles))


def _argument(tile: Tile, stored: dict[Tile, Buffer]) -> str:
    """What a function calls a row operand: where it lies, the block of its rows, or a number."""
    return f"{stored[tile].name}_ptr" if tile in stored else f"_{tile.name}" if tile.axes else tile.name


def solve(
    kernel: str,
    target: Tile,
    op: Substitute,
    printer: TritonPrinter,
    stored: dict[Tile, Buffer],
    domains: dict[str, Domain],
) -> list[str]:
    """The loop over blocks; `stored` says where tiles lie in memory, the matrix among them."""
    memory = ChunkMemory(domains)
    x, matrix = printer.name(target), stored[op.matrix]
    start, stride = memory.first_row(matrix)
    columns = memory.lower(matrix, "columns")
    number = "i_b"
    if op.transposed:
        columns = f"tl.trans({memory.lower(matrix, 'rows')})"
        number = "BT // 16 - 1 - i_b"
    rows = [memory.block(stored[t]) if t in stored else _taken(printer, t) for t in op.rows]
    block = f"{start} + n * 16 * ({stride} + 1)"
    given = ", ".join([block, stride, start, f"block_rows({x}, n, BV)", *rows, "left - n * 16", "i_v", "HV", "V", "BV"])
    return [
        f"{x} = {printer.name(op.base)}",
        "for i_b in tl.range(0, BT // 16, disable_licm=True):",
        f"    n = {number}",
        f"    block = {function_name(kernel, op)}({given})",
        f"    {x} = tl.dot({columns}.to(tl.float32), -block, {x}, input_precision=PRECISION)",
    ]


def _taken(printer: TritonPrinter, tile: Tile) -> str:
    """A block out of registers."""
    match tile.axes:
        case ("t",):
            return f"block_numbers({printer.name(tile)}, n).to(tl.float32)"
        case ("t", "v"):
            return f"block_rows({printer.name(tile)}, n, BV).to(tl.float32)"
    return printer.name(tile)
