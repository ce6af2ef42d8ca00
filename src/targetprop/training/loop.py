"""A training run, from top to bottom: loop, checkpoint, finish; resumed runs go on bit for bit."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from targetprop.algorithms import Report
from targetprop.laboratory.pairing import Network
from targetprop.ranks import SINGLE, Ranks
from targetprop.training import checkpoint
from targetprop.training.build import set_up
from targetprop.training.config import Config, ConfigError
from targetprop.training.evaluate import accuracy, first_nonfinite, measure
from targetprop.training.logging import Metrics, environment
from targetprop.training.session import Session, load_weights


class Diverged(Exception):
    """A loss or a weight that is no longer finite; the message names layer and step."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""

    def __init__(self, message: str, number: int):
        """Keep the signal's ``number`` for the exit code."""
        super().__init__(message)
        self.number = number


Tell = Callable[[Session, float], None]


def run(
    session: Session, tell: Tell = lambda session, loss: None, deadline: float = float("inf")
) -> dict[str, Any]:
    """Train until the last step, evaluating after each epoch; then test the selected weights once.

    Args:
        session: a run at any point of its progress.
        tell: called after every step, to show progress.
        deadline: time.monotonic() at which to stop as if asked to.

    Returns:
        the result, also written to ``result.json``.

    Raises:
        Diverged: loss or weights are not finite.
        Interrupted: SIGINT or SIGTERM came, or the deadline passed; the step is finished and saved.

    """
    metrics = Metrics(session.folder if session.ranks.leader else None, session.progress.step)
    try:
        with stop_requests() as stop:
            while session.progress.step < session.last_step:
                train_epoch(session, metrics, stop, tell, deadline)
                finish_epoch(session, metrics)
        return finish(session, metrics)
    finally:
        metrics.close()


def train_epoch(
    session: Session, metrics: Metrics, stop: list[int], tell: Tell, deadline: float
) -> None:
    """The rest of the current epoch."""
    config, progress = session.config, session.progress
    loss = 0.0
    for x, y in session.train.epoch(progress.epoch, progress.batch):
        began = time.perf_counter()
        report = step(session, x, y)
        due = config.measure_every and progress.step % config.measure_every == 0
        logged = due or progress.step % config.log_every == 0
        if logged or x.device.type == "cpu":  # elsewhere reading it makes the device wait
            loss = report.loss.item()
        progress.seconds += time.perf_counter() - began
        if not loss < float("inf"):
            raise Diverged(
                f"loss {loss} at step {progress.step}: {first_nonfinite(session.net, x)} "
                f"is not finite; {kept(session)}"
            )
        if logged:
            log_step(session, metrics, report, loss, y, measure(session, x, y) if due else {})
        began = time.perf_counter()
        session.optimizer.step()
        if config.schedule.unit == "step":
            session.schedule.step()
        progress.seconds += time.perf_counter() - began
        progress.batch += 1
        progress.step += 1
        tell(session, loss)
        if time.monotonic() > deadline:
            stop.append(signal.SIGALRM)
        # a signal may reach one rank a step before another
        number = session.ranks.world.maximum(stop[0] if stop else 0)
        if number:
            save(session)
            command = f"targetprop resume {session.folder}"
            raise Interrupted(f"stopped at step {progress.step}; go on with: {command}", number)
        if progress.step >= session.last_step:
            break
        if config.checkpoint_every and progress.step % config.checkpoint_every == 0:
            save(session)


def step(session: Session, x: Tensor, y: Tensor) -> Report:
    """One update's gradient."""
    session.optimizer.zero_grad()
    return session.algo.backward(x, y)


def log_step(
    session: Session,
    metrics: Metrics,
    report: Report,
    loss: float,
    y: Tensor,
    angles: dict[str, float],
) -> None:
    """One row of training metrics, of the weights before the step."""
    accuracy = (report.logits.argmax(1) == y).double().mean()
    session.ranks.data.mean_(accuracy)
    values: dict[str, Any] = {
        "epoch": session.progress.epoch,
        "loss": loss,
        "accuracy": accuracy.item(),
        "lr": session.optimizer.param_groups[0]["lr"],
        "seconds": session.progress.seconds,
    }
    if angles:
        values["angle"] = angles
    mismatch = {name: f.mismatch for name, f in report.feedback.items() if f.mismatch is not None}
    iterations = {name: f.iterations for name, f in report.feedback.items()}
    for key, own in (("mismatch", mismatch), ("iterations", iterations)):
        parts = session.ranks.layers.gather(own)
        of_all = {name: value for part in parts for name, value in part.items()}
        if of_all:
            names = session.net.names if isinstance(session.net, Network) else sorted(of_all)
            values[key] = {name: of_all[name] for name in names if name in of_all}
    metrics.write("train", session.progress.step, **values)


