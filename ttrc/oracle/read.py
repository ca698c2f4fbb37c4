"""What a token puts out, of what the memory answers to its query."""

from __future__ import annotations

from torch import Tensor

from ttrc.language.spec import Spec
from ttrc.oracle.expressions import Scope, evaluate


def read_out(spec: Spec, scope: Scope, r: Tensor) -> Tensor:
    """r [N, HV, 1, dv] -> o [N, HV, dv]. scope: q with the scale in it, k, v and the gates of this token."""
    o = r if spec.read is None else evaluate(spec.read.tree, scope | {"r": r}).expand_as(r)
    return o[..., 0, :]
