"""Tile programs: straight-line array code over named axes, what one chunk (or one token) of a layer computes.

Axes: "t" a token of the chunk in its reading role, "s" a token in its writing role (the same tokens, the
other axis of a C x C tile), "k" a key channel, "j" the other key channel of a matrix that has two, "v" a value
channel, "h1", "h2", ... a channel of a deep memory's hidden layers. A tile's axes are a tuple of these, in the order t,
s, k, j, h, v. A token program (recurrent form) has channels only; one of pairs (kernel memories) has whole sequences
in the place of a chunk.

Every operation here has one adjoint rule (passes/differentiate_tile.py) and one printer in each backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional, Union

from ttrc.ir.axes import HIDDEN, Axes, Tile
from ttrc.ir.pairs import Attend, Difference, Normaliser, RunningSum
from ttrc.ir.products import Compose, Contract, Decayed
from ttrc.ir.scan import CumulativeSum, LinearScan
from ttrc.ir.systems import Inverse, Joint, Solve
from ttrc.symbolic import Expr

UNKNOWN = "the root"  # what the expression of a Root calls it; no tile has a blank in its name
SCALE = "scale"  # the read-out's factor
BEGINS = "begins"  # of a token program: 1 at the first token of a segment, 0 elsewhere
GIVEN = (SCALE, BEGINS)  # inputs that are plain numbers, without a gradient


@dataclass(frozen=True)
class Elementwise:
    """expr over the names of args, which broadcast by axis name."""

    expr: Expr
    args: tuple[Tile, ...]


@dataclass(frozen=True)
class Reduce:
    """sum over the axes of arg that the result lacks."""

    arg: Tile


@dataclass(frozen=True)
class Largest:
    """The largest entry over the axes of arg that the result lacks.

    For shifts that cancel: what is made of arg less its largest entry must not change with the shift. So it has no
    adjoint, for the cotangents that would come to it sum to 0.
    """

    arg: Tile


class Relation(Enum):
    """Which entries a mask keeps."""

    CAUSAL = "t >= s"
    STRICT = "t > s"
    VALID = "t < length"  # tokens of a ragged last chunk that exist
    FIRST = "t = 0"
    LAST = "t is last"  # of the chunk: kernels pad a ragged one
    KEYS = "k < d_k"  # channels that exist; kernels pad them to a power of two
    VALUES = "v < d_v"


@dataclass(frozen=True)
class Hidden:
    """The relation that keeps what exists of one hidden layer's channels, as KEYS does of those of keys."""

    axis: str

    @property
    def value(self) -> str:
        return f"{self.axis} < width of {self.axis}"


@dataclass(frozen=True)
class Window:
    """The relation that keeps the last tokens, so many up to the one that reads."""

    tokens: int

    @property
    def value(self) -> str:
        return f"t - s < {self.tokens}"


INSIDE = {"k": Relation.KEYS, "v": Relation.VALUES, **{axis: Hidden(axis) for axis in HIDDEN}}


@dataclass(frozen=True)
class Mask:
    """arg where the relation holds, `fill` elsewhere."""

    arg: Tile
    relation: Union[Relation, Hidden, Window]
    fill: float


@dataclass(frozen=True)
class Relabel:
    """The same numbers under another axis: "t" <-> "s", a token's two roles, "k" <-> "j", a key channel's, or "k" <->
    "v" where they are as many."""

    arg: Tile


@dataclass(frozen=True)
class Root:
    """x with x + pull(x) = base, entry by entry; pull, over UNKNOWN and the names of args, never falls as x grows.

    So the left side rises by at least what x does: there is one x, and any other point tells how far off it can be.
    """

    pull: Expr
    base: Tile
    args: tuple[Tile, ...]


@dataclass(frozen=True)
class Substitute:
    """The first of x_i = bases[i] - sum_j A_ij w_j(x_j), row after row, and in each row one unknown after the other.

    A_ij = matrices[i][j], [t, s], or A_ji' in its place where they are taken transposed, is strictly lower, but for
    those left of the diagonal where unknowns are `in_turn`, which see what those before them write in their own row.
    `bodies` work w_i out, their last targets, from `unknowns`, which stand for x; a row of w_i hangs on that row of
    x_i alone. As a rule there is one unknown; others are `Further`.
    """

    matrices: tuple[tuple[Tile, ...], ...]
    bases: tuple[Tile, ...]
    unknowns: tuple[Tile, ...]
    bodies: tuple[tuple[Statement, ...], ...]
    transposed: bool
    in_turn: bool

    @property
    def written(self) -> tuple[Tile, ...]:
        return tuple(body[-1].target for body in self.bodies)

    @property
    def body(self) -> tuple[Statement, ...]:
        return tuple(s for body in self.bodies for s in body)

    @property
    def block(self) -> int:
        """Tokens walked at once: 16 rows of all unknowns, or of each where these wait for one another anyway."""
        return 16 if meets_in_rows(self) else 16 >> (len(self.bases) - 1).bit_length()

    @property
    def pairs(self) -> tuple[Tile, ...]:
        """All matrices, row after row."""
        return tuple(t for row in self.matrices for t in row)

    @property
    def rows(self) -> tuple[Tile, ...]:
        return taken(self.body, *self.unknowns)

    def matrix(self, i: int, j: int) -> Tile:
        """What x_i takes w_j by."""
        return self.matrices[j][i] if self.transposed else self.matrices[i][j]

    def sees_own(self, i: int, j: int) -> bool:
        """Whether a row of x_i takes what is written of x_j in that row: those before it, from the other end after."""
        return self.in_turn and (j > i if self.transposed else j < i)


@dataclass(frozen=True)
class Further:
    """unknowns[number] of a substitution, of which `first` is the first."""

    first: Tile
    number: int


