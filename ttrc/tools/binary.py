"""One kernel, compiled in this process for a GPU that is not there, and its binary read."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ttrc.errors import TtrcError
from ttrc.tools.resources import Resources, chip

ALIGNMENT = 16
SASS_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)")
SASS_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
SASS_PLACE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)([^;]*);")
SASS_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
AMD_LINE = re.compile(r"^\t([a-z]\w+)", re.MULTILINE)


def compile_here(
    fn,
    signature: Mapping[str, str],
    constexprs: Mapping[str, object],
    target: str,
    num_warps: int,
    num_stages: int,
    divisible: Sequence[str],
) -> Resources:
    limits = chip(target)
    if not isinstance(fn, JITFunction):
        raise TtrcError(
            "only a @triton.jit function can be compiled, and not one made under TRITON_INTERPRET=1: "
            "use compile_many, which starts processes without it"
        )
    compiled = triton.compile(
        _source(fn, signature, constexprs, divisible),
        target=GPUTarget(limits.backend, limits.arch, limits.warp_size),
        options={"num_warps": num_warps, "num_stages": num_stages},
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
    attrs = {
        (index,): [["tt.divisibility", ALIGNMENT]]
        for index, (name, kind) in enumerate(types.items())
        if kind.startswith("*") or name in divisible
    }
    return ASTSource(fn, types, dict(constexprs), attrs)


def _cuobjdump(option: str, path: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def nvidia_resources(usage: str, sass: str, shared: int) -> Resources:
    """From the text of `cuobjdump --dump-resource-usage` and `--dump-sass`."""
    found = SASS_USAGE.search(usage)
    if found is None:
        raise TtrcError(f"cuobjdump told no registers: {usage.strip() or 'no output'}")
    operations = Counter(SASS_LINE.findall(sass))
    del operations["NOP"]
    return Resources(
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        spill_loads=operations["LDL"],
        spill_stores=operations["STL"],
        shared_bytes=shared,
        matrix_instructions={name: n for name, n in sorted(operations.items()) if name.endswith("MMA")},
        instructions=operations.total(),
        inner_instructions=_in_inner_loops(sass),
    )


def _in_inner_loops(sass: str) -> int:
    """How many instructions stand in loops inside of loops. A loop is what a branch jumps back over."""
    places = [(int(at, 16), name, rest) for at, name, rest in SASS_PLACE.findall(sass)]
    jumps = [
        (int(found[1], 16), at) for at, name, rest in places if name == "BRA" if (found := SASS_TARGET.search(rest))
    ]
    loops = [(start, end) for start, end in jumps if start < end]
    inner = [x for x in loops if any(y[0] <= x[0] and x[1] <= y[1] and x != y for y in loops)]
    return sum(name != "NOP" and any(start <= at <= end for start, end in inner) for at, name, _ in places)


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
