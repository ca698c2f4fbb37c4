"""Leaves out of a generated file what nothing there takes: helpers, imports, variables. What is read is what runs."""

from __future__ import annotations

import ast
import re
import symtable
from collections.abc import Iterable, Iterator
from functools import lru_cache


def without_unused(text: str, wanted: Iterable[str]) -> str:
    """The text without those functions and imports of its top level that neither `wanted` nor other code leads to.

    Raises AssertionError where two functions have one name: the first would be lost.
    """
    body = _parse(text).body
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    by_name = {node.name: node for node in functions}
    assert len(by_name) == len(functions), sorted(node.name for node in functions)
    used, found = set(), set(wanted).union(*(names(node) for node in body if not isinstance(node, ast.FunctionDef)))
    while found:
        used |= found
        found = set().union(*(names(by_name[name]) for name in found if name in by_name)) - used
    lines = text.splitlines(keepends=True)
    for node in reversed([node for node in body if not _bound(node) <= used]):
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
        del lines[first - 1 : node.end_lineno]
    return "".join(lines)


def without_unused_imports(text: str) -> str:
    """The text without what its top level takes from modules and then leaves alone."""
    tree = _parse(text)
    used, lines = names(tree), text.splitlines(keepends=True)
    for node in reversed([node for node in tree.body if isinstance(node, ast.ImportFrom)]):
        if node.module != "__future__":
            taken = [alias.name for alias in node.names if alias.name in used]
            left = f"from {'.' * node.level}{node.module or ''} import {', '.join(taken)}\n" if taken else ""
            lines[node.lineno - 1 : node.end_lineno] = [left]
    return re.sub(r"\n{3,}(?=from |import )", "\n\n", "".join(lines))


def without_unused_locals(text: str) -> str:
    """The text without what functions of its top level assign and never read, nor the comments above such lines."""
    while suspects := _suspects(text):
        functions = [x for x in _parse(text).body if isinstance(x, ast.FunctionDef) and x.name in suspects]
        if not (changes := [x for function in functions for x in _unread(function)]):
            break
        lines = text.splitlines(keepends=True)
        for node, left in sorted(changes, key=lambda change: -change[0].lineno):
            first, indent = node.lineno - 1, " " * node.col_offset
            while not left and lines[first - 1].startswith(f"{indent}#"):
                first -= 1
            lines[first : node.end_lineno] = [f"{indent}{left}\n"] if left else []
        text = "".join(lines)
    return text


def _suspects(text: str) -> set[str]:
    """Functions of the top level that may have what `_unread` looks for: Python's own tables of names are quick."""

    def unread(table: symtable.SymbolTable) -> bool:
        found = any(x.is_assigned() and not x.is_referenced() for x in table.get_symbols())
        return found or any(map(unread, table.get_children()))

    return {table.get_name() for table in symtable.symtable(text, "", "exec").get_children() if unread(table)}


def _unread(function: ast.FunctionDef) -> Iterator[tuple[ast.stmt, str]]:
    """What to change, each with what is left of it: a condition goes with all that hangs on it."""
    nodes = list(ast.walk(function))  # once: most of what an emission takes is this walk
    changes = dict(_assignments(nodes))
    for node in reversed(nodes):  # inner ones first
        for block in (getattr(node, "body", ()), getattr(node, "orelse", ())):
            if isinstance(block, list) and block and all(changes.get(inner) == "" for inner in block):
                changes = {x: left for x, left in changes.items() if x not in block}
                if isinstance(node, ast.If) and not node.orelse:
                    changes[node] = ""  # other blocks stay as they are: one cannot be empty
    yield from changes.items()


def _assignments(nodes: list[ast.AST]) -> Iterator[tuple[ast.stmt, str]]:
    """Assignments in a function's nodes of which some names are not read, each with what is left of it."""
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    read |= {n.target.id for n in nodes if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)}
    fields = {x for node in nodes if isinstance(node, ast.ClassDef) for x in node.body}
    for node in nodes:
        match node:
            case _ if node in fields:  # read by others
                pass
            case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)) if name not in read:
                yield node, ""
            case ast.Assign(targets=[ast.Tuple(names)], value=ast.Tuple(values)) if _are_names(names):
                pairs = [(x.id, ast.unparse(value)) for x, value in zip(names, values) if x.id in read]
                if len(pairs) < len(names):
                    yield node, " = ".join(", ".join(side) for side in zip(*pairs))


@lru_cache(maxsize=32)
def _parse(text: str) -> ast.Module:
    """Several ask about one file in turn; nobody changes a tree."""
    return ast.parse(text)


def _are_names(nodes: list[ast.expr]) -> bool:
    return all(isinstance(node, ast.Name) for node in nodes)


def imported(text: str, module: str) -> set[str]:
    """What a file takes from its neighbour: each x of `from .module import x`."""
    taken = (node for node in _parse(text).body if isinstance(node, ast.ImportFrom))
    return {alias.name for node in taken if (node.level, node.module) == (1, module) for alias in node.names}


def _bound(node: ast.stmt) -> set[str]:
    """What a function or an import is called by; nothing of other code."""
    match node:
        case ast.FunctionDef(name):
            return {name}
        case ast.Import(names=[alias]):
            return {alias.asname or alias.name.split(".")[0]}
    return set()


@lru_cache(maxsize=512)  # of what all files share, the same nodes
def names(node: ast.AST) -> frozenset[str]:
    """Every bare name in a piece of code."""
    return frozenset(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))


def attributes(text: str, module: str) -> set[str]:
    """What code takes from a module: each x of module.x."""
    taken = (node for node in ast.walk(_parse(text)) if isinstance(node, ast.Attribute))
    return {node.attr for node in taken if isinstance(node.value, ast.Name) and node.value.id == module}
