"""A character GPT by any rule of ``attach``, trained by the loop of all runs: for the evidence."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from targetprop.analysis.tables import angle_summary
from targetprop.data import DataError
from targetprop.data.pipeline import seeded
from targetprop.experiments.cells import Place, Result, cell
from targetprop.models import CharGPT
from targetprop.ranks import ALONE, SINGLE
from targetprop.training import checkpoint, loop
from targetprop.training.build import build_algorithm
from targetprop.training.config import Config
from targetprop.training.device import pick_device
from targetprop.training.files import MEDIUM, read_text
from targetprop.training.logging import read_metrics
from targetprop.training.sections import AlgorithmConfig, ScheduleConfig
from targetprop.training.session import Progress, Session

TEXT = "tiny-shakespeare.txt"


@dataclass(frozen=True)
class Plan:
    """What a cell trains.

    Attributes:
        rule: of ``attach``, or "backprop".
        seed: of weights, batches and feedback.
        steps: in all, a multiple of ``every``.
        batch: windows of a step.
        context: characters of a window.
        every: steps between validations, measurements and checkpoints.
    """

    rule: str
    seed: int
    steps: int = 5000
    batch: int = 32
    context: int = 128
    every: int = 250


class EveryPosition(CharGPT):
    """The logits of all positions, a row each, as algorithms take them."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, positions) to (batch · positions, vocabulary)."""
        return super().forward(tokens).flatten(0, 1)


class Windows:
    """A text as batches: windows, and the characters that follow theirs; an epoch is ``every``."""

    peers = ALONE

    def __init__(self, tokens: Tensor, plan: Plan):
        """Of a part of the text."""
        self.tokens, self.plan = tokens, plan
        count = (len(tokens) - 1) // plan.context * plan.context
        self.windows = tokens[:count].view(-1, plan.context)
        self.data = tokens[1 : count + 1]
        """What is foreseen where every window is seen once."""

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.plan.every

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows anywhere in the text, by (seed, epoch, batch) only."""
        length = self.plan.context + 1
        for i in range(start, len(self)):
            drawn = seeded(self.plan.seed, epoch, i)
            starts = torch.randint(len(self.tokens) - length, (self.plan.batch,), generator=drawn)
            seen = torch.stack([self.tokens[s : s + length] for s in starts.tolist()])
            yield seen[:, :-1], seen[:, 1:].flatten()

    def once(self, size: int = 128) -> Iterator[tuple[Tensor, Tensor]]:
        """The text from its beginning, window by window."""
        following = self.data.view(-1, self.plan.context)
        for x, y in zip(self.windows.split(size), following.split(size), strict=True):
            yield x, y.flatten()


def text_of(place: Place) -> str:
    """Tiny Shakespeare from the data folder; to smoke, the source of Python's ``inspect``.

    Raises:
        DataError: it is not there.
    """
    if place.scale == "smoke":
        return inspect.getsource(inspect)[:20_000]
    path = Path(place.data_dir or ".") / TEXT
    if not path.is_file():
        raise DataError(f"{path} is missing; put the text there, or name its folder by --data-dir.")
    return read_text(path, MEDIUM)


def rate(step: int, steps: int) -> float:
    """A warm-up over 100 steps, then a cosine down to a tenth."""
    return min((step + 1) / 100, 0.55 + 0.45 * math.cos(math.pi * min(1, step / steps)))


def session(plan: Plan, text: str, folder: Path) -> Session:
    """A run of ``plan`` at its first step: AdamW, gradients clipped to norm 1 before ω see them.

    The last tenth of the text is held out.
    """
    index = {letter: number for number, letter in enumerate(sorted(set(text)))}
    tokens = torch.tensor([index[letter] for letter in text], device=pick_device("auto"))
    cut = len(tokens) * 9 // 10
    train, held_out = Windows(tokens[:cut], plan), Windows(tokens[cut:], plan)
    settings = Config(
        algorithm=AlgorithmConfig(name=plan.rule),
        schedule=ScheduleConfig(unit="step"),
        epochs=plan.steps // plan.every,
        seed=plan.seed,
        measure_every=plan.every,
    )
    torch.manual_seed(plan.seed)
    net = EveryPosition(len(index), plan.context).to(tokens.device)
    algo = build_algorithm(settings, net, held_out.windows[:2])
    weights = list(net.parameters())
    optimizer = torch.optim.AdamW(weights, 1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer.register_step_pre_hook(lambda *_: clip(weights))
    algo.follow(optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, plan.steps))
    data = {"text": hashlib.sha256(text.encode()).hexdigest()[:16]}
    batches: Any = {"train": train, "validation": held_out, "test": held_out}
    return Session(
        settings, folder, net, algo, optimizer, schedule,
        progress=Progress(), ranks=SINGLE, data=data, **batches,
    )  # fmt: skip


def clip(weights: list[nn.Parameter]) -> None:
    """To norm 1."""
    torch.nn.utils.clip_grad_norm_(weights, 1.0)


def train(place: Place, where: str, plan: Plan) -> Result:
    """The held-out loss of a plan at its end, and its angles; ``run`` holds metrics and checkpoint.

    Raises:
        DataError: the text is missing.
        Diverged: loss or weights are not finite.
        Interrupted: the deadline passed, or a signal asked to stop.
    """

    def compute(folder: Path) -> Result:
        run = folder / "run"
        run.mkdir(exist_ok=True)
        made, last = session(plan, text_of(place), run), run / "last.pt"
        if last.exists():
            made.restore(checkpoint.load(last), last)
        result = loop.run(made, place.watch, place.deadline, end=by_the_last)
        return {**result, **angle_summary(read_metrics(run / "metrics.jsonl"))}

    return cell(place, where, vars(plan), compute, device="auto")


def by_the_last(session: Session, metrics: Any) -> Result:
    """The held-out loss of the last weights, not of the best."""
    return loop.finish(dataclasses.replace(session, validation=None), metrics)
