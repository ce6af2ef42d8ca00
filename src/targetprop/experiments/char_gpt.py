"""A character GPT by any rule of ``attach``, its training saved as it goes: for the evidence."""

from __future__ import annotations

import inspect
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from targetprop.analysis import alignment
from targetprop.analysis.tables import angle_summary
from targetprop.attach import Feedback, attach
from targetprop.data import DataError
from targetprop.experiments.cells import Place, Result, cell
from targetprop.models import CharGPT
from targetprop.training import checkpoint, loop
from targetprop.training.files import MEDIUM, read_text
from targetprop.training.logging import Metrics, read_metrics

TEXT = "tiny-shakespeare.txt"


@dataclass(frozen=True)
class Plan:
    """What a cell trains.

    Attributes:
        rule: of ``attach``, or "backprop".
        seed: of weights, batches and feedback.
        steps: in all.
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


class Training:
    """A model with its optimizer, feedback and place in the text, at any step."""

    def __init__(self, plan: Plan, text: str):
        """At the first step."""
        letters = sorted(set(text))
        data = torch.tensor([letters.index(letter) for letter in text])
        self.plan, self.step, self.seconds = plan, 0, 0.0
        self.train, held_out = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
        count = (len(held_out) - 1) // plan.context * plan.context
        self.windows = held_out[:count].view(-1, plan.context)
        self.following = held_out[1 : count + 1].view(-1, plan.context)
        self.generator = torch.Generator().manual_seed(plan.seed)
        torch.manual_seed(plan.seed)
        self.model = CharGPT(len(letters), plan.context)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.1
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate)
        self.feedback: Feedback | None = None
        if plan.rule != "backprop":
            self.feedback = attach(self.model, self.windows[:2], rule=plan.rule, seed=plan.seed)
            self.feedback.follow(self.optimizer)

    def rate(self, step: int) -> float:
        """A warm-up over 100 steps, then a cosine down to a tenth."""
        return min(
            (step + 1) / 100, 0.55 + 0.45 * math.cos(math.pi * min(1, step / self.plan.steps))
        )

    def batch(self) -> tuple[Tensor, Tensor]:
        """Windows of the training text, and the characters that follow theirs."""
        length = self.plan.context + 1
        starts = torch.randint(
            len(self.train) - length, (self.plan.batch,), generator=self.generator
        )
        drawn = torch.stack([self.train[s : s + length] for s in starts])
        return drawn[:, :-1], drawn[:, 1:]

    def advance(self) -> dict[str, float]:
        """One step; returns the scores before it."""
        x, y = self.batch()
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = mean_loss(logits, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return {"loss": loss.item(), "accuracy": right(logits, y)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss in nats and accuracy over the whole held-out text."""
        total = {"loss": 0.0, "accuracy": 0.0}
        for x, y in zip(self.windows.split(128), self.following.split(128), strict=True):
            logits, part = self.model(x), len(x) / len(self.windows)
            total["loss"] += part * mean_loss(logits, y).item()
            total["accuracy"] += part * right(logits, y)
        return total

    def angles(self) -> dict[str, float]:
        """Of every parameter's update to the backprop gradient, on the first held-out windows."""
        if self.feedback is None:
            return {}
        x, y = self.windows[: self.plan.batch], self.following[: self.plan.batch]
        found = alignment(self.model, self.feedback, lambda model: mean_loss(model(x), y))
        return {name: one.update_angle for name, one in found.items()}

    def parts(self) -> dict[str, Any]:
        """Whatever has a state."""
        own = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return own | ({"feedback": self.feedback} if self.feedback else {})

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        here = {"step": self.step, "seconds": self.seconds, "drawn": self.generator.get_state()}
        checkpoint.save(path, {**state, **here})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = checkpoint.load(path)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["drawn"])
        self.step, self.seconds = state["step"], state["seconds"]


def mean_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy over all positions."""
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def right(logits: Tensor, y: Tensor) -> float:
    """The fraction of characters foreseen."""
    return (logits.argmax(-1) == y).double().mean().item()


def train(place: Place, where: str, plan: Plan) -> Result:
    """The held-out loss of a plan at its end, and its angles; ``run`` holds metrics and checkpoint.

    Raises:
        DataError: the text is missing.
        Interrupted: the deadline passed, or a signal asked to stop.

    """

    def compute(folder: Path) -> Result:
        run = folder / "run"
        run.mkdir(exist_ok=True)
        training, last = Training(plan, text_of(place)), run / "last.pt"
        if last.exists():
            training.load(last)
        metrics = Metrics(run, training.step)
        try:
            with loop.stop_requests() as stop:
                advance(place, training, metrics, last, stop)
            held_out = training.validate()
            metrics.write("validation", training.step, seconds=training.seconds, **held_out)
        finally:
            metrics.close()
        each = training.seconds / training.step
        result = {"steps": training.step, "seconds_per_step": each, "test": held_out}
        return {**result, **angle_summary(read_metrics(run / "metrics.jsonl"))}

    return cell(place, where, vars(plan), compute)


def advance(
    place: Place, training: Training, metrics: Metrics, last: Path, stop: list[int]
) -> None:
    """Train to the end; measure, validate and save every so often.

    Raises:
        Diverged: the loss is not finite.
        Interrupted: as ``train``.

    """
    plan = training.plan
    while training.step < plan.steps:
        step, due = training.step, training.step % plan.every == 0
        if due:
            training.save(last)
            metrics.write("validation", step, seconds=training.seconds, **training.validate())
        measured = {"angle": training.angles()} if due and training.feedback else {}
        began = time.perf_counter()
        scores = training.advance()
        training.seconds += time.perf_counter() - began
        if not math.isfinite(scores["loss"]):
            raise loop.Diverged(f"loss {scores['loss']} at step {step}.")
        if due or step % 10 == 0:
            metrics.write("train", step, seconds=training.seconds, **scores, **measured)
        if time.monotonic() > place.deadline:
            stop.append(signal.SIGALRM)
        if stop:
            training.save(last)
            raise loop.Interrupted(f"stopped at step {training.step}.", stop[0])
