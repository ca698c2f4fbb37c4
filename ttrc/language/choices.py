"""Which of a spec's choices make sense together, before any expression is read."""

from __future__ import annotations

from ttrc.errors import SpecError
from ttrc.language.document import Document
from ttrc.language.spec import KernelMemory, LinearMemory, Memory, MLPMemory, Per, VectorMemory

# The rules that make sense for a memory, and why no other does.
_RULES = {
    LinearMemory: (("gradient", "proximal", "closed_form"), ""),
    VectorMemory: (("gradient", "proximal", "closed_form"), ""),
    MLPMemory: (("gradient",), "a deep memory can only be stepped along its gradient"),
    KernelMemory: (("closed_form",), "a kernel memory keeps all pairs, so it has no state to step from"),
}


def check_choices(document: Document, memory: Memory) -> None:
    """Raise one SpecError where two of them do not."""
    _check_layers(document, memory)
    _check_rule(document, memory)
    _check_link(document, memory)
    _check_channels(document, memory)
    _check_decay(document)


def _check_layers(document: Document, memory: Memory) -> None:
    if isinstance(memory, MLPMemory) and memory.gated and memory.layers == 1:
        raise SpecError(
            "gated = true makes no sense for layers = 1",
            line=document.line("memory", "gated"),
            key="memory.gated",
            expected="layers = 2 or more, or gated = false",
            hint="what is gated are hidden layers, which are between the first and the last",
        )


def _check_rule(document: Document, memory: Memory) -> None:
    rule = document.data["update"]["rule"]
    sensible, why = _RULES[type(memory)]
    if rule not in sensible:
        raise SpecError(
            f'rule = "{rule}" makes no sense for [memory] kind = "{document.data["memory"]["kind"]}"',
            line=document.line("update", "rule"),
            key="update.rule",
            expected="one of " + ", ".join(f'"{word}"' for word in sensible),
            hint=why,
        )


def _check_channels(document: Document, memory: Memory) -> None:
    """Of a vector memory key and value channels are the same ones, and one word for them is enough."""
    if not isinstance(memory, VectorMemory):
        return
    gates = [
        (t, name, gate["per"]) for t in ("inputs", "parameters") for name, gate in document.data.get(t, {}).items()
    ]
    for table, name, per in gates:
        if Per(per) in (Per.KEY_CHANNEL, Per.ELEMENT):
            raise SpecError(
                f'per = "{per}" makes no sense for [memory] kind = "vector"',
                line=document.line(table, name),
                key=f"{table}.{name}",
                expected='per = "head" or "value_channel"',
                hint="its key and value channels are the same channels, and an entry of its state is one of them",
            )
    link = document.data["retention"].get("link", {})
    if link.get("axis", "value") != "value":
        raise SpecError(
            f'a link along axis = "{link["axis"]}" makes no sense for [memory] kind = "vector"',
            line=document.line("retention", "link"),
            key="retention.link.axis",
            expected='axis = "value"',
            hint="its key and value channels are the same channels",
        )


def _check_link(document: Document, memory: Memory) -> None:
    """A link makes weights out of what a gradient step moves."""
    if "link" not in document.data["retention"]:
        return
    place = {"line": document.line("retention", "link"), "key": "retention.link"}
    if isinstance(memory, KernelMemory):
        raise SpecError(
            f'a link makes no sense for [memory] kind = "{document.data["memory"]["kind"]}"',
            **place,
            expected='kind = "linear", "vector" or "mlp", or no link',
            hint="a link makes a memory's weights out of what the update moves",
        )
    rule = document.data["update"]["rule"]
    if rule != "gradient":
        raise SpecError(
            f'a link makes no sense for rule = "{rule}"',
            **place,
            expected='rule = "gradient", or no link',
            hint="with a link the gradient is taken by the weights, and moves what they are made of",
        )


def _check_decay(document: Document) -> None:
    rule = document.data["update"]["rule"]
    if "decay" in document.data["retention"] and rule != "closed_form":
        raise SpecError(
            f'[retention] takes no key "decay" where rule = "{rule}"',
            line=document.line("retention", "decay"),
            key="retention.decay",
            expected="what is forgotten in retention.expr, such as norm2(S - exp(g) * S_prev) / 2",
            hint='a decay of its own is how rule = "closed_form" weighs its history',
        )
