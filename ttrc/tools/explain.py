"""Every stage of a spec with its mathematics, printed: choices, derivation, class, programs, plan, budget."""

from __future__ import annotations

from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ttrc.backends.derivation import comment
from ttrc.compiler import analyse
from ttrc.ir.attention import Attention
from ttrc.ir.module import Form, Module
from ttrc.ir.tile import Statement
from ttrc.language.spec import Spec
from ttrc.tools import account, classify, mathematics
from ttrc.tools.choices import choices
from ttrc.tools.notation import as_text

PROSE = ("", "runs", "loads", "stores")  # columns that wrap where the terminal is narrow
RUN_TOGETHER = {"chunk": "a chunk of tokens", "recurrent": "one token"}


def _together(name: str, module: Module) -> str:
    """What a form's program is of."""
    return "all pairs of a sequence" if isinstance(module.recurrence, Attention) else RUN_TOGETHER[name]


def explain(spec: Spec, console: Console) -> None:
    module = analyse(spec)
    console.print(Rule(Text(spec.name, style="bold")))
    console.print(Text(comment(spec.reference), style="dim"), justify="center")
    _show(console, "The spec", _choices(spec))
    _show(console, "Derivation", derivation(module))
    _show(console, f"Class: {classify.headline(module)}", _findings(module))
    for name, form in module.forms.items():
        _show(console, f"Program of {_together(name, module)} ({name} form)", _program(account.forward(form), spec))
        _show(console, f"Its adjoint, by reverse-mode differentiation ({name} form)", _adjoint(form, spec))
    _show(console, "Kernel plan", _plan(module))
    _show(console, f"Budget at {account.sizes(module)}, per token and head", _budget(module))


def as_data(spec: Spec) -> dict:
    """The same account as plain data, for --json."""
    module = analyse(spec)
    return {
        "name": spec.name,
        "reference": comment(spec.reference),
        "class": classify.headline(module),
        "choices": [vars(c) for c in choices(spec)],
        "derivation": [
            {"title": s.title, "lines": [as_text(x) for x in s.lines], "note": s.note}
            for s in mathematics.steps(module)
        ],
        "findings": [vars(f) for f in classify.findings(module)],
        "forms": {name: _form_data(form, spec) for name, form in module.forms.items()},
        "budget": {
            "sizes": account.sizes(module),
            "passes": [_cost_data(c) for c in account.costs(module)],
            "kept": [_kept_data(k) for k in account.kept(module)],
        },
    }


def _form_data(form: Form, spec: Spec) -> dict:
    adjoint = account.adjoint(form)
    return {
        "forward": [vars(a) for a in account.assignments(account.forward(form), spec)],
        "adjoint": [vars(a) for a in account.assignments(adjoint, spec)],
        "adjoint_operations": account.operations(adjoint),
        "kernels": [
            {
                "name": kernel.name,
                "pass": direction,
                "runs": account.runs(kernel),
                "loads": [b.name for b in kernel.loads],
                "stores": [b.name for b in kernel.stores],
                "statements": len(kernel.statements),
            }
            for direction, kernels in account.passes(form.plan)
            for kernel in kernels
        ],
        "saved": [b.name for b in form.plan.saved],
        "scratch": [b.name for b in form.plan.scratch],
        "schedules": {
            s.name: {
                direction: [launch.kernel.name for launch in getattr(s, direction)]
                for direction in ("forward", "backward")
            }
            for s in form.plan.schedules
        },
    }


def _cost_data(cost: account.Cost) -> dict:
    spent = cost.budget
    return {
        "form": cost.form,
        "pass": cost.direction,
        "bytes": spent.bytes,
        "least_bytes": cost.least,
        "flops": spent.flops,
        "launches": spent.launches,
        "serial_steps_per_token": spent.serial_steps_per_token,
        "kernels": {name: vars(traffic) for name, traffic in spent.kernels},
    }


def _kept_data(row: account.Kept) -> dict:
    return {
        "form": row.form,
        "cut": row.cut,
        "every": row.every,
        "held_bytes": row.held,
        "again": {"launches": list(row.launches), "bytes": row.again.bytes, "flops": row.again.flops},
    }


def _show(console: Console, title: str, body) -> None:
    console.print()
    console.print(Rule(Text(title, style="bold cyan"), align="left", style="cyan"))
    console.print(Padding(body, (0, 0, 0, 1)))


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=any(columns))
    for column in columns:
        overflow = "fold" if column in PROSE else "ellipsis"
        table.add_column(column, justify="right" if column in right else "left", overflow=overflow)
    return table


