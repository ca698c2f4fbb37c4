"""The operator as torch sees it: custom ops, torch.compile, autograd, and a package that stands alone."""

import ast
import copy
import importlib
import pickle
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

import ttrc
from ttrc.errors import ArgumentError
from ttrc.language.spec import Domain
from ttrc.language.state import initial_names, same_channels
from ttrc.runtime.poison import poisoned
from ttrc.sampling import as_arguments, random_inputs

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").is_file())
SPECS = sorted(path.stem for path in (ROOT / "specs").glob("*.toml"))
FORMS, BACKENDS = ("chunk", "recurrent"), ("torch", "triton")
LENGTH = {("chunk", "torch"): 20, ("recurrent", "torch"): 20, ("chunk", "triton"): 20, ("recurrent", "triton"): 3}

every_form = pytest.mark.parametrize("form", FORMS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def inputs(name, dtype=torch.float32, **sizes):
    spec = ttrc.load(name).spec
    sizes = dict(B=1, T=20, H=1, HV=2, dk=4, dv=3, seed=5) | sizes
    if same_channels(spec.memory):
        sizes["dk"] = sizes["dv"]
    x = random_inputs(spec, dtype=dtype, **sizes)
    return x | {n: x[n].to(torch.float64 if dtype == torch.float64 else torch.float32) for n in initial_names(spec)}


def flat(o, final):
    return (o, final) if isinstance(final, torch.Tensor) else (o, *final)


def leaves(x):
    return {n: t.detach().clone().requires_grad_() for n, t in x.items()}


def total(o, final):
    return o.square().sum() + final.square().sum()


def arguments(
    name, form, backend, *, packed=False, save=True, grad=True, H=1, start=True, schedule="auto", crossing="all"
):
    """What the public function passes to the custom op, by name."""
    x = inputs(name, T=LENGTH[form, backend], H=H)
    state = x.pop("initial_state").repeat(2 if packed else 1, 1, 1, 1)
    x |= {"initial_state": state} if start else {}
    leaves = {n: t.detach().clone().requires_grad_(grad) for n, t in x.items()}
    ends = torch.tensor([0, 1, x["q"].shape[1]], dtype=torch.int32) if packed else None
    options = {"scale": 0.5, "cu_seqlens": ends, "chunk": 16, "final": True, "save": save, "backend": backend}
    return {"initial_state": None, "schedule": schedule, "crossing": crossing} | leaves | options


def signature(op):
    return [argument.name for argument in op._schema.arguments]


def check(op, given):
    torch.library.opcheck(op, tuple(given[n] for n in signature(op)))


# The custom ops


@every_form
@every_backend
@pytest.mark.parametrize("name", ["linear_attention", "gated_deltanet", "mamba2", "robust_delta"])
def test_forward_ops_pass_opcheck(name, form, backend):
    op = ttrc.load(name).package.op.OPS[form]
    setting = {"packed": True, "H": 2, "start": False} if name == "gated_deltanet" else {}
    check(op, arguments(name, form, backend, **setting))


@every_form
@every_backend
def test_ops_that_save_nothing_pass_opcheck(form, backend):
    op = ttrc.load("gated_deltanet").package.op.OPS[form]
    for packed in (False, True):
        check(op, arguments("gated_deltanet", form, backend, packed=packed, save=False, grad=False))


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("name, schedule", [(n, s) for n in ("linear_attention", "gated_deltanet")
                                            for s in ("split", "segments")] + [("huber_delta", "split")])  # fmt: skip
def test_forward_ops_pass_opcheck_in_every_schedule(name, schedule, save):
    op = ttrc.load(name).package.op.OPS["chunk"]
    check(op, arguments(name, "chunk", "triton", save=save, grad=save, schedule=schedule))


@pytest.mark.parametrize("name, crossing", [("gated_deltanet", "scanned"), ("huber_delta", "sparse")])
def test_forward_ops_that_keep_less_pass_opcheck(name, crossing):
    for packed in (False, True):
        given = arguments(name, "chunk", "triton", packed=packed, crossing=crossing)
        check(ttrc.load(name).package.op.OPS["chunk"], given)


@every_form
@every_backend
@pytest.mark.parametrize("name", ["retnet", "gated_deltanet", "huber_delta"])
def test_backward_ops_pass_opcheck(name, form, backend):
    package = ttrc.load(name).package.op
    forward, backward = package.OPS[form], getattr(package, f"{form}_backward_op")
    for packed, carried in ((False, True), (True, False)):  # carried: states come in, and their cotangents too
        given = arguments(name, form, backend, packed=packed, grad=False)
        o, final, *saved = forward(*(given[n] for n in signature(forward)))
        known = {*given, "d_o", "d_final_state", "initial"}
        given |= dict(zip((n for n in signature(backward) if n not in known), saved, strict=True))
        d_final = torch.randn_like(final) if carried else None
        check(backward, given | {"d_o": torch.randn_like(o), "d_final_state": d_final, "initial": carried})


# torch.compile


def compiled(function, backend="aot_eager", **options):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options)


