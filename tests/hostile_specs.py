"""Bad and hostile specs, and what the one message about each must say.

Each row is a change to BASE, or a whole file. Rows of stage "language" are refused by ttrc.language; those of
stage "compile" are well-formed and are refused when the compiler looks for the minimum of the retention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

BASE = """\
schema = 1
name = "base"
reference = "arXiv:0000.00000"

[inputs]
g = { per = "head", domain = "log_decay" }
beta = { per = "head", domain = "unit" }

[memory]
kind = "linear"

[loss]
weight = "beta"
expr = "norm2(p - v) / 2"

[retention]
expr = "norm2(S - exp(g) * S_prev) / 2"

[update]
rule = "gradient"
at = "retained"
"""


@dataclass(frozen=True)
class Row:
    """says: parts of the message. points: the text that the carets stand under, where an expression is at fault."""

    id: str
    spec: Union[str, bytes]
    says: tuple[str, ...]
    key: Optional[str] = None
    line: Optional[int] = None
    points: Optional[str] = None
    stage: str = "language"


def swap(*changes: str) -> str:
    """BASE with each old text, given in turn with its new text, replaced once."""
    text = BASE
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


LOSS, WEIGHT, RETENTION, AT = '"norm2(p - v) / 2"', '"beta"', '"norm2(S - exp(g) * S_prev) / 2"', 'at = "retained"'
BETA = 'beta = { per = "head", domain = "unit" }'
NORM, IDLE = 'expr = "norm2(p) * beta"\n', 'expr = "norm2(v)"\n'
ONE, FIVE = f"[loss]\n{NORM}", "".join(f"[loss.{name}]\n{NORM}" for name in "abcde")
UPDATE_OF_BASE = 'rule = "gradient"\nat = "retained"'
MLP = 'kind = "mlp"\nlayers = 2\nexpansion = 4\nactivation = "gelu"\nresidual = true\nnorm = true'
KERNEL = 'kind = "kernel"\ndegree = 0\nsimilarity = "dot(q, k)"'


def of_loss(id: str, expr: str, *says: str, points: Optional[str] = None, stage: str = "language") -> Row:
    """A loss written in TOML's literal quotes, so that what the tokenizer sees is what stands here."""
    return Row(id, swap(LOSS, f"'{expr}'"), says, "loss.expr", 14, points, stage)


def of_weight(id: str, expr: str, *says: str, points: Optional[str] = None) -> Row:
    return Row(id, swap(WEIGHT, f"'{expr}'"), says, "loss.weight", 13, points)


def of_retention(id: str, expr: str, *says: str, points: Optional[str] = None, stage: str = "language") -> Row:
    return Row(id, swap(RETENTION, f"'{expr}'"), says, "retention.expr", 17, points, stage)


def of_read(id: str, expr: str, *says: str, points: Optional[str] = None, stage: str = "language") -> Row:
    """A read-out on line 24."""
    return Row(id, f"{BASE}\n[read]\nexpr = '{expr}'\n", says, "read.expr", 24, points, stage)


def of_key(id: str, expr: str, *says: str, points: Optional[str] = None, stage: str = "language") -> Row:
    """What a loss is asked at, on line 15."""
    return Row(id, swap(LOSS, f"{LOSS}\nkey = '{expr}'"), says, "loss.key", 15, points, stage)


def of_losses(id: str, losses: str, *says: str, key: str, line: int) -> Row:
    """Losses by name, from line 12."""
    return Row(id, swap(f"[loss]\nweight = {WEIGHT}\nexpr = {LOSS}", losses), says, key, line)


def of_link(id: str, link: str, *says: str, key: str = "retention.link", points: Optional[str] = None) -> Row:
    """A link on line 18."""
    return Row(id, swap(RETENTION, f"{RETENTION}\nlink = {link}"), says, key, 18, points)


def of_default(id: str, expr: str, *says: str, points: Optional[str] = None) -> Row:
    """A parameter a on lines 22 to 25, used in the weight."""
    table = f'\n[parameters.a]\nper = "head"\ndomain = "unit"\ndefault = \'{expr}\'\n'
    return Row(id, swap(WEIGHT, '"beta * a"') + table, says, "parameters.a.default", 26, points)


def of_update(id: str, update: str, memory: str, *says: str, key: str, **more: str) -> Row:
    """line is that of the key, counted here, because the tables differ in length."""
    text = swap('rule = "gradient"\nat = "retained"\n', update + "\n", 'kind = "linear"', memory)
    word = key.split(".")[1]
    header = text.index("[update]" if key.startswith("update") else "[memory]")
    found = text.find(f"\n{word} = ", header)
    position = found + 1 if found >= 0 else header
    return Row(id, text, says, key, text.count("\n", 0, position) + 1, **more)


