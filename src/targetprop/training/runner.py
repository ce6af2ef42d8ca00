"""A training run, read from top to bottom: set up, loop, checkpoint, finish; resumed runs go on bit for bit."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from targetprop import data
from targetprop.algorithms import ALGORITHMS, LDRL, Algorithm, Attached, Report
from targetprop.algorithms.ldrl import AttachedLDRL
from targetprop.analysis.alignment import alignment_of_grad, attached_angles
from targetprop.data import Batches, Dataset, Images
from targetprop.feedback import SOLVERS, Fixed
from targetprop.laboratory import networks
from targetprop.laboratory.pairing import Network
from targetprop.models import MODELS
from targetprop.ranks import Group, Ranks
from targetprop.training import checkpoint
from targetprop.training.checkpoint import CheckpointError
from targetprop.training.config import Config, ConfigError
from targetprop.training.device import layout, pick_device, prepare, weight_dtype
from targetprop.training.logging import Metrics, environment


class Diverged(Exception):
    """A loss or a weight that is no longer finite; the message names layer and step."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""

    def __init__(self, message: str, number: int):
        """Keep the signal's ``number`` for the exit code."""
        super().__init__(message)
        self.number = number


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: the current epoch, from 0.
        batch: batches of it that are done.
        step: steps done.
        seconds: spent in steps (backward and optimizer), without evaluation and measurements.
        best: the best validation accuracy so far; -1 before the first.

    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0


