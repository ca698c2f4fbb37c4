"""The spec language: what it accepts means what it should, what it refuses gets one located message."""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from hostile_specs import BASE, LOSS, RETENTION, ROWS, Row, swap
from ttrc.errors import SpecError, plain
from ttrc.language import evaluate as numeric
from ttrc.language.bounds import check_bounds
from ttrc.language.evaluate import evaluate, evaluate_default
from ttrc.language.functions import FUNCTIONS
from ttrc.language.load import load_spec, parse_spec
from ttrc.language.parse import parse
from ttrc.language.schema import json_schema
from ttrc.language.shapes import infer
from ttrc.language.spec import (
    At,
    ClosedForm,
    Domain,
    Gradient,
    KernelMemory,
    LinearMemory,
    Located,
    LqNorm,
    MLPMemory,
    OfSlices,
    Per,
    Proximal,
    Slice,
    Softmax,
    SoftThreshold,
    VectorMemory,
)
from ttrc.language.state import Part, axis_widths, initial_names, needs_initial_state, state_domain, state_parts
from ttrc.language.syntax import Binary, Call, Expr, Name, Negate, Number, Span, names, walk

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "specs").glob("*.toml"))
UNSEEN = sorted((ROOT / "tests" / "unseen").glob("*.toml"))

AXES = {
    "g": frozenset(),
    "gk": frozenset("k"),
    "p": frozenset("v"),
    "v": frozenset("v"),
    "k": frozenset("k"),
    "S": frozenset("kv"),
    "S_prev": frozenset("kv"),
}


# What is accepted


def by_stem(path):
    return path.stem


@pytest.mark.parametrize("path", SHIPPED + UNSEEN, ids=by_stem)
def test_specs_of_the_repository_load(path):
    spec = load_spec(path)
    assert spec.name == path.stem
    assert spec.source.path == str(path) and spec.source.text == path.read_text()


@pytest.mark.parametrize("path", SHIPPED + UNSEEN, ids=by_stem)
def test_lines_and_spans_point_at_the_text(path):
    spec = load_spec(path)
    lines = spec.source.text.splitlines()
    losses = [part for loss in spec.losses for part in (loss.expr, loss.weight, loss.key, loss.write)]
    located = [*filter(None, [*losses, spec.retention.expr, spec.read])]
    defaults = [p.default for p in spec.parameters if p.default and p.default.key.startswith("parameters.")]
    for expression in [*located, *defaults]:
        assert lines[expression.line - 1].strip().startswith(expression.key.split(".")[-1])
        assert expression.text in lines[expression.line - 1]
        for node in walk(expression.tree):
            text = expression.text[node.span.start : node.span.end]
            match node:
                case Name(id):
                    assert text == id
                case Number(digits):
                    assert text == digits
                case Call(function):
                    assert text.startswith(function + "(") and text.endswith(")")
    for gate in (*spec.inputs, *spec.parameters):
        brought = isinstance(spec.memory, MLPMemory) and gate.name in ("norm_weight", "norm_bias")
        assert ("norm = true" if brought else gate.name) in lines[gate.line - 1]


def test_the_seven_of_this_class_are_shipped():
    assert {path.stem for path in SHIPPED} >= {
        "linear_attention", "retnet", "lightning_attention", "mamba2", "deltanet", "gated_deltanet", "longhorn",
    }  # fmt: skip


def test_gates_carry_their_axes_and_domains():
    spec = parse_spec(
        swap(
            'beta = { per = "head", domain = "unit" }',
            'beta = { per = "head", domain = "unit" }\n'
            'a = { per = "key_channel", domain = "decay" }\n'
            'b = { per = "value_channel", domain = "positive" }\n'
            'c = { per = "element", domain = "real" }',
            "exp(g) * S_prev",
            "exp(g) * a * S_prev * b * c",
        )
    )
    assert [(gate.name, gate.per) for gate in spec.inputs] == [
        ("g", Per.HEAD), ("beta", Per.HEAD), ("a", Per.KEY_CHANNEL), ("b", Per.VALUE_CHANNEL), ("c", Per.ELEMENT),
    ]  # fmt: skip
    assert spec.inputs[0].domain is Domain.LOG_DECAY


MEMORY, UPDATE = 'kind = "linear"', 'rule = "gradient"\nat = "retained"'


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (MEMORY, LinearMemory()),
        ('kind = "vector"', VectorMemory()),
        (
            'kind = "mlp"\nlayers = 2\nexpansion = 4\nactivation = "gelu"\nresidual = true\nnorm = false',
            MLPMemory(2, 4, Located(parse("gelu(x)"), "gelu", "memory.activation", 13), True, False),
        ),
    ],
)
def test_memories(memory, expected):
    assert parse_spec(swap(MEMORY, memory)).memory == expected