@every_form
@every_backend
def test_compiles_without_a_graph_break(form, backend):
    op = ttrc.load("gated_deltanet")

    def layer(x):
        o, final = op(**x, output_final_state=True, form=form, backend=backend, chunk_size=16)
        return torch.tanh(2 * o), final

    x = inputs("gated_deltanet", T=LENGTH[form, backend], H=2)
    a, b = leaves(x), leaves(x)
    expected, made = layer(a), compiled(layer)(b)
    assert torch.equal(made[0], expected[0]) and torch.equal(made[1], expected[1])
    total(*expected).backward()
    total(*made).backward()
    for n in x:
        assert torch.equal(a[n].grad, b[n].grad), n


def test_compiles_packed_with_defaults_and_gradients():
    op = ttrc.load("retnet")
    x = inputs("retnet", T=20)
    del x["log_gamma"], x["initial_state"]

    def layer(x, ends):
        return op(**x, cu_seqlens=ends, form="chunk", chunk_size=16)[0]

    ends = torch.tensor([0, 3, 20], dtype=torch.int32)
    a, b = leaves(x), leaves(x)
    expected, made = layer(a, ends), compiled(layer)(b, ends)
    assert torch.equal(made, expected)
    expected.sum().backward()
    made.sum().backward()
    assert all(torch.equal(a[n].grad, b[n].grad) for n in x)


def test_new_lengths_do_not_compile_again():
    """Once for the first length, once for all others."""
    op, counter = ttrc.load("gated_deltanet"), CompileCounter()
    layer = compiled(lambda x: op(**x, form="chunk", backend="torch")[0], backend=counter)
    for length in range(20, 32):
        x = inputs("gated_deltanet", T=length)
        torch.testing.assert_close(layer(x), op(**x, form="chunk", backend="torch")[0])
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", SPECS)
def test_every_shipped_rule_compiles(name):
    op = ttrc.load(name)
    x = as_arguments(op.spec, inputs(name))
    form = op.forms[0]
    layer = compiled(lambda x: op(**x, form=form, backend="torch", output_final_state=True), backend="eager")
    made, expected = layer(x), op(**x, form=form, backend="torch", output_final_state=True)
    assert all(torch.equal(a, b) for a, b in zip(flat(*made), flat(*expected), strict=True))


@pytest.mark.parametrize("name", ["gated_deltanet", "mamba", "ttt_mlp"])
def test_tracing_fixes_no_heads_and_warns_of_nothing(name):
    """A module of two heads a key head serves one a key head too; torch.compile warns of functions with a cache."""
    op = ttrc.load(name)
    few, many = (as_arguments(op.spec, inputs(name, H=2, HV=heads)) for heads in (2, 4))

    class Layer(torch.nn.Module):
        def forward(self, x):
            return op(**x, form="chunk", backend="torch")[0]

    axis = {"initial_state": 1} | {parameter.name: 0 for parameter in op.spec.parameters}

    def free(name, x):
        return tuple(free(name, part) for part in x) if isinstance(x, tuple) else {axis.get(name, 2): Dim.AUTO}

    shapes = ({n: free(n, x) for n, x in many.items()},)
    layer = torch.export.export(Layer(), (many,), dynamic_shapes=shapes, strict=False).module()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled(lambda x: op(**x, form="auto", backend="torch")[0])(many)
    torch.testing.assert_close(layer(few), op(**few, form="chunk", backend="torch")[0])


