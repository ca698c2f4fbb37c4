"""A spec file to a Spec: bounded text, TOML, schema, then every expression parsed, shaped and checked in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Union

from ttrc.errors import SpecError, placing
from ttrc.language.architecture import read_activation, read_similarity
from ttrc.language.associations import check_associations, read_losses
from ttrc.language.choices import check_choices
from ttrc.language.complaints import check_schema
from ttrc.language.document import Document, read_document, read_text
from ttrc.language.expressions import Expressions
from ttrc.language.links import read_link
from ttrc.language.sections import (
    DECAY,
    DEFAULT,
    FEATURES,
    MOMENTUM,
    READ,
    RETENTION,
    RIDGE,
    check_default,
)
from ttrc.language.shapes import Axes
from ttrc.language.spec import (
    At,
    ClosedForm,
    Domain,
    Features,
    Gradient,
    Input,
    KernelMemory,
    LinearMemory,
    Located,
    Memory,
    MLPMemory,
    Parameter,
    Per,
    Proximal,
    Retention,
    Source,
    Spec,
    Update,
    VectorMemory,
)
from ttrc.language.syntax import Number, Span, names


def load_spec(path: Union[str, Path]) -> Spec:
    """The spec in a file. Raises SpecError, and nothing else, for whatever the path or the file may hold."""
    with placing(path=str(path)):
        return _build(read_text(Path(path)), str(path))


def parse_spec(text: str, path: str = "<text>") -> Spec:
    """The spec in a text; `path` is what messages call it."""
    with placing(path=path):
        return _build(text, path)


def _build(text: str, path: str) -> Spec:
    document = read_document(text)
    check_schema(document)
    data = document.data
    memory = _memory(document)
    check_choices(document, memory)
    check_associations(document, memory)
    inputs = tuple(
        Input(name, _per(gate), Domain(gate["domain"]), document.line("inputs", name))
        for name, gate in data.get("inputs", {}).items()
    )
    declared = tuple(_parameter(document, name, memory) for name in data.get("parameters", {}))
    brought = _norm_parameters(document, memory)
    expressions = Expressions(
        document,
        memory,
        _gate_axes(inputs, declared, brought),
        {gate.name: gate.domain for gate in (*inputs, *declared, *brought)},
    )
    spec = Spec(
        name=data["name"],
        reference=data["reference"],
        inputs=inputs,
        parameters=(*declared, *brought),
        memory=memory,
        losses=read_losses(document, expressions),
        retention=_retention(document, expressions, inputs),
        update=_update(document, expressions),
        source=Source(path, text),
        features=Features(
            **{word: expressions.read(FEATURES[word], "features", word) for word in data.get("features", {})}
        ),
        read=expressions.read(READ, "read", "expr") if "read" in data else None,
    )
    _check_all_used(spec, (*inputs, *declared))
    return spec


def _per(gate: dict) -> Per:
    return Per(gate["per"])


def _parameter(document: Document, name: str, memory: Memory) -> Parameter:
    gate, domain = document.data["parameters"][name], Domain(document.data["parameters"][name]["domain"])
    default = None
    if "default" in gate:
        default = Expressions(document, memory, {}, {}).read(DEFAULT, "parameters", name, "default")
        with placing(line=default.line, key=default.key, text=default.text):
            check_default(default.tree, domain)
    return Parameter(name, _per(gate), domain, document.line("parameters", name), default)


def _norm_parameters(document: Document, memory: Memory) -> tuple[Parameter, ...]:
    """What a layer norm multiplies by and adds: parameters that no spec declares."""
    if not isinstance(memory, MLPMemory) or not memory.norm:
        return ()
    line = document.line("memory", "norm")
    return tuple(
        Parameter(name, Per.VALUE_CHANNEL, Domain.REAL, line, Located(Number(digit, Span(0, 1)), digit, key, line))
        for name, digit, key in (("norm_weight", "1", "memory.norm"), ("norm_bias", "0", "memory.norm"))
    )


def _gate_axes(
    inputs: tuple[Input, ...],
    parameters: tuple[Parameter, ...],
    brought: tuple[Parameter, ...],
) -> dict[str, Axes]:
    """The axes of every gate by name; a name is declared once, and not where the memory brings it."""
    taken = {parameter.name for parameter in brought}
    for table, gates in (("inputs", inputs), ("parameters", parameters)):
        for gate in gates:
            if gate.name in taken:
                raise SpecError(
                    f'"{gate.name}" is a parameter that comes with [memory] norm = true',
                    line=gate.line,
                    key=f"{table}.{gate.name}",
                    expected="another name, or norm = false",
                )
    declared = {gate.name for gate in inputs}
    for parameter in parameters:
        if parameter.name in declared:
            raise SpecError(
                f'"{parameter.name}" is already an input',
                line=parameter.line,
                key=f"parameters.{parameter.name}",
                expected="a name that [inputs] does not use",
            )
    return {gate.name: frozenset(gate.per.axes) for gate in (*inputs, *parameters)}


def _memory(document: Document) -> Memory:
    table = document.data["memory"]
    match table:
        case {"kind": "linear"}:
            return LinearMemory()
        case {"kind": "vector"}:
            return VectorMemory()
        case {"kind": "kernel", "degree": degree}:
            window = int(table["window"]) if "window" in table else None
            return KernelMemory(int(degree), read_similarity(document), window)
        case {"kind": "mlp"}:
            return MLPMemory(
                layers=int(table["layers"]),
                expansion=int(table["expansion"]),
                activation=read_activation(document),
                residual=table["residual"],
                norm=table["norm"],
                gated=table.get("gated", False),
            )


def _retention(document: Document, expressions: Expressions, inputs: tuple[Input, ...]) -> Retention:
    section = RIDGE if document.data["update"]["rule"] == "closed_form" else RETENTION
    return Retention(
        expressions.read(section, "retention", "expr"),
        read_link(document, expressions, [gate.name for gate in inputs]),
        expressions.read_if_given(DECAY, "retention", "decay"),
    )


def _update(document: Document, expressions: Expressions) -> Update:
    table, line = document.data["update"], document.line("update")
    match table["rule"]:
        case "gradient":
            segment = int(table["segment"]) if "segment" in table else None
            return Gradient(At(table["at"]), segment, expressions.read_if_given(MOMENTUM, "update", "momentum"), line)
        case "proximal":
            return Proximal(line)
        case "closed_form":
            return ClosedForm(line)


def _check_all_used(spec: Spec, declared: tuple[Union[Input, Parameter], ...]) -> None:
    """A gate that no expression uses would be an argument without an effect and without a gradient."""
    located = spec.of_memory if spec.read is None else (*spec.of_memory, spec.read)
    used = frozenset().union(*(names(expression.tree) for expression in located))
    for gate in declared:
        if gate.name not in used:
            table = "inputs" if isinstance(gate, Input) else "parameters"
            raise SpecError(
                f'"{gate.name}" is declared but no expression uses it',
                line=gate.line,
                key=f"{table}.{gate.name}",
                expected="every declared input and parameter in an expression: otherwise it has no gradient",
            )
