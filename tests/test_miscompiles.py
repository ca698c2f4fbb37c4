"""What Triton is known to get wrong: which faults are told, and that their probes see wrong code."""

import pytest
import torch

from ttrc import cli
from ttrc.runtime.verify import Result
from ttrc.tools import check, miscompiles, probes
from ttrc.tools.miscompiles import FAULTS, Finding, as_lines, find, known, parse_version
from ttrc.tools.offline import Job, compile_many

HOPPER, B200, B300, AMPERE = (9, 0), (10, 0), (10, 3), (8, 0)


def sources(version, chip):
    return [fault.source for fault in known(version, chip)]


@pytest.mark.parametrize(
    ("version", "chip", "told"),
    [
        ("3.6.0", HOPPER, ["fla #640, #826", "triton #11366", "fla #984"]),
        ("3.7.0", HOPPER, ["fla #640, #826", "triton #11366", "fla #984"]),
        ("3.7.1+git1234", HOPPER, ["triton #11366", "fla #984"]),
        ("3.8.0", HOPPER, ["fla #984"]),
        ("3.3.1", HOPPER, []),
        ("3.6.0", B200, ["fla #1228"]),
        ("3.6.0", B300, ["fla #1228", "triton #10821"]),
        ("3.8.0", B200, []),
        ("3.6.0", AMPERE, []),
    ],
)
def test_a_fault_is_told_for_its_versions_and_chips(version, chip, told):
    assert sources(version, chip) == told


def test_versions_are_compared_as_numbers():
    assert parse_version("3.10.0") > parse_version("3.7.1") > parse_version("3.7.0+git9999")


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.probe], ids=lambda f: f.source)
def test_right_code_passes_its_probe(fault):
    """Here Triton's interpreter runs it."""
    assert fault.probe("cpu") is False
    version = ".".join(map(str, fault.since))
    assert Finding(fault, False) in find(version, fault.chips[0], "cpu")


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.probe], ids=lambda f: f.source)
@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_wrong_code_does_not(fault, wrong, monkeypatch):
    """One row of one result is off: a quarter of what a transposed block too many would do."""

    class Miscompiled:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def run(*arguments, **options):
                self.kernel[grid](*arguments, **options)
                made = [a for a in arguments if isinstance(a, torch.Tensor)][3]
                if options["num_warps"] == 8:
                    made[16:32] *= wrong

            return run

    for name in ("turned_kernel", "chained_kernel"):
        monkeypatch.setattr(probes, name, Miscompiled(getattr(probes, name)))
    assert fault.probe("cpu") is True


def test_probes_compile_for_their_chips_to_matrix_instructions():
    inputs = {"a": "*bf16", "b": "*bf16", "x": "*bf16", "y": "*fp32", "steps": "i32"}
    turned = (inputs | {"z": "*fp32"}, {"SIZE": probes.SIZE, "WIDTH": 64})
    jobs = [
        Job(probes.__file__, "turned_kernel", *turned, "sm_90"),
        Job(probes.__file__, "chained_kernel", inputs, {"SIZE": probes.SIZE}, "sm_100"),
    ]
    for made, instruction in zip(compile_many(jobs), ("HGMMA", "UTCHMMA"), strict=True):
        assert made.matrix_instructions.get(instruction), made


def test_the_verdict_rests_on_the_probe_and_else_on_the_comparisons():
    probed, blind = (next(f for f in FAULTS if bool(f.probe) is has) for has in (True, False))
    lines = as_lines(
        "Triton 3.6.0 on a chip", [Finding(probed, True), Finding(probed, False), Finding(blind, None)], 9, 0
    )
    assert lines[0] == "Triton 3.6.0 on a chip is known to miscompile:"
    assert "HIT: a probe of it is wrong here; 9 of 9" in lines[1] and "until 3.7.1" in lines[1]
    assert "not hit: a probe of it is right here" in lines[2]
    assert lines[3].endswith("not hit: 9 of 9 comparisons of these kernels are right")
    (_, line) = as_lines("here", [Finding(blind, None)], 9, 2)
    assert line.endswith("perhaps hit: 7 of 9 comparisons of these kernels are right")
    assert "not known to miscompile" in as_lines("here", [], 9, 0)[0]


def test_check_on_a_gpu_says_it(monkeypatch, capfd):
    """As on a Hopper with Triton 3.6, the kernels themselves being interpreted."""
    monkeypatch.setattr("sys.argv", ["ttrc", "check", "linear_attention", "--device", "cuda", "--json"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: HOPPER)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr("triton.__version__", "3.6.0")
    monkeypatch.setattr(miscompiles, "find", lambda version, chip, device: find(version, chip, "cpu"))
    case = check.Case(B=1, T=4, d_k=4, d_v=4)
    monkeypatch.setattr(check, "plan", lambda op, device, dtype: [("recurrent", "triton", torch.float32, case)])

    def fails(*_, **__):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(check, "verify", fails)
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capfd.readouterr()
    assert end.value.code == 1 and "RuntimeError: an illegal memory access" in out
    assert "Triton 3.6.0 on NVIDIA H100 (sm_90) is known to miscompile:" in err
    assert "(fla #640, #826, until 3.7.1): not hit: a probe of it is right here; 0 of 1 comparisons" in err
    assert "(fla #984, not mended yet): perhaps hit" in err

    monkeypatch.setattr(check, "verify", lambda *_, **__: Result({"o": 0.0}, {"d_q": 0.0}, (1.0, 1.0)))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and "perhaps" not in capfd.readouterr().err