def test_gates_are_still_checked_before_compilation():
    op = ttrc.load("gated_deltanet")
    x = inputs("gated_deltanet")

    def layer(x):
        return op(x["q"], x["k"], x["v"], g=x["g"], bta=x["beta"])[0]

    with pytest.raises(Exception, match="bta: got an argument that the spec does not declare, expected one of g, beta"):
        compiled(layer)(x)
    with pytest.raises(ArgumentError, match="did you mean 'beta'"):
        torch.compile(layer, backend="aot_eager")(x)


# Autograd


@pytest.mark.parametrize("name, form", [(name, form) for name in SPECS for form in ttrc.load(name).forms])
def test_gradcheck(name, form):
    op = ttrc.load(name)
    x = inputs(name, torch.float64, T=18 if form == "chunk" else 4, dk=2, dv=3, H=1, HV=2)
    for parameter in op.spec.parameters:  # away from the edge of the domain, which finite differences step over
        sign = -1 if parameter.domain in (Domain.NEGATIVE, Domain.LOG_DECAY) else 1
        heads = torch.tensor([0.3, 1.1], dtype=torch.float64)
        x[parameter.name] = sign * heads.reshape(2, *(1 for _ in parameter.per.axes)).expand(x[parameter.name].shape)
    names, own = list(x), getattr(op.spec.update, "segment", None)

    def call(*tensors):
        given = as_arguments(op.spec, dict(zip(names, tensors)))
        return flat(*op(**given, output_final_state=True, form=form, chunk_size=own or 16))

    assert torch.autograd.gradcheck(call, tuple(leaves(x).values()), fast_mode=form == "chunk")


@every_form
@every_backend
def test_each_output_alone_can_be_differentiated(form, backend):
    """A loss of the output alone, and of the final state alone, add up to the loss of both."""
    op = ttrc.load("gated_deltanet")
    x = inputs("gated_deltanet", T=LENGTH[form, backend])
    grads = []
    for weights in ((1, 0), (0, 1), (1, 1)):
        y = leaves(x)
        o, final = op(**y, output_final_state=True, form=form, backend=backend, chunk_size=16)
        parts = [w.sin().sum() for w, wanted in zip((o, final), weights) if wanted]
        grads.append(torch.autograd.grad(sum(parts), list(y.values()), allow_unused=True))
    for first, second, both in zip(*grads):
        zero = torch.zeros_like(both)
        torch.testing.assert_close((zero if first is None else first) + (zero if second is None else second), both)


@every_backend
def test_only_what_asks_gets_a_gradient(backend):
    op = ttrc.load("gated_deltanet")
    for wanted in ("q", "v", "beta", "initial_state"):
        x = inputs("gated_deltanet")
        x[wanted].requires_grad_()
        o, _ = op(**x, form="chunk", backend=backend, chunk_size=16)
        o.square().sum().backward()
        assert x[wanted].grad.abs().sum() > 0
        assert all(t.grad is None for n, t in x.items() if n != wanted)


@every_form
@every_backend
def test_used_twice_and_backward_twice(form, backend):
    op = ttrc.load("gated_deltanet")
    x = inputs("gated_deltanet", T=LENGTH[form, backend])
    options = dict(form=form, backend=backend, chunk_size=16)
    y, z = leaves(x), leaves(x)
    o, _ = op(**y, **options)
    o.backward(2 * o.detach())
    first, _ = op(**z, **options)
    second, _ = op(**z, **options)
    (first * second).sum().backward(retain_graph=True)
    for n in x:
        torch.testing.assert_close(z[n].grad, y[n].grad)
    once = {n: t.grad.clone() for n, t in z.items()}
    (first * second).sum().backward()
    for n in x:
        torch.testing.assert_close(z[n].grad, 2 * once[n])


@every_form
@every_backend
def test_arguments_are_left_alone(form, backend):
    op = ttrc.load("gated_deltanet")
    x = inputs("gated_deltanet", T=LENGTH[form, backend])
    y = leaves(x)
    o, final = op(**y, output_final_state=True, form=form, backend=backend, chunk_size=16)
    cotangents = torch.ones_like(o), torch.ones_like(final)
    torch.autograd.backward((o, final), cotangents)
    assert all(torch.equal(y[n], x[n]) for n in x)
    assert all((c == 1).all() for c in cotangents)


