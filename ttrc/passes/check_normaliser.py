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
from ttrc.passes.have_values import have_values
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
    if any(_sums_of_values(r) & names(u) for u in written):
        why = "what is written depends on a sum of values"
        return f"{MEANING}, and {why}", 'losses without one, such as "-dot(p, v)"'
    if not have_values(written, r.gates, {}):
        return f"{MEANING}, and what is written has no finite value there", 'losses that do, such as "-dot(p, v)"'
    if r.state == MATRIX and any("v" in r.axes_of(e) for e in (*written, r.decay, r.write)):
        why = "a gate makes that differ by value channel"
        return f"{MEANING}, one number a token, and {why}", "gates of value channels in the read-out alone"
    return None


def _sums_of_values(r: Recurrence) -> set[str]:
    """The reductions that depend on v, by name; those that mention others come after these."""
    found = {"v"}
    for reduction in r.reductions:
        if found & names(reduction.body):
            found.add(reduction.symbol.name)
    return found - {"v"}
