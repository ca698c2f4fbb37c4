"""Kernels that stream over pairs of tokens, and those that sum along a sequence, as their templates' holes."""

from __future__ import annotations

from copy import deepcopy

from ttrc.backends.triton import search
from ttrc.backends.triton.memory import ChunkMemory
from ttrc.backends.triton.pointers import as_inputs
from ttrc.backends.triton.printer import TritonPrinter, shape
from ttrc.ir.plan import Buffer, Kernel, Segment, Skeleton
from ttrc.ir.tile import Attend, Contract, Difference, Mask, Normaliser, Relation, RunningSum, Statement, Tile, Window
from ttrc.language.spec import Domain
from ttrc.passes.stream_pairs import turns_pairs

ROWS = {"t": ("t_first", "t_left"), "s": ("s_first", "s_left")}
PAIRS = (Relation.CAUSAL, Relation.STRICT)
NOTHING = Segment(False, (), (), (), ())


class _Writer:
    def __init__(self, kernel: Kernel, domains: dict[str, Domain], tags: dict[str, str]):
        turned = kernel.skeleton is Skeleton.STREAM and turns_pairs(kernel.reverse, kernel.segments[0].statements)
        raw = {b.tile.name for s in kernel.segments for b in s.loads if as_inputs(b)}
        self.printer = TritonPrinter(raw, begins={}, columns="s", end="length", turns=(("t", "s"),) if turned else ())
        self.exact = kernel.exact
        self.memory = ChunkMemory(domains, {}, ROWS, heads="HO", along="t" if turned else "")
        self.tags, self.origin = tags, None

    def loads(self, buffers: tuple[Buffer, ...]) -> list[str]:
        return [f"{b.tile.name} = {self.memory.load(b)}" for b in buffers]

    def stores(self, buffers: tuple[Buffer, ...]) -> list[str]:
        return [self.memory.store(b, self.printer.name(b.tile)) for b in buffers]

    def straight(self, segment: Segment) -> list[str]:
        return [*self.loads(segment.loads), *self.statements(segment.statements), *self.stores(segment.stores)]

    def tagged(self, statement: Statement, lines: list[str]) -> list[str]:
        """A comment where the origin changes: the spec line a statement came from, or whose adjoint it is."""
        if not lines or statement.origin == self.origin:
            return lines
        self.origin = statement.origin
        return [f"# {self.tags.get(statement.origin, statement.origin)}", *lines]

    def statements(self, statements: tuple[Statement, ...]) -> list[str]:
        return [line for s in statements for line in self.tagged(s, self.lines(s))]

    def lines(self, statement: Statement) -> list[str]:
        self.printer.precise = statement.target in self.exact
        return self.printer.lines(statement)


