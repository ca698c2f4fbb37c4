"""Pieces of a planned kernel as lines of Triton: loads, statements and stores in order, loops over panels."""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import groupby

from ttrc.backends.triton import decayed, substitution
from ttrc.backends.triton.carried import carried_states
from ttrc.backends.triton.memory import FIRST, OWN_ROWS, OWN_TOKENS, ChunkMemory, TokenMemory
from ttrc.backends.triton.pointers import as_inputs
from ttrc.backends.triton.printer import OF_KEYS, OF_VALUES, TritonPrinter
from ttrc.ir.axes import is_matrix
from ttrc.ir.config import HELD
from ttrc.ir.plan import BETWEEN, OWN, Buffer, Kernel, Segment, Skeleton, Space
from ttrc.ir.tile import Conjugate, Contract, Decayed, Further, Relabel, Statement, Substitute, Tile, Written, operands
from ttrc.language.spec import Domain
from ttrc.passes.round_keys import is_factor
from ttrc.passes.slice_program import names_of, slice_program


class Writer:
    def __init__(self, kernel: Kernel, domains: dict[str, Domain], tags: dict[str, str], wide: bool = False):
        self.kernel, self.tags, self.domains = kernel, tags, domains
        if kernel.skeleton is Skeleton.ROWS:
            self.memory = ChunkMemory(domains, FIRST[kernel.axis], OWN_ROWS, OWN_TOKENS)
        elif kernel.by_token:
            self.memory = TokenMemory(domains, FIRST[kernel.axis])
        else:
            number = "i_step" if kernel.numbered else "i_chunk"
            self.memory = ChunkMemory(domains, FIRST[kernel.axis], number=number, partial=kernel.partial)
        self.stored = {b.tile: b for b in kernel.loads}
        self.waiting = {b.tile: b for s in kernel.segments for b in s.stores if b.space is Space.WAITING}
        # Of all value channels 8 warps share the columns of a chunk's rows, where they would hold copies of 64 rows.
        turns = OF_VALUES if kernel.axis == "k" or substitution.reads_back(kernel) else OF_KEYS if wide else ()
        # Of these tiles, whole ones, those that later products alone want wait as they are wanted.
        self.rests = (("t", "s"), *OF_VALUES) if kernel.axis == "k" else (("t", "s"),) if wide else ()
        self.own = kernel.waiting_pairs
        loads = [b for s in kernel.segments for b in s.loads if b.space not in OWN and b not in self.own]
        self.again = [b for b in dict.fromkeys(loads) if b not in kernel.loads]
        self.factors = [] if kernel.by_token else [b for b in loads if is_factor(b, kernel.statements)]
        raw = set() if kernel.by_token else {b.tile.name for b in loads if as_inputs(b) or b in self.factors}
        self.printer, self.loaded = TritonPrinter(raw, kernel.narrow, kernel.turned, turns, self.memory.begins), set()
        if kernel.skeleton is Skeleton.ROWS:
            self.printer.columns, self.printer.tokens = "s", self.memory.tokens
        square = [b for b in kernel.loads if b.space is Space.CHUNK and b.tile.axes == ("k", "j")]
        self.printer.states = {b.tile: self.memory.begin(b) for b in square}
        self.trail = "EVERY" if kernel.skeleton is Skeleton.STEPS_REVERSE else "BT"
        self.on_request = _on_request(kernel)
        self.origin = None

    def states(self, reverse: bool) -> dict:
        own = {b.tile: b for s in self.kernel.segments for b in s.loads if b.space is Space.WAITING}
        waits = {t: self.memory.store(b, self.printer.name(t)) for t, b in own.items()}
        return carried_states(self.kernel, reverse, self.memory.begins, self.printer.name, self.trail, waits)

    def checkpoints(self) -> dict[str, str]:
        """How the states are loaded that a chunk starts with, by name."""
        return {b.tile.name: self.memory.load(b) for b in self.kernel.loads if b.space is Space.CHUNK}

    def totals(self) -> list[str]:
        """What is written once all chunks are done: sums that were carried along."""
        held = {c.next: c.state for c in self.kernel.carries}
        own = [b for b in self.kernel.stores if b.space is Space.TOTAL]
        return [self.memory.store(b, self.printer.name(held[b.tile])) for b in own]

    def straight(self, segment: Segment) -> str:
        needed, also = self._apart(segment)
        needed |= {b.again for b in self.again if b.again is not None and b.tile in needed}
        loads = [b for b in segment.loads if b not in self.again and not _only_in_blocks(segment, b.tile)]
        if self.kernel.skeleton is Skeleton.STEPS_REVERSE:  # those of the template, at the start of each chunk
            loads = [b for b in loads if b.space is not Space.CHUNK]
        lines = self._loads(b for b in loads if b.tile in needed)
        lines += _guarded("READ", self._loads(b for b in loads if b.tile not in needed))
        made = {s.target for s in segment.statements}
        self.together = decayed.together(segment.statements)
        lines += self._stores(b for b in segment.stores if b.tile not in made)
        for reads, group in groupby(segment.statements, key=lambda s: s.target in also):
            run, printed = tuple(group), []
            if reads:  # what the scan itself takes later must not hang on the flag
                lines += self._again(run, needed)
            for s in run:
                printed += [
                    *self._again((s,)),
                    *self._statement(s),
                    *self._stored(segment, s),
                    *self._loads(_after(segment, s), again=True),
                ]
            lines += _guarded("READ", printed) if reads else printed
        return "\n".join(lines)

    def _again(self, statements: Iterable[Statement], of: Container[Tile] | None = None) -> list[str]:
        """What is loaded once more when a statement first takes it, `of` these tiles, behind a barrier: the compiler
        does not see then that it was loaded before. Rows come all at once. What is loaded again beside large matrices
        alone is otherwise the tile that it was."""
        taken = {t for s in statements for t in operands(s.op) if of is None or t in of}
        now = [b for b in self.again if b.tile in taken and b not in self.loaded]
        if any(b.again is not None and not is_matrix(b.tile) for b in now):
            rest = (b for b in self.again if b.again is not None and not is_matrix(b.tile) and b not in self.loaded)
            now = list(dict.fromkeys([*now, *rest]))
        if not now:
            return []
        large = f"BK * BV > {HELD}"
        lines = [f"if {large}:", "    tl.debug_barrier()"] if all(b.again for b in now) else ["tl.debug_barrier()"]
        was = {self.printer.name(b.tile): self.printer.name(b.again) for b in now if b.again is not None}
        for line in self._loads(now):
            name = line.partition(" = ")[0]
            lines.append(f"{line} if {large} else {was[name]}" if name in was else line)
        return lines

    def _stored(self, segment: Segment, statement: Statement) -> list[str]:
        if isinstance(statement.op, Written):  # the substitution has
            return []
        return self._stores(b for b in segment.stores if b.tile == statement.target)

    def _apart(self, segment: Segment) -> tuple[set[Tile], set[Tile]]:
        """What the scan itself needs, loads among it, and what only its read-outs do."""
        made = {s.target for s in segment.statements}
        if self.kernel.skeleton is not Skeleton.SCAN or self.kernel.in_memory:
            return {b.tile for b in segment.loads} | made, set()
        goals = [c.next for c in self.kernel.carries] + [b.tile for b in self.on_request]
        own = slice_program(segment.statements, goals, frozenset(c.state for c in self.kernel.carries))
        needed = {t for s in own for t in (s.target, *operands(s.op))}
        return needed, made - needed

    def walked(self) -> str:
        """Pieces of code and loops over panels in turn, each of which loads what it needs. What one of them stores, in
        memory that is the program's own, other threads load in the next."""
        lines = []
        for segment in self.kernel.segments:
            outside = [b for b in segment.loads if self.kernel.axis not in b.tile.axes]
            lines += self._loads(outside, again=True)
            lines += self._panel_loop(segment) if segment.panelled else [self.straight(segment)]
            lines.append("tl.debug_barrier()")
        return "\n".join(lines)

    def panels(self) -> str:
        # All that is loaded once comes first: it rests in shared memory, while its addresses would hold registers. Rows
        # that enter no product would not rest there, and come when they are taken.
        apart = {"v", self.kernel.axis}
        own, segments = self.own, self.kernel.segments
        late = _come_late(self.kernel)
        ahead = dict.fromkeys(b for s in _until_search(segments) for b in s.loads if b not in late)
        lines = self._loads(b for b in ahead if not apart & set(b.tile.axes) and b not in own)
        for number, segment in enumerate(segments):
            lines += self._loads(b for b in segment.loads if self.kernel.axis not in b.tile.axes and b not in own)
            lines += self._panel_loop(segment) if segment.panelled else [self.straight(segment)]
            if waiting := [b for b in segment.stores if b in own]:
                lines.append("tl.debug_barrier()")
                for buffer in waiting:  # as it comes from memory it is of another type, and needs another name
                    self.printer.alias[buffer.tile.name] = f"_{buffer.tile.name}"
                    self.printer.raw.add(buffer.tile.name)
                lines += self._loads(waiting, again=True)
            if self.rests:
                later = tuple(s for x in segments[number + 1 :] for s in x.statements)
                made = {s.target for s in segment.statements if s.target.axes in self.rests}
                lines += self.printer.rest(made, later)
        return "\n".join(line for line in lines if line)

    def _panel_loop(self, segment: Segment) -> list[str]:
        summed = {s.target: s for s in segment.statements if s.target in segment.sums}
        opened: list[str] = []
        for statement in summed.values():
            add = statement.op.add if isinstance(statement.op, Contract) else None
            opened += self.printer.open_sum(statement, chained=add in summed)
        axis, made = self.kernel.axis, {s.target for s in segment.statements}
        waiting = [b for b in segment.loads if axis in b.tile.axes]
        self.together = decayed.together(segment.statements)
        # Panels of weights hold many registers: each is loaded when it is used.
        body = self._loads(waiting, again=True) if axis == "v" else []
        for statement in segment.statements:
            wanted = {*operands(statement.op), *decayed.taken(self.together.get(statement, ()))}
            now = [b for b in waiting if b.tile in wanted] if axis != "v" else []
            waiting = [b for b in waiting if b not in now]
            body += self._loads(now, again=True)
            body += self._stores(b for b in segment.stores if b.tile in {x.tile for x in now})
            if isinstance(statement.op, Decayed):
                body += self._decayed(statement, set(summed))
            elif statement.target in summed:
                body += self._tagged(statement, self.printer.add_panel(statement))
            else:
                body += self._statement(statement)
            body += self._stores(b for b in segment.stores if b.tile == statement.target and b.tile not in summed)
        self.origin = None
        after = [line for s in summed.values() for line in decayed.closed(s)]
        after += self._stores(b for b in segment.stores if b.tile in summed)
        # What is the same for all panels would be held in registers; but operands of products that are worked out,
        # not loaded, must go to shared memory in front of the loop.
        inside = {b.tile for b in segment.loads} | made
        factors = {t for s in segment.statements if isinstance(s.op, Contract) for t in (s.op.a, s.op.b)}
        ready = {t for t in factors - inside - {b.tile for b in self.kernel.loads} if not self.printer.rests(t)}
        hoisted = "" if ready and axis == "v" else ", disable_licm=True"
        walk = "i_v in tl.range(0, blocks" if axis == "v" else "i_p in tl.range(0, panels"
        return [*opened, f"for {walk}{hoisted}):", *(f"    {line}" for line in body), *after]

    def _decayed(self, statement: Statement, summed: set[Tile]) -> list[str]:
        """All that is made in the loop that makes it, unless that stands further up."""
        group = self.together[statement]
        if not group:
            return []
        whole = [line for s in group if s.target not in summed for line in decayed.closed(s)]
        return self._tagged(statement, [*decayed.lines(group, self.printer, summed), *whole])

    def _statement(self, statement) -> list[str]:
        if isinstance(statement.op, Decayed):
            return self._decayed(statement, set())
        if isinstance(statement.op, Substitute):
            given = self.printer, self.stored, self.domains, self.waiting
            return self._tagged(statement, substitution.solve(self.kernel.name, statement.op, *given))
        if isinstance(statement.op, Further):  # made beside the first
            return []
        if isinstance(statement.op, Written):  # other threads have
            return ["tl.debug_barrier()", *self._loads([self.waiting[statement.target]], again=True)]
        return self._tagged(statement, self.printer.lines(statement))

    def _tagged(self, statement, lines: list[str]) -> list[str]:
        """A comment where the origin changes: the spec line a statement came from, or whose adjoint it is."""
        if isinstance(statement.op, Relabel) or statement.origin == self.origin:
            return lines
        self.origin = statement.origin
        return [f"# {self.tags.get(statement.origin, statement.origin)}", *lines]

    def _loads(self, buffers, again: bool = False) -> list[str]:
        fresh = [b for b in buffers if again or b not in self.loaded]
        self.loaded.update(fresh)
        load = {b: self.memory.factor if b in self.factors else self.memory.load for b in fresh}
        return [f"{self.printer.name(b.tile)} = {load[b](b)}" for b in fresh]

    def _is_state(self, buffer: Buffer) -> bool:
        """Whether it is kept where states are sparse; backwards they never are."""
        return self.kernel.reverse or buffer.tile in {c.state for c in self.kernel.carries}

    def _is_read_out(self, buffer: Buffer) -> bool:
        """Whether a scan that walks panels makes it for the caller alone. Where it is not stored, nothing that only it
        needs is worked out either: the compiler sees that."""
        return self.kernel.in_memory and not self.kernel.reverse and buffer.space not in OWN

    def _stores(self, buffers) -> list[str]:
        lines = []
        for buffer in (b for b in buffers if b.space is not Space.TOTAL):
            store = [self.memory.store(buffer, self.printer.upright(buffer.tile))]
            if buffer in self.on_request:
                store = _guarded("SAVE" if self._is_state(buffer) else "SAVE and not SPARSE", store)
            elif self._is_read_out(buffer):
                store = _guarded("READ", store)
            moves = buffer.space in OWN and buffer.tile in {c.next for c in self.kernel.carries}
            if moves:  # other threads may not have loaded yet what lies there
                store.insert(0, "tl.debug_barrier()")
            lines += store
        return lines


