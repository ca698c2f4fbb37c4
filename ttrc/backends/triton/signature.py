"""A planned kernel's arguments for a compile without a GPU: types, compile-time constants, launch configuration."""

from __future__ import annotations

from dataclasses import dataclass

from ttrc.backends.triton.launch import reads
from ttrc.backends.triton.pointers import asks_begins, has_hidden, pointers
from ttrc.backends.triton.registers import registers
from ttrc.ir.config import JOINED, Config, block, hidden_block, key_block, row_block, step_tokens, value_block
from ttrc.ir.plan import BETWEEN, Buffer, Kernel, Plan, Skeleton, Space
from ttrc.ir.tile import row_axes

# Whose programs take a state along a sequence.
WALKING = (Skeleton.SCAN, Skeleton.STEPS_REVERSE, Skeleton.TOKENS, Skeleton.TOKENS_REVERSE)
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Signature:
    """Runtime arguments by type, everything else by value; `divisible` integers are multiples of 16."""

    types: dict[str, str]
    constants: dict[str, object]
    divisible: tuple[str, ...]
    config: Config
    registers: int | None = None  # a thread is given, where that has to be said


def signature(
    kernel: Kernel,
    plan: Plan,
    *,
    d_k: int,
    d_v: int,
    dtype: str,
    config: Config | None = None,
    initial: bool = True,
    final: bool = True,
    launched: Kernel | None = None,
) -> Signature:
    """The fullest variant: with an initial state, states saved, sequences not packed. dtype: "bf16", "fp16", "fp32".

    Without `initial` or `final`, what a call launches that is given no initial state, or asks for no final one; where
    `launched` is given, a scan that stores no more than that, the kernel as one launch asks for it.
    """
    config = config or kernel.config(plan.chunk, d_k, d_v)
    if kernel.skeleton is Skeleton.JOIN:
        return _of_join(kernel, config, d_k, d_v)
    if kernel.skeleton is Skeleton.WALK:
        return _of_walk(kernel, config, dtype)
    tokens = kernel.skeleton is Skeleton.STREAM
    chunk = config.value_block if tokens else plan.tokens(d_k, d_v, BYTES[dtype])
    types = {f"{b.name}_ptr": _pointer(b, kernel, dtype) for b in pointers(kernel)}
    constants: dict[str, object] = {"cu_seqlens": None, "chunk_starts": None}
    types |= {"scale": "fp32", "T": "i32", "chunks": "i32"}
    constants |= {"HQ": 16, "HO": 16} if tokens else {}
    constants |= {"HG": 16} if kernel.grouped else {}
    constants |= {"H": 16, "HV": 16, "K": d_k, "V": d_v, "BT": chunk, "BK": key_block(kernel.takes, config, d_k)}
    constants |= {"BV": value_block(kernel.takes, config, d_v), "PACKED": False}
    if has_hidden(kernel):
        hidden = plan.expansion * d_k
        constants |= {"HIDDEN": hidden, "BH": hidden_block(kernel.takes, config, hidden)}
    precision = {"PRECISION": "ieee" if dtype == "fp32" else "tf32"}
    enters, leaves = (final, initial) if kernel.reverse else (initial, final)
    if asks_begins(kernel):
        constants["SEGMENT"] = plan.segment
    if kernel.skeleton is Skeleton.ROWS:
        constants["BR"] = row_block(chunk, d_k)
    types |= {"ones_ptr": f"*{dtype}"} if kernel.ones else {}
    match kernel.skeleton:
        case Skeleton.PARALLEL | Skeleton.ROWS | Skeleton.STREAM:
            types["N"] = "i32"
            constants |= {"chunk_owner": None, **precision}
        case Skeleton.SCAN:
            types |= {"waiting_ptr": "*fp32"} if kernel.room else {}
            constants |= {"step_starts": None} if kernel.numbered else {}
            step = step_tokens(kernel.takes, config, chunk, plan.step, d_k, d_v)
            constants |= {"BT": step, "EVERY": chunk // step, "SPARSE": False, **precision}
            constants |= {"READ": launched is None or reads(launched)}
            constants |= {"SAVE": launched is None or any(b.space in BETWEEN for b in launched.stores)}
            types |= {"tokens": "i32"} if kernel.partial else {}
        case Skeleton.STEPS_REVERSE:
            types |= {"trail_ptr": "*fp32", "tokens": "i32"}
            step = step_tokens(kernel.takes, config, chunk, plan.step, d_k, d_v)
            constants |= {"BT": step, "EVERY": chunk // step}
        case Skeleton.TOKENS:
            types["states_ptr"] = "*fp32"
            constants["SAVE"] = True
        case Skeleton.TOKENS_REVERSE:
            types |= {"states_ptr": "*fp32", "trail_ptr": "*fp32", "tokens": "i32"}
    if kernel.skeleton in WALKING:
        types |= {"enter_ptr": "*fp32", "leave_ptr": "*fp32"} if enters else {"leave_ptr": "*fp32"}
        constants |= {"ENTER": enters, "LEAVE": kernel.in_memory or leaves} | ({} if enters else {"enter_ptr": None})
    return Signature(types, constants, (), config, registers(kernel, config.warps))


def _of_join(kernel: Kernel, config: Config, d_k: int, d_v: int) -> Signature:
    names = ("sums_ptr", "transition_ptr", "starts_ptr", "enter_ptr", "leave_ptr")
    constants = {"HV": 16, "K": d_k, "V": d_v, "ENTER": True, "LEAVE": True}
    if kernel.crossing.products:
        constants |= {"BK": block(d_k), "BV": config.value_block}
    else:
        constants |= {"BE": JOINED, "NE": kernel.crossing.blocks(d_k, d_v)}
    return Signature({**dict.fromkeys(names, "*fp32"), "segments": "i32"}, constants, (), config)


def _of_walk(kernel: Kernel, config: Config, dtype: str) -> Signature:
    types = {f"{b.name}_ptr": _pointer(b, kernel, dtype) for b in pointers(kernel)} | {"T": "i32"}
    return Signature(types, {"cu_seqlens": None, "HO": 16, "BT": config.value_block, "PACKED": False}, (), config)


def _pointer(buffer: Buffer, kernel: Kernel, dtype: str) -> str:
    if buffer.double:
        return "*fp64"
    per_number = buffer.single or buffer.space is Space.HEAD or len(row_axes(buffer.tile)) == 0
    return "*fp32" if per_number or kernel.shares(buffer) else f"*{dtype}"
