"""What must be set before anything imports torch or triton, and a folder for what tests compile."""

import os
import shutil
import tempfile

os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny and workers many: threads would only wait

from ttrc.runtime.interpreter import mend_interpreter  # noqa: E402

mend_interpreter()  # tests take longer without


def pytest_configure(config):
    """One fresh folder for all of xdist's workers, which so race for it; none of them touches the user's own."""
    if not hasattr(config, "workerinput"):
        os.environ["TTRC_CACHE"] = folder = tempfile.mkdtemp(prefix="ttrc-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
