"""Scalars, reductions and their derivatives.

Vector-level expressions are kept per element: `norm2(p - v)` is a scalar symbol standing for the sum over
the value axis of (p - v)**2, recorded as a Reduction. That is all the structure a loss needs, and it keeps
SymPy on scalars, where it is quick and certain. Nothing here ever hands SymPy a string but a symbol's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from math import comb, prod

import sympy

from ttrc.language.spec import Domain
from ttrc.symbolic.functions import choose, positive_power, sigmoid, softplus

Expr = sympy.Expr
Symbol = sympy.Symbol

# How much is simplified, in operations and in terms once multiplied out; how much is multiplied out at all, in terms.
SHORT, SHORT_OUT, LONG_OUT = 25, 100, 1000
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


@cache  # passes ask for those of their tiles time and again
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
        return self._summed(body, axes) if axes else body

    def count(self, of: Expr) -> Expr:
        """How many entries it has: the sum of as many ones."""
        return self._summed(ONE, self.axes_of(of))

    def _summed(self, body: Expr, axes: tuple[str, ...]) -> Expr:
        for known in self.reductions:
            if (known.body, known.axes) == (body, axes):
                return known.symbol
        nonnegative = body.is_nonnegative
        name = f"sum_{len(self.reductions)}"
        while name in self.symbols:  # a gate may be called so
            name += "_"
        reduced = sympy.Symbol(name, real=True, nonnegative=True if nonnegative else None)
        self.axes[reduced] = ()
        self.reductions.append(Reduction(reduced, body, axes))
        return reduced

    def unknown(self, name: str, axes: tuple[str, ...], domain: Domain = Domain.REAL) -> Symbol:
        """A symbol for what an equation is solved for."""
        while name in self.symbols:  # a gate may be called so
            name += "_"
        made = symbol(name, domain)
        self.axes[made] = axes
        return made

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
        return total

    def depends(self, expr: Expr, on: Symbol) -> bool:
        """Whether expr involves a symbol, directly or through reductions."""
        if expr.has(on):
            return True
        return any(expr.has(r.symbol) and self.depends(r.body, on) for r in self.reductions)


def derivative(expr: Expr, wrt: Symbol) -> Expr:
    return sympy.diff(expr, wrt)


def affine(expr: Expr, variable: Symbol) -> tuple[Expr, Expr] | None:
    """(slope, offset) with expr = slope * variable + offset and both free of it; None where that is not so.

    A function of the variable (sign, min and the like too, whose derivative is 0 almost everywhere) is not affine.
    """
    functions = expr.atoms(sympy.Function)
    if any(variable in f.free_symbols for f in functions) or not expr.is_polynomial(variable):
        return None
    parts: dict[Expr, Symbol] = {}
    outline = _outline(expr, variable, parts)
    if sum(_terms(outline)) > LONG_OUT:
        return None
    whole = {symbol: part for part, symbol in parts.items()}
    coefficients = sympy.Poly(outline, variable).all_coeffs()
    offset, slope, *higher = (tidy(c.xreplace(whole)) for c in (*reversed(coefficients), ZERO))
    return None if any(c != 0 for c in higher) else (slope, offset)


def _outline(expr: Expr, variable: Symbol, parts: dict[Expr, Symbol]) -> Expr:
    """A polynomial, a symbol for what is free of the variable in each sum and product: multiplied out it is small."""
    if not expr.has(variable):
        return expr if expr.is_number else parts.setdefault(expr, sympy.Dummy())
    if expr.is_Symbol:
        return expr
    if expr.is_Pow:
        return _outline(expr.base, variable, parts) ** expr.exp
    free, bound = expr.as_independent(variable)
    return expr.func(*(_outline(part, variable, parts) for part in (free, *expr.func.make_args(bound))))


def quadratic_form(expr: Expr, a: Symbol, b: Symbol) -> tuple[Expr, Expr, Expr] | None:
    """The coefficients of a^2, a b and b^2 in an expression that is a sum of these; None where it is not."""
    if not is_short(expr) or not expr.is_polynomial(a, b):
        return None
    found = sympy.Poly(expr, a, b).as_dict()
    powers = (2, 0), (1, 1), (0, 2)
    return tuple(found.get(p, ZERO) for p in powers) if found.keys() <= set(powers) else None


def without_terms(expr: Expr, names: set[str]) -> Expr:
    """expr without the terms that are over these names alone, numbers among them."""
    return sympy.Add(*(term for term in sympy.Add.make_args(expr) if not {s.name for s in term.free_symbols} <= names))


def expanded(expr: Expr) -> Expr:
    """A short expression multiplied out."""
    return sympy.expand(expr) if is_short(expr) else expr


def factored(expr: Expr) -> Expr:
    """expr as it is, what the terms of each sum have in common in front of it."""
    return sympy.factor_terms(expr)


def size(expr: Expr) -> int:
    """How many operations expr holds."""
    return int(expr.count_ops())


def tidy(expr: Expr) -> Expr:
    """A simpler form of a short expression; a long one as it is, for simplifying can take minutes.

    Functions and roots stay as they were written: sqrt(1 - exp(-x)), as sqrt(exp(x) - 1) exp(-x / 2), overflows.
    """
    if not is_short(expr):
        return expr
    functions: dict[Expr, Symbol] = {}
    simple = sympy.simplify(_without_functions(expr, functions))
    return simple.xreplace({symbol: part for part, symbol in functions.items()})


def _without_functions(expr: Expr, found: dict[Expr, Symbol]) -> Expr:
    """expr with a symbol in the place of each function and root, which `found` collects."""
    if expr.is_Function or (expr.is_Pow and not expr.exp.is_Integer):
        signs = {"real": expr.is_real, "positive": expr.is_positive, "nonnegative": expr.is_nonnegative}
        return found.setdefault(expr, sympy.Dummy(**signs))
    return expr.func(*(_without_functions(part, found) for part in expr.args)) if expr.args else expr


def is_short(expr: Expr) -> bool:
    """Both measures are needed: a few operations make many terms, (a + b + c)**16, and many functions make few."""
    return expr.count_ops() <= SHORT and sum(_terms(expr)) <= SHORT_OUT


def _terms(expr: Expr) -> tuple[int, int]:
    """At most how many terms numerator and denominator have, multiplied out over one denominator."""
    parts = [_terms(part) for part in expr.args]
    above, below = prod(n for n, _ in parts), prod(d for _, d in parts)
    if expr.is_Add:
        return sum(n * (below // d) for n, d in parts), below
    if expr.is_Pow and expr.exp.is_Integer:
        powers = tuple(comb(n + abs(int(expr.exp)) - 1, n - 1) for n in parts[0])
        return powers if expr.exp > 0 else powers[::-1]
    return (above, below) if expr.is_Mul else (above * below, 1)


def log_of(decay: Expr) -> Expr:
    """log(decay), exponentials undone: log(exp(g) / (1 + lam)) = g - log(1 + lam)."""
    return sympy.expand_log(sympy.log(decay), force=True)


def is_positive(expr: Expr, shares: tuple[Symbol, ...] = ()) -> bool:
    """`shares` are between 0 and 1: what is affine in one of them is positive where it is so at both of its ends."""
    expr = expr.replace(lambda part: part.is_Add, _growth)
    if expr.is_positive is True or (is_short(expr) and sympy.factor(expr).is_positive is True):
        return True
    return is_short(expr) and any(_is_positive_at_ends(expr, x, shares) for x in shares if x in expr.free_symbols)


def _is_positive_at_ends(expr: Expr, share: Symbol, shares: tuple[Symbol, ...]) -> bool:
    above, below = sympy.fraction(sympy.together(expr))
    others = tuple(x for x in shares if x != share)
    parts = affine(above, share)
    if parts is None or not is_positive(below, others):
        return False
    slope, offset = parts
    return is_positive(offset, others) and is_positive(sympy.expand(slope + offset), others)


def _growth(total: Expr) -> Expr:
    """Of c (exp(y) - 1), as of a decay's integral over a step, the same with a symbol that has the sign of y."""
    rest, term = total.as_coeff_Add()
    c, function = term.as_coeff_Mul()
    if rest != -c or not isinstance(function, sympy.exp):
        return total
    y = function.args[0]
    signs = {name: getattr(y, f"is_{name}") for name in ("real", "positive", "negative", "nonnegative", "nonpositive")}
    return c * sympy.Dummy(**signs)


