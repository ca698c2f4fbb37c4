"""Who else computes a shipped spec, and how to call them on the same inputs. Nothing here is a dependency.

fla         flash-linear-attention's chunk kernels (wheel fla-core)
flashqla    Qwen's TileLang kernels, Hopper and newer
flashinfer  FlashInfer's gated delta rule, forward only
sdpa        torch's causal softmax attention, by cuDNN and by flash attention: beside other rules only for scale
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ttrc.tools.peers import Absent, Inputs, Peer

SOFTMAX = {"sdpa cudnn": SDPBackend.CUDNN_ATTENTION, "sdpa flash": SDPBackend.FLASH_ATTENTION}
REFUSAL = "fla refuses gated chunk_bwd_dqkwg on Hopper with Triton 3.4.0 up to 3.7.1 (its issue 640)"


def peers(spec: str) -> tuple[Peer | Absent, ...]:
    """Everyone who might stand beside a spec, softmax attention always among them."""
    makers: list[Callable[[], Peer]] = [*_FLA.get(spec, ())]
    if spec == "gated_deltanet":
        makers += [_flashqla, _flashinfer]
    return (*(_or_absent(make) for make in makers), *(_softmax(name, spec) for name in SOFTMAX))


def _or_absent(make: Callable[[], Peer]) -> Peer | Absent:
    try:
        return make()
    except Exception as error:  # an import may fail in any way there is; the benchmark goes on without it
        return Absent(make.__name__.lstrip("_"), f"{type(error).__name__}: {error}")


def _softmax(name: str, spec: str) -> Peer:
    """One of torch's kernels for softmax attention, and no other in its place where it does not run."""

    def call(x: Inputs) -> Tensor:
        q, k, v = (x[n].transpose(1, 2) for n in ("q", "k", "v"))
        with sdpa_kernel(SOFTMAX[name]):
            o = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != v.shape[1])
        return o.transpose(1, 2)

    return Peer(name, call, same=spec == "softmax_attention")


# fla ------------------------------------------------------------------------------------------------------------


def _fla(operator: str, module: str, call: Callable[[Callable, Inputs], Tensor], gated: bool = False):
    """A maker of the peer that calls one of fla's operators; `gated` ones end in the kernel that it may refuse."""

    def fla() -> Peer:
        function = getattr(importlib.import_module(f"fla.ops.{module}"), operator)
        refusal = REFUSAL if gated and _refuses() else ""
        return Peer("fla", lambda x: call(function, x), refusal=refusal, lifted=_lifted)

    return (fla,)


def _segment_memory(x: Inputs) -> Tensor:
    """fla's layer of the name has a bias beside the matrix, the last token's rate for a whole mini-batch and its own
    residual: what a kernel of it costs compares, what it computes does not. Its gates come in the inputs' dtype."""
    function = importlib.import_module("fla.ops.ttt").chunk_ttt_linear
    norm = (x[n].to(x["q"].dtype) for n in ("norm_weight", "norm_bias"))
    eta = x["eta"].to(x["q"].dtype).unsqueeze(-1)
    return function(*_qkv(x), *norm, eta, chunk_size=16, initial_state=x["initial_state"])[0]


def _another(call: Callable[[Inputs], Tensor]):
    """A maker of fla's nearest relative of a rule that it does not have."""

    def fla() -> Peer:
        importlib.import_module("fla.ops")
        return Peer("fla", call, same=False)

    return (fla,)


def _refuses() -> bool:
    kernels = importlib.import_module("fla.ops.common.chunk_o")
    return kernels.IS_NVIDIA_HOPPER and kernels.TRITON_ABOVE_3_4_0 and not kernels.TRITON_ABOVE_3_7_1


@contextmanager
def _lifted() -> Iterator[None]:
    """Tells fla's guard that Triton is new enough: its kernel then runs, rightly or not."""
    kernels = importlib.import_module("fla.ops.common.chunk_o")
    before = kernels.TRITON_ABOVE_3_7_1
    kernels.TRITON_ABOVE_3_7_1 = True
    try:
        yield
    finally:
        kernels.TRITON_ABOVE_3_7_1 = before


