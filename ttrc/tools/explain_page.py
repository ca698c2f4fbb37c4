"""The account of a spec as one HTML page that needs nothing else: no network, no script, mathematics as MathML."""

from __future__ import annotations

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ttrc.backends.derivation import comment
from ttrc.compiler import analyse
from ttrc.ir.module import Form, Module
from ttrc.language.spec import Spec
from ttrc.paths import templates_dir
from ttrc.tools import account, classify, mathematics
from ttrc.tools.choices import choices
from ttrc.tools.dataflow import draw
from ttrc.tools.notation import as_mathml

TEMPLATE = "explain.html.jinja"


def explain_page(spec: Spec) -> str:
    """The page's text. Whatever came from the spec is escaped; only mathematics and drawings are markup."""
    module = analyse(spec)
    costs = account.costs(module)
    environment = Environment(
        loader=FileSystemLoader(str(templates_dir())),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(
        name=spec.name,
        reference=comment(spec.reference),
        headline=classify.headline(module),
        choices=choices(spec),
        steps=_steps(module),
        findings=classify.findings(module),
        forms=[_form(form, spec, costs) for form in module.forms.values()],
        costs=[(c, account.serial(c.budget)) for c in costs],
        sizes=account.sizes(module),
        note=account.BUDGET_NOTE,
        ways=[
            (way.schedule, direction, spent, account.serial(spent), way.launches[direction])
            for way in account.ways(module)
            for direction, spent in way.budgets.items()
        ],
        ways_note=account.WAYS_NOTE,
        kept=account.kept(module),
        kept_note=account.KEPT_NOTE,
    )


def drawing(spec: Spec) -> str:
    """The dataflow of the chunk form (else the recurrent one) as an SVG file of its own."""
    module = analyse(spec)
    form = next(iter(module.forms.values()))
    svg = draw(form.plan, {c.direction: c.budget for c in account.costs(module) if c.form == form.name})
    style = (templates_dir() / "drawing.css").read_text(encoding="utf-8")
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    return svg.replace("<svg ", head, 1).replace(
        ">", f"><style>{style}</style><rect width='100%' height='100%' fill='white'/>", 1
    )


def _steps(module: Module) -> list[dict]:
    return [
        {"title": step.title, "note": step.note, "lines": [Markup(as_mathml(line)) for line in step.lines]}
        for step in mathematics.steps(module)
    ]


def _form(form: Form, spec: Spec, costs: tuple[account.Cost, ...]) -> dict:
    forward, adjoint = account.forward(form), account.adjoint(form)
    own = {c.direction: c.budget for c in costs if c.form == form.name}
    return {
        "name": form.name,
        "forward": account.groups(forward, spec),
        "adjoint": account.groups(adjoint, spec),
        "counts": f"{len(adjoint)} statements: "
        + ", ".join(f"{n} {name}" for name, n in account.operations(adjoint).items()),
        "passes": [(direction, [(k, account.runs(k)) for k in own]) for direction, own in account.passes(form.plan)],
        "crossing": account.crossing(form.plan),
        "drawing": Markup(draw(form.plan, own)),
    }
