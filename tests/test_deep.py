"""Deep memories: the programs against the oracle, how they relate to each other, and what is refused."""

import dataclasses
import functools

import pytest
import torch

from ttrc.compiler import analyse
from ttrc.errors import ArgumentError, SpecError
from ttrc.ir.config import CHUNK
from ttrc.ir.plan import Space
from ttrc.ir.tile import Contract, Elementwise, Relabel, operands
from ttrc.language.load import load_spec, parse_spec
from ttrc.language.state import axis_widths, initial_names, state_parts
from ttrc.passes import derive_network
from ttrc.passes.budget import budget
from ttrc.passes.derive_recurrence import derive_recurrence
from ttrc.passes.slice_program import names_of
from ttrc.paths import specs_dir
from ttrc.runtime.load import load
from ttrc.runtime.verify import Case, as_arguments, draw, fitting, verify

SQUARED = "norm2(p - v) / 2"
DECAYED = "norm2(S - exp(g / 16) * S_prev) / 2"
FROZEN = 'at = "segment_start"\nsegment = 16'


def network(layers=2, activation="gelu", residual=True, norm=True, expansion=2) -> str:
    return (
        f'kind = "mlp"\nlayers = {layers}\nexpansion = {expansion}\nactivation = "{activation}"\n'
        f"residual = {str(residual).lower()}\nnorm = {str(norm).lower()}"
    )


def text(memory: str = network(), loss=SQUARED, weight="beta / 16", retention=DECAYED, update=FROZEN, momentum=False):
    gates = {"g": "log_decay", "beta": "unit"} | ({"m": "log_decay"} if momentum else {})
    inputs = "\n".join(f'{n} = {{ per = "head", domain = "{d}" }}' for n, d in gates.items())
    update += '\nmomentum = "exp(m)"' if momentum else ""
    return (
        f'schema = 1\nname = "deep"\nreference = "a test"\n\n[inputs]\n{inputs}\n\n[memory]\n{memory}\n\n'
        f'[loss]\nweight = "{weight}"\nexpr = "{loss}"\n\n[retention]\nexpr = "{retention}"\n\n'
        f'[update]\nrule = "gradient"\n{update}\n'
    )


RULES = {
    "one layer": text(network(1)),
    "one plain layer": text(network(1, residual=False, norm=False)),
    "gelu": text(),
    "silu without a norm": text(network(2, "silu", norm=False)),
    "relu without a residual": text(network(2, "relu", residual=False)),
    "tanh, plain": text(network(2, "tanh", residual=False, norm=False)),
    "three layers": text(network(3, "silu")),
    "momentum": text(momentum=True),
    "momentum in one layer": text(network(1), momentum=True),
    "huber of the norm": text(network(2, "tanh"), "huber(norm(p - v), 0.5)"),
    "free of the prediction": text(network(2, "relu"), "-dot(p, v)"),
    "numbers": text(
        network(2, "relu"), retention="norm2(S - 0.98 * S_prev) / 2 + 0 * g", update=FROZEN + '\nmomentum = "1 / 4"'
    ),
    "by token": text(network(2, norm=False), update='at = "previous"'),
    "by token, decayed, with momentum": text(network(3, "tanh", norm=False), update='at = "retained"', momentum=True),
}
every_rule = pytest.mark.parametrize("name", RULES)
frozen_rules = pytest.mark.parametrize("name", ["one layer", "three layers", "momentum", "tanh, plain"])


@functools.cache
def operator(name: str):
    return load(parse_spec(RULES[name]))


def check(op, case: Case, form: str, backend: str = "torch", dtype=torch.float64) -> None:
    result = verify(op, fitting(op.spec, case), form=form, backend=backend, dtype=dtype)
    assert not result.failures


# Against the oracle


@every_rule
def test_agrees_with_the_oracle(name):
    op = operator(name)
    assert op.forms == (("recurrent",) if name.startswith("by token") else ("chunk", "recurrent"))
    for form in op.forms:
        check(op, Case(B=1, T=37, d_k=8, d_v=6), form)


@frozen_rules
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_agrees_at_the_edges(name, form):
    op = operator(name)
    check(op, Case(B=1, T=1, d_k=4, d_v=3), form)
    check(op, Case(B=1, T=21, packed=(17, 1, 3), d_k=5, d_v=7, extreme="strong"), form)
    check(op, Case(B=2, T=16, H=2, HV=2, d_k=3, d_v=3, extreme="weak"), form)


def test_a_gradient_by_token_through_a_norm_agrees():
    """Few tokens: errors of a layer norm's learner grow from step to step."""
    check(load(parse_spec(text(update='at = "previous"'))), Case(B=1, T=6, d_k=8, d_v=8), "recurrent")


