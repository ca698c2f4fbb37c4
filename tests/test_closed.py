"""Closed forms: at every token the regression over all tokens so far, with a ridge."""

import pytest
import torch

import ttrc
from ttrc import oracle
from ttrc.backends.triton import operator as around
from ttrc.compiler import analyse
from ttrc.errors import SpecError
from ttrc.ir.config import row_block
from ttrc.ir.plan import Skeleton
from ttrc.ir.tile import Conjugate, Contract, CumulativeSum, Elementwise, Relabel, Statement, Tile, operands
from ttrc.language.load import load_spec, parse_spec
from ttrc.passes.builder import sym
from ttrc.passes.join_products import join_products
from ttrc.passes.own_rows import own_rows
from ttrc.paths import specs_dir
from ttrc.runtime.verify import Case, consult, draw, verify

SHIPPED = "mesanet"
SPEC = """
schema = 1
name = "of_a_test"
reference = "a test"

[inputs]
{inputs}

[memory]
kind = "linear"

[loss]
expr = "{loss}"

[retention]
expr = "{ridge}"
{decay}

[update]
rule = "closed_form"
"""
SQUARE, RIDGE = "norm2(p - v) / 2", "3 * norm2(S) / 2"
DOMAINS = {"g": "log_decay", "beta": "unit", "a": "decay", "u": "unit", "lam": "positive", "w": "real", "z": "real"}


def text_of(loss=SQUARE, ridge=RIDGE, decay="", **gates):
    rows = (f'{name} = {{ per = "{per}", domain = "{DOMAINS[name]}" }}' for name, per in gates.items())
    return SPEC.format(loss=loss, ridge=ridge, decay=decay, inputs="\n".join(rows))


RULES = {
    "plain": text_of(),
    "channels": text_of("norm2(p - w * v) / 2", "sum(lam * square(S))", 'decay = "a"', w="value_channel",
                        lam="key_channel", a="head"),
    "rate of a key's length": text_of(f"beta * {SQUARE} / (1 + norm2(k))", "lam * norm2(S)", 'decay = "exp(g)"',
                                      beta="head", lam="head", g="head"),
    "decay that may be 0": text_of(decay='decay = "u"', u="head"),
    "mapped": text_of(f"beta * {SQUARE}", "sum(lam * square(S))", 'decay = "exp(g)"', beta="head", g="head",
                      lam="key_channel").replace("[memory]", """[features]
q = "softplus(q) * (1 + beta)"
k = "k / sqrt(1 + norm2(k)) * exp(g)"

[memory]"""),
}  # fmt: skip
CASE = Case(B=1, T=21, H=1, HV=2, d_k=5, d_v=3, chunk_size=16)


@pytest.fixture(scope="module")
def op():
    return ttrc.load(SHIPPED)


def holds(op, case, form, backend="torch", dtype=torch.float64):
    result = verify(op, case, form=form, backend=backend, dtype=dtype)
    assert not result.failures, result.failures


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_agrees_with_the_oracle(rule):
    op = ttrc.load(parse_spec(RULES[rule]))
    assert ("chunk" in op.forms) == (rule != "decay that may be 0")
    for form in op.forms:
        holds(op, CASE, form)


@pytest.mark.parametrize("case", [
    Case(B=1, T=1, d_k=4, d_v=6),
    Case(B=2, T=20, H=2, HV=4, d_k=7, d_v=5, chunk_size=16),
    Case(T=24, packed=(17, 1, 6), d_k=4, d_v=3, chunk_size=16),
    Case(B=1, T=20, d_k=4, d_v=3, extreme="strong", chunk_size=16),
    Case(B=1, T=20, d_k=4, d_v=3, extreme="weak", chunk_size=16),
], ids=str)  # fmt: skip
def test_the_shipped_rule_agrees_with_the_oracle(op, case):
    for form in ("chunk", "recurrent"):
        holds(op, case, form)


@pytest.mark.parametrize(("dtype", "d_k"), [(torch.float32, 5), (torch.float16, 5), (torch.float16, 70)], ids=str)
def test_the_kernels_of_chunks_agree_with_the_oracle(op, dtype, d_k):
    """Up to 64 key channels a search keeps its products apart."""
    holds(op, Case(B=1, T=19, H=1, HV=2, d_k=d_k, d_v=20, chunk_size=16), "chunk", "triton", dtype)


