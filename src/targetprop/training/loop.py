"""A training run, from top to bottom: loop, checkpoint, finish; resumed runs go on bit for bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from targetprop.algorithms import Report
from targetprop.data import Batches
from targetprop.laboratory.pairing import Network
from targetprop.training import checkpoint
from targetprop.training.curves import Row
from targetprop.training.evaluate import accuracy, first_nonfinite, measure
from targetprop.training.logging import Metrics, as_json
from targetprop.training.session import Session, load_weights
from targetprop.training.signals import stop_requests


class Diverged(Exception):
    """A loss or a weight that is no longer finite; the message names layer and step."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""

    def __init__(self, message: str, number: int):
        """Keep the signal's ``number`` for the exit code."""
        super().__init__(message)
        self.number = number


Tell = Callable[[Session, float], None]
Judge = Callable[[Session, float], None]
End = Callable[[Session, Metrics], dict[str, Any]]


def run(
    session: Session,
    tell: Tell = lambda session, loss: None,
    deadline: float = float("inf"),
    also: Callable[[Row], None] = lambda row: None,
    judge: Judge = lambda session, accuracy: None,
    end: End | None = None,
) -> dict[str, Any]:
    """Train until the last step, evaluating after each epoch; then test the selected weights once.

    Args:
        session: a run at any point of its progress.
        tell: called after every step, to show progress.
        deadline: time.monotonic() at which to stop as if asked to.
        also: given every row of the metrics too.
        judge: called with the validation accuracy of every epoch; what it raises ends the run.
        end: what makes the result after the last step; default ``finish``, which tests.

    Returns:
        the result, as ``finish`` writes it to ``result.json`` too.

    Raises:
        Diverged: loss or weights are not finite.
        Interrupted: SIGINT or SIGTERM came, or the deadline passed; the step is finished and saved.
    """
    folder = session.folder if session.ranks.leader else None
    metrics = Metrics(folder, session.progress.step, also)
    try:
        with stop_requests() as stop:
            while session.progress.step < session.last_step:
                train_epoch(session, metrics, stop, tell, deadline)
                if session.progress.batch == len(session.train):
                    scores = finish_epoch(session, metrics)
                    if scores:
                        judge(session, scores["accuracy"])
                else:  # stopped within an epoch, which a longer run goes on with
                    save(session)
            result = (end or finish)(session, metrics)
            number = session.ranks.world.maximum(stop[0] if stop else 0)
        if number:
            raise Interrupted(f"stopped; {session.folder} has come to its end.", number)
        return result
    finally:
        metrics.close()


def train_epoch(
    session: Session, metrics: Metrics, stop: list[int], tell: Tell, deadline: float
) -> None:
    """The rest of the current epoch."""
    config, progress = session.config, session.progress
    loss, now = 0.0, clock(session)
    for x, y in session.train.epoch(progress.epoch, progress.batch):
        began = now()
        report = step(session, x, y)
        due = config.measure_every and progress.step % config.measure_every == 0
        logged = due or progress.step % config.log_every == 0
        if logged or x.device.type == "cpu":  # elsewhere reading it makes the device wait
            loss = report.loss.item()
        progress.seconds += now() - began
        if not loss < float("inf"):
            raise Diverged(
                f"loss {loss} at step {progress.step}: {first_nonfinite(session.net, x)} "
                f"is not finite; {kept(session)}"
            )
        if logged:
            log_step(session, metrics, report, loss, y, measure(session, x, y) if due else {})
        began = now()
        session.optimizer.step()
        if config.schedule.unit == "step":
            session.schedule.step()
        progress.seconds += now() - began
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


def clock(session: Session) -> Callable[[], float]:
    """Seconds as they pass where other programs share the cores: CPU time of the thread that steps.

    On a GPU, or where processes wait for each other, such a thread sleeps while work is done: the
    wall's clock.
    """
    alone = session.ranks.world.size == 1
    on_cpu = all(p.device.type == "cpu" for p in session.net.parameters())
    return time.thread_time if alone and on_cpu else time.perf_counter


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


def finish_epoch(session: Session, metrics: Metrics) -> dict[str, float]:
    """Validate, tick the schedule, save; returns the scores, none where nothing is held out."""
    progress, scores = session.progress, {}
    best = False
    if session.validation is not None:
        scores = validate(session, session.validation, metrics)
        best = scores["accuracy"] > progress.best
        progress.best = max(progress.best, scores["accuracy"])
    if session.config.schedule.unit == "epoch":
        session.schedule.step()
    progress.epoch += 1
    progress.batch = 0
    save(session, best)
    return scores


def best_validated(session: Session, metrics: Metrics, held_out: Batches) -> float:
    """The best validation accuracy; weights of an epoch that has not ended count, too."""
    best = session.progress.best
    if session.progress.batch:
        best = max(best, validate(session, held_out, metrics)["accuracy"])
    return best


def validate(session: Session, held_out: Batches, metrics: Metrics) -> dict[str, float]:
    """The scores on what was held out, as a row of the metrics too."""
    progress = session.progress
    scores = accuracy(session.net, session.algo, held_out)
    where = {"epoch": progress.epoch, "seconds": progress.seconds}
    metrics.write("validation", progress.step, **where, **scores)
    return scores


def finish(session: Session, metrics: Metrics) -> dict[str, Any]:
    """Test once: the best weights by validation, or the last where nothing was held out."""
    progress, path = session.progress, session.folder / "best.pt"
    selected = last = accuracy(session.net, session.algo, session.test)
    best = progress.best
    if session.validation is not None:
        session.ranks.world.wait()  # until best.pt is written
        best = best_validated(session, metrics, session.validation)
        if best > progress.best:  # of an epoch that has not ended: it has no best.pt
            state = session.state()  # by all ranks
            if session.ranks.leader and not path.exists():
                checkpoint.save(path, state)
        else:
            final = {name: value.clone() for name, value in session.net.state_dict().items()}
            load_weights(session.net, checkpoint.load(path), path)
            selected = accuracy(session.net, session.algo, session.test)
            session.net.load_state_dict(final)
    result = {
        "steps": progress.step,
        "seconds_per_step": progress.seconds / max(1, progress.step),
        "validation_accuracy": best if session.validation is not None else None,
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
