"""A study of configurations by Optuna: several processes may work on one, and any may be killed.

A trial is a run in a folder of its own, which its process locks. The system lets go of the lock
when the process ends, however it ends: a trial that runs by the study but whose folder nobody
holds has lost its process, and is tried again from its last checkpoint.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from targetprop.training import checkpoint, loop
from targetprop.training.config import ConfigError
from targetprop.training.device import pick_device
from targetprop.training.files import FileError
from targetprop.training.lock import locked
from targetprop.training.logging import environment
from targetprop.training.session import Session
from targetprop.tuning import space as spaces
from targetprop.tuning import trials
from targetprop.tuning.plan import Plan, apart
from targetprop.tuning.samplers import InTurn
from targetprop.tuning.space import Range
from targetprop.tuning.study_file import NAME, PREFIX, database, is_locked, turn

RECORD = "targetprop"
"""Under which a study keeps its plan."""

DEATHS = 3
"""Processes that a trial may take with it; then it counts as ended, without a value."""

Say = Callable[[str], None]


def demand_ours(trial: Any, space: Any) -> None:
    """Refuse a finished trial that no process of a study has made.

    Raises:
        ValueError: it has no accuracy, or no settings of the space.
    """
    if trial.state.name == "COMPLETE":
        if trial.value is None or not 0 <= trial.value <= 1 or set(trial.params) - set(space):
            raise ValueError(f"trial {trial.number} has the value {trial.value}, of {trial.params}")
        if not trial.params:
            raise ValueError(f"trial {trial.number} has no settings")


class Study:
    """A study on disk, and what this process does with it."""

    def __init__(self, plan: Plan, url: str, say: Say, tell: loop.Tell):
        """Open the study, or make it; ``say`` gets sentences, ``tell`` the steps of trials.

        Raises:
            ConfigError: it is one of other settings.
            FileError: the file is no study.
        """
        trials.demand_validation(plan.base)
        self.plan, self.path = plan, database(url)
        self.say, self.tell = say, tell
        grid = spaces.grid(plan.space, "the space") if plan.sampler == "grid" else []
        points = [{key: plain(value) for key, value in point.items()} for point in grid]
        self.most = len(points) or None
        self.sampler = InTurn(plan.sampler, plan.base.seed, points)
        self.distributions = {key: distribution(one) for key, one in plan.space.items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if not self.path.exists() and any(plan.folder.glob("trial-*")):
            raise ConfigError(
                f"{plan.folder} holds trials of a study other than {self.path}; give another --out."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with turn(self.path):
            self.study = self.opened()

    def opened(self) -> optuna.Study:
        """The study, with what it is written in it."""
        pruner = optuna.pruners.NopPruner()
        if self.plan.prune:
            pruner = optuna.pruners.MedianPruner(
                n_startup_trials=4, n_warmup_steps=max(1, self.plan.base.epochs // 5)
            )
        try:
            patient = {"connect_args": {"timeout": 60}}
            storage = optuna.storages.RDBStorage(f"{PREFIX}{self.path}", engine_kwargs=patient)
            study = optuna.create_study(
                storage=storage,
                sampler=self.sampler,
                pruner=pruner,
                study_name=NAME,
                direction="maximize",
                load_if_exists=True,
            )
            held, asked = study.user_attrs.get(RECORD), self.plan.record()
            there = study.get_trials(deepcopy=False)
            for trial in there:
                demand_ours(trial, self.plan.space)
            unused = held is None and not there
        except (SQLAlchemyError, RuntimeError, ValueError, LookupError) as error:
            reason = " ".join(str(error).split())[:160]
            raise FileError(
                f"{self.path}: cannot be opened as a study ({reason}); give another --storage."
            ) from error
        if isinstance(held, dict) and not Path(str(held.get("folder"))).is_dir():
            held = {**held, "folder": asked["folder"]}  # it was moved
            unused = held == asked
        if unused:
            self.plan.folder.mkdir(parents=True, exist_ok=True)
            study.set_user_attr(RECORD, asked)
        elif held != asked:
            raise ConfigError(
                f"{self.path} is a study of other settings ({apart(held or {}, asked)}); "
                "give them, or another --storage."
            )
        return study

    def trials(self) -> list[FrozenTrial]:
        """Those that count, in their order: of one that was tried several times, the last."""
        last = {t.user_attrs["trial"]: t for t in self.all() if "trial" in t.user_attrs}
        return [last[number] for number in sorted(last)]

    def all(self) -> list[FrozenTrial]:
        """Every trial of the storage."""
        return self.study.get_trials(deepcopy=False)

    def now(self, trial: FrozenTrial | Trial) -> FrozenTrial:
        """A trial as it is in the storage by now."""
        return next(t for t in self.all() if t.number == trial.number)

    def folder(self, number: int) -> Path:
        """Of a trial's run."""
        return self.plan.folder / f"trial-{number:03}"

    def work(self, count: int, deadline: float = float("inf")) -> None:
        """Try one after another until ``count`` have ended or are tried by other processes."""
        if self.most and self.most < count:
            self.say(f"the grid has {self.most} points: no more are tried.")
        while True:
            with self.claimed(min(count, self.most or count)) as trial:
                if trial is None:
                    return
                self.attempt(trial, deadline)

    @contextmanager
    def claimed(self, count: int) -> Iterator[Trial | None]:
        """A trial for this process, whose folder it holds; None where ``count`` are begun."""
        with ExitStack() as stack:
            with turn(self.path):
                trial = self.next(count)
                if trial is not None:
                    folder = self.folder(trial.user_attrs["trial"])
                    stack.enter_context(locked(folder))
            yield trial

    def next(self, count: int) -> Trial | None:
        """One that lost its process, else a new one, as long as fewer than ``count`` are begun."""
        for trial in self.all():
            # one without a number was killed while it was chosen, in which nobody else is now
            if trial.state == TrialState.RUNNING and "trial" not in trial.user_attrs:
                self.study.tell(trial.number, state=TrialState.FAIL)
        for trial in self.trials():
            number = trial.user_attrs["trial"]
            if trial.state != TrialState.RUNNING or is_locked(self.folder(number)):
                continue
            # a process that ends well tells the study first, and then lets go
            if self.now(trial).state == TrialState.RUNNING:
                self.say(f"trial {number} has lost its process; it is tried again.")
                self.again(trial, trial.user_attrs.get("deaths", 0) + 1)
        known = self.trials()
        waiting = [t for t in known if t.state == TrialState.WAITING]
        if len(known) - len(waiting) >= count:
            return None
        # Optuna takes what has waited longest
        oldest = min(waiting, key=lambda t: t.number, default=None)
        number = oldest.user_attrs["trial"] if oldest else len(known)
        self.sampler.number = number
        with warnings.catch_warnings():  # of what Optuna calls experimental
            warnings.simplefilter("ignore")
            trial = self.study.ask(self.distributions)
        trial.set_user_attr("trial", number)
        return trial

    def again(self, trial: FrozenTrial, deaths: int) -> None:
        """End a trial and queue it anew, unless it took too many processes with it."""
        self.study.tell(trial.number, state=TrialState.FAIL)
        if deaths < DEATHS:
            self.study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={"trial": trial.user_attrs["trial"], "deaths": deaths},
                )
            )

    def attempt(self, trial: Trial, deadline: float) -> None:
        """Train a trial and tell the study what came of it; one that diverged is pruned.

        Raises:
            Interrupted: asked to stop; the trial is queued again.
            ConfigError: it cannot be run here; likewise.
        """
        number, point = trial.user_attrs["trial"], self.point(trial)
        folder, shown = self.folder(number), written(point)
        self.say(f"trial {number}: {shown}")
        record = environment(pick_device(self.plan.base.device), self.plan.base.seed)
        trial.set_user_attr("environment", record)

        def report(session: Session, accuracy: float, epoch: int) -> None:
            trial.report(accuracy, epoch)
            if session.progress.step < session.last_step and trial.should_prune():
                raise optuna.TrialPruned(f"pruned after epoch {epoch + 1}")

        try:
            run = spaces.settled(self.plan.base, point)
        except ConfigError as error:  # values that are fine alone, but not together
            self.end(trial, None, f"refused: {error}")
            return
        try:
            found = trials.trial(run, folder, report, deadline, self.tell)
        except optuna.TrialPruned as error:
            self.end(trial, None, str(error))
        except loop.Diverged as error:
            self.end(trial, None, f"diverged: {error}")
        except (loop.Interrupted, ConfigError) as error:
            frozen = self.now(trial)
            with turn(self.path):
                self.again(frozen, frozen.user_attrs.get("deaths", 0))
            if isinstance(error, loop.Interrupted):
                text = f"stopped in trial {number}; go on with the same command."
                raise loop.Interrupted(text, error.number) from error
            raise
        else:
            trial.set_user_attr("result", found)
            self.end(trial, found["validation_accuracy"], "")

    def end(self, trial: Trial, value: float | None, why: str) -> None:
        """Tell the study; the weights are of no more use: the best are trained anew."""
        number = trial.user_attrs["trial"]
        trial.set_user_attr("why", why)
        if value is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, value)
        came = why if value is None else f"validation accuracy {100 * value:.2f} %"
        self.say(f"trial {number}: {came}")
        for path in self.folder(number).glob("*.pt"):
            path.unlink(missing_ok=True)
        checkpoint.remove_parts(self.folder(number))

    def point(self, trial: FrozenTrial | Trial) -> dict[str, Any]:
        """The values of a trial, as the configuration takes them."""
        return {
            key: trial.params[key]
            if isinstance(one, Range)
            else next(v for v in one.values if plain(v) == trial.params[key])
            for key, one in self.plan.space.items()
            if key in trial.params
        }

    def best(self) -> FrozenTrial | None:
        """The trial with the best validation accuracy, the first of equals; None without any."""
        ended = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        return max(ended, key=lambda t: t.value or 0.0, default=None)


def distribution(one: Range | spaces.Choices) -> BaseDistribution:
    """What Optuna draws from."""
    if not isinstance(one, Range):
        return CategoricalDistribution([plain(value) for value in one.values])
    if one.whole:
        return IntDistribution(int(one.low), int(one.high), one.log, int(one.step or 1))
    return FloatDistribution(one.low, one.high, one.log, one.step)


def plain(value: Any) -> Any:
    """A choice as Optuna can store it: lists and mappings are text."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def written(point: dict[str, Any]) -> str:
    """The values of a point, short."""
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in point.items()
    )
