"""A nonlinear substitution as Triton: blocks of 16 rows, in each of them 16 sweeps of its fixed-point equation.

The matrix is strictly triangular, so a sweep makes one more row exact, and 16 sweeps are exact whatever the loss; a
solved block is taken off the rows still to come by one product. What memory holds is loaded block by block.
"""

from __future__ import annotations

from ttrc.backends.triton.memory import BLOCK_OF_CHUNK, ChunkMemory
from ttrc.backends.triton.printer import TritonPrinter
from ttrc.ir.plan import Buffer
from ttrc.ir.tile import Substitute, Tile
from ttrc.language.spec import Domain


def function_name(kernel: str, op: Substitute) -> str:
    return f"{kernel}_{op.written.name}"


def function(kernel: str, op: Substitute) -> str:
    """The text of a function: what is written in the 16 rows of a block."""
    printer = TritonPrinter(set())
    arguments = ", ".join(["diagonal", "begin", *(t.name for t in op.rows), "left", "i_v"])
    lines = [
        "@triton.jit",
        f"def {function_name(kernel, op)}({arguments}, V: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr):",
        f'    """{op.written.name} of 16 rows, {op.unknown.name} = begin - diagonal @ {op.written.name}."""',
        "    BT: tl.constexpr = 16",
        "    t = tl.arange(0, BT)",
        f"    {op.written.name} = tl.zeros([BT, BV], tl.float32)",
        "    for _ in range(0, BT):  # each sweep makes one more row exact",
        f"        {op.unknown.name} = begin - tl.dot(diagonal, {op.written.name}, input_precision=PRECISION)",
        *(f"        {line}" for s in op.body for line in printer.lines(s)),
        f"    return {op.written.name}",
    ]
    return "\n".join(lines)


def solve(
    kernel: str,
    target: Tile,
    op: Substitute,
    printer: TritonPrinter,
    stored: dict[Tile, Buffer],
    domains: dict[str, Domain],
) -> list[str]:
    """The loop over blocks; `stored` says where tiles lie in memory, the matrix among them."""
    memory = ChunkMemory(domains, "i_v", BLOCK_OF_CHUNK)
    x, matrix = printer.name(target), stored[op.matrix]
    diagonal, columns = memory.lower(matrix, "diagonal"), memory.lower(matrix, "columns")
    number = "i_b"
    if op.transposed:
        diagonal, columns = f"tl.trans({diagonal})", f"tl.trans({memory.lower(matrix, 'rows')})"
        number = "BT // 16 - 1 - i_b"
    rows = [memory.load(stored[t]) if t in stored else _taken(printer, t) for t in op.rows]
    rows = [f"{text}.to(tl.float32)" for text in rows]
    given = ", ".join([f"{diagonal}.to(tl.float32)", f"block_rows({x}, n, BT, BV)", *rows])
    return [
        f"{x} = {printer.name(op.base)}",
        "for i_b in tl.range(0, BT // 16, disable_licm=True):",
        f"    n = {number}",
        f"    block = {function_name(kernel, op)}({given}, left - n * 16, i_v, V, BV, PRECISION)",
        f"    {x} = tl.dot({columns}.to(tl.float32), -block, {x}, input_precision=PRECISION)",
    ]


def _taken(printer: TritonPrinter, tile: Tile) -> str:
    """A block out of registers."""
    match tile.axes:
        case ("t",):
            return f"block_numbers({printer.name(tile)}, n, BT)"
        case ("t", "v"):
            return f"block_rows({printer.name(tile)}, n, BT, BV)"
    return printer.name(tile)