# fmt: off
TOML_ROWS = [
    Row("empty", "", ('a spec lacks the key "schema"',), "schema", 1),
    Row("not-toml", "this is not toml", ("not valid TOML",), line=1),
    Row("unclosed-string", swap('kind = "linear"', 'kind = "linear'), ("not valid TOML",), line=10),
    Row("unclosed-triple-quote", BASE + 'x = """' + "\\", ("not valid TOML",)),
    Row("unclosed-table", BASE + "[[[", ("not valid TOML",), line=22),
    Row("key-twice", swap('rule = "gradient"', 'rule = "gradient"\nrule = "proximal"'), ("only once",), line=21),
    Row("table-twice", BASE + '[loss]\nexpr = "p"\n', ("only once",), line=22),
    Row("array-of-tables", swap("[loss]", "[[loss]]"), ("an array", "expected: a table"), "loss", 12),
    Row("nul", BASE.replace("base", "ba\0se"), ("U+0000",), line=2),
    Row("escape-byte", BASE + "# \x1b[2J\n", ("U+001B",), line=22),
    Row("byte-order-mark", "\ufeff" + BASE, ("U+FEFF", "byte order mark"), line=1),
    Row("not-utf8", BASE.encode() + b"# \xff\xfe\n", ("not UTF-8",), line=22),
    Row("binary", bytes(range(256)) * 16, ("not UTF-8",), line=2),
    Row("five-megabytes", b"#" * 5_000_000, ("5000000 bytes", "expected: at most 65536")),
    Row("just-too-large", BASE + "#" * 65536, ("too large",)),
    Row("nested-arrays", BASE + "x = " + "[" * 30_000, ("nested too deeply",), line=22),
    Row("nested-inline-tables", BASE + "x = " + "{a=" * 10_000, ("nested too deeply",), line=22),
    Row("dotted-key", BASE + "a." * 20_000 + "a = 1", ("nested too deeply",), line=22),
    Row("dotted-header", BASE + "[" + "a." * 20_000 + "a]", ("nested too deeply",), line=22),
    Row("dotted-inline-key", swap(BETA, "beta = {" + "a." * 20_000 + "a = 1}"), ("nested too deeply",), line=7),
    Row("huge-array", BASE + "x = [" + "1," * 15_000 + "]", ('no key "x"',), "update.x", 22),
    Row("huge-integer", swap("schema = 1", "schema = 0x" + "f" * 20_000), ("integer is too large",), "schema", 1),
    Row("long-integer", swap("schema = 1", "schema = " + "9" * 6_000), ("not valid TOML",)),
    Row("many-keys", BASE + "".join(f"k{i} = 1\n" for i in range(5000)), ('no key "k0"',), "update.k0", 22),
]

SCHEMA_ROWS = [
    Row("no-schema", swap("schema = 1\n", ""), ('lacks the key "schema"', "language: 1"), "schema", 1),
    Row("schema-2", swap("schema = 1", "schema = 2"), ("2 will not do", "language: 1"), "schema", 1),
    Row("schema-string", swap("schema = 1", 'schema = "1"'), ('"1" will not do',), "schema", 1),
    Row("schema-true", swap("schema = 1", "schema = true"), ("true will not do",), "schema", 1),
    Row("schema-date", swap("schema = 1", "schema = 2026-01-01"), ("a date",), "schema", 1),
    Row("unknown-table", swap("[loss]", "[losss]"), ('no key "losss"', 'did you mean "loss"?'), "losss", 12),
    Row("unknown-key", swap("weight =", "wieght ="), ('no key "wieght"', 'did you mean "weight"?'), "loss.wieght", 13),
    Row("no-update", BASE[: BASE.index("[update]")], ('lacks the key "update"',), "update", 1),
    Row("no-expr", swap(f"expr = {LOSS}\n", ""), ('[loss] lacks the key "expr"',), "loss.expr", 12),
    Row("expr-number", swap(LOSS, "3"), ("3 is of the wrong type", "a string, in quotes"), "loss.expr", 14),
    Row("expr-table", swap(LOSS, '{ file = "/etc/passwd" }'), ("a table is of the wrong type",), "loss.expr", 14),
    Row("memory-string", swap('[memory]\nkind = "linear"', "", "schema = 1", 'schema = 1\nmemory = "linear"'),
        ('"linear" is of the wrong type', "expected: a table"), "memory", 2),
    Row("unknown-kind", swap('"linear"', '"lineer"'), ('"lineer"', 'did you mean "linear"?'), "memory.kind", 10),
    Row("unknown-per", swap(BETA, BETA.replace("head", "heads")), ('"heads"', '"key_channel"', 'did you mean "head"?'),
        "inputs.beta.per", 7),
    Row("unknown-domain", swap(BETA, BETA.replace("unit", "[0, 1]")), ('"[0, 1]"', '"log_decay"'),
        "inputs.beta.domain", 7),
    Row("input-no-domain", swap(BETA, 'beta = { per = "head" }'), ('an input lacks the key "domain"',),
        "inputs.beta.domain", 7),
    Row("input-default", swap(BETA, BETA.replace(" }", ', default = "1" }')), ('an input takes no key "default"',),
        "inputs.beta.default", 7),
    Row("input-keyword", swap(BETA, BETA.replace("beta", "lambda")), ('"lambda" is reserved',), "inputs.lambda", 7),
    Row("input-in-kernels", swap(BETA, BETA.replace("beta", "kept")), ('"kept" is reserved', "code made of them"),
        "inputs.kept", 7),
    Row("input-word", swap(BETA, BETA.replace("beta", "S")), ('"S" is reserved',), "inputs.S", 7),
    Row("input-function", swap(BETA, BETA.replace("beta", "dot")), ('"dot" is reserved',), "inputs.dot", 7),
    Row("input-argument", swap(BETA, BETA.replace("beta", "cu_seqlens")), ("reserved",), "inputs.cu_seqlens", 7),
    Row("input-self", swap(BETA, BETA.replace("beta", "self")), ('"self" is reserved', '"self_" is not'),
        "inputs.self", 7),
    Row("input-builtin", swap(BETA, BETA.replace("beta", "open")), ('"open" is reserved',), "inputs.open", 7),
    Row("input-dunder", swap(BETA, BETA.replace("beta", "__class__")), ('"__class__" cannot be the name',),
        "inputs.__class__", 7),
    Row("input-again", swap(BETA, BETA.replace("beta", "q_again")), ('"q_again" cannot be the name', "its own"),
        "inputs.q_again", 7),
    Row("input-state", swap(BETA, BETA.replace("beta", "H_state")), ('"H_state" is reserved',), "inputs.H_state", 7),
    Row("input-gradient", swap(BETA, BETA.replace("beta", "d_g")), ('"d_g" cannot be the name', "names gradients"),
        "inputs.d_g", 7),
    Row("input-generated", swap(BETA, BETA.replace("beta", "states")), ("reserved",), "inputs.states", 7),
    Row("input-path", swap(BETA, BETA.replace("beta", '"../../x"')), ('"../../x" cannot be the name',),
        "inputs.../../x", 7),
    Row("input-line-break", swap(BETA, BETA.replace("beta", r'"beta\n"')), (r'"beta\n" cannot be the name',)),
    Row("input-look-alike", swap(BETA, BETA.replace("beta", '"b\u0435ta"')), (r'"b\u0435ta" cannot be the name',)),
    Row("input-long", swap(BETA, BETA.replace("beta", "b" * 5000)), ("cannot be the name",), line=7),
    Row("input-two-capitals", swap(BETA, BETA.replace("beta", "AB")), ('"AB" cannot be the name',), "inputs.AB", 7),
    Row("inputs-many", swap(BETA, "".join(BETA.replace("beta", f"b{i}") + "\n" for i in range(40))),
        ("too many keys: 41", "at most 16"), "inputs", 5),
    Row("input-and-parameter", BASE + '\n[parameters]\ng = { per = "head", domain = "unit" }\n',
        ('"g" is already an input',), "parameters.g", 24),
    Row("input-unused", swap(WEIGHT, '"0.5"'), ('"beta" is declared but no expression uses it',), "inputs.beta", 7),
    Row("parameter-unused", BASE + '\n[parameters]\na = { per = "head", domain = "unit" }\n',
        ('"a" is declared but',), "parameters.a", 24),
    Row("name-path", swap('"base"', '"../../etc/cron.d/x"'), ('"../../etc/cron.d/x" will not do',), "name", 2),
    Row("name-line-break", swap('"base"', r'"base\n"'), (r'"base\n" will not do',), "name", 2),
    Row("name-two-lines", swap('"base"', '"""base\nimport os"""'), ("will not do",), "name", 2),
    Row("name-absolute", swap('"base"', '"/tmp/pwned"'), ("will not do", "lower-case letter"), "name", 2),
    Row("name-reserved", swap('"base"', '"torch"'), ('"torch" is reserved',), "name", 2),
    Row("name-long", swap('"base"', f'"{"a" * 49}"'), ("will not do",), "name", 2),
    Row("name-empty", swap('"base"', '""'), ("will not do",), "name", 2),
    Row("name-escape", swap('"base"', r'"\u001b]0;pwned\u0007"'), (r"\x1b]0;pwned\x07",), "name", 2),
    Row("name-template", swap('"base"', '"{{ 7 * 7 }}"'), ("{{ 7 * 7 }}",), "name", 2),
    Row("reference-line-break", swap('"arXiv:0000.00000"', r'"x\nimport os"'), ("will not do", "one line"),
        "reference", 3),
    Row("reference-unicode", swap('"arXiv:0000.00000"', '"\u202egnp.exe"'), (r"\u202e",), "reference", 3),
    Row("reference-long", swap('"arXiv:0000.00000"', f'"{"x" * 201}"'), ("201 characters", "200"), "reference", 3),
]

