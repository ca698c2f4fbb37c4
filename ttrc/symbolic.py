"""The only module that imports SymPy: scalars, reductions and their derivatives, and how to print them.

Vector-level expressions are kept per element: `norm2(p - v)` is a scalar symbol standing for the sum over
the value axis of (p - v)**2, recorded as a Reduction. That is all the structure a loss needs, and it keeps
SymPy on scalars, where it is quick and certain. Nothing here ever hands SymPy a string but a symbol's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import sympy
from sympy.printing.mathml import MathMLPresentationPrinter
from sympy.printing.precedence import PRECEDENCE, precedence
from sympy.printing.str import StrPrinter

from ttrc.language.spec import Domain
from ttrc.language.syntax import Binary, Call, Name, Negate, Number
from ttrc.language.syntax import Expr as Tree

Expr = sympy.Expr
Symbol = sympy.Symbol

ZERO, ONE = sympy.Integer(0), sympy.Integer(1)

_ASSUMPTIONS = {
    Domain.REAL: {"real": True},
    Domain.POSITIVE: {"positive": True},
    Domain.NONNEGATIVE: {"nonnegative": True},
    Domain.NEGATIVE: {"negative": True},
    Domain.UNIT: {"nonnegative": True},
    Domain.DECAY: {"positive": True},
    Domain.LOG_DECAY: {"nonpositive": True},
}


class sigmoid(sympy.Function):
    """1 / (1 + exp(-x)), kept whole: its derivative in terms of itself never overflows."""

    def fdiff(self, argindex=1):
        return self * (1 - self)

    def _eval_is_positive(self):
        return True


class softplus(sympy.Function):
    """log(1 + exp(x)), kept whole for the same reason."""

    def fdiff(self, argindex=1):
        return sigmoid(self.args[0])

    def _eval_is_positive(self):
        return True


class log_cosh(sympy.Function):
    def fdiff(self, argindex=1):
        return sympy.tanh(self.args[0])

    def _eval_is_nonnegative(self):
        return True


class step_sign(sympy.Function):
    """sign(x) with derivative 0 everywhere: the one-sided convention that autograd uses at the kink."""

    def fdiff(self, argindex=1):
        return ZERO


class coarse(sympy.Function):
    """x rounded down to a multiple of 1/64: sums of such numbers are exact. Constant almost everywhere."""

    def fdiff(self, argindex=1):
        return ZERO


class magnitude(sympy.Function):
    """|x|, derivative sign(x)."""

    def fdiff(self, argindex=1):
        return step_sign(self.args[0])

    def _eval_is_nonnegative(self):
        return True


def symbol(name: str, domain: Domain = Domain.REAL) -> Symbol:
    return sympy.Symbol(name, **_ASSUMPTIONS[domain])


def number(digits: str) -> Expr:
    fraction = Fraction(digits)
    return sympy.Rational(fraction.numerator, fraction.denominator)


@dataclass(frozen=True)
class Reduction:
    """`symbol` stands for the sum over `axes` of `body`; bodies refer only to reductions before their own."""

    symbol: Symbol
    body: Expr
    axes: tuple[str, ...]


@dataclass
class Scope:
    """Names to symbols and their axes; collects the reductions that expressions introduce."""

    symbols: dict[str, Symbol]
    axes: dict[Symbol, tuple[str, ...]]
    reductions: list[Reduction] = field(default_factory=list)

    def axes_of(self, expr: Expr) -> tuple[str, ...]:
        found = {a for s in expr.free_symbols for a in self.axes[s]}
        return tuple(a for a in ("k", "v") if a in found)

    def reduce(self, body: Expr) -> Expr:
        """The scalar sum of body over its axes; the same body gives the same symbol."""
        axes = self.axes_of(body)
        if not axes:
            return body
        for known in self.reductions:
            if known.body == body:
                return known.symbol
        nonnegative = body.is_nonnegative
        reduced = sympy.Symbol(f"sum_{len(self.reductions)}", real=True, nonnegative=True if nonnegative else None)
        self.axes[reduced] = ()
        self.reductions.append(Reduction(reduced, body, axes))
        return reduced

    def gradient(self, scalar: Expr, wrt: Symbol) -> Expr:
        """d scalar / d wrt per element: reverse mode over the reductions the scalar goes through."""
        total = sympy.diff(scalar, wrt)
        pending = {r.symbol: sympy.diff(scalar, r.symbol) for r in self.reductions}
        for reduction in reversed(tuple(self.reductions)):
            adjoint = pending[reduction.symbol]
            if adjoint == 0:
                continue
            total += adjoint * sympy.diff(reduction.body, wrt)
            for inner in self.reductions:
                slope = sympy.diff(reduction.body, inner.symbol) if inner.symbol in pending else ZERO
                if slope != 0:
                    pending[inner.symbol] += adjoint * self.reduce(slope)
        return sympy.expand(total)

    def depends(self, expr: Expr, on: Symbol) -> bool:
        """Whether expr involves a symbol, directly or through reductions."""
        if expr.has(on):
            return True
        return any(expr.has(r.symbol) and self.depends(r.body, on) for r in self.reductions)


def convert(tree: Tree, scope: Scope) -> Expr:
    """A checked syntax tree as an elementwise SymPy expression."""
    match tree:
        case Number(digits):
            return number(digits)
        case Name(name):
            return scope.symbols[name]
        case Negate(operand):
            return -convert(operand, scope)
        case Binary(op, left, right):
            return _BINARY[op](convert(left, scope), convert(right, scope))
        case Call(function, args):
            return _call(function, tuple(convert(a, scope) for a in args), scope)
    raise AssertionError(tree)


_BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "<": sympy.StrictLessThan,
    "<=": sympy.LessThan,
    ">": sympy.StrictGreaterThan,
    ">=": sympy.GreaterThan,
}

_ELEMENTWISE = {
    "abs": magnitude,
    "sign": step_sign,
    "exp": sympy.exp,
    "log": sympy.log,
    "sqrt": sympy.sqrt,
    "tanh": sympy.tanh,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "log_cosh": log_cosh,
    "square": lambda x: x**2,
    "min": lambda a, b: sympy.Piecewise((a, a <= b), (b, True)),
    "max": lambda a, b: sympy.Piecewise((a, a >= b), (b, True)),
    "where": lambda condition, a, b: sympy.Piecewise((a, condition), (b, True)),
    "huber": lambda x, d: sympy.Piecewise((x**2 / 2, magnitude(x) <= d), (d * (magnitude(x) - d / 2), True)),
}


def _call(function: str, args: tuple[Expr, ...], scope: Scope) -> Expr:
    match function, args:
        case "sum", (x,):
            return scope.reduce(x)
        case "dot", (x, y):
            return scope.reduce(x * y)
        case "norm2", (x,):
            return scope.reduce(x**2)
        case "norm", (x,):
            return sympy.sqrt(scope.reduce(x**2))
    return _ELEMENTWISE[function](*args)


def derivative(expr: Expr, wrt: Symbol) -> Expr:
    return sympy.diff(expr, wrt)


def affine(expr: Expr, variable: Symbol) -> tuple[Expr, Expr] | None:
    """(slope, offset) with expr = slope * variable + offset and both free of it; None where that is not so."""
    slope = sympy.simplify(sympy.diff(expr, variable))
    if slope.has(variable):
        return None
    return slope, sympy.simplify(expr.subs(variable, 0))


def tidy(expr: Expr) -> Expr:
    return sympy.simplify(expr)


def log_of(decay: Expr) -> Expr:
    """log(decay), exponentials undone: log(exp(g) / (1 + lam)) = g - log(1 + lam)."""
    return sympy.expand_log(sympy.log(decay), force=True)


def is_positive(expr: Expr) -> bool:
    return expr.is_positive is True or sympy.factor(expr).is_positive is True


def at_least(expr: Expr, bound: int) -> Expr:
    """max(expr, bound), written so that nan stays nan."""
    return sympy.Piecewise((sympy.Integer(bound), expr < bound), (expr, True))


def exp(expr: Expr) -> Expr:
    return sympy.exp(expr)


def in_terms_of(expr: Expr, whole: Expr, name: Symbol) -> Expr:
    """expr with every occurrence of the subexpression `whole` replaced by one symbol."""
    return expr.xreplace({whole: name})


def group_factors(expr: Expr, belongs, replace) -> Expr:
    """In each product of expr, `replace` the product of the factors that belong, where they are an operation."""
    if expr.is_Add:
        return expr.func(*(group_factors(term, belongs, replace) for term in expr.args))
    factors = sympy.Mul.make_args(expr)
    inside = [f for f in factors if f.free_symbols and belongs(f)]
    group = sympy.Mul(*inside)
    if not inside or group.is_Symbol:
        return expr
    return replace(group) * sympy.Mul(*(f for f in factors if f not in inside))


def renamed(expr: Expr, names: dict[str, Symbol]) -> Expr:
    """expr with its symbols replaced by name; by name, because assumptions are part of a symbol's identity."""
    return expr.xreplace({s: names[s.name] for s in expr.free_symbols if s.name in names})