def test_a_gate_may_have_more_digits_than_the_inputs():
    """Kernels that take neither q nor k nor v, of mapped ones, multiply in their dtype all the same."""
    text = (
        text_of(SQUARE, "norm2(S)", z="value_channel")
        + '[features]\nq = "tanh(q)"\nk = "tanh(k)"\n[read]\nexpr = "r * z"'
    )
    op = ttrc.load(parse_spec(text))
    holds(op, Case(B=1, T=19, H=1, HV=2, d_k=5, d_v=20, chunk_size=16), "chunk", "triton", torch.float16)


def test_panels_of_a_state_agree_with_the_oracle(op):
    """Of more than 128 key channels a program has 16 rows of a chunk, and H and its cotangent come in panels."""
    assert row_block(64, 130) == 16
    holds(op, Case(B=1, T=18, H=1, HV=1, d_k=130, d_v=3, chunk_size=16), "chunk", "triton", torch.float32)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "decay that may be 0"])
def test_every_rule_agrees_in_blocks_of_rows(rule, monkeypatch, tmp_path):
    """With two a chunk, the second of which a sequence may end in front of."""
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path))
    monkeypatch.setattr(around, "SEARCHED", 256)
    op = ttrc.load(parse_spec(RULES[rule]))
    holds(op, Case(T=24, packed=(19, 5), H=1, HV=1, d_k=5, d_v=3, chunk_size=32), "chunk", "triton", torch.float32)


def test_the_kernels_of_tokens_agree_with_the_oracle(op):
    holds(op, Case(B=1, T=3, H=1, HV=2, d_k=5, d_v=7), "recurrent", "triton", torch.float32)


@pytest.mark.parametrize("name", ["chunk", "recurrent"])
def test_a_solve_and_one_more_for_its_adjoint(name):
    form = analyse(load_spec(specs_dir() / f"{SHIPPED}.toml")).forms[name]
    for program, solves in (form.forward, 1), (form.backward, 2):
        assert sum(isinstance(s.op, Conjugate) for s in program.statements) == solves
    kernels = {k.name: sum(isinstance(s.op, Conjugate) for s in k.statements) for k in form.plan.kernels}
    if name == "chunk":  # only in parallel kernels
        assert {k for k, n in kernels.items() if n} == {"chunk_output_closed", "chunk_solve_closed"}


def kernels_of(name):
    plan = analyse(load_spec(specs_dir() / f"{name}.toml")).forms["chunk"].plan
    return {k.name: k for k in plan.kernels}


def is_search(statement):
    return isinstance(statement.op, Conjugate)


@pytest.mark.parametrize("kernel", ["chunk_output_closed", "chunk_solve_closed"])
def test_a_program_has_rows_of_its_own_and_all_of_the_chunks(kernel):
    """Rows go on from numbers of all tokens and from what is loaded for themselves, never from one another."""
    found = kernels_of(SHIPPED)[kernel]
    assert found.skeleton is Skeleton.ROWS
    made = {s.target: s.op for s in found.statements}
    for target, op in made.items():
        assert isinstance(op, Conjugate) or "t" not in {a for t in operands(op) for a in t.axes} - set(target.axes)
        assert not isinstance(op, CumulativeSum) or target.axes == ("s",)
        if isinstance(op, Relabel) and op.arg.axes[:1] == ("s",):  # numbers alone are taken from the other role
            assert op.arg.axes == ("s",) and target.axes == ("t",)
        assert not isinstance(op, Relabel) or op.arg.axes[:1] != ("t",) or "t" in target.axes
    roles = {(b.name, b.tile.axes[0]) for b in found.loads if b.name in ("q", "k", "v", "d_o", "g", "beta")}
    assert {("k", "s"), ("v", "s"), ("g", "s"), ("beta", "s")} <= roles and not {("k", "t"), ("v", "t")} & roles


def test_sums_over_rows_have_no_blocks_of_rows():
    backward = analyse(load_spec(specs_dir() / f"{SHIPPED}.toml")).forms["chunk"].backward
    with pytest.raises(AssertionError, match="is a sum over rows"):
        own_rows(backward.statements, ())


def test_nothing_but_the_result_waits_for_a_search():
    segments = kernels_of(SHIPPED)["chunk_output_closed"].segments
    (number,) = [i for i, s in enumerate(segments) if any(map(is_search, s.statements))]
    (x,) = [s.target for s in segments[number].statements if is_search(s)]
    ahead = {t for s in segments[: number + 1] for x in s.statements for t in (x.target, *operands(x.op))}
    behind = {t for s in segments[number + 1 :] for x in s.statements for t in operands(x.op)}
    assert {t for t in ahead & behind if t.axes} == {x}
    assert not {b for s in segments[: number + 1] for b in s.loads} & {
        b for s in segments[number + 1 :] for b in s.loads
    }