EXPRESSION_ROWS = [
    Row("expr-empty", swap(LOSS, '""'), ("0 characters",), "loss.expr", 14),
    of_loss("blank", " ", "unexpected end"),
    of_loss("undeclared", "norm2(p - vv)", 'unknown name "vv"', 'did you mean "v"?', points="vv"),
    of_loss("undeclared-gate", "bta * norm2(p - v)", 'unknown name "bta"', 'did you mean "beta"?', points="bta"),
    of_loss("wrong-shape", "norm2(p - k)", "a value vector [v] and a key vector [k]", "dot(a, b)", points="p - k"),
    Row("two-axes", swap('g = { per = "head"', 'g = { per = "key_channel"', BETA, BETA.replace("head", "value_channel"),
        WEIGHT, '"1"', RETENTION, '"norm2(S - exp(g) * beta * S_prev) / 2"'),
        ("a key vector [k] and a value vector [v]", "a * (b * S_prev)"), "retention.expr", 17, "exp(g) * beta"),
    of_loss("dot-shapes", "dot(p, k)", "dot got a value vector [v] and a key vector [k]", points="dot(p, k)"),
    of_loss("not-scalar", "(p - v)**2", "loss.expr comes to a value vector [v]", "sum(...)", points="(p - v)**2"),
    of_loss("reduce-twice", "sum(norm2(p))", "sum got a number", points="sum(norm2(p))"),
    of_loss("free-of-p", "norm2(v)", 'loss.expr does not use "p"', points="norm2(v)"),
    of_loss("state-in-loss", "norm2(S)", '"S" has no meaning in loss.expr', "retention.expr", points="S"),
    of_loss("query-in-loss", "dot(p, q)", '"q" has no meaning in loss.expr', points="q"),
    of_loss("unknown-function", "nrom2(p - v)", '"nrom2" is not a function', 'did you mean "norm2"?', points="nrom2"),
    of_loss("call-of-a-name", "p(v)", '"p" is not a function', points="p"),
    of_loss("function-as-name", "norm2 + p", 'unknown name "norm2"', "write norm2(...)", points="norm2"),
    of_loss("habit", "pow(p, 2)", '"pow" is not a function', "a ** b", points="pow"),
    of_loss("arity-low", "dot(p)", "dot got 1 argument", "expected: 2", points="dot(p)"),
    of_loss("arity-high", "norm2(p, v)", "norm2 got 2 arguments", "expected: 1", points="norm2(p, v)"),
    of_loss("arity-none", "norm2()", "norm2 got 0 arguments", points="norm2()"),
    of_loss("unclosed", "norm2(p - v", "unexpected end", 'or ")"'),
    of_loss("unopened", "norm2(p - v))", 'unexpected ")"', points=")"),
    of_loss("no-operand", "norm2(p -)", 'unexpected ")"', points=")"),
    of_loss("no-operator", "2 norm2(p - v)", 'unexpected "norm2"', "written with *", points="norm2"),
    of_loss("glued", "2norm2(p - v)", "not a number", points="2norm2"),
    of_loss("comparison", "norm2(p) < 1", 'unexpected "<"', "where(condition, a, b)", points="<"),
    of_loss("where-no-condition", "where(sum(p), 1, 2)", 'unexpected ","', "a comparison", points=","),
    of_loss("comparison-chain", "sum(where(0 < p < 1, p, v))", 'unexpected "<"', points="<"),
    of_loss("equals", "norm2(p == v)", 'unexpected character "="', points="="),
    of_loss("assignment", "x = norm2(p)", 'unexpected character "="', points="="),
    of_loss("walrus", "(x := norm2(p))", 'unexpected character ":"', points=":"),
    of_loss("matmul", "p @ v", 'unexpected character "@"', "dot(a, b)", points="@"),
    of_loss("caret-power", "norm2(p)^2", 'unexpected character "^"', "written **", points="^"),
    of_loss("attribute", "p.sum()", 'unexpected character "."', "attributes", points="."),
    of_loss("subscript", "p[0]", 'unexpected character "["', "subscripts", points="["),
    of_loss("string", 'norm2("p")', "unexpected quotation mark", "strings", points='"'),
    of_loss("lambda", "(lambda: open)()", 'unexpected character ":"', points=":"),
    of_loss("keyword", "norm2(p) if 1 else 0", 'unexpected "if"', points="if"),
    of_loss("import", "import os", 'unexpected "os"', points="os"),
    of_loss("dunder", "__import__(p)", 'unexpected character "_"', points="_"),
    of_loss("dunder-attribute", "p.__class__.__mro__", 'unexpected character "."', points="."),
    of_loss("payload-system", '__import__("os").system("touch pwned")', 'unexpected character "_"', points="_"),
    of_loss("payload-open", 'open("pwned", "w")', "unexpected quotation mark", "strings", points='"'),
    of_loss("payload-eval", 'eval("open(chr(112), chr(119))")', "unexpected quotation mark", points='"'),
    of_loss("payload-chr", "eval(chr(112))", '"eval" is not a function', points="eval"),
    of_loss("payload-getattr", "getattr(p, v)", '"getattr" is not a function', points="getattr"),
    of_loss("payload-template", "{{ cycler.__init__ }}", 'unexpected character "{"', points="{"),
    of_loss("statement", "norm2(p); open", 'unexpected character ";"', points=";"),
    of_loss("comment", "norm2(p) # x", 'unexpected character "#"', points="#"),
    of_loss("backslash", "norm2(p) \\", 'unexpected character "\\"', points="\\"),
    of_loss("look-alike", "norm2(\u0440 - v)", "U+0440 (CYRILLIC SMALL LETTER ER)"),
    of_loss("look-alike-digit", "norm2(p) * \u0662", "U+0662 (ARABIC-INDIC DIGIT TWO)"),
    of_loss("right-to-left", "norm2(p)\u202e", "U+202E (RIGHT-TO-LEFT OVERRIDE)"),
    of_loss("no-break-space", "norm2(p\u00a0- v)", "U+00A0 (NO-BREAK SPACE)"),
    Row("escaped-nul", swap(LOSS, r'"norm2(p)\u0000"'), ("U+0000",), "loss.expr", 14),
    Row("escaped-escape", swap(LOSS, r'"norm2(p)\u001b[2J"'), ("U+001B",), "loss.expr", 14),
    Row("line-break", swap(LOSS, '"""norm2(p)\nimport os"""'), ("U+000A", "on one line"), "loss.expr", 14),
    of_loss("tower", "9**9**9**9 * norm2(p)", "not a small constant", points="9**9**9"),
    of_loss("tower-left", "((9**16)**16)**16 * norm2(p)", "the value is too large"),
    of_loss("big-constant", "9**16 * 9**16 * 9**16 * norm2(p)", "the constant is too large"),
    of_loss("tower-of-exp", "exp(exp(exp(9))) * norm2(p)", "the value is too large", points="exp(exp(9))"),
    of_loss("tower-of-names", "(((norm2(p)**16)**16)**16)**16", "has degree", "at most 64"),
    of_loss("tower-of-squares", "square(" * 40 + "norm2(p)" + ")" * 40, "has degree"),
    of_loss("big-exponent", "norm2(p)**1000000", "exponent is beyond 16", points="1000000"),
    of_loss("exponent-name", "norm2(p)**beta", "not a small constant", "exp(b * log(a))", points="beta"),
    of_loss("division-by-zero", "norm2(p) / 0", "division by zero", points="norm2(p) / 0"),
    of_loss("log-of-zero", "norm2(p) * log(0)", "no real number", points="log(0)"),
    of_loss("digits", "norm2(p) * " + "9" * 21, "too long", "20 digits", points="9" * 21),
    of_loss("decimal-exponent", "norm2(p) * 1e999999999", "too large or too small", points="1e999999999"),
    of_loss("hexadecimal", "0x10 * norm2(p)", "not a number", points="0x10"),
    of_loss("imaginary", "1j * norm2(p)", "not a number", points="1j"),
    of_loss("underscores", "1_000 * norm2(p)", "not a number", points="1_000"),
    of_loss("bare-point", ".5 * norm2(p)", 'unexpected character "."', "both sides of its point", points="."),
    of_loss("parentheses", "(" * 900 + "p" + ")" * 900, "nested too deeply", "64"),
    of_loss("ten-thousand-parentheses", "(" * 10_000 + "p" + ")" * 10_000, "20001 characters", "at most 2000"),
    of_loss("minuses", "-" * 1900 + "norm2(p)", "nested too deeply"),
    of_loss("long-chain", "sum(p" + " + p" * 400 + ")", "nested too deeply"),
    of_loss("powers", "norm2(p)" + "**2" * 500, "nested too deeply"),
    of_loss("long", "norm2(p)" + " " * 3000, "3008 characters", "at most 2000"),
    of_weight("p-in-weight", "norm2(p)", '"p" has no meaning in loss.weight', "loss.expr", points="p"),
    of_weight("weight-nowhere", "beta * log(g)", "no real number has this value", '"g" is declared log_decay',
              points="log(g)"),
    of_weight("weight-root-nowhere", "sqrt(g - beta - 1) + 1", "no real number", '"beta" is declared unit',
              points="sqrt(g - beta - 1)"),
    of_weight("weight-over-nothing", "beta / (g - g)", "division by zero, whatever", points="beta / (g - g)"),
    of_loss("softmax-function", "dot(softmax(p), v)", '"softmax" is not a function', "write exp(x) / sum(exp(x))",
            points="softmax"),
    of_loss("threshold-negative", "sum(huber(p - v, -1))", "the threshold of huber is never above 0", '"positive"',
            points="-1"),
    of_loss("threshold-log-decay", "sum(huber(p - v, 2 * g))", "is never above 0", '"g" is declared log_decay',
            points="2 * g"),
    of_loss("loss-nowhere", "norm2(p - v) * log(-exp(g))", "no real number has this value", points="log(-exp(g))"),
    of_weight("weight-vector", "beta * v", "loss.weight comes to a value vector [v]", points="beta * v"),
    of_retention("no-new-state", "norm2(S_prev)", 'does not use "S"', points="norm2(S_prev)"),
    of_retention("retention-matrix", "exp(g) * S_prev - S", "comes to a matrix [k, v]", points="exp(g) * S_prev - S"),
    of_retention("p-in-retention", "norm2(S) + norm2(p)", '"p" has no meaning in retention.expr', points="p"),
    of_retention("previous-misspelt", "norm2(S - S_pref)", 'unknown name "S_pref"', '"S_prev"?', points="S_pref"),
    of_key("key-number", "norm2(k)", "loss.key comes to a number", "a key vector [k]", points="norm2(k)"),
    of_key("key-value", "k * v", '"v" has no meaning in loss.key', points="v"),
    of_key("key-query", "q", '"q" has no meaning in loss.key', points="q"),
    of_key("key-prediction", "k * p", '"p" has no meaning in loss.key', "loss.expr", points="p"),
    of_key("key-unknown", "kappa", 'unknown name "kappa"', points="kappa"),
    of_key("key-payload", "k * open(1)", '"open" is not a function', points="open"),
    of_losses("losses-mixed", f"{ONE}[loss.more]\n{NORM}", "takes no key", "[loss.NAME]", key="loss.more", line=14),
    of_losses("losses-name", f"[loss.More]\n{NORM}", "cannot be the name of an association", key="loss.More", line=12),
    of_losses("losses-empty", '[loss.a]\nweight = "beta"', 'lacks the key "expr"', key="loss.a.expr", line=12),
    of_losses("losses-surplus", f'[loss.a]\n{NORM}rate = "beta"', 'no key "rate"', key="loss.a.rate", line=14),
    of_losses("losses-many", FIVE, "too many losses: 5", "at most 4", key="loss", line=12),
    of_losses("losses-key", f"[loss.expr]\n{NORM}", '"expr" is reserved', "key of [loss]", key="loss.expr", line=12),
    of_losses("losses-array", f"[[loss]]\n{NORM}", "an array is of", "[loss.NAME]", key="loss", line=12),
    of_losses("losses-idle", f"[loss.a]\n{NORM}[loss.b]\n{IDLE}", 'does not use "p"', key="loss.b.expr", line=15),
    of_read("read-number", "norm2(r)", "read.expr comes to a number", "a value vector [v]", points="norm2(r)"),
    of_read("read-key", "r * k", "a value vector [v] and a key vector [k]", "dot(a, b)", points="r * k"),
    of_read("read-without-answer", "v", 'read.expr does not use "r"', "nothing would be read", points="v"),
    of_read("read-state", "r + sum(S)", '"S" has no meaning in read.expr', "retention.expr", points="S"),
    of_read("read-prediction", "r - p", '"p" has no meaning in read.expr', "loss.expr", points="p"),
    of_read("read-unknown", "sigmoid(z) * r", 'unknown name "z"', points="z"),
    of_read("read-nowhere", "log(g) * r", "no real number", '"g" is declared log_decay', points="log(g)"),
    of_read("read-count-of-number", "r / count(g)", "count got a number", points="count(g)"),
    of_read("read-payload", "r * open(1)", '"open" is not a function', points="open"),
    Row("read-empty", BASE + "\n[read]\n", ('[read] lacks the key "expr"',), "read.expr", 23),
    Row("read-surplus", BASE + '\n[read]\nexpr = "r"\nscale = 2\n', ('[read] takes no key "scale"',), "read.scale", 25),
    of_loss("answer-in-loss", "norm2(p - r)", '"r" has no meaning in loss.expr', "read.expr", points="r"),
    of_loss("count-in-loss", "norm2(p - v) / count(p)", "count has no meaning in loss.expr", "read.expr",
            points="count(p)"),
    of_default("default-of-gate", "beta", 'unknown name "beta"', "head, heads", points="beta"),
    of_default("default-reduces", "sum(head)", "sum got a number", points="sum(head)"),
    of_default("default-overflows", "10**(10**(head + 9))", "too large"),
    of_default("default-divides-by-zero", "1 / head", "division by zero", points="1 / head"),
    of_default("default-complex", "(-2)**0.5", "no real number"),
    of_default("default-outside", "2", "outside of its domain", "0 <= x <= 1", points="2"),
    of_default("default-tower", "9**9**9**9", "too large"),
]

