"""One kernel, compiled in this process for a GPU that is not there, and its binary read."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ttrc.errors import TtrcError
from ttrc.tools.resources import Resources, chip
from ttrc.tools.wavefronts import wavefronts

ALIGNMENT = 16
# Place, instruction, its operation, and of a branch where to.
SASS_LINE = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(([A-Z]\w*)(?:[^;\n]*\b0x([0-9a-f]+)\s*(?=;)|[^;\n]*))"
)
SASS_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
AMD_LINE = re.compile(r"^\t([a-z]\w+)", re.MULTILINE)


Line = tuple[int, str, Optional[int]]  # place, operation, and of a branch where to


def compile_here(
    fn,
    signature: Mapping[str, str],
    constexprs: Mapping[str, object],
    target: str,
    num_warps: int,
    num_stages: int,
    divisible: Sequence[str],
    maxnreg: Optional[int] = None,
) -> Resources:
    limits = chip(target)
    if not isinstance(fn, JITFunction):
        raise TtrcError(
            "only a @triton.jit function can be compiled, and not one made under TRITON_INTERPRET=1: "
            "use compile_many, which starts processes without it"
        )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    if limits.backend == "cuda":
        options["maxnreg"] = maxnreg
    compiled = triton.compile(
        _source(fn, signature, constexprs, divisible),
        target=GPUTarget(limits.backend, limits.arch, limits.warp_size),
        options=options,
    )
    shared = compiled.metadata.shared
    if limits.backend == "hip":
        return amd_resources(compiled.asm["amdgcn"], shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _cuobjdump("--dump-resource-usage", cubin.name)
        return nvidia_resources(usage, _cuobjdump("--dump-sass", cubin.name), shared)


def _source(fn: JITFunction, signature, constexprs, divisible) -> ASTSource:
    given = {*signature, *constexprs}
    if given != set(fn.arg_names) or len(given) != len(signature) + len(constexprs):
        wrong = sorted(given ^ set(fn.arg_names)) or sorted(set(signature) & set(constexprs))
        raise TtrcError(f"the arguments of {fn.__name__} are missing, unknown or given twice: {', '.join(wrong)}")
    types = {name: signature.get(name, "constexpr") for name in fn.arg_names}
    attrs = {}
    for index, (name, kind) in enumerate(types.items()):
        if kind.startswith("*") or name in divisible:
            attrs[index,] = [["tt.divisibility", ALIGNMENT]]
        elif isinstance(constexprs.get(name), str):
            attrs[index,] = []  # says nothing, but a launch does so too: then both find one another's binary
    return ASTSource(fn, types, dict(constexprs), attrs)


def _cuobjdump(option: str, path: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def nvidia_resources(usage: str, sass: str, shared: int) -> Resources:
    """From the text of `cuobjdump --dump-resource-usage` and `--dump-sass`."""
    found = SASS_USAGE.search(usage)
    if found is None:
        raise TtrcError(f"cuobjdump told no registers: {usage.strip() or 'no output'}")
    places = [place for place in SASS_LINE.findall(sass) if place[2] != "NOP"]
    lines = [(int(at, 16), name, int(to, 16) if to else None) for at, _, name, to in places]
    depths, held = _depths(lines), [wavefronts(text) for _, text, _, _ in places]
    looped = Counter(name for (_, name, _), depth in zip(lines, depths) if depth)
    operations = Counter(name for _, name, _ in lines)
    return Resources(
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        spill_loads=operations["LDL"],
        spill_stores=operations["STL"],
        shared_bytes=shared,
        matrix_instructions={name: n for name, n in sorted(operations.items()) if name.endswith("MMA")},
        instructions=operations.total(),
        looped=looped.total(),
        looped_spills=looped["LDL"] + looped["STL"],
        inner=sum(depth > 1 for depth in depths),
        wavefronts=sum(held),
        looped_wavefronts=sum(n for n, depth in zip(held, depths) if depth),
        inner_wavefronts=sum(n for n, depth in zip(held, depths) if depth > 1),
    )


def loops_in(lines: Iterable[Line]) -> list[tuple[int, int]]:
    """First and last place of each loop: what a branch jumps back over."""
    return [(to, at) for at, name, to in lines if name == "BRA" and to is not None and to < at]


def _depths(lines: list[Line]) -> list[int]:
    """In how many loops, one within the other, each line stands."""
    loops = loops_in(lines)
    return [sum(first <= at <= last for first, last in loops) for at, _, _ in lines]


def amd_resources(assembly: str, shared: int) -> Resources:
    """From AMD assembly text, with the metadata at its end. Registers are vector ones, accumulators included."""

    def metadata(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        if found is None:
            raise TtrcError(f"the AMD assembly has no .{key}")
        return int(found[1])

    operations = Counter(AMD_LINE.findall(assembly))
    return Resources(
        registers=metadata("vgpr_count"),
        stack_bytes=metadata("private_segment_fixed_size"),
        spill_loads=sum(n for name, n in operations.items() if name.startswith("scratch_load")),
        spill_stores=sum(n for name, n in operations.items() if name.startswith("scratch_store")),
        shared_bytes=shared,
        matrix_instructions={name: n for name, n in sorted(operations.items()) if name.startswith("v_mfma")},
        instructions=sum(n for name, n in operations.items() if name != "s_nop"),
    )