KERNEL = 'kind = "kernel"\ndegree = 0\nsimilarity = "dot(q, k)"'


def test_a_kernel_memory_needs_no_retention():
    spec = parse_spec(
        swap(MEMORY, KERNEL, UPDATE, 'rule = "closed_form"', LOSS, '"norm2(p - v) / 2 * exp(g)"')
        .replace("norm2(S - exp(g) * S_prev) / 2", "0")
    )  # fmt: skip
    assert isinstance(spec.memory, KernelMemory) and spec.memory.degree == 0 and isinstance(spec.update, ClosedForm)
    assert spec.memory.similarity.text == "dot(q, k)" and spec.memory.similarity.key == "memory.similarity"


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (UPDATE, Gradient(At.RETAINED, None, None, 19)),
        ('rule = "gradient"\nat = "previous"', Gradient(At.PREVIOUS, None, None, 19)),
        ('rule = "gradient"\nat = "segment_start"\nsegment = 64', Gradient(At.SEGMENT_START, 64, None, 19)),
        ('rule = "proximal"', Proximal(19)),
    ],
)
def test_updates(update, expected):
    assert parse_spec(swap(UPDATE, update)).update == expected


def test_a_closed_form_weighs_its_history_by_a_decay_of_its_own():
    spec = parse_spec(
        swap(UPDATE, 'rule = "closed_form"').replace(
            '"norm2(S - exp(g) * S_prev) / 2"', '"norm2(S) / 2"\ndecay = "exp(g)"'
        )
    )
    assert isinstance(spec.update, ClosedForm) and spec.retention.decay.text == "exp(g)"


def test_momentum_is_an_expression_of_gates():
    spec = parse_spec(swap(UPDATE, UPDATE + '\nmomentum = "beta * 0.9"'))
    assert spec.update.momentum.key == "update.momentum" and names(spec.update.momentum.tree) == {"beta"}


LINE = 18  # of the link


def own(text: str, key: str = "expr") -> Located:
    return Located(parse(text), text, f"retention.link.{key}", LINE)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ('{ kind = "lq_norm", q = 4, epsilon = 1e-6 }', LqNorm(Fraction(4), Fraction(1, 10**6), LINE)),
        ('{ kind = "lq_norm", q = 1.1, epsilon = 0.5 }', LqNorm(Fraction(11, 10), Fraction(1, 2), LINE)),
        ('{ kind = "softmax", axis = "all", scale = 2 }', Softmax(Slice.ALL, Fraction(2), LINE)),
        ('{ scale = 0.1, axis = "key", kind = "softmax" }', Softmax(Slice.KEY, Fraction(1, 10), LINE)),
        ('{ kind = "sigmoid" }', OfSlices(own("sigmoid(S)", "kind"), Slice.ALL, LINE)),
        ('{ kind = "exp" }', OfSlices(own("exp(S)", "kind"), Slice.ALL, LINE)),
        ('{ kind = "expression", expr = "tanh(S)" }', OfSlices(own("tanh(S)"), Slice.ALL, LINE)),
        ('{ kind = "expression", expr = "S", axis = "key" }', OfSlices(own("S"), Slice.KEY, LINE)),
    ],
)
def test_links(link, expected):
    assert parse_spec(swap(RETENTION, f"{RETENTION}\nlink = {link}")).retention.link == expected


def test_a_threshold_is_made_of_parameters():
    link = 'link = { kind = "soft_threshold", threshold = "2 * lam" }'
    parameters = '\n[parameters]\nlam = { per = "head", domain = "nonnegative" }\n'
    spec = parse_spec(swap(RETENTION, f"{RETENTION}\n{link}") + parameters)
    assert isinstance(spec.retention.link, SoftThreshold)
    threshold = spec.retention.link.threshold
    assert (threshold.text, threshold.key, threshold.line) == ("2 * lam", "retention.link.threshold", LINE)


def deep(layers: int = 2, norm: bool = True) -> str:
    return (
        f'kind = "mlp"\nlayers = {layers}\nexpansion = 4\nactivation = "gelu"\n'
        f"residual = true\nnorm = {str(norm).lower()}"
    )


