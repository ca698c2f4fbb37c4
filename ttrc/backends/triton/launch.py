"""A plan -> the lines of op.py that allocate its buffers and launch its kernels."""

from __future__ import annotations

from itertools import takewhile

from ttrc.backends.triton.pieces import columns, cut_lines
from ttrc.backends.triton.pointers import asks_begins, pointers
from ttrc.backends.triton.widths import BLOCK, WIDTH, numbers, room
from ttrc.ir.plan import BETWEEN, Buffer, Cut, Kernel, Launch, Plan, Skeleton, Space
from ttrc.ir.tile import Tile, row_axes
from ttrc.passes.cut_sequence import PIECES

AT_ONCE = (Skeleton.PARALLEL, Skeleton.ROWS)  # chunk by chunk, all of them at once
WITH_TRAIL = (Skeleton.TOKENS_REVERSE, Skeleton.STEPS_REVERSE)  # their programs lay states in memory of their own
MATRIX_SKELETONS = (*AT_ONCE, Skeleton.SCAN)


def allocate_forward(plan: Plan) -> str:
    lines = ["o = torch.empty_like(v)", _end(plan, "final_state")]
    for buffer in blocks((*plan.saved, *plan.passing)):
        text = _new_states(buffer) if _is_sparse(plan, buffer) else _new(buffer, plan.form)
        readers = {s.name for s in plan.schedules for x in s.forward if _loads(x, buffer)}
        beside = any(b.name == buffer.name for k in plan.forward if k.skeleton in AT_ONCE for b in k.stores)
        if beside or readers == {s.name for s in plan.schedules}:
            lines.append(f"{buffer.name} = {text}")
        else:
            asked = " or ".join([_kept(plan, buffer, "save"), *(f'schedule == "{name}"' for name in sorted(readers))])
            lines.append(f"{buffer.name} = {text} if {asked} else v.new_empty(0)")
    return "\n".join([*lines, *_waiting(plan.forward)])


def _waiting(kernels: tuple[Kernel, ...], layout: str = "layout") -> list[str]:
    """Room for what waits while panels are walked."""
    rooms = [numbers(k.room, BLOCK) for k in kernels if k.room]
    return [f"waiting = v.new_empty({layout}.sequences, v.shape[2], {r}, dtype=torch.float32)" for r in rooms]


def _end(plan: Plan, name: str) -> str:
    """What a pass's carried states are left in, where it is asked for or is the place where they move on."""
    shape = "state_shape(q, v, cu_seqlens)"
    room = f"*{shape}" if _moves_in_memory(plan, name) else f"*({shape} if {WANTED[name]} else (0,))"
    return f"{name} = v.new_empty({room}, dtype=torch.float32)"


def _moves_in_memory(plan: Plan, name: str) -> bool:
    launches = [x for s in plan.schedules for x in (*s.forward, *s.backward)]
    return any(x.leave == name and x.kernel.moves_in_memory for x in launches)


def handed_out(plan: Plan, name: str) -> str:
    """The states that a pass leaves, empty where they are not asked for."""
    return f"{name} if {WANTED[name]} else {name}.new_empty(0)" if _moves_in_memory(plan, name) else name


