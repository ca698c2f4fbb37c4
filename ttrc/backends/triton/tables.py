"""Tables of zeros and ones, [BT, BT] each, one behind the other: which tokens a sum along the tokens is over.

Four for running sums, in order: until a token, before it, from it on, after it. Then, for decays by key channel, one
for each length of pieces, with a token's own step and without it; and, of [8, BT], one for each of which pairs of
tokens are of the two halves of a piece.
"""

from __future__ import annotations

from ttrc.ir.tile import CumulativeSum, Decayed

LEVELS = "4 + (BT > 16) + (BT > 32) + (BT > 64)"  # lengths of pieces: 2, 4, .. BT tokens
ACROSS = f"ones_ptr + (4 + 2 * ({LEVELS})) * BT * BT"  # the first of the tables of pairs


def table(op: CumulativeSum | Decayed) -> str:
    """Where the table of a running sum is, or the first of those of decays."""
    if isinstance(op, CumulativeSum):
        number = 2 * op.reverse + op.exclusive
        return f"ones_ptr + {number} * BT * BT" if number else "ones_ptr"
    return "ones_ptr + 4 * BT * BT" if op.own else f"ones_ptr + (4 + {LEVELS}) * BT * BT"
