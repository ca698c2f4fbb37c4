"""Trains generated operators on multi-query associative recall (MQAR, arXiv 2312.04927) and compares them.

A sequence states pairs, "key value key value ...", then asks for keys in random order; at each question the
model must name the value bound to that key. Some pairs bind a key again, and the last value counts: a memory
that only adds up what it sees still holds the old value, one that corrects its own error has replaced it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, rms_norm, silu

from ttrc.language.spec import Domain, Input, Parameter, Spec
from ttrc.runtime.load import load as load_operator
from ttrc.sampling import INTO_DOMAIN, default_value
from ttrc.tools.console import WholeConsole

IGNORE = -100  # cross_entropy's label for "no answer is asked here"


@dataclass(frozen=True)
class Task:
    """What a sequence holds: pairs first, questions up to its length."""

    vocabulary: int = 64  # half of the tokens are keys, half are values
    length: int = 64
    pairs: int = 16
    rebound: int = 8  # this many of the pairs bind a key again; its last value counts
    noise: float = 0.0  # of the embeddings, relative to their size


@dataclass(frozen=True)
class Training:
    """One set of numbers for every rule; the seed draws the same model parts and the same data for each."""

    heads: int = 2
    channels: int = 32
    batch: int = 32
    learning_rate: float = 1e-2
    warmup: int = 20
    evaluate_every: int = 10
    seed: int = 0


def sample(task: Task, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and labels, both int64 [batch, length]; a label is the value asked for, IGNORE in the pairs."""

    def shuffled(n: int) -> Tensor:
        return torch.rand(batch, n, generator=generator).argsort(dim=1)

    half, distinct = task.vocabulary // 2, task.pairs - task.rebound
    again = torch.randint(distinct, (batch, task.rebound), generator=generator)
    slots = torch.cat((torch.arange(distinct).expand(batch, -1), again), dim=1).gather(1, shuffled(task.pairs))
    keys = shuffled(half)[:, :distinct].gather(1, slots)
    values = torch.randint(half, task.vocabulary, (batch, task.pairs), generator=generator)
    context = torch.stack((keys, values), dim=2).flatten(1)
    asked = torch.randint(task.pairs, (batch, task.length - context.shape[1]), generator=generator)
    questions = keys.gather(1, asked)
    same = questions[:, :, None] == keys[:, None, :]  # [batch, question, pair]
    last = (same * torch.arange(1, task.pairs + 1)).argmax(dim=2)
    tokens = torch.cat((context, questions), dim=1)
    labels = torch.cat((torch.full_like(context, IGNORE), values.gather(1, last)), dim=1)
    return tokens, labels


class Gate(nn.Module):
    """A declared gate from the token [B, T, width] (inputs) or as a learned constant (parameters), in its domain."""

    def __init__(self, declared: Input | Parameter, width: int, heads: int, channels: int):
        super().__init__()
        sizes = {"k": channels, "v": channels}
        self.shape = (heads, *(sizes[axis] for axis in declared.per.value))
        self.into_domain = INTO_DOMAIN[declared.domain]
        self.register_buffer("fixed", None)
        size = torch.Size(self.shape).numel()
        match declared:
            case Input(domain=domain):
                self.project = nn.Linear(width, size)
                nn.init.constant_(self.project.bias, 4.0 if domain in (Domain.DECAY, Domain.LOG_DECAY) else 0.0)
            case Parameter(default=None):
                self.project = None
                self.constant = nn.Parameter(torch.zeros(size))
            case Parameter():
                self.fixed = default_value(declared, heads, sizes).float()

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed is not None:
            return self.fixed
        raw = self.constant.view(self.shape) if self.project is None else self.project(x).unflatten(-1, self.shape)
        return self.into_domain(raw)


