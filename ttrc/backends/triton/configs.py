"""Default launch configurations: (value channels a program takes at once, warps, stages) by widest head dimension.

Chosen offline by what the compiled kernels use on sm_90 (`ttrc compile`): no spills up to 128, matrix
instructions everywhere. A tuned file for the user's chip replaces them.
"""

from __future__ import annotations

CHUNK = 64

DEFAULTS: dict[str, dict[int, tuple[int, int, int]]] = {
    "chunk_prepare": {64: (64, 4, 1), 128: (64, 4, 1), 256: (64, 8, 1)},
    "chunk_scan": {64: (64, 4, 2), 128: (64, 4, 2), 256: (32, 8, 1)},
    "chunk_scan_reverse": {64: (64, 4, 2), 128: (64, 4, 2), 256: (32, 8, 1)},
    "chunk_gradients": {64: (64, 8, 1), 128: (32, 8, 1), 256: (16, 8, 1)},
    "token_scan": {64: (32, 4, 2), 128: (16, 4, 2), 256: (16, 8, 2)},
    "token_scan_reverse": {64: (32, 4, 2), 128: (16, 4, 2), 256: (16, 8, 2)},
}
