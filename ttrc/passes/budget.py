"""Plan -> what it costs: bytes and FLOPs per token and value head, launches, serial steps. No clock in it.

Bytes are distinct ones: what a kernel touches twice counts once, the cache serves the rest. States handed in at a
sequence's start and out at its end are a cost per sequence (or segment of one), not per token, and left out. FLOPs
are those of the matrix products that are issued: padding and repetition by value block included.
"""

from __future__ import annotations

import math
from typing import Optional

from ttrc.ir.config import Config, hidden_block, key_block, step_tokens, value_block
from ttrc.ir.cost import Budget, Traffic
from ttrc.ir.module import Module
from ttrc.ir.plan import Buffer, Cut, Kernel, Launch, Plan, Skeleton, Space
from ttrc.ir.tile import (
    HIDDEN,
    Attend,
    Compose,
    Conjugate,
    Contract,
    CumulativeSum,
    Decayed,
    Inverse,
    Statement,
    Substitute,
    Tile,
    row_axes,
)
from ttrc.passes.measure_chain import chained_products

STEPS = 16  # of conjugate gradients, as a rule in half precision: keys of length 1, a ridge of 1
LENGTH = 4096  # tokens of a sequence, where none is given


def budget(
    module: Module,
    *,
    d_k: int,
    d_v: int,
    dtype_bytes: int,
    gate_bytes: int = 4,
    chunk: Optional[int] = None,
    schedule: Optional[str] = None,
    segments: int = 1,
    length: int = LENGTH,
) -> dict[str, dict[str, Budget]]:
    """{form: {"forward" | "backward": Budget}} at batch 1 with as many key heads as value heads.

    Of each form's first schedule, or of the forms that have one of the name `schedule`, in its own chunks or those of
    `chunk` tokens; `segments` is how many a sequence is cut into where it is, and `length` its tokens, which matters
    where there are products for each pair of them.
    """
    costs = {}
    for name, form in module.forms.items():
        cost = _Cost(form.plan, chunk, d_k, d_v, dtype_bytes, gate_bytes, length)
        for chosen in [s for s in form.plan.schedules if s.name == schedule] if schedule else form.plan.schedules[:1]:
            costs[name] = {p: cost.of(getattr(chosen, p), segments) for p in ("forward", "backward")}
    return costs


def least_bytes(module: Module, *, d_k: int, d_v: int, dtype_bytes: int, gate_bytes: int = 4) -> dict[str, float]:
    """Each input read once, each output written once."""
    widths = {"k": d_k, "v": d_v}
    single = {b.name for f in module.forms.values() for k in f.plan.kernels for b in k.loads if b.single}
    rows = {g.name for g in module.spec.inputs if g.per.axes} - single  # of the read-out alone: as v is
    gates = sum(
        (dtype_bytes if g.name in rows else gate_bytes) * math.prod(widths[a] for a in g.per.axes)
        for g in module.spec.inputs
    )
    read, written = dtype_bytes * (2 * d_k + d_v), dtype_bytes * d_v
    return {"forward": read + gates + written, "backward": 2 * (read + gates) + written}


def held_bytes(plan: Plan, cut: Cut, *, d_k: int, d_v: int, dtype_bytes: int, length: int = LENGTH) -> float:
    """What a cut holds between the passes, per token and value head, beside the inputs."""
    cost = _Cost(plan, None, d_k, d_v, dtype_bytes, 4, length)
    return sum(cost.held(b, cut) for b in cut.kept)


def cost_again(
    plan: Plan, cut: Cut, *, d_k: int, d_v: int, dtype_bytes: int, chunk: Optional[int] = None, stretches: int = 1
) -> Budget:
    """What the backward pass begins with, of a sequence of so many stretches of chunks between states."""
    return _Cost(plan, chunk, d_k, d_v, dtype_bytes, 4).of(cut.again, stretches)


def launch_budget(
    plan: Plan,
    kernel: Kernel,
    *,
    d_k: int,
    d_v: int,
    dtype_bytes: int,
    gate_bytes: int = 4,
    length: int = LENGTH,
) -> tuple[Traffic, float]:
    """One kernel's traffic per token and head, and its serial steps per token of what it walks in one go."""
    cost = _Cost(plan, None, d_k, d_v, dtype_bytes, gate_bytes, length)
    return cost.traffic(kernel), cost.steps(kernel)


