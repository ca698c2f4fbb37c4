"""A user's spec is compiled once, into a folder of its own, whoever asks and however many at once."""

import multiprocessing
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

import ttrc
from ttrc.language.load import parse_spec
from ttrc.runtime import cache
from ttrc.runtime.load import import_package
from ttrc.runtime.operator import Operator
from ttrc.runtime.verify import Case, verify
from ttrc.sampling import random_inputs

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").is_file())
TEXT = (ROOT / "tests" / "unseen" / "half_hebbian.toml").read_text()
FILES = {"__init__.py", "op.py", "choices.py", "launch.py", "layout.py", "kernels.py", "reference.py"}
SMALL = Case(B=1, T=5, H=1, HV=1, d_k=3, d_v=2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compilations(monkeypatch):
    """The specs that were compiled, in order."""
    seen, real = [], cache.generate
    monkeypatch.setattr(cache, "generate", lambda spec: seen.append(spec.name) or real(spec))
    return seen


def right(op):
    return not verify(op, SMALL, form="recurrent", backend="torch", dtype=torch.float64).failures


def named(name, text=TEXT):
    return text.replace('name = "half_hebbian"', f'name = "{name}"')


def test_a_spec_is_compiled_on_first_use_alone(folder, compilations, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(named("first_use"))
    assert right(ttrc.load(path))
    assert compilations == ["first_use"]
    (made,) = folder.iterdir()
    assert made.name.startswith("first_use-")
    assert {p.name for p in made.glob("*.py")} == FILES
    stamps = {p: p.stat().st_mtime_ns for p in made.glob("*.py")}
    assert right(ttrc.load(str(path))) and right(ttrc.load(parse_spec(named("first_use"))))
    assert compilations == ["first_use"]
    assert stamps == {p: p.stat().st_mtime_ns for p in made.glob("*.py")}


def test_a_shipped_spec_is_never_compiled(folder, compilations):
    assert right(ttrc.load("deltanet")) and right(ttrc.load(ROOT / "specs" / "longhorn.toml"))
    assert not compilations and not folder.exists()


def test_an_edited_shipped_spec_never_runs_the_shipped_kernels(folder, compilations, tmp_path):
    shipped = (ROOT / "specs" / "deltanet.toml").read_text()
    edited = tmp_path / "deltanet.toml"
    edited.write_text(shipped.replace("norm2(p - v) / 2", "norm2(p - v) / 4"))
    op = ttrc.load(edited)
    assert compilations == ["deltanet"]
    assert Path(op.package.__file__).is_relative_to(folder)
    x = random_inputs(op.spec, B=1, T=9, H=1, HV=1, dk=4, dv=4)
    half = x | {"beta": x["beta"] / 2}
    torch.testing.assert_close(op(**x, form="reference")[0], ttrc.load("deltanet")(**half, form="reference")[0])
    assert right(op) and right(ttrc.load("deltanet"))


def test_one_name_and_two_texts_live_side_by_side(folder):
    one = ttrc.load(parse_spec(named("twin")))
    two = ttrc.load(parse_spec(named("twin").replace("dot(p, v)/4", "dot(p, v)/2")))
    assert len(list(folder.iterdir())) == 2
    for op in (one, two, one):
        assert right(op)
    x = random_inputs(one.spec, B=1, T=20, H=1, HV=1, dk=4, dv=4)
    outputs = [op(**x)[0] for op in (one, two, one)]
    assert torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[1])


def test_one_text_in_two_caches_is_one_rule(folder, monkeypatch, tmp_path):
    one = ttrc.load(parse_spec(named("moved")))
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path / "elsewhere"))
    two = ttrc.load(parse_spec(named("moved")))
    assert right(one) and right(two) and right(one)


def test_a_package_of_the_same_text_never_runs_in_anothers_place(folder, tmp_path):
    """A copy that someone vendored, and perhaps changed since, beside the compiled one: each runs its own code."""
    op = ttrc.load(parse_spec(named("vendored")))
    x = random_inputs(op.spec, B=1, T=20, H=1, HV=1, dk=4, dv=4)
    before = op(**x, form="chunk", backend="torch")[0]
    copy = tmp_path / "vendored"
    shutil.copytree(Path(op.package.__file__).parent, copy)
    text = (copy / "reference.py").read_text()
    old = "return heads_last(o, v.shape[2])"
    assert old in text
    (copy / "reference.py").write_text(text.replace(old, "return 2 * heads_last(o, v.shape[2])"))
    changed = Operator(op.spec, import_package(copy, "vendored"))
    assert torch.equal(changed(**x, form="chunk", backend="torch")[0], 2 * before)
    assert torch.equal(op(**x, form="chunk", backend="torch")[0], before)


def _load(path, cache_folder, barrier, results):
    os.environ["TTRC_CACHE"] = cache_folder
    try:
        import ttrc as fresh

        barrier.wait(60)
        op = fresh.load(path)
        x = random_inputs(op.spec, B=1, T=20, H=1, HV=1, dk=4, dv=4)
        results.put(op(**x, form="chunk", backend="torch")[0].sum().item())
    except BaseException as error:  # whatever it is, the parent has to see it
        results.put(repr(error))


def test_two_processes_at_once_leave_one_folder(folder, tmp_path):
    path = tmp_path / "race.toml"
    path.write_text(named("race"))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_load, args=(str(path), str(folder), barrier, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert all(isinstance(o, float) for o in outcomes), outcomes
    assert len(set(outcomes)) == 1
    assert [p.name for p in folder.iterdir()] == [next(folder.glob("race-*")).name]


def test_threads_at_once_all_get_the_operator(folder):
    spec, errors, barrier = parse_spec(named("threads")), [], threading.Barrier(4)
    cache.package_of(spec)  # compiled: what is left to do at once is the import

    def go():
        try:
            barrier.wait(60)
            assert right(ttrc.load(spec))
        except BaseException as error:  # whatever it is, the test has to see it
            errors.append(repr(error))

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(list(folder.iterdir())) == 1


EXPLICIT, IMPLICIT = 'rule = "gradient"\nat = "previous"', 'rule = "proximal"'


def test_a_spec_that_does_not_compile_leaves_nothing(folder):
    with pytest.raises(ttrc.errors.SpecError):
        implicit = named("hopeless").replace(EXPLICIT, IMPLICIT)
        ttrc.load(parse_spec(implicit.replace("norm2(p - v)/2", "sum(abs(p - v))")))
    assert not folder.exists() or not list(folder.iterdir())


def test_a_compiler_that_changes_compiles_again(folder, compilations, monkeypatch):
    ttrc.load(parse_spec(named("versions")))
    monkeypatch.setattr(cache, "_compiler_fingerprint", lambda: "another compiler")
    ttrc.load(parse_spec(named("versions")))
    assert compilations == ["versions", "versions"] and len(list(folder.iterdir())) == 2


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    """Variables that no shell has seen, such as a container's, hold it as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TTRC_CACHE", "~/kept")
    (tmp_path / "mine.toml").write_text(named("at_home"))
    op = ttrc.load("~/mine.toml")
    assert Path(op.package.__file__).is_relative_to(tmp_path / "kept")


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ttrc.errors.TtrcError, match="TTRC_CACHE"):
        ttrc.load(parse_spec(named("nowhere")))
