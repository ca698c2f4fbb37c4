"""generated/ is what the compiler writes today: a product, formatted, tagged, with no hole left or left over."""

import re
from pathlib import Path

import pytest

import ttrc
from ttrc import emit
from ttrc.language.load import load_spec, parse_spec
from ttrc.language.spec import KernelMemory
from ttrc.paths import templates_dir
from ttrc.tools.generate import compare, write

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").is_file())
SPECS = {path.stem: path for path in sorted((ROOT / "specs").glob("*.toml"))}
TEMPLATES = templates_dir()
UNSEEN = {path.stem: path for path in sorted((ROOT / "tests" / "unseen").glob("*.toml"))}
FILES = {"__init__.py", "op.py", "choices.py", "launch.py", "layout.py", "kernels.py", "reference.py"}
every_rule = pytest.mark.parametrize("name", SPECS)


def texts(name):
    return {path.name: path.read_text() for path in (ROOT / "generated" / name).glob("*.py")}


def test_every_spec_has_a_package_and_every_package_a_spec():
    packages = {path.name for path in (ROOT / "generated").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert packages == set(SPECS)


@every_rule
def test_generated_is_current(name):
    outcome = compare(load_spec(SPECS[name]), ROOT / "generated")
    assert not outcome.stale, outcome.diff[:4000]


@every_rule
def test_the_header_says_where_it_came_from(name):
    spec = load_spec(SPECS[name])
    for text in texts(name).values():
        first, second, third = text.splitlines()[:3]
        assert first == emit.HEADER.format(name=name) and "Do not edit" in first
        assert second == emit.fingerprint_line(spec)
        assert third.startswith('"""')


@every_rule
def test_it_is_formatted(name):
    is_pairs = isinstance(load_spec(SPECS[name]).memory, KernelMemory)
    assert set(texts(name)) == FILES - ({"choices.py"} if is_pairs else set())
    for file, text in emit.format_files(texts(name)).items():
        assert text == texts(name)[file], file
        assert text.isascii() and "\t" not in text and "{{" not in text and "{%" not in text


@every_rule
def test_statements_are_tagged_with_their_spec_lines(name):
    spec = load_spec(SPECS[name])
    lines = spec.source.text.splitlines()
    for file in ("kernels.py", "reference.py"):
        text = texts(name)[file]
        sections = r"loss(?:\.\w+)?|retention|decay|similarity|update"
        tags = re.findall(rf"^ +# ({sections}), line (\d+)(?:: (.*))?$", text, re.M)
        assert tags
        for section, number, expression in tags:
            line = lines[int(number) - 1]
            if expression:
                assert line.startswith(("expr", "key", "write", "decay", "similarity")) and expression in line
            else:
                assert section == "update" and line == "[update]"
        pairs = isinstance(spec.memory, KernelMemory)
        assert "# adjoint of " in text and (pairs or "# read-out" in text)
        assert f"# retention  {spec.retention.expr.text}" in text
        assert all(f"# {loss.origin:<10} {loss.expr.text}" in text for loss in spec.losses)
        opening = "^# fit        o_t = " if pairs else "^# state      [SH] = "
        assert "# error      dL/dp" in text and re.search(opening, text, re.M)


@every_rule
def test_every_statement_of_a_step_stands_below_a_tag(name):
    """A comment of the derivation is the first line of each step, and of each kernel's mathematics."""
    step = r'^def (\w+_step(?:_backward)?)\(.*?\n    """.*?"""\n(?:    (?:tokens|like)\b.*?\n)?(.*?)\n    return'
    steps = re.findall(step, texts(name)["reference.py"], re.M | re.S)
    forms = ttrc.load(str(SPECS[name])).forms
    assert {made for made, _ in steps} == {f"{form}_{step}" for form in forms for step in ("step", "step_backward")}
    assert all(body.lstrip().startswith("# ") for _, body in steps)


def holes_of(monkeypatch, change):
    """Renders a spec with the holes of one template changed."""
    real = emit._render

    def render(template, **holes):
        if template == "triton/scan.py.jinja":
            change(holes)
        return real(template, **holes)

    monkeypatch.setattr(emit, "_render", render)
    from ttrc.compiler import generate

    return generate(load_spec(SPECS["deltanet"]))


def test_a_missing_hole_fails(monkeypatch):
    with pytest.raises(AssertionError, match=r"triton/scan\.py\.jinja: holes .*'body'"):
        holes_of(monkeypatch, lambda holes: holes.pop("body"))


def test_a_surplus_hole_fails(monkeypatch):
    with pytest.raises(AssertionError, match=r"triton/scan\.py\.jinja: holes .*'one_too_many'"):
        holes_of(monkeypatch, lambda holes: holes.update(one_too_many=""))


def test_the_holes_as_they_are_pass(monkeypatch):
    assert set(holes_of(monkeypatch, lambda holes: None)) == FILES


@pytest.mark.parametrize("template", sorted(str(p.relative_to(TEMPLATES)) for p in TEMPLATES.rglob("*.py.jinja")))
def test_a_template_tells_its_holes(template):
    """At its head, each in a column of names or quoted in what is said of another."""
    text = (TEMPLATES / template).read_text()
    head = text[: text.index("-#}")] if text.startswith("{#") else ""
    rows = re.findall(r"^   (\w+(?:, \w+)*)(?:  |$)", head, re.M)
    told = set(", ".join(rows).split(", ")) | set(re.findall(r"`(\w+)`", head))
    assert emit._holes(template) <= told
    assert set(", ".join(rows).split(", ")) - {""} <= emit._holes(template)


def test_compiling_twice_gives_the_same_text(tmp_path):
    spec = load_spec(UNSEEN["ridge_delta"])
    assert write(spec, tmp_path).stale == tuple(sorted(FILES))
    assert write(spec, tmp_path).stale == () and compare(spec, tmp_path).diff == ""


def test_the_text_does_not_hang_on_the_hash_seed(tmp_path):
    import subprocess
    import sys

    code = "import sys; from ttrc.cli import main; sys.argv[1:] = ['generate', 'longhorn', '--out', '{}']; main()"
    for seed in ("1", "2"):
        folder = tmp_path / seed
        done = subprocess.run([sys.executable, "-c", code.format(folder)], cwd=ROOT, capture_output=True, text=True,
                              env={"PYTHONHASHSEED": seed, "PATH": ""})  # fmt: skip
        assert done.returncode == 0, done.stderr
    for file in FILES:
        assert (tmp_path / "1" / "longhorn" / file).read_text() == (tmp_path / "2" / "longhorn" / file).read_text()


def test_a_stale_file_is_shown_and_removed(tmp_path):
    spec = load_spec(SPECS["deltanet"])
    write(spec, tmp_path)
    folder = tmp_path / "deltanet"
    (folder / "op.py").write_text((folder / "op.py").read_text() + "# by hand\n")
    left_over = folder / "helpers.py"
    left_over.write_text((folder / "__init__.py").read_text())  # ours, by its header
    outcome = compare(spec, tmp_path)
    assert set(outcome.stale) == {"op.py", "helpers.py"} and "-# by hand" in outcome.diff
    write(spec, tmp_path)
    assert {p.name for p in folder.glob("*.py")} == FILES and not compare(spec, tmp_path).stale


def test_files_of_the_user_are_never_removed(tmp_path):
    """`ttrc generate mine.toml --out .` beside a folder of that name, with the user's own code in it."""
    spec = parse_spec(SPECS["deltanet"].read_text().replace('"deltanet"', '"project"'))
    own = tmp_path / "project" / "train.py"
    own.parent.mkdir()
    own.write_text("print('years of work')\n")
    (own.parent / "__init__.py").write_text("from .train import everything\n")
    try:
        write(spec, tmp_path)
    except Exception as refusal:
        assert "project" in str(refusal)
    assert own.read_text() == "print('years of work')\n"
    assert (own.parent / "__init__.py").read_text() == "from .train import everything\n"


@pytest.mark.parametrize("reference", ['x """ + open(1) + """', "ends in \\\\", "{{ 7 * 7 }} {% raw %}", "''' # noqa"])
def test_text_of_a_spec_stays_text(reference, tmp_path):
    import ast

    text = SPECS["deltanet"].read_text()
    old = next(line for line in text.splitlines() if line.startswith("reference"))
    spec = parse_spec(
        text.replace(old, f"reference = '''{reference}'''" if "'''" not in reference else f'reference = "{reference}"')
    )
    from ttrc.compiler import generate

    plain = generate(load_spec(SPECS["deltanet"]))
    for file, made in generate(spec).items():
        trees = [ast.parse(t) for t in (made, plain[file])]
        kinds = [[type(node) for node in ast.walk(tree)] for tree in trees]
        assert kinds[0] == kinds[1], file


# Names that a spec may give: whatever the language lets through has to work


def identifiers():
    import ast

    found = set()
    for path in (ROOT / "generated" / "gated_deltanet").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case ast.alias(name=name):
                    found.add(name.split(".")[0])
    files = {name.removesuffix(".py") for name in FILES} - {"__init__"}
    return sorted(found | files | set("rate sum_0 sum_1 sum_2 pairs i j r".split()))


def renamed(gate, name):
    return parse_spec(
        SPECS["gated_deltanet"].read_text().replace("beta", gate).replace('name = "gated_deltanet"', f'name = "{name}"')
    )


def allowed(**names):
    from ttrc.errors import SpecError

    try:
        renamed(**names)
    except SpecError:
        return False
    return True


def test_gates_of_any_allowed_name_work(tmp_path, monkeypatch):
    """All the words of a generated package that a gate may be called, a dozen at a time."""
    import torch

    import ttrc
    from ttrc.runtime.verify import Case, verify

    monkeypatch.setenv("TTRC_CACHE", str(tmp_path))
    words = [word for word in identifiers() if word != "g" and allowed(gate=word, name="words")]
    text = SPECS["gated_deltanet"].read_text()
    for start in range(0, len(words), 15):
        some = words[start : start + 15]
        gates = "\n".join(f'{word} = {{ per = "head", domain = "unit" }}' for word in some)
        old = next(line for line in text.splitlines() if line.startswith("beta"))
        weight = f"({' + '.join(some)}) / {len(some)}"
        spec = parse_spec(text.replace(old, gates).replace('weight = "beta"', f'weight = "{weight}"'))
        op = ttrc.load(spec)
        case = Case(B=1, T=3, H=1, HV=1, d_k=2, d_v=2)
        for form in op.forms:
            assert not verify(op, case, form=form, backend="torch", dtype=torch.float64).failures, some
            assert not verify(op, case, form=form, backend="triton", dtype=torch.float32).failures, some


@pytest.mark.parametrize(
    "name", [n for n in identifiers() if n in {"op", "kernels", "reference", "os", "launch", "config"}]
)
def test_specs_of_any_allowed_name_work(name, tmp_path, monkeypatch):
    import ttrc
    from ttrc.sampling import random_inputs

    if not allowed(gate="beta", name=name):
        return
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path))
    op = ttrc.load(renamed("beta", name))
    x = random_inputs(op.spec, B=1, T=20, H=1, HV=1, dk=4, dv=4)
    import torch

    torch.testing.assert_close(op(**x)[0], ttrc.load("gated_deltanet")(**x)[0])


