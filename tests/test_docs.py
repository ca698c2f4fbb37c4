"""docs/language.md is true: its specs take the whole road, and its tables are what the language has."""

import re
from pathlib import Path

import pytest
import torch

import ttrc
from ttrc.language.domains import INTERVALS
from ttrc.language.functions import FUNCTIONS
from ttrc.language.load import parse_spec
from ttrc.language.schema import AT_MEANING, LINKS, MEMORIES, PER_MEANING, UPDATES
from ttrc.language.sections import DEFAULT, SECTIONS
from ttrc.runtime.verify import Case, fitting, verify

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "language.md").read_text()
WHOLE, *PARTS = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
GATE_TABLES = ("inputs", "parameters")


def tables(text: str) -> list[tuple[str, str]]:
    """The tables of a spec, each with the name of its section; what stands before them has the name ""."""
    found = re.split(r"^(?=\[)", text, flags=re.M)
    return [("" if not table.startswith("[") else re.match(r"\[(\w+)", table)[1], table) for table in found if table]


def with_part(part: str) -> str:
    """The whole spec with the tables of a part in the place of its own, without gates that nothing uses."""
    own = tables(part)
    kept = [(name, table) for name, table in tables(WHOLE) if name not in {name for name, _ in own}]
    merged = sorted(kept + own, key=lambda named: named[0] != "")
    used = set(re.findall(r"\w+", "".join(table for name, table in merged if name not in GATE_TABLES)))
    lines = "".join(table.rstrip() + "\n\n" for _, table in merged).splitlines()
    return "\n".join(line for line in lines if not (gate := re.match(r"(\w+) *= *{ *per", line)) or gate[1] in used)


@pytest.mark.parametrize("text", [WHOLE, *map(with_part, PARTS)], ids=[str(n) for n in range(1 + len(PARTS))])
def test_a_spec_of_the_page_is_exact(text):
    spec = parse_spec(re.sub(r"^window = \d+", "window = 8", text, flags=re.M))  # less than the case is long
    op = ttrc.load(spec)
    # Of other geometries alone the page says that they have no chunks.
    assert "chunk" in op.forms or re.search(r"log(_cosh)?\(S", text)
    case = fitting(spec, Case(B=1, T=21, H=1, HV=2, d_k=6, d_v=5, chunk_size=16))
    for form in op.forms:
        checked = verify(op, case, form=form, backend="torch", dtype=torch.float64)
        assert not checked.failures, (form, text)


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def test_its_tables_are_those_of_the_language():
    for name, function in FUNCTIONS.items():
        assert row(f"`{name}`", function.doc.replace("|x|", r"\|x\|")) in PAGE
    for domain, interval in INTERVALS.items():
        assert row(f"`{domain.value}`", interval.meaning) in PAGE
    for per, meaning in PER_MEANING.items():
        assert re.search(rf"^\| `{per.value}` \| `.*` \| {meaning} \|$", PAGE, re.M)
    for at, meaning in AT_MEANING.items():
        assert row("`gradient`", f"`{at.value}`", meaning) in PAGE
    for kind in MEMORIES:
        assert f"| `{kind}` |" in PAGE
    for name in (*LINKS, *UPDATES, *(section.key for section in SECTIONS if section is not DEFAULT)):
        assert f"`{name}`" in PAGE, name
