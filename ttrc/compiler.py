"""The whole pipeline: a spec's text in, the files of a standalone package out.

Spec --derive_recurrence--> Recurrence
     --derive_chunk, derive_token, derive_scan, derive_deep, derive_closed--> tile Programs
     (of a kernel memory: --derive_attention--> Attention --derive_pairs--> a tile Program)
     --differentiate_tile--> their adjoints
     --eliminate, lower_solve, schedule_*--> kernel Plans
     --emit--> __init__.py, op.py, kernels.py, reference.py
"""

from __future__ import annotations

from functools import lru_cache

from ttrc.emit import emit
from ttrc.ir.module import Form, Module
from ttrc.ir.recurrence import Recurrence
from ttrc.language.spec import KernelMemory, Spec
from ttrc.passes.derive_attention import derive_attention
from ttrc.passes.derive_chunk import derive_chunk
from ttrc.passes.derive_closed import closed_chunk, closed_token
from ttrc.passes.derive_deep import deep_chunk, deep_token
from ttrc.passes.derive_pairs import derive_pairs
from ttrc.passes.derive_recurrence import derive_recurrence
from ttrc.passes.derive_scan import scan_chunk, scan_closed
from ttrc.passes.derive_token import derive_token
from ttrc.passes.differentiate_tile import differentiate_tile
from ttrc.passes.eliminate import eliminate
from ttrc.passes.find_obstacle import find_obstacle, is_scan
from ttrc.passes.lower_solve import lower_solve
from ttrc.passes.schedule_chunk import schedule_chunk
from ttrc.passes.schedule_closed import schedule_closed
from ttrc.passes.schedule_deep import schedule_deep
from ttrc.passes.schedule_pairs import schedule_pairs
from ttrc.passes.schedule_scan import schedule_scan
from ttrc.passes.schedule_tokens import schedule_tokens


@lru_cache(maxsize=16)  # who shows, checks or tunes a spec asks more than once
def analyse(spec: Spec) -> Module:
    """Everything there is to know about a spec short of text."""
    if isinstance(spec.memory, KernelMemory):
        return _pairs(spec)
    recurrence = derive_recurrence(spec)
    forms = {"chunk": _chunk(recurrence), "recurrent": _recurrent(recurrence)}
    return Module(spec, recurrence, {name: form for name, form in forms.items() if form is not None})


def generate(spec: Spec) -> dict[str, str]:
    return emit(analyse(spec))


def _chunk(recurrence: Recurrence) -> Form | None:
    """None where a rule runs token by token."""
    if find_obstacle(recurrence) is not None:
        return None
    if is_scan(recurrence):
        derive, schedule = scan_chunk if recurrence.ridge is None else scan_closed, schedule_scan
    elif recurrence.network is not None:
        derive, schedule = deep_chunk, schedule_deep
    elif recurrence.ridge is not None:
        derive, schedule = closed_chunk, schedule_closed
    else:
        derive, schedule = derive_chunk, schedule_chunk
    forward = derive(recurrence)
    # The last alone has systems to solve; of the others these passes find nothing to do.
    forward, backward = eliminate(forward), eliminate(differentiate_tile(forward))
    return Form("chunk", forward, backward, schedule(recurrence, lower_solve(forward), lower_solve(backward)))


def _pairs(spec: Spec) -> Module:
    """A memory that keeps all pairs has one form: nothing is carried from token to token."""
    attention = derive_attention(spec)
    forward = derive_pairs(attention)
    backward = differentiate_tile(forward)
    form = Form("chunk", forward, backward, schedule_pairs(attention, forward, backward))
    return Module(spec, attention, {"chunk": form})


def _recurrent(recurrence: Recurrence) -> Form:
    if recurrence.ridge is not None:
        forward = closed_token(recurrence)
    else:
        forward = derive_token(recurrence) if recurrence.network is None else deep_token(recurrence)
    backward = differentiate_tile(forward)
    return Form("recurrent", forward, backward, schedule_tokens(recurrence, forward, backward))
