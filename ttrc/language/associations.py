"""[loss], or [loss.NAME] for each of several: the associations that a token learns."""

from __future__ import annotations

from ttrc.errors import SpecError
from ttrc.language.document import Document
from ttrc.language.expressions import Expressions
from ttrc.language.sections import KEY, LOSS, WEIGHT, WRITE
from ttrc.language.spec import LinearMemory, Loss, Memory, VectorMemory


def check_associations(document: Document, memory: Memory) -> None:
    """Several losses, and keys other than k, are what one gradient step of a matrix or a vector can be made of."""
    rule, kind = document.data["update"]["rule"], document.data["memory"]["kind"]
    fits = isinstance(memory, (LinearMemory, VectorMemory))
    if fits and rule == "gradient":
        return
    what = f'rule = "{rule}"' if fits else f'[memory] kind = "{kind}"'
    hint = 'several losses, and keys of their own, are for [memory] kind = "linear" or "vector" and rule = "gradient"'
    first, *more = _tables(document)
    if more:
        message, place = f"several losses make no sense where {what}", more[0]
    elif given := [key for key in ("key", "write") if key in document.at(*first)]:
        message, place = f'[{".".join(first)}] takes no key "{given[0]}" where {what}', (*first, given[0])
    else:
        return
    raise SpecError(
        message,
        line=document.line(*place),
        key=".".join(place),
        expected="one loss of p, what the memory answers to k",
        hint=hint,
    )


def read_losses(document: Document, expressions: Expressions) -> tuple[Loss, ...]:
    return tuple(
        Loss(
            expr=expressions.read(LOSS, *table, "expr"),
            weight=expressions.read_if_given(WEIGHT, *table, "weight"),
            key=expressions.read_if_given(KEY, *table, "key"),
            write=expressions.read_if_given(WRITE, *table, "write"),
        )
        for table in _tables(document)
    )


def _tables(document: Document) -> list[tuple[str, ...]]:
    """The tables that hold a loss: the one, or those inside of it."""
    inside = document.data["loss"]
    several = all(isinstance(value, dict) for value in inside.values())
    return [("loss", name) for name in inside] if several else [("loss",)]
