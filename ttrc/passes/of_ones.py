"""A memory as it would be, had every value been 1: the normaliser that a read-out divides by, and its state.

Errors are free of their predictions there, so that it is the same sum over tokens with the same factors, of what a 1
would have written. Of a matrix all value channels are alike, and the axis drops out: its state has key channels alone.
"""

from __future__ import annotations

from ttrc.ir.recurrence import MATRIX, Hebbian, Recurrence
from ttrc.language.sections import NORMALISER
from ttrc.language.spec import Spec
from ttrc.language.syntax import Name, walk
from ttrc.passes.refuse import refuse
from ttrc.symbolic import ONE, Expr, in_terms_of, names, symbol


def written_of_ones(error: Hebbian) -> Expr:
    """u = -e where v is 1."""
    return in_terms_of(-error.offset, symbol("v"), ONE)


def check_of_ones(spec: Spec, r: Recurrence) -> None:
    if not r.normalised:
        return
    where = spec.read
    span = next(n.span for n in walk(where.tree) if isinstance(n, Name) and n.id == NORMALISER)
    what = "the normaliser is what the memory would answer, had every value been 1"
    if r.ridge is not None or r.link is not None or r.mirror is not None:
        own = "a closed form" if r.ridge is not None else "a link" if r.link is not None else "this retention"
        message = f"{what}, and with {own} that is no sum of what tokens write"
        raise refuse(spec, where, message, expected="a gradient step and a quadratic retention", span=span)
    if not all(isinstance(a.error, Hebbian) for a in r.associations):
        message = f"{what}, and here what is written hangs on what has been predicted"
        raise refuse(spec, where, message, expected='losses free of that, such as "-dot(p, v)"', span=span)
    written = [written_of_ones(a.error) for a in r.associations]
    of_sums = {s.symbol.name for s in r.reductions if "v" in s.axes}
    if any(of_sums & names(u) for u in written):
        message = f"{what}, and what is written hangs on a sum over value channels"
        raise refuse(spec, where, message, expected='losses without one, such as "-dot(p, v)"', span=span)
    if r.state == MATRIX and any("v" in r.axes_of(e) for e in (*written, r.decay, r.write)):
        message = f"{what}, one number a token, and a gate makes that differ by value channel"
        raise refuse(spec, where, message, expected="gates of value channels in the read-out alone", span=span)
