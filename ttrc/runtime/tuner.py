"""The verifying tuner: for each kernel of an operator, the fastest configuration that is right.

Candidates are pruned by what a compiler without a GPU says of them and by the time that their walls predict. One that
remains is verified before it is timed; one that misses is rejected with its reason, however fast it is. Nothing here
starts by itself: an operator only ever reads what an earlier run found (tuned.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from types import ModuleType
from typing import Optional

import torch

from ttrc.compiler import analyse
from ttrc.ir.config import Config, Takes, block
from ttrc.ir.plan import Kernel, Plan, Skeleton
from ttrc.runtime.operator import Operator
from ttrc.runtime.trust import is_lost
from ttrc.runtime.tuned import Key, slot
from ttrc.runtime.workload import Workload, draw_inputs
from ttrc.sampling import as_arguments

MOST = 24  # candidates a kernel
VALUE_BLOCKS, WARPS, STAGES = (16, 32, 64, 128, 256), (1, 2, 4, 8), (1, 2, 3)
TOKEN_BLOCKS = (32, 64, 128, 256)  # of kernels of pairs
LIGHT = 0.02  # spills, of all instructions, that may be worth what they buy: those outside loops cost next to nothing
MANY = 128  # heads times sequences from which the regime is "many", as the generated operators count


class Fate(Enum):
    CHOSEN = "chosen"
    SLOWER = "slower"
    REJECTED = "rejected"  # verified and found wrong, or it does not run
    PRUNED = "pruned"  # never run


@dataclass(frozen=True)
class Trial:
    """What became of one candidate; ms of its kernel alone where it was timed, and where a prediction is known."""

    key: Key
    config: Config
    fate: Fate
    ms: Optional[float]
    reason: str
    predicted: Optional[float] = None


@dataclass(frozen=True)
class Report:
    """All trials of one operator, kernel by kernel; `default_ms` where the default configuration was right."""

    spec: str
    trials: tuple[Trial, ...]
    default_ms: Mapping[Key, float]

    @property
    def best(self) -> dict[Key, Trial]:
        return {t.key: t for t in self.trials if t.fate is Fate.CHOSEN}

    @property
    def rejected(self) -> tuple[Trial, ...]:
        return tuple(t for t in self.trials if t.fate is Fate.REJECTED)


@dataclass(frozen=True)
class Footprint:
    """Of a compiled candidate: spilling instructions, all of them, and the ms that its walls predict.

    None in the place of ms where it does not compile, or does not fit on a multiprocessor.
    """

    spills: int
    instructions: int
    ms: Optional[float]


@dataclass(frozen=True)
class Run:
    """How the operator is called so that it launches the kernel at hand: timed in the first, right in all of them."""

    form: str
    schedules: tuple[str, ...]
    chunk: int  # tokens


Call = Callable[[], None]
Timer = Callable[[Key, Config, Call], float]  # ms of one call
Verdict = Callable[[], Optional[str]]  # why the operator is wrong, or None; a trust.Verifier also rehearses
Verifier = Callable[[str, str], Verdict]  # of a form and schedule
Judge = Callable[[str], Verdict]  # of a schedule, the form being known
Footprints = Callable[[str, Config, Workload, str], Optional[Footprint]]  # of a kernel, a schedule; None: not known


def tune(
    op: Operator,
    workloads: Mapping[str, Sequence[Workload]],
    *,
    dtype: torch.dtype,
    device: str,
    timer: Timer,
    verifier: Verifier,
    footprints: Footprints = lambda kernel, config, shape, schedule: None,
    most: int = MOST,
    known: Collection[Key] = (),
    suspects: Collection[tuple[Key, Config]] = (),
    ahead: Callable[[Call], None] = lambda work: None,
    on_start: Callable[[Key, Config], None] = lambda key, config: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Report:
    """Tune every kernel of the forms in `workloads`, one kernel after another, the best of the earlier ones in place.

    workloads: by form, at most one a width and regime. Keys in `known` are left as the operator has them, and
    `suspects` are rejected unseen: a run ended while one was tried, perhaps because of it. `ahead` is handed what will
    launch all candidates of a kernel, before one is tried. The operator's TUNED table is as before when this returns.
    """
    told = (ahead, on_start, on_trial)
    search = _Search(op, dtype, device, timer, footprints, most, known, suspects, *told)
    forms = analyse(op.spec).forms
    for form, shapes in workloads.items():
        plan = forms[form].plan
        judge = cache(lambda schedule, form=form: verifier(form, schedule))
        for shape in shapes:
            chunk = plan.tokens(shape.d_k, shape.d_v, dtype.itemsize)
            for kernel, schedules in tunable(plan, regime_of(shape)):
                search.kernel(kernel, Run(form, schedules, chunk), shape, judge)
    return Report(op.spec.name, tuple(search.trials), search.default_ms)


def tunable(plan: Plan, regime: str) -> list[tuple[Kernel, tuple[str, ...]]]:
    """Each kernel with the schedules that launch it. A chip that is full anyway runs the first schedule alone."""
    only = len(plan.schedules) == 1
    found: dict[str, list[str]] = {}
    for schedule in plan.schedules[:1] if regime == "many" else plan.schedules:
        for name in dict.fromkeys(x.kernel.name for x in (*schedule.forward, *schedule.backward)):
            found.setdefault(name, []).append("auto" if only else schedule.name)
    # A join is a few products a segment: nothing to win.
    return [(k, tuple(found[k.name])) for k in plan.kernels if k.name in found and k.skeleton is not Skeleton.JOIN]


@contextmanager
def using(package: ModuleType, configs: Mapping[Key, Config]) -> Iterator[None]:
    """Inside, the operator launches these configurations."""
    before = dict(package.launch.TUNED)
    package.launch.TUNED.update({slot(k): c.row for k, c in configs.items()})
    try:
        yield
    finally:
        package.launch.TUNED.clear()
        package.launch.TUNED.update(before)


def space(d_v: int, whole: bool = False) -> list[Config]:
    """Every configuration there is to think of for a head dimension of values; one warp cannot hold a wide state.

    whole: for a kernel whose programs take every value channel.
    """
    blocks = [block(d_v)] if whole else [v for v in VALUE_BLOCKS if v <= block(d_v)]
    return [Config(v, w, s) for v in blocks for w in WARPS if w > 1 or d_v <= 64 for s in STAGES]


def space_of(takes: Takes, d_v: int) -> list[Config]:
    """Where blocks are of tokens, no head dimension bounds them."""
    if takes is Takes.TOKENS:
        return [Config(tokens, w, s) for tokens in TOKEN_BLOCKS for w in WARPS[2:] for s in STAGES]
    return space(d_v, takes is Takes.WHOLE)


def capped(takes: Takes, config: Config, widest: int) -> Config:
    """A configuration as an operator takes it for heads of so many value channels."""
    return config if takes is Takes.TOKENS else replace(config, value_block=min(config.value_block, widest))


def candidates(
    kernel: Kernel, default: Config, shape: Workload, schedule: str, footprints: Footprints, most: int
) -> tuple[dict[Config, Optional[float]], list[tuple[Config, str]]]:
    """(those to try and their predicted ms, the default first, then the fastest; those left out, with the reason)."""
    tried = dict.fromkeys((default, *space_of(kernel.takes, shape.d_v)))
    everything = {c: footprints(kernel.name, c, shape, schedule) for c in tried}
    some_are_clean = any(x is not None and x.ms is not None and not x.spills for x in everything.values())
    left, pruned = {}, []
    for config, known in everything.items():
        reason = None if config == default or known is None else _hopeless(known, some_are_clean)
        if reason is not None:
            pruned.append((config, reason))
        else:
            left[config] = None if known is None else known.ms
    cost = {c: _distance(c, default) if ms is None else ms for c, ms in left.items()}
    ranked = sorted(left, key=lambda c: (c != default, cost[c]))
    slower = [(c, f"predicted slower than {most} others") for c in ranked[most:]]
    return {c: left[c] for c in ranked[:most]}, pruned + slower


def _hopeless(known: Footprint, some_are_clean: bool) -> str | None:
    if known.ms is None:
        return "does not compile, or does not fit on a multiprocessor"
    heavy = known.spills > LIGHT * known.instructions
    return f"spills ({known.spills} instructions), which others do not" if heavy and some_are_clean else None


def _distance(config: Config, default: Config) -> float:
    """Steps of a factor of two away from the default, where nothing better is known."""
    ratios = (config.value_block / default.value_block, config.warps / default.warps)
    return sum(abs(int(r).bit_length() - 1 if r >= 1 else int(1 / r).bit_length() - 1) for r in ratios) + 0.5 * abs(
        config.stages - default.stages
    )


class _Search:
    def __init__(self, op, dtype, device, timer, footprints, most, known, suspects, ahead, on_start, on_trial):
        self.op, self.dtype, self.device, self.timer = op, dtype, device, timer
        self.footprints, self.most = footprints, most
        self.known, self.suspects = frozenset(known), frozenset(suspects)
        self.ahead, self.on_start, self.on_trial = ahead, on_start, on_trial
        self.trials: list[Trial] = []
        self.best: dict[Key, Config] = {}
        self.default_ms: dict[Key, float] = {}
        self.verdicts: dict[tuple, str | None] = {}  # a config's verdict holds for every regime with its schedules

    def kernel(self, kernel: Kernel, run: Run, shape: Workload, judge: Judge) -> None:
        key = key_of(self.op.package, kernel.name, shape, self.dtype)
        if key in self.known:
            return
        plain = Config(*self.op.package.launch.CONFIGS[kernel.name][key.width])
        default = capped(kernel.takes, plain, block(shape.d_v))
        chosen, pruned = candidates(kernel, default, shape, run.schedules[0], self.footprints, self.most)
        self.ahead(lambda: self._rehearse(key, list(chosen), run, shape, judge))
        timed: dict[Config, float] = {}
        for config, predicted in chosen.items():
            reason, ms = self._try(key, config, run, shape, judge)
            if reason is None:
                timed[config] = ms
            else:
                self._tell(Trial(key, config, Fate.REJECTED, None, reason, predicted))
        if default in timed:
            self.default_ms[key] = timed[default]
        winner = min(timed, key=timed.get, default=None)
        for config, ms in timed.items():
            fate = Fate.CHOSEN if config == winner else Fate.SLOWER
            self._tell(Trial(key, config, fate, ms, "", chosen[config]))
        for config, reason in pruned:
            self._tell(Trial(key, config, Fate.PRUNED, None, reason))
        if winner is not None:
            self.best[key] = winner

    def _try(self, key: Key, config: Config, run: Run, shape: Workload, judge) -> tuple[str | None, float]:
        """(why not, ms): verified first, and only what holds is timed."""
        if (key, config) in self.suspects:
            return "a run ended while this was tried", 0.0
        self.on_start(key, config)
        with self._using(key, config):
            try:
                place = (key.kernel, key.width, run.schedules, config)
                if place not in self.verdicts:
                    reasons = (judge(schedule)() for schedule in run.schedules)
                    self.verdicts[place] = next((r for r in reasons if r is not None), None)
                if self.verdicts[place] is not None:
                    return self.verdicts[place], 0.0
                return None, self.timer(
                    key, config, _launch_alone(self.op, key.kernel, run, shape, self.dtype, self.device)
                )
            except Exception as error:  # a compiler's or a driver's: the candidate's fault, not the tuner's
                if is_lost(self.device):
                    raise
                return f"does not run: {type(error).__name__}: {str(error)[:200]}", 0.0

    def _using(self, key: Key, config: Config):
        both = {Key(key.kernel, key.width, key.dtype, regime): config for regime in ("many", "few")}
        return using(self.op.package, self.best | both)

    def _rehearse(self, key: Key, chosen: list[Config], run: Run, shape: Workload, judge) -> None:
        """Launch all that trials of these will launch; of the shape that is timed a few chunks do, of as many heads."""
        short = replace(shape, length=min(shape.length, 4 * run.chunk))
        for config in (c for c in chosen if (key, c) not in self.suspects):
            with self._using(key, config):
                for schedule in run.schedules:
                    judge(schedule).rehearse()
                _launch_alone(self.op, key.kernel, run, short, self.dtype, self.device)

    def _tell(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.on_trial(trial)


def key_of(package: ModuleType, kernel: str, shape: Workload, dtype: torch.dtype) -> Key:
    """What a kernel's configuration is looked up by where it runs at a shape."""
    width = min(w for w in package.launch.CONFIGS[kernel] if w >= max(block(shape.d_k), block(shape.d_v)))
    return Key(kernel, width, str(dtype).removeprefix("torch."), regime_of(shape))


def regime_of(shape: Workload) -> str:
    return "many" if shape.batch * shape.heads >= MANY else "few"


def _launch_alone(op: Operator, kernel: str, how: Run, shape: Workload, dtype: torch.dtype, device: str) -> Call:
    """A call that launches one kernel of a whole forward and backward pass again, on the tensors it had there."""
    launches: list[Call] = []
    module = op.package.op
    launch = module.launch

    def noted(name, *args, **kwargs):
        launch(name, *args, **kwargs)
        if name == kernel:
            launches.append(lambda: launch(name, *args, **kwargs))

    x = draw_inputs(op.spec, shape, dtype, device)
    module.launch = noted
    try:
        o, _ = op(**as_arguments(op.spec, x), form=how.form, backend="triton", schedule=how.schedules[0])
        torch.autograd.grad(o, list(x.values()), torch.ones_like(o), allow_unused=True)
    finally:
        module.launch = launch
    if not launches:
        raise RuntimeError(f"{kernel} was not launched")

    def run() -> None:
        for again in launches:
            again()

    return run