@dataclass
class Session:
    """All that a run consists of while it runs."""

    config: Config
    folder: Path
    net: nn.Module
    algo: Algorithm
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    train: Batches
    validation: Batches | None
    test: Batches
    progress: Progress
    ranks: Ranks

    @property
    def last_step(self) -> int:
        """Steps of the whole run."""
        full = self.config.epochs * len(self.train)
        return min(full, self.config.steps or full)

    def state(self) -> dict[str, Any]:
        """All that resuming needs, as tensors and plain values."""
        return {
            "config": self.config.to_dict(),
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "algorithm": self.algo.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Take up the state of a checkpoint."""
        load_weights(self.net, state, path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.algo.load_state_dict(state["algorithm"])
        self.progress = Progress(**state["progress"])


def load_data(config: Config) -> Dataset:
    """The data set of a configuration."""
    dataset = data.load(config.data.name, config.data.dir, config.data.image_size)
    if config.data.limit:
        dataset = dataclasses.replace(dataset, train=dataset.train[slice(0, config.data.limit)])
    return dataset


def build_network(config: Config, dataset: Dataset) -> nn.Module:
    """The network for the data set's images, run once to see that they fit.

    Raises:
        ConfigError: they do not.

    """
    if config.network.name not in networks.NETWORKS:
        return build_model(config, dataset.in_shape, dataset.classes)
    chosen = {"channels": config.network.channels, "activation": config.network.activation}
    given: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    make = networks.NETWORKS[config.network.name]
    if config.network.batch_norm:
        if "batch_norm" not in inspect.signature(make).parameters:
            raise ConfigError(f"network '{config.network.name}' has no batch normalisation; drop network.batch_norm.")
        given["batch_norm"] = True
    try:
        net = make(dataset.in_shape, dataset.classes, bias=config.network.bias, feedback=config.network.feedback, **given)
        with torch.no_grad():
            net(torch.zeros(1, *dataset.in_shape))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"network '{config.network.name}' does not fit images of shape {dataset.in_shape}: {reason}"
        ) from error
    return net


def maker(name: str) -> Callable[..., Any]:
    """The callable that ``package.module:make`` names, or one of the library's models.

    Raises:
        ConfigError: there is none.

    """
    if name in MODELS:
        return MODELS[name]
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:  # and stays: the module may import others of that place when it runs
        sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's own code
        raise ConfigError(
            f"network.name={name} cannot be imported ({type(error).__name__}: {error}); write package.module:make, importable "
            "from the working directory."
        ) from error
    if not callable(made):
        raise ConfigError(f"network.name={name} is {type(made).__name__}; expected a callable make(in_shape, classes, ...).")
    return made


def build_model(config: Config, in_shape: Sequence[int], classes: int) -> nn.Module:
    """A plain module, ours or the user's, run once to see that it gives logits.

    Raises:
        ConfigError: it cannot be made, or gives something else.

    """
    name, options = config.network.name, config.network.options
    make = maker(name)
    try:
        net = make(in_shape, classes, **options)
    except Exception as error:  # the user's own code
        given = ", ".join([str(in_shape), str(classes), *(f"{k}={v}" for k, v in options.items())])
        raise ConfigError(f"network '{name}' could not be made by make({given}): {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise ConfigError(f"network '{name}' made {type(net).__name__}, expected a torch.nn.Module.")
    mode = net.training
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(2, *in_shape))
    except Exception as error:  # the user's own code
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"network '{name}' does not fit images of shape {in_shape}: {reason}") from error
    net.train(mode)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, classes):
        raise ConfigError(
            f"network '{name}' made {shape} of 2 images, expected logits (2, {classes}); return a tensor of one row a sample."
        )
    return net


def over(own: Any, section: Any) -> Any:
    """The solver of ``section``; where a rule's ``own`` is of its kind, that one with what ``section`` changes."""
    if type(own) is not type(section):
        return section
    default = type(section)()
    changed = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    return dataclasses.replace(own, **{key: value for key, value in changed.items() if value != getattr(default, key)})


def build_algorithm(config: Config, net: nn.Module, example: Tensor | None = None) -> Algorithm:
    """The algorithm with its solver; ``example``: two images, by which a plain module is attached."""
    settings = config.algorithm
    kind = ALGORITHMS[settings.name]
    carried: Any = (
        kind if issubclass(kind, Attached) else AttachedLDRL if kind is LDRL and not isinstance(net, Network) else None
    )
    kwargs: dict[str, Any] = {"loss": settings.loss, "label_smoothing": settings.label_smoothing, "seed": config.seed}
    kwargs |= {"variant": settings.variant, **dataclasses.asdict(config.drl)}
    if settings.beta is not None:
        kwargs["beta"] = settings.beta
    taken = set(inspect.signature(kind).parameters)
    names = {solver: name for name, solver in SOLVERS.items()}
    if carried and carried.rule_type is not None:
        own = carried.rule_type().solver()
        taken |= {field.name for field in dataclasses.fields(carried.rule_type)}
        solver = settings.solver or (None if isinstance(own, Fixed) else names[type(own)])
        kwargs["example_inputs"] = () if example is None else (example,)
        taken.add("example_inputs")
        if solver is not None:
            kwargs["solver"] = over(own, getattr(config, solver, None) or SOLVERS[solver]())
    else:
        solver = settings.solver or names.get(getattr(kind, "default_solver", None))
        if solver is not None:
            kwargs["solver"] = getattr(config, solver, None) or SOLVERS[solver]()
    kwargs = {key: value for key, value in kwargs.items() if key in taken}
    try:
        return kind(net, **kwargs)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def build_optimizer(config: Config, net: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all weights; those without a gradient it leaves alone."""
    settings = config.optimizer
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if settings.name in kinds:
        return kinds[settings.name](net.parameters(), settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(net.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def build_schedule(config: Config, optimizer: torch.optim.Optimizer, steps: int, epochs: int):
    """The learning rate's schedule, ticked per step or epoch."""
    settings = config.schedule
    if settings.name == "cosine":
        period = settings.period or (steps if settings.unit == "step" else epochs)
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, period, settings.minimum)
    if settings.name == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, settings.period, settings.factor)  # type: ignore[arg-type]
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)


