"""A deep memory as tile statements, the same in a chunk (axis t) and of one token: f, and its gradient by layers.

f(x) = [x +] [LayerNorm](act(... act(x W1) ...) WL). What a layer writes is the outer product of what came into it and
the cotangent of what went out of it; the latter is the adjoint of the statements below, by the rules that
differentiate every program. Each layer is then a linear memory with keys and errors of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ttrc import symbolic
from ttrc.ir.recurrence import Affine, Hebbian, Recurrence
from ttrc.ir.tile import Relation, Tile
from ttrc.language.spec import MLPMemory
from ttrc.language.state import layer_norm
from ttrc.passes.builder import CHANNELS, Builder, sym
from ttrc.passes.derive_error import derive_error
from ttrc.passes.differentiate_tile import pull_back
from ttrc.symbolic import ONE

NORM_EPS = "0.000001"
Apply = Callable[[int, Tile], Tile]  # a layer's number from 0, and what comes into it -> what goes out of it


@dataclass(frozen=True)
class Passed:
    """What f makes of x on the way: `came` into and `went` out of each layer, before the next one's activation."""

    came: tuple[Tile, ...]
    went: tuple[Tile, ...]
    result: Tile


@dataclass(frozen=True)
class Layer:
    """What a token writes to a layer's weights: key u', u the negative cotangent of what went out of it."""

    key: Tile
    u: Tile


def layer_axes(network: MLPMemory) -> tuple[tuple[str, str], ...]:
    """The axes of each weight matrix."""
    axes = ("k", *(f"h{i}" for i in range(1, network.layers)), "v")
    return tuple(zip(axes, axes[1:]))


def fixed_parameters(network: MLPMemory) -> tuple[Tile, ...]:
    """Numbers a value channel that do not move in time."""
    return tuple(Tile(name, ("v",)) for name in layer_norm(network))


def derive_network(build: Builder, network: MLPMemory, x: Tile, apply: Apply, origin: str) -> Passed:
    """f(x) for x [t, k] or, of one token, [k]."""
    came, went = [x], [apply(0, x)]
    for number in range(1, network.layers):
        came.append(_activation(build, network.activation, went[-1], origin))
        went.append(apply(number, came[-1]))
    result = _normed(build, went[-1], fixed_parameters(network), origin) if network.norm else went[-1]
    if network.residual:
        across = build.relabel(x, origin, CHANNELS)
        result = build.make("predicted", sym(across) + sym(result), across, result, origin=origin)
    return Passed(tuple(came), tuple(went), result)


def derive_layers(
    build: Builder, recurrence: Recurrence, tiles: dict[str, Tile], x: Tile, apply: Apply
) -> tuple[Layer, ...]:
    """What a token writes to each layer; `tiles` are what names in the loss stand for, `apply` takes its weights."""
    start = len(build.statements)
    passed = derive_network(build, recurrence.network, x, apply, "prediction")
    statements, p = tuple(build.statements[start:]), passed.result
    match recurrence.error:
        case Hebbian(offset):
            u = build.elementwise("u", -offset, tiles, "loss", axes=p.axes)
        case Affine(slope, offset):
            u = build.elementwise("u", -slope * sym(p) - offset, tiles | {p.name: p}, "loss", axes=p.axes)
        case error:
            written = derive_error(build, tiles, error, p)
            u = build.make("u", -sym(written), written, origin="loss")
    return tuple(map(Layer, passed.came, pull_back(build, statements, p, u, passed.went, "update")))


def _activation(build: Builder, name: str, z: Tile, origin: str) -> Tile:
    x = sym(z)
    match name:
        case "gelu":  # its tanh approximation, for (1 + tanh(y)) / 2 = sigmoid(2 y)
            gate = build.make("gate", symbolic.gelu_gate(x), z, origin=origin)
            return build.make("hidden", x * sym(gate), z, gate, origin=origin)
        case "silu":
            gate = build.make("gate", symbolic.sigmoid(x), z, origin=origin)
            return build.make("hidden", x * sym(gate), z, gate, origin=origin)
        case "relu":
            return build.make("hidden", symbolic.larger(x, symbolic.ZERO), z, origin=origin)
        case "tanh":
            return build.make("hidden", symbolic.tanh(x), z, origin=origin)
    raise AssertionError(name)


def _normed(build: Builder, z: Tile, parameters: tuple[Tile, Tile], origin: str) -> Tile:
    """Mean 0 and variance 1 over the value channels, of which kernels have more than there are."""
    weight, bias = parameters
    each = build.mask("each", build.constant("one_each", ONE, ("v",), origin), Relation.VALUES, 0.0, origin)
    count = build.reduce("channels", each, (), origin)

    def mean(name: str, of: Tile) -> Tile:
        total = build.reduce(f"{name}_sum", of, set(of.axes) - {"v"}, origin)
        return build.make(name, sym(total) / sym(count), total, count, origin=origin)

    z = build.mask("inside", z, Relation.VALUES, 0.0, origin)  # so that its cotangent is 0 outside
    average = mean("average", z)
    centred = build.make("centred", sym(z) - sym(average), z, average, origin=origin)
    centred = build.mask("centred_inside", centred, Relation.VALUES, 0.0, origin)
    variance = mean("variance", build.make("squares", sym(centred) ** 2, centred, origin=origin))
    if "t" in variance.axes:  # past the end of a sequence there is nothing to divide by
        variance = build.mask("variance_valid", variance, Relation.VALID, 1.0, origin)
    spread = (sym(variance) + symbolic.number(NORM_EPS)) ** symbolic.number("-0.5")
    shrink = build.make("shrink", spread, variance, origin=origin)
    normal = build.make("normal", sym(centred) * sym(shrink), centred, shrink, origin=origin)
    return build.make("normed", sym(weight) * sym(normal) + sym(bias), weight, normal, bias, origin=origin)
