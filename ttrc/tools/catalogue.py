"""`ttrc list`: what ships, and what each spec is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ttrc.compiler import analyse
from ttrc.language.spec import Spec
from ttrc.tools.classify import headline


@dataclass(frozen=True)
class Entry:
    """One spec: its class in a few words, the names of its forms, where the rule comes from."""

    name: str
    kind: str
    forms: tuple[str, ...]
    reference: str


def catalogue(specs: Sequence[Spec]) -> list[Entry]:
    modules = [analyse(spec) for spec in specs]
    return [Entry(m.spec.name, headline(m), tuple(m.forms), m.spec.reference) for m in modules]


def as_table(entries: Sequence[Entry]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("name", "class", "forms", "reference"):
        table.add_column(column, overflow="fold" if column == "class" else "ellipsis")
    for e in entries:
        kind = e.kind.removeprefix("linear memory, ")
        table.add_row(e.name, kind, ", ".join(e.forms), escape(e.reference.split()[0]))
    return table


def as_data(entries: Sequence[Entry]) -> list[dict]:
    renamed = ({"class" if name == "kind" else name: value for name, value in asdict(e).items()} for e in entries)
    return [entry | {"exact": True} for entry in renamed]