def set_up(config: Config, folder: Path, ranks: Ranks = Ranks()) -> Session:  # noqa: B008 - immutable
    """Build everything of a run; weights are drawn from the configuration's seed.

    Raises:
        ConfigError: the configuration cannot be run here.

    """
    device, dtype = pick_device(config.device), weight_dtype(config.dtype)
    dataset = load_data(config)
    torch.manual_seed(config.seed)
    net = build_network(config, dataset)
    form = layout(net, config.memory_format)
    net = prepare(net, device, config.dtype, config.memory_format)
    algo = build_algorithm(config, net, torch.zeros(2, *dataset.in_shape, dtype=dtype, device=device))
    if config.compile != "off":
        algo.compile(config.compile)
    try:
        algo.distribute(ranks)
    except ValueError as error:
        raise ConfigError(str(error)) from error

    def batches(images: Images, peers: Group, augment: str = "none") -> Batches:
        moved = Images(images.images.to(device), images.labels.to(device))
        size, padding = config.data.batch_size, config.data.padding
        return Batches(moved, dataset.mean, dataset.std, size, dtype, augment, padding, config.seed, form, peers)

    rest, held_out = data.split(dataset.train, config.data.validation)
    size = min(config.data.batch_size, len(rest))
    if size % ranks.data.size:
        raise ConfigError(
            f"data.batch_size={size} cannot be split evenly over {ranks.data.size} processes; give a multiple of that."
        )
    train = batches(rest, ranks.data, config.data.augment)
    steps = min(config.epochs * len(train), config.steps or config.epochs * len(train))
    optimizer = build_optimizer(config, net)
    algo.follow(optimizer)
    schedule = build_schedule(config, optimizer, steps, config.epochs)
    validation = batches(held_out, ranks.world) if len(held_out) else None
    test = batches(dataset.test, ranks.world)
    return Session(config, folder, net, algo, optimizer, schedule, train, validation, test, Progress(), ranks)