@pytest.mark.parametrize("name", ["deltanet", "softmax_attention"])
def test_second_derivatives_are_refused(name):
    op = ttrc.load(name)
    y = leaves(inputs(name))
    (grad,) = torch.autograd.grad(op(**y)[0].square().sum(), y["q"], create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name} has first derivatives alone"):
        grad.sum().backward()


@pytest.mark.parametrize("name", ["gated_deltanet", "mamba", "titans_linear"])
def test_outputs_can_be_changed_in_place(name):
    """As residuals are added: plain PyTorch cuts outputs out of larger tensors, which is nobody's business."""
    op, x = ttrc.load(name), as_arguments(ttrc.load(name).spec, inputs(name))
    q, q_too = (x["q"].clone().requires_grad_() for _ in range(2))
    op(**x | {"q": q}, backend="torch")[0].add_(x["v"]).square().sum().backward()
    (op(**x | {"q": q_too}, backend="torch")[0] + x["v"]).square().sum().backward()
    assert torch.equal(q.grad, q_too.grad)


@pytest.mark.parametrize("name", ["gated_deltanet", "mlstm"])
def test_tensors_without_values_are_asked_for_none(name):
    """Gates, states and packing are looked at where they hold numbers, which what traces a call makes up later."""
    op = ttrc.load(name)
    with FakeTensorMode() as mode:
        x = as_arguments(op.spec, {n: mode.from_tensor(t) for n, t in inputs(name).items()})
        assert op(**x)[0].shape == (1, 20, 2, 3)
        x = {n: t for n, t in x.items() if n != "initial_state"}
        assert op(**x, cu_seqlens=torch.tensor([0, 3, 20]))[0].shape == (1, 20, 2, 3)


@pytest.mark.parametrize("name", ["gated_deltanet", "softmax_attention"])
def test_vmap_runs_forwards_and_is_refused_backwards(name):
    op, x = ttrc.load(name), inputs(name)
    pairs = {n: torch.stack([t, t / 2]) for n, t in x.items()}
    made = torch.func.vmap(lambda x: op(**x, backend="torch")[0])(pairs)
    assert all(
        torch.equal(o, op(**{n: t[i] for n, t in pairs.items()}, backend="torch")[0]) for i, o in enumerate(made)
    )
    with pytest.raises(RuntimeError, match=f"{name} kept nothing for gradients that are asked for"):
        torch.func.vmap(lambda x: op(**x, backend="torch")[0])(leaves(pairs))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_transforms_that_differentiate_are_refused_in_words(transform):
    op, x = ttrc.load("softmax_attention"), inputs("softmax_attention")
    with pytest.raises(ArgumentError, match="q: got a tensor within a transform of torch.func .* torch.autograd.grad"):
        transform(lambda q: op(**x | {"q": q})[0].sum())(x["q"])


@pytest.fixture
def saving(monkeypatch):
    """Whether each call of the chunk op was asked to keep states for a backward pass."""
    package, seen = ttrc.load("gated_deltanet").package.op, []
    real = package.OPS["chunk"]

    def spy(*given):
        out = real(*given)
        seen.append((dict(zip(signature(real), given))["save"], out[-1].numel()))
        return out

    monkeypatch.setitem(package.OPS, "chunk", spy)
    return seen


@every_backend
def test_inference_keeps_nothing(saving, backend):
    op = ttrc.load("gated_deltanet")
    x, options = inputs("gated_deltanet"), dict(form="chunk", backend=backend)
    with torch.no_grad():
        o, _ = op(**leaves(x), **options)
    assert o.grad_fn is None
    with torch.inference_mode():
        op(**inputs("gated_deltanet"), **options)
    op(**x, **options)
    assert saving == [(False, 0)] * 3
    op(**leaves(x), **options)
    assert saving[-1][0] and saving[-1][1] > 0