# A chip with less shared memory than the defaults take ------------------------------------------------------------


class SmallChip:
    """A kernel that runs with `least` to `most` value channels, unpipelined, as on a chip with little memory."""

    def __init__(self, kernel, most, least=0):
        self.kernel, self.least, self.most, self.tried = kernel, least, most, []

    def __getitem__(self, grid):
        def run(*args, BV, num_stages, **kwargs):
            from triton import OutOfResources

            self.tried.append((BV, num_stages))
            if not self.least <= BV <= self.most or num_stages > 1:
                raise OutOfResources(200_000, 101_376, "shared memory")
            return self.kernel[grid](*args, BV=BV, num_stages=num_stages, **kwargs)

        return run


@pytest.fixture
def small_chip(monkeypatch):
    import importlib

    import ttrc

    op = ttrc.load("gated_deltanet")
    kernels = importlib.import_module(f"{op.package.__name__}.kernels")
    monkeypatch.setattr(op.package.launch, "SMALLER", {})

    def make(most, least=0):
        chip = SmallChip(kernels.chunk_scan, most, least)
        monkeypatch.setattr(kernels, "chunk_scan", chip)
        return op, chip

    return make


def draw(width):
    import torch

    q, k, v = (torch.randn(1, 20, 1, width) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)  # or errors grow from token to token
    return {"q": q, "k": k, "v": v, "g": -torch.rand(1, 20, 1), "beta": torch.rand(1, 20, 1)}


