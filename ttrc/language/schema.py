"""The JSON schema of a spec: the single source for editors (`ttrc schema`) and for the compiler's own checks.

Only keys, types and words are its business; what expressions mean is checked by sections.py. A table whose keys
depend on one of them (memory and link by `kind`, update by `rule` and `at`) is one closed object per case, see `_by`.
Each object has a title and each key a description: complaints.py quotes them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from ttrc.language.activations import ACTIVATIONS
from ttrc.language.domains import INTERVALS
from ttrc.language.links import ENTRYWISE
from ttrc.language.reserved import RESERVED
from ttrc.language.spec import At, Per, Slice
from ttrc.language.tokens import MAX_CHARACTERS

Schema = dict[str, Any]

MAX_INPUTS = 16
MAX_LOSSES = 4
MAX_WINDOW = 1 << 24

PER_MEANING = {
    Per.HEAD: "one number a head",
    Per.KEY_CHANNEL: "one a key channel of each head",
    Per.VALUE_CHANNEL: "one a value channel of each head",
    Per.ELEMENT: "one an entry of the state: key channel by value channel",
}

AT_MEANING = {
    At.PREVIOUS: "at the state before this token",
    At.RETAINED: "at the minimum of the retention term alone, such as the decayed state",
    At.IN_TURN: "each loss at what those before it, in the file's order, have left; the first at the retained state",
    At.SEGMENT_START: "at the state at the start of the token's segment",
}

ENDS = "ptr|again|apart|sum|moved"  # of names that passes and templates make of others

# `$` also matches before a line break at the very end, in Python; the look-ahead says what an editor reads anyway.
_END = "$(?!\n)"


def json_schema() -> Schema:
    """The schema of a spec file, JSON Schema draft 2020-12."""
    spec = _table(
        "a spec",
        {
            "schema": {"const": 1, "description": "version of the spec language: 1"},
            "name": _name(
                f"^[a-z][a-z0-9_]{{0,47}}{_END}",
                "the layer's name: a lower-case letter, then up to 47 lower-case letters, digits and underscores",
            ),
            "reference": {
                "type": "string",
                "pattern": f"^[ -~]*{_END}",
                "maxLength": 200,
                "description": "where the rule is from: one line of printable ASCII, at most 200 characters",
            },
            "inputs": _gates("inputs of the operator beyond q, k and v, one value a token", _input()),
            "parameters": _gates("numbers that do not change in time", _parameter()),
            "features": {
                **_table(
                    "[features]",
                    {
                        "q": _expression("what stands in the place of queries: a key vector made of q, k and gates"),
                        "k": _expression("what stands in the place of keys: a key vector made of k and gates"),
                    },
                    required=[],
                ),
                "description": "feature maps of queries and keys",
            },
            "memory": _by("kind", "[memory]", MEMORIES, "the memory's architecture"),
            "loss": _loss(),
            "retention": _table(
                "[retention]",
                {
                    "expr": _expression("what holds the new state S near S_prev: a number made of these and gates"),
                    "link": _by("kind", "[retention] link", LINKS, "how the memory's weights are made of S"),
                    "decay": _expression(
                        "of a closed form: how much of the past's importance a token leaves, a number made of gates"
                    ),
                },
                required=["expr"],
            ),
            "update": _by("rule", "[update]", UPDATES, "how the state moves"),
            "read": {
                **_table(
                    "[read]",
                    {
                        "expr": _expression(
                            "a token's output: a value vector made of r, what the memory answers to q, of v and gates, "
                            "and of sums, of q and k too"
                        )
                    },
                ),
                "description": "how outputs are read",
            },
        },
        required=["schema", "name", "reference", "memory", "loss", "retention", "update"],
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **spec}


def _table(title: str, properties: dict[str, Schema], required: list[str] | None = None) -> Schema:
    """A closed object; all keys are required unless said otherwise."""
    return {
        "title": title,
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def _by(tag: str, title: str, cases: dict[str, Schema], description: str) -> Schema:
    """An object whose tag says which case it is; each case is a whole schema, so no key is optional by accident."""
    return {
        "title": title,
        "description": description,
        "type": "object",
        "properties": {tag: {"enum": list(cases), "description": description}},
        "required": [tag],
        "allOf": [
            {"if": {"properties": {tag: {"const": case}}, "required": [tag]}, "then": schema}
            for case, schema in cases.items()
        ],
    }


def _words(meanings: dict[Enum, str], word: Callable[[Enum], str]) -> Schema:
    """One of an enumeration's words; the meaning of each is there for editors."""
    words = {word(member): meaning for member, meaning in meanings.items()}
    return {
        "enum": list(words),
        "description": "; ".join(f"{word}: {meaning}" for word, meaning in words.items()),
    }


