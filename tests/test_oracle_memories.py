"""The oracle against recurrences written by hand: momentum, segments, links, mirror maps, kinks and deep memories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from test_oracle import PREVIOUS, PROXIMAL, RETAINED, assert_same, inputs_of, run, with_gradients, written
from ttrc.errors import ArgumentError, CheckFailed
from ttrc.language.load import load_spec
from ttrc.language.spec import Domain, Spec
from ttrc.language.state import Part, axis_widths, initial_names, state_domain, state_parts
from ttrc.paths import specs_dir
from ttrc.sampling import random_inputs

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
    for found, wanted in zip(with_gradients(lambda x: run(spec, x), x), expected, strict=True):
        assert wanted.isfinite().all()
        # By the tensor's size: entries of a learner's gradient cancel more, the further it has moved.
        torch.testing.assert_close(found, wanted, rtol=0, atol=bound * wanted.abs().max().item())


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
    assert state_parts(spec) == (Part("S", ("k", "v")), Part("M", ("k", "v"), is_step=True))
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
    "own, by entry": ('{ kind = "expression", expr = "tanh(S) - S / 4" }', lambda A, x: A.tanh() - A / 4),
    "own, by column": (
        '{ kind = "expression", expr = "lam * S / (norm(S) + 0.3)", axis = "key" }',
        lambda A, x: x["lam"] * A / ((A**2).sum(0) ** 0.5 + 0.3),
    ),
    "own, by row": (
        '{ kind = "expression", expr = "S / (sum(exp(S)) + lam)", axis = "value" }',
        lambda A, x: A / (A.exp().sum(1, keepdim=True) + x["lam"]),
    ),
    "own, of all": (
        '{ kind = "expression", expr = "S / sqrt(1 + norm2(S - sum(S) / 9))" }',
        lambda A, x: A / (1 + ((A - A.sum() / 9) ** 2).sum()) ** 0.5,
    ),
}  # fmt: skip


def linked_spec(name: str, update: str, **more: str) -> Spec:
    parameters = {"lam": "nonnegative"} if "lam" in LINKS[name][0] else None
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


# Shipped rules of two states, or in segments


def lagging(rate: str, segment: int | None, link=lambda A: A, error=lambda r: r) -> Rule:
    """Errors at the segment's start, or of each token at the state before it where there are no segments."""

    def rule(x, state):
        A, M = state if len(state) == 2 else (state[0], torch.zeros_like(state[0]))
        start, W, outputs = A, A, []
        for t, (q, k, v, g) in enumerate(zip(x["q"], x["k"], x["v"], x["g"])):
            if segment is None:
                start = A
            elif t % segment == 0:
                start = W = link(A)
            M = (x["m"][t].exp() if "m" in x else 0) * M - x[rate][t] * torch.outer(k, error(k @ start - v))
            A, W = g.exp() * A + M, g.exp() * W + M
            outputs.append(q @ W)
        return torch.stack(outputs), (A, M)[: len(state)]

    return rule


SHIPPED = {
    "momentum_deltanet": lagging("beta", None),
    "titans_linear": lagging("theta", 64),
    "memora_linear": lagging("theta", 16, lambda A: 16 * A.softmax(0)),
    "moneta_linear": lagging(
        "theta", 16, lambda A: A / ((A**4).sum() ** 0.5 + 0.01), lambda r: 3 * r * (r.square() + 1e-6).sqrt()
    ),
}


@pytest.mark.parametrize("extreme", [None, "strong", "weak"])
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_specs_say_what_their_papers_do(name, extreme):
    spec = load_spec(Path(__file__).parent.parent / "specs" / f"{name}.toml")
    check(spec, SHIPPED[name], B=1, T=18, extreme=extreme)


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


def behind_a_barrier(state, k, v, x):
    (S,) = state
    y = S - x["beta"] * torch.outer(k, k @ S - v)
    return ((y + (y.square() + 4 * x["mu"]).sqrt()) / 2,)


