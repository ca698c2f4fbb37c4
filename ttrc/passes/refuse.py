"""A spec that a pass has no derivation for -> the error that says so, with a caret under the expression at fault."""

from __future__ import annotations

from ttrc.errors import SpecError
from ttrc.language.spec import Located, Spec
from ttrc.language.syntax import Span


def refuse(spec: Spec, where: Located, message: str, *, expected: str, span: Span | None = None) -> SpecError:
    """To be raised; `span` is the part of the expression at fault, by default all of it."""
    return SpecError(
        message,
        path=spec.source.path,
        line=where.line,
        key=where.key,
        text=where.text,
        span=span or where.tree.span,
        expected=expected,
    )
