"""The explanation: right about the class and why, complete, and safe whatever a spec's free text holds."""

import io
import json
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from ttrc.compiler import analyse
from ttrc.language.load import load_spec, parse_spec
from ttrc.paths import specs_dir
from ttrc.tools import account
from ttrc.tools.classify import findings, headline
from ttrc.tools.dataflow import LETTER
from ttrc.tools.explain import as_data, explain
from ttrc.tools.explain_page import explain_page
from ttrc.tools.notation import as_mathml, as_text, line

FILES = sorted(specs_dir().glob("*.toml")) + sorted((Path(__file__).parent / "unseen").glob("*.toml"))
HOSTILE = """<script>alert(1)</script><img src=http://x/y> [bold]x[/bold] & {{ 7*7 }} {% raw %}"""
VOID = {"meta", "br", "link", "img"}

MAY_FORGET_ALL = """
schema = 1
name = "may_forget_all"
reference = "no paper: a decay that may be zero"
[inputs]
keep = { per = "head", domain = "unit" }
[memory]
kind = "linear"
[loss]
expr = "norm2(p - v) / 2"
[retention]
expr = "norm2(S - keep * S_prev) / 2"
[update]
rule = "gradient"
at = "retained"
"""

MANY_GATES = """
schema = 1
name = "many_gates"
reference = "no paper: names as long and as many as a drawing must bear"
[inputs]
the_first_of_several_gat = { per = "head", domain = "log_decay" }
the_second_of_several_ga = { per = "head", domain = "unit" }
the_third_of_several_gat = { per = "head", domain = "unit" }
eta = { per = "head", domain = "unit" }
[memory]
kind = "linear"
[loss]
weight = "the_second_of_several_ga * the_third_of_several_gat * eta"
expr = "norm2(p - v) / 2"
[retention]
expr = "norm2(S - exp(the_first_of_several_gat) * S_prev) / 2"
[update]
rule = "gradient"
at = "previous"
"""


def shipped(name):
    return load_spec(specs_dir() / f"{name}.toml")


def printed(spec, width=200):
    out = io.StringIO()
    explain(spec, Console(file=out, width=width, color_system=None))
    return out.getvalue()