NOT_QUADRATIC = {
    "barrier": (
        written(
            SQUARED,
            "norm2(S - S_prev) / 2 - mu * sum(log(S))",
            weight="beta",
            update=PREVIOUS,
            beta="positive",
            mu="positive",
        ),
        Domain.POSITIVE,
        behind_a_barrier,
    ),
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


def test_a_kink_elsewhere_is_refused():
    spec = written(SQUARED, "norm2(S) / 2 + sum(abs(S - S_prev))", update=PREVIOUS)
    with pytest.raises(CheckFailed, match="kinks at 0"):
        run(spec, inputs_of(spec))


def implicit_huber(state, k, v, x):
    """p' + beta |k|^2 e(p') = p, by the side of the threshold on which p' - v lies."""
    (S,) = state
    S = x["g"].exp() * S
    r, kappa = k @ S - v, x["beta"] * (k @ k)
    return (S - x["beta"] * torch.outer(k, clip(r / (1 + kappa))),)


def test_implicit_steps_of_a_nonlinear_error():
    spec = written(HUBER, DECAYED, weight="beta", update=PROXIMAL, **GATES)
    check(spec, token_by_token(implicit_huber))


def by_channel(state, k, v, x):
    (S,) = state
    clipped = torch.minimum(torch.maximum(k @ S - v, -x["delta"]), x["delta"])
    return (x["a"] * S - torch.outer(x["c"] * k, x["w"] * clipped),)


def test_gates_of_channels_and_of_entries():
    spec = written(
        "sum(w * huber(p - v, delta))",
        "norm2((S - a * S_prev) / sqrt(c)) / 2",
        update=PREVIOUS,
        w="value_channel/unit",
        a="element/decay",
        c="key_channel/positive",
        parameters={"delta": "value_channel/positive"},
    )

    def rule(x, state):
        step = token_by_token(lambda S, k, v, y: by_channel(S, k, v, y | {"delta": x["delta"]}))
        return step({n: y for n, y in x.items() if n != "delta"}, state)

    check(spec, rule)


def test_a_proximal_step_over_kinks_is_refused():
    spec = written(SQUARED, "norm2(S - S_prev) / 2 + sum(abs(S))", update=PROXIMAL)
    with pytest.raises(CheckFailed, match="kinks"):
        run(spec, inputs_of(spec))


# Deep memories


def deep(layers: int = 2, activation: str = "gelu", residual: bool = True, norm: bool = True) -> str:
    return (
        f'kind = "mlp"\nlayers = {layers}\nexpansion = 2\nactivation = "{activation}"\n'
        f"residual = {str(residual).lower()}\nnorm = {str(norm).lower()}"
    )


def normed(Z: Tensor) -> tuple[Tensor, Tensor]:
    """Z [C, d] centred and of length sqrt(d), and the spreads it was divided by."""
    spread = (Z.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return (Z - Z.mean(-1, keepdim=True)) / spread, spread


def anchored_deep(x, state):
    """Class E: f(x) = x + LN(tanh(x W1) W2), squared error, derivatives written out."""
    W1, W2 = state
    G = x["g"].cumsum(0)
    decay, Lam = G.exp()[:, None], (G[:, None] - G[None, :]).exp().tril() * x["beta"]
    X2 = (x["k"] @ W1).tanh()
    xh, spread = normed(X2 @ W2)
    gout = x["norm_weight"] * (x["norm_weight"] * xh + x["norm_bias"] - (x["v"] - x["k"]))
    D2 = (gout - gout.mean(-1, keepdim=True) - xh * (gout * xh).mean(-1, keepdim=True)) / spread
    D1 = (D2 @ W2.T) * (1 - X2**2)
    Xb2 = (decay * (x["q"] @ W1) - ((x["q"] @ x["k"].T) * Lam) @ D1).tanh()
    Zb2 = decay * (Xb2 @ W2) - ((Xb2 @ X2.T) * Lam) @ D2
    o = x["q"] + x["norm_weight"] * normed(Zb2)[0] + x["norm_bias"]
    W1 = decay[-1] * W1 - (x["k"] * Lam[-1][:, None]).T @ D1
    return o, (W1, decay[-1] * W2 - (X2 * Lam[-1][:, None]).T @ D2)


@pytest.mark.parametrize("segment", [1, 3, 6])
def test_a_deep_memory_with_frozen_gradients(segment):
    spec = written(
        SQUARED, DECAYED, weight="beta", update=frozen(segment), memory=deep(activation="tanh"), **GATES
    )  # fmt: skip
    check(spec, by_segment(segment, anchored_deep), scale=1.0, dk=3, dv=3, T=6)


GATED = "\ngated = true"
ACTIVATIONS = {
    "gelu": lambda x: x / 2 * (1 + ((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)).tanh()),
    "silu": lambda x: x / (1 + (-x).exp()),
    "relu": lambda x: torch.where(x > 0, x, 0),
    "tanh": torch.tanh,
    "max(x, 0) ** 2 + 0.1 * exp(-x)": lambda x: torch.where(x > 0, x * x, 0) + 0.1 / x.exp(),
}


def network(spec: Spec, W: list[Tensor], x: Tensor, gates: dict[str, Tensor]) -> Tensor:
    """f(x), [dk] -> [dv]."""
    memory, z, last = spec.memory, x, W[-1]
    act = ACTIVATIONS[memory.activation.text]
    if memory.gated:
        for i in range(0, len(W) - 1, 2):
            z = act(z @ W[i]) * (z @ W[i + 1])
    else:
        for weights in W[:-1]:
            z = act(z @ weights)
    z = z @ last
    if memory.norm:
        z = functional.layer_norm(z, z.shape, gates["norm_weight"], gates["norm_bias"], eps=1e-6)
    return x + z if memory.residual else z


def deep_by_token(spec: Spec, error, *, decayed_read=False, segment=None, link=lambda A, x: A) -> Rule:
    """error(p - v), the sum of it is the loss; momentum m where x has it; inner gradients by torch."""

    def rule(x, state):
        count, outputs = len(state) // (2 if "m" in x else 1), []
        A, M = list(state[:count]), list(state[count:]) or [0.0] * count
        for t, (q, k, v, g, beta) in enumerate(zip(x["q"], x["k"], x["v"], x["g"], x["beta"])):
            if segment and t % segment == 0:
                start = W = [link(a, x) for a in A]
            at = start if segment else [link(g.exp() * a if decayed_read else a, x) for a in A]
            at = [w if w.requires_grad else w.clone().requires_grad_() for w in at]
            loss = beta * error(network(spec, at, k, x) - v).sum()
            slopes = torch.autograd.grad(loss, at, create_graph=True)
            M = [(x["m"][t] if "m" in x else 0) * m - slope for m, slope in zip(M, slopes)]
            A = [g.exp() * a + m for a, m in zip(A, M)]
            W = [g.exp() * w + m for w, m in zip(W, M)] if segment else [link(a, x) for a in A]
            outputs.append(network(spec, W, q, x))
        return torch.stack(outputs), (*A, *M)[: len(state)]

    return rule


def half_square(r):
    return r**2 / 2


DEEP = {
    "one layer": (deep(1), PREVIOUS, None, {}),
    "one layer, frozen": (deep(1, residual=False), frozen(3), None, {"segment": 3}),
    "gelu, before the decay": (deep(2, "gelu"), PREVIOUS, None, {}),
    "gelu, after the decay": (deep(2, "gelu"), RETAINED, None, {"decayed_read": True}),
    "silu, frozen": (deep(2, "silu", norm=False), frozen(3), None, {"segment": 3}),
    "relu, plain": (deep(2, "relu", residual=False, norm=False), frozen(3), None, {"segment": 3}),
    "three layers": (deep(3, "silu"), frozen(2), None, {"segment": 2}),
    "momentum": (deep(2), with_momentum(frozen(3)), None, {"segment": 3}),
    "momentum by token": (deep(3, "tanh", residual=False), with_momentum(PREVIOUS), None, {}),
    "links at segments": (deep(2), frozen(3), "lq_norm", {"segment": 3}),
    "links and momentum": (deep(2), with_momentum(frozen(3)), "softmax over keys", {"segment": 3}),
    "links by token": (deep(2), RETAINED, "softmax over values", {"decayed_read": True}),
    "an activation of its own": (deep(3, "max(x, 0) ** 2 + 0.1 * exp(-x)"), frozen(3), None, {"segment": 3}),
    "gated": (deep(2, "silu") + GATED, frozen(3), None, {"segment": 3}),
    "two gated layers": (deep(3, "gelu", norm=False) + GATED, with_momentum(frozen(3)), None, {"segment": 3}),
    "gated, by token": (deep(2, "silu", norm=False) + GATED, RETAINED, None, {"decayed_read": True}),
    "gated, with links": (deep(2, "relu") + GATED, frozen(3), "softmax over keys", {"segment": 3}),
}


def deep_spec(name: str, loss: str = SQUARED) -> Spec:
    memory, update, link, _ = DEEP[name]
    gates = GATES | ({"m": "unit"} if "momentum" in update else {})
    return written(
        loss, DECAYED, weight="beta", update=update, memory=memory, link=link and LINKS[link][0], **gates
    )  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_deep_memories(name):
    spec, (_, _, link, options) = deep_spec(name), DEEP[name]
    if link:
        options = options | {"link": LINKS[link][1]}
    check(spec, deep_by_token(spec, half_square, **options), scale=1.0, dk=4, dv=4, T=7)


# What a shipped rule calls the rate, the log decay and the momentum of deep_by_token.
SHIPPED_DEEP = {
    "ttt_linear": lambda x: {"beta": x["eta"] / 16, "g": 0 * x["eta"]},
    "ttt_mlp": lambda x: {"beta": x["eta"] / 16, "g": 0 * x["eta"]},
    "titans": lambda x: {"beta": x["theta"] / 64, "g": x["g"] / 64, "m": x["m"].exp()},
    "yaad": lambda x: {"beta": x["eta"] / 16, "g": x["g"] / 16},
    "memora": lambda x: {"beta": x["theta"], "g": x["g"] / 16},
    "moneta": lambda x: {"beta": x["theta"] / 128, "g": x["g"] / 16},
}


def huber_of_the_norm(r: Tensor, delta: float = 0.7) -> Tensor:
    size = r.norm()
    return size**2 / 2 if size <= delta else delta * (size - delta / 2)


def cubed(r: Tensor) -> Tensor:
    return (r.square() + 1e-6) ** 1.5


SHIPPED_ERRORS = {"yaad": huber_of_the_norm, "moneta": cubed}
SHIPPED_LINKS = {
    "memora": lambda A, x: 4 * A.softmax(0),
    "moneta": lambda A, x: A / ((A**4).sum() ** 0.5 + 0.01),
}


@pytest.mark.parametrize("name", SHIPPED_DEEP)
def test_shipped_deep_memories_say_what_their_papers_do(name):
    spec = load_spec(specs_dir() / f"{name}.toml")
    link = SHIPPED_LINKS.get(name, lambda A, x: A)
    rule = deep_by_token(spec, SHIPPED_ERRORS.get(name, half_square), segment=16, link=link)
    x = inputs_of(spec, B=1, T=19, H=2, HV=2, dk=4, dv=4)
    if name == "yaad":
        x["delta"] = torch.full_like(x["delta"], 0.7)
    moved = lambda x: by_head(spec, lambda own, state: rule(own | SHIPPED_DEEP[name](own), state), x, 1.0)  # noqa: E731
    known = {n: y for n, y in x.items() if n != "delta"}
    expected = with_gradients(lambda y: moved(x | y), known)
    for found, wanted in zip(with_gradients(lambda y: run(spec, x | y), known), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11 * wanted.abs().max().item())


def test_a_deep_memory_with_another_loss_and_other_widths():
    name = "relu, plain"
    spec = deep_spec(name, "sum(log_cosh(p - v))")
    rule = deep_by_token(spec, lambda r: r.cosh().log(), **DEEP[name][3])
    check(spec, rule, scale=1.0, dk=3, dv=5, H=2, HV=2)


def test_one_plain_layer_is_a_linear_memory():
    update = with_momentum(frozen(3))
    layer = written(HUBER, DECAYED, update=update, memory=deep(1, residual=False, norm=False), g="log_decay", m="unit")
    linear = written(HUBER, DECAYED, update=update, g="log_decay", m="unit")
    assert [part.axes for part in state_parts(layer)] == [part.axes for part in state_parts(linear)]
    x = inputs_of(linear)
    renamed = {n.replace("initial_S", "initial_W1").replace("initial_M", "initial_M1"): y for n, y in x.items()}
    found = with_gradients(lambda x: run(layer, x), renamed)
    assert_same(found, with_gradients(lambda x: run(linear, x, scale=1.0), x), 1e-13)


def test_a_deep_memory_needs_a_start_and_fitting_widths():
    spec = deep_spec("momentum")
    x = inputs_of(spec, dk=4, dv=4)
    started = {n: y for n, y in x.items() if not n.startswith("initial")}
    with pytest.raises(ArgumentError, match="give initial_W1, initial_W2, initial_M1, initial_M2"):
        run(spec, started)
    with pytest.raises(ArgumentError, match="as many key channels as value channels, not 4 and 5: a residual"):
        run(spec, inputs_of(spec, dk=4, dv=5))


def test_random_states_have_every_part():
    spec = deep_spec("momentum")
    x = random_inputs(spec, B=3, T=2, H=1, HV=2, dk=64, dv=64)
    widths = axis_widths(spec.memory, 64, 64)
    for name, part in zip(initial_names(spec), state_parts(spec), strict=True):
        shape = tuple(widths[axis] for axis in part.axes)
        assert x[name].shape == (3, 2, *shape) and x[name].dtype == torch.float32
        size = 0.1 if part.is_step else 1.0  # last steps are small beside what they move
        assert 0.9 * size < x[name].std() * shape[0] ** 0.5 < 1.1 * size
    assert x["norm_weight"].shape == x["norm_bias"].shape == (2, 64)
    assert x["norm_weight"].mean() > 0.9 and x["norm_bias"].std() > 0.1
    entropy, _, _ = NOT_QUADRATIC["entropy"]
    assert (random_inputs(entropy, B=1, T=1, H=1, HV=1, dk=9, dv=9)["initial_state"] > 0).all()


# Every kind of rule against finite differences of itself


SMALL = {
    "momentum": MOMENTUM["class M"][0],
    "frozen": written(HUBER, DECAYED, weight="beta", update=with_momentum(frozen(2)), **GATES, m="unit"),
    "lq_norm": linked_spec("lq_norm", frozen(2)),
    "softmax": linked_spec("softmax over keys", RETAINED),
    "soft_threshold": linked_spec("soft_threshold", PREVIOUS),
    "entropy": NOT_QUADRATIC["entropy"][0],
    "elastic net": NOT_QUADRATIC["elastic net"][0],
    "deep": deep_spec("momentum"),
    "deep, linked": deep_spec("links by token"),
}


@pytest.mark.parametrize("name", SMALL)
def test_gradients_agree_with_finite_differences(name):
    spec = SMALL[name]
    x = inputs_of(spec, B=1, T=3, HV=1, dk=2, dv=2)
    leaves = [y.requires_grad_() for y in x.values()]
    assert torch.autograd.gradcheck(lambda *leaves: run(spec, dict(zip(x, leaves))), leaves, check_undefined_grad=False)