def test_a_layer_norm_brings_its_parameters():
    spec = parse_spec(swap(MEMORY, deep()))
    assert [(p.name, p.per, p.domain, p.line) for p in spec.parameters] == [
        ("norm_weight", Per.VALUE_CHANNEL, Domain.REAL, 15),
        ("norm_bias", Per.VALUE_CHANNEL, Domain.REAL, 15),
    ]
    assert [evaluate_default(p.default.tree, 0, 1) for p in spec.parameters] == [1, 0]
    assert parse_spec(swap(MEMORY, deep(norm=False))).parameters == ()
    own = swap(MEMORY, deep(norm=False)).replace("beta", "norm_bias")
    assert [gate.name for gate in parse_spec(own).inputs] == ["g", "norm_bias"]


def test_parts_of_the_state():
    matrix = ("k", "v")
    heavy = UPDATE + '\nmomentum = "0.9"'
    plain, moving = parse_spec(BASE), parse_spec(swap(UPDATE, heavy))
    assert state_parts(plain) == (Part("S", matrix),) and initial_names(plain) == ("initial_state",)
    assert state_parts(moving) == (Part("S", matrix), Part("M", matrix, is_step=True))
    assert initial_names(moving) == ("initial_S", "initial_M")
    assert state_parts(parse_spec(swap(MEMORY, deep(1)))) == (Part("W1", matrix),)
    three = parse_spec(swap(MEMORY, deep(3), UPDATE, heavy))
    axes = (("k", "h1"), ("h1", "h2"), ("h2", "v"))
    assert state_parts(three) == tuple(Part(f"{x}{i}", a, x == "M") for x in "WM" for i, a in enumerate(axes, start=1))
    assert axis_widths(three.memory, 8, 5) == {"k": 8, "v": 5, "h1": 32, "h2": 32}
    assert needs_initial_state(three) and not needs_initial_state(moving)
    assert state_parts(parse_spec(swap(MEMORY, 'kind = "vector"'))) == (Part("S", ("v",)),)


@pytest.mark.parametrize(
    ("retention", "domain"),
    [
        ("norm2(S - exp(g) * S_prev) / 2", Domain.REAL),
        ("dot(S, S - S_prev) + norm(S) * exp(g) / (g - beta)", Domain.REAL),
        ("sum(S * log(S) - S - exp(g) * S * log(S_prev))", Domain.POSITIVE),
        ("sum(exp(g) * S ** (3/2)) - sum(S * sqrt(S_prev))", Domain.POSITIVE),
        ("exp(g) * sum(S * log(S / S_prev) + (1 - S) * log((1 - S) / (1 - S_prev)))", Domain.UNIT),
    ],
)
def test_where_the_entries_of_a_state_lie(retention, domain):
    spec = parse_spec(swap("norm2(S - exp(g) * S_prev) / 2", retention))
    assert state_domain(spec) is domain and needs_initial_state(spec) == (domain is not Domain.REAL)


@pytest.mark.parametrize(
    ("text", "grouped"),
    [
        ("a - b - c", "((a - b) - c)"),
        ("a / b * c", "((a / b) * c)"),
        ("a + b * c", "(a + (b * c))"),
        ("-a**2", "(-(a ** 2))"),
        ("-a*b", "((-a) * b)"),
        ("2**-a", "(2 ** (-a))"),
        ("2**-a**b", "(2 ** (-(a ** b)))"),
        ("a**b**c", "(a ** (b ** c))"),
        ("(a - b) * c", "((a - b) * c)"),
        ("- - a", "(-(-a))"),
        ("a - -b", "(a - (-b))"),
        ("where(a - 1 <= b, a, b + c)", "where((a - 1) <= b, a, (b + c))"),
        ("max(a, min(b, c))", "max(a, min(b, c))"),
    ],
)
def test_precedence(text, grouped):
    assert show(parse(text)) == grouped


def show(tree: Expr) -> str:
    """The text of a tree with every operation in brackets."""
    match tree:
        case Number(digits):
            return digits
        case Name(id):
            return id
        case Negate(operand):
            return f"(-{show(operand)})"
        case Binary(op, left, right):
            return f"({show(left)} {op} {show(right)})"
        case Call("where", (Binary(op, left, right), a, b)):
            return f"where({show(left)} {op} {show(right)}, {show(a)}, {show(b)})"
        case Call(function, args):
            return f"{function}({', '.join(map(show, args))})"


bracketed = st.recursive(
    st.sampled_from(["a", "b", "c", "2", "0.5", "1e-6"]),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner),
        st.builds("(-{})".format, inner),
        st.builds("huber({}, {})".format, inner, inner),
        st.builds("where({} {} {}, {}, {})".format, inner, st.sampled_from(["<", ">="]), inner, inner, inner),
    ),
    max_leaves=20,
)


