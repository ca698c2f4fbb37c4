"""What a call costs the host: counted in calls of Python functions, which no clock and no neighbour changes."""

import sys

import pytest

from bench.host import COLUMNS, as_on_a_gpu, page
from bench.sides import SIDES, backward_of, inputs
from ttrc.runtime.load import load

# Functions of Python that a call enters, of ttrc and torch, launches apart: forward, backward.
MOST = {"linear_attention": (120, 65), "gated_deltanet": (150, 70), "softmax_attention": (100, 55)}


def entered(run):
    """How many functions of Python."""
    count = 0

    def hear(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(hear)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", MOST)
def test_a_call_enters_few_functions(name, monkeypatch):
    """Nothing is derived, tried or imported once the first call has been."""
    x, op = inputs(load(name).spec, 64, 64), load(name).package.op
    monkeypatch.setattr(op, "launch", lambda *a, **k: None)
    with as_on_a_gpu(name) as call:
        for _ in range(3):
            backward_of(call(x), x)
        kept = []
        forward = entered(lambda: kept.append(call(x)))
        backward = entered(lambda: backward_of(kept[0], x))
    assert forward <= MOST[name][0] and backward <= MOST[name][1]


def test_both_sides_have_a_row():
    rows = {who: dict.fromkeys(COLUMNS, 100.0 * (1 + number)) for number, who in enumerate(SIDES)}
    text = page({"retnet": rows}, 7)
    assert "| retnet | 100 | 200 | 2.00 | 100 | 200 | 2.00 | 100 | 200 | 2.00 |" in text and "medians of 7" in text
