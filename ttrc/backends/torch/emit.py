"""Chunk and token programs -> the text of reference.py: plain PyTorch, forward and adjoint."""

from __future__ import annotations

from ttrc.backends.torch.printer import TorchPrinter
from ttrc.ir.tile import Program, Tile
from ttrc.passes.slice_program import slice_program


def print_forward(program: Program, tags: dict[str, str]) -> str:
    ((_, o),) = program.outputs
    (carry,) = program.carries
    return _body(program, (o, carry.next), tags)


def print_backward(program: Program, tags: dict[str, str]) -> str:
    (reverse,) = (c for c in program.carries if c.reverse)
    return _body(program, (*(tile for _, tile in program.outputs), reverse.next), tags)


def _body(program: Program, results: tuple[Tile, ...], tags: dict[str, str]) -> str:
    printer = TorchPrinter({})
    lines, origin = [], None
    for statement in slice_program(program.statements, results):
        text = printer.line(statement)
        if text is None:
            continue
        if statement.origin != origin:
            origin = statement.origin
            lines.append(f"# {tags.get(origin, origin)}")
        lines.append(text)
    lines.append("return " + ", ".join(printer.name(t) for t in results))
    return "\n".join(lines)