@given(bracketed)
@settings(deadline=None)
def test_parsing_undoes_printing(text):
    assert show(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("1", ""),
        ("g * p", "v"),
        ("p - v", "v"),
        ("S - g * S_prev", "kv"),
        ("gk * S_prev", "kv"),
        ("p * S", "kv"),
        ("dot(p, v)", ""),
        ("dot(gk, k)", ""),
        ("norm2(S - S_prev) / 2", ""),
        ("sum(abs(p)) * k", "k"),
        ("huber(p - v, g)", "v"),
        ("where(p < 0, p, 0)", "v"),
        ("max(gk, 0)", "k"),
    ],
)
def test_shapes(text, axes):
    assert infer(parse(text), AXES) == frozenset(axes)


@pytest.mark.parametrize("text", ["gk * p", "where(k < 0, p, 0)", "dot(S, p)", "norm(g)", "sum(1)", "unknown"])
def test_shapes_that_do_not_fit(text):
    with pytest.raises(SpecError) as caught:
        infer(parse(text), AXES)
    assert caught.value.span is not None


@pytest.mark.parametrize("text", ["p**16", "p**-2", "p**0.5", "p**(3/2)", "p**(-1/2)", "2**-3 * p", "exp(-1)", "p / 2"])
def test_exponents_and_constants_in_bounds(text):
    check_bounds(parse(text))


def test_every_elementwise_function_has_a_value_and_no_other_has():
    elementwise = {name for name, function in FUNCTIONS.items() if function.kind == "elementwise"}
    assert set(numeric._FUNCTIONS) == elementwise


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2**-3", 0.125),
        ("-2**2", -4),
        ("7 - 3 - 2", 2),
        ("huber(0.5, 1)", 0.125),
        ("huber(-3, 1)", 2.5),
        ("log_cosh(800)", 800 - math.log(2)),
        ("softplus(-800)", 0),
        ("softplus(800)", 800),
        ("sigmoid(-800)", 0),
        ("where(1 <= 1, 3, 4)", 3),
        ("sign(-2) + max(1, 2) * min(3, 4)", 5),
        ("tanh(0) + sqrt(square(3)) + abs(-1)", 4),
    ],
)
def test_values(text, value):
    assert evaluate(parse(text), {}) == pytest.approx(value, abs=1e-15)


def test_defaults_are_the_papers_values():
    (gamma,) = load_spec(ROOT / "specs" / "retnet.toml").parameters
    (slope,) = load_spec(ROOT / "specs" / "lightning_attention.toml").parameters
    for head in range(8):
        expected = Fraction(1) - Fraction(1, 2 ** (5 + head))
        assert math.exp(evaluate_default(gamma.default.tree, head, 8)) == pytest.approx(float(expected), rel=1e-15)
        assert evaluate_default(slope.default.tree, head, 8) == -head


# What is refused


@pytest.fixture
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_hostile(row: Row, empty_directory, tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "spec.toml"
    path.write_bytes(row.spec if isinstance(row.spec, bytes) else row.spec.encode())
    if row.stage == "compile":
        load_spec(path)  # well-formed: what is wrong with it is for the compiler to find
        return
    start = time.perf_counter()
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert time.perf_counter() - start < 1
    error = caught.value
    assert_fit_for_a_terminal(str(error))
    assert str(error).startswith(plain(path, 200))
    for part in row.says:
        assert part in str(error)
    assert row.key is None or error.key == row.key
    assert row.line is None or error.line == row.line
    if row.points is not None:
        assert error.text[error.span.start : error.span.end] == row.points
        assert_carets_below(str(error), row.points)
    assert error.exit_code == 2 and error.__cause__ is None
    assert os.listdir(empty_directory) == [] and os.listdir(path.parent) == ["spec.toml"]


def assert_fit_for_a_terminal(message: str) -> None:
    assert all(" " <= character <= "~" for character in message.replace("\n", ""))
    assert message.count("\n") < 12 and "\n\n" not in message and max(map(len, message.splitlines())) < 600
    assert "Traceback" not in message


def assert_carets_below(message: str, points: str) -> None:
    lines = message.splitlines()
    carets = next(i for i, line in enumerate(lines) if line.strip() and not line.strip("^ "))
    start = lines[carets].index("^")
    assert lines[carets - 1][start : len(lines[carets])] == points[: len(lines[carets]) - start]


def test_there_are_enough_hostile_specs():
    assert len(ROWS) >= 60 and len({row.id for row in ROWS}) == len(ROWS)


def test_the_base_of_the_hostile_specs_is_itself_fine():
    parse_spec(BASE)


@pytest.mark.parametrize(
    "make",
    [
        lambda directory: directory / "missing.toml",
        lambda directory: directory,
        lambda directory: "nul\0.toml",
        lambda directory: "x" * 5000,
        lambda directory: "",
        lambda directory: "/dev/zero",
        lambda directory: "esc\x1b[2J\n.toml",
    ],
    ids=["missing", "directory", "nul", "long", "none", "device", "escape"],
)
def test_paths_that_hold_no_spec(make, tmp_path):
    with pytest.raises(SpecError) as caught:
        load_spec(make(tmp_path))
    assert_fit_for_a_terminal(str(caught.value))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match="not a regular file"):
        load_spec(tmp_path / "pipe")


