"""The forward network of a run, alone, in formats that others read; ω stay behind.

What is exported is made anew from the configuration, as a plain module that was never attached,
and takes θ, b and the buffers of a checkpoint. Every file is read back, by its format's own
reader, and its logits compared with those of the run's network before it is put in its place.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import targetprop
from targetprop.data import Batches, Dataset
from targetprop.laboratory.pairing import Network
from targetprop.maps import is_feedback
from targetprop.training import build, checkpoint, files, runner
from targetprop.training.config import Config, ConfigError, load, place
from targetprop.training.device import prepare, weight_dtype
from targetprop.training.files import FileError
from targetprop.training.session import demand_same_data, load_weights

IMAGES = 256
"""Test images, at most, on which a file is compared with the run's network."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference of two logits, over the largest logit: readers sum in other orders."""

RECORD = "targetprop.json"
"""Within a ``pt2`` archive: what the other formats have as metadata."""

Written = tuple[bytes, Callable[[Tensor], Tensor]]
"""A file's content; normalised images ↦ logits, by what was read back of it."""


@dataclasses.dataclass(frozen=True)
class Export:
    """A forward network that is ready to be written.

    Attributes:
        make: makes the network anew, with other weights.
        net: the network, evaluating.
        images: normalised test images.
        logits: of the run's own network on them.
        record: name, classes, shape of an image and more, as text.
    """

    make: Callable[[], nn.Module]
    net: nn.Module
    images: Tensor
    logits: Tensor
    record: dict[str, str]

    def content(self, kind: str) -> bytes:
        """The file of format ``kind``, which was read back and gave the same logits.

        Raises:
            ConfigError: the network cannot be written so, or what was read back differs.
        """
        name = self.record["network"]
        try:
            with torch.no_grad(), quiet():
                content, read = FORMATS[kind].write(self)
                found = [read(self.images), read(self.images[:1])]
        except Exception as error:  # of torch, onnx, onnxruntime, and the user's own code
            reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
            raise ConfigError(
                f"network '{name}' cannot be exported as {kind} ({type(error).__name__}: "
                f"{reason}); give another --format, or a forward pass that torch.export can follow."
            ) from error
        for logits in found:
            demand_same(logits, self.logits[: len(logits)], f"the {kind} file of network '{name}'")
        return content


def prepared(config: Config, folder: Path, weights: str) -> Export:
    """The forward network of a run's checkpoint, on the CPU.

    Args:
        config: of the run.
        folder: of the run.
        weights: ``"best"`` or ``"last"``.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of other data or another network.
        ConfigError: the plain network does not answer as the run's does, or names θ as ω.
    """
    dtype = weight_dtype(config.dtype)
    config = dataclasses.replace(
        config,
        device="cpu",
        compile="off",
        memory_format="contiguous",
        dtype="float64" if dtype == torch.float64 else "float32",
    )
    path = folder / f"{weights}.pt"
    state = checkpoint.load(path)
    runner.demand_own(config, state, path)
    dataset = build.load_data(config)
    demand_same_data({"classes": dataset.fingerprint["classes"]}, state, path)
    images = test_images(dataset, dtype)
    torch.manual_seed(config.seed)
    whole = build.build_network(config, dataset)
    whole = prepare(whole, torch.device("cpu"), config.dtype, config.memory_format)
    build.build_algorithm(config, whole, images[:2])
    load_weights(whole, state, path)
    net = plain(config, dataset, state, path)
    with torch.no_grad():
        wanted = whole.eval()(images)
        demand_same(net(images), wanted, f"the plain network '{config.network.name}'")
    record = {
        "network": config.network.name,
        "options": json.dumps(network_options(config)),
        "classes": str(dataset.classes),
        "class_names": json.dumps(list(dataset.names) or [str(i) for i in range(dataset.classes)]),
        "input_shape": json.dumps(list(dataset.in_shape)),
        "mean": json.dumps(list(dataset.mean)),
        "std": json.dumps(list(dataset.std)),
        "data": dataset.name,
        "algorithm": config.algorithm.name,
        "weights": weights,
        "commit": str(commit_of(folder)),
        "targetprop": targetprop.__version__,
    }
    return Export(lambda: plain(config, dataset), net, images, wanted, record)


def network_options(config: Config) -> dict[str, Any]:
    """What the run's network was made with beside its name, without what is left to its default."""
    own = {k: v for k, v in dataclasses.asdict(config.network).items() if v is not None}
    return {k: v for k, v in own.items() if k not in ("name", "options")} | config.network.options


