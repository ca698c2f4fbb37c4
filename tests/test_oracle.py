"""The oracle against recurrences written by hand, in float64: values, gradients, and what must and must not matter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ttrc import oracle
from ttrc.errors import CheckFailed
from ttrc.language.load import load_spec, parse_spec
from ttrc.language.spec import Spec
from ttrc.language.state import initial_names
from ttrc.language.syntax import names
from ttrc.oracle import expressions
from ttrc.oracle.minimise import argmin
from ttrc.sampling import random_inputs

SPECS = Path(__file__).parent.parent / "specs"
SHIPPED = sorted(path.stem for path in SPECS.glob("*.toml"))


def shipped(name: str) -> Spec:
    return load_spec(SPECS / f"{name}.toml")


def declared(domains: dict[str, str]) -> str:
    return "".join(
        f'{name} = {{ per = "{per or "head"}", domain = "{domain}" }}\n'
        for name, (per, _, domain) in ((name, text.rpartition("/")) for name, text in domains.items())
    )


def written(
    loss: str,
    retention: str,
    *,
    weight: str | None = None,
    link: str | None = None,
    update: str,
    memory: str = 'kind = "linear"',
    parameters: dict[str, str] | None = None,
    **domains: str,
) -> Spec:
    """A spec from its expressions; domains, and parameters: name="domain" or name="per/domain"."""
    return parse_spec(
        'schema = 1\nname = "by_hand"\nreference = "a test"\n'
        + (f"[inputs]\n{declared(domains)}" if domains else "")
        + (f"[parameters]\n{declared(parameters)}" if parameters else "")
        + f"[memory]\n{memory}\n"
        + f'[loss]\nexpr = "{loss}"\n'
        + (f'weight = "{weight}"\n' if weight else "")
        + f'[retention]\nexpr = "{retention}"\n'
        + (f"link = {link}\n" if link else "")
        + f"[update]\n{update}\n"
    )


PROXIMAL = 'rule = "proximal"'
RETAINED = 'rule = "gradient"\nat = "retained"'
PREVIOUS = 'rule = "gradient"\nat = "previous"'


def inputs_of(spec: Spec, *, B=2, T=9, H=1, HV=2, dk=4, dv=5, seed=0, extreme=None) -> dict[str, Tensor]:
    drawn = random_inputs(spec, B=B, T=T, H=H, HV=HV, dk=dk, dv=dv, dtype=torch.float64, seed=seed, extreme=extreme)
    drawn["k"] = drawn["k"] * 1.3  # of no special length
    return {name: x.double() for name, x in drawn.items()}


def run(spec: Spec, x: dict[str, Tensor], **options) -> tuple[Tensor, ...]:
    """o, and the parts of the final state one by one; x has those of the initial state by their names, or none."""
    names = initial_names(spec)
    gates = {name: y for name, y in x.items() if name not in ("q", "k", "v", *names)}
    state = tuple(x[name] for name in names if name in x)
    initial_state = None if not state else state if len(names) > 1 else state[0]
    o, final = oracle.run(spec, x["q"], x["k"], x["v"], gates, initial_state=initial_state, **options)
    return o, *(final if isinstance(final, tuple) else (final,))


def by_hand(write, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """write(S, k, v, gates) -> S for one token of one head: S [dk, dv], k [dk], v [dv], gates numbers or vectors."""
    B, T, HV, _ = x["v"].shape
    group = HV // x["k"].shape[2]
    names = [name for name in x if name not in ("q", "k", "v", "initial_state")]
    outputs, finals = [], []
    for b in range(B):
        for h in range(HV):
            S = x["initial_state"][b, h]
            for t in range(T):
                gates = {n: x[n][h] if len(x[n]) == HV and x[n].ndim == 1 else x[n][b, t, h] for n in names}
                S = write(S, x["k"][b, t, h // group], x["v"][b, t, h], gates)
                outputs.append(S.T @ x["q"][b, t, h // group] * x["k"].shape[-1] ** -0.5)
            finals.append(S)
    o = torch.stack(outputs).reshape(B, HV, T, -1).transpose(1, 2)
    return o, torch.stack(finals).reshape(x["initial_state"].shape)


def with_gradients(function, x: dict[str, Tensor]) -> list[Tensor]:
    """o, the final state, and the gradient of a fixed random mixture of both for every input."""
    leaves = {name: y.detach().requires_grad_() for name, y in x.items()}
    outputs = function(leaves)
    generator = torch.Generator().manual_seed(7)
    mixture = sum((y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in outputs)
    return [*(y.detach() for y in outputs), *torch.autograd.grad(mixture, list(leaves.values()))]


def assert_same(found: list[Tensor], expected: list[Tensor], bound: float):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def delta(S: Tensor, k: Tensor, v: Tensor, rate: Tensor | float) -> Tensor:
    return S - rate * torch.outer(k, S.T @ k - v)


def robust(S, k, v, x):
    """The step of the squared error, and one of length delta along the error's direction; none where there is none."""
    r = S.T @ k - v
    direction = r / torch.where(r.norm() > 0, r.norm(), 1.0)
    return S - x["beta"] * torch.outer(k, r + x["delta"] * direction)


