"""How often the text of a kernel's binary runs, as its plan has it: what each warp executes of it."""

from __future__ import annotations

from ttrc.ir.config import Config, key_block
from ttrc.ir.plan import Skeleton
from ttrc.passes.budget import STEPS
from ttrc.runtime.workload import Workload
from ttrc.tools.resources import ByDepth
from ttrc.tools.walls import Share


def executed(text: ByDepth, share: Share, config: Config, steps: int, shape: Workload) -> float:
    """Of a program, with its loops as often as they run.

    A binary does not say how often: all of a kernel's loops at one depth are taken to run alike.
    """
    kernel = share.kernel.of(shape.d_k, key_block(share.kernel.takes, config, shape.d_k))
    match kernel.skeleton:
        case Skeleton.PARALLEL | Skeleton.ROWS:
            if not any(s.panelled for s in kernel.segments):
                return text.outside + (text.middle + text.inner) * share.loops
            walked = shape.d_k if kernel.axis == "k" else shape.d_v
            return text.outside + -(-walked // config.value_block) * executed_in_step(text, share)
        case Skeleton.STREAM:  # the mean of all programs
            blocks = kernel.visited(shape.length, config.value_block)
            if kernel.search is not None:  # all blocks in each of its steps
                return text.outside + STEPS * (text.middle + text.inner * (blocks + 1))
            if kernel.window is None:  # the block on the diagonal stands outside of the loop
                return text.outside + (text.middle + text.inner) * blocks
            # The text of a block stands in two loops, and each block, the diagonal's among them, goes through one.
            return text.outside + (text.middle + text.inner) / 2 * (blocks + 1)
        case Skeleton.TOKENS_REVERSE:  # loops over a chunk's tokens, in one over chunks
            return text.outside + steps * (text.middle / share.chunk + text.inner)
        case Skeleton.STEPS_REVERSE:  # loops over chunks, and in these over steps
            return text.outside + text.middle * shape.length / share.chunk + steps * text.inner
        case _:
            return text.outside + steps * executed_in_step(text, share)


def executed_in_step(text: ByDepth, share: Share) -> float:
    """Of a step, with the loops in it as often as these run."""
    return text.middle + share.loops * text.inner
