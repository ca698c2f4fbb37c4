"""The operator that a user calls."""

from __future__ import annotations

from types import ModuleType
from typing import Optional, Union

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from ttrc.ir.config import is_several_chunks
from ttrc.language.spec import Gradient, Parameter, Spec
from ttrc.language.state import needs_initial_state
from ttrc.runtime.arguments import call_heads, check_arguments, check_options, check_schedule
from ttrc.sampling import default_value

State = Union[Tensor, tuple[Tensor, ...]]  # several tensors, by the names of language.state, where it has such parts


class Operator:
    """A compiled spec: call it on tensors; `spec` says what it computes, `forms` how it can.

    Differentiable in every tensor, a torch custom op underneath: no graph break under torch.compile.
    """

    def __init__(self, spec: Spec, package: ModuleType):
        self.spec, self.package = spec, package
        self._call = getattr(package, spec.name)
        self._required = needs_initial_state(spec)  # found by trying expressions: not at every call
        self._defaults: dict[tuple, Tensor] = {}

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(self.package.op.OPS)

    @property
    def schedules(self) -> tuple[str, ...]:
        return self.package.op.SCHEDULES

    @property
    def _segment(self) -> Optional[int]:
        """Tokens a chunk, where a chunk is a segment of the rule."""
        segment = self.spec.update.segment if isinstance(self.spec.update, Gradient) else None
        return None if is_several_chunks(segment) else segment

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: Optional[float] = None,
        initial_state: Optional[State] = None,
        output_final_state: bool = False,
        cu_seqlens: Optional[Tensor] = None,
        form: str = "auto",
        chunk_size: Optional[int] = None,
        backend: str = "auto",
        schedule: str = "auto",
        keep_bytes: Optional[float] = None,
        **gates: Tensor,
    ) -> tuple[Tensor, Optional[State]]:
        """(o, final state or None).

        q, k [B, T, H, d_k]; v, o [B, T, HV, d_v], HV a multiple of H; inputs of the spec [B, T, HV] by name, its
        parameters [HV] (their default where the spec has one), both followed by d_k, d_v or d_k, d_v where they are
        per key channel, per value channel or per element. States [N, HV, d_k, d_v], float32; of a rule with momentum a
        pair of them, S and the last step M. Of a vector memory, which takes d_k = d_v, [N, HV, d_v]. A deep memory has
        one of each a weight matrix, [N, HV, rows, columns], two of these a hidden layer that is gated, and needs those
        that it starts with; its norm_weight and norm_bias are [HV, d_v]. A kernel memory keeps all pairs: its states
        are (), its one form "chunk". Its q [B, T, HQ, d_k] may have heads of its own, so that groups of queries share
        keys and values; o, inputs and parameters then have HO in the place of HV, the most of HQ, H and HV and a
        multiple of each. scale multiplies the read-out, by default d_k ** -0.5, of a deep memory 1 (it multiplies q
        then, as in a kernel memory) and of a vector memory 1, whose o = s * q sums nothing.
        cu_seqlens [N + 1] packs N sequences into batch 1.
        form: "chunk", "recurrent", "reference" or "auto". chunk_size (a power of two, 16 to 128) never changes the
        result beyond rounding; where gradients are taken at the start of a segment of up to 128 tokens, that is the
        chunk. backend: "triton", "torch", or "auto" (Triton on a GPU or in its interpreter). schedule: how the chunk
        form's kernels share the work, one of `schedules`, or "auto": what a cost model takes to be fastest for the
        shapes and the chip. Packed sequences are never cut into segments. keep_bytes: the most, a token and head of o,
        that a form's kernels keep for the backward pass beside their inputs; the chunk form's make the rest again, and
        a ValueError says how much is least. None keeps all that it takes, which is fastest. Plain PyTorch keeps what it
        likes.
        Raises ArgumentError, a ValueError that names the argument.
        """
        gates = self._with_defaults(gates, q, k, v)
        check_arguments(self.spec, q, k, v, gates, initial_state, cu_seqlens, self._required)
        check_options(form, self.forms, chunk_size, self._segment, backend, scale, keep_bytes, q)
        check_schedule(schedule, self.schedules, form, cu_seqlens is not None)
        return self._call(
            q,
            k,
            v,
            **gates,
            scale=scale,
            initial_state=initial_state,
            output_final_state=output_final_state,
            cu_seqlens=cu_seqlens,
            form=form,
            chunk_size=chunk_size,
            backend=backend,
            schedule=schedule,
            keep_bytes=keep_bytes,
        )

    def _with_defaults(self, gates: dict[str, Tensor], q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        absent = [p for p in self.spec.parameters if p.name not in gates and p.default is not None]
        return gates | {p.name: self._default(p, q, k, v) for p in absent}

    def _default(self, parameter: Parameter, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Made once: to hand numbers to a GPU is to wait for it, and a CUDA graph may not."""
        dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
        heads, widths = call_heads(self.spec, q, k, v), {"k": q.shape[3], "v": v.shape[3]}

        def make() -> Tensor:
            return default_value(parameter, heads, widths).to(device=v.device, dtype=dtype)

        if torch.compiler.is_compiling() or is_fake(v):
            return make()
        key = (parameter.name, heads, *widths.values(), v.device, dtype)
        if key not in self._defaults:
            with torch.inference_mode(False):  # or no backward pass could keep it
                self._defaults[key] = make()
        return self._defaults[key]
