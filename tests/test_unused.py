"""What a generated file never reads is taken out of it, and nothing else."""

import pytest

from ttrc.backends.unused import without_unused_imports, without_unused_locals

KEPT = {
    "a field": "def f():\n    class A:\n        x = 1\n    return A\n",
    "a sum": "def f(y):\n    x = 0\n    x += y\n",
    "a read one": "def f(y):\n    x = y\n    return x\n",
    "a call's results": "def f(y):\n    a, b = g(y)\n    return a\n",
    "a block that has to be": "def f(y):\n    for i in y:\n        x = i\n",
    "one of two blocks": "def f(y):\n    if y:\n        x = 1\n    else:\n        print(y)\n",
    "a choice": "def f(y):\n    if y:\n        x = 1\n    else:\n        x = 2\n    return x\n",
}
TAKEN = {
    "a line and what is said of it": ("def f():\n    # why\n    x = 1\n    return 2\n", "def f():\n    return 2\n"),
    "one of two": ("def f(a, b):\n    x, y = a, b\n    return y\n", "def f(a, b):\n    y = b\n    return y\n"),
    "what led to it": ("def f(a):\n    x = a\n    y = x\n    return a\n", "def f(a):\n    return a\n"),
    "a condition on nothing": (
        "def f(a):\n    if a:\n        if a > 1:\n            x = a\n            y = x\n    return a\n",
        "def f(a):\n    return a\n",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays(name):
    assert without_unused_locals(KEPT[name]) == KEPT[name]


@pytest.mark.parametrize("name", TAKEN)
def test_what_goes(name):
    text, left = TAKEN[name]
    assert without_unused_locals(text) == left


def test_imports_that_nothing_takes():
    text = "from __future__ import annotations\n\nfrom a import b, c\n\nfrom d import e\n\nprint(c)\n"
    assert without_unused_imports(text) == "from __future__ import annotations\n\nfrom a import c\n\n\nprint(c)\n"