def test_a_smaller_configuration_takes_over_where_memory_is_short(small_chip):
    import torch

    op, chip = small_chip(16)
    x, options = draw(40), dict(form="chunk", backend="triton", chunk_size=16)
    wanted = op(**x, form="chunk", backend="torch")[0]
    assert torch.allclose(op(**x, **options)[0], wanted, atol=1e-5)
    assert chip.tried == [(32, 2), (16, 1)]
    op(**x, **options)
    assert chip.tried[2:] == [(16, 1)], "known from then on"


@pytest.mark.parametrize("most, tried", [(32, [(16, 1), (32, 1)]), (24, [(16, 1), (32, 1)])])
def test_more_channels_take_over_where_fewer_need_more_memory(small_chip, monkeypatch, most, tried):
    """As on gfx942, where 16 channels take other matrix instructions than 32. Each is tried once."""
    import torch

    op, chip = small_chip(most, least=24)
    monkeypatch.setitem(op.package.launch.CONFIGS, "chunk_scan", {64: (16, 4, 1)})
    x, options = draw(40), dict(form="chunk", backend="triton", chunk_size=16)
    if most < 32:
        with pytest.raises(RuntimeError, match="too little shared memory"):
            op(**x, **options)
    else:
        assert torch.allclose(op(**x, **options)[0], op(**x, form="chunk", backend="torch")[0], atol=1e-5)
    assert chip.tried == tried


