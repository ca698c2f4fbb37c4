"""What there is to tell about a compiled spec, in order and without a form: choices, programs, plan, costs.

The printed explanation, its page and its JSON all show this account, the steps of mathematics.py and the class that
classify.py finds, so that they cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

from ttrc.backends.derivation import comment
from ttrc.emit import tags
from ttrc.ir.attention import Attention
from ttrc.ir.module import Form, Module
from ttrc.ir.plan import Budget, Buffer, Kernel, Launch, Plan, Skeleton
from ttrc.ir.tile import Program, Statement
from ttrc.language.spec import (
    At,
    ClosedForm,
    Exp,
    Gradient,
    KernelMemory,
    Link,
    Located,
    LqNorm,
    Memory,
    MLPMemory,
    Per,
    Proximal,
    Sigmoid,
    Softmax,
    SoftThreshold,
    Spec,
    VectorMemory,
)
from ttrc.language.state import formula
from ttrc.passes.budget import LENGTH, budget, cost_again, held_bytes, least_bytes
from ttrc.passes.slice_program import slice_program
from ttrc.tools.notation import OPERATIONS, as_assignment

WIDTH, BYTES, SEGMENTS = 128, 2, 16
_BUDGETED = {"d_k": WIDTH, "d_v": WIDTH, "dtype_bytes": BYTES}
WAYS_NOTE = (
    "fused: batch times heads fill the chip. split: read-outs off the serial path. segments: few heads and long "
    f"sequences, here cut in {SEGMENTS}. An operator takes what its cost model finds fastest for the shapes."
)

KEPT_NOTE = (
    "held: between the passes, beside the inputs. What is not kept is made again before the backward pass begins; "
    "an operator's keep_bytes bounds what is held. sparse: states in float32, each a start of a scan."
)

BUDGET_NOTE = (
    "least: every input read once, every output written once. FLOPs: matrix products as issued. "
    "Serial steps: per token, one after the other."
)


@dataclass(frozen=True)
class Choice:
    """One thing that the spec says, and on which line."""

    section: str
    says: str
    line: int | None


@dataclass(frozen=True)
class Assignment:
    """target = meaning; `origin` is the line of the spec, or the statement whose adjoint this is."""

    target: str
    meaning: str
    origin: str


@dataclass(frozen=True)
class Group:
    """Statements in a row that have one origin."""

    origin: str
    assignments: tuple[Assignment, ...]


@dataclass(frozen=True)
class Cost:
    """One pass of one form beside the least that any kernel can move."""

    form: str
    direction: str
    budget: Budget
    least: float


def choices(spec: Spec) -> tuple[Choice, ...]:
    retention = spec.retention.expr
    features = (("features q", spec.features.q), ("features k", spec.features.k))
    rows = [_expression(name, where) for name, where in features if where is not None]
    rows.append(Choice("memory", _memory(spec.memory), None))
    for loss in spec.losses:
        own = loss.origin.replace(".", " ")
        rows.append(_expression(own, loss.expr))
        parts = (("weight", loss.weight), ("key", loss.key), ("write", loss.write))
        rows += [_expression(f"{own} {name}", where) for name, where in parts if where is not None]
    rows.append(_expression("retention", retention))
    if spec.retention.decay is not None:
        rows.append(_expression("decay", spec.retention.decay))
    if spec.retention.link is not None:
        rows.append(Choice("link", _link(spec.retention.link, spec.memory), spec.retention.link.line))
    rows += [Choice("update", _rule(spec), spec.update.line)]
    if spec.read is not None:
        rows.append(_expression("read", spec.read))
    for gate in spec.inputs:
        each = f"a number a token{_CHANNELS[gate.per]} and head"
        rows.append(Choice(f"input {gate.name}", f"{gate.domain.value}, {each}", gate.line))
    for gate in spec.parameters:
        each = f"a number a{_CHANNELS[gate.per].removeprefix(', a')} and head" if gate.per.axes else "a number a head"
        rows.append(Choice(f"parameter {gate.name}", f"{gate.domain.value}, {each}", gate.line))
    return tuple(rows)


_CHANNELS = {
    Per.HEAD: "",
    Per.KEY_CHANNEL: ", a key channel",
    Per.VALUE_CHANNEL: ", a value channel",
    Per.ELEMENT: ", an entry of the state",
}


def _memory(memory: Memory) -> str:
    match memory:
        case MLPMemory(layers, expansion):
            hidden = f", hidden layers of {expansion} d_k" if layers > 1 else ""
            return f"a network: p = f(k), f(x) = {formula(memory)}{hidden}"
        case VectorMemory():
            return "vector: p = s * k, one number a channel, d_k = d_v"
        case KernelMemory(_, similarity):
            return f"kernel: all pairs are kept, and weigh exp({comment(similarity.text)}) at a query; p = S"
        case _:
            return "linear: p = S' k, S is d_k x d_v"


def _expression(section: str, where: Located) -> Choice:
    return Choice(section, comment(where.text), where.line)


def _link(link: Link, memory: Memory) -> str:
    down, across = "the key channels", "the value channels"
    if isinstance(memory, MLPMemory):
        down, across = "what comes into each layer", "what goes out of each layer"
    match link:
        case LqNorm(q, epsilon):
            return f"W = S / ( |S|_{q}^2 + {float(epsilon):g} )^(({q} - 2) / 2), of the whole matrix"
        case Softmax(axis, scale):
            slices = {("k",): f"along {down}", ("v",): f"along {across}"}
            return f"W = {scale} softmax(S), {slices.get(axis.value, 'of the whole matrix')}"
        case SoftThreshold(threshold):
            return f"W = sign(S) max(abs(S) - {comment(threshold.text)}, 0)"
        case Sigmoid():
            return "W = sigmoid(S)"
        case Exp():
            return "W = exp(S)"
    raise AssertionError(link)


def _rule(spec: Spec) -> str:
    match spec.update:
        case Gradient(At.SEGMENT_START, segment, momentum):
            where = f"at the state that its segment of {segment} tokens starts with"
            return f"one gradient step a token, the gradient taken {where}{_kept_step(momentum)}"
        case Gradient(At.IN_TURN):
            each = "the gradient of each loss taken at what those before it have left"
            return f"one gradient step a token and loss, {each}, of the first at the retained state"
        case Gradient(at, _, momentum):
            return f"one gradient step a token, the gradient taken at the {at.value} state{_kept_step(momentum)}"
        case Proximal():
            return "one proximal (implicit) step a token"
        case ClosedForm():
            return "the minimum over the whole history"
    raise AssertionError(spec.update)


def _kept_step(momentum: Located | None) -> str:
    return "" if momentum is None else f"; momentum {comment(momentum.text)}"


def assignments(program: tuple[Statement, ...], spec: Spec) -> tuple[Assignment, ...]:
    lines = {origin: tag.split(":")[0] for origin, tag in tags(spec).items()}
    return tuple(Assignment(*as_assignment(s), lines.get(s.origin, s.origin)) for s in program)


def groups(program: tuple[Statement, ...], spec: Spec) -> tuple[Group, ...]:
    by_origin = groupby(assignments(program, spec), key=lambda a: a.origin)
    return tuple(Group(origin, tuple(same)) for origin, same in by_origin)


def forward(form: Form) -> tuple[Statement, ...]:
    return _live(form.forward)


def adjoint(form: Form) -> tuple[Statement, ...]:
    """What the backward program adds to the forward one; dead code left out, as kernels leave it out."""
    known = {s.target for s in form.forward.statements}
    return tuple(s for s in _live(form.backward) if s.target not in known)


def _live(program: Program) -> tuple[Statement, ...]:
    wanted = [tile for _, tile in program.outputs] + [c.next for c in program.carries]
    return slice_program(program.statements, wanted)


def operations(statements: tuple[Statement, ...]) -> dict[str, int]:
    """How often each operation occurs, the commonest first."""
    return dict(Counter(OPERATIONS[type(s.op)] for s in statements).most_common())


def runs(kernel: Kernel) -> str:
    """The loop around a kernel's body, in words."""
    match kernel.skeleton:
        case Skeleton.PARALLEL:
            return "all chunks at once"
        case Skeleton.ROWS:
            return "all blocks of chunks' rows at once"
        case Skeleton.SCAN:
            order, place = "reverse" if kernel.reverse else "order", "in panels" if kernel.in_memory else "on chip"
            place += ", of wide heads in panels" if kernel.wide is not None else ""
            return f"chunks in {order}, {place}: {_carried(kernel)}"
        case Skeleton.TOKENS:
            return f"token by token, on chip: {_carried(kernel)}"
        case Skeleton.TOKENS_REVERSE:
            return "token by token backwards, states remade"
        case Skeleton.STEPS_REVERSE:
            return f"chunks in reverse, states of their steps remade: {_carried(kernel)}"
        case Skeleton.JOIN:
            return "segments in order"
        case Skeleton.STREAM:
            own, other = ("keys", "queries") if kernel.reverse else ("queries", "keys")
            return f"all blocks of {own} at once, each over its {other}"
        case Skeleton.WALK:
            return "each sequence from its end" if kernel.reverse else "each sequence in order"
    raise AssertionError(kernel.skeleton)