def _name(pattern: str, description: str) -> Schema:
    what = "a word of Python, Triton, the expressions of a spec or the code made of them"
    return {"type": "string", "pattern": pattern, **_none_of(sorted(RESERVED), what), "description": description}


def _none_of(names: list[str], what: str) -> Schema:
    return {"not": {"enum": names, "description": what}}


def _expression(description: str) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS, "description": description}


def _loss() -> Schema:
    """One association, or several by name: a table of tables."""
    keys = {
        "expr": _expression("what one association should minimise: a number made of p, v, k and gates"),
        "weight": _expression("the importance of the association: a number made of gates, free of p"),
        "key": _expression("what the memory is asked for p: a key vector made of k and gates; k where absent"),
        "write": _expression("the key vector that stands before dL/dp in what is written; the key where absent"),
    }
    several = {
        "type": "object",
        "propertyNames": {
            "pattern": f"^[a-z][a-z0-9_]{{0,23}}{_END}",
            **_none_of(list(keys), f"a key of [loss], {', '.join(keys)}"),
            "description": "a lower-case letter, then up to 23 lower-case letters, digits and underscores",
        },
        "maxProperties": MAX_LOSSES,
        "additionalProperties": _table("[loss.NAME]", keys, required=["expr"]),
    }
    one = _table("[loss]", keys, required=["expr"])
    tables = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "object"}}
    return {"description": "what associations should minimise", "if": tables, "then": several, "else": one}


def _integer(low: int, high: int, description: str) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "description": description}


def _number(low: float, high: float, description: str) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high, "description": description}


def _boolean(description: str) -> Schema:
    return {"type": "boolean", "description": description}


def _gates(description: str, gate: Schema) -> Schema:
    name = _name(
        f"^(?!d_|[A-Za-z0-9_]*_({ENDS})$)([a-z][a-z0-9_]{{0,23}}|[A-Z](_[a-z0-9_]{{1,22}})?){_END}",
        "a lower-case letter, then up to 23 lower-case letters, digits and underscores; or one capital letter, alone "
        "or before an underscore, as A_log; not d_ and more, which names gradients, nor ending in _"
        + ENDS.replace("|", ", _")
        + ", which generated code gives to names of its own",
    )
    return {
        "type": "object",
        "description": description,
        "propertyNames": name,
        "maxProperties": MAX_INPUTS,
        "additionalProperties": gate,
    }


def _input() -> Schema:
    return _table("an input", _gate())


def _parameter() -> Schema:
    default = _expression("a value for each head: a number made of head (0, 1, ...) and heads, their count")
    return _table("a parameter", {**_gate(), "default": default}, required=["per", "domain"])


def _gate() -> dict[str, Schema]:
    meanings = {domain: interval.meaning for domain, interval in INTERVALS.items()}
    return {
        "per": _words(PER_MEANING, lambda per: per.value),
        "domain": _words(meanings, lambda domain: domain.value),
    }


