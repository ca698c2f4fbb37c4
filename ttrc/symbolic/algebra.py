"""Scalars, reductions and their derivatives.

Vector-level expressions are kept per element: `norm2(p - v)` is a scalar symbol standing for the sum over
the value axis of (p - v)**2, recorded as a Reduction. That is all the structure a loss needs, and it keeps
SymPy on scalars, where it is quick and certain. Nothing here ever hands SymPy a string but a symbol's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import sympy

from ttrc.language.spec import Domain
from ttrc.language.syntax import Binary, Call, Name, Negate, Number
from ttrc.language.syntax import Expr as Tree

Expr = sympy.Expr
Symbol = sympy.Symbol

SIMPLIFIED_UP_TO = 25  # operations
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


class choose(sympy.Function):
    """choose(a, b, x, y) is x where a <= b and y elsewhere; a and b move nothing, as autograd has it.

    Branches are functions of their own, not SymPy's Piecewise: that rewrites nested conditions, for minutes.
    """

    def fdiff(self, argindex=1):
        a, b, _, _ = self.args
        return {3: choose(a, b, ONE, ZERO), 4: choose(a, b, ZERO, ONE)}.get(argindex, ZERO)


class smaller(sympy.Function):
    def fdiff(self, argindex=1):
        a, b = self.args
        return choose(a, b, ONE, ZERO) if argindex == 1 else choose(a, b, ZERO, ONE)


class larger(sympy.Function):
    def fdiff(self, argindex=1):
        a, b = self.args
        return choose(a, b, ZERO, ONE) if argindex == 1 else choose(a, b, ONE, ZERO)


class clip(sympy.Function):
    """clip(x, d): x held within -d and d."""

    def fdiff(self, argindex=1):
        x, d = self.args
        inside = choose(magnitude(x), d, ONE, ZERO)
        return inside if argindex == 1 else step_sign(x) * (1 - inside)


class huber(sympy.Function):
    """x^2 / 2 where |x| <= d, d (|x| - d / 2) beyond."""

    def fdiff(self, argindex=1):
        x, d = self.args
        if argindex == 1:
            return clip(x, d)
        return choose(magnitude(x), d, ZERO, magnitude(x) - d)


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
        name = f"sum_{len(self.reductions)}"
        while name in self.symbols:  # a gate may be called so
            name += "_"
        reduced = sympy.Symbol(name, real=True, nonnegative=True if nonnegative else None)
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
        return sympy.expand(total) if total.count_ops() <= SIMPLIFIED_UP_TO else total

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
        case Call("where", (Binary(relation, left, right), yes, no)):
            return _where(relation, *(convert(t, scope) for t in (left, right, yes, no)))
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
}


def _where(relation: str, left: Expr, right: Expr, yes: Expr, no: Expr) -> Expr:
    """Every comparison in terms of <=."""
    match relation:
        case "<=":
            return choose(left, right, yes, no)
        case ">=":
            return choose(right, left, yes, no)
        case "<":
            return choose(right, left, no, yes)
        case _:
            return choose(left, right, no, yes)


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
    "min": smaller,
    "max": larger,
    "huber": huber,
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
    """(slope, offset) with expr = slope * variable + offset and both free of it; None where that is not so.

    A function of the variable (sign, min and the like too, whose derivative is 0 almost everywhere) is not affine.
    """
    functions = expr.atoms(sympy.Function)
    if any(variable in f.free_symbols for f in functions) or not expr.is_polynomial(variable):
        return None
    polynomial = sympy.Poly(expr, variable)
    if polynomial.degree() > 1:
        return None
    return tidy(polynomial.coeff_monomial(variable)), tidy(polynomial.coeff_monomial(1))


def tidy(expr: Expr) -> Expr:
    """A simpler form of a short expression; a long one as it is, for simplifying can take minutes."""
    return sympy.simplify(expr) if expr.count_ops() <= SIMPLIFIED_UP_TO else expr


def log_of(decay: Expr) -> Expr:
    """log(decay), exponentials undone: log(exp(g) / (1 + lam)) = g - log(1 + lam)."""
    return sympy.expand_log(sympy.log(decay), force=True)


def is_positive(expr: Expr) -> bool:
    return expr.is_positive is True or (expr.count_ops() <= SIMPLIFIED_UP_TO and sympy.factor(expr).is_positive is True)


def at_least(expr: Expr, bound: int) -> Expr:
    """max(expr, bound), written so that nan stays nan."""
    return choose(expr, sympy.Integer(bound), sympy.Integer(bound), expr)


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
