"""Keys of a document as checked expressions over the gates that it declares, each with its place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Optional

from ttrc.errors import SpecError, placing
from ttrc.language.document import Document
from ttrc.language.sections import Section, read_expression
from ttrc.language.shapes import Axes
from ttrc.language.spec import Domain, Located, Memory
from ttrc.language.syntax import Name, walk
from ttrc.language.values import check_values


class Expressions:
    """Reads a key of the document as an expression over the declared gates."""

    def __init__(self, document: Document, memory: Memory, gates: Mapping[str, Axes], domains: Mapping[str, Domain]):
        self.document, self.memory, self.gates, self.domains = document, memory, gates, domains

    def read(self, section: Section, *keys: str) -> Located:
        text = self.document.at(*keys)
        line, key = self.document.line(*keys), ".".join(keys)
        with placing(line=line, key=key, text=text):
            tree = read_expression(text, section, self.memory, self.gates)
            check_values(tree, self.domains)
            return Located(tree, text, key, line)

    def read_if_given(self, section: Section, *keys: str) -> Optional[Located]:
        *table, key = keys
        return self.read(section, *keys) if key in self.document.at(*table) else None


def check_constant(expression: Located, inputs: Collection[str], why: str) -> None:
    for node in walk(expression.tree):
        if isinstance(node, Name) and node.id in inputs:
            raise SpecError(
                f'"{node.id}" is an input, which has a value for every token; {why}',
                line=expression.line,
                key=expression.key,
                text=expression.text,
                span=node.span,
                expected="numbers and parameters",
                hint="declare it in [parameters]",
            )