def test_a_kernel_that_sums_over_values_never_takes_fewer_of_them(monkeypatch):
    """Neither where memory is short nor where a table says so: its sums would be parts of sums."""
    import importlib

    import torch

    import ttrc

    op = ttrc.load("robust_delta")
    kernels = importlib.import_module(f"{op.package.__name__}.kernels")
    monkeypatch.setattr(op.package.launch, "SMALLER", {})
    x = draw(40) | {"delta": torch.rand(1, 20, 1)}
    options = dict(form="chunk", backend="triton", chunk_size=16)
    key = op.package.launch.slot("chunk_scan_keys", x["q"], x["v"], "few")
    with monkeypatch.context() as patch:
        patch.setitem(op.package.launch.TUNED, key, (16, 4, 1))
        wanted = op(**x, form="chunk", backend="torch")[0]
        assert torch.allclose(op(**x, **options)[0], wanted, atol=1e-5)
    monkeypatch.setattr(kernels, "chunk_scan_keys", SmallChip(kernels.chunk_scan_keys, 32))
    with pytest.raises(RuntimeError, match="too little shared memory"):
        op(**x, **options)


def test_a_chip_that_is_too_small_is_told_what_helps(small_chip):
    op, _ = small_chip(8)
    with pytest.raises(RuntimeError, match="chunk_scan: this GPU has too little shared memory .* a smaller chunk_size"):
        op(**draw(40), form="chunk", backend="triton", chunk_size=16)


def test_a_tuned_configuration_is_never_changed_silently(small_chip, monkeypatch):
    from triton import OutOfResources

    op, _ = small_chip(16)
    x = draw(40)
    key = op.package.launch.slot("chunk_scan", x["q"], x["v"], "few")
    monkeypatch.setitem(op.package.launch.TUNED, key, (32, 4, 2))
    with pytest.raises(OutOfResources):
        op(**x, form="chunk", backend="triton", chunk_size=16)