UPDATE_ROWS = [
    of_update("rule-unknown", 'rule = "sgd"', 'kind = "linear"', '"sgd"', '"gradient", "proximal"', key="update.rule"),
    of_update("gradient-without-at", 'rule = "gradient"', 'kind = "linear"', 'lacks the key "at"', key="update.at"),
    of_update("at-unknown", 'rule = "gradient"\nat = "previos"', 'kind = "linear"', 'did you mean "previous"?',
              key="update.at"),
    of_update("proximal-at", 'rule = "proximal"\nat = "previous"', 'kind = "linear"',
              '[update] with rule = "proximal" takes no key "at"', key="update.at"),
    of_update("turns-momentum", 'rule = "gradient"\nat = "in_turn"\nmomentum = "beta"', 'kind = "linear"',
              'takes no key "momentum"', "a momentum keeps one", key="update.momentum"),
    of_update("proximal-momentum", 'rule = "proximal"\nmomentum = "beta"', 'kind = "linear"',
              '[update] with rule = "proximal" takes no key "momentum"', key="update.momentum"),
    of_update("closed-form-at", 'rule = "closed_form"\nat = "retained"', 'kind = "linear"',
              '[update] with rule = "closed_form" takes no key "at"', key="update.at"),
    Row("closed-form-previous", swap(UPDATE_OF_BASE, 'rule = "closed_form"'),
        ('"S_prev" has no meaning in retention.expr', "retention.decay"), "retention.expr", 17, "S_prev"),
    Row("decay-of-a-step", swap(RETENTION, RETENTION + '\ndecay = "exp(g)"'),
        ('[retention] takes no key "decay" where rule = "gradient"', "retention.expr"), "retention.decay", 18),
    of_update("segment-missing", 'rule = "gradient"\nat = "segment_start"', 'kind = "linear"',
              'lacks the key "segment"', "in tokens", key="update.segment"),
    of_update("segment-at-previous", 'rule = "gradient"\nat = "previous"\nsegment = 16', 'kind = "linear"',
              'and at = "previous" takes no key "segment"', key="update.segment"),
    of_update("segment-zero", 'rule = "gradient"\nat = "segment_start"\nsegment = 0', 'kind = "linear"',
              "0 is out of range", key="update.segment"),
    of_update("segment-true", 'rule = "gradient"\nat = "segment_start"\nsegment = true', 'kind = "linear"',
              "true is of the wrong type", "a whole number", key="update.segment"),
    of_update("momentum-of-state", 'rule = "gradient"\nat = "previous"\nmomentum = "norm2(S)"', 'kind = "linear"',
              '"S" has no meaning in update.momentum', key="update.momentum"),
    of_update("kernel-gradient", 'rule = "gradient"\nat = "previous"', KERNEL,
              'rule = "gradient" makes no sense for [memory] kind = "kernel"', '"closed_form"', key="update.rule"),
    of_update("kernel-proximal", 'rule = "proximal"', KERNEL, "makes no sense",
              key="update.rule"),
    of_update("mlp-closed-form", 'rule = "closed_form"', MLP, "makes no sense", "along its gradient",
              key="update.rule"),
    of_update("mlp-proximal", 'rule = "proximal"', MLP, "makes no sense", key="update.rule"),
    of_update("linear-with-layers", 'rule = "proximal"', 'kind = "linear"\nlayers = 2',
              '[memory] with kind = "linear" takes no key "layers"', key="memory.layers"),
    of_update("kernel-degree", 'rule = "closed_form"', KERNEL.replace("0", "7"), "7 is out of range",
              key="memory.degree"),
    of_update("kernel-without-similarity", 'rule = "closed_form"', 'kind = "kernel"\ndegree = 0',
              'lacks the key "similarity"', key="memory.similarity"),
    *(Row(f"similarity-{name}", swap('kind = "linear"', KERNEL.replace("dot(q, k)", text), UPDATE_OF_BASE,
          'rule = "closed_form"'), (said,), "memory.similarity", 12, points)
      for name, text, said, points in (
          ("input", "beta * dot(q, k)", '"beta" is an input', "beta"),
          ("vector", "q * k", "comes to a key vector [k]", "q * k"),
          ("value", "dot(v, k)", '"v" has no meaning in memory.similarity', "v"),
          ("state", "norm2(S)", '"S" has no meaning in memory.similarity', "S"),
          ("query-alone", "norm2(q)", 'does not use "k"', "norm2(q)"),
          ("payload", "open(1)", '"open" is not a function', "open"),
      )),
]

