"""The benchmark's machinery, at toy sizes in the interpreter: sides in turns, failures told, walls worked out."""

import io
import json

import pytest
import torch

from bench.interpret import interpretable
from ttrc.compiler import analyse
from ttrc.errors import TtrcError
from ttrc.runtime.load import load
from ttrc.runtime.workload import Workload, draw_inputs
from ttrc.tools import bench_report, timing
from ttrc.tools.bench import OURS, SHAPES, bench
from ttrc.tools.console import WholeConsole
from ttrc.tools.peers import Absent, Peer, load_peers
from ttrc.tools.timing import Roof
from ttrc.tools.walls import walls

PEERS = """
from contextlib import contextmanager
import torch
from ttrc.tools.peers import Absent, Peer

open_now = []

def attend(x, factor=1.0):
    q, k, v = (x[n].transpose(1, 2) for n in "qkv")
    scores = (q @ k.transpose(-1, -2)).tril() * factor * q.shape[-1] ** -0.5
    return (scores @ v).transpose(1, 2)

def crash(x):
    raise RuntimeError("no such kernel")

@contextmanager
def lifted():
    open_now.append(1)
    yield
    open_now.pop()

def refusing(x):
    assert open_now, "refused"
    return attend(x)

def peers(spec):
    return (Peer("right", attend), Peer("wrong", lambda x: attend(x, 1.5)), Peer("crashing", crash),
            Peer("ahead", lambda x: attend(x).detach()),
            Peer("refusing", refusing, refusal="a known bug", lifted=lifted),
            Peer("other", lambda x: x["v"] * 1, same=False), Absent("absent", "not installed"))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "peers.py"
    path.write_text(PEERS)
    return bench(["linear_attention"], shapes=[Workload(1, 32, 1, 16, 16)], device="cpu", peers=path)


def row(run, side, which="forward"):
    (found,) = [r for r in run.rows if (r.side, r.which) == (side, which)]
    return found


def test_every_side_has_a_row_a_pass_and_ours_is_first(run):
    assert len(run.rows) == 2 * 7 and run.rows[0].side == OURS
    assert row(run, OURS).ratio == 1.0
    assert row(run, "right").ratio == pytest.approx(row(run, "right").sample.ms / row(run, OURS).sample.ms)
    assert run.absent == ("absent: not installed",)


def test_a_fast_wrong_side_is_shown_to_be_wrong(run):
    assert max(row(run, OURS).small.values()) < 1e-5
    assert max(row(run, "right").small.values()) < 1e-5
    assert row(run, "wrong").small["o"] == pytest.approx(0.5, rel=1e-3)
    assert row(run, "wrong").large["o"] == pytest.approx(0.5, rel=1e-3)
    assert set(row(run, "right").small) == {"o", "d_q", "d_k", "d_v"}


def test_a_side_that_does_not_run_is_told_and_the_rest_go_on(run):
    assert row(run, "crashing").sample is None
    assert row(run, "crashing").notes == ("does not run: RuntimeError: no such kernel",)
    assert "no such kernel" in row(run, "crashing").small
    assert row(run, "ahead").sample is not None
    assert row(run, "ahead", "both").notes == ("does not run: RuntimeError: has no backward pass",)


def test_a_lifted_refusal_marks_the_backward_rows_only(run):
    assert row(run, "refusing", "both").notes == ("timed only: a known bug",)
    assert row(run, "refusing", "both").sample is not None
    assert row(run, "refusing").notes == ()
    assert row(run, "other").notes == ("another function",) and row(run, "other").small == {}


def test_it_is_written_as_json_plots_and_a_table(run, tmp_path):
    data, plot = bench_report.write(run, tmp_path)
    told = json.loads(data.read_text())
    assert told["device"]["torch"] == torch.__version__ and told["device"]["triton"]
    assert len(told["rows"]) == len(run.rows) and told["rows"][0]["sample"]["repeats"] == 3
    assert plot.name == "bench-linear_attention.png" and plot.stat().st_size > 5000
    table = bench_report.as_table(run)
    assert table.row_count == len(run.rows) and "mean nothing" in table.caption
    assert bench_report.geometric_means(run)["linear_attention", "right", "forward"] > 0


def test_a_piped_table_has_every_column(run):
    file = io.StringIO()
    WholeConsole(file=file, width=80).print(bench_report.as_table(run))
    text = file.getvalue()
    for column in bench_report.as_table(run).columns:
        assert f" {column.header} " in text
        assert column.overflow == "fold" or all(cell in text for cell in column.cells)
    assert "…" not in text


def test_the_field_s_shapes_are_there():
    shapes = {(s.batch, s.length, s.heads, s.d_k) for s in SHAPES["registry"]}
    assert {(1, 8192, 96, 128), (8, 2048, 32, 256), (8, 1024, 8, 64), (1, 32768, 16, 128)} <= shapes
    assert len(shapes) == 7
    assert [s.length for s in SHAPES["lengths"]] == [1024 << i for i in range(8)]
    assert [s.batch * s.heads for s in SHAPES["heads"]] == [4, 16, 32, 64, 128, 256, 512]


def test_which_wall_binds():
    module, roof = analyse(load("linear_attention").spec), Roof(bandwidth=3e12, matmul=7e14)
    wide, long = Workload(8, 4096, 64, 128, 128), Workload(1, 131072, 1, 128, 128)
    assert walls(module, wide, "forward", roof, 2).binding == "memory"
    assert walls(module, long, "forward", roof, 2).binding == "serial"
    both = walls(module, wide, "both", roof, 2)
    assert both.least < both.memory and both.ms == both.memory
    assert both.least == pytest.approx(1e3 * wide.tokens * 2816 / 3e12)


def test_calls_are_timed_in_turns(monkeypatch):
    order = []
    samples = timing.interleaved({n: lambda i, n=n: order.append((n, i)) for n in "ab"}, "cpu")
    assert order[-6:] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert samples["a"].low <= samples["a"].ms <= samples["a"].high


def test_long_inputs_repeat_a_drawn_part(monkeypatch):
    monkeypatch.setattr("ttrc.runtime.workload.PERIOD", 8)
    x = draw_inputs(load("mamba2").spec, Workload(2, 20, 3, 16, 16), torch.float16, "cpu")
    assert x["q"].shape == (2, 20, 3, 16) and x["q"].dtype == torch.float16 and x["q"].requires_grad
    assert x["dt"].shape == (2, 20, 3) and x["A"].shape == (3,) and x["dt"].dtype == torch.float32
    assert torch.equal(x["q"][:, 8:16], x["q"][:, :8]) and x["q"].is_contiguous()


def test_rules_that_must_be_given_a_state_are(monkeypatch):
    spec = load("titans").spec
    x = draw_inputs(spec, Workload(3, 20, 2, 16, 16), torch.float16, "cpu")
    assert x["initial_W1"].shape == (3, 2, 16, 64) and x["initial_M2"].dtype == torch.float32
    assert torch.equal(x["initial_W1"][0], x["initial_W1"][2])
    assert "initial_state" not in draw_inputs(load("mamba2").spec, Workload(3, 20, 2, 16, 16), torch.float16, "cpu")


@pytest.mark.parametrize("name", ("ttt_linear", "memora_linear", "entropy_delta"))
def test_a_rule_that_must_be_given_a_state_is_timed_and_compared(name):
    (ours, *_) = bench(
        [name], shapes=[Workload(2, 20, 1, 16, 16)], device="cpu", passes=("both",), against=("none",)
    ).rows
    assert ours.sample is not None, ours.notes
    assert max(ours.small.values()) < 1e-4 and ours.large["o"] < 1e-4
    assert any(n.startswith("d_initial") for n in ours.small) == (name != "memora_linear")


def test_the_checkouts_own_peers_are_found_and_name_who_is_missing(tmp_path):
    entries = load_peers()("gated_deltanet")
    assert all(isinstance(e, (Peer, Absent)) for e in entries)
    assert {e.name for e in entries} == {"fla", "flashqla", "flashinfer", "sdpa cudnn", "sdpa flash"}
    with pytest.raises(TtrcError, match="no peers file"):
        load_peers(tmp_path / "none.py")


def test_softmax_attention_runs_by_the_kernel_that_is_named():
    cudnn, flash = load_peers()("huber_delta")
    x = draw_inputs(load("linear_attention").spec, Workload(1, 8, 2, 16, 16), torch.float32, "cpu")
    scores = torch.einsum("bthd,bshd->bhts", x["q"], x["k"]) / 4
    weights = scores.masked_fill(~torch.ones(8, 8).tril().bool(), -torch.inf).softmax(-1)
    assert torch.allclose(flash.call(x), torch.einsum("bhts,bshd->bthd", weights, x["v"]), atol=1e-5)
    with pytest.raises(RuntimeError):  # there is no cuDNN for a CPU
        cudnn.call(x)
    assert not flash.same and not cudnn.same


def test_the_interpreter_is_as_before_afterwards():
    from triton.runtime import interpreter
    from triton.runtime.autotuner import Autotuner

    before = vars(Autotuner)["run"], interpreter._patch_lang, dict(vars(interpreter.InterpreterBuilder))
    with interpretable():
        assert vars(Autotuner)["run"] is not before[0]
    assert (vars(Autotuner)["run"], interpreter._patch_lang, dict(vars(interpreter.InterpreterBuilder))) == before
