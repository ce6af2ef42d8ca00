"""Starting a run and going on with one: what may differ from before, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from targetprop.ranks import SINGLE, Ranks
from targetprop.training import checkpoint
from targetprop.training.build import set_up
from targetprop.training.checkpoint import CheckpointError
from targetprop.training.config import Config, ConfigError, flat, load
from targetprop.training.device import weight_dtype
from targetprop.training.loggers import LEDGER
from targetprop.training.logging import as_json, environment
from targetprop.training.loop import run, save
from targetprop.training.session import Session

__all__ = ["refuse_used", "resume", "run", "start", "take_up"]

FIXED = ("network.", "algorithm.name", "algorithm.solver", "algorithm.variant", "optimizer.name")
FIXED += ("data.name", "data.batch_size", "data.validation", "data.limit", "data.image_size")
FIXED += ("seed",)
"""Beginnings of the settings without which a checkpoint's state means nothing."""

RATES = ("optimizer.", "schedule.", "epochs", "steps")
"""Beginnings of the settings that the optimizer's and the schedule's states hold too."""

Tell = Callable[[str], None]


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
            write_config(config, folder)
            (folder / LEDGER).unlink(missing_ok=True)  # of a run that is gone
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written ({error.strerror}); give another --out."
            ) from error
        record = environment(next(session.net.parameters()).device, config.seed)
        record["ranks"] = {"data": ranks.data.size, "layers": ranks.layers.size}
        checkpoint.write_text(folder / "environment.json", as_json(record))
    save(session)
    return session


def write_config(config: Config, folder: Path, name: str = "config.yaml") -> None:
    """Keep a configuration in a folder, by default that of its run."""
    settings = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    checkpoint.write_text(folder / name, settings)


def refuse_used(folder: Path) -> None:
    """Raise ``ConfigError`` where ``folder`` holds a run that has come to a checkpoint."""
    if any((folder / name).exists() for name in ("last.pt", "previous.pt", "best.pt")):
        raise ConfigError(
            f"{folder} already holds a run; resume it (targetprop resume {folder}) "
            "or give another --out."
        )
    left = next((n for n in ("result.json", "metrics.jsonl") if (folder / n).exists()), None)
    if left:
        raise ConfigError(
            f"{folder} holds {left} of a run whose checkpoints are gone, which a new run would "
            "replace; give another --out, or move it away."
        )


def resume(
    config: Config,
    folder: Path,
    name: str = "last.pt",
    ranks: Ranks = SINGLE,
    tell: Tell = lambda text: None,
) -> Session:
    """Take up a run at its last checkpoint or the one called ``name``; other ranks may do it.

    Settings of the optimizer, of the schedule and of the length of the run that differ from the
    checkpoint's take effect from here on, as a run that had them from the start would have them
    at this step. Those that the state depends on are refused.

    Args:
        config: as asked for now.
        folder: of the run.
        name: of the checkpoint.
        ranks: the processes.
        tell: of what cannot be as in one uninterrupted run.

    Raises:
        ConfigError: a setting that cannot change.
        CheckpointError: no such checkpoint, or one that does not belong to this run.
    """
    path = folder / name
    if name == "last.pt" and not path.exists() and not (folder / "previous.pt").exists():
        return start(config, folder, ranks)  # it was stopped before its first checkpoint
    state = checkpoint.load(path)
    changed = changes(config, state, path)
    session = set_up(config, folder, ranks)
    session.restore(state, path, any(key.startswith(RATES) for key in changed))
    demand_more(session, changed)
    whole = session.config.schedule.name == "cosine" and session.config.schedule.period is None
    if whole and {"epochs", "steps"} & set(changed):
        tell(
            f"the learning rate is that of a run of {session.last_step} steps from here on; "
            f"the {session.progress.step} steps before had that of the run as it was."
        )
    if session.progress.best >= 0 and not (folder / "best.pt").is_file():
        tell("best.pt is gone: the best weights are chosen anew from here on.")
        session.progress.best = -1.0
    ranks.world.wait()  # until all have read it
    if ranks.leader:
        checkpoint.remove_parts(folder)
        if name != "last.pt":  # a damaged last.pt must not become the next one's only predecessor
            checkpoint.set_aside(folder / "last.pt")
            checkpoint.save(folder / "last.pt", session.state())
        if changed:
            write_config(config, folder)
        if session.progress.step < session.last_step:
            (folder / "result.json").unlink(missing_ok=True)
    return session


def demand_more(session: Session, changed: Sequence[str]) -> None:
    """Refuse what would change a finished run's configuration and train nothing.

    Raises:
        ConfigError: all its steps are done.
    """
    idle = [key for key in changed if key.startswith(RATES)]
    step, last = session.progress.step, session.last_step
    if idle and step >= last:
        raise ConfigError(
            f"{session.folder} is finished: {step} steps are done, and {last} are asked for "
            f"(epochs={session.config.epochs} of {len(session.train)} steps, "
            f"steps={session.config.steps}), so {', '.join(idle)} would change nothing; give more "
            "--epochs, or --steps within them."
        )


def demand_own(config: Config, state: dict, path: Path) -> None:
    """Refuse a checkpoint of another run than that of ``config``.

    Raises:
        ConfigError: it was trained with another network, algorithm, seed or other data.
        CheckpointError: it holds no configuration.
    """
    try:
        changes(config, state, path)
    except ConfigError as error:
        raise CheckpointError(f"{path}: is of another run than {path.parent} ({error})") from error


def changes(config: Config, state: dict, path: Path) -> list[str]:
    """The settings that differ from those of a checkpoint.

    Raises:
        ConfigError: one that cannot change.
        CheckpointError: the checkpoint holds no configuration.
    """
    held = state.get("config")
    if not isinstance(held, dict):
        raise CheckpointError(f"{path}: holds no configuration; use another.")
    before, now = dict(flat(held)), dict(flat(config.to_dict()))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    for key in changed:
        fixed = key.startswith(FIXED)
        if key == "dtype":
            before_dtype: Any = before.get(key)
            fixed = weight_dtype(before_dtype) != weight_dtype(config.dtype)
        if fixed:
            raise ConfigError(
                f"{key}={now.get(key)} cannot be taken up by a run with {key}={before.get(key)}; "
                "leave it out, or train anew."
            )
    return changed


def differences(a: Config, b: Config) -> str:
    """The keys in which two configurations differ, where the data lie apart."""
    # options of networks may be of one of them only
    ours, theirs = (dict(flat(one.to_dict())) for one in (a, b))
    return ", ".join(
        key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and key != "data.dir"
    )


def refuse_other(config: Config, folder: Path) -> None:
    """Refuse a folder of another run, wherever its data lie.

    Raises:
        ConfigError: it was begun with other settings.
    """
    path = folder / "config.yaml"
    if not path.exists() and (folder / "result.json").exists():
        raise ConfigError(
            f"{folder} holds a result without its config.yaml, of nobody knows which run; move it "
            "away, or give another --out."
        )
    if path.exists() and (held := differences(load(str(path)), config)):
        raise ConfigError(f"{folder} holds a run with other settings ({held}); give another --out.")


def take_up(config: Config, folder: Path) -> Session:
    """Resume the run in ``folder``; start it where there is none, or none that has a checkpoint.

    Raises:
        ConfigError: it holds a run with other settings.
    """
    refuse_other(config, folder)
    for name in ("last.pt", "previous.pt"):
        if (folder / name).exists():
            return resume(config, folder, name)
    return start(config, folder)
