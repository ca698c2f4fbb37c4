"""ttrc, the test-time-regression compiler: 30-line specs of sequence-mixing layers to Triton kernels.

op = ttrc.load("my_rule.toml")
o, final_state = op(q, k, v, beta=beta)
"""

__version__ = "0.1.0"


def load(spec):
    """The operator of a spec, given by path or by the name of a shipped one. See ttrc.runtime.operator.Operator."""
    from ttrc.runtime.load import load as load_operator

    return load_operator(spec)


__all__ = ["__version__", "load"]
