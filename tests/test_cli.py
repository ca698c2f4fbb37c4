"""The command line: help, exit codes, tables and JSON, and one clear message where something is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from hostile_specs import BASE, LOSS, RETENTION, ROWS, swap
from ttrc import cli

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").is_file())
SPECS = sorted(path.stem for path in (ROOT / "specs").glob("*.toml"))
FILES = {"__init__.py", "op.py", "choices.py", "launch.py", "layout.py", "kernels.py", "reference.py"}
COMMANDS = sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands)


@pytest.fixture
def ttrc(monkeypatch, capfd, tmp_path):
    """Runs the entry point here: (exit code, stdout, stderr). Anything but SystemExit would be a traceback."""
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ttrc", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as exit:
            code = exit.code or 0
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


# Help and usage


def test_the_commands_of_the_contract_are_there():
    assert set(COMMANDS) >= {"list", "explain", "generate", "check", "compile", "schema"}


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(ttrc, command):
    code, out, err = ttrc(*([command] if command else []), "--help")
    assert code == 0 and "Usage" in out and not err


def test_help_is_quick():
    """Neither torch nor sympy stands between a user and a help text."""
    code = "import sys; from ttrc import cli; print('torch' in sys.modules or 'sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


USAGE = [
    ("frobnicate",),
    ("list", "--frobnicate"),
    ("list", "deltanet"),
    ("explain",),
    ("explain", "deltanet", "longhorn"),
    ("check",),
    ("check", "deltanet", "--device", "tpu"),
    ("check", "deltanet", "--dtype", "int8"),
    ("compile", "deltanet", "--target", "sm_1"),
    ("compile", "deltanet", "--target", "sm_90", "--width", "0"),
    ("compile", "deltanet", "--target", "sm_90", "--width", "-64"),
    ("compile", "deltanet", "--target", "sm_90", "--width", "1000"),
    ("compile", "deltanet", "--target", "sm_90", "--width", "64", "--dtype", "int4"),
    ("compile", "deltanet", "--shape", "1,2"),
    ("compile", "deltanet", "--shape", "1,8192,96,128", "--width", "64"),
    ("compile", "deltanet", "--shape", "1,8192,96,128", "--target", "gfx942"),
    ("compile", "deltanet", "--shape", "1,8192,96,128", "--dtype", "fp32"),
    ("demo", "deltanet", "--steps", "0"),
    ("explain", "gated_deltanett"),
    ("check", "no_such_rule"),
    ("explain", ""),
    ("explain", "."),
    ("explain", "specs"),
    ("explain", "no/such/file.toml"),
    ("explain", "\x1b[2J"),
    ("explain", "x" * 5000),
    ("explain", "nul\0byte"),
    ("generate", "README"),
]


@pytest.mark.parametrize("arguments", USAGE, ids=lambda a: " ".join(a)[:40].encode("unicode_escape").decode())
def test_bad_usage_is_exit_2_and_a_message(ttrc, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, err = ttrc(*arguments)
    assert code == 2 and err.strip() and not out
    assert "\x1b[2J" not in err and len(err) < 3000


def test_the_version_is_of_all_that_a_fault_may_hang_on(ttrc):
    code, out, _ = ttrc("--version")
    assert code == 0 and all(what in out for what in ("ttrc 0.", "triton ", "torch ", "device "))


def test_a_misspelt_name_gets_its_neighbour(ttrc):
    code, _, err = ttrc("explain", "gated_deltanett")
    assert code == 2 and 'did you mean "gated_deltanet"?' in err


def test_no_gpu_is_said(ttrc):
    code, out, err = ttrc("check", "deltanet", "--device", "cuda")
    assert code == 2 and "GPU" in err and len(err.strip().splitlines()) == 1


# What each command prints


def test_list(ttrc):
    code, out, err = ttrc("list")
    assert code == 0 and not err
    assert all(name in out for name in SPECS)


def test_list_as_json(ttrc):
    code, out, _ = ttrc("list", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["name"] for row in rows] == SPECS
    for row in rows:
        assert set(row["forms"]) <= {"chunk", "recurrent"} and row["exact"] is True and row["class"]
    assert [row["name"] for row in rows if "chunk" not in row["forms"]] == ["elastic_delta", "entropy_delta"]


@pytest.mark.parametrize("name", ["gated_deltanet", str(ROOT / "tests" / "unseen" / "ridge_delta.toml")])
def test_explain(ttrc, name, tmp_path):
    code, out, err = ttrc("explain", name)
    assert code == 0 and not err and "exp(g)" in out and "adjoint" in out.lower()
    code, out, _ = ttrc("explain", name, "--json")
    assert code == 0 and isinstance(json.loads(out), dict)
    page = tmp_path / "deep" / "page.html"
    code, out, err = ttrc("explain", name, "--html", page)
    text = page.read_text()
    assert code == 0 and text.lstrip().lower().startswith("<!doctype html") and "<math" in text
    assert "<script" not in text and "http://" not in text.replace("http://www.w3.org", "")


def test_schema(ttrc):
    code, out, _ = ttrc("schema")
    schema = json.loads(out)
    assert code == 0
    jsonschema.validators.validator_for(schema).check_schema(schema)
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    for path in [*(ROOT / "specs").glob("*.toml"), *(ROOT / "tests" / "unseen").glob("*.toml")]:
        jsonschema.validate(tomllib.loads(path.read_text()), schema)
    for bad in (swap('rule = "gradient"', 'rule = "sgd"'), swap("schema = 1", "schema = 2"), BASE + "x = 1\n"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tomllib.loads(bad), schema)


def test_a_rule_without_chunks_says_why(ttrc, tmp_path):
    text = (ROOT / "specs/gated_deltanet.toml").read_text().replace("exp(g)", "g").replace("log_decay", "unit")
    (tmp_path / "mine.toml").write_text(text.replace('name = "gated_deltanet"', 'name = "mine"'))
    code, _, err = ttrc("generate", "gated_deltanet", tmp_path / "mine.toml", "--out", tmp_path)
    (line,) = err.splitlines()
    assert code == 0 and line.startswith("mine runs token by token: ") and 'domain = "decay"' in line


def test_generate_writes_then_leaves_alone(ttrc, tmp_path):
    code, out, _ = ttrc("generate", "linear_attention", "--out", tmp_path / "made")
    folder = tmp_path / "made" / "linear_attention"
    assert code == 0 and "wrote" in out
    assert {p.name for p in folder.iterdir()} == FILES
    code, out, _ = ttrc("generate", "linear_attention", "--out", tmp_path / "made")
    assert code == 0 and "unchanged" in out
    assert ttrc("generate", "linear_attention", "--out", tmp_path / "made", "--check")[:2] == (0, "")


def test_a_users_own_package_is_written_where_they_are(ttrc, tmp_path, monkeypatch):
    """Never among the shipped ones, which may lie inside of an installation."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(swap('"base"', '"linear_attention"'))
    code, out, _ = ttrc("generate", "mine.toml")
    assert code == 0 and (tmp_path / "generated" / "linear_attention" / "op.py").is_file()
    code, out, _ = ttrc("generate", "linear_attention")
    assert code == 0 and out.split() == [f"{ROOT / 'generated' / 'linear_attention'}:", "unchanged"]