def huber(S, k, v, x):
    """The error counts as no more than delta; the gradient is taken before the memory decays."""
    clipped = torch.minimum(torch.maximum(S.T @ k - v, -x["delta"]), x["delta"])
    return x["g"].exp() * S - x["beta"] * torch.outer(k, clipped)


def cubed(S, k, v, x):
    r = S.T @ k - v
    return S - x["rate"] * x["beta"] * torch.outer(k, r.sign() * r.square())


def implicit_huber(S, k, v, x):
    """p' + beta |k|^2 e(p') = p, by the side of the threshold on which p' - v lies."""
    S = x["g"].exp() * S
    error = (S.T @ k - v) / (1 + x["beta"] * (k @ k))
    return S - x["beta"] * torch.outer(k, torch.minimum(torch.maximum(error, -x["delta"]), x["delta"]))


def elastic(S, k, v, x):
    Z = delta(S, k, v, x["beta"])
    return Z.sign() * torch.relu(Z.abs() - x["mu"]) / (1 + x["lam"])


def in_turn(S, k, v, x):
    """Decayed once, then a step of the delta rule after the other."""
    S = delta(x["g"].exp() * S, k, v, x["beta"])
    return delta(S, x["k_2"], x["v_2"], x["beta_2"])


def removal(S, k, v, x):
    """diag(e^w) S - (a kappa) kappa' S + k v' (arXiv:2503.14456, Eq 16, transposed)."""
    removed = torch.outer(x["a"] * x["kappa"], S.T @ x["kappa"])
    return x["w"].exp()[:, None] * S - removed + torch.outer(k, v)


def by_factors(S, k, v, x):
    return S ** x["g"].exp() * (-x["beta"] * torch.outer(k, S.T @ k - v)).exp()


BY_HAND = {
    "implicit_huber": implicit_huber,
    "elastic_delta": elastic,
    "entropy_delta": by_factors,
    "huber_delta": huber,
    "lp_delta": cubed,
    "robust_delta": lambda S, k, v, x: robust(x["g"].exp() * S, k, v, x),
    "linear_attention": lambda S, k, v, x: S + torch.outer(k, v),
    "retnet": lambda S, k, v, x: x["log_gamma"].exp() * S + torch.outer(k, v),
    "lightning_attention": lambda S, k, v, x: x["slope"].exp() * S + torch.outer(k, v),
    "mamba2": lambda S, k, v, x: (x["dt"] * x["A"]).exp() * S + x["dt"] * torch.outer(k, v),
    "deltanet": lambda S, k, v, x: delta(S, k, v, x["beta"]),
    "gated_deltanet": lambda S, k, v, x: delta(x["g"].exp() * S, k, v, x["beta"]),
    "gla": lambda S, k, v, x: x["g"].exp()[:, None] * S + torch.outer(k, v),
    "kda": lambda S, k, v, x: delta(x["g"].exp()[:, None] * S, k, v, x["beta"]),
    "rwkv7": removal,
    "gated_deltaproduct": in_turn,
    "longhorn": lambda S, k, v, x: delta(S, k, v, x["beta"] / (1 + x["beta"] * (k @ k))),
}


# Of two states, or in segments: by hand in test_oracle_memories.py; over all the past: in test_closed.py.
DEEP = ("memora", "moneta", "titans", "ttt_linear", "ttt_mlp", "yaad")
PAIRS = ("forgetting_attention", "softmax_attention")  # by torch's own attention in test_attention.py
LINES = ("local_linear_attention",)  # test_lines.py
VECTORS = ("min_gru", "rg_lru")  # test_vector.py
ENTRIES = ("mamba",)  # test_entries.py
NORMALISED = ("mlstm",)  # test_normaliser.py
ELSEWHERE = (
    "memora_linear",
    "mesanet",
    "momentum_deltanet",
    "moneta_linear",
    "titans_linear",
    *DEEP,
    *PAIRS,
    *LINES,
    *VECTORS,
    *ENTRIES,
    *NORMALISED,
)


