"""Expressions for readers: one line of plain mathematics, or presentation MathML."""

from __future__ import annotations

import sympy
from sympy.printing.mathml import MathMLPresentationPrinter
from sympy.printing.str import StrPrinter

from ttrc.symbolic.algebra import Expr, Reduction
from ttrc.symbolic.functions import positive_power


class total(sympy.Function):
    """The sum of a body over its axes, for printing only: what a Reduction's symbol stands for."""


def spelled_out(expr: Expr, reductions: tuple[Reduction, ...]) -> Expr:
    """expr for readers: the symbols of reductions replaced by the sums that they stand for."""
    for reduction in reversed(reductions):
        channels = sympy.Symbol(f"d_{reduction.axes[0]}")  # as many ones
        expr = expr.xreplace({reduction.symbol: total(reduction.body) if reduction.body.free_symbols else channels})
    return expr


def equation(expr: Expr) -> str:
    """One line of plain mathematics."""
    return _Plain().doprint(_with_plain_powers(expr))


def mathml(expr: Expr) -> str:
    """Presentation MathML of one expression; well-formed XML on its own, entities as numbers."""
    text = _MathML().doprint(_with_plain_powers(expr))
    return text.replace("&InvisibleTimes;", "&#8290;").replace("<mo>-</mo>", "<mo>&#8722;</mo>")


def _with_plain_powers(expr: Expr) -> Expr:
    return expr.replace(positive_power, sympy.Pow)


class _Plain(StrPrinter):
    def _print_total(self, expr):
        (body,) = expr.args
        if body.is_Pow and body.exp == 2:
            return f"norm2({self._print(body.base)})"
        return f"sum({self._print(body)})"

    def _print_Function(self, expr):
        return f"{_spec_name(expr)}({self.stringify(expr.args, ', ')})"

    def _print_choose(self, expr):
        left, right, yes, no = (self._print(a) for a in expr.args)
        return f"where({left} <= {right}, {yes}, {no})"


def _spec_name(call: Expr) -> str:
    """A function as the language of specs calls it."""
    name = type(call).__name__
    return {"magnitude": "abs", "step_sign": "sign", "smaller": "min", "larger": "max"}.get(name, name)


_GREEK = {
    name: chr(0x3B1 + i)
    for i, name in enumerate(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho _ sigma tau "
        "upsilon phi chi psi omega".split()
    )
    if name != "_"
}


class _MathML(MathMLPresentationPrinter):
    """Names as they stand in the spec (Greek where they are), and the functions that this module adds."""

    def _element(self, tag, *children):
        element = self.dom.createElement(tag)
        for child in children:
            element.appendChild(self.dom.createTextNode(child) if isinstance(child, str) else child)
        return element

    def _call(self, name, *args):
        commas = [
            x for a in args for x in (self._element("mo", ","), self._print(a) if isinstance(a, sympy.Basic) else a)
        ][1:]
        inside = self._element("mrow", self._element("mo", "("), *commas, self._element("mo", ")"))
        return self._element("mrow", self._element("mi", name), inside)

    def _print_Symbol(self, expr, style="plain"):
        return self._element("mi", _GREEK.get(expr.name, expr.name))

    def _print_exp(self, expr):
        return self._call("exp", expr.exp)

    _print_ExpBase = _print_exp

    def _print_Function(self, expr):
        return self._call(_spec_name(expr), *expr.args)

    def _print_choose(self, expr):
        left, right, yes, no = expr.args
        held = self._element("mrow", self._print(left), self._element("mo", "&#8804;"), self._print(right))
        return self._call("where", held, yes, no)

    def _print_total(self, expr):
        (body,) = expr.args
        if body.is_Pow and body.exp == 2:
            bars = (self._element("mo", "&#8214;"), self._print(body.base), self._element("mo", "&#8214;"))
            return self._element("msup", self._element("mrow", *bars), self._element("mn", "2"))
        return self._call("sum", body)