def test_a_stale_package_is_exit_1_and_a_diff(ttrc, tmp_path):
    ttrc("generate", "linear_attention", "--out", tmp_path)
    file = tmp_path / "linear_attention" / "kernels.py"
    file.write_text(file.read_text().replace("import triton\n", "import triton  # by hand\n"))
    before = file.read_text()
    code, out, err = ttrc("generate", "linear_attention", "--out", tmp_path, "--check")
    assert code == 1 and "-import triton  # by hand" in out and "+import triton\n" in out
    assert "stale: linear_attention" in err and file.read_text() == before
    code, _, err = ttrc("generate", "linear_attention", "--out", tmp_path / "nowhere", "--check")
    assert code == 1 and not (tmp_path / "nowhere").exists()


def test_two_specs_of_one_name_do_not_overwrite_each_other(ttrc, tmp_path):
    for folder, scale in (("a", 2), ("b", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base.toml").write_text(swap(LOSS, f'"norm2(p - v) / {scale}"'))
    code, _, err = ttrc(
        "generate", tmp_path / "a" / "base.toml", tmp_path / "b" / "base.toml", "--out", tmp_path / "out"
    )
    assert code == 2 and "base" in err and not (tmp_path / "out").exists()


def test_two_specs_of_one_name_are_compiled_each(monkeypatch):
    from ttrc.language.load import parse_spec
    from ttrc.tools import compile as tool

    def texts(jobs, on_done):
        return [tool.CompileFailure(job.kernel, job.target, Path(job.module_path).read_text()) for job in jobs]

    monkeypatch.setattr(tool, "compile_many", texts)
    specs = [parse_spec(swap(LOSS, f'"norm2(p - v) / {scale}"')) for scale in (2, 4)]
    rows = tool.compile_specs(specs, targets=("sm_90",), widths=(64,))
    assert [len({r.result.reason for r in half}) for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :])] == [1, 1]
    assert rows[0].result.reason != rows[-1].result.reason


