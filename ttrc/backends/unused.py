"""Leaves out of a generated file the helpers that nothing in it calls: what is read there is what runs."""

from __future__ import annotations

import ast
from collections.abc import Iterable


def without_unused(text: str, wanted: Iterable[str]) -> str:
    """The text without those functions and imports of its top level that neither `wanted` nor other code leads to.

    Raises AssertionError where two functions have one name: the first would be lost.
    """
    body = ast.parse(text).body
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


def _bound(node: ast.stmt) -> set[str]:
    """What a function or an import is called by; nothing of other code."""
    match node:
        case ast.FunctionDef(name):
            return {name}
        case ast.Import(names=[alias]):
            return {alias.asname or alias.name.split(".")[0]}
    return set()


def names(node: ast.AST) -> set[str]:
    """Every bare name in a piece of code."""
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def attributes(text: str, module: str) -> set[str]:
    """What code takes from a module: each x of module.x."""
    taken = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute))
    return {node.attr for node in taken if isinstance(node.value, ast.Name) and node.value.id == module}
