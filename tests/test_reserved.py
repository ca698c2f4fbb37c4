"""No gate can take a name that generated code uses beside its arguments, nor one that a derivation uses for its own."""

import ast
import re

import pytest

from ttrc.compiler import generate
from ttrc.language.load import load_spec
from ttrc.language.reserved import RESERVED
from ttrc.passes import derive_chunk, derive_token
from ttrc.paths import specs_dir

SPEC = load_spec(specs_dir() / "gated_deltanet.toml")
GATES = {g.name for g in (*SPEC.inputs, *SPEC.parameters)}
CAN_BE_A_GATE = re.compile(r"[a-z][a-z0-9_]{0,23}|[A-Z]")


def names_beside_gates(text: str) -> set[str]:
    """Every bare name inside functions that take a gate as an argument."""
    found = set()
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef) and GATES & {
            a.arg for a in (*function.args.args, *function.args.kwonlyargs)
        }:
            found |= {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
            found |= {a.arg for a in (*function.args.args, *function.args.kwonlyargs)}
            # A comprehension's variable has a scope of its own.
            found -= {c.target.id for c in ast.walk(function) if isinstance(c, ast.comprehension)}
    return found - GATES


@pytest.mark.parametrize("file", ["op.py", "reference.py"])
def test_names_of_generated_code_are_reserved(file):
    text = generate(SPEC)[file]
    made_fresh = tile_names()  # the builder renames its tiles around the gates'
    names = {n for n in names_beside_gates(text) if CAN_BE_A_GATE.fullmatch(n) and not n.startswith("d_")}
    assert not names - RESERVED - made_fresh


@pytest.mark.parametrize("module", [derive_chunk, derive_token])
def test_placeholders_of_derivations_are_reserved(module):
    """symbol("x") in a derivation names an argument of one expression; a gate of that name would take its place."""
    source = open(module.__file__).read()
    placeholders = {n for n in re.findall(r'symbol\(f?"([a-z_]+)"\)', source) if CAN_BE_A_GATE.fullmatch(n)}
    merged_with_gates = {n for n in placeholders if re.search(rf'\*\*tiles[^}}]*"{n}"', source)}
    assert not merged_with_gates - RESERVED


def tile_names() -> set[str]:
    from ttrc.compiler import analyse

    forms = analyse(SPEC).forms.values()
    lowered = {s.target.name for f in forms for k in (*f.plan.forward, *f.plan.backward) for s in k.statements}
    return lowered | {s.target.name for f in forms for s in f.backward.statements}
