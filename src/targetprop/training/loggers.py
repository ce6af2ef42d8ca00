"""A run's rows where people look, beside ``metrics.jsonl``: Weights & Biases, or MLflow.

``logger.jsonl`` in the run's folder says which logger has them, under which of its own runs, and,
a line each, which rows it took. A resumed run goes on there, and no row is sent twice.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from targetprop.training import files
from targetprop.training.checkpoint import write_atomically
from targetprop.training.config import ConfigError, flat, require
from targetprop.training.curves import Row, numbers
from targetprop.training.loop import Interrupted
from targetprop.training.session import Session

LEDGER = "logger.jsonl"
"""In a run's folder: a header, then kind and step of every row that the logger took."""

PROJECT = "targetprop"
"""Of wandb, and the experiment of MLflow, unless their own environment names another."""

Tell = Callable[[str], None]

Header = dict[str, Any]
"""``logger``, its name, and what finds its run again."""


class Logger(Protocol):
    """One logger's run; made with the run's folder, its configuration and the header, if any."""

    header: Header

    def __init__(self, folder: Path, config: dict[str, Any], header: Header | None):
        """Begin, or go on with the run of ``header``."""

    def log(self, index: int, row: Row) -> None:
        """Take a row of the metrics, the one after ``index`` others."""

    def finish(self, error: BaseException | None) -> None:
        """End, well or by ``error``."""


def name_of(folder: Path) -> str:
    """What a run is called: its folder and the one above, such as ``digits-ldrl/seed-0``."""
    return "/".join(folder.resolve().parts[-2:]).strip("/")


class Wandb:
    """A run of Weights & Biases, its files in the run's folder; ``WANDB_*`` are obeyed.

    A row is a step of wandb's own; the curves are drawn against ``step``, that of training: two
    rows may share one, and wandb takes none that lies behind its last.
    """

    def __init__(self, folder: Path, config: dict[str, Any], header: Header | None):
        """Begin, or go on with the run of ``header``."""
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name_of(folder),
            id=header["run"] if header else None,
            resume="allow" if header else None,
            dir=folder,
            config={**config, "folder": str(folder.resolve())},
            allow_val_change=True,
            reinit="finish_previous",
            settings=wandb.Settings(console="off"),  # the progress bar stays on the terminal
        )
        self._run.define_metric("*", step_metric="step")
        self.header = {"logger": "wandb", "run": self._run.id}

    def log(self, index: int, row: Row) -> None:
        """Take a row."""
        self._run.log({"step": row["step"], **dict(numbers(row))}, step=index, commit=True)

    def finish(self, error: BaseException | None) -> None:
        """End, well or by ``error``."""
        self._run.finish(exit_code=0 if error is None else 1)


class Mlflow:
    """A run of MLflow, where ``MLFLOW_TRACKING_URI`` says, or else where MLflow would put it."""

    def __init__(self, folder: Path, config: dict[str, Any], header: Header | None):
        """Begin, or go on with the run of ``header``."""
        mlflow: Any = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        where = header["where"] if header else mlflow.get_tracking_uri()
        self._client: Any = mlflow.MlflowClient(tracking_uri=where)
        settings = {key: str(value)[:6000] for key, value in flat(config)}
        if header:
            self._id = header["run"]
            held = self._client.get_run(self._id).data.params
            self._client.update_run(self._id, status="RUNNING")
            for key, value in settings.items():  # a parameter of MLflow is written once
                if held.get(key) != value:
                    self._client.set_tag(self._id, f"resumed.{key}", value)
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            run = self._client.create_run(
                experiment, tags={"folder": str(folder.resolve())}, run_name=name_of(folder)
            )
            self._id = run.info.run_id
            left = iter([self._entities.Param(key, value) for key, value in settings.items()])
            while part := list(itertools.islice(left, 100)):  # of a request, at most
                self._client.log_batch(self._id, params=part)
        self.header = {"logger": "mlflow", "run": self._id, "where": where}

    def log(self, index: int, row: Row) -> None:
        """Take a row; what a name of MLflow may not hold becomes ``_``."""
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id,
            metrics=[
                self._entities.Metric(re.sub(r"[^\w\-. /:]", "_", name), number, now, row["step"])
                for name, number in numbers(row)
            ],
        )

    def finish(self, error: BaseException | None) -> None:
        """End, well or by ``error``."""
        ended = "KILLED" if isinstance(error, Interrupted) else "FAILED"
        self._client.set_terminated(self._id, "FINISHED" if error is None else ended)


