"""The house stands: floors import downwards, SymPy has one door, nothing in it knows the name of a system."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "ttrc").rglob("*.py"))
TEMPLATES = sorted(path for path in (ROOT / "templates").rglob("*") if path.is_file())

FLOORS = {
    "errors": 0,
    "paths": 0,
    "language": 1,
    "ir": 2,
    "symbolic": 2,
    "oracle": 2,
    "sampling": 2,
    "passes": 3,
    "emit": 4,
    "backends": 4,
    "compiler": 5,
    "runtime": 6,
    "tools": 7,
    "options": 8,
    "cli": 8,
    "__init__": 9,  # the package's face and `python -m ttrc` may show anything
    "__main__": 9,
}
ORACLE_MAY_USE = {"errors", "language", "oracle", "sampling"}
SYSTEMS = (
    "deltanet",
    "retnet",
    "mamba",
    "titans",
    "moneta",
    "yaad",
    "memora",
    "rwkv",
    "longhorn",
    "mesanet",
    "lightning",
    "deltaproduct",
    "gru",
)
FORBIDDEN_NAMES = {"eval", "exec", "__import__"}
FORBIDDEN_ANYWHERE = {"sympify", "_sympify", "parse_expr"}
LONGEST = 350


def relative(path):
    return str(path.relative_to(ROOT))


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=relative)


def room(module):
    """`ttrc.ir.tile` is in the room `ir`; `ttrc` itself is `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Every module that a file imports, at its head or inside a function, with the line."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            if origin == "ttrc":  # from ttrc import errors
                yield from ((f"ttrc.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield origin, node.lineno


def of_ttrc(path):
    return [(name, line) for name, line in imports(path) if name.split(".")[0] == "ttrc"]


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, "name", node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr, "attribute", node.lineno


@each(MODULES)
def test_a_lower_floor_never_imports_a_higher_one(path):
    here = room(module_name(path))
    assert here in FLOORS, f"give {here} a floor"
    for name, line in of_ttrc(path):
        there = room(name)
        assert FLOORS[there] <= FLOORS[here], f"{relative(path)}:{line}: {here} imports {there}, a higher floor"


@each(MODULES)
def test_only_symbolic_imports_sympy(path):
    found = [line for name, line in imports(path) if name.split(".")[0] in ("sympy", "mpmath")]
    assert not found or relative(path).startswith("ttrc/symbolic/"), f"{relative(path)}:{found[0]} imports SymPy"


def test_the_oracle_is_independent_of_the_derivation():
    todo, seen = [module_name(path) for path in MODULES if room(module_name(path)) == "oracle"], set()
    assert todo
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        assert room(name) in ORACLE_MAY_USE | {"__init__"}, f"the oracle reaches {name}"
        module = ROOT.joinpath(*name.split("."))
        for file in (module.with_suffix(".py"), module / "__init__.py"):
            if file.is_file() and name != "ttrc":
                todo += [found for found, _ in of_ttrc(file)]


@each(MODULES)
def test_no_text_is_evaluated(path):
    for name, kind, line in calls(path):
        bad = name in FORBIDDEN_ANYWHERE or (kind == "name" and name in FORBIDDEN_NAMES)
        assert not bad, f"{relative(path)}:{line} calls {name}"


@each(MODULES + TEMPLATES)
def test_nothing_knows_a_systems_name(path):
    for number, line in enumerate([path.name, *path.read_text().splitlines()]):
        for system in SYSTEMS:
            assert system not in line.lower(), f"{relative(path)}:{number} names {system}"


@each(MODULES)
def test_no_module_is_too_long(path):
    assert len(path.read_text().splitlines()) <= LONGEST


def test_the_walk_sees_what_it_forbids(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    bad = tmp_path / "ttrc" / "ir" / "bad.py"
    bad.parent.mkdir(parents=True)
    heads = "from .. import cli\nfrom ttrc import tools\nfrom ..passes.budget import x\n"
    bad.write_text(heads + "\n\ndef f():\n    import sympy\n    eval('1')\n")
    assert [name for name, _ in imports(bad)] == ["ttrc.cli", "ttrc.tools", "ttrc.passes.budget", "sympy"]
    assert ("eval", "name", 8) in list(calls(bad))
    with pytest.raises(AssertionError, match="a higher floor"):
        test_a_lower_floor_never_imports_a_higher_one(bad)