def blocks(buffers: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
    """One buffer of those that share a block of memory."""
    return tuple({b.name: b for b in buffers}.values())


def _loads(launch: Launch, buffer: Buffer) -> bool:
    return any(b.name == buffer.name for b in launch.kernel.loads)


def returned(plan: Plan, buffer: Buffer) -> str:
    """What the op returns of a saved buffer: nothing of one that was needed inside the forward pass alone."""
    there = _is_read(plan, buffer) or len(plan.schedules) == 1
    asked = _kept(plan, buffer, "" if there else "save")
    return f"{buffer.name} if {asked} else v.new_empty(0)" if asked else buffer.name


def _kept(plan: Plan, buffer: Buffer, asked: str = "") -> str:
    """The condition on which a saved buffer is kept for the backward pass, beside another."""
    names = [f'"{c.name}"' for c in plan.cuts if buffer in c.kept]
    if len(names) == len(plan.cuts):
        return asked
    own = f"crossing in ({', '.join(names)})" if len(names) > 1 else f"crossing == {names[0]}"
    return f"{asked} and {own}" if asked else own


def _is_sparse(plan: Plan, buffer: Buffer) -> bool:
    """Whether there is a cut that keeps it at some chunks alone."""
    return any(c.every > 1 and buffer in c.kept for c in plan.cuts)


def held(cut: Cut) -> str:
    """The bytes a token and head that it keeps from the forward to the backward pass, as they are allocated."""
    return " + ".join(_held(b, cut) for b in blocks(cut.kept))


def chunks_apart(plan: Plan) -> str:
    """From one state that is kept to the next, of the cut at hand, which may count in tokens."""
    return "max(EVERY[crossing] // chunk, 1)" if any(c.tokens for c in plan.cuts) else "EVERY[crossing]"


def _held(buffer: Buffer, cut: Cut) -> str:
    if buffer.space is Space.CHUNK:
        stretch = "chunk" if cut.every == 1 else cut.tokens or f"{cut.every} * chunk"
        chunks = f"all_chunks(v, cu_seqlens, {stretch})"
        size = 4 if buffer.single or cut.every > 1 else "size"
        return f"({numbers(buffer.parts, WIDTH)}) * {size} * {chunks} / tokens"
    if buffer.space is Space.NUMBER:
        return f"{numbers((buffer.tile,), WIDTH)} * 4 * all_chunks(v, cu_seqlens, chunk) / tokens"
    match buffer.tile.axes:
        case ("t",) | ("s",):
            return "4"
        case (_, "k" | "v" as axis):
            return f"{WIDTH[axis]} * size"
    return "chunk * size"


def _is_read(plan: Plan, buffer: Buffer) -> bool:
    """Whether every schedule's forward pass reads it itself."""
    return all(any(_loads(x, buffer) for x in s.forward) for s in plan.schedules)


def saved_fake(plan: Plan, buffer: Buffer) -> str:
    """What the op returns for a saved buffer, as the fake implementation sees it."""
    if buffer.space is Space.CHUNK:
        wide = "v.dtype if triton else reference.working_dtype(v)"
        wide = "state_dtype(v)" if plan.form == "recurrent" or buffer.single else wide
        chunk = "chunk"
        if _is_sparse(plan, buffer):
            chunk, wide = "every * chunk", f"torch.float32 if every > 1 else {wide}"
        own, carried = room(buffer.parts), _carried(plan)
        if buffer.name == "states" and len(carried) > len(buffer.parts):  # PyTorch keeps all that it carries
            own = f"*(({own},) if triton else ({numbers(carried)},))"
        shape = f"all_chunks(v, cu_seqlens, {chunk}), v.shape[2], {own}"
        asked = "save" if buffer.name == "states" else _kept(plan, buffer, "save and triton")  # others PyTorch remakes
        return f"{buffer.name} = v.new_empty({shape}, dtype={wide}) if {asked} else v.new_empty(0)"
    wanted = _kept(plan, buffer, "triton" if _is_read(plan, buffer) else "save and triton")
    if "v" in buffer.tile.axes:
        return f"{buffer.name} = v.new_empty(v.shape) if {wanted} else v.new_empty(0)"
    text = _new(buffer, plan.form).replace("layout.all_chunks", "all_chunks(v, cu_seqlens, chunk)")
    return f"{buffer.name} = {text} if {wanted} else v.new_empty(0)"


def _carried(plan: Plan) -> tuple[Tile, ...]:
    """What the forward pass carries, private states among it."""
    return next((tuple(c.state for c in k.carries) for k in plan.forward if k.carries), ())


def allocate_backward(plan: Plan) -> str:
    lines = [f"{b.name} = {_new(b, plan.form)}" for b in blocks(plan.scratch)]
    if plan.partial:
        lines.append(f'blocks = -(-v.shape[-1] // config("{plan.backward[-1].name}", q, v, layout.sequences)[0])')
    for buffer in plan.gradients:
        lines.append(f"{buffer.name} = {_new_gradient(buffer, plan)}")
    lines.append(_end(plan, "d_initial"))
    lines += _waiting(plan.backward)
    for kernel in (k for k in plan.backward if k.skeleton in WITH_TRAIL):
        carried = tuple(c.state for c in kernel.carries if not c.reverse)
        steps = "chunk"
        if kernel.skeleton is Skeleton.STEPS_REVERSE:
            steps = f'chunk // step_tokens("{kernel.name}", q, v, layout.sequences, chunk)'
        lines.append(
            f"trail = v.new_empty({_sequences(plan)} * v.shape[2] * blocks, {steps}, "
            f"{numbers(carried, BLOCK)}, dtype=torch.float32)"
        )
    return "\n".join(lines)


def launches(plan: Plan, direction: str) -> str:
    """A pass's launches: those that all schedules have in common first and last, what sets them apart between."""
    ways = {s.name: getattr(s, direction) for s in plan.schedules}
    if len(set(ways.values())) == 1:
        only = next(iter(ways.values()))
        return "\n".join(_launch(plan, x, direction) for x in only)
    ahead, after = _shared(list(ways.values())), _shared([way[::-1] for way in ways.values()])[::-1]
    lines = [_launch(plan, x, direction) for x in ahead]
    names = {way: [f'"{name}"' for name, other in ways.items() if other == way] for way in ways.values()}
    for way, asked in names.items():
        own = [_launch(plan, x, direction) for x in way[len(ahead) : len(way) - len(after)]]
        own = [*(cut_lines(plan, way, direction) if any(x.segments for x in way) else ()), *own]
        test = f"in ({', '.join(asked)})" if len(asked) > 1 else f"== {asked[0]}"
        word = "elif" if len(lines) > len(ahead) else "if"
        lines += [f"{word} schedule {test}:", *(f"    {line}" for line in own)]
    return "\n".join([*lines, *(_launch(plan, x, direction) for x in after)])


def again(plan: Plan) -> str:
    """What a backward pass begins with, by cut: what it takes of the forward one and was not kept is made once more."""
    lines: list[str] = []
    for before, cut in zip(plan.cuts, plan.cuts[1:]):
        names = [f'"{c.name}"' for c in plan.cuts[plan.cuts.index(cut) :]]
        lines.append(f"if crossing in ({', '.join(names)}):" if len(names) > 1 else f"if crossing == {names[0]}:")
        own = []
        for launch in cut.again[len(before.again) :]:
            if launch.enter == SPARSE:
                own += [
                    f"every = {chunks_apart(plan)}",
                    "pieces = stretches(layout, lay_out(v, cu_seqlens, every * chunk), every, chunk, v.device)",
                    f"o, sparse = {'torch.empty_like(v)' if reads(launch.kernel) else 'v.new_empty(0)'}, states",
                ]
                own += ["left = torch.empty_like(sparse)"] if launch.kernel.moves_in_memory else []
                own += _waiting((_whole(plan, launch.kernel),), "pieces")
            own += [
                f"{b.name} = {_new(b, plan.form)}"
                for b in blocks((*plan.saved, *plan.passing))
                if b in launch.kernel.stores
            ]
            own.append(_launch(plan, launch, "again"))
        lines += [f"    {line}" for line in own]
    return "\n".join(lines)


def _shared(ways: list[tuple[Launch, ...]]) -> tuple[Launch, ...]:
    """What all of them begin with."""
    return tuple(group[0] for group in takewhile(lambda group: len(set(group)) == 1, zip(*ways)))


def results(plan: Plan, gates: tuple[str, ...], parameters: tuple[str, ...]) -> str:
    """The backward function's return values; partial sums over value blocks end here."""
    stored = {b.name: b for b in plan.gradients}
    parts = []
    for name in ("q", "k", "v", *gates):
        buffer = stored.get(f"d_{name}")
        if buffer is None:  # no output depends on this input
            parts.append(f"torch.zeros_like({name})")
            continue
        text = buffer.name
        if plan.partial and "v" not in buffer.tile.axes:
            text = f"{text}.sum(0)"
        if buffer.space is Space.TOTAL:
            text = f"{text}.sum(0).to({name}.dtype)"
        elif name in parameters:
            text = f"{text}.sum((0, 1)).to({name}.dtype)"
        elif buffer.space is Space.KEY_TOKEN:
            text = f"per_head({text}, {name})"
        elif name in gates:
            text = f"{text}.to({name}.dtype)"
        parts.append(text)
    return ", ".join([*parts, handed_out(plan, "d_initial")])


# What turns a kernel's carried state on: a name for each end, and the condition where it is not always there.
GIVEN = {"initial_state": "initial_state is not None", "d_final_state": "d_final_state is not None"}
WANTED = {"final_state": "final", "d_initial": "initial"}
SPARSE = "sparse"  # the states that a scan starts from where they were kept at some chunks alone


def _launch(plan: Plan, launch: Launch, direction: str) -> str:
    kernel = launch.kernel
    if kernel.skeleton is Skeleton.JOIN:
        return f'join("{kernel.name}", q, v, sums, transition, starts, {launch.enter}, {launch.leave}, segments)'
    tensors = [b.name for b in pointers(_whole(plan, kernel))]
    tensors += ["ones_where(chunk, v.device, v.dtype)"] if kernel.ones else []
    extra, flags, sparse = "", "", False
    match kernel.skeleton:
        case Skeleton.TOKENS:
            tensors.append("states")
            flags = ", SAVE=save"
        case Skeleton.TOKENS_REVERSE:
            tensors += ["states", "trail"]
        case Skeleton.STEPS_REVERSE:
            tensors.append("trail")
        case Skeleton.SCAN:
            flags = f", READ={reads(kernel)}, SAVE={_saves(plan, launch, direction)}"
            sparse = direction == "forward" and len(plan.cuts) > 1
            extra = ", every=every" if sparse else ""
            tensors += ["waiting"] if _whole(plan, kernel).room else []
    if kernel.partial:
        extra += ", extra=(v.shape[0] * v.shape[1],)"
    if asks_begins(kernel):
        flags += f", SEGMENT={plan.segment}"
    if kernel.skeleton not in AT_ONCE:
        tensors += [str(launch.enter), str(launch.leave)]
        given = GIVEN.get(launch.enter, launch.enter is not None)
        left = kernel.in_memory or WANTED.get(launch.leave, launch.leave is not None)
        flags = f", ENTER={given}, LEAVE={left}" + flags
    if launch.crosses:
        flags += columns(kernel.crossing)
    layout = "pieces" if launch.segments else "kept" if sparse else "layout"
    return f'launch("{kernel.name}", q, v, {layout}, chunk, [{", ".join(tensors)}], scale{extra}{flags})'


def _whole(plan: Plan, kernel: Kernel) -> Kernel:
    """The kernel of that name, which is able to store all that any launch of it asks for."""
    return next(k for k in plan.kernels if k.name == kernel.name)


def reads(scan: Kernel) -> bool:
    """Whether a scan reads out, beside what it keeps of its states."""
    return any(b.space not in BETWEEN for b in scan.stores)


def _saves(plan: Plan, launch: Launch, direction: str) -> str:
    """Whether a scan stores its states: for another kernel of the pass always, for the backward pass where asked."""
    kept = [b for b in launch.kernel.stores if b.space in BETWEEN]
    if direction == "again":
        return str(bool(kept))
    passes = [getattr(s, direction) for s in plan.schedules if launch in getattr(s, direction)]
    read = any(b in x.kernel.loads for way in passes for x in way for b in kept)
    return str(bool(kept)) if read or not kept else "save"


def _new_states(buffer: Buffer) -> str:
    """Of each stretch of chunks that one is kept of; of several chunks in float32."""
    dtype = "torch.float32" if buffer.single else "torch.float32 if every > 1 else v.dtype"
    return f"v.new_empty(kept.all_chunks, v.shape[2], {room(buffer.parts)}, dtype={dtype})"


def _new(buffer: Buffer, form: str) -> str:
    if buffer.space is Space.CHUNK:
        dtype = ", dtype=torch.float32" if form == "recurrent" or buffer.single else ""
        return f"v.new_empty(layout.all_chunks, v.shape[2], {room(buffer.parts)}{dtype})"
    match buffer.tile.axes:
        case ():
            return "v.new_empty(layout.all_chunks, v.shape[2], dtype=torch.float32)"
        case ("k",):
            return "v.new_empty(layout.all_chunks, v.shape[2], q.shape[3], dtype=torch.float32)"
        case ("t",) | ("s",):
            return "v.new_empty(*v.shape[:3], dtype=torch.float32)"
        case ("t", "v") | ("s", "v"):
            return "v.new_empty(v.shape)"
        case ("t", "k"):
            return "v.new_empty(*v.shape[:3], q.shape[3])"
    return "v.new_empty(*v.shape[:3], chunk)"


def _sequences(plan: Plan) -> str:
    """How many sequences a scan of the backward pass walks: pieces, where these are cut."""
    cut = f'layout.sequences * (segments if schedule == "{PIECES}" else 1)'
    return "layout.sequences" if plan.crossing is None else cut


def _new_gradient(buffer: Buffer, plan: Plan) -> str:
    channels, partial = row_axes(buffer.tile), plan.partial
    if buffer.space is Space.TOTAL:
        return f"v.new_empty({_sequences(plan)}, v.shape[2], {room((buffer.tile,))}, dtype=torch.float32)"
    if buffer.single:
        blocks = "blocks, " if partial and "v" not in channels else ""
        return f"v.new_empty({blocks}*v.shape[:3], {', '.join(WIDTH[a] for a in channels)}, dtype=torch.float32)"
    match channels:
        case ("v",):
            return "torch.empty_like(v)"
        case ("k",):
            blocks, dtype = ("blocks, ", ", dtype=torch.float32") if partial else ("", "")
            return f"v.new_empty({blocks}*v.shape[:3], q.shape[3]{dtype})"
    blocks = "blocks, " if partial else ""
    return f"v.new_empty({blocks}*v.shape[:3], dtype=torch.float32)"
