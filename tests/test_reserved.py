"""No gate can take a name that generated code uses beside its arguments; tiles make room for the others."""

import ast
import re

import pytest
import torch

from ttrc.compiler import analyse, generate
from ttrc.language.load import load_spec, parse_spec
from ttrc.language.reserved import RESERVED
from ttrc.language.state import state_parts
from ttrc.paths import specs_dir, templates_dir
from ttrc.runtime.load import load, shipped_specs
from ttrc.runtime.verify import Case, fitting, verify
from ttrc.sampling import random_inputs

SPEC = load_spec(specs_dir() / "gated_deltanet.toml")
CAN_BE_A_GATE = re.compile(r"[a-z][a-z0-9_]{0,23}|[A-Z](_[a-z0-9_]{1,22})?")


def names_beside_gates(text: str, gates: set[str]) -> set[str]:
    """Every bare name inside functions that take a gate as an argument."""
    found = set()
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef) and gates & {
            a.arg for a in (*function.args.args, *function.args.kwonlyargs)
        }:
            found |= {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
            found |= {a.arg for a in (*function.args.args, *function.args.kwonlyargs)}
            # A comprehension's variable has a scope of its own.
            found -= {c.target.id for c in ast.walk(function) if isinstance(c, ast.comprehension)}
    return found - gates


@pytest.mark.parametrize("name", ["mlstm", "titans_linear", "mesanet", "titans"])
def test_names_of_a_states_parts_are_reserved(name):
    """Callers read them as fields, which a gate of the same name would rename."""
    parts = {part.name for part in state_parts(load_spec(specs_dir() / f"{name}.toml"))}
    assert {part for part in parts if CAN_BE_A_GATE.fullmatch(part)} <= RESERVED


# Between them they have whatever a file around kernels may hold: segments, pairs, states that are several, entries.
KINDS = ["gated_deltanet", "forgetting_attention", "titans", "mamba", "mlstm"]


@pytest.mark.parametrize("name", KINDS)
def test_names_of_generated_code_are_reserved(name):
    spec = load_spec(specs_dir() / f"{name}.toml")
    gates, files = {g.name for g in (*spec.inputs, *spec.parameters)}, generate(spec)
    names = set().union(*(names_beside_gates(text, gates) for file, text in files.items() if file != "kernels.py"))
    names = {n for n in names if CAN_BE_A_GATE.fullmatch(n) and not n.startswith("d_")}
    made_fresh = tile_names(spec)  # the builder renames its tiles around the gates'
    assert sorted(names - RESERVED - made_fresh - {name}) == []


@pytest.mark.parametrize(
    "name", ["rate", "read", "prediction_2", "coarse", "since", "total", "u", "sum_0", "decay", "A_log", "S_next", "D"]
)
def test_a_gate_may_share_a_name_with_a_tile(name):
    """Tiles are renamed around the gates: the numbers are those of the spec under its own names."""
    text = SPEC.source.text.replace("beta", name)
    module = analyse(parse_spec(text))
    for form in module.forms.values():
        targets = [s.target.name for s in form.backward.statements]
        assert name not in targets and len(targets) == len(set(targets))
    op, renamed = load(SPEC), load(module.spec)
    x = random_inputs(SPEC, B=1, T=20, H=1, HV=1, dk=8, dv=8, dtype=torch.float64)
    for form in op.forms:
        wanted, _ = op(x["q"], x["k"], x["v"], g=x["g"], beta=x["beta"], form=form, backend="torch")
        made, _ = renamed(x["q"], x["k"], x["v"], **{"g": x["g"], name: x["beta"]}, form=form, backend="torch")
        assert torch.allclose(made, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mamba", "huber_delta", "forgetting_attention", "titans", "mlstm"])
def test_gates_have_the_letters_that_papers_give_them(name):
    """A, B, C, D of a state-space model, i of an LSTM, n of a count: kernels of every kind leave them to users."""
    text = (specs_dir() / f"{name}.toml").read_text()
    spec = load_spec(specs_dir() / f"{name}.toml")
    gates = [gate.name for gate in (*spec.inputs, *spec.parameters)]
    letters = dict(zip(gates, "DinBCjA"))
    text = re.sub(rf"\b({'|'.join(gates)})\b", lambda gate: letters[gate[0]], text)
    op = load(parse_spec(text))
    case = fitting(op.spec, Case(B=1, T=20, H=1, HV=1, d_k=4, d_v=4))
    for form in op.forms:
        assert not verify(op, case, form=form, backend="torch", dtype=torch.float64).failures
        assert not verify(op, case, form=form, backend="triton", dtype=torch.float32).failures


def tile_names(spec) -> set[str]:
    forms = analyse(spec).forms.values()
    lowered = {s.target.name for f in forms for k in (*f.plan.forward, *f.plan.backward) for s in k.statements}
    return lowered | {s.target.name for f in forms for s in (*f.forward.statements, *f.backward.statements)}


def test_names_of_what_templates_define_are_reserved():
    texts = [path.read_text() for path in (templates_dir() / "triton").glob("*.jinja")]
    defined = {name for text in texts for name in re.findall(r"^def (\w+)\(", text, re.MULTILINE)}
    assert len(defined) > 50 and defined <= RESERVED


UNSEEN = specs_dir().parent / "tests" / "unseen"
# Their kernels have words that those of no shipped spec have.
OTHERS = [UNSEEN / "windowed_attention.toml", UNSEEN / "long_titans.toml"]


@pytest.mark.parametrize("path", [*(specs_dir() / f"{name}.toml" for name in shipped_specs()), *OTHERS])
def test_names_of_generated_kernels_are_reserved(path):
    """Words that a template binds or calls where gates are variables too; tiles are renamed around gates."""
    module = analyse(load_spec(path))
    gates = {g.name for g in (*module.spec.inputs, *module.spec.parameters)}
    statements = [s for f in module.forms.values() for k in f.plan.kernels for s in k.statements]
    tiles = {s.target.name for s in statements} | {
        c.state.name for f in module.forms.values() for c in f.backward.carries
    }
    tiles |= {b.tile.name for f in module.forms.values() for k in f.plan.kernels for s in k.segments for b in s.loads}
    bodies = [s for statement in statements for s in getattr(statement.op, "body", ())]
    unknowns = {s.op.unknown.name for s in statements if hasattr(s.op, "unknown")}
    allowed = RESERVED | gates | tiles | unknowns | {s.target.name for s in bodies}
    for kernel in ast.parse(generate(module.spec)["kernels.py"]).body:
        if isinstance(kernel, ast.FunctionDef) and {f"{g}_ptr" for g in gates} & {a.arg for a in kernel.args.args}:
            words = {n.id for n in ast.walk(kernel) if isinstance(n, ast.Name)} - allowed
            words = {w for w in words if not w.startswith("d_") and not w.endswith(("_ptr", "_moved"))}
            assert not {w for w in words if CAN_BE_A_GATE.fullmatch(w)}, kernel.name
