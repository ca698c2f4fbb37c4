"""A check that cannot fail is a defect: break the compiler, or what it wrote, and see the verification notice."""

import dataclasses
import functools
import itertools
from pathlib import Path

import pytest
import torch

from ttrc import compiler, emit
from ttrc.backends.triton.memory import ChunkMemory
from ttrc.ir.tile import Relation, Solve
from ttrc.language.load import load_spec
from ttrc.passes import (
    derive_association,
    derive_moves,
    derive_recurrence,
    differentiate_tile,
    eliminate,
    pull_factors,
    simplify_tile,
)
from ttrc.passes.builder import Builder, sym
from ttrc.passes.simplify_tile import Product
from ttrc.runtime.load import import_package
from ttrc.runtime.operator import Operator
from ttrc.runtime.trust import Verifier
from ttrc.runtime.verify import Case, fitting, verify
from ttrc.symbolic import ONE, ZERO

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").is_file())
CHUNKED = Case(B=1, T=35, H=1, HV=2, d_k=5, d_v=4, chunk_size=16)
STRONG = dataclasses.replace(CHUNKED, extreme="strong")
PACKED = Case(T=23, packed=(17, 1, 5), H=1, HV=2, d_k=5, d_v=4, chunk_size=16)
WIDE = Case(B=1, T=19, H=1, HV=1, d_k=5, d_v=40, chunk_size=16)  # more value channels than a panel holds
TOKENS = Case(B=1, T=5, H=1, HV=2, d_k=5, d_v=4, chunk_size=16)
SETTINGS = {
    "chunk": ("chunk", "torch", torch.float64, CHUNKED),
    "recurrent": ("recurrent", "torch", torch.float64, TOKENS),
    "chunk kernels": ("chunk", "triton", torch.float32, CHUNKED),
    "recurrent kernels": ("recurrent", "triton", torch.float32, TOKENS),
}
unique = itertools.count()
SOUND = functools.lru_cache(lambda path: compiler.generate(load_spec(path)))


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A rule's operator from freshly compiled files, some of their text replaced."""

    def make(name="gated_deltanet", broken_passes=False, **edits):
        folders = (ROOT / "specs", ROOT / "tests/unseen", tmp_path)
        path = next(path for folder in folders if (path := folder / f"{name}.toml").exists())
        spec = load_spec(path)
        if broken_passes:
            monkeypatch.setattr(emit, "format_files", dict)  # nobody reads them
        files = compiler.generate(spec) if broken_passes else dict(SOUND(path))
        for file, changes in edits.items():
            for old, new in changes:
                assert old in files[f"{file}.py"], f"{file}.py has no {old!r}"
                files[f"{file}.py"] = files[f"{file}.py"].replace(old, new)
        # A torch operator of its own: two packages with one operator's name would run the same code.
        files["op.py"] = files["op.py"].replace('custom_op("ttrc::', f'custom_op("ttrc::mutant{next(unique)}_')
        folder = tmp_path / f"package{next(unique)}"
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text)
        return Operator(spec, import_package(folder, spec.name))

    return make


def failures(op, setting, case=None):
    form, backend, dtype, usual = SETTINGS[setting]
    return verify(op, fitting(op.spec, case or usual), form=form, backend=backend, dtype=dtype).failures


def named(found):
    return {line.split()[0] for line in found}


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_broken_nothing_found(build, setting):
    op = build()
    assert not failures(op, setting)
    if "chunk" in setting:
        assert not any(failures(op, setting, case) for case in (STRONG, PACKED, WIDE))


# Broken passes


