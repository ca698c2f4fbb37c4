"""What must be set before anything imports torch or triton."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny and workers many: threads would only wait

from ttrc.runtime.interpreter import mend_interpreter  # noqa: E402

mend_interpreter()  # tests take longer without