def serial_products(plan: Plan, kernel: Kernel, *, d_k: int, d_v: int, dtype_bytes: int) -> float:
    """How many matrix products a step of a kernel that scans is long, one after the other; 0 of others.

    What goes row by row counts as the products that take as long.
    """
    return _Cost(plan, None, d_k, d_v, dtype_bytes, 4).products(kernel)


def inner_loops(plan: Plan, kernel: Kernel, *, d_k: int, d_v: int, dtype_bytes: int) -> int:
    """How often loops run that stand in a step of a scan, or in a chunk's program beside those over value channels:
    over the blocks of rows of a substitution, panels of hidden or key channels, the rows of the blocks of an inverse,
    the pieces, by halves of halves, of a chunk that decays by channel."""
    cost = _Cost(plan, None, d_k, d_v, dtype_bytes, 4)
    kernel = cost.text(kernel)
    if kernel.in_memory:
        return cost.panels(kernel)
    if ops := [s.op for s in kernel.statements if isinstance(s.op, Substitute)]:
        return cost.step // ops[0].block
    if any(isinstance(s.op, Inverse) for s in kernel.statements):
        return 15
    return cost.chunk.bit_length() - 1 if any(isinstance(s.op, Decayed) for s in kernel.statements) else 1


def launch_costs(
    plan: Plan, launches: tuple[Launch, ...], *, width: int
) -> tuple[tuple[int, int, float, Optional[bool]], ...]:
    """Of each launch, at inputs of two bytes: bytes, FLOPs, serial matrix products a step, whether over segments, or
    (None) from one to the next."""
    cost = _Cost(plan, None, width, width, 2, 4)
    rows = []
    for launch in launches:
        spent = cost.traffic(launch.kernel)
        products = cost.products(launch.kernel)
        moved = round(spent.read_bytes + spent.written_bytes)
        walks = None if launch.kernel.skeleton is Skeleton.JOIN else launch.segments
        rows.append((moved, round(spent.flops), round(products, 1), walks))
    return tuple(rows)


def _decayed_products(statements: tuple[Statement, ...]) -> int:
    """Products for each length of pieces: two for decays that are shared, one for pairs of tokens, and one for what
    comes back from such pairs to either of their factors."""
    decayed = [s.op for s in statements if isinstance(s.op, Decayed)]
    return 2 * len({(op.steps, op.own) for op in decayed}) + len(decayed)