def names(expr: Expr) -> set[str]:
    return {s.name for s in expr.free_symbols}


class total(sympy.Function):
    """The sum of a body over its axes, for printing only: what a Reduction's symbol stands for."""


def spelled_out(expr: Expr, reductions: tuple[Reduction, ...]) -> Expr:
    """expr for readers: the symbols of reductions replaced by the sums that they stand for."""
    for reduction in reversed(reductions):
        expr = expr.xreplace({reduction.symbol: total(reduction.body)})
    return expr


def equation(expr: Expr) -> str:
    """One line of plain mathematics."""
    return _Plain().doprint(expr)


def mathml(expr: Expr) -> str:
    """Presentation MathML of one expression; well-formed XML on its own, entities as numbers."""
    text = _MathML().doprint(expr)
    return text.replace("&InvisibleTimes;", "&#8290;").replace("<mo>-</mo>", "<mo>&#8722;</mo>")


class _Plain(StrPrinter):
    def _print_total(self, expr):
        (body,) = expr.args
        if body.is_Pow and body.exp == 2:
            return f"norm2({self._print(body.base)})"
        return f"sum({self._print(body)})"

    def _print_Function(self, expr):
        return f"{_spec_name(expr)}({self.stringify(expr.args, ', ')})"

    def _print_Piecewise(self, expr):
        (value, condition), *rest = expr.args
        if condition == True:  # noqa: E712  (SymPy's true is not Python's)
            return self._print(value)
        return f"where({self.stringify((condition, value, sympy.Piecewise(*rest)), ', ')})"