def test_the_causal_mask_dropped(build, monkeypatch):
    real = Builder.mask

    def mask(self, name, arg, relation, fill, origin):
        return arg if relation is Relation.CAUSAL else real(self, name, arg, relation, fill, origin)

    monkeypatch.setattr(Builder, "mask", mask)
    op = build("deltanet", broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        assert "o" in named(failures(op, setting))


def test_a_token_late(build, monkeypatch):
    """A read-out that misses its own token."""
    real = Builder.mask

    def mask(self, name, arg, relation, fill, origin):
        later = Relation.STRICT if relation is Relation.CAUSAL else relation
        return real(self, name, arg, later, fill, origin)

    monkeypatch.setattr(Builder, "mask", mask)
    op = build(broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        assert "o" in named(failures(op, setting))


def test_a_carried_state_that_does_not_decay(build, monkeypatch):
    real = derive_moves._Decay.__post_init__

    def init(self):
        real(self)
        self.total = derive_moves.Factor()

    monkeypatch.setattr(derive_moves._Decay, "__post_init__", init)
    op = build(broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        assert {"o", "final_state", "d_initial_state"} <= named(failures(op, setting))


def test_a_decay_that_forgets_too_early(build, monkeypatch):
    """Seen at the ends of the domain alone: there it has to be looked for."""
    monkeypatch.setattr(derive_moves, "FORGOTTEN", -8)
    op = build(broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        assert failures(op, setting, STRONG)


def test_the_state_read_before_it_decays(build, monkeypatch):
    real = compiler.derive_recurrence
    monkeypatch.setattr(
        compiler, "derive_recurrence", lambda spec: dataclasses.replace(real(spec), reads_decayed=False)
    )
    op = build(broken_passes=True)
    for setting in SETTINGS:
        assert "o" in named(failures(op, setting))


def test_a_gradient_off_by_a_factor(build, monkeypatch):
    real = derive_association.loss_gradient
    monkeypatch.setattr(derive_association, "loss_gradient", lambda *given: real(*given) * 2)
    op = build("linear_attention", broken_passes=True)
    for setting in SETTINGS:
        assert "o" in named(failures(op, setting))


def test_a_sign_swapped_in_the_adjoint_of_a_solve(build, monkeypatch):
    real = differentiate_tile._propagate

    def propagate(tape, target, op, adjoint):
        if not isinstance(op, Solve):
            return real(tape, target, op, adjoint)
        add = tape.add
        matrix = op.matrix

        def swapped(tile, part):
            if tile == matrix:
                part = tape.elementwise("swapped", -differentiate_tile.sym(part), (part,))
            add(tile, part)

        tape.add = swapped
        real(tape, target, op, adjoint)
        tape.add = add

    monkeypatch.setattr(differentiate_tile, "_propagate", propagate)
    op = build(broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        found = named(failures(op, setting))
        assert "d_k" in found and not found & {"o", "final_state"}


NONLINEAR = ("huber_delta", "robust_delta", "huber_product")


@pytest.mark.parametrize("name", NONLINEAR)
def test_no_substitution_broken_nothing_found(build, name):
    assert not any(failures(build(name), setting) for setting in SETTINGS)


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_substitution_whose_matrix_has_a_diagonal(build, monkeypatch, name):
    """In plain PyTorch rows go in order, and never read their own entry: there the adjoint shows it. So do kernels that
    read back what rows have written; the others work it out from the solution, which has read that entry."""
    real = Builder.mask

    def mask(self, name, arg, relation, fill, origin):
        later = Relation.CAUSAL if relation is Relation.STRICT and "gap" not in name else relation
        return real(self, name, arg, later, fill, origin)

    monkeypatch.setattr(Builder, "mask", mask)
    op = build(name, broken_passes=True)
    plain, kernels = (named(failures(op, setting)) for setting in ("chunk", "chunk kernels"))
    assert "d_k" in plain & kernels and ("o" in kernels) == (name != "robust_delta")


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_substitution_whose_adjoint_forgets_the_rows_that_follow(build, monkeypatch, name):
    monkeypatch.setattr(differentiate_tile, "_fed_back", lambda tape, op, adjoints: adjoints)
    op = build(name, broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        found = named(failures(op, setting))
        assert {"d_k", "d_v", "d_beta"} <= found and not found & {"o", "final_state"}


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_substitution_whose_adjoint_drops_the_jacobian(build, monkeypatch, name):
    """Twice one, for a body has to do something."""
    real = Builder.substitute

    def substitute(self, names, matrices, bases, writes, transposed, in_turn, origin):
        def twice(z):
            return self.elementwise("twice", 2 * differentiate_tile.sym(z), {z.name: z}, origin)

        writes = [twice] * len(writes) if transposed else writes
        return real(self, names, matrices, bases, writes, transposed, in_turn, origin)

    monkeypatch.setattr(Builder, "substitute", substitute)
    op = build(name, broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        found = named(failures(op, setting))
        assert {"d_k", "d_v", "d_beta"} <= found and not found & {"o", "final_state"}


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_substitution_whose_rows_forget_those_before(build, name):
    op = build(
        name,
        kernels=[
            (
                "for _s in tl.static_range(t):\n            prediction",
                "for _s in tl.static_range(t // 2):\n            prediction",
            )
        ],
    )
    assert not failures(op, "chunk")
    assert {"o", "d_v"} <= named(failures(op, "chunk kernels"))


IN_TURN = {
    "forgets what its own row has written": ("prediction_2 -= _matrix_21[9 * t] * error\n", "prediction_2 -= 0\n"),
    "forgets another unknown": ("_matrix_12[8 * t + _s] * _done_2[_s]", "_matrix_12[8 * t + _s] * 0"),
    "takes no block of another unknown off": (
        "-rows_of_both(_block_1, _block_2)",
        "-rows_of_both(_block_1, 0 * _block_2)",
    ),
}


@pytest.mark.parametrize("wrong", IN_TURN)
def test_a_substitution_of_several_unknowns_one_of_which(build, wrong):
    op = build("huber_product", kernels=[IN_TURN[wrong]])
    assert {"o", "d_v"} <= named(failures(op, "chunk kernels"))


def test_a_substitution_whose_adjoint_forgets_what_its_own_row_has_written(build):
    """The first unknown's cotangent, of what the second has written in the same row."""
    line = "d_error_fed_back -= _matrix_21[9 * t] * d_prediction_2_via_error_2\n"
    op = build("huber_product", kernels=[(line, line.replace("9 * t", "0 * t"))])
    found = named(failures(op, "chunk kernels"))
    assert {"d_k", "d_v", "d_beta"} <= found and not found & {"o", "final_state"}


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_substitution_that_stops_at_the_first_block(build, name):
    blocks = 8 if name == "huber_product" else 16
    op = build(name, kernels=[(f"tl.range(0, BT // {blocks}, disable_licm", "tl.range(0, 1, disable_licm")])
    if blocks == TOKENS.chunk_size:  # those of two unknowns are two even of the shortest chunk
        assert not failures(op, "chunk kernels", TOKENS)
    wide = dataclasses.replace(CHUNKED, chunk_size=32)
    assert {"o", "d_v"} <= named(failures(op, "chunk kernels", wide))


@pytest.mark.parametrize("lost", ["q", "k", "v", "g", "beta", "S"])
def test_a_lost_contribution_to_a_cotangent(build, monkeypatch, lost):
    """The last of the contributions to one input's cotangent, where it has more than one, else half of it."""
    real = differentiate_tile._Tape.total

    def total(self, tile):
        if tile.name == lost and tile not in self._totals and self._parts[tile]:
            parts = self._parts[tile]
            if len(parts) > 1:
                parts.pop()
            elif isinstance(parts[0], differentiate_tile.Tile):
                half = self.elementwise("half", differentiate_tile.sym(parts[0]) / 2, (parts[0],))
                parts[0] = half
        return real(self, tile)

    monkeypatch.setattr(differentiate_tile._Tape, "total", total)
    op = build(broken_passes=True)
    for setting in ("chunk", "recurrent"):
        found = named(failures(op, setting))
        assert ("d_initial_state" if lost == "S" else f"d_{lost}") in found
        assert not found & {"o", "final_state"}


def test_a_momentum_whose_steps_are_not_added_up(build, monkeypatch):
    """The mask of one recurrence in the place of the product of two."""
    real = Builder.compose

    def compose(self, name, a, b, origin, a_transposed=False, b_transposed=False):
        return b if not (a_transposed or b_transposed) else real(self, name, a, b, origin, a_transposed, b_transposed)

    monkeypatch.setattr(Builder, "compose", compose)
    op = build("momentum_deltanet", broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        assert "o" in named(failures(op, setting))


def test_the_adjoint_of_a_product_of_masks_transposed(build, monkeypatch):
    real = Builder.compose

    def compose(self, name, a, b, origin, a_transposed=False, b_transposed=False):
        return real(self, name, a, b, origin, b_transposed, a_transposed)

    monkeypatch.setattr(Builder, "compose", compose)
    op = build("momentum_deltanet", broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        found = named(failures(op, setting))
        assert {"d_g", "d_m"} <= found and not found & {"o", "final_S", "final_M"}


CLOSED = Case(B=1, T=19, H=1, HV=1, d_k=4, d_v=3, chunk_size=16)
CONJUGATE = {
    "chunk": [("d_q_via_x_negative = -d_q_via_x", "d_q_via_x_negative = d_q_via_x")],
    "recurrent": [("for _ in range(2 * rhs.shape[-1] + 8)", "for _ in range(2)")],
}


@pytest.mark.parametrize("setting", CONJUGATE)
def test_a_solve_that_ends_early_or_an_adjoint_of_the_wrong_sign(build, setting):
    op = build("mesanet", reference=CONJUGATE[setting])
    found = named(failures(op, setting, CLOSED))
    assert {"d_k", "d_beta", "d_lam"} <= found and ("o" in found) == (setting == "recurrent")


def test_kernels_that_solve_without_what_the_past_left(build):
    op = build("mesanet", kernels=[("x_tried, H_state, ", "x_tried, 0.0 * H_state, ")])
    assert {"o", "d_q", "d_k", "d_v"} <= named(failures(op, "chunk kernels", CLOSED))


def test_gradients_at_the_start_of_another_segment(build):
    op = build("titans_linear", reference=[('{"recurrent": 64}', '{"recurrent": 2}')], op=[("SEGMENT=64", "SEGMENT=2")])
    for setting in ("recurrent", "recurrent kernels"):
        assert "o" in named(failures(op, setting))


@pytest.mark.parametrize("setting", ["chunk", "chunk kernels"])
@pytest.mark.parametrize("tokens", [32, 512])
def test_a_segments_start_that_moves_within_it_or_never(build, setting, tokens):
    reference, launched = [('"chunk": 256', f'"chunk": {tokens}')], [("SEGMENT=256", f"SEGMENT={tokens}")]
    op = build("long_segments", reference=reference, op=launched)
    case = Case(B=1, T=300 if tokens > 256 else 50, H=1, HV=1, d_k=4, d_v=3, chunk_size=32)
    assert {"o", "d_k", "final_state"} <= named(failures(op, setting, case))


LEFT = "d_W2_anchor_via_W2_start_factor = tl.where(1.0 <= begins, 0.0, 1.0)"


@pytest.mark.parametrize(
    "edits, found",
    [
        ({"op": [("SEGMENT=256", "SEGMENT=512")]}, {"o", "d_k", "final_W1", "d_initial_W2"}),
        ({"kernels": [(LEFT, LEFT.replace("0.0, 1.0", "0.0, 0.0"))]}, {"d_initial_W1", "d_initial_W2"}),
        ({"kernels": [(LEFT, LEFT.replace("0.0, 1.0", "1.0, 1.0"))]}, {"d_initial_W1", "d_initial_W2"}),
        ({"kernels": [("(i_start * HV", "(i_chunk * HV")]}, {"d_k", "d_v", "d_initial_W1"}),
    ],
    ids=["never again", "cotangent dropped", "cotangent kept", "each chunk's own"],
)
def test_a_deep_segments_start_that_is_lost(build, edits, found):
    """Of weights that lie in memory; the sequence goes on into a second segment."""
    case = Case(B=1, T=270, H=1, HV=1, d_k=3, d_v=3, chunk_size=32)
    assert found <= named(failures(build("long_titans", **edits), "chunk kernels", case))


def test_a_last_step_that_is_not_handed_on(build):
    op = build("momentum_deltanet", kernels=[("S, M = S_next, M_next", "S, M = S_next, M")])
    for setting in ("chunk kernels", "recurrent kernels"):
        assert {"o", "final_M"} <= named(failures(op, setting))


def test_kernels_without_their_masks(build, monkeypatch):
    """A pass drops masks of what is 0 already; here it takes everything for 0."""
    monkeypatch.setattr(simplify_tile, "STRICTNESS", dict.fromkeys(simplify_tile.STRICTNESS, 0))
    op = build(broken_passes=True)
    assert not failures(op, "chunk")
    assert {"o", "d_q", "d_k", "d_v"} <= named(failures(op, "chunk kernels"))


def test_kernels_that_pull_a_factor_out_and_lose_it(build, monkeypatch):
    real = pull_factors._factor

    def factor(statement):
        found = real(statement)
        return found if found is None else Product(ONE, found.wide)

    monkeypatch.setattr(pull_factors, "_factor", factor)
    op = build(broken_passes=True)
    assert not failures(op, "chunk")
    assert named(failures(op, "chunk kernels")) == {"d_q"}


def test_kernels_that_share_products_with_a_factor_too_many(build, monkeypatch):
    def is_just(products, rest, pair):
        return len(products) == 1 and sorted(t.name for t in products[0].wide) == [t.name for t in pair]

    monkeypatch.setattr(simplify_tile, "_is_just", is_just)
    op = build(broken_passes=True)
    assert not failures(op, "chunk")
    assert {"d_g", "d_beta"} <= named(failures(op, "chunk kernels"))


def test_kernels_that_read_the_gate_of_another_head(build, monkeypatch):
    real = ChunkMemory._where
    other = ("i_k", "H")
    monkeypatch.setattr(ChunkMemory, "_where", lambda self, buffer: other if buffer.name == "g" else real(self, buffer))
    op = build(broken_passes=True)
    for setting in ("chunk kernels", "recurrent kernels"):
        assert {"o", "final_state"} <= named(failures(op, setting))


# Broken text


def backward_with(op, form, **changed):
    """The operator's backward pass called with other values for some of its arguments."""
    package = op.package.op
    real = getattr(package, f"{form}_backward_op")
    names = [argument.name for argument in real._schema.arguments]
    assert set(changed) <= set(names)
    setattr(package, f"{form}_backward_op", lambda *given: real(*(dict(zip(names, given)) | changed).values()))


ONES = {  # a normaliser's state, and what it hands to gradients: what breaks, and what must be found of it
    ("Z_next = Z_next_share + kept_2", "Z_next = kept_2"): {"o"},
    ("d_Z = d_Z_via_inherited_terms_2 + d_Z_via_kept_2", "d_Z = d_Z_via_inherited_terms_2"): {"d_k"},
    ("d_Z = d_Z_via_inherited_terms_2 + d_Z_via_kept_2", "d_Z = d_Z_via_kept_2"): {"d_initial_Z", "d_k"},
    ("d_q_via_inherited_terms = Z[None, :]", "d_q_via_inherited_terms = 0 * Z[None, :]"): {"d_q"},
    ("d_kept_factor_via_kept_2 = Z * d_Z_next", "d_kept_factor_via_kept_2 = 0 * Z * d_Z_next"): {"d_log_forget"},
    ("inherited_2 * scale * exp(", "0 * scale * exp("): {"d_log_forget"},
}


@pytest.mark.parametrize("broken", ONES)
def test_a_normaliser_whose_state_loses_a_part(build, broken):
    assert ONES[broken] <= named(failures(build("mlstm", kernels=[broken]), "chunk kernels"))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_final_states_cotangent_forgotten(build, setting):
    op = build()
    backward_with(op, SETTINGS[setting][0], d_final_state=None)
    found = named(failures(op, setting))
    assert {"d_k", "d_v"} <= found and not found & {"o", "final_state"}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_scale_forgotten_in_the_backward_pass(build, setting):
    op = build("linear_attention")
    backward_with(op, SETTINGS[setting][0], scale=1.0)
    found = named(failures(op, setting))
    assert {"d_q", "d_k", "d_v"} <= found and not found & {"o", "final_state"}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_initial_states_gradient_forgotten(build, setting):
    op, form = build(), SETTINGS[setting][0]
    real = getattr(op.package.op, f"{form}_backward_op")

    def forget(*given):
        *grads, d_initial = real(*given)
        return *grads, d_initial * 0

    setattr(op.package.op, f"{form}_backward_op", forget)
    assert named(failures(op, setting)) == {"d_initial_state"}


def test_a_group_of_heads_that_forgets_its_others(build):
    op = build(reference=[(".sum(2)", ".select(2, 0)")], op=[(".sum(3)", ".select(3, 0)")])
    for setting in SETTINGS:
        assert named(failures(op, setting)) == {"d_q", "d_k"}


def test_packed_sequences_that_leak_into_each_other(build):
    op = build(reference=[("split(state[owners],", "split(state[owners] if begin == 0 else final[:1],")])
    assert not failures(op, "chunk")
    assert "o" in named(failures(op, "chunk", PACKED))


def test_kernels_that_miss_the_last_token(build):
    op = build(kernels=[("inside = (r < left)", "inside = (r < left - 1)")])
    assert failures(op, "chunk kernels")


def test_kernels_that_keep_too_few_blocks_of_a_causal_tile(build):
    """Blocks on the diagonal, and (with more than one block) those below it."""
    for kept in ("r // 16 > c // 16", "r // 16 == c // 16"):
        op = build(kernels=[("r // 16 >= c // 16", kept)])
        wide = dataclasses.replace(CHUNKED, chunk_size=32)
        assert failures(op, "chunk kernels", wide), kept


JOINED = dataclasses.replace(CHUNKED, schedule="segments")


@pytest.mark.parametrize(
    "old, new",
    [
        ("S_next = tl.dot(factor, rows, S_next", "S_next = tl.dot(factor * 0.0, rows, S_next"),
        ("(j + c) * K + r", "r * K + j + c"),  # the reverse join's transposition
        ("i_n * segments + segments - 1 - i", "i_n * segments + i"),
    ],
)
def test_segments_that_are_joined_wrongly(build, old, new):
    op = build(kernels=[(old, new)])
    assert failures(op, "chunk kernels", JOINED) and not failures(op, "chunk kernels", CHUNKED)


def test_segments_that_are_cut_wrongly(build):
    op = build(layout=[("first * layout.chunks + step)", "first * layout.chunks + step * 0)")])
    assert failures(op, "chunk kernels", JOINED)


def test_diagonal_transitions_that_are_forgotten(build):
    op = build("retnet", kernels=[("e // V, mask=inside, other=0.0) * S", "e // V, mask=inside, other=0.0) * 0.0")])
    assert failures(op, "chunk kernels", JOINED) and not failures(op, "chunk kernels", CHUNKED)


def test_kernels_whose_state_never_enters(build):
    op = build(kernels=[("    if ENTER:\n        S += ", "    if not ENTER:\n        S += ")])
    for setting in ("chunk kernels", "recurrent kernels"):
        assert {"o", "d_q"} <= named(failures(op, setting))


def test_kernels_that_forget_all_panels_but_one(build):
    op = build(kernels=[("tl.range(0, blocks", "tl.range(0, 1")])
    assert not failures(op, "chunk kernels")
    assert {"d_q", "d_k", "d_v"} <= named(failures(op, "chunk kernels", WIDE))


# Bounds


def test_single_precision_does_not_pass_for_double(build):
    old = "return heads_last(o, v.shape[2])"
    op = build(reference=[(old, "o = o.float().to(o.dtype)\n    " + old)])
    assert "o" in named(failures(op, "chunk"))


def test_half_precision_does_not_pass_for_single(build):
    op = build()
    real = op.package.op.OPS["chunk"]

    def rounded(*given):
        o, *others = real(*given)
        return o.half().float(), *others

    op.package.op.OPS["chunk"] = rounded
    assert "o" in named(failures(op, "chunk kernels"))


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "0.0"])
def test_what_is_no_number_misses_every_bound(build, value):
    old = "return heads_last(o, v.shape[2])"
    op = build(reference=[(old, f"o = torch.full_like(o, {value})\n    " + old)])
    assert "o" in named(failures(op, "chunk"))


def test_one_wrong_entry_is_enough(build):
    old = "return heads_last(o, v.shape[2])"
    op = build(reference=[(old, "o[0, 0, -1, -1] += 1e-6\n    " + old)])
    assert named(failures(op, "chunk")) == {"o"}


def test_rows_that_nobody_writes_are_seen(build):
    """The verifier hands out poisoned memory, so that stale rows of the last run cannot pass."""
    assert Verifier(build(), "chunk", torch.float32, "cpu", [CHUNKED])() is None
    inside = "inside = (r < left)[:, None] & (c < WIDTH{})[None, :]\n    where"
    op = build(kernels=[(inside.format(""), inside.format(" - 1"))])
    assert "wrong" in Verifier(op, "chunk", torch.float32, "cpu", [CHUNKED])()


def test_what_differs_between_two_runs_is_seen(build):
    op = build()
    real, calls = op.package.op.OPS["chunk"], itertools.count()

    def noisy(*given):
        o, *others = real(*given)
        return o * (1 + next(calls) * 1e-6), *others

    op.package.op.OPS["chunk"] = noisy
    assert "not repeatable" in Verifier(op, "chunk", torch.float32, "cpu", [CHUNKED])()


@pytest.mark.parametrize("name, root", [("implicit_l_p", "p_new"), ("implicit_pseudo_huber_norm", "norm_new")])
def test_an_implicit_step_that_passes_its_whole_cotangent_on(build, name, root):
    """Without the share 1 / (1 + pull') of the implicit function theorem."""
    edit = [(f"{root}_share = ", f"{root}_share = 1.0 + 0.0 * ")]
    sound, broken = build(name), build(name, reference=edit, kernels=edit)
    for setting in SETTINGS:
        assert not failures(sound, setting)
        assert "d_initial_state" in named(failures(broken, setting))


# Several associations a token


def broken_elimination(monkeypatch, **replaced):
    """Builder's methods that give no more than these for a statement of this name."""
    for method, (name, instead) in replaced.items():
        real = getattr(Builder, method)

        def broken(self, called, *args, real=real, name=name, instead=instead, **kwargs):
            made = real(self, called, *args, **kwargs)
            return instead(self, made) if called == name else made

        monkeypatch.setattr(Builder, method, broken)


def without(self, made):
    return self.constant("nothing", ZERO, made.axes, "a mutation")


@pytest.mark.parametrize(
    "method, name",
    [("compose", "by_way"), ("compose", "passed"), ("contract", "seen_above"), ("contract", "seen_below")],
)
def test_a_step_of_block_elimination_dropped(build, monkeypatch, method, name):
    broken_elimination(monkeypatch, **{method: (name, without)})
    assert {"o", "final_state"} <= named(failures(build("gated_deltaproduct", broken_passes=True), "chunk"))


def test_what_another_loss_writes_not_seen_by_a_prediction(build, monkeypatch):
    broken_elimination(monkeypatch, contract=("told", without))
    assert "o" in named(failures(build("rwkv7", broken_passes=True), "chunk"))


def test_in_turn_without_its_own_token(build, monkeypatch):
    """Both predictions of a token then see the same state."""
    recurrence = derive_recurrence.derive_recurrence(load_spec(ROOT / "specs/gated_deltaproduct.toml"))
    together = dataclasses.replace(recurrence, in_turn=False)
    monkeypatch.setattr(compiler, "derive_recurrence", lambda spec: together)
    assert {"o", "d_v_2", "d_k_2"} <= named(failures(build("gated_deltaproduct", broken_passes=True), "chunk"))


@pytest.mark.parametrize("setting", ["chunk", "chunk kernels"])
def test_the_adjoint_of_a_joint_system_without_its_sign(build, monkeypatch, setting):
    real = Builder.elementwise

    def elementwise(self, name, expr, args, *rest, **more):
        turned = name.startswith("d_system") and name.endswith("_via_u") and expr.could_extract_minus_sign()
        return real(self, name, -expr if turned else expr, args, *rest, **more)

    monkeypatch.setattr(Builder, "elementwise", elementwise)
    found = named(failures(build("gated_deltaproduct", broken_passes=True), setting))
    assert {"d_k", "d_k_2"} <= found and not found & {"o", "d_q", "d_v", "d_v_2", "d_initial_state"}


def test_a_step_of_the_transposed_elimination_dropped(build, monkeypatch):
    monkeypatch.setattr(Builder, "less_turned", lambda self, base, tile, x, origin: base)
    found = named(failures(build("gated_deltaproduct", broken_passes=True), "chunk"))
    assert {"d_v", "d_v_2", "d_initial_state"} <= found and "o" not in found


def test_unknowns_that_are_found_in_the_wrong_order(build, monkeypatch):
    """What scans store of one for the other."""
    real = eliminate._solve_transposed
    turned = lambda build, factors, rhs, targets, origin: real(build, factors, rhs, targets[::-1], origin)  # noqa: E731
    monkeypatch.setattr(eliminate, "_solve_transposed", turned)
    found = named(failures(build("gated_deltaproduct", broken_passes=True), "chunk kernels"))
    assert {"d_v", "d_v_2"} <= found and "o" not in found


def test_a_rounded_key_that_is_stored_as_zeros(build):
    stored = "store_rows(k_2_rounded_ptr + i_h * K, k_2"
    op = build("gated_deltaproduct", kernels=[(stored, f"{stored} * 0.0")])
    assert "o" in named(failures(op, "chunk kernels"))


ROBUST_LAST = """
schema = 1
name = "robust_last"
reference = ""
[inputs]
beta = { per = "head", domain = "unit" }
other = { per = "key_channel", domain = "real" }
[memory]
kind = "linear"
[loss.first]
weight = "beta"
expr = "norm2(p - v) / 2"
[loss.second]
key = "other"
expr = "sum(huber(p - v, 1))"
[retention]
expr = "norm2(S - S_prev) / 2"
[update]
rule = "gradient"
at = "previous"
"""


def test_the_adjoint_of_an_inverse_without_its_sign(build, monkeypatch, tmp_path):
    """A nonlinear error needs what is linear taken out before the program is differentiated."""
    (tmp_path / "robust_last.toml").write_text(ROBUST_LAST)
    assert not failures(build("robust_last"), "chunk")
    real = Builder.mask

    def mask(self, name, arg, relation, fill, origin):
        made = real(self, name, arg, relation, fill, origin)
        turned = name == "d_system_via_inverse" and relation is Relation.STRICT
        return self.elementwise("turned", -sym(made), {made.name: made}, origin) if turned else made

    monkeypatch.setattr(Builder, "mask", mask)
    found = named(failures(build("robust_last", broken_passes=True), "chunk"))
    assert "d_k" in found and "o" not in found


# Gates with channels


def test_partial_sums_of_a_gate_of_key_channels_lost(build):
    """Programs split the value channels, which such a gate's gradient is a sum over."""
    wide = dataclasses.replace(TOKENS, T=3, d_v=40)
    assert not failures(build("kda"), "recurrent kernels", wide)
    op = build("kda", op=[("d_g.sum(0)", "d_g[0]")])
    assert named(failures(op, "recurrent kernels", wide)) == {"d_g"}


@pytest.mark.filterwarnings("ignore:invalid value")
def test_padding_of_a_gate_outside_of_its_domain(build):
    """What a key channel writes is divided by its curvature: with 0 in the padding no sum over keys is a number."""
    name, read, zero = "preconditioned_delta", "K, BK, 0, 1.0)", "K, BK, 0, 0.0)"
    assert not failures(build(name), "recurrent kernels")
    assert {"o", "d_q", "d_c"} <= named(failures(build(name, kernels=[(read, zero)]), "recurrent kernels"))


def test_a_gate_of_the_wrong_value_channels(build):
    op = build("channel_rates", kernels=[("V, V, BT, BV, i_v * BV, 0.5)", "V, V, BT, BV, 0, 0.5)")])
    wide = dataclasses.replace(CHUNKED, T=18, d_v=72)
    assert {"o", "d_w"} <= named(failures(op, "chunk kernels", wide))


@pytest.mark.parametrize("old, new", [
    ("range(0, 4 + (BT > 16)", "range(1, 4 + (BT > 16)"),
    ("ones_ptr + 4 * BT * BT", "ones_ptr + 5 * BT * BT"),
    ("ones + level * 8 * C", "ones + (level ^ 1) * 8 * C"),
    ("t[:, None] // 8 ^ t[None, :] // 8", "t[None, :] // 8"),
    ("exp(sum_where(", "exp(0.5 * sum_where("),
])  # fmt: skip
def test_decays_by_key_channel_between_the_wrong_tokens(build, old, new):
    op = build("gla", kernels=[(old, new)])
    assert {"o", "d_q", "d_k"} <= named(failures(op, "chunk kernels", dataclasses.replace(CHUNKED, chunk_size=64)))


def test_a_table_of_the_wrong_pairs(build):
    op = build("gla", launch=[("(row[:8] ^ t) >> levels == 1", "(row[:8] ^ t) >> levels == 2")])
    assert {"o", "d_q", "d_k"} <= named(failures(op, "chunk kernels", dataclasses.replace(CHUNKED, chunk_size=64)))


@pytest.mark.parametrize("name, old, new, wrong", [
    ("gla", "ones_ptr + 2 * BT * BT", "ones_ptr + 3 * BT * BT", {"d_g"}),  # a token's own decay
    ("gla", "tl.dot(a, tl.trans(b)", "tl.dot(b, tl.trans(a)", {"o", "d_v"}),  # which is what takes the pairs themselves
    ("gla", "decayed_back(tl.trans(_d_scores_below)", "decayed_back((_d_scores_below)", {"d_k", "d_g"}),
    ("gla", "return decay * tl.dot(P * across", "return tl.dot(P * across", {"d_q", "d_k", "d_g"}),
    ("gla", "d_scores_via_attention, 0.0)", "d_scores_via_attention, d_scores_via_attention)", {"d_q", "d_k", "d_g"}),
    ("gla", "d_kept_factor_via_kept_2 * kept_factor", "d_kept_factor_via_kept_2", {"d_g"}),
    ("kda", "store_rows(u_ptr + i_h * V, u,", "store_rows(u_ptr + i_h * V, 2.0 * u,", {"d_k", "d_g"}),
])  # fmt: skip
def test_what_decays_by_key_channel_goes_astray(build, name, old, new, wrong):
    op = build(name, kernels=[(old, new)])
    assert named(failures(op, "chunk kernels", dataclasses.replace(CHUNKED, chunk_size=64))) == wrong


# Scans along the tokens


def broken_scan(monkeypatch, change):
    """`change` takes and gives (decay, write, start, reverse) of every scan."""
    real = Builder.linear_scan

    def scan(self, name, decay, write, start, origin, reverse=False):
        decay, write, start, reverse = change(decay, write, start, reverse)
        return real(self, name, decay, write, start, origin, reverse)

    monkeypatch.setattr(Builder, "linear_scan", scan)


@pytest.mark.parametrize("change, missed", [
    (lambda decay, write, start, reverse: (decay, write, start, False), {"d_k", "d_v", "d_z", "d_initial_state"}),
    (lambda decay, write, start, reverse: (write, decay, start, reverse), {"o", "final_state", "d_v"}),
], ids=["forwards alone", "swapped"])  # fmt: skip
def test_a_broken_scan(build, monkeypatch, change, missed):
    broken_scan(monkeypatch, change)
    op = build("min_gru", broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        assert missed <= named(failures(op, setting))
    assert not failures(op, "recurrent")


@pytest.mark.parametrize("from_where, to", [(Relation.LAST, Relation.FIRST), (Relation.FIRST, Relation.LAST)])
def test_the_other_end_of_a_chunk(build, monkeypatch, from_where, to):
    real = Builder.mask

    def mask(self, name, arg, relation, fill, origin):
        return real(self, name, arg, to if relation is from_where else relation, fill, origin)

    monkeypatch.setattr(Builder, "mask", mask)
    op = build("min_gru", broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        assert "d_initial_state" in named(failures(op, setting))


def test_steps_that_go_on_past_the_end(build, monkeypatch):
    """Kernels alone have tokens there."""
    real = Builder.mask

    def mask(self, name, arg, relation, fill, origin):
        return arg if relation is Relation.VALID else real(self, name, arg, relation, fill, origin)

    monkeypatch.setattr(Builder, "mask", mask)
    op = build("frozen_vector", broken_passes=True)
    assert "final_M" in named(failures(op, "chunk kernels"))


@pytest.mark.parametrize("old, new", [
    ("x * b + y,", "x + y,"), ("kept * start[None, :]", "start[None, :]"),
    ("(decay, write, whole, none)", "(decay, write, none, none)"), ("reverse=REVERSE", "reverse=False"),
])  # fmt: skip
def test_a_broken_scan_in_the_kernels(build, old, new):
    op = build("min_gru", kernels=[(old, new)])
    assert failures(op, "chunk kernels") and not failures(op, "chunk")


@pytest.mark.parametrize("file, old, new", [
    ("kernels", " + partial * ", " + 0 * "), ("op", ".sum(0)", "[0]"),
    ("kernels", "partial = i_v.to(tl.int64)", "partial = 0"),
])  # fmt: skip
def test_shares_of_a_gates_gradient_that_are_lost(build, file, old, new):
    """More channels than a program takes: each stores its own share of what it sums over them."""
    case = Case(B=1, T=19, H=1, HV=1, d_k=40)
    op = build("frozen_vector", **{file: [(old, new)]})
    assert {"d_g", "d_m"} <= named(failures(op, "chunk kernels", case))


ENTRIES = Case(B=2, T=35, H=1, HV=2, d_k=5, d_v=36, chunk_size=16)  # three chunks of several steps, two programs a head
MADE_AGAIN = {"d_dt", "d_q", "d_A"}


@pytest.mark.parametrize("file, old, new, missed", [
    ("kernels", "x = decays[i] * x", "x = x", {"o", "d_A", "final_state"}),
    ("kernels", "x = decays[ROWS - 1 - i] * x", "x = x", {"d_A", "d_k", "d_initial_state"}),
    ("kernels", "found = (x,) + found", "found = found + (x,)", {"d_A", "d_k"}),
    ("kernels", "(here - 1) * BK", "0 * BK", MADE_AGAIN),
    ("kernels", "tl.range(0, here - 1,", "tl.range(0, here - 2,", MADE_AGAIN),
    ("kernels", "i_c * EVERY + i_in", "i_c * EVERY", MADE_AGAIN),
    ("kernels", "d_A_total = d_A_behind + ", "d_A_total = ", {"d_A"}),
    ("kernels", "d_D_ptr + (i_n * HV + i_h)", "d_D_ptr + i_h", {"d_D"}),
    ("kernels", " + partial * ", " + 0 * ", {"d_q", "d_k"}),
    ("op", "per_head(d_q.sum(0), q)", "per_head(d_q[0], q)", {"d_q"}),
    ("op", "d_A.sum(0)", "d_A[0]", {"d_A"}),
], ids=["forwards", "backwards", "order", "last of a trail", "a step short", "where a step is", "a chunk's share alone",
        "one sequence's place", "shares", "shares that are not added", "one sequence's share"])  # fmt: skip
def test_broken_scans_of_entries(build, file, old, new, missed):
    op = build("mamba", **{file: [(old, new)]})
    assert missed <= named(failures(op, "chunk kernels", ENTRIES))


@pytest.mark.parametrize("change, missed", [
    (lambda decay, write, start, reverse: (decay, write, start, False), {"d_k", "d_v", "d_A", "d_initial_state"}),
    (lambda decay, write, start, reverse: (write, decay, start, reverse), {"o", "final_state", "d_A", "d_v"}),
], ids=["forwards alone", "swapped"])  # fmt: skip
def test_a_broken_scan_of_entries(build, monkeypatch, change, missed):
    broken_scan(monkeypatch, change)
    op = build("mamba", broken_passes=True)
    for setting in ("chunk", "chunk kernels"):
        assert missed <= named(failures(op, setting))
    assert not failures(op, "recurrent")
