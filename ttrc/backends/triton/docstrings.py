"""What kernels say of themselves."""

from __future__ import annotations

from ttrc.ir.config import plain_name
from ttrc.ir.plan import Kernel
from ttrc.ir.tile import Normaliser

CROSSED = "What states alone become from a segment's start to its end."
DOC = {
    "chunk_prepare": "What each chunk needs alone: the inverse of its triangular system.",
    "chunk_prepare_keys": "What each chunk needs of keys, queries and decays alone: pairs of tokens, decayed rows.",
    "chunk_prepare_solved_keys": "The inverse of each chunk's triangular system, pairs of tokens and decayed rows.",
    "chunk_scan": "Chunks in order with the state on chip: read-outs, and for a backward pass the chunk-start states.",
    "chunk_scan_reverse": "Chunks backwards with the state's cotangent on chip; stores it at each chunk's end.",
    "chunk_scan_keys": "Chunks in order, the state of wide heads in memory: read-outs, and the chunk-start states.",
    "chunk_scan_reverse_keys": "Chunks backwards, for wide heads with the cotangent in memory; stores it at each end.",
    "chunk_gradients": "Cotangents of the inputs, chunk by chunk, from the states and their cotangents.",
    "chunk_gradients_values": "Cotangents that are made without keys: of values, of what is solved for, of pairs.",
    "chunk_scan_closed": "Chunks in order with what the past is on chip: stored where each chunk starts.",
    "chunk_output_closed": "What the queries of a chunk solve for, and their read-outs.",
    "chunk_solve": "What the adjoint of a chunk's read-outs solves for, which is the cotangent of its queries.",
    "chunk_moves": "Cotangents of the gates that decide how states move, from those of the masks they make.",
    "chunk_map": "What feature maps make of queries and keys.",
    "chunk_map_reverse": "The adjoint of chunk_map: cotangents of queries and keys, and of what else maps are made of.",
    "chunk_read": "Outputs, of what the memory answers to the queries.",
    "chunk_read_reverse": "The adjoint of chunk_read: cotangents of the answers, and of what else outputs are made of.",
    "chunk_output": "Read-outs, chunk by chunk, from the states that chunks start with.",
    **dict.fromkeys(("chunk_transition", "deep_transition", "vector_transition", "entry_transition"), CROSSED),
    "join_segments": "S_{i+1} = M_i S_i + B_i over the segments of a sequence; stores each S_i.",
    "join_segments_reverse": "The adjoint of join_segments: d_S_i = M_i' d_S_{i+1} + d_B_i; stores each d_S_{i+1}.",
    "deep_scan": "Segments in order with the weights on chip: read-outs, and the weights that each starts with.",
    "deep_scan_reverse": "Segments backwards with the weights' cotangents on chip: the cotangents of the inputs.",
    "deep_scan_panels": "Segments in order, the weights in memory: read-outs, and the weights that each starts with.",
    "deep_scan_reverse_panels": "Segments backwards, the weights' cotangents in memory: the cotangents of the inputs.",
    "deep_token_scan": "Token by token with the weights on chip; checkpoints them every BT tokens for a backward pass.",
    "deep_token_scan_reverse": "Token by token backwards, weights recomputed from their checkpoints.",
    "attend": "A block of queries over its keys: read-outs, and the logarithms of what divides them.",
    "attend_queries": "A block of queries over its keys once more: cotangents of queries.",
    "attend_keys": "A block of keys over the queries that see it: cotangents of keys and values.",
    "attend_ahead": "A block of queries over its keys: what a search starts from, and what divides weights.",
    "attend_ahead_reverse": "A block of queries over its keys: the cotangent of what a search found.",
    "attend_solve": "What each query of a block solves for, over its keys again and again.",
    "attend_solve_reverse": "The same system once more, with the cotangent on its right side.",
    "attend_behind_reverse": "A block of queries over its keys: sums of what was solved for that pairs take again.",
    "running_sums": "Sums along each sequence, in double precision.",
    "running_sums_reverse": "The adjoint of running_sums: sums from each sequence's end.",
    "vector_scan": "Chunks in order with a number a channel on chip: read-outs, and the states that each starts with.",
    "vector_scan_reverse": "Chunks backwards, the numbers' cotangents on chip: the cotangents of the inputs.",
    "vector_token_scan": "Token by token with a number a channel on chip; checkpoints it every BT tokens.",
    "vector_token_scan_reverse": "Token by token backwards, the numbers recomputed from their checkpoints.",
    "entry_scan": "Tokens in order, each entry of the state by itself: read-outs, and the states of chunks' starts.",
    "entry_scan_reverse": "Chunks backwards, the states of their steps made again: the cotangents of the inputs.",
    "entry_scan_cotangents": "Tokens backwards, each entry by itself: the states' cotangents, and nothing else.",
    "token_scan": "Token by token with the state on chip; checkpoints it every BT tokens for a backward pass.",
    "token_scan_reverse": "Token by token backwards, states recomputed from their checkpoints.",
}
# Of kernels that no normaliser is made in, where others of the name make one.
UNDIVIDED = {"attend": "A block of queries over its keys: read-outs, sums that no sum of weights divides."}


def doc(kernel: Kernel) -> str:
    """Of a kernel by its name, or of what it is a kind of."""
    name = kernel.name if kernel.name in DOC else plain_name(kernel.name)
    divided = any(isinstance(s.op, Normaliser) for s in kernel.statements)
    return DOC[name] if divided else UNDIVIDED.get(name, DOC[name])