def test_check(ttrc, monkeypatch):
    code, out, _ = ttrc("check", "linear_attention", "--dtype", "float64", "--json")
    rows = json.loads(out)
    assert code == 0 and len(rows) >= 8
    assert {row["form"] for row in rows} == {"chunk", "recurrent"} and {row["dtype"] for row in rows} == {"float64"}
    assert all(not row["failures"] and row["outputs"] and row["gradients"] for row in rows)
    code, out, _ = ttrc("check", "linear_attention", "--dtype", "float64")
    assert code == 0 and "ok" in out
    assert "linear_attention" in out, "names have to be whole in a table, piped or not"


def test_a_failed_check_is_exit_1(ttrc, monkeypatch):
    import torch

    from ttrc.runtime import verify

    monkeypatch.setitem(verify.BOUNDS, ("torch", torch.float64), (1e-30, 1e-30))
    code, out, err = ttrc("check", "linear_attention", "--dtype", "float64")
    assert code == 1 and "miss their bound" in err and "1e-30" in out


@pytest.mark.parametrize("shape", ["1,8", "0,8192,96,128", "x"])
def test_a_malformed_shape_is_one_line(ttrc, shape):
    code, out, err = ttrc("compile", "deltanet", "--shape", shape)
    assert code == 2 and not out and len(err.strip().splitlines()) == 1
    assert f"--shape: got {shape!r}, expected B,T,HV,d" in err


