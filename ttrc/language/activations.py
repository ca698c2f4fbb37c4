"""Words for activations, each an expression of x in the language, and what a spec says in their place."""

from __future__ import annotations

ACTIVATIONS = {"gelu": "gelu(x)", "silu": "x * sigmoid(x)", "relu": "max(x, 0)", "tanh": "tanh(x)"}