def test_products_by_one_factor_are_one():
    def tile(name, *axes):
        return Tile(name, axes)

    x, k, a, b = tile("x", "t", "k"), tile("k", "s", "k"), tile("a", "t", "s"), tile("b", "t", "s")
    pairs, first, both = tile("pairs", "t", "s"), tile("first", "s", "k"), tile("both", "s", "k")
    code = (
        Statement(pairs, Contract(x, k, "k"), ""),
        Statement(a, Elementwise(2 * sym(pairs), (pairs,)), ""),
        Statement(b, Elementwise(sym(pairs) ** 2, (pairs,)), ""),
        Statement(first, Contract(a, x, "t", k), ""),
        Statement(both, Contract(x, b, "t", first), ""),
    )
    joined = join_products(code, (both,))
    (last,) = [s.op for s in joined if s.target == both]
    assert last.add == k and last.b == x and first not in {s.target for s in joined}
    (total,) = [s.op for s in joined if s.target == last.a]
    assert total.expr == sym(a) + sym(b)
    assert join_products(code, (both, first)) == code  # somebody else wants the first


# What the rule is


def drawn(spec, case):
    x, _, _ = draw(spec, case)
    return {n: t.requires_grad_() for n, t in x.items()}


def test_it_is_the_regression_over_the_history():
    """The sum over all tokens, written out for each: no recursion, by hand."""
    spec = load_spec(specs_dir() / f"{SHIPPED}.toml")
    x = drawn(spec, Case(B=2, T=9, H=1, HV=2, d_k=4, d_v=3))
    H0, G0 = x["initial_H"], x["initial_G"]
    q, k = (x[n].repeat_interleave(2, 2) for n in ("q", "k"))

    def by_hand(t):
        ages = torch.stack([x["g"][:, i + 1 : t + 1].sum(1) for i in range(-1, t + 1)], 1).exp()  # from before 0 on
        weights = ages[:, 1:] * x["beta"][:, : t + 1]
        H = torch.einsum("nih,nihk,nihl->nhkl", weights, k[:, : t + 1], k[:, : t + 1])
        G = torch.einsum("nih,nihk,nihv->nhkv", weights, k[:, : t + 1], x["v"][:, : t + 1])
        H, G = (A + ages[:, 0, :, None, None] * A0 for A, A0 in ((H, H0), (G, G0)))
        S = torch.linalg.solve(H + torch.diag_embed(x["lam"]), G)
        return torch.einsum("nhkv,nhk->nhv", S, q[:, t]) * 4**-0.5

    gates = {n: x[n] for n in ("g", "beta", "lam")}
    o, _ = oracle.run(spec, x["q"], x["k"], x["v"], gates, initial_state=(H0, G0))
    expected = torch.stack([by_hand(t) for t in range(9)], 1)
    torch.testing.assert_close(o, expected, atol=1e-12, rtol=1e-12)
    weigh = torch.randn(o.shape, dtype=o.dtype, generator=torch.Generator().manual_seed(0))
    for made, wanted in zip(*(torch.autograd.grad((y * weigh).sum(), list(x.values())) for y in (o, expected))):
        torch.testing.assert_close(made, wanted, atol=1e-11, rtol=1e-11)


def test_what_was_seen_is_recalled_where_the_ridge_is_small(op):
    """As many tokens as key channels are all interpolated, whatever their order and their weights."""
    x = drawn(op.spec, Case(B=1, T=6, H=1, HV=1, d_k=6, d_v=4))
    given = {"g": x["g"], "beta": x["beta"], "lam": torch.full_like(x["lam"], 1e-9)}
    for form in ("chunk", "recurrent"):
        _, state = op(x["q"], x["k"], x["v"], **given, output_final_state=True, form=form)
        for i in range(6):
            token = {n: given[n][:, :1] * 0 for n in ("g", "beta")}  # a query that brings nothing of its own
            o, _ = op(x["k"][:, i : i + 1], x["k"][:, :1], x["v"][:, :1], **token, lam=given["lam"], scale=1.0,
                      initial_state=state)  # fmt: skip
            torch.testing.assert_close(o[:, 0], x["v"][:, i], atol=1e-4, rtol=1e-4)