def squeezed(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def page():
    return explain_page(shipped("gated_deltanet"))


@pytest.mark.parametrize(
    "name, said",
    [
        (
            "linear_attention",
            [
                "linear memory, Hebbian error, no decay",
                "masked linear attention, no solve",
                "because e = -v does not contain p",
                "because a = 1",
                "S_t = S_prev - k e'",
                "e = -v",
                "exact for every chunk size",
                "the same sum over tokens regrouped",
            ],
        ),
        (
            "gated_deltanet",
            [
                "linear memory, affine error, data-dependent decay",
                "one unit lower-triangular solve a chunk",
                "has slope beta in p",
                "because a = exp(g) comes per token",
                "the decayed state",
                "log a = g",
                "S_t = exp(g) S_prev - k e'",
                "p = (exp(g) S_prev)' k",
                "(I + A) u = rhs",
            ],
        ),
        (
            "implicit_huber",
            [
                "linear memory, nonlinear error, data-dependent decay",
                "one proximal (implicit) step a token",
                "e = beta*clip(p - v, delta*(beta*norm2(k) + 1))/(beta*norm2(k) + 1)",
                "p + (|k|^2 / m) dL/dp = (a S_prev)' k",
            ],
        ),
        (
            "longhorn",
            [
                "linear memory, affine error, no decay",
                "one proximal (implicit) step a token",
                "has slope beta/(beta*norm2(k) + 1) in p",
                "e = beta*(p - v)/(beta*norm2(k) + 1)",
                "p = S_t' k",
            ],
        ),
    ],
)
def test_the_text_names_the_class_and_says_why(name, said):
    text = squeezed(printed(shipped(name)))
    for words in said:
        assert words in text, words


@pytest.mark.parametrize("name, expected", [("retnet", "constant"), ("mamba2", "data-dependent"), ("deltanet", "no")])
def test_the_decay_is_found_from_the_algebra(name, expected):
    assert headline(analyse(shipped(name))).endswith(f"{expected} decay")


def test_no_chunk_is_told_of_where_a_segment_is_no_size_of_one():
    text = (specs_dir() / "titans_linear.toml").read_text()
    for tokens, mask in ((64, True), (24, False)):
        told = findings(analyse(parse_spec(text.replace("segment = 64", f"segment = {tokens}"))))
        said = {f.aspect: f.verdict for f in told}
        assert ("C x C" in said["momentum"]) == mask
        assert ("none" in said["chunk form"]) != mask


def test_a_decay_that_may_be_zero_is_recurrent_only_and_says_why():
    text = squeezed(printed(parse_spec(MAY_FORGET_ALL)))
    assert "none: this rule runs token by token" in text
    assert "a = keep may reach zero" in text
    assert "(chunk form)" not in text and "(recurrent form)" in text


def test_a_decay_that_may_be_zero_is_scanned_where_nothing_is_predicted():
    text = squeezed(printed(parse_spec(MAY_FORGET_ALL.replace("norm2(p - v) / 2", "-dot(p, v)"))))
    assert "it is a scan, not matrix products" in text and "a = keep may reach zero" in text
    assert "(chunk form)" in text and "token by token" not in text.split("chunk form")[1].split("recurrent")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_spec_is_explained_in_every_shape(path):
    spec, text = load_spec(path), None
    module, data, text = analyse(spec), as_data(spec), printed(spec)
    assert json.loads(json.dumps(data)) == data
    html = explain_page(spec)
    ElementTree.fromstring(html.replace("<!DOCTYPE html>", ""))
    for form in module.forms.values():
        for kernel in (*form.plan.forward, *form.plan.backward):
            assert kernel.name in text and html.count(f">{kernel.name}<") >= 3  # drawn, planned, paid for
        for statement in account.forward(form):
            assert statement.target.name in text
    for cost in account.costs(module):
        assert f"{cost.budget.bytes:,.0f}" in text and f"{cost.budget.bytes:,.0f}" in html
    for row, told in zip(account.kept(module), data["budget"]["kept"], strict=True):
        assert told["held_bytes"] == row.held and f"{row.held:,.0f}" in text and f"{row.held:,.0f}" in html


def test_a_narrow_terminal_is_enough():
    assert max(map(len, printed(shipped("gated_deltanet"), width=80).splitlines())) <= 80


def test_the_adjoint_shown_has_no_dead_code():
    module = analyse(shipped("gated_deltanet"))
    for form in module.forms.values():
        shown = (*account.forward(form), *account.adjoint(form))
        targets = [s.target for s in shown]
        assert len(set(targets)) == len(targets)
        assert not any("scale" in t.name for t in targets)  # scale takes no gradient
        assert sum(account.operations(account.adjoint(form)).values()) == len(account.adjoint(form))


def test_the_page_shows_the_recurrence_as_mathml(page):
    decay = "<mi>exp</mi><mrow><mo>(</mo><mi>g</mi><mo>)</mo></mrow>"
    assert decay in page and "<mi>&#946;</mi>" in page and "<msub><mi>S</mi><mi>t</mi></msub>" in page
    assert page.count("<math ") >= 8 and page.count("<svg ") == 2


def test_the_page_needs_nothing_else(page):
    assert "<script" not in page and "@import" not in page and "url(" not in page
    tags = Tags(page)
    assert not any(name in ("src", "href", "action", "srcset", "data") for _, attrs in tags.seen for name, _ in attrs)
    assert not any(name.startswith("on") for _, attrs in tags.seen for name, _ in attrs)
    assert "://" not in page
    assert not re.search(r"&(?!(#x?[0-9A-Fa-f]+|amp|lt|gt|quot|apos);)", page)


def test_every_tag_is_closed(page):
    Tags(page)


class Tags(HTMLParser):
    """Every start tag with its attributes; asserts that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def with_reference(reference):
    text = (specs_dir() / "gated_deltanet.toml").read_text()
    return parse_spec(re.sub(r'reference = ".*"', lambda _: f"reference = '{reference}'", text))


def test_free_text_of_a_spec_is_escaped():
    spec = with_reference(HOSTILE)
    page = explain_page(spec)
    assert {tag for tag, _ in Tags(page).seen}.isdisjoint({"script", "img"})
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "{{ 7*7 }}" in page
    ElementTree.fromstring(page.replace("<!DOCTYPE html>", ""))
    assert HOSTILE in printed(spec)  # markup of the terminal is text too
    assert as_data(spec)["reference"] == HOSTILE


@pytest.mark.parametrize(
    "spec", [shipped("gated_deltanet"), shipped("linear_attention"), parse_spec(MANY_GATES)], ids=lambda s: s.name
)
def test_no_two_labels_of_the_drawing_overlap(spec):
    root = ElementTree.fromstring(explain_page(spec).replace("<!DOCTYPE html>", ""))
    drawings = list(root.iter("svg"))
    assert drawings
    for drawing in drawings:
        width, height = map(float, drawing.get("viewBox").split()[2:])
        boxes = [extent(text) for text in drawing.iter("text")]
        for left, top, right, bottom, words in boxes:
            assert 0 <= left and right <= width and 0 <= top and bottom <= height, words
        for a, b in combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a[4], b[4])


def extent(text):
    """Where a label's ink can be: (left, top, right, bottom, words)."""
    kind, words = text.get("class").split(), text.text
    letter = {"kernel": 8.6, "chip": LETTER, "lane": LETTER}.get(kind[0], 6.2)
    x, y, width = float(text.get("x")), float(text.get("y")), letter * len(words)
    left = x - width / 2 if {"chip", "middle"} & set(kind) else x - width if "end" in kind else x
    return left, y - 10, left + width, y + 3, words


@pytest.mark.parametrize(
    "words",
    [
        "S_t = a S_prev - k e'",
        "k (dL/dp)' + m ( S_t - a S_prev ) = 0 where p = S_t' k",
        "p + ( |k|^2 / m ) dL/dp = ( a S_prev )' k",
        "log a = 1",
        "dR/dS = x < y",
    ],
)
def test_lines_are_well_formed_mathml(words):
    ElementTree.fromstring(as_mathml(line(words)))
    assert "( " not in as_text(line(words))
