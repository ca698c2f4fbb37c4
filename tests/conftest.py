"""What must be set before anything imports torch or triton, and a folder for what tests compile."""

import gc
import os
import shutil
import tempfile

os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny and workers many: threads would only wait

import pytest  # noqa: E402

from ttrc.compiler import analyse  # noqa: E402
from ttrc.runtime.interpreter import mend_interpreter  # noqa: E402

mend_interpreter()  # tests take longer without
# A fifth of all time would go into looking for cycles among what SymPy and torch keep for good.
gc.freeze()
gc.set_threshold(100_000, 50, 100)


def forgetful(method):
    """What a test breaks on purpose no memory of the compiler hides, and none shows to others."""

    def call(*args, **kwargs):
        try:
            return method(*args, **kwargs)
        finally:
            analyse.cache_clear()

    return call


for change in ("setattr", "delattr", "setitem", "undo"):
    setattr(pytest.MonkeyPatch, change, forgetful(getattr(pytest.MonkeyPatch, change)))


def pytest_configure(config):
    """One fresh folder for all of xdist's workers, which so race for it; none of them touches the user's own."""
    if not hasattr(config, "workerinput"):
        os.environ["TTRC_CACHE"] = folder = tempfile.mkdtemp(prefix="ttrc-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
