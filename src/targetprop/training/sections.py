"""What a run can be told: a dataclass a section."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from targetprop.feedback import (
    SOLVERS,
    AdamSolver,
    CorrelationSolver,
    CoupledSolver,
    PredictiveSolver,
    ReconstructionSolver,
    SGDSolver,
)
from targetprop.feedback.solver import check_fields

Precision = Literal["float32", "float64", "tf32", "bfloat16"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]


class ConfigError(Exception):
    """A configuration that cannot be run; the message names key, value and remedy."""


def require(what: str, extra: str, *packages: str) -> None:
    """Refuse what takes a package that is not installed; ``extra`` is that which brings it.

    Raises:
        ConfigError: one is missing.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{what} needs {package}; pip install 'targetprop[{extra}]'.")


@dataclass(frozen=True)
class NetworkConfig:
    """The network.

    Attributes:
        name: one of the networks, or ``package.module:make``, to import from the working directory:
            a callable ``make(in_shape, classes, **options)``.
        options: keyword arguments of it, "resnet20" or "vit": ``--network.options.KEY VALUE``.
        channels: widths of a paired network; default its own.
        activation: likewise.
        bias: likewise, biases in forward and feedback maps.
        batch_norm: batch normalisation, in paired ResNets.
        feedback: "matched" or "mirror", of paired networks.
    """

    name: str = "simple_vgg"
    options: dict[str, Any] = field(default_factory=dict)
    channels: list[int] | None = None
    activation: str | None = None
    bias: bool = True
    batch_norm: bool = False
    feedback: Literal["matched", "mirror"] = "matched"


@dataclass(frozen=True)
class DataConfig:
    """The images.

    Attributes:
        name: of the data set.
        dir: where its files lie; default the cache folder.
        batch_size: of training.
        augment: of training images.
        padding: of random crops, in pixels.
        validation: fraction of the training images held out to select weights by; 0 keeps the last.
        limit: train on the first so many images only.
        image_size: size of the images of a folder.
    """

    name: str = "digits"
    dir: str | None = None
    batch_size: int = 128
    augment: Literal["none", "crop", "flip-crop"] = "none"
    padding: int = 4
    validation: float = 0.1
    limit: int | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class AlgorithmConfig:
    """The credit assignment rule.

    Attributes:
        name: one of the algorithms.
        beta: nudging strength of target propagation; default its own, vanishing on plain modules.
        solver: how feedback is learned, set in the section of its name; default the algorithm's.
        loss: "cross_entropy" or "mse".
        label_smoothing: of the cross-entropy.
        variant: of sign symmetry.
    """

    name: str = "ldrl"
    beta: float | None = None
    solver: str | None = None
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    label_smoothing: float = 0.0
    variant: Literal["uSF", "brSF", "frSF"] = "uSF"


@dataclass(frozen=True)
class ReconstructConfig:
    """How DRL and DDTP-linear train their feedback; see their classes.

    Attributes:
        noise: σ.
        lr: of Adam on the feedback weights.
        iterations: per layer and batch.
        damping: λ, of DRL.
        weight_decay: of the feedback weights.
        schedule: "sequential" or "parallel".
    """

    noise: float = 0.01
    lr: float = 1e-3
    iterations: int = 1
    damping: float = 0.0
    weight_decay: float = 6e-5
    schedule: Literal["sequential", "parallel"] = "sequential"

    def __post_init__(self):
        """Refuse settings out of range."""
        check_fields("drl", self)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of the weights.

    Attributes:
        name: "sgd", "adam" or "adamw".
        lr: learning rate.
        momentum: of SGD.
        weight_decay: coupled L2; decoupled with "adamw".
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over time.

    Attributes:
        name: "constant", "cosine" or "step".
        unit: what counts as a tick, a "step" or an "epoch".
        period: ticks to the cosine's minimum (default the whole run), or between drops.
        minimum: the cosine's final learning rate.
        factor: of each drop.
    """

    name: Literal["constant", "cosine", "step"] = "cosine"
    unit: Literal["step", "epoch"] = "step"
    period: int | None = None
    minimum: float = 0.0
    factor: float = 0.1


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        epochs: to train.
        steps: stop after so many steps, even within an epoch.
        seed: of weights, order of images, augmentation and feedback noise.
        device: "auto", "cpu", "cuda", ...
        dtype: "float32", "float64", "tf32" (float32, NVIDIA products TF32), "bfloat16" (products).
        compile: mode of torch.compile for the passes of the algorithm; "off" runs them as they are.
        memory_format: of images and weights; "auto" lays channels innermost where torch bears it.
        log_every: steps between metrics.
        measure_every: steps between angles to the backprop gradient, a backprop step each; 0 never.
        checkpoint_every: steps between checkpoints beside those at each epoch's end; 0 none.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    predictive: PredictiveSolver = field(default_factory=PredictiveSolver)
    coupled: CoupledSolver = field(default_factory=CoupledSolver)
    correlation: CorrelationSolver = field(default_factory=CorrelationSolver)
    sgd: SGDSolver = field(default_factory=SGDSolver)
    adam: AdamSolver = field(default_factory=AdamSolver)
    reconstruction: ReconstructionSolver = field(default_factory=ReconstructionSolver)
    drl: ReconstructConfig = field(default_factory=ReconstructConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    epochs: int = 10
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: Precision = "float32"
    compile: Literal["off", "default", "max-autotune-no-cudagraphs"] = "off"
    memory_format: MemoryFormat = "auto"
    log_every: int = 10
    measure_every: int = 50
    checkpoint_every: int = 500

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def anywhere(self) -> dict[str, Any]:
        """The same wherever the data lie: what a result depends on."""
        values = self.to_dict()
        return {**values, "data": {**values["data"], "dir": None}}


def nearest(word: str, known: Sequence[str]) -> str:
    """'did you mean …?' with the known word most like ``word``, else the list of all it may be."""
    last = [key for key in known if key.rpartition(".")[2] == word.rpartition(".")[2]]
    last.sort(key=lambda key: key.split(".")[0] in (*SOLVERS, "drl"))  # those of all runs first
    section = word.rpartition(".")[0]
    beside = [key for key in known if section and key.rpartition(".")[0] == section]
    if beside and not last:  # of keys of one section only what differs counts
        own = {key.rpartition(".")[2]: key for key in beside}
        near = difflib.get_close_matches(word.rpartition(".")[2], list(own), n=1, cutoff=0.5)
        near, known = [own[part] for part in near], beside
    else:
        near = last[:1] or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}."
