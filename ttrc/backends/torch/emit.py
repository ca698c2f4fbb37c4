"""Chunk and token programs -> the text of reference.py: plain PyTorch, forward and adjoint."""

from __future__ import annotations

from ttrc.backends.torch.printer import TorchPrinter
from ttrc.ir.tile import GIVEN, Program, Tile
from ttrc.passes.slice_program import slice_program


def print_forward(program: Program, tags: dict[str, str]) -> str:
    ((_, o),) = program.outputs
    return _body(program, (o, *(c.next for c in program.carries)), tags)


def print_backward(program: Program, inputs: tuple[Tile, ...], tags: dict[str, str]) -> str:
    """Cotangents of `inputs`, the forward program's, then of the states; zeros for what no output depends on."""
    made = dict(program.outputs)
    results = tuple(made.get(f"d_{t.name}", t.name) for t in inputs if t.name not in GIVEN)
    return _body(program, (*results, *(c.next for c in program.carries if c.reverse)), tags)


def _body(program: Program, results: tuple[Tile | str, ...], tags: dict[str, str]) -> str:
    """`results` are tiles, or the names of tensors that zeros are returned for."""
    printer = TorchPrinter({})
    lines, origin = [], None
    for statement in slice_program(program.statements, [r for r in results if isinstance(r, Tile)]):
        made = printer.lines(statement)
        if not made:
            continue
        if statement.origin != origin:
            origin = statement.origin
            lines.append(f"# {tags.get(origin, origin)}")
        lines += made
    returned = (printer.name(r) if isinstance(r, Tile) else f"torch.zeros_like({r})" for r in results)
    lines.append("return " + ", ".join(returned))
    return "\n".join(lines)