MEMORY = 'kind = "linear"'
THRESHOLD = "retention.link.threshold"
SOFT = '{{ kind = "soft_threshold", threshold = "{}" }}'
OWN, OWN_EXPR = '{{ kind = "expression", expr = "{}" }}', "retention.link.expr"
LINKED = f'{RETENTION}\nlink = {{ kind = "exp" }}'
HEAVY = 'rule = "gradient"\nat = "previous"\nmomentum = '

WIDER_ROWS = [
    of_link("link-kind", '{ kind = "lqnorm", q = 4, epsilon = 1e-6 }', '"lqnorm"', 'did you mean "lq_norm"?',
            key="retention.link.kind"),
    of_link("link-without-kind", "{ q = 4 }", '[retention] link lacks the key "kind"', key="retention.link.kind"),
    of_link("link-text", '"exp"', '"exp" is of the wrong type', "a table"),
    of_link("link-surplus", '{ kind = "exp", q = 4 }', '[retention] link of kind "exp" takes no key "q"',
            key="retention.link.q"),
    of_link("link-payload", "{ kind = \"exp\", \"__import__('os')\" = 1 }", "takes no key"
            " \"__import__('os')\"", key="retention.link.__import__('os')"),
    of_link("lq-small", '{ kind = "lq_norm", q = 0.5, epsilon = 1e-6 }', "0.5 is out of range", "a number from 1 to 16",
            key="retention.link.q"),
    of_link("lq-large", '{ kind = "lq_norm", q = 17, epsilon = 1e-6 }', "17 is out of range", key="retention.link.q"),
    of_link("lq-negative", '{ kind = "lq_norm", q = -3, epsilon = 1e-6 }', "-3 is out of range",
            key="retention.link.q"),
    of_link("lq-nan", '{ kind = "lq_norm", q = nan, epsilon = 1e-6 }', "nan is no number", key="retention.link.q"),
    of_link("lq-inf", '{ kind = "lq_norm", q = inf, epsilon = 1e-6 }', "inf is no number", key="retention.link.q"),
    of_link("lq-true", '{ kind = "lq_norm", q = true, epsilon = 1e-6 }', "true is of the wrong type", "a number",
            key="retention.link.q"),
    of_link("lq-text", '{ kind = "lq_norm", q = "4", epsilon = 1e-6 }', '"4" is of the wrong type',
            key="retention.link.q"),
    of_link("lq-no-epsilon", '{ kind = "lq_norm", q = 4 }', 'lacks the key "epsilon"', key="retention.link.epsilon"),
    of_link("lq-zero-epsilon", '{ kind = "lq_norm", q = 4, epsilon = 0 }', "0 is out of range",
            key="retention.link.epsilon"),
    of_link("softmax-axis", '{ kind = "softmax", axis = "keys", scale = 1 }', '"keys"', 'did you mean "key"?',
            key="retention.link.axis"),
    of_link("softmax-scale", '{ kind = "softmax", axis = "key", scale = 0 }', "0 is out of range",
            key="retention.link.scale"),
    of_link("softmax-no-axis", '{ kind = "softmax", scale = 1 }', 'lacks the key "axis"', key="retention.link.axis"),
    of_link("threshold-number", '{ kind = "soft_threshold", threshold = 0.5 }', "0.5 is of the wrong type",
            "a string, in quotes", key=THRESHOLD),
    of_link("threshold-input", SOFT.format("2 * beta"), '"beta" is an input', "[parameters]", key=THRESHOLD,
            points="beta"),
    of_link("threshold-state", SOFT.format("norm2(S)"), '"S" has no meaning in retention.link.threshold',
            key=THRESHOLD, points="S"),
    of_link("threshold-unknown", SOFT.format("lam"), 'unknown name "lam"', key=THRESHOLD, points="lam"),
    of_link("threshold-payload", SOFT.format("open(1)"), '"open" is not a function', key=THRESHOLD, points="open"),
    of_link("own-input", OWN.format("beta * S"), '"beta" is an input', "[parameters]", key=OWN_EXPR, points="beta"),
    of_link("own-without", OWN.format("1 / 2"), "comes to a number", key=OWN_EXPR),
    of_link("own-last", OWN.format("S - S_prev"), '"S_prev" has no meaning in retention.link.expr', key=OWN_EXPR,
            points="S_prev"),
    of_link("own-number", OWN.format("norm(S)"), "comes to a number", key=OWN_EXPR),
    of_link("own-count", OWN.format("S / count(S)"), "count has no meaning", key=OWN_EXPR, points="count(S)"),
    of_link("own-payload", OWN.format("open(S)"), '"open" is not a function', key=OWN_EXPR, points="open"),
    of_link("own-axis", '{ kind = "expression", expr = "S", axis = "keys" }', 'did you mean "key"?',
            key="retention.link.axis"),
    of_link("own-empty", '{ kind = "expression" }', 'lacks the key "expr"', key="retention.link.expr"),
    Row("own-channel", swap(RETENTION, f'{RETENTION}\nlink = {OWN.format("rate * S")}', '[memory]',
        '[parameters]\nrate = { per = "key_channel", domain = "positive" }\n\n[memory]'),
        ('"rate" is a key vector [k], and S is each slice', 'per = "head"'), OWN_EXPR, 21, "rate"),
    Row("link-kernel", swap(MEMORY, KERNEL, UPDATE_OF_BASE, 'rule = "closed_form"', RETENTION,
        LINKED), ('a link makes no sense for [memory] kind = "kernel"', '"vector" or "mlp"'), "retention.link", 20),
    Row("link-vector", swap(MEMORY, 'kind = "vector"', RETENTION, LINKED.replace('"exp"', '"softmax", axis = "key", '
        'scale = 1')), ('axis = "key" makes no sense for [memory] kind = "vector"', 'axis = "value"'),
        "retention.link.axis", 18),
    Row("vector-per-key", swap(MEMORY, 'kind = "vector"', BETA, BETA.replace("head", "key_channel")),
        ('per = "key_channel" makes no sense for [memory] kind = "vector"', '"head" or "value_channel"',
         "the same channels"), "inputs.beta", 7),
    Row("vector-per-element", swap(MEMORY, 'kind = "vector"', WEIGHT, '"beta * a"')
        + '\n[parameters.a]\nper = "element"\ndomain = "unit"\n', ('per = "element" makes no sense',),
        "parameters.a", 23),
    Row("vector-map", swap(MEMORY, 'kind = "vector"') + "\n[features]\nk = 'norm(k)'\n",
        ("features.k comes to a number", "a value vector [v]"), "features.k", 24, "norm(k)"),
    Row("link-proximal", swap(UPDATE_OF_BASE, 'rule = "proximal"', RETENTION, LINKED),
        ('a link makes no sense for rule = "proximal"', 'rule = "gradient"'), "retention.link", 18),
    Row("link-in-update", swap(AT, f'{AT}\nlink = {{ kind = "exp" }}'), ('takes no key "link"',), "update.link", 22),
    of_update("momentum-number", HEAVY + "0.9", MEMORY, "0.9 is of the wrong type", "a string, in quotes",
              key="update.momentum"),
    Row("momentum-vector", swap(UPDATE_OF_BASE, HEAVY + '"a"', BETA, BETA + BETA.replace("beta", "\na")
        .replace("head", "key_channel")), ("update.momentum comes to a key vector [k]", "one number"),
        "update.momentum", 23, "a"),
    of_update("momentum-of-prediction", HEAVY + '"norm2(p)"', MEMORY, '"p" has no meaning in update.momentum',
              key="update.momentum"),
    of_update("segment-negative", 'rule = "gradient"\nat = "segment_start"\nsegment = -16', MEMORY,
              "-16 is out of range", key="update.segment"),
    of_update("segment-large", 'rule = "gradient"\nat = "segment_start"\nsegment = 65537', MEMORY,
              "65537 is out of range", key="update.segment"),
    of_update("segment-fraction", 'rule = "gradient"\nat = "segment_start"\nsegment = 2.5', MEMORY,
              "2.5 is of the wrong type", key="update.segment"),
    of_update("mlp-residual-proximal", 'rule = "proximal"', MLP, 'rule = "proximal" makes no',
              "along its gradient", key="update.rule"),
    of_update("mlp-layers", UPDATE_OF_BASE, MLP.replace("layers = 2", "layers = 0"), "0 is out of range",
              key="memory.layers"),
    of_update("mlp-expansion", UPDATE_OF_BASE, MLP.replace("expansion = 4", "expansion = 1000"),
              "1000 is out of range", key="memory.expansion"),
    of_update("mlp-activation", UPDATE_OF_BASE, MLP.replace("gelu", "gelo"), 'did you mean "gelu"?',
              key="memory.activation"),
    *(of_update(f"mlp-activation-{id}", UPDATE_OF_BASE, MLP.replace("gelu", written), *says, key="memory.activation",
                points=points) for id, written, points, says in (
        ("other-word", "p * x", "p", ('"p" has no meaning in memory.activation', "x")),
        ("unknown", "x + y", "y", ('unknown name "y"',)),
        ("sum", "x / sum(x)", "sum(x)", ("sum got a number",)),
        ("input", "x * beta", "beta", ('"beta" is an input', "declare it in [parameters]")),
        ("free", "1 + 2", "1 + 2", ('memory.activation does not use "x"', "nothing would go through")),
        ("function", "silu(x)", "silu", ('"silu" is not a function', "write x * sigmoid(x)")),
        ("open", "tanh(x", "", ("unexpected end",)),
        ("power", "x ** x", "x", ("the exponent is not a small constant",)),
    )),
    Row("mlp-gate-x", swap(MEMORY, MLP, "beta = {", "x = {", WEIGHT, '"x"'),
        ('"x" is what goes through the activation', "another name"), "inputs.x", 7),
    Row("mlp-activation-channels", swap(MEMORY, MLP.replace("gelu", "x * b"), "[memory]",
        '[parameters]\nb = { per = "value_channel", domain = "real" }\n\n[memory]'),
        ("memory.activation comes to a value vector", "one number"), "memory.activation", 16, "x * b"),
    Row("mlp-one-layer-of-parameters", swap(MEMORY, MLP.replace("gelu", "x * b").replace("layers = 2", "layers = 1"),
        "[memory]", '[parameters]\nb = { per = "head", domain = "real" }\n\n[memory]'),
        ('"b" is declared but no expression uses it',), "parameters.b"),
    of_update("mlp-gated-one", UPDATE_OF_BASE, MLP.replace("layers = 2", "layers = 1") + "\ngated = true",
              "gated = true makes no sense for layers = 1", "layers = 2 or more", key="memory.gated"),
    of_update("mlp-gated-word", UPDATE_OF_BASE, MLP + '\ngated = "swiglu"', "of the wrong type", "true or false",
              key="memory.gated"),
    of_update("mlp-norm", UPDATE_OF_BASE, MLP.replace("norm = true", 'norm = "layer"'), '"layer" is of the wrong type',
              "true or false", key="memory.norm"),
    Row("mlp-norm-weight", swap(MEMORY, MLP, 'beta = {', 'norm_weight = {', WEIGHT, '"norm_weight"'),
        ('"norm_weight" is a parameter that comes with [memory] norm = true', "norm = false"), "inputs.norm_weight", 7),
    Row("mlp-norm-bias", swap(MEMORY, MLP) + '\n[parameters]\nnorm_bias = { per = "value_channel", domain = "real" }\n',
        ('"norm_bias" is a parameter that comes with',), "parameters.norm_bias", 29),
    Row("mlp-gate-per-channel", swap(MEMORY, MLP, "g = { per = \"head\"", "g = { per = \"key_channel\""),
        ('"g" is a key vector [k], and S is each weight matrix', 'per = "head"'), "retention.expr", 22, "g"),
]