class RecallModel(nn.Module):
    """embedding -> q, k, v by projection and a short causal convolution -> op -> residual, norm, logits."""

    def __init__(self, op: Callable, task: Task, heads: int = 2, channels: int = 32):
        super().__init__()
        self.op, self.noise, self.heads = op, task.noise, heads
        width = heads * channels
        self.embed = nn.Embedding(task.vocabulary, width)
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.conv = nn.Conv1d(3 * width, 3 * width, kernel_size=4, padding=3, groups=3 * width)
        self.out = nn.Linear(width, width, bias=False)
        self.logits = nn.Linear(width, task.vocabulary)
        spec: Spec = op.spec
        self.gates = nn.ModuleDict(  # last, so that the parts that rules share start from the same numbers
            {gate.name: Gate(gate, width, heads, channels) for gate in (*spec.inputs, *spec.parameters)}
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> logits [B, T, vocabulary]."""
        x = self.embed(tokens)
        x = x + self.noise * torch.randn_like(x)
        mixed = self.conv(self.project(x).transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in silu(mixed).chunk(3, dim=-1))
        q, k = normalize(q, dim=-1), normalize(k, dim=-1)
        o, _ = self.op(q, k, v, **{name: gate(x) for name, gate in self.gates.items()})
        x = x + self.out(rms_norm(o, o.shape[-1:]).flatten(2))
        return self.logits(rms_norm(x, x.shape[-1:]))


def accuracy(model: nn.Module, tokens: Tensor, labels: Tensor) -> float:
    """The share of questions answered rightly."""
    with torch.no_grad():
        right = model(tokens).argmax(-1) == labels
    return right[labels != IGNORE].float().mean().item()


def train(op: Callable, steps: int, task: Task, training: Training) -> Iterator[tuple[int, float]]:
    """Yields (step, accuracy on held-out sequences) before the first step, every few steps and at the end."""
    torch.manual_seed(training.seed)
    model = RecallModel(op, task, training.heads, training.channels)
    data = torch.Generator().manual_seed(training.seed)
    held_out = sample(task, 128, torch.Generator().manual_seed(training.seed + 1))
    optimizer = torch.optim.AdamW(model.parameters(), training.learning_rate, weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=training.warmup)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - training.warmup))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cool], [training.warmup])
    yield 0, accuracy(model, *held_out)
    for step in range(1, steps + 1):
        tokens, labels = sample(task, training.batch, data)
        loss = cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % training.evaluate_every == 0 or step == steps:
            yield step, accuracy(model, *held_out)


def associative_recall(
    specs: Sequence[str],
    steps: int = 300,
    out: str | Path = "out/demo",
    *,
    task: Task = Task(),
    training: Training = Training(),
    load: Callable = load_operator,
    console: Console | None = None,
) -> dict[str, list[float]]:
    """{spec: accuracy over training}: trains one model a spec, prints a table and writes OUT/recall.png.

    Each model starts from the same numbers and sees the same sequences; load(name) gives its operator.
    """
    console = console or WholeConsole()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("accuracy {task.fields[accuracy]:.0%}"),
    )
    curves: dict[str, dict[int, float]] = {name: {} for name in specs}
    with Progress(*columns, console=console) as progress:
        bars = {name: progress.add_task(name, total=steps, accuracy=0.0, start=False) for name in specs}
        for name in specs:
            progress.start_task(bars[name])
            for step, share in train(load(name), steps, task, training):
                curves[name][step] = share
                progress.update(bars[name], completed=step, accuracy=share)
    console.print(_table(curves, task))
    console.print(f"[dim]{_plot(curves, task, Path(out) / 'recall.png')}[/dim]")
    return {name: list(curve.values()) for name, curve in curves.items()}


def _table(curves: dict[str, dict[int, float]], task: Task) -> Table:
    table = Table(title_justify="left", title=f"recall of {_describe(task)}")
    table.add_column("step", justify="right")
    for name in curves:
        table.add_column(name, justify="right")
    steps = list(next(iter(curves.values())))
    shown = sorted({steps[round(i * (len(steps) - 1) / 6)] for i in range(7)})
    for step in shown:
        table.add_row(str(step), *(f"{curve[step]:.1%}" for curve in curves.values()))
    return table


def _describe(task: Task) -> str:
    rebound = f", {task.rebound} of them rebinding a key" if task.rebound else ""
    noise = f", noise {task.noise:g}" if task.noise else ""
    return f"{task.pairs} pairs{rebound}{noise}"


def _plot(curves: dict[str, dict[int, float]], task: Task, path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), label=name)
    axes.axhline(2 / task.vocabulary, color="grey", linestyle=":", label="chance")
    axes.set(
        xlabel="training step",
        ylabel="accuracy",
        ylim=(0, 1.02),
        title=f"multi-query associative recall: {_describe(task)}",
    )
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