def _until_search(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Those up to a search, which has all registers, or all of them."""
    ends = [i for i, s in enumerate(segments, 1) if any(isinstance(x.op, Conjugate) for x in s.statements)]
    return segments[: ends[-1]] if ends else segments


def _come_late(kernel: Kernel) -> set[Buffer]:
    """Rows of keys that a parallel kernel takes behind a loop over panels, and no product does."""
    names = names_of(kernel.statements)
    factors = {names.get(t, t) for s in kernel.statements if isinstance(s.op, Contract) for t in (s.op.a, s.op.b)}
    loop = next((n for n, s in enumerate(kernel.segments) if s.panelled), 0)
    early = {b for s in kernel.segments[: loop + 1] for b in s.loads}
    rows = {b for b in kernel.loads if b.tile.axes == ("t", "k") and b.tile not in factors}
    return rows - early if kernel.skeleton is Skeleton.PARALLEL else set()


def _only_in_blocks(segment: Segment, tile: Tile) -> bool:
    """Whether all that a tile is for is to be loaded block by block in a substitution."""
    users = [s.op for s in segment.statements if tile in operands(s.op)]
    apart = all(isinstance(op, Substitute) and (tile in (*op.pairs, *op.rows)) for op in users)
    return bool(users) and apart and (tile.axes == ("t", "s") or substitution.is_read_by_block(tile))


def _after(segment: Segment, statement: Statement) -> list[Buffer]:
    """What is loaded again behind a substitution: its rows need the registers that wide tiles would rest in."""
    if not isinstance(statement.op, Substitute):
        return []
    later = segment.statements[segment.statements.index(statement) + 1 :]
    wanted = {t for s in later for t in operands(s.op)}
    return [b for b in segment.loads if len(b.tile.axes) == 2 and "v" in b.tile.axes and b.tile in wanted]


def _on_request(kernel: Kernel) -> set[Buffer]:
    """A scan's states at the chunks' bounds, and what it solves, are for other kernels: written where one follows."""
    return {b for b in kernel.stores if b.space in BETWEEN} if kernel.skeleton is Skeleton.SCAN else set()


def _guarded(flag: str, lines: list[str]) -> list[str]:
    return [f"if {flag}:", *(f"    {line}" for line in lines)] if lines else []