LOGGERS: dict[str, type[Logger]] = {"wandb": Wandb, "mlflow": Mlflow}


def demand(name: str | None) -> None:
    """Refuse the logger called ``name`` where its package is missing.

    Raises:
        ConfigError: it is.
    """
    if name in LOGGERS:
        require(f"--logger {name}", name, name)


class Log:
    """A run's logger while the run goes on; once it has failed it is left alone."""

    def __init__(self, name: str, session: Session, tell: Tell):
        """Begin with the logger called ``name``, or go on where the run's folder has one of it."""
        path, self._tell = session.folder / LEDGER, tell
        header, lines = ledger(session.folder)
        known = header if header and header["logger"] == name else None
        self._name = name
        logger = LOGGERS[name](session.folder, session.config.to_dict(), known)
        self._taken = {(row["kind"], row["step"]) for row in lines} if known else set()
        kept = [logger.header, *(lines if known else ())]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(path, lambda file: file.write(text.encode()))
        self._ledger = open(path, "a")  # noqa: SIM115 - closed by finish()
        self._logger: Logger | None = logger

    def __call__(self, row: Row) -> None:
        """Send a row that was not sent before."""
        which = (row["kind"], row["step"])
        if self._logger is None or which in self._taken:
            return
        try:
            self._logger.log(len(self._taken), row)
            self._taken.add(which)
            self._ledger.write(json.dumps({"kind": which[0], "step": which[1]}) + "\n")
            self._ledger.flush()
        except Exception as error:  # of a network, a disk, a package that is not ours
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        logger, self._logger = self._logger, None
        if logger is not None:
            with contextlib.suppress(Exception):
                logger.finish(error)
        self._tell(
            f"{failed(self._name, error)}; training goes on without it, metrics.jsonl has every "
            "row, and a resumed run sends what is missing."
        )

    def finish(self, error: BaseException | None) -> None:
        """End, well or by ``error``."""
        try:
            if self._logger is not None:
                self._logger.finish(error)
        except Exception as own:
            self._logger = None
            self._tell(f"{failed(self._name, own)}; the run itself is whole.")
        finally:
            self._ledger.close()


def failed(name: str, error: Exception) -> str:
    """What became of a logger, as the beginning of a sentence."""
    reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
    return f"the logger {name} failed ({type(error).__name__}: {reason})"


def ledger(folder: Path) -> tuple[Header | None, list[dict[str, Any]]]:
    """The header of a run's ledger, None where there is none, and kind and step of its rows."""
    try:
        found = [row for _, row in files.rows(folder / LEDGER) if row is not None]
    except FileNotFoundError:
        return None, []
    header = found[0] if found else {}
    known = isinstance(header.get("logger"), str) and header["logger"] in LOGGERS
    if not known or not isinstance(header.get("run"), str):
        return None, []
    return header, [row for row in found[1:] if {"kind", "step"} <= row.keys()]


@contextmanager
def logging(name: str | None, session: Session, tell: Tell) -> Iterator[Callable[[Row], None]]:
    """What takes the rows of a run for a logger, begun here and ended with the run.

    Args:
        name: of the logger; None goes on with the one that the run's folder names, if any;
            ``"none"`` is none.
        session: of the run.
        tell: of a logger that fails, once; training goes on.

    Raises:
        ConfigError: a logger that was asked for by name cannot begin.
    """
    log, asked = None, name
    if session.ranks.leader:
        name = asked or (ledger(session.folder)[0] or {"logger": "none"})["logger"]
        try:
            if name in LOGGERS:
                demand(name)
                log = Log(name, session, tell)
        except Exception as error:
            if asked:
                raise ConfigError(
                    f"{failed(str(name), error)}; mend that and go on with: targetprop resume "
                    f"{session.folder} --logger {name}."
                ) from error
            tell(f"{failed(str(name), error)}; training goes on without it.")
    error = None
    try:
        yield log or (lambda row: None)
    except BaseException as raised:
        error = raised
        raise
    finally:
        if log is not None:
            log.finish(error)
