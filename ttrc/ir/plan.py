"""Kernel plans: which statements run in which kernel, and what each reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

from ttrc.ir.config import WIDE, Config, Takes, block, default_chunk, default_config, entry_chunk
from ttrc.ir.crossing import Crossing
from ttrc.ir.obstacle import Uncut
from ttrc.ir.tile import Carry, CumulativeSum, Decayed, Mask, Statement, Tile, Window, operands


class Space(Enum):
    """Where a buffer lives in global memory; the value is its leading shape."""

    KEY_TOKEN = "B, T, H"  # k; of a rule with a state q too, and their cotangents: one row a token and key head
    QUERY_TOKEN = "B, T, HQ"  # q of a kernel memory
    VALUE_TOKEN = "B, T, HV"  # and its v
    GROUP_TOKEN = "B, T, HG"  # cotangents of what heads of a call share, each the sum over a group of these
    TOKEN = "B, T, heads"  # everything else that comes per token, of each head of a call: HV, or HO of a kernel memory
    SOLVED = "B, T, HV, solved"  # as TOKEN: what a scan solves for, and other kernels take from it
    HEAD = "HV"  # parameters: constant in time, one number a head or one each of its channels
    CHUNK = "chunks, HV"  # one [K, V] tile a chunk
    START = "chunks, HV, start"  # as CHUNK: that of the chunk which a segment of several chunks starts with
    NUMBER = "chunks, HV, one"  # a number a chunk, or one for each key channel, float32
    TOTAL = "N, HV, all"  # sums over a sequence's tokens, as gradients of parameters are; float32
    SEQUENCE = "N, HV"  # the states that a kernel carries, one behind the other, where it leaves them; float32
    WAITING = "N, HV, chunk"  # tiles of one chunk that wait while a loop over panels has the registers; room of float32


OWN = (Space.SEQUENCE, Space.WAITING)  # what no other kernel reads
BETWEEN = (Space.CHUNK, Space.SOLVED)  # what a scan stores for other kernels alone, where one will follow


def space_of(tile: Tile) -> Space:
    """Where a tile lies that one kernel makes of a chunk, for another."""
    return Space.TOKEN if set("ts") & set(tile.axes) else Space.NUMBER


@dataclass(frozen=True)
class Buffer:
    """A tile's home in global memory. Its name is the tile's public one; gates are float32 or the input's dtype.

    A `single` one is float32 whatever the inputs are, a `double` one float64; gates with channels are single, once they
    are read, but for those of the read-out alone. What waits is single, or else as products take it. Several states lie
    one behind the other in one block of memory: `parts` are then all of them, in order. It may be `again` what another
    tile of the same kernel is.
    """

    name: str
    tile: Tile
    space: Space
    parts: tuple[Tile, ...] = ()
    single: bool = False
    double: bool = False
    again: Optional[Tile] = None

    @property
    def place(self) -> tuple:
        """Where it lies: a tile that is loaded again, under another name, lies where it did; what a segment started
        with in the entry of another chunk."""
        where = self.parts.index(self.tile) if self.parts else self.again or self.tile
        return self.name, self.space is Space.START, where


class Skeleton(Enum):
    """The loop around a kernel's body; each has one template."""

    PARALLEL = "parallel"  # one program a chunk and head, the value axis (or the key axis) walked in panels
    ROWS = "rows"  # as PARALLEL, but a program has a block of the chunk's rows
    SCAN = "scan"  # one program a sequence, head and value block, chunks in order, states on chip
    TOKENS = "tokens"  # as SCAN, token by token
    TOKENS_REVERSE = "tokens_reverse"  # token by token backwards, states recomputed from checkpoints
    STEPS_REVERSE = "steps_reverse"  # as SCAN backwards, the states of a chunk's steps recomputed from where it starts
    JOIN = "join"  # one program a sequence, head and block of a state, over segments: their states composed
    STREAM = "stream"  # one program a block of tokens and head, over the blocks of tokens in the other role
    WALK = "walk"  # one program a sequence and head: sums along the sequence


@dataclass(frozen=True)
class Segment:
    """Straight-line code: once a chunk, or (panelled) once for each panel of the axis that the kernel walks.

    `sums` are the results that accumulate over the panels; they hold their total only afterwards.
    """

    panelled: bool
    loads: tuple[Buffer, ...]
    statements: tuple[Statement, ...]
    sums: tuple[Tile, ...]
    stores: tuple[Buffer, ...]


