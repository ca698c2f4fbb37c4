"""Names that a spec may not give to itself or to its inputs, because they mean something where the name goes."""

from __future__ import annotations

import builtins
import keyword

from ttrc.language.functions import FUNCTIONS

# What expressions mean by these words, in the order of the sections; `head` and `heads` in a default.
WORDS = ("p", "r", "normaliser", "v", "k", "q", "o", "S", "S_prev", "W", "head", "heads")

# Arguments and sizes of the operators, and the names that generated code gives to gradients.
_OPERATOR = (
    "self scale initial_state final_state output_final_state cu_seqlens form schedule keep_bytes state "
    "T H HG HO HQ HV N K V Z BT BR BK BV EVERY SPARSE dq dk dv do dp ds dstate"
).split()

# The parts of a state: fields of what operators return, and what statements make of them.
_STATE = "S M Z MZ H G".split()

# Bare words of the generated files that an argument of the same name would hide.
_GENERATED = (
    "all_chunks annotations backend backward_triton beside block blocks ceil choices choose chunk chunk_backward_op "
    "chunk_backward_triton chunk_forward_triton chunk_op chunk_size config conjugate crossing cut dataclass decays "
    "default_chunk delayed ends enter every final find_root forward_triton grads group_count groups held initial join "
    "keep_causal keep_strict keep_token keep_within kept kernels key_block larger last launch lay_out layout least "
    "leave like linear_scan ones_where op os pack_states per_head pieces plain recurrent_backward_op "
    "recurrent_forward_triton recurrent_op reference regime_of rows rows_of save segments smaller sparse split_states "
    "start starts state_dtype state_shape states step_tokens stretches sums tensors tokens trail transition unit "
    "units unpack_states uses_triton within"
).split()

# Bare words of the kernels' templates, and the functions these define.
_KERNELS = (
    "H_state across add_product as_tokens at at_bound begin begins block_numbers block_rows chunk_owner chunk_starts "
    "chunks clip columns_of_both conjugate_step decay_by_half decayed_back decayed_pairs decayed_s "
    "decayed_t difference difference_across dtype entries_at entries_of exact_dot expm1 factors first first_chunk "
    "first_step halves here i_b i_block i_c i_chunk i_g i_h i_in i_k i_n i_p i_q i_s i_share i_start i_step i_t "
    "i_turn i_v in_base_2 in_halves left length linear_scan load_along load_column load_double load_entries "
    "load_factor load_gate load_gate_row load_line load_lower load_lower_block load_lower_columns load_lower_rows "
    "load_row load_rows load_vector log_cosh lower_blocks matrix number_of_block numbers_of oldest ones own "
    "own_numbers panels partial positive_power power program r root_step rounded_dot row_of_block rows_of "
    "rows_of_both running_sum s s_first s_left scan_entries settled sign softplus state_dot step_starts steps "
    "store_entries store_lower store_row store_rows store_vector stride substitute sum_where t t_first t_left tanh "
    "then token tokens_of unit_lower_inverse unit_rows waiting whole_power written"
).split()

# Modules, and the functions of triton.language that read or write as bare words.
_LIBRARIES = (
    "torch triton tl ttrc math numpy np jit autotune constexpr program_id num_programs num_warps num_stages "
    "load store cdiv arange zeros full range static_range make_block_ptr advance trans reshape broadcast_to "
    "cumsum associative_scan reduce atomic_add maximum minimum fma rsqrt exp2 log2 static_assert device_print"
).split()

_PYTHON = [*keyword.kwlist, "match", "case", *(name for name in dir(builtins) if not name.startswith("_"))]

RESERVED = frozenset((*WORDS, *FUNCTIONS, *_OPERATOR, *_STATE, *_GENERATED, *_KERNELS, *_LIBRARIES, *_PYTHON))
