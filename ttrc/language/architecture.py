"""Expressions of [memory], over parameters: read before all others, whose words hang on what the memory is."""

from __future__ import annotations

from ttrc.errors import SpecError, did_you_mean, placing
from ttrc.language.activations import ACTIVATIONS
from ttrc.language.document import Document
from ttrc.language.expressions import Expressions, check_constant
from ttrc.language.parse import parse
from ttrc.language.sections import ACTIVATION, SIMILARITY, Section
from ttrc.language.spec import Domain, LinearMemory, Located, Per
from ttrc.language.syntax import Name


def read_similarity(document: Document) -> Located:
    """Of two tokens: a gate of one token has no part in it."""
    return _read(document, SIMILARITY, "a similarity is of two of them")


def read_activation(document: Document) -> Located:
    """Of each hidden channel alone, by a word or by an expression of x."""
    text, line, key = document.at("memory", "activation"), document.line("memory", "activation"), "memory.activation"
    for table in ("inputs", "parameters"):
        if "x" in document.data.get(table, {}):
            raise SpecError(
                '"x" is what goes through the activation of [memory]',
                line=document.line(table, "x"),
                key=f"{table}.x",
                expected="another name",
            )
    if text in ACTIVATIONS:
        return Located(parse(ACTIVATIONS[text]), text, key, line)
    with placing(line=line, key=key, text=text):
        tree = parse(text)
        if isinstance(tree, Name) and tree.id not in (*ACTIVATION.words, *_gates(document)):
            raise SpecError(
                f'there is no activation "{tree.id}"',
                span=tree.span,
                expected=f"one of {', '.join(ACTIVATIONS)}, or an expression of x, such as max(x, 0) ** 2",
                hint=did_you_mean(tree.id, ACTIVATIONS),
            )
    return _read(document, ACTIVATION, "an activation is the same for all of them")


def _read(document: Document, section: Section, why: str) -> Located:
    gates = _gates(document)
    axes = {name: frozenset(Per(gate["per"]).axes) for name, gate in gates.items()}
    domains = {name: Domain(gate["domain"]) for name, gate in gates.items()}
    read = Expressions(document, LinearMemory(), axes, domains).read(section, *section.key.split("."))
    check_constant(read, document.data.get("inputs", {}), why)
    return read


def _gates(document: Document) -> dict:
    return document.data.get("inputs", {}) | document.data.get("parameters", {})
