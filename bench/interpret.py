"""Other libraries' kernels in Triton's interpreter: what compiled Triton has and Triton 3.6's interpreter lacks.

An autotuner needs a driver, so its first configuration is taken; a loop's counter must answer `.to(dtype)`; a function
of the language may have been imported by its own name. ttrc's own kernels need bfloat16 mended, and none of this.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner

from ttrc.runtime.interpreter import mend_interpreter


@contextmanager
def interpretable() -> Iterator[None]:
    """Inside the block, autotuned kernels written for a compiler run in the interpreter; then all is as before."""
    touched: dict[int, tuple[dict, dict]] = {}
    patch_lang = interpreter._patch_lang

    def patched(fn):
        names = fn.__globals__
        if id(names) not in touched:
            touched[id(names)] = names, {n: f for n, f in names.items() if tl.core.is_builtin(f)}
        names |= {n: _by_name(f.__name__) for n, f in touched[id(names)][1].items()} | {"range": _counted_range}
        return patch_lang(fn)

    mend_interpreter()
    with ExitStack() as undo:
        for owner, name, value in (
            (interpreter, "_patch_lang", patched),
            (Autotuner, "run", _first_config),
        ):
            undo.enter_context(_set(owner, name, value))
        try:
            yield
        finally:
            for names, imported in touched.values():
                names.pop("range", None)
                names |= imported


def _by_name(name: str):
    """The language's function of this name as the interpreter has it while a kernel runs."""
    return lambda *args, **kwargs: getattr(tl, name)(*args, **kwargs)


class _Counter(int):
    """A loop's counter, which a kernel may cast as if it were a tensor."""

    def to(self, dtype, **_options):
        return interpreter.interpreter_semantic.to_tensor(int(self), False).to(dtype)


def _counted_range(*bounds):
    return map(_Counter, builtins.range(*map(operator.index, bounds)))


def _first_config(tuner: Autotuner, *args, **kwargs):
    return tuner.fn.run(*args, **kwargs, **tuner.configs[0].all_kwargs())


@contextmanager
def _set(owner, name: str, value) -> Iterator[None]:
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if before is missing else setattr(owner, name, before)
