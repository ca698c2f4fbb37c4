"""The console of every command. It never loses a column: where a table needs more than the width at hand (80 columns
where output is no terminal), its lines are longer than that."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segments
from rich.table import Table

UNBOUNDED = 100_000  # characters; measures what something would take if nothing held it in


class WholeConsole(Console):
    """Prints every column of a table in full. Only columns that say overflow="fold" give way, by wrapping."""

    def print(self, *objects, **options) -> None:
        tables = [table for o in objects for table in _tables(o)]
        if not tables:
            return super().print(*objects, **options)
        for table in tables:
            self._stiffen(table)
        for shown in objects:
            width = max(self.width, self._measured(shown).minimum)
            lines = self.render(shown, self.options.update_width(width))
            super().print(Segments(lines), **options | {"crop": False})

    def _stiffen(self, table: Table) -> None:
        for column in table.columns:
            if column.overflow != "fold":
                column.no_wrap = True
                column.min_width = max(self._measured(cell).maximum for cell in (column.header, *column.cells))

    def _measured(self, shown: RenderableType) -> Measurement:
        return Measurement.get(self, self.options.update_width(UNBOUNDED), shown)


def _tables(shown: object) -> Iterator[Table]:
    match shown:
        case Table():
            yield shown
        case Padding():
            yield from _tables(shown.renderable)
        case Group():
            for part in shown.renderables:
                yield from _tables(part)


def progress_on(console: Console) -> Progress:
    """A bar that is gone once the work is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def print_json(data: object) -> None:
    json.dump(data, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")