MEMORIES = {
    "linear": _table('[memory] with kind = "linear"', {"kind": {}}),
    "vector": _table('[memory] with kind = "vector"', {"kind": {}}),
    "mlp": _table(
        '[memory] with kind = "mlp"',
        {
            "kind": {},
            "layers": _integer(1, 8, "how many weight matrices"),
            "expansion": _integer(1, 16, "width of the hidden layers, in widths of the input"),
            "activation": _expression(
                f"what is between the layers: {', '.join(ACTIVATIONS)}, or an expression of x, such as max(x, 0) ** 2"
            ),
            "residual": _boolean("whether the memory's input is added to its output"),
            "norm": _boolean("whether the output is layer-normalised"),
            "gated": _boolean("whether each hidden layer is act(x A) * (x B), of two weight matrices; false if absent"),
        },
        required=["kind", "layers", "expansion", "activation", "residual", "norm"],
    ),
    "kernel": _table(
        '[memory] with kind = "kernel"',
        {
            "kind": {},
            "degree": _integer(0, 1, "degree of the local polynomial: 0 a constant, as of softmax attention; 1 a line"),
            "similarity": _expression("the logarithm of how near a key k is to a query q: a number, such as dot(q, k)"),
            "window": _integer(1, MAX_WINDOW, "how many tokens a query sees, its own the last; all where absent"),
        },
        required=["kind", "degree", "similarity"],
    ),
}

SLICE_MEANING = {
    Slice.KEY: "over the first index of each matrix",
    Slice.VALUE: "over the second index",
    Slice.ALL: "over all entries of a matrix",
}

LINKS = {
    "lq_norm": _table(
        '[retention] link of kind "lq_norm"',
        {
            "kind": {},
            "q": _number(1, 16, "which norm"),
            "epsilon": _number(1e-20, 1, "what keeps the norm away from 0"),
        },
    ),
    "softmax": _table(
        '[retention] link of kind "softmax"',
        {
            "kind": {},
            "axis": _words(SLICE_MEANING, lambda axis: axis.name.lower()),
            "scale": _number(1e-6, 1e6, "what the weights of a slice sum to"),
        },
    ),
    "soft_threshold": _table(
        '[retention] link of kind "soft_threshold"',
        {"kind": {}, "threshold": _expression("what is taken off each entry: a number made of parameters")},
    ),
    "expression": _table(
        '[retention] link of kind "expression"',
        {
            "kind": {},
            "expr": _expression("the weights, made of S and of parameters, such as tanh(S) or S / (norm(S) + 0.01)"),
            "axis": _words(SLICE_MEANING, lambda axis: axis.name.lower()),
        },
        required=["kind", "expr"],
    ),
    **{word: _table(f'[retention] link of kind "{word}"', {"kind": {}}) for word in ENTRYWISE},
}

_RULE: dict[str, Schema] = {"rule": {}, "at": {}}
_MOMENTUM = {"momentum": _expression("how much of the last step is kept: a number made of gates")}


def _gradient(at: At, keys: dict[str, Schema]) -> Schema:
    title = f'[update] with rule = "gradient" and at = "{at.value}"'
    return _table(title, {**_RULE, **keys, **_MOMENTUM}, required=[*_RULE, *keys])


UPDATES = {
    "gradient": _by(
        "at",
        '[update] with rule = "gradient"',
        {
            "previous": _gradient(At.PREVIOUS, {}),
            "retained": _gradient(At.RETAINED, {}),
            "in_turn": _table('[update] with rule = "gradient" and at = "in_turn"', _RULE),
            "segment_start": _gradient(
                At.SEGMENT_START, {"segment": _integer(1, 65536, "the segment's length in tokens")}
            ),
        },
        "; ".join(f"{at.value}: {meaning}" for at, meaning in AT_MEANING.items()),
    ),
    "proximal": _table('[update] with rule = "proximal"', {"rule": {}}),
    "closed_form": _table('[update] with rule = "closed_form"', {"rule": {}}),
}