@dataclass(frozen=True)
class Kernel:
    """`narrow` tiles are held in the inputs' dtype once they are made, `turned` ones transposed as well.

    `wide` is the same kernel cut for wide heads: of a parallel one those with more key channels than WIDE says, of a
    scan those with more than its configuration takes at once. Panels are walked along `axis`. A scan that does holds
    states that are too large for a chip: they lie where it will leave them, and move on there. Of a `partial` one each
    program of a block of value channels stores its own share of sums over these, one behind the other. What joins
    pieces of sequences, or finds out what becomes of states there, knows how these are `crossing`. The name ends in
    what kind it is of, for people and for tables of configurations.
    Products make `exact` tiles of operands as they are, in half precision as sums of two. With a `search`, a Conjugate,
    all segments but the first and the last are its body, gone through in each of its steps. `grouped` sums go on over
    the heads of a group, for each of which all segments but the first and the last are gone through.
    """

    name: str
    skeleton: Skeleton
    reverse: bool
    segments: tuple[Segment, ...]
    carries: tuple[Carry, ...]
    narrow: frozenset[Tile] = frozenset()
    turned: frozenset[Tile] = frozenset()
    wide: Optional[Kernel] = None
    axis: str = "v"
    partial: bool = False
    takes: Takes = Takes.VALUES
    crossing: Optional[Crossing] = None
    exact: frozenset[Tile] = frozenset()
    search: Optional[Statement] = None
    grouped: frozenset[Tile] = frozenset()

    def of(self, d_k: int, at_once: int) -> Kernel:
        """What runs for heads of so many key channels, of which a program takes so many at once."""
        if self.wide is None:
            return self
        many = at_once < d_k if self.skeleton is Skeleton.SCAN else block(d_k) > WIDE[self.name]
        return self.wide if many else self

    def config(self, longest: int, d_k: int, d_v: int) -> Config:
        """The default one, in a plan whose chunks are `longest`."""
        return default_config(self.name, self.takes, longest, d_k, d_v)

    @property
    def loads(self) -> tuple[Buffer, ...]:
        return self._buffers(b for s in self.segments for b in s.loads)

    @property
    def stores(self) -> tuple[Buffer, ...]:
        return self._buffers(b for s in self.segments for b in s.stores)

    @staticmethod
    def _buffers(every) -> tuple[Buffer, ...]:
        """Without those that are its own; what is loaded again is one with what it was."""
        places: dict[tuple, Buffer] = {}
        for buffer in (b for b in every if b.space not in OWN):
            places.setdefault(buffer.place, buffer)
        return tuple(places.values())

    def shares(self, buffer: Buffer) -> bool:
        """Whether what it stores there is a share of a sum, float32."""
        return self.partial and buffer in self.stores and "v" not in buffer.tile.axes

    @property
    def waiting(self) -> tuple[Tile, ...]:
        """What waits in memory for later pieces of its code, in the order in which it lies there."""
        return next((b.parts for s in self.segments for b in s.stores if b.space is Space.WAITING), ())

    @property
    def room(self) -> tuple[Tile, ...]:
        """What there is room for in that memory: what waits in its text for wide heads begins with what does here."""
        return self.waiting if self.wide is None else self.wide.waiting

    @property
    def waiting_pairs(self) -> tuple[Buffer, ...]:
        """What a parallel one stores for its own later pieces, chunk by chunk."""
        return tuple(b for b in self.stores if b in self.loads and self.skeleton is Skeleton.PARALLEL)

    @property
    def statements(self) -> tuple[Statement, ...]:
        code = tuple(x for s in self.segments for x in s.statements)
        return code if self.search is None else (*code, self.search)

    @property
    def repeated(self) -> frozenset[Tile]:
        """What it makes in each step of its search."""
        return frozenset(x.target for s in self.segments[1:-1] for x in s.statements if self.search is not None)

    @property
    def window(self) -> Optional[int]:
        """How many tokens a query sees, of a kernel that streams over pairs; None where it sees all before it."""
        masks = (s.op.relation for s in self.statements if isinstance(s.op, Mask))
        return next((m.tokens for m in masks if isinstance(m, Window)), None)

    def visited(self, length: int, tokens: int) -> float:
        """Of one that streams: how many blocks of so many tokens a program visits beside its own, the mean of all."""
        blocks = -(-length // tokens)
        most = blocks - 1 if self.window is None else min(blocks - 1, (self.window + tokens - 2) // tokens)
        # At one end of the sequence a program visits none, the next one 1, and so on up to the most.
        return most - most * (most + 1) / (2 * blocks)

    @property
    def numbered(self) -> bool:
        """Whether it is a scan that loads what lies in memory chunk by chunk, whatever of states is kept."""
        return self.skeleton is Skeleton.SCAN and any(b.space is Space.NUMBER for b in self.loads)

    @property
    def asks_start(self) -> bool:
        """Whether it loads what its segment starts with."""
        return any(b.space is Space.START for b in self.loads)

    @property
    def ones(self) -> bool:
        """Whether it sums along the tokens what has channels, by products with tables of zeros and ones."""
        long = (s for s in self.statements if isinstance(s.op, (CumulativeSum, Decayed)))
        return any({"k", "v"} & set(t.axes) for s in long for t in operands(s.op))

    @property
    def by_token(self) -> bool:
        """Whether it goes token by token."""
        return self.skeleton in (Skeleton.TOKENS, Skeleton.TOKENS_REVERSE)

    @property
    def in_memory(self) -> bool:
        """Whether its states are not on chip."""
        return self.skeleton is Skeleton.SCAN and any(s.panelled for s in self.segments)

    @property
    def moves_in_memory(self) -> bool:
        """Whether they are not there for some heads at least."""
        return self.in_memory or (self.wide is not None and self.wide.in_memory)

    def carried(self, reverse: bool) -> tuple[Carry, ...]:
        """What a caller hands in and gets out: states, or their cotangents."""
        return tuple(c for c in self.carries if c.reverse is reverse and not c.private)


THROUGH = ("initial_state", "final_state")  # what a pass's carried states enter from and leave to
BACK = ("d_final_state", "d_initial")
UNIT, TRANSITION = "unit", "transition"  # those of one member of each group: what it enters as, and what that becomes


@dataclass(frozen=True)
class Launch:
    """One kernel over sequences, or over segments of them; what the states it carries enter from and leave to.

    `kernel` stores what is asked of it here, which may be less than the kernel of its name is able to.
    """

    kernel: Kernel
    enter: Optional[str] = None
    leave: Optional[str] = None
    segments: bool = False

    @property
    def crosses(self) -> bool:
        """Whether it finds out what states alone become from a segment's start to its end."""
        return self.leave is not None and self.leave.startswith(TRANSITION)


@dataclass(frozen=True)
class Schedule:
    """One way to run a form: what is launched in each pass, in order."""

    name: str
    forward: tuple[Launch, ...]
    backward: tuple[Launch, ...]

    @classmethod
    def one_each_way(cls, name: str, ahead: Kernel, back: Kernel) -> Schedule:
        return cls(name, (Launch(ahead, *THROUGH),), (Launch(back, *BACK),))


@dataclass(frozen=True)
class Cut:
    """What the forward pass keeps for the backward one, and the launches by which the latter makes the rest again.

    States are kept every `every`-th chunk: of several, in float32, so that a scan from there makes the ones between as
    they were. Such a scan runs over stretches of as many chunks, side by side; or of so many `tokens`, a segment of the
    rule, where a scan has to begin with one.
    """

    name: str
    kept: tuple[Buffer, ...]
    again: tuple[Launch, ...] = ()
    every: int = 1
    tokens: Optional[int] = None

    def stretch(self, chunk: int) -> int:
        """Tokens from one state to the next."""
        return self.tokens or self.every * chunk


@dataclass(frozen=True)
class Plan:
    """One form's kernels, and the schedules that run them, of which the first is for a chip that is full anyway.

    `cuts` say what may cross from the forward to the backward pass: first all that the latter loads, then less and
    less, each with the launches of the cut before it and more. `scratch` buffers live inside the backward pass,
    `passing` ones inside the forward one. States are kept every `chunk` tokens, or less where the chip has no room for
    tiles of that length, unless chunks are the segments of the rule, of `segment` tokens; a scan takes at most `step`
    tokens at a time, several of its steps a chunk then. Hidden layers, where there are any, are `expansion` times as
    wide as a key. `uncut` is why no schedule cuts sequences, where this was asked.
    """

    form: str
    kernels: tuple[Kernel, ...]
    schedules: tuple[Schedule, ...]
    cuts: tuple[Cut, ...]
    scratch: tuple[Buffer, ...]
    chunk: int
    step: int
    segment: Optional[int] = None
    expansion: Optional[int] = None
    passing: tuple[Buffer, ...] = ()
    uncut: Optional[Uncut] = None

    def tokens(self, d_k: int, d_v: int, dtype_bytes: int) -> int:
        """Tokens a chunk, where none are asked for."""
        if any(k.takes is Takes.ENTRIES for k in self.kernels):
            return entry_chunk(self.chunk, d_k)
        return self.chunk if self.chunk == self.segment else default_chunk(self.chunk, d_k, d_v, dtype_bytes)

    @property
    def crossing(self) -> Optional[Crossing]:
        """How states cross pieces of a sequence, if any schedule cuts these."""
        return next((k.crossing for k in self.kernels if k.crossing is not None), None)

    @property
    def saved(self) -> tuple[Buffer, ...]:
        """What crosses from the forward to the backward pass where nothing is made again."""
        return self.cuts[0].kept

    @property
    def gradients(self) -> tuple[Buffer, ...]:
        """What the backward pass makes for the caller."""
        return tuple(b for k in self.backward for b in k.stores if b not in self.scratch)

    @property
    def forward(self) -> tuple[Kernel, ...]:
        return tuple(launch.kernel for launch in self.schedules[0].forward)

    @property
    def backward(self) -> tuple[Kernel, ...]:
        return tuple(launch.kernel for launch in self.schedules[0].backward)

    @property
    def partial(self) -> bool:
        """Whether the backward pass leaves shares of sums over value channels."""
        return any(k.partial for k in self.backward)
