"""What a spec means, token by token, after SymPy has differentiated and solved it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional, Union

from ttrc.language.sections import NORMALISER
from ttrc.language.spec import Input, MLPMemory, Parameter
from ttrc.symbolic import ONE, ZERO, Expr, Link, Reduction, Symbol, in_terms_of, names, symbol

Gate = Union[Input, Parameter]
MATRIX = ("k", "v")  # the axes of a matrix of key and value channels


@dataclass(frozen=True)
class Hebbian:
    """The error is free of the prediction: e = offset."""

    offset: Expr


@dataclass(frozen=True)
class Affine:
    """e = slope * p + offset; of a matrix the slope is one number a token, shared by all value channels."""

    slope: Expr
    offset: Expr


@dataclass(frozen=True)
class Implicit:
    """`unknown` is the root of unknown + pull(unknown) = base, where pull never falls, so that there is just one."""

    unknown: Symbol
    pull: Expr
    base: Expr


@dataclass(frozen=True)
class Mirror:
    """S_t = law(S_prev, own), entry by entry; where the law has no closed form it mentions the root of an equation."""

    law: Expr
    root: Optional[Implicit] = None

    @property
    def parts(self) -> tuple[Expr, ...]:
        return (self.law,) if self.root is None else (self.law, self.root.pull, self.root.base)

    def where(self, name: str, value: Expr) -> Mirror:
        """The same with a value in the place of a name."""
        law, whole = in_terms_of(self.law, symbol(name), value), self.root
        return Mirror(law, whole and replace(whole, base=in_terms_of(whole.base, symbol(name), value)))


@dataclass(frozen=True)
class Nonlinear:
    """Any other error: written(p), an expression an element.

    `sums` are the reductions that hold the prediction; one over v makes each channel's error depend on all of them.
    `root`, of an implicit step that has no closed form, is worked out after them, and `written` may mention it.
    """

    written: Expr
    sums: tuple[Reduction, ...]
    root: Optional[Implicit] = None


ErrorForm = Union[Hebbian, Affine, Nonlinear]


@dataclass(frozen=True)
class Feature:
    """What stands in the place of `word`, q or k: expr, entry by entry, over it, gates and `sums` of its channels.

    `zeros` are the names of what is 0 in padding.
    """

    word: str
    expr: Expr
    sums: tuple[Reduction, ...]
    zeros: tuple[str, ...]


@dataclass(frozen=True)
class Association:
    """A part of a token's step: p_t = S' key_t is predicted, and write_t e_t' taken off the state, e = error(p).

    key and write are features of k; None where the key is k, and where the error is written under the key itself.
    `origin` is the spec's table.
    """

    origin: str
    gradient: Expr  # dL/dp at the point where the update takes it, weight included
    error: ErrorForm
    key: Optional[Feature] = None
    write: Optional[Feature] = None


@dataclass(frozen=True)
class Readout:
    """A token's output: expr, a value channel each, over r, what the memory answers, over v, gates and `sums`; over the
    normaliser too, what the memory would answer, had every value been 1.

    A sum is over the value channels of r, v and gates, or over the key channels of q, k and gates.
    """

    expr: Expr
    sums: tuple[Reduction, ...]


def answered(readout: Readout | None) -> str:
    """What formulas call what the memory answers: the output, where nothing else is made of it."""
    return "o" if readout is None else "r"


@dataclass(frozen=True)
class Recurrence:
    """S_t = decay * S_{t-1} + M_t, M_t = momentum * M_{t-1} - k_t e_t', without a momentum M_t = -k_t e_t'.

    Of several associations k_t e_t' is the sum of theirs, each with keys of its own.

    A decay may have one number a key channel, a value channel or an entry; `write` too, which every entry of k e' is
    multiplied by: 1 unless the curvature of the retention differs by key channel.

    With a `mirror` there is no decay: S_t = mirror(S_{t-1}, own) element by element, own = -k_t e_t', and a momentum
    is of what that adds to mirror(S_{t-1}, 0), which then is the retained state.

    p_t = S' k_t with S the state at the start of the token's segment of `segment` tokens where there are segments;
    else the retained state, decay * S_{t-1}, if `reads_decayed`; else S_{t-1}. Where associations come `in_turn`, one
    sees what those before it have written at this token, too.

    With a `link` its weights W = link(S) are read instead of S: p_t = W' k_t and o_t = scale W_t' q_t. In segments
    W = link(S) at the start of each, and inside of it W moves as S does.

    With a `ridge`, one number a head or a key channel, of a vector memory a channel, S is the minimum over all tokens
    so far, see derive_closed; the error is affine, and `decay` that of the history.

    `state` says which axes S has. Of a vector memory it is ("v",): q and k are of value channels then, one entry of S
    answers for each, p_t = S * k_t and o_t = scale S_t * q_t, and k e' is k * e.

    With a normaliser, errors are free of p, and Z (MZ) moves as S (M) does, each value being 1: of a matrix [k].

    With a `network`, S is each of its weight matrices: p_t = f(k_t) at those weights, k_t what comes into a layer and
    e_t the cotangent of what goes out of it, of which the loss' is e(p). `activation` is an expression of x, an entry
    of what goes out of a layer, and of gates.

    Expressions are per element, over p, k, v and the gates; `reductions` define the sums that they mention.
    `log_decay` is None where the decay is 1; `decay` is not provably positive where `log_decay` is missing
    although decay differs from 1, and then a matrix has no chunk form. So for the momentum.
    """

    gates: tuple[Gate, ...]
    reductions: tuple[Reduction, ...]
    associations: tuple[Association, ...]
    curvature: Expr  # second derivative of the retention in S
    decay: Expr
    log_decay: Expr | None
    reads_decayed: bool
    in_turn: bool = False
    momentum: Expr | None = None
    log_momentum: Expr | None = None
    segment: int | None = None
    link: Link | None = None
    mirror: Mirror | None = None
    write: Expr = ONE
    network: MLPMemory | None = None
    activation: Expr | None = None
    state: tuple[str, ...] = MATRIX
    ridge: Expr | None = None
    features: tuple[Feature, ...] = ()
    readout: Readout | None = None

    @property
    def normalised(self) -> bool:
        """Whether the read-out takes what the memory would answer, had every value been 1."""
        made = () if self.readout is None else (self.readout.expr, *(s.body for s in self.readout.sums))
        return any(NORMALISER in names(expr) for expr in made)

    def axes_of(self, expr: Expr) -> tuple[str, ...]:
        """The channels that an expression of gates has a number for each of: none, "k", "v", or both."""
        mentioned = names(expr)
        found = {a for g in self.gates if g.name in mentioned for a in g.per.axes}
        return tuple(a for a in ("k", "v") if a in found)

    @property
    def main(self) -> Association:
        """The first association that hangs on its prediction; the first of all where none does."""
        return next((a for a in self.associations if not isinstance(a.error, Hebbian)), self.associations[0])

    @property
    def error(self) -> ErrorForm:
        return self.main.error

    @property
    def keys(self) -> tuple[str, ...]:
        """The axes of queries and keys."""
        return self.state[:1]

    @property
    def expansion(self) -> int | None:
        """How many times as wide as a key hidden layers are, where there are any."""
        return self.network.expansion if self.network is not None and self.network.layers > 1 else None

    @property
    def at_rest(self) -> Mirror:
        """The mirror where a token adds nothing: the retained state."""
        return self.mirror.where("own", ZERO)

    @property
    def known_sums(self) -> tuple[Reduction, ...]:
        """The reductions that are free of the prediction."""
        predicted = [s for a in self.associations if isinstance(a.error, Nonlinear) for s in a.error.sums]
        return tuple(r for r in self.reductions if r not in predicted)
