"""What there is to tell about a compiled spec, in order and without a form: programs, plan, costs.

The printed explanation, its page and its JSON all show this account, behind what choices.py says of the spec, the steps
of mathematics.py and the class that classify.py finds, so that they cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

from ttrc.emit import tags
from ttrc.ir.attention import Attention
from ttrc.ir.cost import Budget
from ttrc.ir.module import Form, Module
from ttrc.ir.plan import Buffer, Kernel, Launch, Plan, Skeleton
from ttrc.ir.tile import Program, Statement
from ttrc.language.spec import Spec
from ttrc.passes.budget import LENGTH, budget, cost_again, held_bytes, least_bytes
from ttrc.passes.slice_program import slice_program
from ttrc.tools.notation import OPERATIONS, as_assignment

WIDTH, BYTES, SEGMENTS = 128, 2, 16
_BUDGETED = {"d_k": WIDTH, "d_v": WIDTH, "dtype_bytes": BYTES}
WAYS_NOTE = (
    "The first: batch times heads fill the chip. split: read-outs off the serial path. segments: few heads and long "
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
            near = "" if kernel.window is None else f" within {kernel.window} tokens"
            often = "" if kernel.search is None else ", in each step of a search"
            return f"all blocks of {own} at once, each over its {other}{near}{often}"
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
            cut.stretch(form.plan.chunk) // form.plan.chunk,
            held_bytes(form.plan, cut, **_BUDGETED),
            _names(cut.again),
            cost_again(form.plan, cut, **_BUDGETED),
        )
        for name, form in module.forms.items()
        for cut in form.plan.cuts
    )


def _names(launches: tuple[Launch, ...]) -> tuple[str, ...]:
    return tuple(launch.kernel.name for launch in launches)