@pytest.mark.parametrize("name", ["one layer", "three layers", "momentum", "tanh, plain"])
def test_kernels_agree(name):
    case = Case(B=1, T=21, H=1, HV=1, d_k=12, d_v=12)
    check(operator(name), case, "chunk", "triton", torch.float32)
    check(operator(name), dataclasses.replace(case, T=3), "recurrent", "triton", torch.float32)


def test_what_is_made_again_beside_large_weights_agrees():
    """So large that kernels load again what the adjoint takes; the last segment is ragged."""
    check(operator("one layer"), Case(B=1, T=21, H=1, HV=1, d_k=68, d_v=68), "chunk", "triton", torch.float32)


def test_an_adjoint_makes_again_what_rows_from_memory_lead_to():
    """Of all that waits for it products alone are held, with what no row from memory leads to."""
    back = next(k for k in analyse(parse_spec(RULES["one plain layer"])).forms["chunk"].plan.kernels if k.reverse)
    (segment,) = back.segments
    again = {b.tile.name: b.again for b in segment.loads if b.again is not None}
    assert {t.name for t in again.values()} == {"v", "beta", "W1"} and len(again) == 4
    assert {"W1_turned", "W1_again"} < set(again)
    place = {s.target.name: n for n, s in enumerate(segment.statements)}
    assert place["u_again"] > place["u"]
    users = [s for s in segment.statements if place["u_again"] < place[s.target.name]]
    assert not any(t.name == "u" for s in users if isinstance(s.op, Elementwise) for t in s.op.args)


@pytest.mark.parametrize("name", ["tanh, plain", "momentum"])
def test_kernels_that_walk_panels_agree_at_the_edges(name):
    """Hidden channels are no multiple of a panel, sequences none of a segment, and heads share keys."""
    width = 7 if name == "tanh, plain" else 5
    case = Case(B=1, T=21, H=1, HV=2, packed=(17, 1, 3), d_k=5, d_v=width)
    check(
        load(parse_spec(RULES[name].replace("expansion = 2", "expansion = 7"))), case, "chunk", "triton", torch.float32
    )


def test_weights_of_two_layers_are_walked_in_panels():
    """No code once a chunk touches a hidden channel, and states move on in the last loop."""
    for kernel in analyse(parse_spec(RULES["momentum"])).forms["chunk"].plan.kernels:
        assert kernel.in_memory and kernel.axis == "h1"
        loops = [s for s in kernel.segments if s.panelled]
        assert len(loops) == (4 if kernel.reverse else 2)
        assert not [s for x in kernel.segments if x not in loops for s in x.statements if "h1" in s.target.axes]
        following = {c.next for c in kernel.carries if "h1" in c.next.axes}
        assert following and following <= {b.tile for b in loops[-1].stores if b.space is Space.SEQUENCE}
        assert not following & {b.tile for x in loops[:-1] for b in x.stores}
    for name in ("one layer", "three layers"):
        assert not any(k.in_memory for k in analyse(parse_spec(RULES[name])).forms["chunk"].plan.kernels)


@pytest.mark.parametrize("name", ["momentum", "silu without a norm"])
def test_what_products_alone_take_of_what_waits_comes_rounded(name):
    """Where other code takes it, it comes as it was made; each lies in a place of its own."""
    back = next(k for k in analyse(parse_spec(RULES[name])).forms["chunk"].plan.kernels if k.reverse)
    names = names_of(back.statements)
    loads = [(s, b) for s in back.segments for b in s.loads if b.space is Space.WAITING]
    for segment, buffer in loads:
        tiles = {buffer.tile} | {t for t, source in names.items() if source == buffer.tile}
        users = [s.op for s in segment.statements if tiles & set(operands(s.op)) and not isinstance(s.op, Relabel)]
        factor = users and all(isinstance(op, Contract) and op.add not in tiles for op in users)
        assert buffer.single is not bool(factor), buffer
        assert [b for s in back.segments for b in s.stores if b == buffer] == [buffer]
    single, rounded = ({b.tile for _, b in loads if b.single is flag} for flag in (True, False))
    assert {t.name for t in rounded} >= {"query"} and not {t for t in rounded if len(t.axes) < 2}
    assert set(back.waiting) >= single | rounded
    assert all(back.waiting.count(t) == 1 + (t in single & rounded) for t in single | rounded) and single & rounded


def test_kernels_agree_in_half_precision():
    check(operator("gelu"), Case(B=1, T=37, d_k=16, d_v=16), "chunk", "triton", torch.float16)


