"""What is different on a GPU, with something that stands for one: the device of a launch, waits for it, what is measured."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ttrc
from ttrc.runtime import operator
from ttrc.sampling import as_arguments, random_inputs


def inputs(op, **sizes):
    return random_inputs(op.spec, **(dict(B=1, T=20, H=1, HV=2, dk=16, dv=16) | sizes))


@pytest.mark.parametrize("name", ["gated_deltanet", "forgetting_attention"])
def test_kernels_are_launched_on_the_device_of_the_tensors(name, monkeypatch):
    """Which need not be the current one; Triton asks for that alone."""
    op, inside, launched = ttrc.load(name), [], []

    @contextmanager
    def device_of(x):
        inside.append(x)
        yield
        inside.pop()

    launch = op.package.op.launch

    def noted(kernel, q, *args, **kwargs):
        launched.append((kernel, any(x.data_ptr() == q.data_ptr() for x in inside)))
        launch(kernel, q, *args, **kwargs)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(op.package.op, "launch", noted)
    x = {n: t.requires_grad_() for n, t in inputs(op).items()}
    o, _ = op(**as_arguments(op.spec, x), form="chunk", backend="triton")
    forward = len(launched)
    o.sum().backward()
    assert 0 < forward < len(launched)
    assert all(there for _, there in launched), launched


def test_defaults_are_handed_to_the_device_once(monkeypatch):
    """The host's numbers wait for all that a GPU has to do, and a CUDA graph cannot have them at all."""
    op, made = ttrc.load(ttrc.load("retnet").spec), []
    of = operator.default_value
    monkeypatch.setattr(operator, "default_value", lambda *args: made.append(args) or of(*args))
    x = inputs(op, HV=4)
    slope = x.pop(op.spec.parameters[0].name)
    given = as_arguments(op.spec, x)
    with torch.inference_mode():
        first = op(**given)[0].clone()
    given["v"].requires_grad_()
    o = op(**given)[0]
    o.sum().backward()  # what was made in inference mode could not be kept for this
    torch.testing.assert_close(o, first)
    torch.testing.assert_close(o, op(**given, **{op.spec.parameters[0].name: slope})[0])
    assert len(made) == 1
    op(**as_arguments(op.spec, inputs(op, HV=2) | {op.spec.parameters[0].name: slope[:2]}))
    assert len(made) == 1
    del (y := inputs(op, HV=2))[op.spec.parameters[0].name]
    op(**as_arguments(op.spec, y))
    assert len(made) == 2  # another number of heads
    with FakeTensorMode() as mode:
        fake = op(**{n: mode.from_tensor(t) for n, t in as_arguments(op.spec, y).items()})[0]
    assert fake.shape == y["v"].shape
    assert op(**as_arguments(op.spec, y))[0].isfinite().all()
