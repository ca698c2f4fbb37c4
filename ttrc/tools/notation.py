"""How explanations write mathematics: lines of a derivation as text and as MathML, statements as index notation."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from ttrc import symbolic
from ttrc.ir.tile import (
    UNKNOWN,
    Attend,
    Compose,
    Conjugate,
    Contract,
    CumulativeSum,
    Decayed,
    Difference,
    Elementwise,
    Further,
    Inverse,
    Largest,
    LinearScan,
    Mask,
    Normaliser,
    Op,
    Reduce,
    Relabel,
    Root,
    RunningSum,
    Solve,
    Statement,
    Substitute,
    Tile,
    Written,
)
from ttrc.symbolic import Expr, symbol

HOLE = "{}"


@dataclass(frozen=True)
class Line:
    """Mathematics in words separated by blanks; each word {} stands for the next expression."""

    words: str
    exprs: tuple[Expr, ...] = ()


def line(words: str, *exprs: Expr) -> Line:
    return Line(words, exprs)


def factor(expr: Expr) -> str:
    """The hole for an expression that multiplies what follows."""
    return f"( {HOLE} )" if expr.is_Add else HOLE


def as_text(written: Line) -> str:
    text = written.words.replace("( ", "(").replace(" )", ")")
    return text.format(*(symbolic.equation(e) for e in written.exprs))


def as_mathml(written: Line) -> str:
    exprs, parts, before = iter(written.exprs), [], "="
    for word in written.words.split():
        if before not in _SPACED_AFTER and word not in _SPACED_BEFORE:
            parts.append('<mspace width="0.2em"/>')
        parts.append(symbolic.mathml(next(exprs)) if word == HOLE else _word(word))
        before = word
    return f'<math display="block"><mrow>{"".join(parts)}</mrow></math>'


def _word(word: str) -> str:
    """One word: transposed where it ends in ', indexed where it holds _, an operator or a name otherwise."""
    if word in _WHOLE:
        return _WHOLE[word]
    if word.strip("()'").startswith("dL/d"):
        slope = _fraction("L", _word(word.strip("()'").removeprefix("dL/d")))
        return f"<msup><mrow><mo>(</mo>{slope}<mo>)</mo></mrow>{_TRANSPOSED}</msup>" if word.endswith("'") else slope
    base, transposed = word.rstrip("'"), word.endswith("'")
    if "_" in word:
        name, index = base.split("_", 1)
        tag, above = ("msubsup", _TRANSPOSED) if transposed else ("msub", "")
        return f"<{tag}><mi>{name}</mi>{_INDEX.get(index, f'<mi>{index}</mi>')}{above}</{tag}>"
    if transposed:
        return f"<msup>{_word(base)}{_TRANSPOSED}</msup>"
    if word[0].isdigit():
        return f"<mn>{word}</mn>"
    if word == "-":
        return "<mo>&#8722;</mo>"
    if not word[0].isalpha():
        return f"<mo>{escape(word)}</mo>"
    return f"<mi>{word}</mi>"


def _fraction(of: str, by: str) -> str:
    """A partial derivative."""
    return f"<mfrac><mrow><mo>&#8706;</mo><mi>{of}</mi></mrow><mrow><mo>&#8706;</mo>{by}</mrow></mfrac>"


_INDEX = {"prev": "<mrow><mi>t</mi><mo>&#8722;</mo><mn>1</mn></mrow>"}
_TRANSPOSED = "<mi>&#8868;</mi>"
_OPERATORS = {"=", "+", "-", "/", "where"}
_SPACED_BEFORE, _SPACED_AFTER = _OPERATORS | {")", ")'"}, _OPERATORS | {"(", "log"}
_WHOLE = {
    "dR/dS": _fraction("R", "<mi>S</mi>"),
    "|k|^2": "<msup><mrow><mo>&#8214;</mo><mi>k</mi><mo>&#8214;</mo></mrow><mn>2</mn></msup>",
    "k^2": "<msup><mi>k</mi><mn>2</mn></msup>",
    "log": "<mi>log</mi><mo>&#8289;</mo>",
    "where": "<mtext>&#160;&#160;with&#160;&#160;</mtext>",
}


def indexed(tile: Tile) -> str:
    return f"{tile.name}[{','.join(tile.axes)}]" if tile.axes else tile.name


def as_assignment(statement: Statement) -> tuple[str, str]:
    """(what is set, to what)."""
    return indexed(statement.target), _meaning(statement.target, statement.op)