@every_form
@every_backend
def test_two_runs_are_bitwise_equal_on_poisoned_memory(form, backend):
    op = ttrc.load("gated_deltanet")
    x = inputs("gated_deltanet", T=LENGTH[form, backend], H=1, HV=2)
    x["initial_state"] = x["initial_state"].repeat(2, 1, 1, 1)
    ends = torch.tensor([0, 1, x["q"].shape[1]], dtype=torch.int32)
    results = []
    for _ in range(2):
        y = leaves(x)
        with poisoned("cpu"):
            o, final = op(**y, cu_seqlens=ends, output_final_state=True, form=form, backend=backend, chunk_size=16)
            total(o, final).backward()
        results.append([o, final, *(t.grad for t in y.values())])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*results))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_autocast(dtype):
    op = ttrc.load("gated_deltanet")
    torch.manual_seed(0)
    mix = torch.nn.Linear(8, 3 * 8)
    gates = torch.nn.Linear(8, 2)
    x = torch.randn(2, 20, 8)
    with torch.autocast("cpu", dtype=dtype):
        q, k, v = mix(x).unflatten(-1, (3, 1, 8)).unbind(2)
        g, beta = gates(x).unsqueeze(-1).unbind(2)
        o, final = op(q, torch.nn.functional.normalize(k, dim=-1).to(dtype), v, g=torch.nn.functional.logsigmoid(g),
                      beta=beta.sigmoid(), output_final_state=True, form="chunk", backend="torch")  # fmt: skip
    assert o.dtype == dtype and final.dtype == torch.float32
    o.float().square().sum().backward()
    for layer in (mix, gates):
        assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().sum() > 0


def test_under_activation_checkpointing():
    op = ttrc.load("gated_deltanet")
    x = inputs("gated_deltanet")

    def layer(*tensors):
        return op(**dict(zip(x, tensors)), form="chunk", backend="torch")[0].tanh()

    a, b = leaves(x), leaves(x)
    layer(*a.values()).sum().backward()
    torch.utils.checkpoint.checkpoint(layer, *b.values(), use_reentrant=False).sum().backward()
    assert all(torch.equal(a[n].grad, b[n].grad) for n in x)


def test_a_layer_that_holds_one_is_copied_and_pickled():
    """Averaged weights, torch.save of a model and spawned workers all do this."""

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.op = ttrc.load("deltanet")

    x = inputs("deltanet")
    for twin in (copy.deepcopy(Layer()), copy.copy(Layer())):
        assert torch.equal(twin.op(**x)[0], ttrc.load("deltanet")(**x)[0])
    again = pickle.loads(pickle.dumps(ttrc.load("deltanet")))
    assert torch.equal(again(**x)[0], ttrc.load("deltanet")(**x)[0])


# The package alone

PACKAGES = sorted(path for path in (ROOT / "generated").iterdir() if (path / "op.py").is_file())


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.name)
def test_a_package_imports_torch_triton_and_the_standard_library(folder):
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, f"{file.name}:{node.lineno}"
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed, f"{file.name}:{node.lineno}"
            elif isinstance(node, ast.Name):
                assert node.id not in ("eval", "exec", "__import__", "compile", "open"), f"{file.name}:{node.lineno}"


def test_a_package_runs_in_a_folder_of_any_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    x = inputs("linear_attention")
    for folder in ("my-layers", "größe"):
        shutil.copytree(ROOT / "generated" / "linear_attention", tmp_path / folder / "linear_attention")
        alone = importlib.import_module(f"{folder}.linear_attention")
        assert torch.equal(alone.linear_attention(**x)[0], ttrc.load("linear_attention")(**x)[0])


def test_a_package_runs_where_there_is_no_compiler(tmp_path):
    shutil.copytree(ROOT / "generated" / "gated_deltanet", tmp_path / "gated_deltanet")
    code = """
        import os, sys
        for name in ("ttrc", "jinja2", "ruff", "typer", "rich", "jsonschema", "platformdirs", "matplotlib"):
            sys.modules[name] = None
        os.environ["TRITON_INTERPRET"] = "1"
        sys.path.insert(0, ".")
        import torch
        from gated_deltanet import gated_deltanet
        torch.manual_seed(0)
        x = dict(q=torch.randn(1, 20, 1, 4), k=torch.randn(1, 20, 1, 4) / 4, v=torch.randn(1, 20, 2, 3),
                 g=-torch.rand(1, 20, 2), beta=torch.rand(1, 20, 2))
        results = []
        for options in (dict(backend="torch"), dict(backend="triton"), dict(form="reference")):
            leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
            o, final = gated_deltanet(**leaves, output_final_state=True, **options)
            (o.square().sum() + final.square().sum()).backward()
            results.append([o, final, *(t.grad for t in leaves.values())])
        for other in results[1:]:
            for a, b in zip(results[0], other):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        print("alone")
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "alone\n", done.stderr[-2000:]
