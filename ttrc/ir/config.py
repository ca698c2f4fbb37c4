"""Launch configurations: what a kernel's text leaves open, by the widest head dimension.

The defaults were chosen offline by what the compiled kernels use on sm_90 (`ttrc compile`): no spills up to 128,
matrix instructions everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import cache

CHUNK = 64  # tokens a chunk, and a step of a scan
LONG_CHUNK = 128  # where nothing is solved and nothing kept for each pair of tokens
SCANNED_CHUNK = 32  # where what each token does to a number a channel is scanned: a tile for each part of it
SHORT_CHUNK = 16  # the same where programs take all value channels
ENTRIES = 2048  # numbers of a tile of tokens, key and value channels; twice as many where they were one token
SEGMENTS = (16, 32, 64, 128)  # tokens of a segment with frozen gradients that is one chunk; see is_several_chunks
HELD = 4096  # numbers of a matrix with which nothing beside it has to be loaded again
JOINED = 1024  # numbers of a state that a program takes from piece to piece, where each goes by itself
WIDTHS = (64, 128, 256)  # head dimensions that configurations are chosen for
SEARCHED = 4096  # numbers of a tile that a search goes on from: its programs have so many rows of a chunk each
WIDEST = WIDTHS[-1]
# Kernels of a kind that has configurations of its own end in one of these.
SOLVED = "_solved"  # beside decays by key channel: inverts a triangular system
NONLINEAR = "_nonlinear"  # works with the errors of a nonlinear substitution
SYSTEMS = "_systems"  # the same, of several unknowns that are substituted together
JOINT = "_joint"  # of several associations a token: many C x C tiles a step
MASKS = "_masks"  # works with products of masks
NORMALISED = "_normalised"  # of a memory that answers with a normaliser too
CLOSED = "_closed"  # solves for read-outs of a closed form, or carries what it solves with
WHOLE = "_whole"  # its programs take every value channel, for it sums over them
PANELS = "_panels"  # they do, and walk hidden channels in panels
KEYS = "_keys"  # they do, and walk key channels in panels; scans where they do not take all of them at once
DECAYS = "_decays"  # weighs pairs of tokens by differences of running sums
WINDOWED = "_windowed"  # weighs pairs within a window: a second loop, for blocks that its edge crosses
LINES = "_lines"  # fits lines to pairs of tokens: rounds over all keys, one of them a search
MAPPED = "_mapped"  # makes queries or keys of pairs itself, by feature maps
# In the order of a name's end.
KINDS = (
    WHOLE,
    PANELS,
    KEYS,
    SOLVED,
    NONLINEAR,
    SYSTEMS,
    JOINT,
    MASKS,
    NORMALISED,
    CLOSED,
    WINDOWED,
    DECAYS,
    MAPPED,
    LINES,
)


class Takes(Enum):
    """What a program of a kernel takes at once, which the block of its configurations counts."""

    VALUES = "value channels"
    WHOLE = "every value channel, whatever a configuration says"
    HIDDEN = "every value channel, and hidden ones in panels"
    KEYS = "every value channel, and key ones in panels"
    TOKENS = "tokens of a whole sequence"
    ENTRIES = "value channels of tiles of few tokens, with all of their key channels"


def is_several_chunks(segment: int | None) -> bool:
    """Whether a segment with frozen gradients is cut into chunks, of any length that a chunk may have."""
    return segment is not None and segment > LONG_CHUNK and segment % LONG_CHUNK == 0


@dataclass(frozen=True)
class Config:
    """How much of what it Takes a program has at once (`value_block`, after the commonest), warps, pipeline stages."""

    value_block: int
    warps: int
    stages: int

    @property
    def row(self) -> tuple[int, int, int]:
        """As generated operators spell it."""
        return self.value_block, self.warps, self.stages


DEFAULTS: dict[str, dict[int, Config]] = {
    "chunk_prepare": {64: Config(64, 4, 1), 128: Config(64, 4, 1), 256: Config(64, 8, 1)},
    "chunk_scan": {64: Config(32, 4, 2), 128: Config(32, 4, 2), 256: Config(16, 8, 1)},
    "chunk_scan_reverse": {64: Config(32, 4, 2), 128: Config(32, 4, 2), 256: Config(16, 8, 1)},
    "chunk_gradients": {64: Config(32, 4, 1), 128: Config(16, 4, 1), 256: Config(16, 8, 1)},
    "chunk_moves": {64: Config(16, 8, 1), 128: Config(16, 8, 1), 256: Config(16, 8, 1)},
    "chunk_output": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 8, 1)},
    "chunk_map": {64: Config(32, 8, 1), 128: Config(32, 8, 1), 256: Config(32, 8, 1)},
    "chunk_map_reverse": {64: Config(32, 8, 1), 128: Config(32, 8, 1), 256: Config(32, 8, 1)},
    "chunk_read": {64: Config(32, 8, 1), 128: Config(32, 8, 1), 256: Config(32, 8, 1)},
    "chunk_read_reverse": {64: Config(32, 8, 1), 128: Config(32, 8, 1), 256: Config(32, 8, 1)},
    "chunk_transition": {64: Config(32, 4, 2), 128: Config(32, 4, 2), 256: Config(16, 8, 1)},
    "join_segments": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(16, 8, 1)},
    "join_segments_reverse": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(16, 8, 1)},
    "chunk_scan_nonlinear": {64: Config(64, 4, 2), 128: Config(64, 4, 2), 256: Config(32, 8, 1)},
    "chunk_scan_reverse_nonlinear": {64: Config(64, 4, 2), 128: Config(64, 4, 2), 256: Config(32, 8, 1)},
    "chunk_output_nonlinear": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 8, 1)},
    "chunk_gradients_nonlinear": {64: Config(16, 4, 1), 128: Config(32, 8, 1), 256: Config(32, 8, 1)},
    "chunk_scan_systems": {64: Config(32, 4, 2), 128: Config(32, 4, 2), 256: Config(16, 8, 2)},
    "chunk_scan_reverse_systems": {64: Config(32, 8, 2), 128: Config(32, 8, 2), 256: Config(16, 8, 2)},
    "chunk_output_systems": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 8, 1)},
    "chunk_prepare_joint": {64: Config(64, 4, 1), 128: Config(64, 4, 1), 256: Config(64, 8, 1)},
    "chunk_scan_joint": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(16, 8, 1)},
    "chunk_scan_reverse_joint": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(16, 8, 1)},
    "chunk_output_joint": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 8, 1)},
    "chunk_gradients_joint": {64: Config(32, 8, 1), 128: Config(64, 8, 1), 256: Config(16, 8, 1)},
    "chunk_transition_joint": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(16, 8, 1)},
    "chunk_prepare_masks": {64: Config(64, 8, 1), 128: Config(64, 8, 1), 256: Config(64, 8, 1)},
    "chunk_scan_reverse_masks": {64: Config(32, 4, 2), 128: Config(32, 8, 2), 256: Config(16, 8, 1)},
    "chunk_gradients_masks": {64: Config(16, 8, 1), 128: Config(16, 8, 1), 256: Config(16, 8, 1)},
    "chunk_gradients_normalised": {64: Config(32, 4, 1), 128: Config(32, 8, 1), 256: Config(16, 8, 1)},
    "chunk_prepare_keys": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "chunk_prepare_solved_keys": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "chunk_gradients_values": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "chunk_prepare_joint_keys": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "chunk_gradients_joint_keys": {64: Config(16, 4, 1), 128: Config(16, 4, 1), 256: Config(16, 8, 1)},
    "chunk_gradients_keys": {64: Config(16, 4, 1), 128: Config(16, 4, 1), 256: Config(16, 4, 1)},
    "chunk_scan_closed": {64: Config(64, 4, 1), 128: Config(64, 8, 1), 256: Config(32, 8, 1)},
    "chunk_scan_reverse_closed": {64: Config(64, 4, 1), 128: Config(64, 8, 1), 256: Config(32, 8, 1)},
    "chunk_output_closed": {64: Config(32, 8, 1), 128: Config(64, 8, 1), 256: Config(64, 8, 1)},
    "chunk_solve_closed": {64: Config(32, 8, 1), 128: Config(32, 8, 1), 256: Config(32, 8, 1)},
    "chunk_gradients_closed": {64: Config(16, 8, 1), 128: Config(32, 8, 1), 256: Config(32, 8, 1)},
    "chunk_scan_whole": {64: Config(WIDEST, 4, 1), 128: Config(WIDEST, 8, 1), 256: Config(WIDEST, 8, 1)},
    "chunk_scan_reverse_whole": {64: Config(WIDEST, 8, 1), 128: Config(WIDEST, 8, 1), 256: Config(WIDEST, 8, 1)},
    "chunk_scan_keys": {64: Config(64, 4, 1), 128: Config(128, 8, 1), 256: Config(64, 8, 1)},
    "chunk_scan_reverse_keys": {64: Config(64, 8, 1), 128: Config(128, 8, 1), 256: Config(64, 8, 1)},
    "deep_scan": {64: Config(64, 4, 1), 128: Config(64, 8, 1), 256: Config(64, 8, 1)},
    "deep_scan_reverse": {64: Config(64, 4, 1), 128: Config(64, 8, 1), 256: Config(64, 8, 1)},
    "deep_scan_whole": {64: Config(WIDEST, 8, 1), 128: Config(WIDEST, 8, 1), 256: Config(WIDEST, 16, 1)},
    "deep_scan_reverse_whole": {64: Config(WIDEST, 8, 1), 128: Config(WIDEST, 8, 1), 256: Config(WIDEST, 16, 1)},
    "deep_scan_panels": {64: Config(32, 8, 1), 128: Config(16, 8, 1), 256: Config(16, 8, 1)},
    "deep_scan_reverse_panels": {64: Config(16, 8, 1), 128: Config(16, 8, 1), 256: Config(16, 8, 1)},
    "deep_transition": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(16, 8, 1)},
    "deep_token_scan": {64: Config(64, 8, 1), 128: Config(64, 16, 1), 256: Config(64, 16, 1)},
    "deep_token_scan_reverse": {64: Config(64, 8, 1), 128: Config(64, 16, 1), 256: Config(64, 16, 1)},
    "deep_token_scan_whole": {64: Config(WIDEST, 8, 1), 128: Config(WIDEST, 16, 1), 256: Config(WIDEST, 16, 1)},
    "deep_token_scan_reverse_whole": {
        64: Config(WIDEST, 8, 1),
        128: Config(WIDEST, 16, 1),
        256: Config(WIDEST, 16, 1),
    },
    "attend": {64: Config(128, 8, 2), 128: Config(128, 8, 2), 256: Config(64, 8, 1)},
    "attend_queries": {64: Config(64, 4, 2), 128: Config(64, 4, 2), 256: Config(32, 8, 1)},
    "attend_keys": {64: Config(64, 4, 2), 128: Config(64, 4, 1), 256: Config(32, 4, 2)},
    "attend_decays": {64: Config(64, 4, 2), 128: Config(64, 4, 2), 256: Config(64, 8, 1)},
    "attend_queries_decays": {64: Config(64, 4, 2), 128: Config(64, 4, 2), 256: Config(32, 8, 1)},
    "attend_keys_decays": {64: Config(64, 4, 2), 128: Config(64, 4, 1), 256: Config(32, 4, 2)},
    "attend_windowed": {64: Config(128, 8, 2), 128: Config(64, 4, 2), 256: Config(64, 8, 1)},
    "attend_queries_windowed": {64: Config(64, 4, 2), 128: Config(64, 8, 2), 256: Config(32, 8, 1)},
    "attend_keys_windowed": {64: Config(64, 4, 2), 128: Config(64, 8, 2), 256: Config(32, 8, 1)},
    "attend_decays_windowed": {64: Config(64, 4, 2), 128: Config(64, 8, 2), 256: Config(64, 8, 1)},
    "attend_queries_decays_windowed": {64: Config(64, 4, 2), 128: Config(64, 8, 2), 256: Config(32, 8, 1)},
    "attend_keys_decays_windowed": {64: Config(64, 8, 1), 128: Config(64, 8, 1), 256: Config(32, 8, 1)},
    "attend_mapped": {64: Config(64, 4, 2), 128: Config(64, 8, 2), 256: Config(64, 8, 1)},
    "attend_queries_mapped": {64: Config(64, 8, 2), 128: Config(64, 8, 2), 256: Config(32, 8, 1)},
    "attend_keys_mapped": {64: Config(64, 8, 2), 128: Config(64, 8, 1), 256: Config(32, 8, 1)},
    "attend_ahead_lines": {64: Config(64, 4, 2), 128: Config(64, 8, 2), 256: Config(16, 8, 1)},
    "attend_solve_lines": {64: Config(64, 4, 2), 128: Config(64, 8, 2), 256: Config(16, 8, 1)},
    "attend_lines": {64: Config(64, 4, 2), 128: Config(64, 4, 1), 256: Config(16, 8, 1)},
    "attend_ahead_reverse_lines": {64: Config(64, 4, 1), 128: Config(32, 4, 1), 256: Config(16, 8, 1)},
    "attend_solve_reverse_lines": {64: Config(64, 4, 2), 128: Config(64, 8, 2), 256: Config(16, 8, 1)},
    "attend_behind_reverse_lines": {64: Config(64, 8, 1), 128: Config(64, 8, 1), 256: Config(16, 8, 1)},
    "attend_queries_lines": {64: Config(32, 4, 1), 128: Config(16, 4, 1), 256: Config(16, 8, 1)},
    "attend_keys_lines": {64: Config(32, 4, 1), 128: Config(16, 4, 1), 256: Config(16, 8, 1)},
    "running_sums": {64: Config(256, 4, 1), 128: Config(256, 4, 1), 256: Config(256, 4, 1)},
    "running_sums_reverse": {64: Config(256, 4, 1), 128: Config(256, 4, 1), 256: Config(256, 4, 1)},
    "vector_scan": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "vector_scan_reverse": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "vector_scan_whole": {64: Config(WIDEST, 4, 1), 128: Config(WIDEST, 4, 1), 256: Config(WIDEST, 8, 1)},
    "vector_scan_reverse_whole": {64: Config(WIDEST, 4, 1), 128: Config(WIDEST, 8, 1), 256: Config(WIDEST, 16, 1)},
    "vector_token_scan": {64: Config(32, 1, 1), 128: Config(32, 1, 1), 256: Config(32, 1, 1)},
    "vector_token_scan_reverse": {64: Config(32, 1, 1), 128: Config(32, 1, 1), 256: Config(32, 1, 1)},
    "vector_token_scan_whole": {64: Config(WIDEST, 2, 1), 128: Config(WIDEST, 4, 1), 256: Config(WIDEST, 8, 1)},
    "vector_token_scan_reverse_whole": {64: Config(WIDEST, 2, 1), 128: Config(WIDEST, 4, 1), 256: Config(WIDEST, 8, 1)},
    "vector_transition": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "vector_transition_whole": {64: Config(WIDEST, 4, 1), 128: Config(WIDEST, 4, 1), 256: Config(WIDEST, 8, 1)},
    "entry_transition": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "entry_scan_cotangents": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "entry_scan": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "entry_scan_reverse": {64: Config(32, 4, 1), 128: Config(32, 4, 1), 256: Config(32, 4, 1)},
    "token_scan": {64: Config(32, 4, 2), 128: Config(16, 4, 2), 256: Config(16, 8, 2)},
    "token_scan_reverse": {64: Config(32, 4, 2), 128: Config(16, 4, 2), 256: Config(16, 8, 2)},
    "token_scan_whole": {64: Config(WIDEST, 4, 1), 128: Config(WIDEST, 8, 1), 256: Config(WIDEST, 16, 1)},
    "token_scan_reverse_whole": {64: Config(WIDEST, 8, 1), 128: Config(WIDEST, 16, 1), 256: Config(WIDEST, 16, 1)},
}


# In their place where chunks are long: tiles of 128 x 128 need the registers of 8 warps.
LONG: dict[str, dict[int, Config]] = {
    "chunk_gradients": {64: Config(32, 8, 1), 128: Config(32, 8, 1), 256: Config(32, 8, 1)},
    "chunk_output": {64: Config(32, 8, 1), 128: Config(32, 8, 1)},
    "vector_scan": {64: Config(32, 8, 1), 128: Config(32, 8, 1), 256: Config(32, 8, 1)},
    "vector_scan_reverse": {64: Config(32, 8, 1), 128: Config(32, 8, 1), 256: Config(32, 8, 1)},
}


# Kernels whose sums as wide as the keys take the registers of 8 warps where there are more key channels than this.
WIDE = {
    "chunk_gradients": 128,
    "chunk_gradients_normalised": 128,
    "chunk_gradients_nonlinear": 32,
    "chunk_gradients_masks": 64,
    "chunk_gradients_joint": 32,
}


def plain_name(kernel: str) -> str:
    """A kernel's name without what kind it is of."""
    for kind in KINDS:
        kernel = kernel.removesuffix(kind)
    return kernel


