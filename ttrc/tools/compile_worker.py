"""The process behind offline.compile_many: jobs as lines of JSON in, results as lines of JSON out.

Run as a module, without TRITON_INTERPRET. Compilers write to stdout at will, so the answers keep it to themselves.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
from dataclasses import asdict

from ttrc.tools.binary import compile_here


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _answer(job: dict) -> dict:
    try:
        path, kernel = job.pop("module_path"), job.pop("kernel")
        fn = getattr(_module(path), kernel, None)
        if fn is None:
            return {"reason": f"{path} has no kernel {kernel!r}"}
        return {"resources": asdict(compile_here(fn, **job))}
    except Exception as error:  # whatever a kernel does to the compiler is a result, not an end
        return {"reason": _reason(error)}


def _reason(error: BaseException) -> str:
    """The innermost cause: Triton wraps a compile error once for every call it went through."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip() or type(error).__name__


@functools.cache
def _module(path: str):
    spec = importlib.util.spec_from_file_location(f"ttrc_offline_{abs(hash(path))}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