def test_a_large_ridge_leaves_linear_attention(op):
    x = drawn(op.spec, Case(B=1, T=30, H=2, HV=2, d_k=4, d_v=5))
    ridge = 1e8
    none = torch.zeros_like(x["g"])
    lam = torch.full_like(x["lam"], ridge)
    o, _ = op(x["q"], x["k"], x["v"], g=none, beta=torch.ones_like(none), lam=lam, form="chunk")
    expected, _ = ttrc.load("linear_attention")(x["q"], x["k"], x["v"], form="chunk")
    torch.testing.assert_close(o * ridge, expected, atol=1e-6, rtol=1e-6)


def test_it_does_not_depend_on_the_chunks_nor_on_where_a_sequence_is_cut(op):
    x = drawn(op.spec, Case(B=1, T=40, H=1, HV=2, d_k=4, d_v=5))
    weigh = torch.randn(x["v"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(chunk, *ends):
        state, parts = (x["initial_H"], x["initial_G"]), []
        for begin, end in zip((0, *ends), (*ends, 40)):
            here = {n: x[n][:, begin:end] for n in ("q", "k", "v", "g", "beta")}
            o, state = op(**here, lam=x["lam"], initial_state=state, output_final_state=True, chunk_size=chunk,
                          form="chunk")  # fmt: skip
            parts.append(o)
        o = torch.cat(parts, 1)
        total = (o * weigh).sum() + sum(s.square().sum() for s in state)
        return [o, *state, *torch.autograd.grad(total, list(x.values()))]

    whole = run(64)
    for other in (run(16), run(16, 7, 29)):
        for made, expected in zip(other, whole):
            torch.testing.assert_close(made, expected, atol=1e-11, rtol=1e-10)


def test_tiny_and_large_queries_are_solved_as_well(op):
    x = drawn(op.spec, Case(B=1, T=20, H=1, HV=1, d_k=6, d_v=4))
    given = {n: x[n].float() for n in ("k", "v", "g", "beta", "lam")}
    plain, _ = op(x["q"].float(), **given, form="chunk")
    for size in (1e-30, 1e30):
        o, _ = op(x["q"].float() * size, **given, form="chunk")
        torch.testing.assert_close(o / size, plain, atol=1e-5, rtol=1e-5)
    assert op(x["q"].float() * torch.nan, **given, form="chunk")[0].isnan().all()


def test_the_state_that_is_handed_in_matters(op):
    """Half of H is another objective's."""
    case = Case(B=1, T=3, H=1, HV=1, d_k=4, d_v=3)
    x, packing, cotangents = draw(op.spec, case)
    reference = consult(op.spec, x, packing, cotangents)
    o, _ = op(**{n: x[n] for n in ("q", "k", "v", "g", "beta", "lam")}, form="chunk",
              initial_state=(x["initial_H"].tril(), x["initial_G"]))  # fmt: skip
    assert not torch.allclose(o, reference["o"], rtol=1e-3)


# What is refused

REFUSED = {
    "linear loss": (text_of("-dot(p, v)"), "loss.expr", "linear in p"),
    "robust loss": (text_of("sum(huber(p - v, 1))"), "loss.expr", "nonlinear in p"),
    "rate by channel": (text_of("sum(w * square(p - v))", w="value_channel"), "loss.expr", "value channel"),
    "concave loss": (text_of(f"-{SQUARE}"), "loss.expr", "convex"),
    "signed rate": (text_of(f"w * {SQUARE}", w="head"), "loss.expr", "convex"),
    "ridge by value": (text_of(ridge="sum(lam * square(S))", lam="value_channel"), "retention.expr", "value channel"),
    "no ridge": (text_of(ridge="beta * norm2(S)", beta="head"), "retention.expr", "provably positive"),
    "norm": (text_of(ridge="norm(S)"), "retention.expr", "not quadratic"),
    "pull": (text_of(ridge="norm2(S) / 2 - sum(S)"), "retention.expr", "constant"),
    "no value in padding": (text_of("norm2(p - log(square(v))) / 2"), "loss.expr", "as in padding"),
    "negative decay": (text_of(decay='decay = "-1 / 2"'), "retention.decay", "may be negative"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_has_no_closed_form_is_refused(why):
    text, key, part = REFUSED[why]
    with pytest.raises(SpecError) as caught:
        analyse(parse_spec(text))
    message = str(caught.value)
    assert part in message and key in message and "^" in message
