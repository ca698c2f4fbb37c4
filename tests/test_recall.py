"""The recall model takes any shipped rule; noise is what its docstring says, and the same for every rule."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from bench import recall as study
from ttrc.language.load import load_spec
from ttrc.language.state import initial_names, needs_initial_state
from ttrc.runtime.load import load, shipped_specs
from ttrc.tools.recall import IGNORE, Noise, RecallModel, Task, Training, draw_noise, held_out, learn, new_model, sample

SMALL = Task(vocabulary=16, length=20, pairs=5, rebound=2)
NOISY = replace(SMALL, length=24, pairs=4, rebound=0, repeats=2, noise=0.1, value_outliers=0.3, key_outliers=0.3)
TINY = Training(heads=2, channels=4, batch=3)


@pytest.fixture(autouse=True)
def plain_pytorch(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # as `ttrc demo` and the study run operators


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", shipped_specs())
def test_every_shipped_rule_takes_a_step_in_all_that_it_learns(name):
    model = new_model(load(name), NOISY, TINY)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert [*learn(model, 1, NOISY, TINY)] == [1]
    for n, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), f"no gradient reaches {n}"
        assert not torch.equal(p, before[n]), f"{n} did not move"
    assert (model.start is not None) == needs_initial_state(model.op.spec)


class Recorded:
    """An operator of some spec that keeps what it was called with and returns its values."""

    def __init__(self, spec):
        self.spec = spec

    def __call__(self, q, k, v, **others):
        self.q, self.k, self.v, self.others = q, k, v, others
        return v, None


DEEP = """
schema = 1
name = "deep"
reference = "a test"
[inputs]
m = { per = "head", domain = "log_decay" }
theta = { per = "head", domain = "unit" }
[memory]
kind = "mlp"
layers = 2
expansion = 3
activation = "gelu"
residual = false
norm = false
[loss]
weight = "theta"
expr = "norm2(p - v) / 2"
[retention]
expr = "norm2(S - S_prev) / 2"
[update]
rule = "gradient"
at = "segment_start"
segment = 16
momentum = "exp(m)"
"""


def test_a_memory_that_needs_a_start_gets_one_learned_for_each_part(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text(DEEP)
    spec = load_spec(path)
    assert initial_names(spec) == ("initial_W1", "initial_W2", "initial_M1", "initial_M2")
    model = new_model(Recorded(spec), SMALL, TINY)
    tokens, _ = sample(SMALL, 3, seeded())
    model(tokens)
    start = model.op.others["initial_state"]
    assert [tuple(part.shape) for part in start] == [(3, 2, 4, 12), (3, 2, 12, 4)] * 2
    assert [bool(part.any()) for part in start] == [True, True, False, False]  # no step has been taken yet
    for name, part in zip(("W1", "W2", "M1", "M2"), start):
        assert torch.equal(part, model.start.raw[name].expand_as(part)) and part.requires_grad


def test_no_entry_of_a_start_lies_outside_of_its_domain():
    model = new_model(Recorded(load("entropy_delta").spec), SMALL, TINY)
    model(sample(SMALL, 3, seeded())[0])
    assert model.op.others["initial_state"].min() > 0


def test_what_is_stored_starts_almost_kept_and_momentum_at_half():
    gates = new_model(load("momentum_deltanet"), SMALL, TINY).gates
    assert gates["g"].project.bias.min() == 4 and not gates["m"].project.bias.any()


# Noise


def test_outliers_hit_both_tokens_of_their_share_of_the_statements_and_never_a_question():
    task = replace(NOISY, value_outliers=0.3, key_outliers=0.1)
    noise = draw_noise(task, 500, TINY, seeded())
    context = 2 * task.pairs * task.repeats
    for x, share in ((noise.values, 0.3), (noise.keys, 0.1)):
        assert x.shape == (500, task.length, 2, 4)
        length = x.norm(dim=-1)
        hit = length > 0
        torch.testing.assert_close(length[hit], torch.full_like(length[hit], task.outlier))
        assert not hit[:, context:].any()
        of_statements = hit[:, :context].unflatten(1, (-1, 2)).flatten(2)  # [sequence, statement, token and head]
        assert torch.equal(of_statements.all(-1), of_statements.any(-1))
        assert of_statements.float().mean().item() == pytest.approx(share, abs=0.03)
    directions = normalize(noise.values[(noise.values != 0).any(-1)], dim=-1)
    assert directions.mean(0).norm() < 0.05  # no direction is preferred
    assert not torch.equal(noise.values != 0, noise.keys != 0)


def test_embeddings_are_disturbed_by_normal_numbers():
    embeddings = draw_noise(NOISY, 500, TINY, seeded()).embeddings
    assert embeddings.shape == (500, NOISY.length, 8)
    assert embeddings.std().item() == pytest.approx(NOISY.noise, rel=0.02) and abs(embeddings.mean()) < 0.01


def test_more_outliers_are_the_same_and_others():
    few, many = (draw_noise(replace(NOISY, value_outliers=s), 50, TINY, seeded()) for s in (0.2, 0.5))
    hit = few.values != 0
    assert torch.equal(many.values[hit], few.values[hit]) and (many.values != 0).sum() > hit.sum()
    assert torch.equal(many.keys, few.keys) and torch.equal(many.embeddings, few.embeddings)


def test_noise_reaches_what_is_stored_as_it_says():
    model = new_model(Recorded(load("gated_deltanet").spec), NOISY, TINY)
    tokens, _ = sample(NOISY, 3, seeded())
    model(tokens)
    q, k, v, gates = model.op.q, model.op.k, model.op.v, model.op.others
    drawn = draw_noise(replace(NOISY, noise=0.0), 3, TINY, seeded())
    model(tokens, drawn)
    torch.testing.assert_close(model.op.v, v + drawn.values * v.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(model.op.k, normalize(k + drawn.keys, dim=-1))
    assert torch.equal(model.op.q, q) and all(torch.equal(model.op.others[n], gates[n]) for n in gates)
    silent = Noise(*(torch.zeros_like(x) for x in (drawn.embeddings, drawn.keys, drawn.values)))
    assert torch.equal(model(tokens, silent), model(tokens))
    assert not torch.equal(model(tokens, draw_noise(NOISY, 3, TINY, seeded())), model(tokens, drawn))


def test_pairs_are_stated_again_in_their_order_with_the_same_answers():
    once, thrice = replace(SMALL, repeats=1, length=20), replace(SMALL, repeats=3, length=40)
    (tokens, labels), (more, answers) = (sample(task, 20, seeded()) for task in (once, thrice))
    torch.testing.assert_close(more[:, :30], tokens[:, :10].repeat(1, 3))
    for row, answer in zip(more.tolist(), answers.tolist()):
        bound = dict(zip(row[:30:2], row[1:30:2]))
        assert answer == [IGNORE] * 30 + [bound[key] for key in row[30:]]


def test_every_rule_sees_the_same_tokens_and_the_same_noise():
    class Seen(RecallModel):
        def forward(self, tokens, noise=None):
            self.seen = [*getattr(self, "seen", []), (tokens, noise)]
            return super().forward(tokens, noise)

    def seen(name, seed):
        training = replace(TINY, seed=seed)
        torch.manual_seed(seed)
        model = Seen(Recorded(load(name).spec), NOISY, 2, 4)
        assert [*learn(model, 3, NOISY, training)] == [1, 2, 3]
        return [(t, *vars(n).values()) for t, n in [*model.seen, held_out(NOISY, 5, training)[::2]]]

    def equal(a, b):
        return [all(map(torch.equal, x, y)) for x, y in zip(a, b)]

    assert equal(seen("linear_attention", 0), seen("huber_delta", 0)) == [True] * 4
    assert equal(seen("linear_attention", 0), seen("linear_attention", 1)) == [False] * 4


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_gradient_that_is_not_finite_moves_nothing():
    model = new_model(Recorded(load("linear_attention").spec), SMALL, TINY)
    model.out.weight.register_hook(lambda g: g * float("nan"))
    before = [p.detach().clone() for p in model.parameters()]
    assert [*learn(model, 2, SMALL, TINY)] == [1, 2]
    assert all(map(torch.equal, before, model.parameters()))


# The study

FAST = study.Setting(NOISY, TINY, steps=2, asked=4)


def test_a_run_of_the_study_is_asked_at_every_share_and_repeats():
    run = study.Run("linear_attention", "value", 0)
    found, again = study.answer(run, FAST), study.answer(run, FAST)
    assert (found["rule"], found["place"], found["seed"]) == ("linear_attention", "value", 0)
    assert [(a["place"], a["share"]) for a in found["asked"]] == [
        (place, share) for place in study.PLACES for share in study.SHARES
    ]
    assert found == again


def made_up(rule, place, seed, accuracy=0.5):
    asked = [{"place": p, "share": s, "accuracy": accuracy} for p in study.PLACES for s in study.SHARES]
    return {"rule": rule, "place": place, "seed": seed, "asked": asked}


def test_rules_that_are_trained_again_replace_their_runs_and_others_stay(tmp_path):
    path = tmp_path / "recall.json"
    runs = [made_up(rule, place, 0) for rule in ("one", "other") for place in (None, "value", "key")]
    path.write_text(study.text(runs, FAST))
    assert {run["rule"] for run in study.kept(path, FAST, ["one"])} == {"other"}
    assert study.kept(path, replace(FAST, steps=3), ["one"]) == []
    assert set(json.loads(path.read_text())) == {"setting", "versions", "device", "runs"}


def test_the_page_holds_the_mean_and_the_spread_of_the_seeds(tmp_path):
    runs = [made_up("one", place, seed, 0.25 + 0.5 * seed) for place in (None, "value", "key") for seed in (0, 1)]
    page = study.in_page("before\n" + "".join(study.MARKS) + "after\n", runs)
    assert page.startswith("before\n") and page.endswith("after\n")
    assert page.count("| one | 50% (25% to 75%) |") == len(study.panels())
    study.plot(runs, FAST, tmp_path / "a.svg")
    study.plot(runs, FAST, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
