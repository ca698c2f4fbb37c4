"""Tile statements as Triton. A tile is a register block named after itself; its shape follows from its axes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import singledispatchmethod

from ttrc import symbolic
from ttrc.backends.product import Product, as_product
from ttrc.backends.triton import masks
from ttrc.backends.triton.dialect import DIALECT
from ttrc.backends.triton.extents import BLOCK, VALUES
from ttrc.backends.triton.memory import TOKENS
from ttrc.backends.triton.search import Search, conjugate, root, steps
from ttrc.backends.triton.tables import table
from ttrc.ir.tile import (
    GIVEN,
    UNKNOWN,
    Axes,
    Compose,
    Conjugate,
    Contract,
    CumulativeSum,
    Difference,
    Elementwise,
    Inverse,
    Largest,
    LinearScan,
    Mask,
    Reduce,
    Relabel,
    Root,
    Statement,
    Tile,
    operands,
)

TAKEN = {"H": "H_state"}  # what tiles are called whose names are words of a kernel's head
OF_KEYS, OF_VALUES = (("t", "k"), ("s", "k")), (("t", "v"), ("s", "v"))


def shape(tile: Tile) -> str:
    return "[" + ", ".join(BLOCK[a] for a in tile.axes) + "]"


@dataclass
class TritonPrinter:
    """Prints statements in order. `begins` says where the panels of an axis begin that a loop walks, `columns` what
    the tokens that write are numbered by, `end` what numbers of tokens that exist are less than, `edges`, of running
    sums, what they are at an edge nearby; if `across`, the tokens that write are before it and the others behind.

    `raw` holds the tiles as they came from memory, in the input's dtype: matrix products take them as they are,
    elementwise code in float32. `narrow` and `turned` ones are made so, the latter transposed. `alias` maps a tile to
    the variable that holds it, where that has another name.

    `turns`: tiles with these axes are worked out transposed. Of a row of channels a token their rows are channels then,
    which are as many as 8 warps need; of 64 tokens half of the warps would hold a second copy. Of pairs they are keys
    where the program's own are. `flipped` are the variables that hold a tile transposed, `rested` those that hold one
    of them in the inputs' dtype for products still to come.

    `precise`: what is printed is inside of a search, whose products take operands as they are.

    `tokens`: how many a tile holds, role by role. Where the reading ones are the program's own rows, fewer than those
    that write, numbers in the other role are others. `states` says where those begin that come from memory.
    """

    raw: set[str]
    narrow: frozenset[Tile] = frozenset()
    turned: frozenset[Tile] = frozenset()
    turns: tuple[Axes, ...] = ()
    begins: dict[str, str] = field(default_factory=lambda: dict(VALUES))
    columns: str = "t"
    end: str = "left"
    edges: dict[str, str] = field(default_factory=dict)
    across: bool = True
    alias: dict[str, str] = field(default_factory=lambda: dict(TAKEN))
    flipped: set[str] = field(default_factory=set)
    rested: dict[tuple[str, bool], str] = field(default_factory=dict)
    precise: bool = False
    tokens: dict[str, str] = field(default_factory=lambda: dict(TOKENS))
    states: dict[Tile, str] = field(default_factory=dict)

    def name(self, tile: Tile) -> str:
        return self.alias.get(tile.name, tile.name)

    def lines(self, statement: Statement) -> list[str]:
        target = statement.target
        if isinstance(statement.op, Relabel):
            if self._takes_own(statement.op.arg, target):
                return [f"{self.name(target)} = own_numbers({self._float(statement.op.arg)}, t, BR, BT)"]
            self.share(target, statement.op.arg)
            return []
        if isinstance(statement.op, Root):
            return self._root(statement.op, target)
        if isinstance(statement.op, Conjugate):
            return self._conjugate(statement.op, target)
        self._stand(statement)
        if self._is_negative(statement.op) and target not in self.narrow | self.turned:
            self.raw.add(target.name)
            return [f"{self.name(target)} = -{self.name(statement.op.args[0])}"]
        text = self.text(statement.op, target)
        if target in self.narrow | self.turned:
            self.raw.add(target.name)
            text = f"tl.trans({text}).to(dtype)" if target in self.turned else f"({text}).to(factors)"
        if target in self.turned:
            self.flipped.add(target.name)
        return [f"{self.name(target)} = {text}"]

    def upright(self, tile: Tile) -> str:
        """The tile as its axes say."""
        return f"tl.trans({self.name(tile)})" if self._is_flipped(tile) else self.name(tile)

    def rest(self, made: set[Tile], later: tuple[Statement, ...]) -> list[str]:
        """Copies of tiles as the products want them that come after a loop, where nothing else does."""
        names = {self.name(t) for t in made} - self.raw
        names -= {self.name(t) for s in later if not isinstance(s.op, (Contract, Relabel)) for t in operands(s.op)}
        lines = []
        for statement in (s for s in later if isinstance(s.op, Contract)):
            product = self._product(statement.op, statement.target, self._flips(statement))
            factors = (product.left, product.left_transposed), (product.right, product.right_transposed)
            for tile, transposed in factors:
                name = self.name(tile)
                if name not in names or (name, transposed) in self.rested:
                    continue
                text = self._operand(tile, transposed)
                self.rested[name, transposed] = f"_{name}_turned" if transposed else f"_{name}"
                lines.append(f"{self.rested[name, transposed]} = {text}")
        return lines

    def open_sum(self, statement: Statement, chained: bool) -> list[str]:
        """The accumulator of a result that sums over panels, before the loop; `chained` ones join their addend's."""
        target, add = statement.target, getattr(statement.op, "add", None)
        self._stand(statement)
        if chained:
            self.share(target, add)
            return []
        if add is not None:
            return [f"{target.name} = {self._along(add, target)}"]
        if isinstance(statement.op, Largest):
            return [f'{target.name} = tl.full({self._shape(target)}, float("-inf"), tl.float32)']
        return [f"{target.name} = " + (f"tl.zeros({self._shape(target)}, tl.float32)" if target.axes else "0.0")]

    def add_panel(self, statement: Statement) -> list[str]:
        """One panel's share of such a result."""
        name = self.name(statement.target)
        match statement.op:
            case Contract():
                return [f"{name} = {self._dot(statement.op, statement.target, name)}"]
            case Largest():
                return [f"{name} = tl.maximum({name}, {self.text(statement.op, statement.target)})"]
            case _:
                return [f"{name} += {self.text(statement.op, statement.target)}"]

    def share(self, target: Tile, source: Tile) -> None:
        """The target is in the variable that holds the source."""
        self.alias[target.name] = self.name(source)
        for group in (self.raw, self.flipped):
            if source.name in group:
                group.add(target.name)

    def _stand(self, statement: Statement) -> None:
        if self._flips(statement):
            self.flipped.add(statement.target.name)

    def _flips(self, statement: Statement) -> bool:
        """Whether a tile is made transposed: a product, what is made of rows and numbers alone, or of one that is."""
        if statement.target.axes not in self.turns:
            return False
        args = operands(statement.op)
        free = isinstance(statement.op, Contract) or not any(len(t.axes) > 1 for t in args)
        return free or any(self._is_flipped(t) for t in args)

    def _is_flipped(self, tile: Tile) -> bool:
        return tile.name in self.flipped

    def _axes(self, tile: Tile) -> tuple[str, ...]:
        """Of the variable that holds it."""
        return tile.axes[::-1] if self._is_flipped(tile) else tile.axes

    def _shape(self, tile: Tile) -> str:
        return "[" + ", ".join(self.tokens.get(a, BLOCK[a]) for a in self._axes(tile)) + "]"

    def _is_negative(self, op) -> bool:
        """Whether it is the negative of a tile as it came from memory, and so exact in that type."""
        match op:
            case Elementwise(expr, (arg,)):
                return arg.name in self.raw and expr == -symbolic.symbol(arg.name)
        return False

    def _takes_own(self, arg: Tile, target: Tile) -> bool:
        """Whether numbers of all of a chunk's tokens become those of the program's own rows."""
        return self.tokens["t"] != self.tokens["s"] and arg.axes == ("s",) and target.axes == ("t",)

    def _root(self, op: Root, target: Tile) -> list[str]:
        spelling = {a.name: self._broadcast(a, target) for a in op.args} | {UNKNOWN: target.name}
        slope = symbolic.derivative(op.pull, symbolic.symbol(UNKNOWN))
        pull, slope = (symbolic.render(expr, DIALECT, spelling) for expr in (op.pull, slope))
        return root(target.name, self._float(op.base), pull, slope, not target.axes)

    def _conjugate(self, op: Conjugate, target: Tile) -> list[str]:
        products, inner = any(isinstance(s.op, Contract) for s in op.body), replace(self, precise=True)
        body = [line for s in op.body for line in inner.lines(s)]
        return steps(self.search(op, target, inner.name(op.applied), products), body, products)

    def search(self, op: Conjugate, target: Tile, applied: str, products: bool) -> Search:
        diagonal = self._broadcast(op.diagonal, target)
        given = op.unknown.name, self._float(op.rhs), diagonal, len(target.axes) - 1, applied, products
        return conjugate(target.name, *given)

    def rests(self, tile: Tile) -> bool:
        """Whether products find it made ready for them."""
        return any(name == self.name(tile) for name, _ in self.rested)

    @singledispatchmethod
    def text(self, op, target: Tile) -> str:
        raise TypeError(op)

    @text.register
    def _(self, op: Elementwise, target: Tile) -> str:
        text = symbolic.render(op.expr, DIALECT, {a.name: self._broadcast(a, target) for a in op.args})
        if target.axes and not op.args:
            return f"tl.full({self._shape(target)}, {text}, tl.float32)"
        covered = {axis for a in op.args for axis in a.axes}
        if covered == set(target.axes):
            return text
        return f"tl.broadcast_to({text}, {self._shape(target)})"

    @text.register
    def _(self, op: Contract, target: Tile) -> str:
        return self._dot(op, target, None if op.add is None else self._along(op.add, target))

    @text.register
    def _(self, op: Compose, target: Tile) -> str:
        a = self._operand(op.a, op.a_transposed != self._is_flipped(op.a))
        b = self._operand(op.b, op.b_transposed != self._is_flipped(op.b))
        return f"tl.dot({a}, {b}, input_precision=PRECISION)"

    @text.register
    def _(self, op: Difference, target: Tile) -> str:
        edge, rows, columns, sign = self.edges.get(self.name(op.rows)), self.name(op.rows), self.name(op.columns), ""
        if self._is_flipped(target):
            rows, columns, sign = columns, rows, "-"
        if edge is None:
            return f"{sign}difference({rows}, {columns})"
        if self.across:
            return f"{sign}difference_across({edge}, {rows}, {columns})"
        # The edge takes itself off: what is gained is registers, for loops across it hold these two numbers anyway.
        return f"{sign}difference({rows} - {edge}, {columns} - {edge})"

    @text.register
    def _(self, op: Reduce, target: Tile) -> str:
        return self._folded("tl.sum", op.arg, target)

    @text.register
    def _(self, op: Largest, target: Tile) -> str:
        return self._folded("tl.max", op.arg, target)

    @text.register
    def _(self, op: Mask, target: Tile) -> str:
        fill = "0.0" if op.fill == 0 else f'float("{op.fill}")'
        kept = masks.kept(op.relation, self._axes(target), self.columns, self.end, self.begins)
        return f"tl.where({kept}, {self._along(op.arg, target)}, {fill})"

    @text.register
    def _(self, op: CumulativeSum, target: Tile) -> str:
        if len(target.axes) > 1:
            return f"running_sum({table(op)}, {self._upright_float(op.arg)}, BT, PRECISION)"
        return f"tl.cumsum({self._float(op.arg)}, 0{', reverse=True' if op.reverse else ''})"

    @text.register
    def _(self, op: LinearScan, target: Tile) -> str:
        tiles = [None if x is None else self._float(x) for x in (op.decay, op.write, op.start)]
        text = f"{', '.join(map(str, tiles))}, {op.reverse}"
        if len(target.axes) > 2:
            return f"scan_entries({text}, {', '.join(BLOCK[a] for a in target.axes)})"
        return f"linear_scan({text})"

    @text.register
    def _(self, op: Inverse, target: Tile) -> str:
        return f"unit_lower_inverse({self.name(op.matrix)}, BT, PRECISION)"

    def _product(self, op: Contract, target: Tile, flipped: bool) -> Product:
        """The operands of a `tl.dot`, as the variables that hold them stand."""
        p = as_product(op, target)
        if flipped:
            p = Product(p.right, not p.right_transposed, p.left, not p.left_transposed)
        left, right = (
            t != self._is_flipped(x) for x, t in ((p.left, p.left_transposed), (p.right, p.right_transposed))
        )
        return Product(p.left, left, p.right, right)

    def _dot(self, op: Contract, target: Tile, add: str | None) -> str:
        product = self._product(op, target, self._is_flipped(target))
        left = self._operand(product.left, product.left_transposed)
        right = self._operand(product.right, product.right_transposed)
        if product.right in self.states and not product.left_transposed:
            text = f"{self.name(product.left)}, {self.name(product.right)}, {add}, {self.states[product.right]}, K"
            return f"state_dot({text}, {product.right_transposed}, {self.precise}, dtype, PRECISION)"
        if self.precise:
            return f"exact_dot({left}, {right}, {add}, dtype, PRECISION)"
        return f"tl.dot({left}, {right}, {'' if add is None else add + ', '}input_precision=PRECISION)"

    def operand(self, tile: Tile, turned: bool = False) -> str:
        """A factor of a product as its axes say, or `turned` over."""
        return self._operand(tile, self._is_flipped(tile) != turned)

    def _operand(self, tile: Tile, transposed: bool) -> str:
        """A factor; `transposed` is about the variable."""
        name = self.name(tile)
        if (name, transposed) in self.rested:
            return self.rested[name, transposed]
        # Transposed before the cast: transposing a narrowed accumulator is miscompiled on Hopper (Triton < 3.7.1).
        text = f"tl.trans({name})" if transposed else name
        return text if self.precise or tile.name in self.raw else f"{text}.to(dtype)"

    def _float(self, tile: Tile) -> str:
        return f"{self.name(tile)}.to(tl.float32)" if tile.name in self.raw else self.name(tile)

    def _upright_float(self, tile: Tile) -> str:
        return f"tl.trans({self._float(tile)})" if self._is_flipped(tile) else self._float(tile)

    def _along(self, tile: Tile, target: Tile) -> str:
        """In float32, and transposed where the target is and the tile is not, or the other way round."""
        text = self._float(tile)
        return f"tl.trans({text})" if self._is_flipped(tile) != self._is_flipped(target) else text

    def _broadcast(self, arg: Tile, target: Tile) -> str:
        if not arg.axes or arg.axes == target.axes or arg.name in GIVEN:
            return self._along(arg, target) if len(arg.axes) == 2 else self._float(arg)
        return f"{self._float(arg)}[{', '.join(':' if a in arg.axes else 'None' for a in self._axes(target))}]"

    def _folded(self, fold: str, arg: Tile, target: Tile) -> str:
        """Over the axes that the target lacks, the last ones first: all at once where it has none."""
        text, axes = self._float(arg), self._axes(arg)
        if not target.axes:
            return f"{fold}({text})"
        for i in reversed(range(len(axes))):
            text = text if axes[i] in target.axes else f"{fold}({text}, {i})"
        return text