def _qkv(x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    return x["q"], x["k"], x["v"]


def _state_space(f: Callable, x: Inputs) -> Tensor:
    """fla's form of it: the step size multiplies the values before the kernel, in torch."""
    v = (x["v"] * x["dt"].unsqueeze(-1)).to(x["v"].dtype)
    return f(x["q"], x["k"], v, g=x["dt"] * x["A"])[0]


def _implicit_delta(f: Callable, x: Inputs) -> Tensor:
    """An implicit step is a delta rule with the rate beta / (1 + beta |k|^2), made in torch."""
    norm2 = x["k"].float().square().sum(-1)
    return f(*_qkv(x), beta=x["beta"] / (1 + x["beta"] * norm2))[0]


def _regression(f: Callable, x: Inputs) -> Tensor:
    """fla scales no queries there."""
    q = x["q"] * x["q"].shape[-1] ** -0.5
    return f(q, x["k"], x["v"], g=x["g"], beta=x["beta"], lamb=x["lam"])[0]


def _removal(f: Callable, x: Inputs) -> Tensor:
    """fla takes what is asked and what is written under, and no rate."""
    kappa = x["kappa"].to(x["q"].dtype)
    written = (x["a"] * x["kappa"]).to(x["q"].dtype)
    return f(x["q"], x["w"], x["k"], x["v"], -kappa, written, scale=x["q"].shape[-1] ** -0.5)[0]


def _product(f: Callable, x: Inputs) -> Tensor:
    """fla takes all steps of a token one behind the other."""

    def turns(first: Tensor, second: Tensor) -> Tensor:
        return torch.stack((first, second.to(first.dtype)), 2).flatten(1, 2)

    k, v, beta = turns(x["k"], x["k_2"]), turns(x["v"], x["v_2"]), turns(x["beta"], x["beta_2"])
    return f(x["q"], k, v, g=x["g"], beta=beta, num_householder=2)[0]


_FLA = {
    "linear_attention": _fla("chunk_linear_attn", "linear_attn", lambda f, x: f(*_qkv(x), normalize=False)[0]),
    "lightning_attention": _fla(
        "chunk_lightning_attn", "lightning_attn", lambda f, x: f(*_qkv(x), layer_idx=0, num_layers=1)[0]
    ),
    "retnet": _fla("chunk_retention", "retention", lambda f, x: f(*_qkv(x))[0]),
    "mamba2": _fla("chunk_simple_gla", "simple_gla", _state_space, gated=True),
    "deltanet": _fla("chunk_delta_rule", "delta_rule", lambda f, x: f(*_qkv(x), beta=x["beta"])[0]),
    "longhorn": _fla("chunk_delta_rule", "delta_rule", _implicit_delta),
    "gla": _fla("chunk_gla", "gla", lambda f, x: f(*_qkv(x), g=x["g"])[0]),
    "kda": _fla("chunk_kda", "kda", lambda f, x: f(*_qkv(x), g=x["g"], beta=x["beta"])[0]),
    "gated_deltaproduct": _fla("chunk_gated_delta_product", "gated_delta_product", _product, gated=True),
    "rwkv7": _fla("chunk_rwkv7", "rwkv7", _removal),
    "mesanet": _fla("chunk_mesa_net", "mesa_net", _regression),
    "softmax_attention": _fla("parallel_attn", "attn", lambda f, x: f(*_qkv(x))),
    "forgetting_attention": _fla("parallel_forgetting_attn", "forgetting_attn", lambda f, x: f(*_qkv(x), g=x["g"])),
    "ttt_linear": _another(_segment_memory),
    "gated_deltanet": _fla(
        "chunk_gated_delta_rule", "gated_delta_rule", lambda f, x: f(*_qkv(x), g=x["g"], beta=x["beta"])[0], gated=True
    ),
}

# Hopper's hand-tuned kernels ------------------------------------------------------------------------------------


def _flashqla() -> Peer:
    function = importlib.import_module("flash_qla").chunk_gated_delta_rule

    def call(x: Inputs) -> Tensor:
        return function(q=x["q"], k=x["k"], v=x["v"], g=x["g"], beta=x["beta"], scale=None, auto_cp=True)[0]

    return Peer("flashqla", call)


def _flashinfer() -> Peer:
    function = importlib.import_module("flashinfer.gdn_prefill").chunk_gated_delta_rule

    def call(x: Inputs) -> Tensor:
        batch, length = x["v"].shape[:2]
        flat = {n: t.flatten(0, 1) for n, t in x.items()}
        ends = _ends(batch, length, x["v"].device)
        o = function(flat["q"], flat["k"], flat["v"], g=flat["g"].exp(), beta=flat["beta"], cu_seqlens=ends)
        return (o[0] if isinstance(o, tuple) else o).unflatten(0, (batch, length))

    return Peer("flashinfer", call)


@cache
def _ends(batch: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(batch + 1, device=device, dtype=torch.int64) * length
