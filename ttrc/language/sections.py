"""Which words each section's expression may use, which it must, and that it comes to one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from ttrc.errors import SpecError
from ttrc.language.bounds import check_bounds
from ttrc.language.domains import INTERVALS
from ttrc.language.evaluate import evaluate_default
from ttrc.language.parse import parse
from ttrc.language.shapes import SCALAR, Axes, Scope, describe, infer
from ttrc.language.spec import Domain, KernelMemory, LinearMemory, Memory, MLPMemory, Slice, VectorMemory
from ttrc.language.syntax import Call, Expr, Name, names, walk

_KEY, _VALUE = frozenset({"k"}), frozenset({"v"})
NORMALISER = "normaliser"  # what the memory would answer to q, had every value been 1
_ELSEWHERE = {  # words that a section provides for some memories or updates only
    "S_prev": "a closed form has no last state: what a token leaves of the past is retention.decay",
    "W": "the slope of what a kernel memory of degree 1 fits at a query, S being its value there",
    NORMALISER: "the loss of a kernel memory decides whether weights are divided by their sum, as of norm2(p - v) / 2 "
    "they are; and what a deep memory answers is no sum of what tokens write",
}
_HEAD_COUNTS = (1, 8, 64)  # a default is tried on these


@dataclass(frozen=True)
class Section:
    """A kind of expression: the words the section provides, whether gates may appear, the word it must use.

    It comes to one number, or to what is as wide as the word `like`; `by_channel` to either in a vector memory, where
    each channel moves on its own.
    """

    key: str
    words: tuple[str, ...]
    gates: bool
    must_use: Optional[str] = None
    otherwise: str = ""
    like: Optional[str] = None
    counts: bool = False  # whether it may ask how many channels there are
    by_channel: bool = False
    axes: Optional[Axes] = None  # of its words, where they are not what they are elsewhere


LOSS = Section("loss.expr", ("p", "v", "k"), True, "p", "nothing would be learned: p is the memory's prediction for k")
WEIGHT = Section("loss.weight", ("v", "k"), True)
KEY = Section("loss.key", ("k",), True, like="k", counts=True)
WRITE = Section("loss.write", ("k",), True, like="k", counts=True)
RETENTION = Section(
    "retention.expr", ("S", "S_prev"), True, "S", "nothing could be solved for: S is the new state, S_prev the last"
)
RIDGE = Section("retention.expr", ("S", "W"), True, "S", "nothing would hold S where no key has been")
DECAY = Section("retention.decay", (), True, by_channel=True)
SIMILARITY = Section(
    "memory.similarity", ("q", "k"), True, "k", "all keys would be as near: q is the query, times the scale, k a key"
)
ACTIVATION = Section(
    "memory.activation", ("x",), True, "x", "nothing would go through the layer: x is what its weights make"
)
FEATURES = {
    "q": Section("features.q", ("q", "k"), True, "q", "queries would not be read", "q", counts=True),
    "k": Section(
        "features.k",
        ("k",),
        True,
        "k",
        "keys would not be read: one made of gates alone is loss.key, such as 1 - f, or comes in the place of k",
        "k",
        counts=True,
    ),
}
THRESHOLD = Section("retention.link.threshold", (), True)
LINKS = {
    axis: Section(
        "retention.link.expr",
        ("S",),
        True,
        "S",
        "weights would not move: S is the state that the recurrence moves, or a slice of it along axis",
        "S",
        axes=frozenset(axis.value),
    )
    for axis in Slice
}
MOMENTUM = Section("update.momentum", (), True, by_channel=True)
READ = Section(
    "read.expr",
    ("r", NORMALISER, "v", "q", "k"),
    True,
    "r",
    "nothing would be read: r is what the memory answers to q",
    "r",
    counts=True,
)
DEFAULT = Section("default", ("head", "heads"), False)

SECTIONS = (
    *(LOSS, WEIGHT, KEY, WRITE, RETENTION, RIDGE, DECAY, SIMILARITY, ACTIVATION),
    *(*FEATURES.values(), THRESHOLD, *LINKS.values(), MOMENTUM, READ, DEFAULT),
)


def word_axes(memory: Memory) -> dict[str, Axes]:
    """The axes of the words that sections provide, for this memory."""
    match memory:
        case LinearMemory() | MLPMemory():  # of an MLP, S is any one of its weight matrices
            key, value, state = _KEY, _VALUE, _KEY | _VALUE
        case VectorMemory():  # key and value channels are the same channels
            key = value = state = _VALUE
        case KernelMemory():  # S is the value that is fitted at a query, W its slope
            key, value, state = _KEY, _VALUE, _VALUE
    matrices, tokens = {"S": state, "S_prev": state}, {"p": value, "r": value, "v": value, "q": key, "k": key}
    if isinstance(memory, (LinearMemory, VectorMemory)):
        tokens[NORMALISER] = value if isinstance(memory, VectorMemory) else SCALAR
    if isinstance(memory, KernelMemory) and memory.degree:
        matrices["W"] = key | value
    return tokens | matrices | {"x": SCALAR, "head": SCALAR, "heads": SCALAR}  # x: each hidden channel alone


def read_expression(text: str, section: Section, memory: Memory, gates: Mapping[str, Axes]) -> Expr:
    """The checked tree of a section's expression. A SpecError lacks the file and the line only."""
    tree = parse(text)
    axes_of = word_axes(memory)
    if section.axes is not None:
        axes_of |= dict.fromkeys(section.words, section.axes)
    scope: Scope = {word: axes_of[word] for word in section.words if word in axes_of}
    scope |= gates if section.gates else {}
    _check_words(tree, section, scope)
    if section is RETENTION and isinstance(memory, MLPMemory):
        _check_a_number(tree, gates, "S is each weight matrix of the memory in turn", "the matrices differ in shape")
    if section in LINKS.values():
        _check_a_number(tree, gates, "S is each slice of the state in turn", "a link is the same for all slices")
    axes = infer(tree, scope)
    _check_counts(tree, section)
    if section is not DEFAULT:
        check_bounds(tree)
    wanted = SCALAR if section.like is None else axes_of[section.like]
    accepted = (wanted, _VALUE) if section.by_channel and isinstance(memory, VectorMemory) else (wanted,)
    if axes not in accepted:
        raise SpecError(
            f"{section.key} comes to {describe(axes)}",
            span=tree.span,
            expected=" or ".join("one number" if a == SCALAR else describe(a) for a in accepted),
            hint=None if wanted else "reduce it with sum(...), norm2(...) or dot(a, b)",
        )
    # All pairs are kept in a kernel memory, so its retention may be no more than 0.
    free = section is RIDGE and isinstance(memory, KernelMemory)
    if section.must_use and section.must_use not in names(tree) and not free:
        raise SpecError(
            f'{section.key} does not use "{section.must_use}"',
            span=tree.span,
            expected=f'an expression of "{section.must_use}"',
            hint=section.otherwise,
        )
    return tree