def _spec_name(call: Expr) -> str:
    """A function as the language of specs calls it."""
    name = type(call).__name__
    return {"magnitude": "abs", "step_sign": "sign"}.get(name, name)


_GREEK = {name: chr(0x3B1 + i) for i, name in enumerate(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho _ sigma tau upsilon phi "
    "chi psi omega".split()) if name != "_"}


class _MathML(MathMLPresentationPrinter):
    """Names as they stand in the spec (Greek where they are), and the functions that this module adds."""

    def _element(self, tag, *children):
        element = self.dom.createElement(tag)
        for child in children:
            element.appendChild(self.dom.createTextNode(child) if isinstance(child, str) else child)
        return element

    def _call(self, name, *args):
        commas = [x for a in args for x in (self._element("mo", ","), self._print(a))][1:]
        inside = self._element("mrow", self._element("mo", "("), *commas, self._element("mo", ")"))
        return self._element("mrow", self._element("mi", name), inside)

    def _print_Symbol(self, expr, style="plain"):
        return self._element("mi", _GREEK.get(expr.name, expr.name))

    def _print_exp(self, expr):
        return self._call("exp", expr.exp)

    _print_ExpBase = _print_exp

    def _print_Function(self, expr):
        return self._call(_spec_name(expr), *expr.args)

    def _print_Relational(self, expr):
        sign = expr.rel_op.replace("<", "&lt;").replace(">", "&gt;")
        return self._element("mrow", self._print(expr.lhs), self._element("mo", sign), self._print(expr.rhs))

    def _print_Piecewise(self, expr):
        (value, condition), *rest = expr.args
        if condition == True:  # noqa: E712  (SymPy's true is not Python's)
            return self._print(value)
        return self._call("where", condition, value, sympy.Piecewise(*rest))

    def _print_total(self, expr):
        (body,) = expr.args
        if body.is_Pow and body.exp == 2:
            bars = (self._element("mo", "&#8214;"), self._print(body.base), self._element("mo", "&#8214;"))
            return self._element("msup", self._element("mrow", *bars), self._element("mn", "2"))
        return self._call("sum", body)