def finite_at_zero(expr: Expr, scope: Scope, wrt: tuple[Symbol, ...]) -> Expr:
    """expr with powers of what may be 0, by way of `wrt`, that have no derivative there replaced by finite ones."""

    def may_not_be(part: Expr) -> bool:
        base, exponent = part.as_base_exp()
        if not part.is_Pow or not exponent.is_Rational or (exponent.is_Integer and exponent > 0):
            return False
        return base.is_nonnegative is True and base.is_positive is not True and any(scope.depends(base, x) for x in wrt)

    return expr.replace(may_not_be, lambda part: positive_power(*part.as_base_exp()))


def is_zero_at(expr: Expr, names: tuple[str, ...]) -> bool:
    """Whether expr is 0 where the symbols of these names all are."""
    return expr.subs({s: ZERO for s in expr.free_symbols if s.name in names}) == 0


def at_least(expr: Expr, bound: int) -> Expr:
    """max(expr, bound), written so that nan stays nan."""
    return choose(expr, sympy.Integer(bound), sympy.Integer(bound), expr)


def exp(expr: Expr) -> Expr:
    return sympy.exp(expr)


def exponential(expr: Expr) -> tuple[Expr, Expr]:
    """(factor, exponent) with exp(expr) = factor exp(exponent): logarithms undone, that of a sigmoid among them."""
    factor, exponent = ONE, ZERO
    for term in sympy.Add.make_args(expr):
        match term:
            case sympy.log():
                factor *= term.args[0]
            case sympy.Mul(args=(sympy.Integer(p=-1), softplus(args=(x,)))):
                factor *= sigmoid(-x)
            case _:
                exponent += term
    return factor, exponent


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


