"""No column is lost: tables are whole in a pipe and in a narrow terminal, prose wraps."""

import io

import pytest
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ttrc.tools.console import WholeConsole

NAMES = [f"column_{i}" for i in range(12)]
VALUES = [f"{10**i:,}" for i in range(12)]
PROSE = "what is said at length and may as well go on in a second line or in a third"


def table(*more):
    made = Table(title="a title", caption=PROSE)
    for name in NAMES:
        made.add_column(name, justify="right")
    for name in more:
        made.add_column(name, overflow="fold")
    made.add_row(*VALUES, *[PROSE for _ in more])
    return made


def printed(shown, terminal, width=60):
    file = io.StringIO()
    WholeConsole(file=file, width=width, force_terminal=terminal, color_system=None).print(shown)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: Padding(t, (0, 0, 0, 1)), lambda t: Padding(Group("x", t), 1)])
def test_every_column_is_whole(wrap, terminal):
    lines = printed(wrap(table()), terminal)
    for words in (NAMES, VALUES):
        (found,) = [line for line in lines if words[0] in line.split() or f" {words[0]} " in line]
        assert all(word in found for word in words)
    assert "…" not in "".join(lines)


def test_columns_of_prose_give_way_first():
    lines = printed(table("notes"), terminal=False)
    (found,) = [line for line in lines if VALUES[-1] in line]
    assert all(value in found for value in VALUES) and PROSE not in found
    folded = " ".join(line.split("│")[-2].strip() for line in lines[lines.index(found) :] if "│" in line)
    assert folded.startswith(PROSE)


def test_what_fits_and_what_is_prose_stay_within_the_width():
    assert max(map(len, printed(table(), False, width=400))) < 300
    assert max(map(len, printed(Text(PROSE * 3), False))) <= 60
    small = Table("a", "b")
    small.add_row("1", "2")
    assert max(map(len, printed(Group(Text(PROSE * 3), small), False))) <= 60
