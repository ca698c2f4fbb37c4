"""What a plan must take on a GPU that is not here: arithmetic by hand, refusals, and the benchmark's own walls."""

import importlib
import json
import math

import pytest
import torch

from ttrc.compiler import analyse
from ttrc.errors import TtrcError
from ttrc.ir.config import CHUNK, DEFAULTS
from ttrc.runtime.load import load
from ttrc.runtime.workload import Workload, draw_inputs, programs, segment_count
from ttrc.tools import predict as tool
from ttrc.tools.compile import Row
from ttrc.tools.offline import CompileFailure
from ttrc.tools.predict import NoPrediction, parse_shape, predict
from ttrc.tools.resources import PARTS, Part, Resources, parts
from ttrc.tools.timing import Roof
from ttrc.tools.walls import PRODUCT_SECONDS, STEP_SECONDS, walls

MODULE = analyse(load("gated_deltanet").spec)
FEW, MANY = Workload(1, 32768, 4, 128, 128), Workload(8, 2048, 96, 128, 128)
CLEAN = Resources(128, 0, 0, 0, 64 * 1024, {}, 1000)  # three programs of four warps a multiprocessor of sm_90


def rows(results=None, target="sm_90", width=128, module=MODULE):
    made = []
    for form in module.forms.values():
        for kernel in form.plan.kernels:
            config, result = kernel.config(form.plan.chunk, width, width), (results or {}).get(kernel.name, CLEAN)
            made.append(Row(module, form.name, kernel.name, width, target, config, result))
    return made


def on(part, which, shape, **given):
    return in_schedule("fused", part, which, shape, **given)


def in_schedule(schedule, part, which, shape, **given):
    made = predict(rows(**given), shape, "bf16")
    (found,) = [p for p in made if (p.part, p.which, p.schedule) == (part, which, schedule)]
    return found


def kernel(prediction, name):
    (found,) = [k for k in prediction.kernels if k.name == name]
    return found


def test_the_walls_are_those_of_the_benchmark():
    part = PARTS["H100 SXM"]
    ahead, back = (on("H100 SXM", which, FEW) for which in ("forward", "backward"))
    bench = walls(MODULE, FEW, "both", Roof(part.bandwidth, part.matmul), 2)
    for wall in ("memory", "matrix", "serial", "least"):  # FEW fits on the chip at once, as bench assumes
        assert getattr(ahead.walls, wall) + getattr(back.walls, wall) == pytest.approx(getattr(bench, wall)), wall
    assert part.bandwidth == pytest.approx(3.0e12) and part.matmul == pytest.approx(750e12)


def test_few_heads_wait_for_the_chain_and_many_for_memory():
    few, many = on("H100 SXM", "forward", FEW), on("H100 SXM", "forward", MANY)
    assert few.walls.binding == kernel(few, "chunk_scan").walls.binding == "serial"
    assert kernel(many, "chunk_prepare").walls.binding == "memory"
    assert few.ms == pytest.approx(sum(k.walls.ms for k in few.kernels)) and few.ms >= few.walls.ms


def test_programs_fill_the_chip_in_waves():
    scan = kernel(on("H100 SXM", "forward", FEW), "chunk_scan")
    panels = 128 // DEFAULTS["chunk_scan"][128].value_block
    assert (scan.programs, scan.blocks, scan.steps) == (4 * panels, 3, 512)
    assert scan.waves == pytest.approx(4 * panels / (3 * 132)) and scan.waves < 1
    assert scan.walls.serial == pytest.approx(1e3 * 512 * scan.step_us * 1e-6)
    crowded = kernel(on("H100 SXM", "forward", MANY), "chunk_scan")
    assert crowded.waves == pytest.approx(8 * 96 * panels / (3 * 132))
    assert crowded.walls.serial == pytest.approx(1e-3 * 32 * crowded.step_us * math.ceil(crowded.waves))
    prepare = kernel(on("H100 SXM", "forward", FEW), "chunk_prepare")
    assert (prepare.programs, prepare.steps, prepare.walls.serial) == (4 * 512, 0, 0.0)