WIDE = 'wide = { per = "element", domain = "real" }'
OVER_VALUES = (
    ("loss.key", "key = 'k * sigmoid(sum(wide))'"),
    ("loss.write", "write = 'k * sigmoid(sum(wide))'"),
)

# Well-formed, but without a minimum that S could be solved for: the compiler's finding.
COMPILE_ROWS = [
    of_retention("concave", "-norm2(S - exp(g) * S_prev)", "not strictly convex", stage="compile"),
    of_retention("linear-in-S", "sum(S) * exp(g)", "not strictly convex", stage="compile"),
    of_retention("flat", "norm2(S - exp(g) * S_prev) - norm2(S)", "not strictly convex", stage="compile"),
    of_retention("saddle", "norm2(S - exp(g) * S_prev) - 2 * norm2(S)", "not strictly convex", stage="compile"),
    of_loss("written-infinite", "-dot(p, log(square(v)))", "no finite value", "as in padding", stage="compile"),
    of_loss("error-infinite", "sum(p * log(abs(v)) + p**4)", "no finite value", "as in padding", stage="compile"),
    of_loss("sum-infinite", "norm2(p) / sum(log(abs(v)))", "no finite value", "as in padding", stage="compile"),
    of_key("key-infinite", "1 / k", "loss.key has no finite value", "as in padding", stage="compile"),
    of_key("key-nothing", "k - k", "loss.key is 0 whatever", stage="compile"),
    of_key("key-cancelled", "0 * k", "loss.key is 0 whatever", stage="compile"),
    *(Row(f"{section}-over-values", swap(LOSS, f"{LOSS}\n{given}", BETA, f"{BETA}\n{WIDE}"),
          ("'wide' is summed over value channels", "per head or per key channel"), section, 16, "wide", "compile")
      for section, given in OVER_VALUES),
    of_read("read-infinite", "r / norm2(v - v)", "no finite value", "as in padding", stage="compile"),
    of_read("read-pole", "v / r", "no finite value and derivative", stage="compile"),
    of_read("read-cancelled", "r - r + v", "r cancels", stage="compile"),
    *(of_update(f"activation-{id}", UPDATE_OF_BASE, MLP.replace("gelu", written), *says, key="memory.activation",
                points=written, stage="compile") for id, written, says in (
        ("infinite", "log(x)", ("no finite value and two derivatives at x = 0", "max(x, 0) ** 2")),
        ("cornered-slope", "max(x, 0) ** 1.5", ("no finite value and two derivatives at x = 0",)),
        ("flat", "sign(x)", ("slope of this activation is 0 everywhere", "x * sigmoid(x)")),
        ("cancelled", "x - x", ("slope of this activation is 0 everywhere",)),
    )),
    of_retention("cancelled", "norm2(S_prev) * exp(g) + sum(S - S)", "not strictly convex", stage="compile"),
]
# fmt: on

ROWS = [*TOML_ROWS, *SCHEMA_ROWS, *EXPRESSION_ROWS, *UPDATE_ROWS, *WIDER_ROWS, *COMPILE_ROWS]