def group_arguments(expr: Expr, belongs, replace) -> Expr:
    """In each function of several arguments in expr, `replace` those that belong, where they are an operation."""
    if not expr.args:
        return expr
    args = [group_arguments(a, belongs, replace) for a in expr.args]
    if expr.is_Function and len(args) > 1:
        args = [replace(a) if a.free_symbols and not a.is_Symbol and belongs(a) else a for a in args]
    return expr.func(*args)


def function_factors(expr: Expr) -> tuple[Expr, ...]:
    """The functions among the factors of a product of several."""
    factors = sympy.Mul.make_args(expr)
    return tuple(f for f in factors if f.is_Function) if len(factors) > 1 else ()


def separated(expr: Expr, belongs) -> tuple[Expr, Expr]:
    """(inside, outside): the product of the factors that belong, and that of the rest."""
    factors = sympy.Mul.make_args(sympy.factor(expr) if is_short(expr) else factored(expr))
    inside = sympy.Mul(*(f for f in factors if belongs(f)))
    return inside, sympy.Mul(*(f for f in factors if not belongs(f)))


def renamed(expr: Expr, names: dict[str, Symbol]) -> Expr:
    """expr with its symbols replaced by name; by name, because assumptions are part of a symbol's identity."""
    return expr.xreplace({s: names[s.name] for s in expr.free_symbols if s.name in names})


def names(expr: Expr) -> set[str]:
    return {s.name for s in expr.free_symbols}