def test_every_shipped_rule_is_written_by_hand():
    assert {*BY_HAND, *ELSEWHERE} == set(SHIPPED)


@pytest.mark.parametrize("name", BY_HAND)
def test_shipped_specs_say_what_their_papers_do(name):
    spec = shipped(name)
    x = inputs_of(spec)
    expected = with_gradients(lambda x: by_hand(BY_HAND[name], x), x)
    assert_same(with_gradients(lambda x: run(spec, x), x), expected, 1e-12)


UNSHIPPED = {
    "ridge": (
        written(
            "norm2(p - v) / 2",
            "norm2(S - exp(g) * S_prev) / 2 + lam * norm2(S) / 2",
            weight="beta",
            update=RETAINED,
            g="log_decay",
            beta="unit",
            lam="nonnegative",
        ),
        lambda S, k, v, x: delta_on_ridge(S * x["g"].exp(), k, v, x["beta"], x["lam"]),
    ),
    "undecayed read": (
        written(
            "norm2(p - v) / 2", "norm2(S - a * S_prev) / 2", weight="beta", update=PREVIOUS, a="decay", beta="unit"
        ),
        lambda S, k, v, x: x["a"] * S - x["beta"] * torch.outer(k, S.T @ k - v),
    ),
    "two losses": (
        written(
            "norm2(p - v) / 2 - dot(p, v) / 4",
            "norm2(S - S_prev) / 2",
            weight="a * b",
            update=PREVIOUS,
            a="unit",
            b="positive",
        ),
        lambda S, k, v, x: S - x["a"] * x["b"] * torch.outer(k, S.T @ k - 1.25 * v),
    ),
    "a decay for each key channel": (
        written("norm2(p - v) / 2", "norm2(S - exp(g) * S_prev) / 2", update=RETAINED, g="key_channel/log_decay"),
        lambda S, k, v, x: delta(x["g"].exp()[:, None] * S, k, v, 1.0),
    ),
    "a decay for each value channel": (
        written("-dot(p, v)", "norm2(S - exp(g) * S_prev) / 2", update=RETAINED, g="value_channel/log_decay"),
        lambda S, k, v, x: x["g"].exp() * S + torch.outer(k, v),
    ),
    "robust": (
        written("sum(huber(p - v, 0.5))", "norm2(S - S_prev) / 2", weight="beta", update=PREVIOUS, beta="unit"),
        lambda S, k, v, x: S - x["beta"] * torch.outer(k, (S.T @ k - v).clamp(-0.5, 0.5)),
    ),
    "a learning rate in the retention": (
        written("norm2(p - v) / 2", "norm2(S - S_prev) / (2 * eta)", update=PREVIOUS, eta="positive"),
        lambda S, k, v, x: delta(S, k, v, x["eta"]),
    ),
    "implicit with decay and ridge": (
        written(
            "norm2(p - v) / 2",
            "norm2(S - exp(g) * S_prev) / 2 + lam * norm2(S) / 2",
            weight="beta",
            update=PROXIMAL,
            g="log_decay",
            beta="unit",
            lam="nonnegative",
        ),
        lambda S, k, v, x: torch.linalg.solve(
            (1 + x["lam"]) * torch.eye(len(k), dtype=k.dtype) + x["beta"] * torch.outer(k, k),
            x["g"].exp() * S + x["beta"] * torch.outer(k, v),
        ),
    ),
}


def delta_on_ridge(S: Tensor, k: Tensor, v: Tensor, beta: Tensor, lam: Tensor) -> Tensor:
    """The retained state is S / (1 + lam); the curvature 1 + lam divides the step as well."""
    return delta(S / (1 + lam), k, v, beta / (1 + lam))


@pytest.mark.parametrize("name", UNSHIPPED)
def test_other_rules(name):
    spec, write = UNSHIPPED[name]
    x = inputs_of(spec)
    expected = with_gradients(lambda x: by_hand(write, x), x)
    assert_same(with_gradients(lambda x: run(spec, x), x), expected, 1e-12)