def _carried(kernel: Kernel) -> str:
    return ", ".join(c.label for c in kernel.carries)


def crossing(plan: Plan) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What goes through global memory from kernel to kernel, a tile each a chunk and head."""
    kinds = (("from the forward to the backward pass", plan.saved), ("within the backward pass", plan.scratch))
    return tuple((where, tuple(shaped(b) for b in buffers)) for where, buffers in kinds if buffers)


def shaped(buffer: Buffer) -> str:
    return f"{buffer.name}[{','.join(buffer.tile.axes)}]"


def serial(spent: Budget) -> str:
    """Serial steps a token, as a fraction where one step takes many tokens."""
    share = spent.serial_steps_per_token
    return f"1/{1 / share:.3g}" if 0 < share < 1 else f"{share:g}"


def passes(plan: Plan) -> tuple[tuple[str, tuple[Kernel, ...]], ...]:
    return ("forward", plan.forward), ("backward", plan.backward)


def sizes(module: Module) -> str:
    """What the budget is for; the chunks are those of the form that long sequences run in."""
    plan = next(iter(module.forms.values())).plan
    if isinstance(module.recurrence, Attention):
        return f"d = {WIDTH}, bfloat16, sequences of {LENGTH}"
    return f"d = {WIDTH}, bfloat16, chunks of {plan.tokens(WIDTH, WIDTH, BYTES)}"


def costs(module: Module) -> tuple[Cost, ...]:
    """Of each form's first schedule."""
    least = least_bytes(module, **_BUDGETED)
    return tuple(
        Cost(form, direction, spent, least[direction])
        for form, both in budget(module, **_BUDGETED).items()
        for direction, spent in both.items()
    )