class _Cost:
    def __init__(
        self,
        plan: Plan,
        chunk: Optional[int],
        d_k: int,
        d_v: int,
        dtype_bytes: int,
        gate_bytes: int,
        length: int = LENGTH,
    ):
        self.length = length
        self.chunk = chunk or plan.tokens(d_k, d_v, dtype_bytes)
        self.step, self.longest = min(self.chunk, plan.step), plan.chunk
        self.dtype_bytes, self.gate_bytes = dtype_bytes, gate_bytes
        # A row of a causal C x C tile: on average half of its blocks of 16, and half of the one on the diagonal.
        hidden = dict.fromkeys(HIDDEN, (plan.expansion or 0) * d_k)
        self.width = {"s": (self.chunk + 16) // 2, "k": d_k, "j": d_k, "v": d_v, **hidden}
        self.d_k, self.d_v = d_k, d_v

    def of(self, launches: tuple[Launch, ...], segments: int) -> Budget:
        rows = tuple((launch.kernel.name, self.traffic(launch.kernel)) for launch in launches)
        serial = sum(self.steps(x.kernel) / (segments if x.segments else 1) for x in launches)
        return Budget(rows, len(launches), serial)

    def steps(self, kernel: Kernel) -> float:
        """Serial steps a token; those of a join come by segment, and are few."""
        match kernel.skeleton:
            case Skeleton.SCAN | Skeleton.STEPS_REVERSE:
                return 1.0 / self._step(kernel)
            case Skeleton.TOKENS | Skeleton.TOKENS_REVERSE:
                return 1.0
            case Skeleton.WALK:
                return 1.0 / self._config(kernel).value_block
        return 0.0

    def products(self, kernel: Kernel) -> float:
        """How many matrix products long a scan's step is."""
        if kernel.skeleton is Skeleton.JOIN:
            return kernel.crossing.chain(self.d_k)
        if kernel.skeleton not in (Skeleton.SCAN, Skeleton.STEPS_REVERSE):
            return 0
        return sum(
            chained_products(s, self.step) * (self.panels(kernel) if part.panelled else 1)
            for part in self.text(kernel).segments
            for s in part.statements
        )

    def traffic(self, kernel: Kernel) -> Traffic:
        # What is loaded in both roles of a token, or once more, is the same in memory.
        loads = {(b.name, row_axes(b.tile) if {"t", "s"} & set(b.tile.axes) else b.tile): b for b in kernel.loads}
        loads = loads.values()
        read = sum(self._bytes(b, kernel) for b in loads)
        written = sum(self._bytes(b, kernel) for b in kernel.stores)
        states = sum(4 * self._numbers(c.state) for c in kernel.carries if not c.reverse) / self.chunk
        match kernel.skeleton:
            case Skeleton.TOKENS:  # checkpoints
                written += states
            case Skeleton.TOKENS_REVERSE:  # checkpoints, and the trail of recomputed states (which caches hold)
                read += states
        statements = self.text(kernel).statements
        flops = 0.0 if kernel.by_token else sum(self._flops(s, kernel) for s in statements)
        lengths, channels = self.chunk.bit_length() - 1, self._decayed_channels(kernel, statements)
        flops += 2.0 * self.chunk * lengths * channels * _decayed_products(statements)
        return Traffic(read, written, flops)

    def _bytes(self, buffer: Buffer, kernel: Kernel) -> float:
        match buffer.space:
            case Space.HEAD | Space.TOTAL | Space.START:  # the last lies among what is loaded chunk by chunk
                return 0.0
            case Space.NUMBER:
                return self.gate_bytes * self._numbers(buffer.tile) / self.chunk
            case Space.CHUNK:
                return (4 if buffer.single else self.dtype_bytes) * self._numbers(buffer.tile) / self.chunk
        features = [self.width[a] for a in row_axes(buffer.tile)]
        for op in (s.op for s in kernel.statements if isinstance(s.op, Substitute) and buffer.tile in s.op.pairs):
            features = [(self.chunk + op.block) // 2]  # read by blocks of so many rows
        partial = kernel.shares(buffer)
        copies = -(-self.d_v // self._value_block(kernel)) if partial else 1
        if buffer.double:
            return 8.0
        if not features or buffer.single:
            return self.gate_bytes * math.prod(features) * copies
        return (4 if partial else self.dtype_bytes) * features[0] * copies

    def held(self, buffer: Buffer, cut: Cut) -> float:
        """As it lies in memory: pairs of tokens the masked ones too, states once in so many chunks."""
        if buffer.space is Space.CHUNK:
            states = -(-self.length // cut.stretch(self.chunk))  # the last of fewer tokens is no smaller
            size = 4 if buffer.single or cut.every > 1 else self.dtype_bytes
            return size * self._numbers(buffer.tile) * states / self.length
        if buffer.space is Space.NUMBER:
            return self.gate_bytes * self._numbers(buffer.tile) * -(-self.length // self.chunk) / self.length
        if buffer.double:
            return 8.0
        widths = [{**self.width, "s": self.chunk}[a] for a in row_axes(buffer.tile)]
        if not widths:
            return self.gate_bytes
        return (self.gate_bytes if buffer.single else self.dtype_bytes) * widths[0]

    def _numbers(self, state: Tile) -> int:
        return math.prod(self.width[a] for a in state.axes)

    def _flops(self, statement: Statement, kernel: Kernel) -> float:
        tokens = self.step if kernel.skeleton is Skeleton.SCAN else self.chunk
        hidden = self._hidden_block(kernel) * self.panels(kernel)
        keys = self._keys(kernel)
        blocks = {"t": tokens, "s": tokens, "k": keys, "j": keys, **dict.fromkeys(HIDDEN, hidden)}
        panels = -(-self.d_v // self._value_block(kernel))
        blocks["v"] = self._value_block(kernel) * panels
        if kernel.skeleton is Skeleton.STREAM:
            return self._of_pairs(statement, kernel, blocks)
        match op := statement.op:
            case Contract(_, _, axis):
                size = 2.0 * blocks[axis]
                for a in statement.target.axes:
                    size *= blocks[a]
                repeated = kernel.skeleton is Skeleton.SCAN and "v" not in (axis, *statement.target.axes)
                return size * (panels if repeated else 1) / tokens
            case Conjugate(body=body):
                return STEPS * sum(self._flops(s, kernel) for s in body)
            case Substitute():  # a block of rows taken off all rows; within blocks there are no products
                taken = len(op.bases) if op.block == 16 else 16 // op.block
                return 2.0 * blocks["v"] * tokens * len(op.bases) * taken
            case CumulativeSum(arg) if set("kv") & set(arg.axes):  # by a table, of numbers in two parts
                return 4.0 * tokens * blocks[arg.axes[-1]]
            case Compose():
                return 2.0 * tokens**2
            case Inverse():  # two products of C x C a doubling, from blocks of 16
                return 4.0 * tokens**2 * ((tokens // 16).bit_length() - 1)
        return 0.0

    def _of_pairs(self, statement: Statement, kernel: Kernel, blocks: dict[str, int]) -> float:
        """Of a token: a product for each pair that it is in, and for the pairs of visited blocks that nobody sees."""
        block = self._config(kernel).value_block
        pairs = block * (1 + kernel.visited(self.length, block))
        pairs *= STEPS if statement.target in kernel.repeated else 1
        # In half precision what is float32 of an exact product goes through it in two parts.
        parts = 2 if statement.target in kernel.exact and self.dtype_bytes < 4 else 1
        match statement.op:
            case Contract(a, b):
                channels = (set(a.axes) | set(b.axes)) - {"t", "s"}
                return 2.0 * math.prod(blocks[c] for c in channels) * pairs * parts
            case Attend(values=values):
                (channel,) = set(values.axes) - {"s"}
                return 2.0 * blocks[channel] * pairs * parts
        return 0.0

    def _config(self, kernel: Kernel) -> Config:
        return kernel.config(self.longest, self.d_k, self.d_v)

    def _step(self, kernel: Kernel) -> int:
        """Tokens of a scan's tiles."""
        return step_tokens(kernel.takes, self._config(kernel), self.chunk, self.step, self.d_k, self.d_v)

    def _value_block(self, kernel: Kernel) -> int:
        return value_block(kernel.takes, self._config(kernel), self.d_v)

    def _hidden_block(self, kernel: Kernel) -> int:
        """Hidden channels that a program takes at once."""
        return hidden_block(kernel.takes, self._config(kernel), self.width["h1"] or 1)

    def _keys(self, kernel: Kernel) -> int:
        """Key channels of all panels."""
        return self._key_block(kernel) * -(-self.d_k // self._key_block(kernel))

    def _decayed_channels(self, kernel: Kernel, statements: tuple[Statement, ...]) -> int:
        """Those by which decays differ, of all panels or programs."""
        if any(isinstance(s.op, Decayed) and s.op.channel == "v" for s in statements):
            return self._value_block(kernel) * -(-self.d_v // self._value_block(kernel))
        return self._keys(kernel)

    def _key_block(self, kernel: Kernel) -> int:
        return key_block(kernel.takes, self._config(kernel), self.d_k)

    def panels(self, kernel: Kernel) -> int:
        """Of hidden channels, or of key channels."""
        if self.text(kernel).axis == "k":
            return -(-self.d_k // self._key_block(kernel))
        return -(-max(self.width["h1"], 1) // self._hidden_block(kernel))

    def text(self, kernel: Kernel) -> Kernel:
        """What runs of it for these heads."""
        return kernel.of(self.d_k, self._key_block(kernel)) if kernel.wide is not None else kernel
