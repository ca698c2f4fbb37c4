"""One compiled spec: what it means, and for each form its two programs and its plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from ttrc.ir.attention import Attention
from ttrc.ir.plan import Plan
from ttrc.ir.recurrence import Recurrence
from ttrc.ir.tile import Program
from ttrc.language.spec import Spec


@dataclass(frozen=True)
class Form:
    """A way to run a rule: "chunk" or "recurrent"."""

    name: str
    forward: Program
    backward: Program
    plan: Plan


@dataclass(frozen=True)
class Module:
    spec: Spec
    recurrence: Union[Recurrence, Attention]
    forms: dict[str, Form]