@dataclass(frozen=True)
class Dialect:
    """How a backend spells scalars: calls by name with "{0}" for arguments, and a float literal."""

    calls: dict[str, str]
    where: str


def render(expr: Expr, dialect: Dialect, spelling: dict[str, str]) -> str:
    """expr as source text of a backend; `spelling` gives the text of each symbol."""
    return _Code(dialect, spelling).doprint(expr)


class _Code(StrPrinter):
    """Products and small powers as plain arithmetic, functions through the dialect."""

    def __init__(self, dialect: Dialect, spelling: dict[str, str]):
        super().__init__()
        self.dialect, self.spelling = dialect, spelling

    def _print_Symbol(self, expr):
        return self.spelling[expr.name]

    def _print_Rational(self, expr):
        return repr(float(expr))

    def _print_Float(self, expr):
        return repr(float(expr))

    def _print_Integer(self, expr):
        return repr(float(expr))

    _print_Zero = _print_One = _print_NegativeOne = _print_Half = _print_Rational

    def _print_Mul(self, expr):
        sign, rest = expr.as_coeff_Mul()
        if sign == -1:
            inner = self.parenthesize(rest, PRECEDENCE["Mul"])
            return f"-{inner}"
        above = [f for f in expr.args if not _is_reciprocal(f)]
        below = [1 / f for f in expr.args if _is_reciprocal(f)]
        scalars_first = sorted(above, key=lambda f: not f.is_number)
        text = " * ".join(self.parenthesize(f, PRECEDENCE["Mul"]) for f in scalars_first) or "1.0"
        for factor in below:
            text += f" / {self.parenthesize(factor, PRECEDENCE['Pow'])}"
        return text

    def _print_Pow(self, expr):
        base, exponent = expr.args
        if exponent == sympy.Rational(1, 2):
            return self._call("sqrt", (base,))
        if exponent == -1:
            return f"1.0 / {self.parenthesize(base, PRECEDENCE['Pow'])}"
        if exponent.is_Integer and 2 <= exponent <= 4:
            return " * ".join([self.parenthesize(base, PRECEDENCE["Mul"])] * int(exponent))
        if exponent.is_negative and exponent.is_number:
            return f"1.0 / ({self._print(base ** -exponent)})"
        return self._call("pow", (base, exponent))

    def _call(self, name, args):
        return self.dialect.calls[name].format(*(self._print(a) for a in args))

    def _print_Function(self, expr):
        return self._call(type(expr).__name__, expr.args)

    def _print_exp(self, expr):
        return self._call("exp", expr.args)

    def _print_ExpBase(self, expr):
        return self._call("exp", (expr.exp,))

    def _print_log(self, expr):
        return self._call("log", expr.args)

    def _print_Relational(self, expr):
        return f"({self._print(expr.lhs)} {expr.rel_op} {self._print(expr.rhs)})"

    def _print_Piecewise(self, expr):
        (value, condition), *rest = expr.args
        if condition == True:  # noqa: E712  (SymPy's true is not Python's)
            return self._print(value)
        otherwise = self._print(sympy.Piecewise(*rest))
        return self.dialect.where.format(self._print(condition), self._print(value), otherwise)

    def parenthesize(self, item, level, strict=False):
        text = self._print(item)
        needs = precedence(item) < level or text.startswith("-") or (level >= PRECEDENCE["Pow"] and " " in text)
        return f"({text})" if needs and not _is_closed(text) else text


def _is_reciprocal(factor: Expr) -> bool:
    return factor.is_Pow and factor.exp.is_number and factor.exp.is_negative


def _is_closed(text: str) -> bool:
    """Whether text is already one parenthesised group or one call."""
    if not text.endswith(")"):
        return False
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == ")":
            return position == len(text) - 1
        if depth == 0 and character == " ":
            return False
    return False