def test_an_argmin_without_a_closed_form_agrees_with_finite_differences():
    spec = written(
        "sum(log_cosh(p - v)) + norm2(p) ** 2 / 4",
        "norm2(S - a * S_prev) / 2 + sum(S ** 4) / 8",
        weight="beta",
        update=PROXIMAL,
        a="decay",
        beta="unit",
    )
    x = inputs_of(spec, B=1, T=2, HV=1, dk=2, dv=2)
    names = list(x)
    leaves = [y.requires_grad_() for y in x.values()]
    assert torch.autograd.gradcheck(
        lambda *leaves: run(spec, dict(zip(names, leaves))), leaves, check_undefined_grad=False
    )


@pytest.mark.parametrize("name", ["gated_deltanet", "mamba2", "longhorn"])
def test_value_heads_share_key_heads_in_groups(name):
    spec = shipped(name)
    x = inputs_of(spec, H=2, HV=6)
    shared = with_gradients(lambda x: run(spec, x), x)
    repeated = x | {n: x[n].repeat_interleave(3, dim=2) for n in ("q", "k")}
    single = with_gradients(lambda x: run(spec, x), repeated)
    for place in (2 + list(x).index("q"), 2 + list(x).index("k")):
        single[place] = single[place].unflatten(2, (2, 3)).sum(3)
    assert_same(shared, single, 1e-12)


@pytest.mark.parametrize("name", ["gated_deltanet", "retnet", "longhorn"])
def test_packed_sequences_are_separate_sequences(name):
    spec = shipped(name)
    offsets = torch.tensor([0, 1, 1, 6, 9])  # the second is empty
    x = inputs_of(spec, B=1, T=9)
    x["initial_state"] = torch.randn(4, *x["initial_state"].shape[1:], dtype=torch.float64)
    moving = ["q", "k", "v", *(gate.name for gate in spec.inputs)]

    def apart(x):
        parts = [
            run(spec, x | {n: x[n][:, a:b] for n in moving} | {"initial_state": x["initial_state"][n : n + 1]})
            for n, (a, b) in enumerate(zip(offsets[:-1], offsets[1:]))
        ]
        return torch.cat([o for o, _ in parts], dim=1), torch.cat([S for _, S in parts])

    packed = with_gradients(lambda x: run(spec, x, cu_seqlens=offsets), x)
    assert_same(packed, with_gradients(apart, x), 1e-14)
    assert torch.equal(packed[1][1], x["initial_state"][1])


@pytest.mark.parametrize("name", ["gated_deltanet", "mamba2"])
def test_a_sequence_in_two_parts_is_the_whole(name):
    spec = shipped(name)
    x = inputs_of(spec)
    moving = ["q", "k", "v", *(gate.name for gate in spec.inputs)]

    def halves(x):
        first, S = run(spec, x | {n: x[n][:, :4] for n in moving})
        second, S = run(spec, x | {n: x[n][:, 4:] for n in moving} | {"initial_state": S})
        return torch.cat((first, second), dim=1), S

    assert_same(with_gradients(halves, x), with_gradients(lambda x: run(spec, x), x), 1e-14)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_input_matters_from_its_token_on_and_not_before(name):
    spec = shipped(name)
    x = inputs_of(spec, dv=4)  # a residual takes as many of both channels
    o, *S = run(spec, x)
    of_answers = set() if spec.read is None else names(spec.read.tree) - {"k", "v"}  # gates that no state sees
    for name in ("k", "v", *(gate.name for gate in spec.inputs)):
        touched = x[name].clone()
        touched[:, 5] *= 0.9
        o_touched, *S_touched = run(spec, x | {name: touched})
        assert torch.equal(o_touched[:, :5], o[:, :5]), name
        same = torch.isclose(o_touched[:, 5], o[:, 5], rtol=1e-9, atol=0)
        # A channel whose error is clipped does not see by how much.
        assert not (same.all() if spec.name in ("huber_delta", "implicit_huber") else same.any()), name
        same = all(torch.isclose(a, b, rtol=1e-9).all() for a, b in zip(S_touched, S))
        assert same == (name in of_answers or not S), name
    for gate in spec.parameters:
        touched = x[gate.name].clone()
        touched[1] *= 0.9
        o_touched, *_ = run(spec, x | {gate.name: touched})
        assert torch.equal(o_touched[:, :, 0], o[:, :, 0])
        since = 1 if spec.name in LINES else 0  # of one pair a line is its value, whatever holds its slope
        assert not torch.isclose(o_touched[:, since:, 1], o[:, since:, 1], rtol=1e-9).any()