def step_tokens(takes: Takes, config: Config, chunk: int, longest: int, d_k: int, d_v: int) -> int:
    """Tokens that a scan takes at once, of chunks of so many, where its plan lets it take `longest`."""
    if takes is Takes.ENTRIES:
        return min(chunk, entry_tokens(d_k, min(config.value_block, block(d_v))))
    return min(chunk, longest)


def entry_tokens(d_k: int, taken: int) -> int:
    """Tokens of a tile that has every key channel and so many value channels."""
    return max(2, ENTRIES // (block(d_k) * taken))


def entry_chunk(longest: int, d_k: int) -> int:
    """Tokens from one state that is kept to the next: fewer the larger a state is, for a cache has to hold those of a
    chunk's steps, of every program at work."""
    return max(SHORT_CHUNK, min(longest, ENTRIES // block(d_k)))


def value_block(takes: Takes, config: Config, d_v: int) -> int:
    """Value channels that a program has at once."""
    return block(d_v) if takes in (Takes.HIDDEN, Takes.KEYS, Takes.TOKENS) else config.value_block


def key_block(takes: Takes, config: Config, d_k: int) -> int:
    """Key channels that a program has at once."""
    return min(config.value_block, block(d_k)) if takes is Takes.KEYS else block(d_k)


def hidden_block(takes: Takes, config: Config, hidden: int) -> int:
    """Hidden channels that a program has at once."""
    return min(config.value_block, block(hidden)) if takes is Takes.HIDDEN else block(hidden)


def row_block(chunk: int, d_k: int) -> int:
    """Rows of a chunk that a program has where it does not have all."""
    return min(chunk, max(16, SEARCHED // block(d_k)))


def block(width: int) -> int:
    """The power of two that holds a head dimension; matrix products need 16 at least."""
    return max(16, 1 << (width - 1).bit_length())


def default_chunk(longest: int, d_k: int, d_v: int, dtype_bytes: int) -> int:
    """Tokens a chunk, of a plan whose chunks are `longest` where the chip has room for tiles of that length."""
    room = max(block(d_k), block(d_v)) <= 128 and dtype_bytes <= 2
    return longest if room else min(longest, CHUNK)


def default_configs(kernel: str, longest: int) -> dict[int, Config]:
    """By the widest head dimension, for a plan whose chunks are `longest`."""
    return DEFAULTS[kernel] | (LONG.get(kernel, {}) if longest > CHUNK else {})


@cache  # a budget asks for each statement of a kernel
def default_config(kernel: str, takes: Takes, longest: int, d_k: int, d_v: int) -> Config:
    """For heads of so many channels, which may be fewer than a row's block."""
    rows = default_configs(kernel, longest)
    chosen = rows[min(w for w in rows if w >= max(block(d_k), block(d_v)))]
    match takes:
        case Takes.TOKENS:
            return chosen
        case Takes.KEYS:
            most = block(d_k)
        case Takes.ENTRIES:
            most = min(block(d_v), ENTRIES // block(d_k))
        case _:
            most = block(d_v)
    return replace(chosen, value_block=min(chosen.value_block, most))