def compiled(*options):
    """Piped, so 80 columns; in a process of its own: no compiler of real GPUs can be had while Triton interprets."""
    environment = {n: v for n, v in os.environ.items() if n not in ("TRITON_INTERPRET", "COLUMNS")}
    command = [sys.executable, "-c", "from ttrc.cli import main; main()", "compile", "linear_attention", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_compile_prints_what_the_binaries_say():
    options = ("--target", "sm_90", "--width", "64")
    rows = json.loads(compiled(*options, "--json"))
    assert {row["kernel"] for row in rows} >= {"chunk_scan", "chunk_scan_reverse", "token_scan", "token_scan_reverse"}
    assert all(row["target"] == "sm_90" and row["width"] == 64 for row in rows)
    lines = [line.split() for line in compiled(*options).splitlines()]
    header = "kernel d target V warps stages regs spills shared blocks matrix".split()
    assert header in lines
    for row in rows:
        config = [str(row["config"][name]) for name in ("value_block", "warps", "stages")]
        figures = [str(row[name]) for name in ("registers", "spills", "shared_bytes", "blocks")]
        (line,) = [line for line in lines if line[:1] == [row["kernel"]]]
        assert line[: len(header) - 1] == [row["kernel"], "64", "sm_90", *config, *figures]
        assert all(str(n) in line for n in row["matrix_instructions"].values() if n)


def test_compile_predicts_at_a_shape():
    options = ("--target", "sm_90", "--shape", "1,32768,4,64")
    told = json.loads(compiled(*options, "--json"))
    assert {row["width"] for row in told["kernels"]} == {64}
    passes = told["predicted"]["passes"]
    assert {p["which"] for p in passes} == {"forward", "backward", "again"} and told["predicted"]["measured"] is False
    text = compiled(*options)
    assert "predicted, not measured" in text
    assert all(p["binding"] == "serial" for p in passes if p["which"] != "again")
    assert [p["held"] for p in passes if p["which"] == "again" and p["part"] == "H100 SXM"] == [64, 16]
    for p in passes:
        assert (f"{p['ms']:.3f}" in text or not p["kernels"]) and p["part"] in text
        assert p["held"] is None or f"{p['held']:,.0f} B held" in text
        for k in p["kernels"]:
            pattern = rf"{k['name']} +{k['programs']:,} +{k['blocks']} +{k['waves']:.2f} .*{k['binding']}"
            assert re.search(pattern, text)


# Files


UNWRITABLE = [
    ("generate", "linear_attention", "--out", "{file}"),
    ("generate", "linear_attention", "--out", "{file}/deeper"),
    ("explain", "linear_attention", "--html", "{folder}"),
    ("explain", "linear_attention", "--html", "{file}/page.html"),
]


@pytest.mark.parametrize("arguments", UNWRITABLE, ids=" ".join)
def test_a_place_that_cannot_be_written_is_a_message(ttrc, tmp_path, arguments):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    given = [a.format(file=tmp_path / "file", folder=tmp_path / "folder") for a in arguments]
    code, out, err = ttrc(*given)
    assert code == 2 and len(err.strip().splitlines()) == 1 and not out
    assert (tmp_path / "file").read_text() == "kept"


def test_a_cache_that_cannot_be_written_is_a_message(ttrc, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "mine.toml").write_text(BASE)
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path / "file"))
    code, out, err = ttrc("check", tmp_path / "mine.toml", "--dtype", "float64")
    assert code == 2 and "TTRC_CACHE" in err and not out


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -c 'from ttrc.cli import main; main()' schema | head -c 10"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == '{\n  "$schem'[:10] or len(done.stdout) == 10
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr


# Bad and hostile specs


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_hostile_spec_is_exit_2_one_message_and_nothing_written(ttrc, tmp_path, monkeypatch, row):
    path = tmp_path / "hostile.toml"
    path.write_bytes(row.spec if isinstance(row.spec, bytes) else row.spec.encode())
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    code, out, err = ttrc("generate", path, "--out", tmp_path / "made")
    assert code == 2 and not out
    assert 1 <= len(err.strip().splitlines()) <= 5 and err.startswith(str(path)[:40])
    assert all(" " <= c <= "~" for c in err.replace("\n", ""))
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != "cache"}
    assert after == before


@pytest.mark.parametrize("command", ["explain", "check", "compile"])
def test_every_command_refuses_the_same_way(ttrc, tmp_path, command):
    path = tmp_path / "bad.toml"
    path.write_text(swap(LOSS, '"norm2(p - vv)"'))
    code, out, err = ttrc(command, path)
    assert code == 2 and not out and 'unknown name "vv"' in err and 'did you mean "v"?' in err
    assert not (tmp_path / "cache").exists()


def test_one_bad_spec_among_good_ones_stops_all(ttrc, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(swap(RETENTION, '"norm2(S - exp(g) * S_prev)**2"'))
    code, out, err = ttrc("generate", "linear_attention", path, "--out", tmp_path / "made")
    assert code == 2 and "couples the elements of S" in err
    assert not (tmp_path / "made").exists()