def test_a_large_file_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "large.toml"
    path.write_bytes(b"#" * 100_000)
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("opened"))
    with pytest.raises(SpecError, match="too large"):
        load_spec(path)


@given(st.one_of(st.text(max_size=200), st.text("()+-*/<>=.,e0123456789 pvSk_'\"", max_size=80)))
@settings(deadline=None, max_examples=300)
def test_any_text_parses_or_is_refused(text):
    try:
        tree = parse(text)
        infer(tree, AXES)
        check_bounds(tree)
    except SpecError as error:
        assert_fit_for_a_terminal(str(error))


fragments = st.sampled_from(
    "p v k S S_prev g norm2( sum( dot( where( huber( exp( log( ( ) , + - * / ** < <= 0 1 2.5 1e30 9999 ' [ .".split()
)


@given(st.lists(fragments, max_size=25).map(" ".join))
@settings(deadline=None, max_examples=300)
def test_any_fragments_make_a_loss_or_are_refused(expression):
    try:
        parse_spec(swap(LOSS, f'"""{expression}"""'))
    except SpecError as error:
        assert_fit_for_a_terminal(str(error))


@given(st.text(max_size=300))
@settings(deadline=None)
def test_any_file_loads_or_is_refused(text):
    try:
        parse_spec(text)
    except SpecError as error:
        assert_fit_for_a_terminal(str(error))


@given(st.integers(0, len(BASE)), st.integers(0, 40), st.text(max_size=8) | st.sampled_from(list("[]{}=.\"'#\\\n")))
@settings(deadline=None, max_examples=300)
def test_any_damage_to_a_spec_is_refused_or_harmless(position, length, inserted):
    try:
        parse_spec(BASE[:position] + inserted + BASE[position + length :])
    except SpecError as error:
        assert_fit_for_a_terminal(str(error))


# Messages and the schema


def test_the_whole_of_a_message():
    with pytest.raises(SpecError) as caught:
        parse_spec(swap(LOSS, '"norm2(p - vv) / 2"'), "specs/mine.toml")
    assert str(caught.value) == (
        'specs/mine.toml:14: loss.expr: unknown name "vv"\n'
        "    norm2(p - vv) / 2\n"
        "              ^^\n"
        "  expected: one of beta, g, k, p, v\n"
        '  hint: did you mean "v"?'
    )


def test_a_long_expression_is_shown_around_its_fault():
    text = "norm2(p - v) + " * 30 + "nope(p)" + " + norm2(p)" * 20
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert_carets_below(str(caught.value), "nope")
    assert max(map(len, str(caught.value).splitlines())) < 300


def test_messages_survive_pickling():
    error = SpecError("wrong", path="a.toml", line=3, key="loss.expr", text="p - v", span=Span(4, 5), hint="h")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.span == error.span


def test_a_place_fills_in_only_what_is_unknown():
    error = SpecError("wrong", line=3).placed(path="a.toml", line=9)
    assert (error.path, error.line) == ("a.toml", 3)


def test_user_text_cannot_reach_the_terminal():
    hostile = "\x1b]0;x\x07\n\u202e\U0001f600" * 200
    error = SpecError(hostile, path=hostile, key=hostile, text=hostile, span=Span(5, 6), expected=hostile, hint=hostile)
    assert_fit_for_a_terminal(str(error))


def test_the_schema_is_one():
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    json.dumps(schema)
    domains = schema["properties"]["inputs"]["additionalProperties"]["properties"]["domain"]["enum"]
    assert domains == [domain.value for domain in Domain]


def test_what_a_gate_belongs_to_is_a_word():
    """An enum's value () is another thing in Python 3.11.2, which Debian 12 has."""
    assert {per.value: per.axes for per in Per} == {
        "head": (), "key_channel": ("k",), "value_channel": ("v",), "element": ("k", "v"),
    }  # fmt: skip
