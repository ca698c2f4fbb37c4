"""A spec's link: how weights are made of the state that is moved, by a word of the field or by an expression of it."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from typing import Optional, Union

from ttrc.language.document import Document
from ttrc.language.expressions import Expressions, check_constant
from ttrc.language.parse import parse
from ttrc.language.sections import LINKS, THRESHOLD
from ttrc.language.spec import Link, Located, LqNorm, OfSlices, Slice, Softmax, SoftThreshold, VectorMemory

ENTRYWISE = {"sigmoid": "sigmoid(S)", "exp": "exp(S)"}  # words for expressions of each entry
_WHY = "a link is the same for all"


def read_link(document: Document, expressions: Expressions, inputs: Collection[str]) -> Optional[Link]:
    line = document.line("retention", "link")
    match document.data["retention"].get("link"):
        case None:
            return None
        case {"kind": "lq_norm", "q": q, "epsilon": epsilon}:
            return LqNorm(_exact(q), _exact(epsilon), line)
        case {"kind": "softmax", "axis": axis, "scale": scale}:
            return Softmax(Slice[axis.upper()], _exact(scale), line)
        case {"kind": "soft_threshold"}:
            threshold = expressions.read(THRESHOLD, "retention", "link", "threshold")
            check_constant(threshold, inputs, _WHY)
            return SoftThreshold(threshold, line)
        case {"kind": "expression"} as table:
            whole = Slice.VALUE if isinstance(expressions.memory, VectorMemory) else Slice.ALL
            axis = Slice[table["axis"].upper()] if "axis" in table else whole
            expr = expressions.read(LINKS[axis], "retention", "link", "expr")
            check_constant(expr, inputs, _WHY)
            return OfSlices(expr, axis, line)
        case {"kind": word}:
            text = ENTRYWISE[word]
            return OfSlices(Located(parse(text), text, "retention.link.kind", line), Slice.ALL, line)


def _exact(number: Union[int, float]) -> Fraction:
    """The decimal that the file says, not the binary number next to it."""
    return Fraction(str(number))
