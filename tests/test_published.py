"""docs/systems.md is true: its specs are those of tests/systems, each is exact, and a row says what its file does."""

import re
from pathlib import Path

import pytest
import torch

import ttrc
from ttrc.compiler import analyse
from ttrc.language.load import load_spec
from ttrc.runtime.verify import Case, fitting, verify
from ttrc.tools.classify import headline

ROOT = Path(__file__).resolve().parents[1]
FILES = {path.stem: path for path in sorted((ROOT / "tests/systems").glob("*.toml"))}
LINES = re.findall(r"^\| .*\]\(\.\./tests/systems/(\w+)\.toml\).*$", (ROOT / "docs/systems.md").read_text(), re.M)
ROWS = {
    name: [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs/systems.md").read_text().splitlines()
    for name in re.findall(r"\(\.\./tests/systems/(\w+)\.toml\)", line)
}


def test_the_page_has_a_row_for_each_file_and_no_other():
    assert sorted(LINES) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_row_says_what_its_file_does(name):
    _, *choices, form, kind = ROWS[name]
    text, module = FILES[name].read_text(), analyse(load_spec(FILES[name]))
    for part in re.findall(r"`([^`]+)`", " ".join(choices)):
        assert part in text, part
    assert kind == headline(module)
    assert form == ("chunks" if "chunk" in module.forms else "token by token")


@pytest.mark.parametrize("name", FILES)
def test_a_published_system_is_exact(name):
    op = ttrc.load(load_spec(FILES[name]))
    case = fitting(op.spec, Case(B=1, T=21, H=1, HV=2, d_k=6, d_v=5, chunk_size=16))
    for form in op.forms:
        checked = verify(op, case, form=form, backend="torch", dtype=torch.float64)
        assert not checked.failures, (form, checked.failures)