def check_default(tree: Expr, domain: Domain) -> None:
    """A default has a value in its parameter's domain for every head, tried on a few counts of heads."""
    interval = INTERVALS[domain]
    for heads in _HEAD_COUNTS:
        for head in range(heads):
            value = evaluate_default(tree, head, heads)
            if not interval.holds(value):
                raise SpecError(
                    f"for head {head} of {heads} the default is {value:g}, outside of its domain",
                    span=tree.span,
                    expected=f"{domain.value}: {interval.meaning}",
                )


def _check_a_number(tree: Expr, gates: Mapping[str, Axes], what: str, why: str) -> None:
    """Where the word S stands for several things, such as the weight matrices of a deep memory, which have hidden
    channels, no gate with channels belongs to all of them."""
    for node in walk(tree):
        if isinstance(node, Name) and gates.get(node.id):
            raise SpecError(
                f'"{node.id}" is {describe(gates[node.id])}, and {what}',
                span=node.span,
                expected='gates with per = "head"',
                hint=f"{why}: one number a head fits them all",
            )


def _check_counts(tree: Expr, section: Section) -> None:
    for node in walk(tree):
        if isinstance(node, Call) and node.function == "count" and not section.counts:
            allowed = " and ".join(sorted(other.key for other in SECTIONS if other.counts))
            raise SpecError(
                f"count has no meaning in {section.key}",
                span=node.span,
                expected="a number, or a parameter",
                hint=f"count is a function of {allowed}",
            )


def _check_words(tree: Expr, section: Section, scope: Scope) -> None:
    """A word that belongs to another section deserves a better message than that it is unknown."""
    for node in walk(tree):
        if isinstance(node, Name) and node.id not in scope:
            homes = {other.key for other in SECTIONS if node.id in other.words and other is not DEFAULT}
            hint = f'"{node.id}" is a word of {" and ".join(sorted(homes))}'
            if section.key in homes:
                hint = _ELSEWHERE[node.id]
            if homes:
                raise SpecError(
                    f'"{node.id}" has no meaning in {section.key}',
                    span=node.span,
                    expected="one of " + ", ".join(sorted(scope)) if scope else "numbers and gates only",
                    hint=hint,
                )