@dataclass(frozen=True)
class Written:
    """What a substitution has written in the rows of `solved`, its solution."""

    solved: Tile


@dataclass(frozen=True)
class Conjugate:
    """x with A x = rhs, row by row: A is symmetric and positive definite in each row, a matrix over key channels.

    `body` works A x out, its last target, from `unknown`, which stands for x. Found by conjugate gradients,
    preconditioned by `diagonal`, positive numbers that are no part of the result: one a row, or one a channel too.
    """

    rhs: Tile
    diagonal: Tile
    unknown: Tile
    body: tuple[Statement, ...]

    @property
    def applied(self) -> Tile:
        return self.body[-1].target

    @property
    def outside(self) -> tuple[Tile, ...]:
        return taken(self.body, self.unknown)


def taken(body: tuple[Statement, ...], *unknowns: Tile) -> tuple[Tile, ...]:
    """What a body takes from outside."""
    made = {*unknowns, *(s.target for s in body)}
    return tuple(dict.fromkeys(t for s in body for t in operands(s.op) if t not in made))


Op = Union[
    Elementwise,
    Contract,
    Compose,
    Decayed,
    Reduce,
    Largest,
    Mask,
    CumulativeSum,
    LinearScan,
    Relabel,
    Solve,
    Joint,
    Inverse,
    Root,
    Substitute,
    Further,
    Written,
    Conjugate,
    RunningSum,
    Difference,
    Normaliser,
    Attend,
]


@dataclass(frozen=True)
class Statement:
    """target = op. `origin` says where it comes from: a spec key, or what it is the adjoint of."""

    target: Tile
    op: Op
    origin: str


@dataclass(frozen=True)
class Carry:
    """A state handed from chunk to chunk: `state` on entering a chunk becomes `next` on leaving it.

    A reverse carry (a cotangent) enters at the chunk's end and leaves at its start. `label` is the public
    name of what is carried: "S" for the memory, "d_S" for its cotangent. A private one is nothing to a caller:
    what it enters a sequence with is never read. One that never moves, `next` being `state`, holds a parameter: what
    its cotangent is at the sequence's start is the parameter's gradient.
    """

    label: str
    state: Tile
    next: Tile
    reverse: bool
    private: bool = False


@dataclass(frozen=True)
class Program:
    """inputs and the carried states go in; outputs {public name: tile} and the next states come out.

    An adjoint says what the cotangents of the forward tiles are, where they have one. `answer` is what the memory
    answers to a query: the output, or what that is made of, beside the normaliser if it takes one; `unknowns` are what
    systems of several were solved for, `mapped` what stands in the place of queries and keys.
    """

    inputs: tuple[Tile, ...]
    statements: tuple[Statement, ...]
    carries: tuple[Carry, ...]
    outputs: tuple[tuple[str, Tile], ...]
    cotangents: tuple[tuple[Tile, Tile], ...] = ()
    answer: Optional[Tile] = None
    unknowns: tuple[Tile, ...] = ()
    normaliser: Optional[Tile] = None
    mapped: tuple[Tile, ...] = ()

    @property
    def answers(self) -> tuple[Tile, ...]:
        """All that a read-out takes of the memory."""
        return tuple(t for t in (self.answer, self.normaliser) if t is not None)


def operands(op: Op) -> tuple[Tile, ...]:
    match op:
        case Elementwise(_, args):
            return args
        case Contract(a, b, _, add):
            return (a, b) if add is None else (a, b, add)
        case Compose(a, b):
            return (a, b)
        case Decayed(a, b, _, steps):
            return (a, b, steps)
        case Reduce(arg) | Largest(arg) | Mask(arg, _, _) | CumulativeSum(arg) | RunningSum(arg, _) | Relabel(arg):
            return (arg,)
        case Solve(matrix, rhs, _):
            return (matrix, rhs)
        case Joint(_, systems, rhs):
            return (*(t for row in systems for t in row), *rhs)
        case Inverse(matrix):
            return (matrix,)
        case LinearScan(decay, write, start):
            return (decay, write) if start is None else (decay, write, start)
        case Root(_, base, args):
            return (base, *args)
        case Substitute(_, bases):
            return (*op.pairs, *bases, *op.rows)
        case Further(solved) | Written(solved):
            return (solved,)
        case Conjugate(rhs, diagonal):
            return tuple(dict.fromkeys((rhs, diagonal, *op.outside)))
        case Difference(rows, columns):
            return (rows, columns)
        case Normaliser(logits, rest):
            return (logits,) if rest is None else (logits, rest)
        case Attend(logits, normaliser, values, rest):
            return (logits, normaliser, values) if rest is None else (logits, normaliser, values, rest)


def row_axes(tile: Tile) -> Axes:
    """The axes of what a tile holds of one token."""
    return tile.axes[1:] if tile.axes[:1] in (("t",), ("s",)) else tile.axes


def sums(statement: Statement, axis: str) -> bool:
    """Whether it sums over an axis (or takes the largest along it), which kernels split or walk in panels."""
    summed = isinstance(statement.op, (Contract, Decayed, Reduce, Largest)) and axis not in statement.target.axes
    return summed and any(axis in t.axes for t in operands(statement.op))


def sums_values(statement: Statement) -> bool:
    return sums(statement, "v")


def meets_in_rows(op: Substitute) -> bool:
    """Whether a row of a substitution sums over value channels: a program needs them all then."""
    return any(sums_values(s) for s in op.body)


def joins_channels(statement: Statement) -> bool:
    """Whether it takes key channels for value channels: a program needs all of both then."""
    op = statement.op
    return isinstance(op, Relabel) and ("v" in op.arg.axes) != ("v" in statement.target.axes)
