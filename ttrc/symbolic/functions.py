"""Functions that SymPy lacks, or would rewrite: each is kept whole, has a derivative, and of numbers is a number."""

from __future__ import annotations

import sympy

ZERO, ONE = sympy.Integer(0), sympy.Integer(1)


class _Whole(sympy.Function):
    @classmethod
    def eval(cls, *args):
        return cls.of_numbers(*args) if all(a.is_number for a in args) else None


class sigmoid(_Whole):
    """1 / (1 + exp(-x)), kept whole: its derivative in terms of itself never overflows."""

    @staticmethod
    def of_numbers(x):
        return 1 / (1 + sympy.exp(-x))

    def fdiff(self, argindex=1):
        return self * (1 - self)

    def _eval_is_positive(self):
        return True


class softplus(_Whole):
    """log(1 + exp(x)), kept whole for the same reason."""

    @staticmethod
    def of_numbers(x):
        return sympy.log(1 + sympy.exp(x))

    def fdiff(self, argindex=1):
        return sigmoid(self.args[0])

    def _eval_is_positive(self):
        return True


class log_cosh(_Whole):
    @staticmethod
    def of_numbers(x):
        return sympy.log(sympy.cosh(x))

    def fdiff(self, argindex=1):
        return sympy.tanh(self.args[0])

    def _eval_is_nonnegative(self):
        return True


class step_sign(_Whole):
    """sign(x) with derivative 0 everywhere: the one-sided convention that autograd uses at the kink."""

    of_numbers = staticmethod(sympy.sign)

    def fdiff(self, argindex=1):
        return ZERO


class coarse(_Whole):
    """x rounded down to a multiple of 1/64: sums of such numbers are exact. Constant almost everywhere."""

    @staticmethod
    def of_numbers(x):
        return sympy.floor(64 * x) / 64

    def fdiff(self, argindex=1):
        return ZERO


class magnitude(_Whole):
    """|x|, derivative sign(x)."""

    of_numbers = staticmethod(sympy.Abs)

    def fdiff(self, argindex=1):
        return step_sign(self.args[0])

    def _eval_is_nonnegative(self):
        return True


class choose(_Whole):
    """choose(a, b, x, y) is x where a <= b and y elsewhere; a and b move nothing, as autograd has it.

    Branches are functions of their own, not SymPy's Piecewise: that rewrites nested conditions, for minutes.
    """

    @staticmethod
    def of_numbers(a, b, x, y):
        return x if a <= b else y

    def fdiff(self, argindex=1):
        a, b, _, _ = self.args
        return {3: choose(a, b, ONE, ZERO), 4: choose(a, b, ZERO, ONE)}.get(argindex, ZERO)


class smaller(_Whole):
    of_numbers = staticmethod(sympy.Min)

    def fdiff(self, argindex=1):
        a, b = self.args
        return choose(a, b, ONE, ZERO) if argindex == 1 else choose(a, b, ZERO, ONE)


class larger(_Whole):
    of_numbers = staticmethod(sympy.Max)

    def fdiff(self, argindex=1):
        a, b = self.args
        return choose(a, b, ZERO, ONE) if argindex == 1 else choose(a, b, ONE, ZERO)


class positive_power(_Whole):
    """x ** y of a number y where x > 0, 0 elsewhere: finite at 0 with all its derivatives, as a norm has to be."""

    @staticmethod
    def of_numbers(x, y):
        return x**y if x > 0 else ZERO

    def fdiff(self, argindex=1):
        x, y = self.args
        return y * positive_power(x, y - 1) if argindex == 1 else ZERO

    def _eval_is_nonnegative(self):
        return True


class clip(_Whole):
    """clip(x, d): x held within -d and d."""

    @staticmethod
    def of_numbers(x, d):
        return sympy.Max(-d, sympy.Min(x, d))

    def fdiff(self, argindex=1):
        x, d = self.args
        inside = choose(magnitude(x), d, ONE, ZERO)
        return inside if argindex == 1 else step_sign(x) * (1 - inside)


class huber(_Whole):
    """x^2 / 2 where |x| <= d, d (|x| - d / 2) beyond."""

    @staticmethod
    def of_numbers(x, d):
        return clip(x, d) * (x - clip(x, d) / 2)

    def fdiff(self, argindex=1):
        x, d = self.args
        if argindex == 1:
            return clip(x, d)
        return choose(magnitude(x), d, ZERO, magnitude(x) - d)


def gelu(x: sympy.Expr) -> sympy.Expr:
    """By its tanh approximation, x (1 + tanh(y)) / 2 with y = sqrt(2 / pi) (x + 0.044715 x^3): of 2 y a sigmoid."""
    return x * sigmoid(2 * sympy.sqrt(2 / sympy.pi) * (x + sympy.Rational(44715, 1000000) * x**3))
