"""The demo: its data say what they should, and its model learns with any operator of the contract's shape."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ttrc import oracle
from ttrc.language.load import load_spec
from ttrc.tools import tour
from ttrc.tools.demo import associative_recall
from ttrc.tools.recall import IGNORE, RecallModel, Task, Training, sample

SPECS = Path(__file__).parent.parent / "specs"
SMALL = Task(vocabulary=16, length=20, pairs=5, rebound=2)


class StandIn:
    """The contract's operator, on the oracle: slow, and there before any kernel is."""

    def __init__(self, name: str):
        self.spec = load_spec(SPECS / f"{name}.toml")

    def __call__(self, q, k, v, **gates):
        o, state = oracle.run(self.spec, q, k, v, gates, dtype=torch.float32)
        return o, state


@pytest.mark.parametrize("task", [SMALL, Task(vocabulary=16, length=20, pairs=6, rebound=0), Task()])
def test_each_answer_is_the_last_value_bound_to_the_key_before_the_question(task):
    tokens, labels = sample(task, 40, torch.Generator().manual_seed(0))
    assert tokens.shape == labels.shape == (40, task.length)
    for row, answers in zip(tokens.tolist(), labels.tolist()):
        context, questions = row[: 2 * task.pairs], row[2 * task.pairs :]
        keys, values = context[::2], context[1::2]
        bound = dict(zip(keys, values))  # a later pair replaces an earlier one
        assert len(bound) == task.pairs - task.rebound
        assert max(keys) < task.vocabulary // 2 <= min(values) and max(values) < task.vocabulary
        assert answers == [IGNORE] * len(context) + [bound[key] for key in questions]


def test_data_repeat_with_the_seed_and_differ_without():
    first, again, other = (sample(SMALL, 4, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", ["gated_deltanet", "mamba2", "retnet", "longhorn"])
def test_the_model_is_causal_and_trains_every_part(name):
    torch.manual_seed(0)
    model = RecallModel(StandIn(name), SMALL, heads=2, channels=4)
    tokens, _ = sample(SMALL, 3, torch.Generator().manual_seed(0))
    touched = tokens.clone()
    touched[:, 12] = (touched[:, 12] + 1) % SMALL.vocabulary
    logits, logits_touched = model(tokens), model(touched)
    torch.testing.assert_close(logits[:, :12], logits_touched[:, :12], rtol=0, atol=0)
    assert not torch.isclose(logits[:, 12], logits_touched[:, 12]).any(dim=-1).all()
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_rules_share_their_data_and_their_starting_point():
    def shared(name):
        torch.manual_seed(0)
        model = RecallModel(StandIn(name), SMALL, heads=2, channels=4)
        return {n: p for n, p in model.named_parameters() if not n.startswith("gates.")}

    delta, linear = shared("gated_deltanet"), shared("linear_attention")
    assert delta.keys() == linear.keys() and all(torch.equal(delta[n], linear[n]) for n in delta)


def test_a_short_run_writes_its_curve_table_and_plot(tmp_path):
    printed = io.StringIO()
    curves = associative_recall(
        ["gated_deltanet", "linear_attention"],
        steps=5,
        out=tmp_path / "out",
        task=SMALL,
        training=Training(channels=4, batch=4, evaluate_every=2),
        load=StandIn,
        console=Console(file=printed, width=100),
    )
    assert list(curves) == ["gated_deltanet", "linear_attention"]
    assert all(len(curve) == 4 and all(0 <= share <= 1 for share in curve) for curve in curves.values())  # 0 2 4 5
    assert (tmp_path / "out" / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert "gated_deltanet" in printed.getvalue() and "2 of them rebinding a key" in printed.getvalue()


def test_the_tour_shows_all_of_the_spec_and_its_derivation_in_a_narrow_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(tour.compile, "compile_specs", lambda *_, **__: [])
    monkeypatch.setattr(tour, "associative_recall", lambda names, *_, **__: printed.write(f"trained {names}"))
    printed, spec = io.StringIO(), load_spec(SPECS / "gated_deltanet.toml")
    tour.tour(spec, None, 1, tmp_path / "out", Console(file=printed, width=80))
    assert " ".join(spec.source.text.split()) in " ".join(printed.getvalue().split())
    assert "S_t = exp(g) S_prev - k e'" in printed.getvalue()
    assert (tmp_path / "out" / "gated_deltanet.html").is_file() and "trained ('gated_deltanet',)" in printed.getvalue()
