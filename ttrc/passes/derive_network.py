"""A deep memory as tile statements, the same in a chunk (axis t) and of one token: f, and its gradient by layers.

f(x) = [x +] [LayerNorm](act(... act(x W1) ...) WL); where hidden layers are gated each is act(x W1) * (x W2), of two
layers of weights that the same comes into. What a layer writes is the outer product of what came into it and the
cotangent of what went out of it; the latter is the adjoint of the statements below, by the rules that differentiate
every program. Each layer is then a linear memory with keys and errors of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ttrc import symbolic
from ttrc.ir.recurrence import Affine, Hebbian, Recurrence
from ttrc.ir.tile import INSIDE, Relation, Tile
from ttrc.language.spec import MLPMemory, Spec
from ttrc.language.state import layer_norm
from ttrc.passes.builder import CHANNELS, Builder, sym
from ttrc.passes.derive_error import derive_error
from ttrc.passes.differentiate_tile import pull_back
from ttrc.passes.have_values import have_values
from ttrc.passes.refuse import refuse
from ttrc.symbolic import ONE, Expr, Scope

NORM_EPS = "0.000001"
Apply = Callable[[int, Tile], Tile]  # a layer's number from 0, and what comes into it -> what goes out of it


@dataclass(frozen=True)
class Passed:
    """What f makes of x on the way: `came` into and `went` out of each layer of weights, before an activation."""

    came: tuple[Tile, ...]
    went: tuple[Tile, ...]
    result: Tile


@dataclass(frozen=True)
class Layer:
    """What a token writes to a layer's weights: key u', u the negative cotangent of what went out of it."""

    key: Tile
    u: Tile


def read_activation(spec: Spec) -> Expr:
    """As an expression of x and of gates. Padded hidden channels are 0, and it is differentiated twice."""
    gates, where = (*spec.inputs, *spec.parameters), spec.memory.activation
    symbols = {g.name: symbolic.symbol(g.name, g.domain) for g in gates} | {"x": symbolic.symbol("x")}
    x, scope = symbols["x"], Scope(symbols, dict.fromkeys(symbols.values(), ()))
    expr = symbolic.finite_at_zero(symbolic.convert(where.tree, scope), scope, (x,))
    slope = symbolic.derivative(expr, x)
    if slope == symbolic.ZERO:
        message = "the slope of this activation is 0 everywhere, so that no layer in front of it would learn"
        raise refuse(spec, where, message, expected="one that rises or falls with x, such as x * sigmoid(x)")
    if not have_values((expr, slope, symbolic.derivative(slope, x)), gates, {"x": 0.0}):
        raise refuse(
            spec,
            where,
            "this activation has no finite value and two derivatives at x = 0, where padding is",
            expected="one that has these, such as max(x, 0) ** 2 or sqrt(square(x) + 0.01)",
        )
    return expr


def fixed_parameters(network: MLPMemory) -> tuple[Tile, ...]:
    """Numbers a value channel that do not move in time."""
    return tuple(Tile(name, ("v",)) for name in layer_norm(network))


def derive_network(
    build: Builder, recurrence: Recurrence, tiles: dict[str, Tile], x: Tile, apply: Apply, origin: str
) -> Passed:
    """f(x) for x [t, k] or, of one token, [k]; `tiles` are what names in the activation stand for."""
    network, came, went = recurrence.network, [], []

    def through(y: Tile) -> Tile:
        """What goes out of the next layer of weights where y comes into it."""
        came.append(y)
        went.append(apply(len(went), y))
        return went[-1]

    y = x
    for _ in range(1, network.layers):
        z, *beside = (through(y) for _ in range(1 + network.gated))
        y = _activated(build, recurrence.activation, tiles, z, beside, origin)
    result = through(y)
    result = _normed(build, result, fixed_parameters(network), origin) if network.norm else result
    if network.residual:
        across = build.relabel(x, origin, CHANNELS)
        result = build.make("predicted", sym(across) + sym(result), across, result, origin=origin)
    return Passed(tuple(came), tuple(went), result)


def derive_layers(
    build: Builder, recurrence: Recurrence, tiles: dict[str, Tile], x: Tile, apply: Apply
) -> tuple[Layer, ...]:
    """What a token writes to each layer; `tiles` are what names in the loss stand for, `apply` takes its weights."""
    start = len(build.statements)
    passed = derive_network(build, recurrence, tiles, x, apply, "prediction")
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


def _activated(
    build: Builder, activation: Expr, tiles: dict[str, Tile], z: Tile, beside: list[Tile], origin: str
) -> Tile:
    """The activation of z [.., h], times what is beside it. Functions among the factors, as a gate of z is, are made
    apart: what they are is part of what their derivatives are.

    Of padding it need not be 0, neither of channels nor of tokens past the end of a sequence: that is masked, for what
    came into a layer is what is written under.
    """
    known = tiles | {"x": z} | {tile.name: tile for tile in beside}
    expr = whole = math.prod((sym(tile) for tile in beside), start=activation)
    for part in symbolic.function_factors(whole):
        gate = build.elementwise("gate", part, known, origin)
        expr, known = symbolic.in_terms_of(expr, part, sym(gate)), known | {gate.name: gate}
    hidden = build.elementwise("hidden", expr, known, origin)
    if symbolic.is_zero_at(whole, ("x", *(tile.name for tile in beside))):
        return hidden
    hidden = build.mask("hidden_inside", hidden, INSIDE[z.axes[-1]], 0.0, origin)
    return build.mask("hidden_valid", hidden, Relation.VALID, 0.0, origin) if "t" in z.axes else hidden


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
