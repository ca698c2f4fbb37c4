"""Specs of kernel memories, and tensors for them."""

import torch

from ttrc.language.load import parse_spec

BASE = """
schema = 1
name = "{name}"
reference = "a test"
{gates}
[memory]
kind = "kernel"
degree = {degree}
{window}
similarity = "{similarity}"
[loss]
expr = "{loss}"
{weight}
[retention]
expr = "{retention}"
{decay}
[update]
rule = "closed_form"
"""


def spec(name="made", gates="", degree=0, similarity="dot(q, k)", loss="norm2(p - v) / 2", weight="", retention="0",
         decay="", window=None, more=""):  # fmt: skip
    lines = {key: f'{key} = "{text}"' if text else "" for key, text in (("weight", weight), ("decay", decay))}
    lines |= {"window": "" if window is None else f"window = {window}"}
    text = BASE.format(name=name, gates=gates, degree=degree, similarity=similarity, loss=loss, retention=retention,
                       **lines)  # fmt: skip
    return parse_spec(text + more)


def heads_first(*tensors):
    return (x.transpose(1, 2) for x in tensors)


def tensors(T=11, H=2, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, T, H, d, generator=generator, dtype=torch.float64) for _ in range(3)]