@pytest.mark.parametrize("name", ["ttt_linear", "ttt_mlp", "titans", "yaad"])
def test_shipped_rules_agree(name):
    op = load(name)
    for form in op.forms:
        check(op, Case(B=1, T=20, H=1, HV=2, d_k=8, d_v=8), form)


# How runs relate


def run(op, x: dict, *, grad=True, **options):
    """Outputs, and the gradients of a sum of their squares by the tensors of x."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in x.items()}
    o, final = op(**as_arguments(op.spec, leaves), output_final_state=True, **options)
    final = (final,) if isinstance(final, torch.Tensor) else tuple(final)
    grads = torch.autograd.grad(sum(y.square().sum() for y in (o, *final)), list(leaves.values()))
    return o, final, dict(zip(leaves, grads))


def assert_close(found, wanted, bound=1e-10):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=bound * max(b.abs().max().item(), 1e-3))


def drawn(op, **shape):
    case = fitting(op.spec, Case(**({"B": 1, "T": 40, "H": 1, "HV": 2, "d_k": 6, "d_v": 6} | shape)))
    return draw(op.spec, case)[0]


def moving(op) -> tuple[str, ...]:
    return ("q", "k", "v", *(g.name for g in op.spec.inputs))


@frozen_rules
def test_segments_one_by_one_are_the_whole(name):
    op = operator(name)
    x = {n: t.requires_grad_() for n, t in drawn(op).items()}
    names = initial_names(op.spec)
    whole = op(**as_arguments(op.spec, x), output_final_state=True, form="chunk")
    pieces, state = [], {n: x[n] for n in names}
    for a, b in ((0, 16), (16, 32), (32, 40)):
        piece = {n: t[:, a:b] if n in moving(op) else t for n, t in x.items()} | state
        o, final = op(**as_arguments(op.spec, piece), output_final_state=True, form="chunk")
        final = (final,) if isinstance(final, torch.Tensor) else final
        pieces, state = [*pieces, o], dict(zip(names, final))
    final = (whole[1],) if isinstance(whole[1], torch.Tensor) else whole[1]
    one, other = (whole[0], *final), (torch.cat(pieces, 1), *state.values())
    assert_close(other, one)
    gradients = [torch.autograd.grad(sum(y.square().sum() for y in made), list(x.values())) for made in (one, other)]
    assert_close(gradients[1], gradients[0])


@frozen_rules
def test_packed_sequences_are_separate_ones(name):
    op = operator(name)
    x, ends = drawn(op), torch.tensor([0, 17, 18, 40], dtype=torch.int32)
    names = initial_names(op.spec)
    x |= {n: torch.cat([x[n], 0.9 * x[n], 1.1 * x[n]]) for n in names}
    o, final, grads = run(op, x, cu_seqlens=ends, form="chunk")
    parts = []
    for i, (a, b) in enumerate(zip(ends.tolist(), ends.tolist()[1:])):
        own = {n: t[:, a:b] if n in moving(op) else t[i : i + 1] if n in names else t for n, t in x.items()}
        parts.append(run(op, own, form="chunk"))
    assert_close([o], [torch.cat([p[0] for p in parts], 1)])
    assert_close(final, [torch.cat(own) for own in zip(*(p[1] for p in parts))])
    for n in x:
        own = [p[2][n] for p in parts]
        one = torch.cat(own, 1) if n in moving(op) else torch.cat(own) if n in names else sum(own)
        assert_close([grads[n]], [one])


@frozen_rules
def test_forms_agree(name):
    op = operator(name)
    x = drawn(op, T=37)
    (o, final, grads), (p, last, others) = (run(op, x, form=form) for form in ("chunk", "recurrent"))
    assert_close((o, *final, *grads.values()), (p, *last, *others.values()))


def test_one_plain_layer_is_a_linear_memory():
    deep = operator("one plain layer")
    linear = load(
        parse_spec(RULES["one plain layer"].replace(network(1, residual=False, norm=False), 'kind = "linear"'))
    )
    x = drawn(deep)
    for form in ("chunk", "recurrent"):
        found, wanted = run(deep, x, form=form), run(linear, x, form=form, scale=1.0)
        assert_close((found[0], *found[1], *found[2].values()), (wanted[0], *wanted[1], *wanted[2].values()), 1e-12)


def test_a_first_layer_of_zeros_learns_nothing_and_reads_the_residual():
    op = operator("gelu")
    x = drawn(op)
    x |= {n: torch.zeros_like(x[n]) for n in initial_names(op.spec)} | {"norm_bias": torch.zeros(2, 6).double()}
    o, final = op(**as_arguments(op.spec, x), output_final_state=True)
    assert torch.equal(o, x["q"].expand_as(o)) and all((W == 0).all() for W in final)


# Arguments


def test_norms_have_defaults_and_states_have_names():
    op = operator("gelu")
    x = drawn(op)
    plain = {n: t for n, t in x.items() if not n.startswith("norm")}
    x |= {"norm_weight": torch.ones(2, 6).double(), "norm_bias": torch.zeros(2, 6).double()}
    (o, final), (p, _) = (op(**as_arguments(op.spec, y), output_final_state=True) for y in (x, plain))
    assert torch.equal(o, p)
    widths = axis_widths(op.spec.memory, 6, 6)
    assert final._fields == tuple(part.name for part in state_parts(op.spec)) == ("W1", "W2")
    assert [W.shape for W in final] == [(1, 2, *(widths[a] for a in part.axes)) for part in state_parts(op.spec)]


def test_arguments_that_do_not_fit_are_refused():
    op = operator("gelu")
    x = as_arguments(op.spec, drawn(op))
    with pytest.raises(ArgumentError, match="initial_state: got None, expected W1, W2: .* cannot start at zeros"):
        op(**x | {"initial_state": None})
    with pytest.raises(ArgumentError, match="initial_state.W2: got shape"):
        op(**x | {"initial_state": (x["initial_state"][0],) * 2})
    with pytest.raises(ArgumentError, match="v: got head dimension 5, expected the 6 of q and k: a residual"):
        op(**x | {"v": x["v"][..., :5]})
    with pytest.raises(ArgumentError, match=r"norm_weight: got shape \[2\], expected \[HV, d_v\] = \[2, 6\]"):
        op(**x | {"norm_weight": x["norm_weight"][:, 0]})
    with pytest.raises(ArgumentError, match="chunk_size: got 32, expected None or 16"):
        op(**x, chunk_size=32)


def test_what_has_no_derivation_is_refused():
    with pytest.raises(SpecError, match="not quadratic"):
        derive_recurrence(parse_spec(text(retention="sum(S * log(S) - S - exp(g) * S * log(S_prev))")))


# torch


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_ops_pass_opcheck_and_compile_without_a_break(form):
    op = operator("gelu")
    x = drawn(op, T=18)
    states = op.package.op.beside(tuple(x[n] for n in initial_names(op.spec)), x["norm_weight"], x["norm_bias"])
    tensors = [t.detach().clone().requires_grad_() for t in (*(x[n] for n in moving(op)), states)]
    *gates, start = tensors
    torch.library.opcheck(op.package.op.OPS[form], (*gates, 1.0, start, None, 16, True, True, "torch", "auto", "all"))
    torch._dynamo.reset()
    layer = torch.compile(lambda x: op(**x, form=form), fullgraph=True, backend="eager")
    given = as_arguments(op.spec, x)
    assert torch.equal(layer(given)[0], op(**given, form=form)[0])


# Costs, and whether a mistake would be seen


def test_ttt_linear_moves_less_than_the_budget():
    """flash-linear-attention's kernels of the same rule move 28,088 bytes a token and head at these sizes."""
    spent = budget(analyse(load_spec(specs_dir() / "ttt_linear.toml")), d_k=128, d_v=128, dtype_bytes=2)["chunk"]
    assert sum(x.bytes for x in spent.values()) <= 14_000
    assert [x.launches for x in spent.values()] == [1, 1]