@pytest.mark.parametrize(
    ("name", "form", "shape"),
    [
        ("gated_deltanet", "chunk", Workload(2, 70, 3, 16, 40)),
        ("gated_deltanet", "recurrent", Workload(2, 70, 3, 16, 40)),
        ("mesanet", "chunk", Workload(1, 16, 2, 70, 16)),  # two blocks of rows, one of them without a token
    ],
)
def test_the_grids_are_those_that_are_launched(monkeypatch, name, form, shape):
    op, seen = load(name), {}
    kernels = importlib.import_module(f"{op.package.__name__}.kernels")

    class Watched:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(kernels, name)

        def __getitem__(self, grid):
            seen[self.name] = math.prod(grid)
            return self.kernel[grid]

    plan = analyse(op.spec).forms[form].plan
    planned = (*plan.forward, *plan.backward)
    for k in planned:
        monkeypatch.setattr(kernels, k.name, Watched(k.name))
    x = draw_inputs(op.spec, shape, torch.float32, "cpu")
    op(**x, form=form, backend="triton")[0].sum().backward()
    assert seen == {k.name: programs(k, k.config(CHUNK, shape.d_k, shape.d_v), shape) for k in planned}


def test_segments_shorten_the_chain_of_few_heads_and_cost_many_heads_more():
    few = {s: in_schedule(s, "H100 SXM", "forward", FEW) for s in ("fused", "split", "segments")}
    many = {s: in_schedule(s, "H100 SXM", "forward", MANY) for s in ("fused", "split", "segments")}
    assert few["segments"].walls.serial < few["fused"].walls.serial / 2 and few["segments"].ms < few["fused"].ms
    assert many["segments"].walls.memory > many["fused"].walls.memory
    assert many["split"].walls.memory > many["fused"].walls.memory
    blocks = -(-128 // DEFAULTS["chunk_scan"][128].value_block)
    pieces = segment_count(4 * blocks, 512, 132)
    join = kernel(few["segments"], "join_segments")
    assert join.steps == pieces and join.programs == 4 * blocks
    scans = [k for k in few["segments"].kernels if k.name == "chunk_scan"]
    assert {(k.steps, k.programs) for k in scans} == {(math.ceil(512 / pieces), 4 * blocks * pieces)}


def test_what_is_made_again_takes_the_longer_the_less_is_held():
    """Of few heads too: states are made again by stretches of a sequence that run side by side."""
    for shape in (FEW, MANY):
        rows_of = [in_schedule(cut, "H100 SXM", "again", shape) for cut in ("all", "scanned", "sparse")]
        assert [p.held for p in rows_of] == [2 * 64 * 2 + 2 * 128 * 128 / 64, 2 * 128 * 128 / 64, 4 * 128 * 128 / 512]
        assert [len(p.kernels) for p in rows_of] == [0, 1, 2] and rows_of[0].ms == 0
        assert 0 < rows_of[1].ms < rows_of[2].ms
        scan = kernel(rows_of[2], "chunk_scan")
        assert scan.steps == 8 and scan.programs == shape.batch * shape.heads * 4 * shape.length // (8 * CHUNK)
    ahead = in_schedule("fused", "H100 SXM", "forward", FEW)
    assert rows_of[2].ms < ahead.ms or rows_of[2].walls.serial < ahead.walls.serial


def test_an_occupancy_that_halves_shows():
    worse = CLEAN.__class__(**vars(CLEAN) | {"shared_bytes": 150 * 1024})
    before, after = (
        kernel(on("H100 SXM", "forward", MANY, results=given), "chunk_scan") for given in ({}, {"chunk_scan": worse})
    )
    assert after.blocks == 1 and after.waves == pytest.approx(3 * before.waves)
    assert after.walls.serial > 2 * before.walls.serial


def test_a_step_takes_what_its_products_take_where_that_is_more(monkeypatch):
    monkeypatch.setitem(PARTS, "H100 SXM", Part("sm_90", 132, 1.83e9, 3.35e12, 1e12, 50 * 10**6))
    scan = kernel(on("H100 SXM", "forward", FEW), "chunk_scan")
    assert scan.step_us > 2e6 * STEP_SECONDS
    assert scan.walls.serial > scan.walls.matrix  # a few multiprocessors do what the whole chip could


def test_a_step_takes_what_its_instructions_take_where_that_is_more():
    long = CLEAN.__class__(**vars(CLEAN) | {"instructions": 6500, "looped": 6000})
    for shape, at_once in ((FEW, 1), (MANY, 3)):
        found = on("H100 SXM", "forward", shape, results={"chunk_scan": long, "chunk_prepare": long})
        warps = DEFAULTS["chunk_scan"][128].warps
        assert kernel(found, "chunk_scan").step_us == pytest.approx(at_once * 6000 * warps / 4 / 1830)
        assert kernel(found, "chunk_prepare").walls.serial == 0


def test_a_step_takes_what_the_products_in_its_chain_take_where_that_is_more():
    """A substitution goes row by row: beside the products there is a chain of instructions."""
    op = load("huber_delta")
    blocks, row = CHUNK // 16, {"forward": 5, "backward": 3}  # instructions that wait for one another from row to row
    for which, name in (("forward", "chunk_scan_nonlinear"), ("backward", "chunk_scan_reverse_nonlinear")):
        found = kernel(on("H100 SXM", which, MANY, module=analyse(op.spec)), name)
        chain = 0.4 * blocks + CHUNK * row[which] * 4 / 1750
        assert 0.4 * 4 + chain == pytest.approx(found.step_us, rel=0.01)
        assert found.step_us < 2 * 1e6 * STEP_SECONDS  # at most twice the squared loss's
    assert op.package.choices.ROOF.product == PRODUCT_SECONDS  # the operator's own cost model
    assert kernel(on("H100 SXM", "forward", FEW), "chunk_scan").step_us == pytest.approx(1e6 * STEP_SECONDS)


def issued(found, name, instructions):
    """Whether a kernel's wall of instructions is that of so many a warp."""
    one = kernel(found, name)
    plan, planned = next((f.plan, k) for f in MODULE.forms.values() for k in f.plan.kernels if k.name == name)
    cycles = one.programs * planned.config(plan.chunk, 128, 128).warps * instructions / 4
    return one.walls.issue == pytest.approx(1e3 * cycles / (132 * 1.83e9))


def test_what_a_kernel_issues_is_its_text_with_its_loops_as_often_as_they_run():
    text = CLEAN.__class__(**vars(CLEAN) | {"instructions": 2300, "looped": 2000, "inner": 0})
    given = dict.fromkeys(("chunk_prepare", "chunk_scan", "chunk_scan_reverse", "chunk_gradients"), text)
    ahead, back = (on("H100 SXM", which, MANY, results=given) for which in ("forward", "backward"))
    assert issued(ahead, "chunk_prepare", 300 + 15 * 2000)  # the rows of the inverse's diagonal blocks
    assert issued(ahead, "chunk_scan", 300 + 2048 // CHUNK * 2000)
    panels = 128 // DEFAULTS["chunk_gradients"][128].value_block
    assert issued(back, "chunk_gradients", 300 + panels * 2000)
    assert kernel(back, "chunk_gradients").walls.binding == "issue" != kernel(back, "chunk_scan_reverse").walls.binding
    assert back.walls.issue == pytest.approx(sum(k.walls.issue for k in back.kernels))


def test_what_load_store_units_pass_is_counted_as_instructions_are_and_four_times_as_slow():
    """One wavefront a cycle, where four schedulers issue an instruction each."""
    named = dict.fromkeys(("chunk_prepare", "chunk_scan", "chunk_scan_reverse", "chunk_gradients"))
    text = CLEAN.__class__(**vars(CLEAN) | {"instructions": 2300, "looped": 2000, "inner": 500})
    moves = {"wavefronts": 2300.0, "looped_wavefronts": 2000.0, "inner_wavefronts": 500.0}
    both = text.__class__(**vars(text) | moves)
    for which in ("forward", "backward"):
        found, none = (on("H100 SXM", which, MANY, results=dict.fromkeys(named, given)) for given in (both, text))
        for one, without in zip(found.kernels, none.kernels, strict=True):
            assert one.walls.load_store == pytest.approx(4 * one.walls.issue) and one.walls.issue == without.walls.issue
            assert without.walls.load_store == 0 and one.walls.binding in ("load_store", "serial")
        assert found.walls.load_store == pytest.approx(sum(k.walls.load_store for k in found.kernels))
        assert found.ms > none.ms


def test_a_step_takes_what_its_loads_and_stores_take_where_that_is_more():
    moves = {"wavefronts": 2600.0, "looped_wavefronts": 2400.0}
    busy = CLEAN.__class__(**vars(CLEAN) | {"instructions": 6500, "looped": 6000} | moves)
    for shape, at_once in ((FEW, 1), (MANY, 3)):
        found = on("H100 SXM", "forward", shape, results={"chunk_scan": busy})
        warps = DEFAULTS["chunk_scan"][128].warps
        assert kernel(found, "chunk_scan").step_us == pytest.approx(at_once * 2400 * warps / 1830)


def test_loops_over_the_blocks_of_a_step_count_once_a_block():
    long = CLEAN.__class__(**vars(CLEAN) | {"instructions": 2100, "looped": 2000, "inner": 1000})
    module = analyse(load("huber_delta").spec)
    found = kernel(
        on("H100 SXM", "forward", MANY, results={"chunk_scan_nonlinear": long}, module=module), "chunk_scan_nonlinear"
    )
    warps = DEFAULTS["chunk_scan_nonlinear"][128].warps
    assert found.step_us == pytest.approx(3 * (2000 + (CHUNK // 16 - 1) * 1000) * warps / 4 / 1830)


def test_traffic_that_the_cache_holds_is_marked():
    small = Workload(1, 1024, 4, 128, 128)
    assert all(k.in_l2 for k in on("H100 SXM", "forward", small).kernels)
    assert not any(k.in_l2 for k in on("H100 SXM", "forward", MANY).kernels)


def test_every_part_of_a_target_has_both_passes():
    found = [(p.part, p.schedule, p.which) for p in predict(rows(), FEW, "bf16")]
    schedules, passes = ("fused", "split", "segments"), ("forward", "backward")
    kept = [(cut, "again") for cut in ("all", "scanned", "sparse")]
    each = [(s, which) for s in schedules for which in passes] + kept
    assert found == [(part, *row) for part in ("H100 SXM", "H200 SXM") for row in each]
    assert {part.target for part in PARTS.values()} == set(tool.TARGETS)
    wide = on("H200 SXM", "forward", MANY).walls, on("H100 SXM", "forward", MANY).walls
    assert wide[0].memory < wide[1].memory and wide[0].matrix == wide[1].matrix


def test_a_kernel_that_cannot_run_leaves_its_pass_without_figures():
    failed = CompileFailure("chunk_scan", "sm_90", "no")
    huge = Resources(128, 0, 0, 0, 300 * 1024, {}, 1000)
    found = predict(rows({"chunk_scan": failed, "chunk_gradients": huge}), FEW, "bf16")
    assert [type(p) for p in found if p.which != "again"] == [NoPrediction] * 12
    assert found[0].reason == "chunk_scan does not compile"
    assert found[1].reason == "chunk_gradients does not fit on a multiprocessor"
    assert [type(p) for p in found if p.schedule == "sparse"] == [NoPrediction] * 2


def test_the_data_say_that_nothing_was_measured():
    data = json.loads(json.dumps(tool.as_data(predict(rows(), FEW, "bf16"), FEW), allow_nan=False))
    assert data["measured"] is False and data["shape"]["length"] == 32768
    entry = data["passes"][0]
    walls = {"memory", "matrix", "issue", "load_store", "serial", "least"}
    assert entry["binding"] == "serial" and set(entry["walls"]) == walls
    assert {"programs", "blocks", "waves", "steps", "step_us", "walls", "ms", "binding"} <= set(entry["kernels"][0])
    assert "not measured" in tool.as_table(predict(rows(), FEW, "bf16"), FEW).title


def test_shapes():
    assert parse_shape("1,8192,96,128") == Workload(1, 8192, 96, 128, 128)
    assert parse_shape(" 1, 8192, 96, 128 ") == Workload(1, 8192, 96, 128, 128)


@pytest.mark.parametrize(
    "text",
    ["", "1", "1,2,3", "1,2,3,4,5", "0,1,1,1", "-1,1,1,1", "1x2x3x4", "a,b,c,d", "1,1,1,1.5", "1,1,1,٣", "9" * 50],
)
def test_a_malformed_shape_is_told_what_was_expected(text):
    with pytest.raises(TtrcError, match=r"--shape: got .*, expected B,T,HV,d: .* as in 1,8192,96,128$"):
        parse_shape(text)


def test_what_has_no_figures_is_refused():
    with pytest.raises(TtrcError, match="known here for gfx942: expected one of sm_80, sm_90, sm_100"):
        parts("gfx942")
    with pytest.raises(TtrcError, match="unknown target"):
        parts("sm_1")
    with pytest.raises(TtrcError, match="at most 256"):
        parse_shape("1,1,1,257")
