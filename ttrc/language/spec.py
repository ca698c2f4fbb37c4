"""What a spec says, after parsing and checking: frozen, located, free of SymPy.

The sections are the field's axes: memory, loss (attentional bias), retention, update (arXiv 2504.13173),
plus the gates they use. `Located` ties each expression to its line in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Optional, Union

from ttrc.language.syntax import Expr


class Per(Enum):
    """What one number of an input belongs to."""

    HEAD = "head"
    KEY_CHANNEL = "key_channel"
    VALUE_CHANNEL = "value_channel"
    ELEMENT = "element"

    @property
    def axes(self) -> tuple[str, ...]:
        """The channels that an input has a number for each of. No enum's value: Python 3.11.2 takes () for none."""
        return _AXES[self]


_AXES = {Per.HEAD: (), Per.KEY_CHANNEL: ("k",), Per.VALUE_CHANNEL: ("v",), Per.ELEMENT: ("k", "v")}


class Domain(Enum):
    """Where an input's values lie. Checked by the operator, assumed by the algebra."""

    REAL = "real"
    POSITIVE = "positive"  # > 0
    NONNEGATIVE = "nonnegative"  # >= 0
    NEGATIVE = "negative"  # < 0
    UNIT = "unit"  # 0 <= x <= 1
    DECAY = "decay"  # 0 < x <= 1
    LOG_DECAY = "log_decay"  # x <= 0, the log of a decay


@dataclass(frozen=True)
class Source:
    """The text of a spec and where it came from, for messages and for comments in emitted code."""

    path: str
    text: str


@dataclass(frozen=True)
class Located:
    """An expression of the file: its tree, its text, its key ("loss.expr") and its 1-based line."""

    tree: Expr
    text: str
    key: str
    line: int


@dataclass(frozen=True)
class Input:
    """A gate. Data-dependent ones come per token, [B, T, HV, *axes]; parameters once, [HV, *axes]."""

    name: str
    per: Per
    domain: Domain
    line: int


@dataclass(frozen=True)
class Parameter:
    """A gate that does not move in time; `default` is an expression of `head` and `heads`, or absent."""

    name: str
    per: Per
    domain: Domain
    line: int
    default: Optional[Located]


@dataclass(frozen=True)
class LinearMemory:
    """p = S' k, S is d_k x d_v."""


@dataclass(frozen=True)
class VectorMemory:
    """One number a channel: p = s * k, elementwise."""


@dataclass(frozen=True)
class MLPMemory:
    """p = f(k), f(x) = [x +] [LayerNorm](act(... act(x W1) ...) WL), hidden layers of width h = expansion * d_k.

    W1 is d_k x h, those between h x h, WL h x d_v; a single one is d_k x d_v. A residual needs d_k = d_v.
    Where hidden layers are gated each takes two matrices in turn, act(x W1) * (x W2), the next one W3 and W4. An
    activation is an expression of x and of parameters. The norm is over value channels, eps 1e-6, with parameters
    norm_weight and norm_bias, one number a value channel: they come with `norm` and are not declared.
    """

    layers: int
    expansion: int
    activation: Located
    residual: bool
    norm: bool
    gated: bool = False

    @property
    def axes(self) -> tuple[tuple[str, str], ...]:
        """Of each weight matrix."""
        every = ("k", *(f"h{i}" for i in range(1, self.layers)), "v")
        *into_hidden, last = zip(every, every[1:])
        return (*(axes for axes in into_hidden for _ in range(1 + self.gated)), last)


@dataclass(frozen=True)
class KernelMemory:
    """Nonparametric: all pairs are kept; local polynomial of this degree (0 is softmax attention).

    A pair weighs exp(similarity), one number of a query (scale already in it), a key and parameters. S is the value
    that is fitted at the query, and p = S the same for all pairs; of degree 1 p = S + W' (k - q). With a window, a
    query sees that many tokens, its own the last of them, and else all tokens up to its own.
    """

    degree: int
    similarity: Located
    window: Optional[int] = None


Memory = Union[LinearMemory, VectorMemory, MLPMemory, KernelMemory]


@dataclass(frozen=True)
class Loss:
    """One association's scalar objective in p, v (and k, gates), times a scalar weight that is free of p.

    key is what the memory is asked, p = S' key: k where it is not given. The gradient is key e' with e = dL/dp; where
    `write` is given the update takes write e' in its place, a step that is preconditioned or goes elsewhere.
    """

    expr: Located
    weight: Optional[Located]
    key: Optional[Located] = None
    write: Optional[Located] = None

    @property
    def origin(self) -> str:
        """The table that it is from: "loss", or "loss.NAME" of one of several."""
        return self.expr.key.removesuffix(".expr")


@dataclass(frozen=True)
class Features:
    """What stands in the place of keys and queries in all that follows: vectors made of them, gates and sums.

    k of the loss and of a similarity is then the mapped key. The read-out's scale multiplies the mapped query.
    """

    q: Optional[Located] = None
    k: Optional[Located] = None