def test_hidden_widths_are_counted():
    module = analyse(load_spec(specs_dir() / "ttt_mlp.toml"))
    chunk = budget(module, d_k=64, d_v=64, dtype_bytes=2)["chunk"]["forward"]
    weights = 4 * (2 * 64 * 256 + 2 * 64) / 16  # float32, once a segment
    assert chunk.bytes == 2 * 4 * 64 + 4 + weights
    tokens = budget(module, d_k=64, d_v=64, dtype_bytes=2)["recurrent"]["forward"]
    # and at the same places the weights that its segment started with
    assert tokens.bytes == 2 * 4 * 64 + 4 + 4 * (4 * 64 * 256 + 2 * 64) / CHUNK


def test_a_wrong_adjoint_of_the_network_is_seen(monkeypatch, tmp_path):
    """The errors of all layers are those of the last one's output, as if the norm were not there."""
    monkeypatch.setenv("TTRC_CACHE", str(tmp_path))
    real = derive_network.pull_back

    def without_norm(build, statements, result, cotangent, wanted, origin):
        return real(build, statements, wanted[-1], cotangent, wanted, origin)

    monkeypatch.setattr(derive_network, "pull_back", without_norm)
    op = load(parse_spec(text().replace("a test", "a mistake")))
    result = verify(op, Case(B=1, T=20, d_k=6, d_v=6), form="chunk", backend="torch", dtype=torch.float64)
    assert any(f.startswith("o ") for f in result.failures)