def _choices(spec: Spec) -> Table:
    table = _table("", "", "")
    for choice in choices(spec):
        where = f"line {choice.line}" if choice.line else ""
        table.add_row(Text(choice.section, style="bold"), Text(choice.says), Text(where, style="dim"))
    return table


def derivation(module: Module) -> Table:
    """From the loss and the retention to the recurrence."""
    table = _table("", "")
    for step in mathematics.steps(module):
        lines = "\n".join(as_text(line) for line in step.lines)
        table.add_row(Text(step.title, style="bold"), Group(Text(lines), Text(step.note, style="dim")))
    return table


def _findings(module: Module) -> Table:
    table = _table("", "")
    for finding in classify.findings(module):
        said = Group(Text(finding.verdict), Text(f"because {finding.because}", style="dim"))
        table.add_row(Text(finding.aspect, style="bold"), said)
    return table


def _program(statements: tuple[Statement, ...], spec: Spec) -> Table:
    table = _table("", "")
    for group in account.groups(statements, spec):
        lines = "\n".join(f"{a.target} = {a.meaning}" for a in group.assignments)
        table.add_row(Text(group.origin, style="dim"), Text(lines))
    return table


def _adjoint(form: Form, spec: Spec) -> Group:
    statements = account.adjoint(form)
    counts = ", ".join(f"{n} {name}" for name, n in account.operations(statements).items())
    return Group(Text(f"{len(statements)} statements: {counts}", style="dim"), _program(statements, spec))


def _plan(module: Module) -> Group:
    table = _table("kernel", "pass", "runs", "loads", "stores", "statements", right=("statements",))
    notes = []
    for name, form in module.forms.items():
        for direction, kernels in account.passes(form.plan):
            for kernel in kernels:
                loads, stores = (" ".join(b.name for b in side) for side in (kernel.loads, kernel.stores))
                row = (kernel.name, direction, account.runs(kernel), loads, stores, str(len(kernel.statements)))
                table.add_row(Text(row[0], style="bold"), *map(Text, row[1:]))
        crossing = "; ".join(f"{where} cross {', '.join(names)}" for where, names in account.crossing(form.plan))
        crossing = f"{crossing}, a tile each a chunk and head" if crossing else "nothing but inputs crosses"
        notes.append(f"{name} form: {crossing}")
    return Group(table, Text("\n".join(notes), style="dim"))


def _budget(module: Module) -> Group:
    numbers = ("read B", "written B", "FLOPs")
    kernels = _table("form", "kernel", *numbers, right=numbers)
    totals = ("bytes", "least", "ratio", "FLOPs", "launches", "serial steps")
    passes = _table("form", "pass", *totals, right=totals)
    for cost in account.costs(module):
        spent = cost.budget
        for name, traffic in spent.kernels:
            amounts = (traffic.read_bytes, traffic.written_bytes, traffic.flops)
            kernels.add_row(cost.form, Text(name, style="bold"), *map(_count, amounts))
        passes.add_row(
            cost.form,
            Text(cost.direction, style="bold"),
            _count(spent.bytes),
            _count(cost.least),
            f"{spent.bytes / cost.least:.2f}",
            _count(spent.flops),
            str(spent.launches),
            account.serial(spent),
        )
    parts = [kernels, Text(), passes, Text(account.BUDGET_NOTE, style="dim")]
    if ways := account.ways(module):
        parts += [Text(), _ways(ways), Text(account.WAYS_NOTE, style="dim")]
    parts += [Text(), _kept(account.kept(module)), Text(account.KEPT_NOTE, style="dim")]
    return Group(*parts)


def _kept(rows: tuple[account.Kept, ...]) -> Table:
    numbers = ("held B", "bytes moved", "FLOPs")
    table = _table("form", "kept", "made again by", *numbers, right=numbers)
    for row in rows:
        states = f"{row.cut}, every {row.every}th chunk" if row.every > 1 else row.cut
        amounts = (row.held, row.again.bytes, row.again.flops)
        table.add_row(row.form, Text(states, style="bold"), Text(" ".join(row.launches) or "-"), *map(_count, amounts))
    return table


def _ways(ways: tuple[account.Way, ...]) -> Table:
    table = _table("schedule", "pass", "bytes", "serial steps", "launches", right=("bytes", "serial steps"))
    for way in ways:
        for direction, spent in way.budgets.items():
            names = Text(" ".join(way.launches[direction]))
            table.add_row(
                Text(way.schedule, style="bold"), direction, _count(spent.bytes), account.serial(spent), names
            )
    return table


def _count(amount: float) -> str:
    return f"{amount:,.0f}" if amount else "-"
