"""Multi-query associative recall (MQAR, arXiv 2312.04927): the data, what disturbs them, a model, its training.

A sequence states pairs, "key value key value ...", then asks for keys in random order; at each question the
model must name the value bound to that key. Some pairs bind a key again, and the last value counts: a memory
that only adds up what it sees still holds the old value, one that corrects its own error has replaced it.

The list of pairs may be stated several times over, and what is stored may be disturbed (`Noise`): an outlier then
speaks against all other statements of its pair, so that a right answer exists, and a memory that outliers cannot move
far should give it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, pad, rms_norm, silu

from ttrc.language.spec import Domain, Gradient, Input, Parameter, Spec
from ttrc.language.state import axis_widths, needs_initial_state, part_domain, state_parts
from ttrc.language.syntax import names
from ttrc.sampling import INTO_DOMAIN, default_value, entry_size

IGNORE = -100  # cross_entropy's label for "no answer is asked here"


@dataclass(frozen=True)
class Task:
    """What a sequence holds: pairs first, questions up to its length; and what disturbs it."""

    vocabulary: int = 64  # half of the tokens are keys, half are values
    length: int = 64
    pairs: int = 16
    rebound: int = 8  # this many of the pairs bind a key again; its last value counts
    repeats: int = 1  # the list of pairs, in its order, is stated so many times over
    noise: float = 0.0  # normal, on every embedding, relative to its size
    value_outliers: float = 0.0  # the share of statements whose values are hit
    key_outliers: float = 0.0  # the share of statements whose keys are hit
    outlier: float = 10.0  # length of an outlier, relative to the vector that it hits


@dataclass(frozen=True)
class Training:
    """One set of numbers for every rule; the seed draws the same model parts, data and noise for each."""

    heads: int = 2
    channels: int = 32
    batch: int = 32
    learning_rate: float = 1e-2
    warmup: int = 20
    gradient_norm: float = math.inf  # longer gradients are scaled down to it
    evaluate_every: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Noise:
    """What disturbs a batch of sequences; tokens and labels stay as they are.

    embeddings  [B, T, heads * channels]: normal numbers of deviation task.noise, for every token. Added to its
                embedding times that one's root mean square, before anything is made of it.
    keys        [B, T, heads, channels]: zero but at the statements that are hit, which each is with probability
                task.key_outliers. There, at both tokens of the statement, a vector of length task.outlier of random
                direction, another for each token and head. Added to the key of length 1 that the memory would store,
                and the sum is brought to length 1: the pair lies under a key that has little to do with its own.
    values      the same with task.value_outliers, drawn apart from the keys'. Added to the value times that one's
                length: the memory is told something else, and loudly.

    Gates are made of the embeddings and cannot see which statements are hit; questions never are. A causal convolution
    stands before the memory, so that the tokens behind a statement, which are hit or not on their own, can store
    something of it.
    """

    embeddings: Tensor
    keys: Tensor
    values: Tensor


def sample(task: Task, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and labels, both int64 [batch, length]; a label is the value asked for, IGNORE in the pairs."""

    def shuffled(n: int) -> Tensor:
        return torch.rand(batch, n, generator=generator).argsort(dim=1)

    half, distinct = task.vocabulary // 2, task.pairs - task.rebound
    again = torch.randint(distinct, (batch, task.rebound), generator=generator)
    slots = torch.cat((torch.arange(distinct).expand(batch, -1), again), dim=1).gather(1, shuffled(task.pairs))
    keys = shuffled(half)[:, :distinct].gather(1, slots)
    values = torch.randint(half, task.vocabulary, (batch, task.pairs), generator=generator)
    context = torch.stack((keys, values), dim=2).flatten(1).repeat(1, task.repeats)
    asked = torch.randint(task.pairs, (batch, task.length - context.shape[1]), generator=generator)
    questions = keys.gather(1, asked)
    same = questions[:, :, None] == keys[:, None, :]  # [batch, question, pair]
    last = (same * torch.arange(1, task.pairs + 1)).argmax(dim=2)
    tokens = torch.cat((context, questions), dim=1)
    labels = torch.cat((torch.full_like(context, IGNORE), values.gather(1, last)), dim=1)
    return tokens, labels


def draw_noise(task: Task, batch: int, training: Training, generator: torch.Generator) -> Noise:
    """A larger share of outliers, drawn from the same seed, hits the same statements and more, the same way."""
    heads, channels = training.heads, training.channels

    def outliers(share: float) -> Tensor:
        hit = torch.rand(batch, task.pairs * task.repeats, generator=generator) < share
        tokens = hit.repeat_interleave(2, dim=1)
        tokens = pad(tokens, (0, task.length - tokens.shape[1]))
        direction = normalize(torch.randn(batch, task.length, heads, channels, generator=generator), dim=-1)
        return task.outlier * direction * tokens[..., None, None]

    embeddings = task.noise * torch.randn(batch, task.length, heads * channels, generator=generator)
    return Noise(embeddings, outliers(task.key_outliers), outliers(task.value_outliers))


class Gate(nn.Module):
    """A declared gate from the token [B, T, width] (inputs) or as a learned constant (parameters), in its domain.

    Decays of what is stored start near one, of momentum at half: a step that goes on and on teaches nothing.
    """

    def __init__(self, declared: Input | Parameter, width: int, heads: int, channels: int, of_momentum: bool):
        super().__init__()
        sizes = {"k": channels, "v": channels}
        self.shape = (heads, *(sizes[axis] for axis in declared.per.axes))
        self.into_domain = INTO_DOMAIN[declared.domain]
        self.register_buffer("fixed", None)
        size = torch.Size(self.shape).numel()
        match declared:
            case Input(domain=domain):
                self.project = nn.Linear(width, size)
                keeps = domain in (Domain.DECAY, Domain.LOG_DECAY) and not of_momentum
                nn.init.constant_(self.project.bias, 4.0 if keeps else 0.0)
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


