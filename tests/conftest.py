"""Kernels run in Triton's interpreter on the CPU: it must be on before anything imports triton."""

import os

os.environ["TRITON_INTERPRET"] = "1"

collect_ignore = ["unfinished"]  # written, not yet all green: run them by name, `pytest tests/unfinished`
