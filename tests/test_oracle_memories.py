"""The oracle against recurrences written by hand: momentum, segments, links, mirror maps, kinks and deep memories."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from test_oracle import PREVIOUS, PROXIMAL, RETAINED, assert_same, inputs_of, run, with_gradients, written
from ttrc.errors import ArgumentError, CheckFailed
from ttrc.language.spec import Domain, Spec
from ttrc.language.state import Part, initial_names, state_domain, state_parts

SQUARED, DECAYED = "norm2(p - v) / 2", "norm2(S - exp(g) * S_prev) / 2"
HUBER = "sum(huber(p - v, 0.5))"
GATES = {"g": "log_decay", "beta": "positive"}


def frozen(segment: int) -> str:
    return f'rule = "gradient"\nat = "segment_start"\nsegment = {segment}'


def with_momentum(update: str, momentum: str = "m") -> str:
    return f'{update}\nmomentum = "{momentum}"'


Sequence = dict[str, Tensor]  # of one head: q [T, dk] scaled, k, v, gates [T, *axes], parameters [*axes]
Rule = Callable[[Sequence, list[Tensor]], tuple[Tensor, tuple[Tensor, ...]]]  # and the state's parts -> o, the last


def by_head(spec: Spec, rule: Rule, x: dict[str, Tensor], scale: float | None = None) -> tuple[Tensor, ...]:
    """o [B, T, HV, dv] and the final parts, each sequence and head on its own; H = HV."""
    names, fixed = initial_names(spec), {p.name for p in spec.parameters}
    scale = x["k"].shape[-1] ** -0.5 if scale is None else scale
    B, _, HV, _ = x["v"].shape
    rows = []
    for b in range(B):
        for h in range(HV):
            own = {n: y[h] if n in fixed else y[b, :, h] for n, y in x.items() if n not in names}
            o, state = rule(own | {"q": own["q"] * scale}, [x[n][b, h] for n in names])
            rows.append((o, *state))
    o, *state = (torch.stack(part).unflatten(0, (B, HV)) for part in zip(*rows))
    return o.transpose(1, 2), *state


def check(spec: Spec, rule: Rule, *, scale: float | None = None, bound: float = 1e-11, **shape) -> None:
    x = inputs_of(spec, **({"B": 1, "T": 8, "H": 2, "HV": 2} | shape))
    expected = with_gradients(lambda x: by_head(spec, rule, x, scale), x)
    assert all(y.isfinite().all() for y in expected)
    assert_same(with_gradients(lambda x: run(spec, x), x), expected, bound)


def clip(r: Tensor) -> Tensor:
    return r.clamp(-0.5, 0.5)


def token_by_token(step) -> Rule:
    """step(S, k, v, gates of the token) -> S; then it is read."""

    def rule(x, state):
        outputs = []
        for t in range(len(x["q"])):
            state = step(state, x["k"][t], x["v"][t], {n: y[t] if y.ndim else y for n, y in x.items()})
            outputs.append(x["q"][t] @ state[0])
        return torch.stack(outputs), tuple(state)

    return rule


# Momentum


def heavy_ball(state, k, v, x):
    S, M = state
    M = x["m"] * M - x["beta"] * torch.outer(k, k @ S - v)
    return x["g"].exp() * S + M, M


def heavy_ball_on_ridge(state, k, v, x):
    S, M = state
    kept = x["g"].exp() * S / (1 + x["lam"])
    M = x["m"] * M - x["beta"] / (1 + x["lam"]) * torch.outer(k, k @ kept - v)
    return kept + M, M


def heavy_hebbian(state, k, v, x):
    S, M = state
    M = x["m"] ** 2 * M + torch.outer(k, v)
    return S + M, M


MOMENTUM = {
    "class M": (
        written(SQUARED, DECAYED, weight="beta", update=with_momentum(PREVIOUS), **GATES, m="unit"),
        heavy_ball,
    ),
    "ridge, decayed read": (
        written(
            SQUARED,
            DECAYED + " + lam * norm2(S) / 2",
            weight="beta",
            update=with_momentum(RETAINED),
            **GATES,
            lam="nonnegative",
            m="unit",
        ),
        heavy_ball_on_ridge,
    ),
    "an expression": (
        written("-dot(p, v)", "norm2(S - S_prev) / 2", update=with_momentum(PREVIOUS, "m ** 2"), m="unit"),
        heavy_hebbian,
    ),
}


@pytest.mark.parametrize("name", MOMENTUM)
def test_momentum(name):
    spec, step = MOMENTUM[name]
    assert state_parts(spec) == (Part("S", ("k", "v")), Part("M", ("k", "v")))
    check(spec, token_by_token(step))


def test_no_momentum_is_momentum_of_zero():
    plain, heavy = (written(HUBER, DECAYED, update=u, g="log_decay") for u in (PREVIOUS, with_momentum(PREVIOUS, "0")))
    x = inputs_of(heavy)
    light = {n: y for n, y in x.items() if not n.startswith("initial")} | {"initial_state": x["initial_S"]}
    o, S, _ = run(heavy, x)
    assert_same([o, S], list(run(plain, light)), 1e-13)


# Frozen gradients, in the chunk forms of classes D and D with momentum


def by_segment(segment: int, chunk) -> Rule:
    """chunk(x of the segment, state) -> o, state."""

    def rule(x, state):
        outputs, T = [], len(x["q"])
        for start in range(0, T, segment):
            piece = {n: y[start : start + segment] if y.ndim and len(y) == T else y for n, y in x.items()}
            o, state = chunk(piece, state)
            outputs.append(o)
        return torch.cat(outputs), tuple(state)

    return rule


def anchored(x, state):
    (S,) = state
    G = x["g"].cumsum(0)
    D = (G[:, None] - G[None, :]).exp().tril()
    E = x["beta"][:, None] * clip(x["k"] @ S - x["v"])
    o = G.exp()[:, None] * x["q"] @ S - ((x["q"] @ x["k"].T) * D) @ E
    return o, (G[-1].exp() * S - (x["k"] * D[-1][:, None]).T @ E,)


def anchored_with_momentum(x, state):
    S, M = state
    b, m = x["g"].cumsum(0).exp(), x["m"].cumprod(0)
    psi = clip(x["k"] @ S - x["v"])
    of_b, of_m = (b[:, None] / b).tril(), (m[:, None] / m).tril()
    Gm, f = of_b @ of_m * x["beta"], of_b @ m
    o = b[:, None] * (x["q"] @ S) + f[:, None] * (x["q"] @ M) - ((x["q"] @ x["k"].T) * Gm) @ psi
    S = b[-1] * S + f[-1] * M - (x["k"] * Gm[-1][:, None]).T @ psi
    return o, (S, m[-1] * M - (x["k"] * (x["beta"] * of_m[-1])[:, None]).T @ psi)


@pytest.mark.parametrize("segment", [1, 3, 4, 20])
def test_gradients_frozen_in_segments(segment):
    check(written(HUBER, DECAYED, weight="beta", update=frozen(segment), **GATES), by_segment(segment, anchored))


@pytest.mark.parametrize("segment", [1, 3, 8])
def test_frozen_gradients_with_momentum(segment):
    update = with_momentum(frozen(segment))
    spec = written(HUBER, DECAYED, weight="beta", update=update, **GATES, m="unit")
    check(spec, by_segment(segment, anchored_with_momentum))


def test_segments_count_from_the_start_of_each_sequence():
    spec = written(HUBER, DECAYED, weight="beta", update=with_momentum(frozen(3)), **GATES, m="unit")
    x = inputs_of(spec, B=1, T=9)
    x |= {n: torch.randn(3, *x[n].shape[1:], dtype=torch.float64) for n in initial_names(spec)}
    packed = run(spec, x, cu_seqlens=torch.tensor([0, 4, 4, 9]))
    moving = ("q", "k", "v", "g", "beta", "m")
    parts = [
        run(spec, {n: y[:, a:b] if n in moving else y[i : i + 1] for n, y in x.items()})
        for i, (a, b) in enumerate([(0, 4), (4, 4), (4, 9)])
    ]
    joined = [torch.cat(part, dim=1 if i == 0 else 0) for i, part in enumerate(zip(*parts))]
    assert_same(list(packed), joined, 1e-14)


# Links


def shrunk(A, x):
    half = x["lam"] / 2
    return torch.where(A > half, A - half, 0) + torch.where(A < -half, A + half, 0)


LINKS = {
    "lq_norm": ('{ kind = "lq_norm", q = 4, epsilon = 0.01 }', lambda A, x: A / ((A**4).sum() ** 0.5 + 0.01)),
    "lq_norm of a fraction": (
        '{ kind = "lq_norm", q = 1.5, epsilon = 0.01 }',
        lambda A, x: A * ((A.abs() ** 1.5).sum() ** (4 / 3) + 0.01) ** 0.25,
    ),
    "softmax over keys": ('{ kind = "softmax", axis = "key", scale = 2 }', lambda A, x: 2 * A.softmax(0)),
    "softmax over values": ('{ kind = "softmax", axis = "value", scale = 0.5 }', lambda A, x: A.softmax(1) / 2),
    "softmax over all": (
        '{ kind = "softmax", axis = "all", scale = 1 }',
        lambda A, x: A.flatten().softmax(0).reshape(A.shape),
    ),
    "soft_threshold": ('{ kind = "soft_threshold", threshold = "lam / 2" }', shrunk),
    "sigmoid": ('{ kind = "sigmoid" }', lambda A, x: 1 / (1 + (-A).exp())),
    "exp": ('{ kind = "exp" }', lambda A, x: A.exp()),
}  # fmt: skip


def linked_spec(name: str, update: str, **more: str) -> Spec:
    parameters = {"lam": "nonnegative"} if name == "soft_threshold" else None
    gates = GATES | more
    return written(
        HUBER, DECAYED, weight="beta", link=LINKS[name][0], update=update, parameters=parameters, **gates
    )  # fmt: skip


def linked_by_token(link, *, decayed_read: bool) -> Rule:
    def rule(x, state):
        (A,) = state
        outputs = []
        for q, k, v, g, beta in zip(x["q"], x["k"], x["v"], x["g"], x["beta"]):
            W = link(g.exp() * A if decayed_read else A, x)
            A = g.exp() * A - beta * torch.outer(k, clip(k @ W - v))
            outputs.append(q @ link(A, x))
        return torch.stack(outputs), (A,)

    return rule


def linked_by_segment(link, segment: int) -> Rule:
    """With momentum where x has m. Inside of a segment W moves as A does."""

    def rule(x, state):
        A, M = state if len(state) == 2 else (state[0], torch.zeros_like(state[0]))
        outputs = []
        for t, (q, k, v, g, beta) in enumerate(zip(x["q"], x["k"], x["v"], x["g"], x["beta"])):
            if t % segment == 0:
                start = W = link(A, x)
            M = (x["m"][t] if "m" in x else 0) * M - beta * torch.outer(k, clip(k @ start - v))
            A, W = g.exp() * A + M, g.exp() * W + M
            outputs.append(q @ W)
        return torch.stack(outputs), (A, M)[: len(state)]

    return rule


@pytest.mark.parametrize("update", [PREVIOUS, RETAINED], ids=["previous", "retained"])
@pytest.mark.parametrize("name", LINKS)
def test_links_token_by_token(name, update):
    check(linked_spec(name, update), linked_by_token(LINKS[name][1], decayed_read=update == RETAINED))


@pytest.mark.parametrize("name", LINKS)
def test_links_at_the_start_of_segments(name):
    check(linked_spec(name, frozen(3)), linked_by_segment(LINKS[name][1], 3))


def test_a_link_with_momentum():
    check(linked_spec("lq_norm", with_momentum(frozen(3)), m="unit"), linked_by_segment(LINKS["lq_norm"][1], 3))


def test_a_normalised_memory_may_start_at_zero():
    spec = linked_spec("lq_norm", PREVIOUS)
    x = inputs_of(spec)
    x["initial_state"] = torch.zeros_like(x["initial_state"])
    found = with_gradients(lambda x: run(spec, x), x)
    assert all(y.isfinite().all() for y in found)


def test_a_norm_of_order_two_links_nothing():
    plain = written(SQUARED, DECAYED, update=PREVIOUS, g="log_decay")
    linked = written(
        SQUARED, DECAYED, link='{ kind = "lq_norm", q = 2, epsilon = 1 }', update=PREVIOUS, g="log_decay"
    )  # fmt: skip
    x = inputs_of(plain)
    assert_same(with_gradients(lambda x: run(linked, x), x), with_gradients(lambda x: run(plain, x), x), 1e-13)


# Retentions that are not quadratic


ENTROPY = "sum(S * log(S) - S - a * S * log(S_prev))"
LOGIT = "sum(S * log(S) + (1 - S) * log(1 - S) - S * log(S_prev) - (1 - S) * log(1 - S_prev))"
ELASTIC = "norm2(S - S_prev) / 2 + lam * norm2(S) / 2 + mu * sum(abs(S))"


def elastic(state, k, v, x):
    (S,) = state
    z = S - x["beta"] * torch.outer(k, k @ S - v)
    return (z.sign() * torch.relu(z.abs() - x["mu"]) / (1 + x["lam"]),)


def logit(state, k, v, x):
    (S,) = state
    return (torch.sigmoid(torch.logit(S) - x["beta"] * torch.outer(k, k @ S - v)),)


NOT_QUADRATIC = {
    "entropy": (
        written(SQUARED, ENTROPY, weight="beta", update=PREVIOUS, a="decay", beta="positive"),
        Domain.POSITIVE,
        lambda state, k, v, x: (state[0] ** x["a"] * (-x["beta"] * torch.outer(k, k @ state[0] - v)).exp(),),
    ),
    "logit": (written(SQUARED, LOGIT, weight="beta", update=PREVIOUS, beta="positive"), Domain.UNIT, logit),
    "elastic net": (
        written(
            SQUARED, ELASTIC, weight="beta", update=PREVIOUS, beta="positive", lam="nonnegative", mu="nonnegative"
        ),
        Domain.REAL,
        elastic,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_QUADRATIC)
def test_retentions_that_are_not_quadratic(name):
    spec, domain, step = NOT_QUADRATIC[name]
    assert state_domain(spec) is domain
    check(spec, token_by_token(step))


def test_the_elastic_net_rests_on_its_kink():
    spec = NOT_QUADRATIC["elastic net"][0]
    x = inputs_of(spec)
    zeros = (run(spec, x)[1] == 0).double().mean()
    assert 0.1 < zeros < 0.99


def test_without_a_threshold_a_state_at_zero_rests_on_nothing():
    """The elastic net whose mu is 0 is a ridge, also where the state starts at zero and stays there for a token."""
    spec = NOT_QUADRATIC["elastic net"][0]
    x = inputs_of(spec, H=2)
    for name, part in (("mu", slice(None)), ("initial_state", slice(None)), ("beta", (slice(None), 0))):
        x[name] = x[name].clone()
        x[name][part] = 0.0

    def ridge(state, k, v, x):
        return ((state[0] - x["beta"] * torch.outer(k, k @ state[0] - v)) / (1 + x["lam"]),)

    expected = with_gradients(lambda x: by_head(spec, token_by_token(ridge), x) + (0 * x["mu"],), x)
    found = with_gradients(lambda x: (*run(spec, x), 0 * x["mu"]), x)
    known = [i for i in range(len(found)) if i != 3 + list(x).index("mu")]
    assert_same([found[i] for i in known], [expected[i] for i in known], 1e-12)


@pytest.mark.parametrize(("name", "link"), [("entropy", "exp"), ("logit", "sigmoid")])
def test_a_mirror_map_is_its_link(name, link):
    """The weights move by the same rule whether the map is in the retention or in the link."""
    direct = NOT_QUADRATIC[name][0]
    decay = "a * " if name == "entropy" else ""
    dual = written(
        SQUARED,
        f"norm2(S - {decay}S_prev) / 2",
        weight="beta",
        link=f'{{ kind = "{link}" }}',
        update=PREVIOUS,
        **{gate.name: gate.domain.value for gate in direct.inputs},
    )
    x = inputs_of(direct)
    into, out = (torch.log, torch.exp) if link == "exp" else (torch.logit, torch.sigmoid)
    o, S = run(direct, x)
    o_dual, A = run(dual, x | {"initial_state": into(x["initial_state"])})
    assert_same([o, S], [o_dual, out(A)], 1e-11)


def test_far_steps_stay_in_the_domain():
    """Entries move by many orders of magnitude in one token, up and down."""
    spec, _, step = NOT_QUADRATIC["entropy"]
    x = inputs_of(spec, T=1, H=2)
    x["v"] = torch.linspace(-30, 30, 20, dtype=torch.float64).reshape(2, 1, 2, 5)
    x["beta"] = torch.ones_like(x["beta"])
    expected = with_gradients(lambda x: by_head(spec, token_by_token(step), x), x)
    assert expected[1].max() / expected[1].min() > 1e12
    for found, wanted in zip(with_gradients(lambda x: run(spec, x), x), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


def test_a_start_outside_of_the_domain_is_refused():
    spec = NOT_QUADRATIC["entropy"][0]
    x = inputs_of(spec)
    with pytest.raises(CheckFailed, match="inside of its domain"):
        run(spec, x | {"initial_state": -x["initial_state"]})
    del x["initial_state"]
    with pytest.raises(ArgumentError, match="cannot start at zeros: give initial_state"):
        run(spec, x)


def test_a_proximal_step_over_kinks_is_refused():
    spec = written(SQUARED, "norm2(S - S_prev) / 2 + sum(abs(S))", update=PROXIMAL)
    with pytest.raises(CheckFailed, match="kinks"):
        run(spec, inputs_of(spec))