@dataclass(frozen=True)
class Way:
    """One schedule of a form: its launches in order, and what each pass costs."""

    form: str
    schedule: str
    launches: dict[str, tuple[str, ...]]
    budgets: dict[str, Budget]


def ways(module: Module) -> tuple[Way, ...]:
    """The schedules of the forms that have several."""
    return tuple(
        Way(name, s.name, {d: _names(getattr(s, d)) for d in ("forward", "backward")}, spent[name])
        for name, form in module.forms.items()
        for s in form.plan.schedules
        if len(form.plan.schedules) > 1
        for spent in [budget(module, **_BUDGETED, schedule=s.name, segments=SEGMENTS)]
    )


@dataclass(frozen=True)
class Kept:
    """One cut of a form: bytes held a token and head between the passes, and what making the rest again costs."""

    form: str
    cut: str
    every: int
    held: float
    launches: tuple[str, ...]
    again: Budget


def kept(module: Module) -> tuple[Kept, ...]:
    return tuple(
        Kept(
            name,
            cut.name,
            cut.every,
            held_bytes(form.plan, cut, **_BUDGETED),
            _names(cut.again),
            cost_again(form.plan, cut, **_BUDGETED),
        )
        for name, form in module.forms.items()
        for cut in form.plan.cuts
    )


def _names(launches: tuple[Launch, ...]) -> tuple[str, ...]:
    return tuple(launch.kernel.name for launch in launches)