def load_network(
    run: str | Path, weights: str = "last", data_dir: str | Path | None = None
) -> nn.Module:
    """The forward network of a run as a module of its own, evaluating, without feedback.

    What ``targetprop export`` writes, in Python: of a network of ``targetprop.pair`` the
    ``nn.Sequential`` that was paired.

    Args:
        run: the run's folder.
        weights: ``"last"`` or ``"best"``.
        data_dir: where its data lie, if not where they were; their shapes make the network.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: the checkpoint is missing, damaged or of another run.

    Example:
        >>> tp.load_network("runs/mine")  # doctest: +SKIP
    """
    folder = place(str(run))
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} holds no run (no config.yaml); name a run's folder.")
    moved = [] if data_dir is None else [("data.dir", str(data_dir))]
    return prepared(load(str(folder / "config.yaml"), moved), folder, weights).net


def commit_of(folder: Path) -> str | None:
    """The commit that a run was trained with, where its environment says so."""
    try:
        return files.read_json(folder / "environment.json").get("commit")
    except (FileNotFoundError, FileError):
        return None


def test_images(dataset: Dataset, dtype: torch.dtype) -> Tensor:
    """The first test images, normalised."""
    test = dataset.test[slice(0, IMAGES)]
    batches = Batches(test, dataset.mean, dataset.std, len(test), dtype)
    return batches.normalise(test.images)


def plain(
    config: Config, dataset: Dataset, state: dict[str, Any] | None = None, path: Path = Path()
) -> nn.Module:
    """The network as a module without feedback, evaluating; of a network of ``pair`` its source.

    Args:
        config: of the run.
        dataset: its data.
        state: of the checkpoint whose weights it takes; without, they are as drawn.
        path: of the checkpoint.

    Raises:
        ConfigError: a parameter of the user's own is named as feedback is.
    """
    made: Any = build.build_network(config, dataset).to(weight_dtype(config.dtype))
    if isinstance(made, Network):
        if state is not None:
            load_weights(made, state, path)
        net: Any = made if made.source is None else made.source[0]
        for module in net.modules():
            for name in [name for name in module._parameters if is_feedback(name)]:
                delattr(module, name)
    else:
        net, own = made, made.state_dict()
        if state is not None:
            kept = {k: v for k, v in state["net"].items() if k in own or not is_feedback(k)}
            load_weights(net, {"net": kept}, path)
    for name in net.state_dict():
        if is_feedback(name):
            raise ConfigError(
                f"parameter '{name}' of network '{config.network.name}' is named as feedback "
                "weights are, which are not exported; give it another name."
            )
    return net.eval()


def demand_same(found: Tensor, wanted: Tensor, what: str) -> None:
    """Refuse logits that are not those of the run's network.

    Raises:
        ConfigError: they differ by more than rounding.
    """
    fits = found.shape == wanted.shape and found.dtype == wanted.dtype
    off = (found - wanted).abs().max().item() if fits else float("nan")
    allowed = TOLERANCE[wanted.dtype] * max(1.0, wanted.abs().max().item())
    if not off <= allowed:
        raise ConfigError(
            f"{what} gives other logits than the run's network (by {off:.2g}, expected at most "
            f"{allowed:.2g}); its forward pass must depend on its input and its state_dict alone."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' own remarks; what goes wrong they raise."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def any_number() -> tuple[dict[int, Any]]:
    """The shapes that vary: images come in batches of any size."""
    return ({0: torch.export.Dim("batch")},)


def safetensors(export: Export) -> Written:
    """The ``state_dict``, tied weights once per name; read into a network made anew."""
    library: Any = importlib.import_module("safetensors.torch")
    own = {name: t.detach().clone().contiguous() for name, t in export.net.state_dict().items()}
    content = library.save(own, export.record)
    again = export.make()
    again.load_state_dict(library.load(content))
    return content, again


def onnx(export: Export) -> Written:
    """An ONNX graph from ``images`` to ``logits``; read by onnxruntime."""
    runtime: Any = importlib.import_module("onnxruntime")
    program: Any = torch.onnx.export(
        export.net,
        (export.images[:3],),
        dynamo=True,
        dynamic_shapes=any_number(),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    program.model.metadata_props.update(export.record)
    content = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def read(images: Tensor) -> Tensor:
        answer: Any = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(answer[0])

    return content, read


def pt2(export: Export) -> Written:
    """A ``torch.export`` program; read by ``torch.export.load``."""
    program = torch.export.export(export.net, (export.images[:3],), dynamic_shapes=any_number())
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={RECORD: json.dumps(export.record)})
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


@dataclasses.dataclass(frozen=True)
class Format:
    """How a network is written, and the packages it takes beside torch."""

    write: Callable[[Export], Written]
    packages: tuple[str, ...] = ()


FORMATS = {
    "safetensors": Format(safetensors, ("safetensors",)),
    "onnx": Format(onnx, ("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format(pt2),
}
