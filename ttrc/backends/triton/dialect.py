"""How SymPy's functions are spelled in a Triton kernel."""

from __future__ import annotations

from ttrc import symbolic

DIALECT = symbolic.Dialect(
    calls={
        "exp": "exp({0})",
        "expm1": "expm1({0})",
        "log": "tl.log({0})",
        "sqrt": "tl.sqrt({0})",
        "tanh": "tanh({0})",
        "sigmoid": "sigmoid({0})",
        "softplus": "softplus({0})",
        "positive_power": "positive_power({0}, {1})",
        "pow": "power({0}, {1})",
        "whole_pow": "whole_power({0}, {1})",
        "magnitude": "tl.abs({0})",
        "step_sign": "sign({0})",
        "log_cosh": "log_cosh({0})",
        "choose": "tl.where({0} <= {1}, {2}, {3})",
        "smaller": "tl.minimum({0}, {1})",
        "larger": "tl.maximum({0}, {1})",
        "clip": "clip({0}, {1})",
        "huber": "huber({0}, {1})",
        "coarse": "tl.floor(({0}) * 64.0) / 64.0",
    },
)
