"""Items that a formatter gives a line each fill lines; whatever takes several lines, or means a line, is left alone."""

import ast

import pytest

from ttrc.backends.fill_lines import WIDTH, fill_lines

LONG = "\n".join(f"    argument_{i}," for i in range(20))
SAME = {
    "few": "f(\n    a,\n    b,\n    c,\n)",
    "fields": "x = {\n    a: 1,\n    b: 2,\n    c: 3,\n    d: 4,\n}",
    "comments": "f(\n    a,  # so,\n    b,  # so,\n    c,  # so,\n    d,  # so,\n)",
    "a text": 'f(\n    "a, "\n    "b, "\n    "c, "\n    "d, "\n)',
    "a sum": "f(\n    a\n    + b,\n    c,\n    d,\n    e,\n)",
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_left_alone(name):
    assert fill_lines(SAME[name]) == SAME[name]


def test_items_fill_lines():
    made = fill_lines(f"f(\n{LONG}\n)")
    assert ast.dump(ast.parse(made)) == ast.dump(ast.parse(f"f({LONG})"))
    assert len(made.splitlines()) == 5 and max(map(len, made.splitlines())) <= WIDTH


def test_items_around_a_long_one_fill_lines_too():
    ahead, behind = "a b c d".split(), "p q r s".split()
    lines = [*(f"    {x}," for x in ahead), "    [", *(f"        {x}," for x in "vwxyz"), "    ],"]
    lines += [f"    {x}," for x in behind]
    made = fill_lines("\n".join(["f(", *lines, ")"]))
    assert made == "f(\n    a, b, c, d,\n    [\n        v, w, x, y, z,\n    ],\n    p, q, r, s,\n)"
    assert fill_lines(made) == made