def finish_epoch(session: Session, metrics: Metrics) -> None:
    """Validate, tick the schedule, save."""
    progress = session.progress
    best = False
    if session.validation is not None:
        scores = accuracy(session.net, session.algo, session.validation)
        metrics.write(
            "validation", progress.step, epoch=progress.epoch, seconds=progress.seconds, **scores
        )
        best = scores["accuracy"] > progress.best
        progress.best = max(progress.best, scores["accuracy"])
    if session.config.schedule.unit == "epoch":
        session.schedule.step()
    progress.epoch += 1
    progress.batch = 0
    save(session, best)


def finish(session: Session, metrics: Metrics) -> dict[str, Any]:
    """Test once: the best weights by validation, or the last where nothing was held out."""
    selected = last = accuracy(session.net, session.algo, session.test)
    if session.validation is not None:
        path = session.folder / "best.pt"
        session.ranks.world.wait()  # until it is written
        final = {name: value.clone() for name, value in session.net.state_dict().items()}
        load_weights(session.net, checkpoint.load(path), path)
        selected = accuracy(session.net, session.algo, session.test)
        session.net.load_state_dict(final)
    progress = session.progress
    result = {
        "steps": progress.step,
        "seconds_per_step": progress.seconds / max(1, progress.step),
        "validation_accuracy": progress.best if session.validation is not None else None,
        "test": selected,
        "test_last": last,
    }
    metrics.write("test", progress.step, **selected)
    if session.ranks.leader:
        checkpoint.write_text(session.folder / "result.json", as_json(result))
    return result


def save(session: Session, best: bool = False) -> None:
    """Write last.pt, its predecessor kept as previous.pt, and best.pt when ``best``.

    Raises:
        Diverged: a weight is not finite; what is on disk stays.

    """
    for name, weight in session.net.state_dict().items():
        if not weight.isfinite().all():
            step = session.progress.step
            raise Diverged(f"weight '{name}' is not finite at step {step}; {kept(session)}")
    state = session.state()  # by all ranks: some hold what others do not
    if not session.ranks.leader:
        return
    if best:
        checkpoint.save(session.folder / "best.pt", state)
    checkpoint.keep_previous(session.folder / "last.pt")
    checkpoint.save(session.folder / "last.pt", state)


def kept(session: Session) -> str:
    """What a user can do after a divergence."""
    path = session.folder / "last.pt"
    where = f"the last good checkpoint is {path}" if path.exists() else "there is no checkpoint yet"
    return f"{where}; try a smaller optimizer.lr or algorithm.beta."


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that gets the number of SIGINT or SIGTERM instead of their breaking into a step."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, lambda n, _: received.append(n))
        yield received
    except ValueError:  # not the main thread: signals cannot be caught here, and need not be
        if before:
            raise
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(config: Config, folder: Path, ranks: Ranks = SINGLE) -> Session:
    """Set up a new run in ``folder``, its configuration and environment written there.

    Raises:
        ConfigError: the folder holds a run already, or cannot be written.

    """
    if ranks.leader:
        refuse_used(folder)
    session = set_up(config, folder, ranks)
    if ranks.leader:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            settings = yaml.safe_dump(config.to_dict(), sort_keys=False)
            checkpoint.write_text(folder / "config.yaml", settings)
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written ({error.strerror}); give another --out."
            ) from error
        record = environment(next(session.net.parameters()).device, config.seed)
        record["ranks"] = {"data": ranks.data.size, "layers": ranks.layers.size}
        checkpoint.write_text(folder / "environment.json", as_json(record))
    save(session)
    return session


def refuse_used(folder: Path) -> None:
    """Raise ``ConfigError`` where ``folder`` holds a run: a new one needs a folder of its own."""
    if any((folder / name).exists() for name in ("config.yaml", "last.pt", "metrics.jsonl")):
        raise ConfigError(
            f"{folder} already holds a run; resume it (targetprop resume {folder}) "
            "or give another --out."
        )


def resume(config: Config, folder: Path, name: str = "last.pt", ranks: Ranks = SINGLE) -> Session:
    """Take up a run at its last checkpoint or the one called ``name``; other ranks may do it."""
    session = set_up(config, folder, ranks)
    path = folder / name
    session.restore(checkpoint.load(path), path)
    ranks.world.wait()  # until all have read it
    if ranks.leader:
        checkpoint.remove_parts(folder)
        if name != "last.pt":  # a damaged last.pt must not become the next one's only predecessor
            content = path.read_bytes()
            checkpoint.write_atomically(folder / "last.pt", lambda file: file.write(content))
    return session


def take_up(config: Config, folder: Path) -> Session:
    """Resume the run in ``folder``; start it where there is none, or none that has a checkpoint."""
    if (folder / "last.pt").exists():
        return resume(config, folder)
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)
    return start(config, folder)


def as_json(values: dict[str, Any]) -> str:
    """Indented JSON, with a newline at its end."""
    return json.dumps(values, indent=2) + "\n"