class InitialState(nn.Module):
    """The parts of a memory's state at the start, learned, each entry inside of its domain."""

    def __init__(self, spec: Spec, heads: int, channels: int):
        super().__init__()
        widths = axis_widths(spec.memory, channels, channels)
        self.into_domain = {part.name: INTO_DOMAIN[part_domain(spec, part)] for part in state_parts(spec)}
        self.raw = nn.ParameterDict()
        for part in state_parts(spec):
            shape = heads, *(widths[axis] for axis in part.axes)
            # No step has been taken yet.
            fresh = torch.zeros(shape) if part.is_step else torch.randn(shape) * entry_size(spec, shape[1])
            self.raw[part.name] = fresh

    def forward(self, batch: int) -> tuple[Tensor, ...]:
        """One [batch, heads, *axes] a part, in the order that the operator takes them."""
        parts = (into(self.raw[name]) for name, into in self.into_domain.items())
        return tuple(x.expand(batch, *x.shape).contiguous() for x in parts)


class RecallModel(nn.Module):
    """embedding -> q, k, v by projection and a short causal convolution -> op -> residual, norm, logits."""

    def __init__(self, op: Callable, task: Task, heads: int = 2, channels: int = 32):
        super().__init__()
        self.op, self.heads = op, heads
        width = heads * channels
        self.embed = nn.Embedding(task.vocabulary, width)
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.conv = nn.Conv1d(3 * width, 3 * width, kernel_size=4, padding=3, groups=3 * width)
        self.out = nn.Linear(width, width, bias=False)
        self.logits = nn.Linear(width, task.vocabulary)
        spec: Spec = op.spec  # what it has of its own comes last: parts that rules share start from the same numbers
        momentum = spec.update.momentum if isinstance(spec.update, Gradient) else None
        of_momentum = names(momentum.tree) if momentum is not None else frozenset()
        self.gates = nn.ModuleDict(
            {g.name: Gate(g, width, heads, channels, g.name in of_momentum) for g in (*spec.inputs, *spec.parameters)}
        )
        self.start = InitialState(spec, heads, channels) if needs_initial_state(spec) else None

    def forward(self, tokens: Tensor, noise: Noise | None = None) -> Tensor:
        """int64 [B, T] -> logits [B, T, vocabulary]."""
        x = self.embed(tokens)
        if noise is not None:
            x = x + noise.embeddings * x.square().mean(dim=-1, keepdim=True).sqrt()
        mixed = self.conv(self.project(x).transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in silu(mixed).chunk(3, dim=-1))
        if noise is not None:
            k, v = (y + z * y.norm(dim=-1, keepdim=True) for y, z in ((k, noise.keys), (v, noise.values)))
        q, k = normalize(q, dim=-1), normalize(k, dim=-1)
        o, _ = self.op(q, k, v, **self._state(len(tokens)), **{name: gate(x) for name, gate in self.gates.items()})
        x = x + self.out(rms_norm(o, o.shape[-1:]).flatten(2))
        return self.logits(rms_norm(x, x.shape[-1:]))

    def _state(self, batch: int) -> dict[str, Tensor | tuple[Tensor, ...]]:
        if self.start is None:
            return {}
        parts = self.start(batch)
        return {"initial_state": parts[0] if len(parts) == 1 else parts}


def accuracy(model: nn.Module, tokens: Tensor, labels: Tensor, noise: Noise | None = None) -> float:
    """The share of questions answered rightly."""
    with torch.no_grad():
        right = model(tokens, noise).argmax(-1) == labels
    return right[labels != IGNORE].float().mean().item()


def held_out(task: Task, count: int, training: Training) -> tuple[Tensor, Tensor, Noise]:
    """Sequences that training does not show: tokens, labels, noise."""
    tokens, labels = sample(task, count, torch.Generator().manual_seed(training.seed + 1))
    # Tokens and noise come from generators apart: neither changes with the other.
    return tokens, labels, draw_noise(task, count, training, torch.Generator().manual_seed(training.seed + 2))


def new_model(op: Callable, task: Task, training: Training) -> RecallModel:
    torch.manual_seed(training.seed)
    return RecallModel(op, task, training.heads, training.channels)


def learn(model: nn.Module, steps: int, task: Task, training: Training) -> Iterator[int]:
    """Trains; yields the number of each step when it is done. A gradient that is not finite moves nothing."""
    data, disturbance = (torch.Generator().manual_seed(seed) for seed in (training.seed, training.seed + 3))
    optimizer = torch.optim.AdamW(model.parameters(), training.learning_rate, weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=training.warmup)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - training.warmup))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cool], [training.warmup])
    for step in range(1, steps + 1):
        tokens, labels = sample(task, training.batch, data)
        noise = draw_noise(task, training.batch, training, disturbance)
        loss = cross_entropy(model(tokens, noise).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        if nn.utils.clip_grad_norm_(model.parameters(), training.gradient_norm).isfinite():
            optimizer.step()
        schedule.step()
        yield step


def train(op: Callable, steps: int, task: Task, training: Training) -> Iterator[tuple[int, float]]:
    """Yields (step, accuracy on held-out sequences) before the first step, every few steps and at the end."""
    model, unseen = new_model(op, task, training), held_out(task, 128, training)
    yield 0, accuracy(model, *unseen)
    for step in learn(model, steps, task, training):
        if step % training.evaluate_every == 0 or step == steps:
            yield step, accuracy(model, *unseen)
