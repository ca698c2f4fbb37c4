"""Whether a read-out may take the normaliser: what the memory would answer, had every value been 1.

It has a state of its own, which moves as the memory's does and takes what a 1 would have written. That must be known
without a prediction, for those of that state are no part of the program; and of a matrix it must be the same for all
value channels, so that the axis drops out and the state has key channels alone.
"""

from __future__ import annotations

from ttrc.ir.recurrence import MATRIX, Hebbian, Recurrence
from ttrc.language.sections import NORMALISER
from ttrc.language.spec import Spec
from ttrc.language.state import is_normalised
from ttrc.language.syntax import Name, walk
from ttrc.passes.derive_error import written_of_ones
from ttrc.passes.refuse import refuse
from ttrc.symbolic import names

MEANING = "the normaliser is what the memory would answer, had every value been 1"


def check_normaliser(spec: Spec, recurrence: Recurrence) -> None:
    if not is_normalised(spec):
        return
    found = _obstacle(recurrence)
    if found is not None:
        message, expected = found
        span = next(n.span for n in walk(spec.read.tree) if isinstance(n, Name) and n.id == NORMALISER)
        raise refuse(spec, spec.read, message, expected=expected, span=span)


def _obstacle(r: Recurrence) -> tuple[str, str] | None:
    """(message, what was expected), where it may not."""
    if not r.normalised:
        return "the normaliser cancels, so that it has no effect", "an expression that the normaliser makes different"
    if r.ridge is not None or r.link is not None or r.mirror is not None:
        own = "a closed form" if r.ridge is not None else "a link" if r.link is not None else "this retention"
        why = f"with {own} that is no sum of what tokens write"
        return f"{MEANING}, and {why}", "a gradient step and a quadratic retention"
    if not all(isinstance(a.error, Hebbian) for a in r.associations):
        why = "here what is written depends on what has been predicted"
        return f"{MEANING}, and {why}", 'losses free of that, such as "-dot(p, v)"'
    written = [written_of_ones(a.error) for a in r.associations]
    of_sums = {s.symbol.name for s in r.reductions if "v" in s.axes}
    if any(of_sums & names(u) for u in written):
        why = "what is written depends on a sum over value channels"
        return f"{MEANING}, and {why}", 'losses without one, such as "-dot(p, v)"'
    if r.state == MATRIX and any("v" in r.axes_of(e) for e in (*written, r.decay, r.write)):
        why = "a gate makes that differ by value channel"
        return f"{MEANING}, one number a token, and {why}", "gates of value channels in the read-out alone"
    return None