@pytest.mark.parametrize("extreme", ["strong", "weak"])
@pytest.mark.parametrize("name", BY_HAND)
def test_gates_at_the_ends_of_their_domains(name, extreme):
    spec = shipped(name)
    x = inputs_of(spec, extreme=extreme)
    expected = with_gradients(lambda x: by_hand(BY_HAND[name], x), x)
    found = with_gradients(lambda x: run(spec, x), x)
    assert all(y.isfinite().all() for y in found)
    assert_same(found, expected, 1e-12)


def test_what_a_strong_decay_leaves_keeps_all_its_digits():
    """A search from the last state, which is larger by 13 digits, must not stop at that one's rounding."""
    S_prev = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    g = torch.tensor([0.0, -30.0], dtype=torch.float64)[None, :, None, None]

    def retention(S, scope):
        return ((S - scope["g"].exp() * scope["S_prev"]) ** 2).sum((-2, -1), keepdim=True) / 2

    S = argmin(retention, retention, {"S_prev": S_prev, "g": g})
    torch.testing.assert_close(S, g.exp() * S_prev, rtol=1e-15, atol=0)


def test_scale_dtype_and_defaults():
    spec = shipped("linear_attention")
    x = inputs_of(spec)
    o, S = run(spec, x)
    double, _ = run(spec, x, scale=2 * 4**-0.5)
    torch.testing.assert_close(double, 2 * o, rtol=1e-14, atol=0)
    zero = run(spec, x | {"initial_state": torch.zeros_like(x["initial_state"])})
    del x["initial_state"]
    assert_same(list(run(spec, x)), list(zero), 0)
    single, state = run(spec, x, dtype=torch.float32)
    assert single.dtype == state.dtype == torch.float32 and o.dtype == S.dtype == torch.float64
    empty, S = run(spec, {n: y[:, :0] for n, y in x.items()})
    assert empty.shape == (2, 0, 2, 5) and not S.any()


def test_an_objective_without_a_minimum_is_refused():
    spec = written("-dot(p, v)", "sum(exp(S - S_prev)) + sum(S)", update=PREVIOUS)
    with pytest.raises(CheckFailed, match="strictly convex"):
        run(spec, inputs_of(spec))


def test_random_inputs_keep_to_their_domains_and_seeds():
    spec = shipped("mamba2")
    sizes = dict(B=2, T=50, H=1, HV=2, dk=4, dv=3, dtype=torch.float32)
    x, again, other = (random_inputs(spec, **sizes, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(x[n], again[n]) and not torch.equal(x[n], other[n]) for n in x)
    assert (x["dt"] > 0).all() and (x["A"] < 0).all() and x["A"].shape == (2,)
    torch.testing.assert_close(x["k"].norm(dim=-1), torch.ones(2, 50, 1))
    assert x["initial_state"].shape == (2, 2, 4, 3) and x["initial_state"].dtype == torch.float32
    strong = random_inputs(shipped("gated_deltanet"), **sizes, extreme="strong")
    for name, ends in (("g", (-30.0, 0.0)), ("beta", (0.0, 1.0))):
        shares = [(strong[name] == end).float().mean().item() for end in ends]
        assert all(0.2 < share < 0.5 for share in shares), (name, shares)
    gamma = random_inputs(shipped("retnet"), **sizes)["log_gamma"].exp()
    torch.testing.assert_close(gamma, torch.tensor([1 - 2**-5, 1 - 2**-6]))


@pytest.mark.parametrize("name, slope, curvature", [
    ("log_cosh", torch.tanh, lambda x: 1 - torch.tanh(x) ** 2),
    ("softplus", torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x)),
])  # fmt: skip
def test_second_derivatives_are_finite_and_right_at_any_size(name, slope, curvature):
    """Training differentiates the gradient of a loss once more, and a residual over a small threshold is large."""
    x = torch.tensor([0.0, 1.0, -9.0, 15.0, -25.0, 300.0, -400.0, 1e4, -1e4], dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(expressions.FUNCTIONS[name](x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x)[0]
    assert torch.allclose(first, slope(x), rtol=0, atol=1e-15)
    assert torch.allclose(second, curvature(x), rtol=0, atol=1e-15)