def _meaning(target: Tile, op: Op) -> str:
    match op:
        case Elementwise(expr, args):
            return symbolic.equation(symbolic.renamed(expr, {t.name: symbol(indexed(t)) for t in args}))
        case Contract(a, b, axis, None):
            return f"sum_{axis} {indexed(a)} {indexed(b)}"
        case Contract(a, b, axis, add):
            return f"{indexed(add)} + sum_{axis} {indexed(a)} {indexed(b)}"
        case Compose(a, b):
            return f"sum_r {_entry(a, 't', 'r', op.a_transposed)} {_entry(b, 'r', 's', op.b_transposed)}"
        case Decayed(a, b, axis, steps, own):
            until = "<=" if own else "<"
            decay = f"exp(sum_i {steps.name}[i,{op.channel}] where s < i {until} t)"
            return f"sum_{axis} {indexed(a)} {indexed(b)} {decay} where s < t"
        case Reduce(arg):
            gone = ",".join(a for a in arg.axes if a not in target.axes)
            return f"sum_{gone} {indexed(arg)}"
        case Largest(arg):
            gone = ",".join(a for a in arg.axes if a not in target.axes)
            return f"largest_{gone} {indexed(arg)}"
        case Mask(arg, relation, fill):
            return f"{indexed(arg)} where {relation.value}, else {fill:g}"
        case CumulativeSum(arg, reverse) | RunningSum(arg, reverse):
            others = ", of the others alone" if getattr(op, "exclusive", False) else ""
            return f"running sum of {indexed(arg)} over t" + (", from the end" if reverse else "") + others
        case LinearScan(decay, write, start, reverse):
            here, there, first = ("t-1", "t", "behind the last") if reverse else ("t+1", "t", "at the first")
            channels = ",".join(("", *target.axes[1:]))
            across = f"{indexed(decay)} {target.name}[{there}{channels}] + {indexed(write)}"
            return f"{indexed(start) if start else 0} {first} token, {target.name}[{here}{channels}] = {across}"
        case Difference(rows, columns):
            return f"{indexed(rows)} - {indexed(columns)}"
        case Normaliser(logits, rest):
            beside = "" if rest is None else f" + exp({indexed(rest)})"
            return f"log(sum_s exp({indexed(logits)}){beside})"
        case Attend(logits, normaliser, values):
            return f"sum_s exp({indexed(logits)} - {indexed(normaliser)}) {indexed(values)}"
        case Relabel(arg):
            return f"{arg.name}[{','.join(target.axes)}]"
        case Solve(matrix, rhs, transposed):
            return f"solution x of (I + {indexed(matrix)}{chr(39) if transposed else ''}) x = {indexed(rhs)}"
        case Inverse(matrix):
            return f"inverse of I + {indexed(matrix)}"
        case Root(pull, base, args):
            names = {t.name: symbol(indexed(t)) for t in args} | {UNKNOWN: symbol("x")}
            return f"root x of x + {symbolic.equation(symbolic.renamed(pull, names))} = {indexed(base)}"
        case Conjugate(rhs):
            body = "; ".join(" = ".join(as_assignment(s)) for s in op.body)
            return (
                f"{op.unknown.name} with {indexed(op.applied)} = {indexed(rhs)}, by conjugate gradients, where {body}"
            )
        case Further(first, number):
            return f"unknown {number + 1} of the substitution of {indexed(first)}"
        case Written(solved):
            return f"as written in the rows of {indexed(solved)}"
        case Substitute():
            return _substituted(op)
    raise AssertionError(op)


def _substituted(op: Substitute) -> str:
    """The equation of the first unknown, and of any others, which hold one another."""
    order = "s > t, from the last row on" if op.transposed else "s < t, from the first row on"
    at, lines = "s,t" if op.transposed else "t,s", []
    for i, (x, base) in enumerate(zip(op.unknowns, op.bases)):
        terms = [f"{op.matrix(i, j).name}[{at}] {w.name}[s,v]" for j, w in enumerate(op.written)]
        own = [w.name for j, w in enumerate(op.written) if op.sees_own(i, j)]
        text = f"{indexed(base)} - sum_s {terms[0] if len(terms) == 1 else '(' + ' + '.join(terms) + ')'}"
        text += f" over {order}" + (f", of {' and '.join(own)} s = t too" if own else "")
        lines.append(text if i == 0 else f"{indexed(x)} = {text}")
    return f"{' and '.join(lines)}, {' and '.join(w.name for w in op.written)} as below"


def _entry(tile: Tile, row: str, column: str, transposed: bool) -> str:
    return f"{tile.name}[{column},{row}]" if transposed else f"{tile.name}[{row},{column}]"


# What a kind of operation is called where they are counted.
OPERATIONS = {
    Elementwise: "elementwise",
    Contract: "matrix product",
    Compose: "product of masks",
    Decayed: "product with decays by channel",
    Reduce: "sum",
    Largest: "largest entry",
    Mask: "mask",
    Relabel: "relabel",
    CumulativeSum: "running sum",
    LinearScan: "linear scan",
    Root: "root",
    Conjugate: "conjugate gradients",
    Solve: "triangular solve",
    Inverse: "triangular inverse",
    Substitute: "nonlinear substitution",
    Further: "unknown of a substitution",
    Written: "read back",
    RunningSum: "running sum",
    Difference: "difference of running sums",
    Normaliser: "logarithm of a sum of exponentials",
    Attend: "weighted mean",
}