def load_weights(net: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into ``net``.

    Raises:
        CheckpointError: names or shapes differ.

    """
    try:
        net.load_state_dict(state["net"])
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: its weights do not fit this network ({reason}); use the run's own configuration."
        ) from error


@torch.no_grad()
def accuracy(net: nn.Module, algo: Algorithm, batches: Batches) -> dict[str, float]:
    """Mean loss and top-1 accuracy over a set, in evaluation mode; top-5 too where there are more than 10 classes."""
    net.eval()
    found = torch.zeros(4, dtype=torch.float64)  # sums of loss, top-1 and top-5; whether there are more than 10 classes
    for x, y in batches.once():
        logits = net(x)
        top5 = logits.topk(min(5, logits.shape[1])).indices
        hits = (logits.argmax(1) == y).sum().item(), (top5 == y[:, None]).any(1).sum().item()
        found += torch.tensor([algo.loss(logits, y).item() * len(y), *hits, float(logits.shape[1] > 10)], dtype=torch.float64)
    net.train()
    batches.peers.total_(found)
    loss, top1, top5, wide = (found / len(batches.data)).tolist()
    return {"loss": loss, "accuracy": top1, **({"top5": top5} if wide else {})}


def first_nonfinite(net: nn.Module, x: Tensor) -> str:
    """The first layer whose weights, or else whose output on x, are not finite."""
    if not isinstance(net, Network):
        bad = next((name for name, p in net.named_parameters() if not p.isfinite().all()), None)
        return "the network's output" if bad is None else f"the parameter '{bad}'"
    for name, layer in zip(net.names, net.layers, strict=True):
        if not all(p.isfinite().all() for p in layer.forward_map.parameters()):
            return f"the weights of layer '{name}'"
    with torch.no_grad():
        for name, (_, trace) in zip(net.names, net.leaf_traces(net.trace(x)[1]), strict=True):
            if not trace.output.isfinite().all():
                return f"the output of layer '{name}'"
    return f"the loss on the output of layer '{net.names[-1]}'"


def measure(session: Session, x: Tensor, y: Tensor) -> dict[str, float]:
    """Angle of each layer's update, as it stands in ``.grad``, to the backprop gradient of the same batch."""
    if isinstance(session.algo, Attached):
        return attached_angles(session.net, session.algo, x, y)
    net: Any = session.net
    aligned = alignment_of_grad(net, session.algo, x, y)
    return {name: angle for name, (angle, _) in zip(net.names, aligned, strict=True)}


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
    """A list that receives the number of SIGINT or SIGTERM instead of their breaking into a step."""
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


Tell = Callable[[Session, float], None]


def run(session: Session, tell: Tell = lambda session, loss: None, deadline: float = float("inf")) -> dict[str, Any]:
    """Train until the last step, evaluating at each epoch's end; then test the selected weights once.

    Args:
        session: a run at any point of its progress.
        tell: called after every step, to show progress.
        deadline: time.monotonic() at which to stop as if asked to.

    Returns:
        the result, also written to ``result.json``.

    Raises:
        Diverged: loss or weights are not finite.
        Interrupted: SIGINT or SIGTERM came, or the deadline passed; the step in progress was finished and saved.

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


def train_epoch(session: Session, metrics: Metrics, stop: list[int], tell: Tell, deadline: float) -> None:
    """The rest of the current epoch."""
    config, progress = session.config, session.progress
    loss = 0.0
    for x, y in session.train.epoch(progress.epoch, progress.batch):
        began = time.perf_counter()
        report = step(session, x, y)
        due = config.measure_every and progress.step % config.measure_every == 0
        logged = due or progress.step % config.log_every == 0
        if logged or x.device.type == "cpu":  # elsewhere reading the loss would make the device wait at every step
            loss = report.loss.item()
        progress.seconds += time.perf_counter() - began
        if not loss < float("inf"):
            raise Diverged(
                f"loss {loss} at step {progress.step}: {first_nonfinite(session.net, x)} is not finite; {kept(session)}"
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
        number = session.ranks.world.maximum(stop[0] if stop else 0)  # a signal may reach one rank a step before another
        if number:
            save(session)
            raise Interrupted(f"stopped at step {progress.step}; go on with: targetprop resume {session.folder}", number)
        if progress.step >= session.last_step:
            break
        if config.checkpoint_every and progress.step % config.checkpoint_every == 0:
            save(session)


def step(session: Session, x: Tensor, y: Tensor) -> Report:
    """One update's gradient."""
    session.optimizer.zero_grad()
    return session.algo.backward(x, y)


def log_step(session: Session, metrics: Metrics, report: Report, loss: float, y: Tensor, angles: dict[str, float]) -> None:
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
    mismatch = {name: f.mismatch.item() for name, f in report.feedback.items() if f.mismatch is not None}
    iterations = {name: f.iterations for name, f in report.feedback.items()}
    for key, own in (("mismatch", mismatch), ("iterations", iterations)):
        of_all = {name: value for part in session.ranks.layers.gather(own) for name, value in part.items()}
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
        metrics.write("validation", progress.step, epoch=progress.epoch, seconds=progress.seconds, **scores)
        best = scores["accuracy"] > progress.best
        progress.best = max(progress.best, scores["accuracy"])
    if session.config.schedule.unit == "epoch":
        session.schedule.step()
    progress.epoch += 1
    progress.batch = 0
    save(session, best)


def finish(session: Session, metrics: Metrics) -> dict[str, Any]:
    """Test once: the best weights by validation, or the last where nothing was held out."""
    last = accuracy(session.net, session.algo, session.test)
    selected = last
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
        checkpoint.write_text(session.folder / "result.json", _json(result))
    return result


def refuse_used(folder: Path) -> None:
    """A new run needs a folder of its own.

    Raises:
        ConfigError: the folder holds a run already.

    """
    if any((folder / name).exists() for name in ("config.yaml", "last.pt", "metrics.jsonl")):
        raise ConfigError(f"{folder} already holds a run; resume it (targetprop resume {folder}) or give another --out.")


def start(config: Config, folder: Path, ranks: Ranks = Ranks()) -> Session:  # noqa: B008 - immutable
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
            checkpoint.write_text(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written ({error.strerror}); give another --out.") from error
        record = environment(next(session.net.parameters()).device, config.seed)
        record["ranks"] = {"data": ranks.data.size, "layers": ranks.layers.size}
        checkpoint.write_text(folder / "environment.json", _json(record))
    save(session)
    return session


def resume(config: Config, folder: Path, name: str = "last.pt", ranks: Ranks = Ranks()) -> Session:  # noqa: B008 - immutable
    """Take up a run where its last checkpoint stands, or the one called ``name``; the number of ranks may be another."""
    session = set_up(config, folder, ranks)
    path = folder / name
    session.restore(checkpoint.load(path), path)
    ranks.world.wait()  # until all have read it
    if ranks.leader:
        checkpoint.remove_parts(folder)
        if name != "last.pt":  # a damaged last.pt must not become the only predecessor of the next one
            checkpoint.write_atomically(folder / "last.pt", lambda file: file.write(path.read_bytes()))
    return session


def take_up(config: Config, folder: Path) -> Session:
    """Resume the run in ``folder``, or start it where there is none, or none that has come to its first checkpoint."""
    if (folder / "last.pt").exists():
        return resume(config, folder)
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)
    return start(config, folder)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