@dataclass(frozen=True)
class LqNorm:
    """W = A / (||A||_q^2 + epsilon)^((q - 2) / 2), the norm over all entries of a matrix (arXiv 2504.13173 Eq 24)."""

    q: Fraction
    epsilon: Fraction
    line: int


class Slice(Enum):
    """Which entries of a matrix a link sums over; the value is the tuple of their axes."""

    KEY = ("k",)
    VALUE = ("v",)
    ALL = ("k", "v")


@dataclass(frozen=True)
class Softmax:
    """W = scale * softmax(A) over the slice (Eq 21, 27)."""

    axis: Slice
    scale: Fraction
    line: int


@dataclass(frozen=True)
class SoftThreshold:
    """W = sign(A) max(|A| - threshold, 0), the threshold a number made of parameters (Eq 23)."""

    threshold: Located
    line: int


@dataclass(frozen=True)
class OfSlices:
    """W = an expression of S and parameters, S being one slice of A after another: sums go along its `axis`."""

    expr: Located
    axis: Slice
    line: int


Link = Union[LqNorm, Softmax, SoftThreshold, OfSlices]


@dataclass(frozen=True)
class Retention:
    """A scalar expression in S, S_prev and the gates. With a link, S is a dual variable A, and the weights link(A).

    A closed form has no S_prev: `expr` is of S alone, and `decay` is what a token leaves of the importance of all
    associations before it.
    """

    expr: Located
    link: Optional[Link]
    decay: Optional[Located] = None


class At(Enum):
    """Where the loss gradient is taken."""

    PREVIOUS = "previous"  # S_prev
    RETAINED = "retained"  # argmin of the retention term alone
    IN_TURN = "in_turn"  # that, and what the losses before it, in the file's order, have made of it
    SEGMENT_START = "segment_start"  # frozen at the start of the segment


@dataclass(frozen=True)
class Gradient:
    """S = argmin <grad loss(S_at), S> + retention(S, S_prev).

    In turn, each loss' gradient is taken at the argmin with those before it in the sum: steps one after another.
    With momentum, own is what this moves S by beyond argmin retention(S, S_prev), and the state is the pair (S, M):
    M = momentum * M_prev + own; S = argmin retention(S, S_prev) + M.
    A segment is that many tokens, counted from the start of each sequence; S_at is the state at its first.
    With a link, gradients are by the weights W: at link(S_prev), link(argmin retention) or, for a segment, at the link
    of the state at its start; inside of a segment W moves as S does, without the link.
    """

    at: At
    segment: Optional[int]
    momentum: Optional[Located]
    line: int


@dataclass(frozen=True)
class Proximal:
    """S = argmin loss(S) + retention(S, S_prev): the implicit step."""

    line: int


@dataclass(frozen=True)
class ClosedForm:
    """S_t = argmin sum over i <= t of (product of decay_j, i < j <= t) weight_i loss_i(S) + retention_t(S).

    The regression that steps of the other rules approach (arXiv 2501.12352). A retention keeps it away from keys that
    were never seen: a ridge does not decay. In a kernel memory weight_i is times exp(similarity(q_t, k_i)), and each
    query has an S of its own, which is what it reads.
    """

    line: int


Update = Union[Gradient, Proximal, ClosedForm]


@dataclass(frozen=True)
class Spec:
    name: str
    reference: str
    inputs: tuple[Input, ...]
    parameters: tuple[Parameter, ...]
    memory: Memory
    losses: tuple[Loss, ...]  # the associations of a token; of the update's gradient, their sum
    retention: Retention
    update: Update
    source: Source
    features: Features = Features()
    read: Optional[Located] = None  # the output o, a value vector, of what the memory answers to q: r where absent

    @property
    def loss(self) -> Loss:
        """The one loss of a rule that takes no more than one."""
        (loss,) = self.losses
        return loss

    @property
    def of_memory(self) -> tuple[Located, ...]:
        """Every expression but the read-out: what the memory keeps, and what it is asked."""
        optional = [
            *(part for loss in self.losses for part in (loss.weight, loss.key, loss.write)),
            self.retention.decay,
            *vars(self.features).values(),
            self.update.momentum if isinstance(self.update, Gradient) else None,
            self.memory.similarity if isinstance(self.memory, KernelMemory) else None,
            self.memory.activation if isinstance(self.memory, MLPMemory) and self.memory.layers > 1 else None,
            _link_expression(self.retention.link),
        ]
        return (*(loss.expr for loss in self.losses), self.retention.expr, *filter(None, optional))


def _link_expression(link: Optional[Link]) -> Optional[Located]:
    match link:
        case SoftThreshold(threshold=expr) | OfSlices(expr=expr):
            return expr
    return None
