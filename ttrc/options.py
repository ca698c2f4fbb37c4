"""What several commands ask for alike, and what may be answered."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

Specs = Annotated[list[str], typer.Argument(metavar="SPEC...", help="Paths of spec files, or names of shipped specs.")]
OneSpec = Annotated[str, typer.Argument(metavar="SPEC", help="A spec file, or the name of a shipped spec.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Dtype(str, Enum):
    """Of q, k and v on a GPU."""

    BF16, FP16, FP32 = "bf16", "fp16", "fp32"


class Shapes(str, Enum):
    """What a benchmark runs at."""

    REGISTRY, LENGTHS, HEADS = "registry", "lengths", "heads"