class _Stream(_Writer):
    def __init__(self, kernel: Kernel, domains: dict[str, Domain], tags: dict[str, str]):
        super().__init__(kernel, domains, tags)
        self.kernel, self.window = kernel, kernel.window

    def edges(self, kernel: Kernel) -> list[str]:
        """Running sums where the blocks of queries begin that are next to the program's own keys, or are its own: whole
        blocks lie on two sides of it, so that differences from there lose nothing to the size of sums."""
        rows = {s.op.rows for s in kernel.statements if isinstance(s.op, Difference)}
        begin = "s_first + BT, s_left > BT" if kernel.reverse else "t_first, t_left > 0"
        own = {b.tile: b for b in kernel.loads}
        return [f"_{t.name}_edge = {self.memory.one(own[t], *begin.split(', '))}" for t in rows]

    def open(self, segment: Segment, *, grouped: bool = False) -> list[str]:
        """What the sums start from, those over blocks or those that go on over heads."""
        summed = {s.target: s for s in segment.statements if s.target in segment.sums}
        lines = []
        for target, statement in summed.items():
            if (target in self.kernel.grouped) is not grouped:
                continue
            match statement.op:
                case Normaliser():
                    lines += [f'_{target.name}_top = tl.full([BT], float("-inf"), tl.float32)']
                    lines += [f"_{target.name} = tl.zeros([BT], tl.float32)"]
                case Attend():
                    lines += [f"{target.name} = tl.zeros({shape(target)}, tl.float32)"]
                case op:
                    chained = isinstance(op, Contract) and op.add in summed
                    lines += self.printer.open_sum(statement, chained)
        return lines

    def block(self, segment: Segment, *, whole: bool) -> str:
        """One block of pairs; of a whole one, which is never on the diagonal, all are seen. Both kinds of text begin
        with the same names, and add to the same sums."""
        printer, self.printer, self.origin = self.printer, deepcopy(self.printer), None
        if whole or self.window is not None or self.kernel.search is not None:
            rows = [s.op.rows.name for s in segment.statements if isinstance(s.op, Difference)]
            self.printer.edges, self.printer.across = {name: f"_{name}_edge" for name in rows}, whole
        lines = self.loads(segment.loads)
        for s in segment.statements:
            match s.op:
                case Mask(arg, relation) if whole and (relation in PAIRS or isinstance(relation, Window)):
                    self.printer.share(s.target, arg)
                case Normaliser():
                    pass  # beside the sum that it divides
                case Attend():
                    lines += self.tagged(s, self._attend(s.target, s.op, _normaliser(segment)))
                case _ if s.target in segment.sums:
                    self.printer.precise = s.target in self.exact
                    lines += self.tagged(s, self.printer.add_panel(s))
                case _:
                    lines += self.statements((s,))
        self.printer, self.origin = printer, None
        return "\n".join(lines)

    def search(self, again: Segment, within: Segment, after: Segment) -> dict[str, object]:
        """What stands around a step's loop over blocks, and around all steps."""
        op, target = self.kernel.search.op, self.kernel.search.target
        opening = [*self.statements(again.statements), *self.open(within)]
        closing, self.origin = self.statements(after.statements), None
        around = self.printer.search(op, target, self.printer.name(op.applied), products=True)
        return {
            "ahead": around.ahead,
            "going": around.going,
            "most": search.MOST,
            "opening": "\n".join(opening),
            "closing": "\n".join([*closing, *around.step, *search.again(around)]),
            "behind": around.behind,
        }

    def _attend(self, target: Tile, op: Attend, normaliser: Tile) -> list[str]:
        """Sums relative to the largest logit so far, as powers of 2: product and difference are one instruction."""
        o, n, logits = target.name, normaliser.name, self.printer.name(op.logits)
        self.printer.precise = target in self.exact
        values, shrunk = self.printer.operand(op.values), f"{o} * _shrink[:, None]"
        if self.printer.precise:
            total = f"exact_dot(_weights, {values}, {shrunk}, dtype, PRECISION)"
        else:
            total = f"tl.dot(_weights.to(dtype), {values}, {shrunk}, input_precision=PRECISION)"
        return [
            f"_top = tl.maximum(_{n}_top, in_base_2(tl.max({logits}, 1)))",
            f"_shrink, _weights = tl.exp2(_{n}_top - _top), tl.exp2(in_base_2({logits}) - _top[:, None])",
            f"_{n}, _{n}_top = _{n} * _shrink + tl.sum(_weights, 1), _top",
            f"{o} = {total}",
        ]

    def close(self, segment: Segment) -> list[str]:
        """The normaliser, and what it divides."""
        lines = []
        for s in segment.statements:
            match s.op:
                case Normaliser(_, rest):
                    n, shrink = s.target.name, ""
                    if rest is not None:
                        rest, shrink = f"in_base_2({self.printer.name(rest)})", " * _shrink[:, None]"
                        lines += [
                            f"_top = tl.maximum(_{n}_top, {rest})",
                            f"_shrink = tl.exp2(_{n}_top - _top)",
                            f"_{n}, _{n}_top = _{n} * _shrink + tl.exp2({rest} - _top), _top",
                        ]
                    lines += [f"{n} = (_{n}_top + tl.log2(_{n})) / in_base_2(1.0)"]
                case Attend():
                    o, n = s.target.name, _normaliser(segment).name
                    lines += [f"{o} = {o}{shrink} / _{n}[:, None]"]
        return lines


def _normaliser(segment: Segment) -> Tile:
    (found,) = (s.target for s in segment.statements if isinstance(s.op, Normaliser))
    return found


def stream_holes(kernel: Kernel, domains: dict[str, Domain], tags: dict[str, str]) -> dict[str, object]:
    first, *segments, last = kernel.segments if kernel.grouped else (NOTHING, *kernel.segments, NOTHING)
    before, behind = segments[0], segments[-1]
    (within,) = (s for s in segments if s.panelled)
    writer = _Stream(kernel, domains, tags)
    around = [*writer.straight(first), *writer.open(within, grouped=True)]
    ahead = [
        *writer.loads(before.loads),
        *writer.edges(kernel),
        *writer.statements(before.statements),
        *writer.stores(before.stores),
    ]
    searching = None if kernel.search is None else writer.search(*segments[1:-1])
    ahead += writer.open(within) if searching is None else searching.pop("ahead")
    masked = writer.block(within, whole=False)
    whole = writer.block(within, whole=True) if searching is None else ""
    after = writer.close(within) if searching is None else searching.pop("behind")
    after += writer.straight(behind)
    return {
        "own": "s" if kernel.axis == "t" else "t",
        "other": kernel.axis,
        "grouped": bool(kernel.grouped),
        "around": "\n".join(around),
        "total": "\n".join(writer.straight(last)),
        "before": "\n".join(ahead),
        "window": kernel.window,
        "search": searching,
        "whole": whole,
        "masked": masked,
        "behind": "\n".join(after),
    }


def walk_holes(kernel: Kernel, domains: dict[str, Domain], tags: dict[str, str]) -> dict[str, object]:
    (segment,) = kernel.segments
    writer = _Writer(kernel, domains, tags)
    lines, sums = writer.loads(segment.loads), []
    for s in segment.statements:
        match s.op:
            case RunningSum(arg, reverse):
                own, x = f"_{s.target.name}", f"{writer.printer.name(arg)}.to(tl.float64)"
                sums.append(own)
                double = any(b.double for b in segment.stores if b.tile == s.target)
                text = f"{own} + tl.cumsum({x}, 0{', reverse=True' if reverse else ''})"
                text = text if double else f"({text}).to(tl.float32)"
                lines += writer.tagged(s, [f"{s.target.name} = {text}", f"{own} += tl.sum({x}, 0)"])
            case _:
                lines += writer.statements((s,))
    return {"reverse": kernel.reverse, "sums": sums, "body": "\n".join([*lines, *writer.stores(segment.stores)])}
