"""Tile statements as plain PyTorch over tensors with leading batch axes [..., tile axes]."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatchmethod

from ttrc import symbolic
from ttrc.backends.product import as_product
from ttrc.ir.tile import (
    GIVEN,
    HIDDEN,
    UNKNOWN,
    Attend,
    Compose,
    Conjugate,
    Contract,
    CumulativeSum,
    Decayed,
    Difference,
    Elementwise,
    Further,
    Inverse,
    Largest,
    LinearScan,
    Mask,
    Normaliser,
    Reduce,
    Relabel,
    Relation,
    Root,
    RunningSum,
    Solve,
    Statement,
    Substitute,
    Tile,
    Window,
    taken,
)

DIALECT = symbolic.Dialect(
    calls={
        "exp": "torch.exp({0})",
        "expm1": "torch.expm1({0})",
        "log": "torch.log({0})",
        "sqrt": "torch.sqrt({0})",
        "tanh": "torch.tanh({0})",
        "sigmoid": "torch.sigmoid({0})",
        "softplus": "F.softplus({0})",
        "positive_power": "positive_power({0}, {1})",
        "pow": "({0}) ** ({1})",
        "whole_pow": "({0}) ** {1}",
        "magnitude": "torch.abs({0})",
        "step_sign": "torch.sign({0})",
        "log_cosh": "log_cosh({0})",
        "choose": "choose({0}, {1}, {2}, {3})",
        "smaller": "smaller({0}, {1})",
        "larger": "larger({0}, {1})",
        "clip": "clip({0}, {1})",
        "huber": "huber({0}, {1})",
        "coarse": "torch.floor(({0}) * 64.0) / 64.0",
    },
)
SIZES = {
    "t": "tokens[-1]",
    "s": "tokens[-1]",
    "k": "k.shape[-1]",
    "j": "k.shape[-1]",
    "v": "v.shape[-1]",
    **dict.fromkeys(HIDDEN, "EXPANSION * k.shape[-1]"),
}
_KEEP = {Relation.CAUSAL: "keep_causal", Relation.STRICT: "keep_strict"}
_AT = {Relation.FIRST: 0, Relation.LAST: -1}


@dataclass
class TorchPrinter:
    """Prints statements in order; `aliases` maps tiles to variables where no code is needed (Relabel)."""

    aliases: dict[str, str]

    def lines(self, statement: Statement) -> list[str]:
        match statement.op:
            case Relabel(arg):
                self.aliases[statement.target.name] = self.name(arg)
                return []
            case Substitute():
                return self._substitute(statement.op)
            case Further():  # the first of them has
                return []
            case Conjugate():
                return self._conjugate(statement.target, statement.op)
        return [f"{self.name(statement.target)} = {self.text(statement.op, statement.target)}"]

    def _substitute(self, op: Substitute) -> list[str]:
        """A function of one row of each unknown, and the loop over rows."""
        lines, writes = [], []
        for x, body in zip(op.unknowns, op.bodies):
            written = self.name(body[-1].target)
            rows = [self.name(t) for t in taken(body, x) if "t" in t.axes]
            lines += [
                f"def {written}_of({', '.join([self.name(x), *rows])}):",
                f"    tokens = {self.name(x)}.shape[:-1]",
                *(f"    {line}" for s in body for line in self.lines(s)),
                f"    return {written}",
            ]
            writes.append(f"[{', '.join([f'{written}_of', *rows])}]")
        turned, every = ".mT" if op.transposed else "", range(len(op.bases))
        table = [[self.name(op.matrix(i, j)) + turned for j in every] for i in every]
        matrices = ", ".join(f"[{', '.join(row)}]" for row in table)
        bases, found = (", ".join(map(self.name, tiles)) for tiles in (op.bases, op.unknowns))
        given = f"[{matrices}], [{bases}], [{', '.join(writes)}]"
        return [*lines, f"[{found}] = substitute({given}, reverse={op.transposed})"]

    def _conjugate(self, target: Tile, op: Conjugate) -> list[str]:
        """A function of what is tried, and the search."""
        applied, diagonal = self.name(op.applied), self._broadcast(op.diagonal, op.rhs)
        return [
            f"def {applied}_to({self.name(op.unknown)}):",
            *(f"    {line}" for s in op.body for line in self.lines(s)),
            f"    return {self.name(op.applied)}",
            f"{self.name(target)} = conjugate({applied}_to, {self.name(op.rhs)}, {diagonal})",
        ]

    def name(self, tile: Tile) -> str:
        return self.aliases.get(tile.name, tile.name)

    @singledispatchmethod
    def text(self, op, target: Tile) -> str:
        raise TypeError(op)

    @text.register
    def _(self, op: Elementwise, target: Tile) -> str:
        if target.axes and not op.args:
            return f"torch.full(({self._shape(target)}), {symbolic.render(op.expr, DIALECT, {})}, **like)"
        spelling = {a.name: self._broadcast(a, target) for a in op.args}
        text = symbolic.render(op.expr, DIALECT, spelling)
        if target.axes in {a.axes for a in op.args} or not target.axes:
            return text
        if set(target.axes) == {axis for a in op.args for axis in a.axes}:
            return text
        # A cotangent of a sum: one number for all that was summed, spread over a tile of the right shape.
        return f"({text}).expand({self._shape(target)})"

    @text.register
    def _(self, op: Contract, target: Tile) -> str:
        product = as_product(op, target)
        left = self.name(product.left) + (".mT" if product.left_transposed else "")
        right = self.name(product.right) + (".mT" if product.right_transposed else "")
        text = f"{left} @ {right}"
        return text if op.add is None else f"{self.name(op.add)} + {text}"

    @text.register
    def _(self, op: Compose, target: Tile) -> str:
        a = self.name(op.a) + (".mT" if op.a_transposed else "")
        return f"{a} @ {self.name(op.b)}" + (".mT" if op.b_transposed else "")

    @text.register
    def _(self, op: Decayed, target: Tile) -> str:
        tiles = (op.a, op.b, op.steps)
        return f"decayed_{'pairs' if op.pairs else op.axis}({', '.join(self.name(t) for t in tiles)}, {op.own})"

    @text.register
    def _(self, op: Reduce, target: Tile) -> str:
        return f"{self.name(op.arg)}.sum({_gone(op.arg, target)})"

    @text.register
    def _(self, op: Largest, target: Tile) -> str:
        return f"{self.name(op.arg)}.amax({_gone(op.arg, target)})"

    @text.register
    def _(self, op: Mask, target: Tile) -> str:
        if op.relation in _AT:
            axis = target.axes.index("t") - len(target.axes)
            return f"keep_token({self.name(op.arg)}, {axis}, {_AT[op.relation]}, {float(op.fill)!r})"
        fill = "" if op.fill == 0 else f', float("{op.fill}")'
        if isinstance(op.relation, Window):
            return f"keep_within({self.name(op.arg)}, {op.relation.tokens}{fill})"
        if op.relation not in _KEEP:  # tiles of this backend are never padded
            return self.name(op.arg) if op.arg.axes else f"torch.full(tokens, {self.name(op.arg)}, **like)"
        return f"{_KEEP[op.relation]}({self.name(op.arg)}{fill})"

    @text.register
    def _(self, op: CumulativeSum, target: Tile) -> str:
        text, axis = self.name(op.arg), -len(target.axes)
        if op.exclusive:
            text = f"delayed({text}, {axis}, {-1 if op.reverse else 1})"
        return f"{text}.flip({axis}).cumsum({axis}).flip({axis})" if op.reverse else f"{text}.cumsum({axis})"

    @text.register
    def _(self, op: LinearScan, target: Tile) -> str:
        start = "None" if op.start is None else self.name(op.start)
        return f"linear_scan({self.name(op.decay)}, {self.name(op.write)}, {start}, reverse={op.reverse})"

    @text.register
    def _(self, op: RunningSum, target: Tile) -> str:
        text = f"{self.name(op.arg)}.double()"
        return f"{text}.flip(-1).cumsum(-1).flip(-1)" if op.reverse else f"{text}.cumsum(-1)"

    @text.register
    def _(self, op: Difference, target: Tile) -> str:
        return f"({self.name(op.rows)}[..., :, None] - {self.name(op.columns)}[..., None, :]).to(v.dtype)"

    @text.register
    def _(self, op: Normaliser, target: Tile) -> str:
        text = f"torch.logsumexp({self.name(op.logits)}, -1)"
        return text if op.rest is None else f"torch.logaddexp({text}, {self.name(op.rest)})"

    @text.register
    def _(self, op: Attend, target: Tile) -> str:
        return f"torch.exp({self.name(op.logits)} - {self.name(op.normaliser)}[..., None]) @ {self.name(op.values)}"

    @text.register
    def _(self, op: Solve, target: Tile) -> str:
        matrix = self.name(op.matrix) + (".mT" if op.transposed else "")
        return (
            f"torch.linalg.solve_triangular({matrix}, {self.name(op.rhs)}, upper={op.transposed}, unitriangular=True)"
        )

    @text.register
    def _(self, op: Inverse, target: Tile) -> str:
        matrix = self.name(op.matrix)
        identity = f"torch.eye({matrix}.shape[-1], dtype={matrix}.dtype, device={matrix}.device).expand_as({matrix})"
        return f"torch.linalg.solve_triangular({matrix}, {identity}, upper=False, unitriangular=True)"

    @text.register
    def _(self, op: Root, target: Tile) -> str:
        x = self.name(target)
        spelling = {a.name: self._broadcast(a, target) for a in op.args} | {UNKNOWN: x}
        slope = symbolic.derivative(op.pull, symbolic.symbol(UNKNOWN))
        pull, slope = (symbolic.render(expr, DIALECT, spelling) for expr in (op.pull, slope))
        return f"find_root(lambda {x}: ({pull}, {slope}), {self.name(op.base)})"

    def _broadcast(self, arg: Tile, target: Tile) -> str:
        name = self.name(arg)
        if arg.name in GIVEN or arg.axes == target.axes:
            return name
        index = ", ".join(":" if a in arg.axes else "None" for a in target.axes)
        return f"{name}[..., {index}]" if target.axes else name

    def _shape(self, target: Tile) -> str:
        return ", ".join(["*v.shape[:2]", *(SIZES[a] for a in target.axes)])


def _gone(arg: Tile, target: Tile) -> int | tuple[int, ...]:
    """The axes of arg that the target lacks, counted from the last."""
    gone = tuple(i - len(arg.axes) for i, a in enumerate(arg.axes) if a not in target.axes)
    return gone[0] if len(gone) == 1 else gone
