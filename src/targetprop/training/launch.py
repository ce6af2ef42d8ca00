"""Several processes for one run: torch's elastic launcher starts them here, or torchrun has."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from targetprop.ranks import Ranks, mesh
from targetprop.training.config import ConfigError

LOST = 4
"""Exit code of a process that lost contact with another one, whose own end tells the cause."""

PATIENCE = 25.0
"""Seconds after which torch, which kills what does not stop in 30, was about to do so."""

STUCK = (
    "a rank did not stop within 30 s and was killed; what was done since the last checkpoint is "
    "lost; go on with: targetprop resume RUN --auto."
)

LAUNCHED = "TARGETPROP_LAUNCHED"
"""Set in the environment of processes that ``launch`` starts and speaks for."""


@dataclass(frozen=True)
class Layout:
    """How a run is spread out.

    Attributes:
        devices: processes on every node, a GPU each where there are GPUs.
        nodes: machines.
        layer_ranks: how many of all processes share out the layers; the others share out the batch.
        rendezvous: HOST:PORT of one of several nodes, where they find each other.

    """

    devices: int = 1
    nodes: int = 1
    layer_ranks: int = 1
    rendezvous: str | None = None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: a number out of range, too few GPUs, or several nodes and no place to meet.

        """
        for name in ("devices", "nodes", "layer_ranks"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is out of range; "
                    "expected at least 1."
                )
        if not started() and self.devices * self.nodes % self.layer_ranks:
            total = self.devices * self.nodes
            raise ConfigError(
                f"--layer-ranks {self.layer_ranks} does not divide the {total} processes; "
                "give a divisor."
            )
        if torch.cuda.is_available() and self.devices > torch.cuda.device_count():
            raise ConfigError(
                f"--devices {self.devices} is more than the {torch.cuda.device_count()} GPUs here; "
                "give fewer."
            )
        if self.rendezvous is not None:
            host, _, port = self.rendezvous.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise ConfigError(f"--rendezvous {self.rendezvous} is no HOST:PORT.")
            try:
                socket.getaddrinfo(host, int(port))
            except OSError as error:
                raise ConfigError(
                    f"--rendezvous {self.rendezvous}: {host} cannot be found ({error.strerror}); "
                    "give a host that every node knows."
                ) from error
        if self.nodes > 1 and self.rendezvous is None:
            raise ConfigError(
                f"--nodes {self.nodes} needs --rendezvous HOST:PORT, the same on every node."
            )


def started() -> bool:
    """Whether this process is one of several that torchrun or ``launch`` started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join(layer_ranks: int) -> Ranks:
    """Meet the other processes, if there are any; NCCL carries CUDA tensors, Gloo all else.

    Raises:
        ConfigError: ``layer_ranks`` does not divide their number.

    """
    if not started():
        return Ranks()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        return mesh(layer_ranks)
    except ValueError as error:
        raise ConfigError(f"--layer-ranks {layer_ranks}: {error}") from error


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch(words: Sequence[str], layout: Layout) -> tuple[int, str | None]:
    """Run ``targetprop`` with ``words`` in ``layout.devices`` processes here, and wait for them.

    When one dies the others are stopped. SIGTERM and SIGINT reach all: they save and stop.

    Returns:
        (exit code, what to tell the user, if the processes have not said it themselves).

    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.launcher").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // layout.devices)))
    os.environ[LAUNCHED] = "1"
    config = LaunchConfig(
        min_nodes=layout.nodes,
        max_nodes=layout.nodes,
        nproc_per_node=layout.devices,
        run_id="targetprop",
        rdzv_backend="c10d",
        rdzv_endpoint=layout.rendezvous or "localhost:0",
        max_restarts=0,
    )
    moment: list[float] = []
    try:
        with first_signal(moment):
            elastic_launch(config, sys.executable)("-m", "targetprop", *words)
    except ChildFailedError as error:
        return verdict({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException as error:
        stuck = bool(moment) and time.monotonic() - moment[0] > PATIENCE
        return 128 + error.sigval, STUCK if stuck else None
    return 0, None


@contextmanager
def first_signal(moment: list[float]) -> Iterator[None]:
    """Let ``moment`` receive the time of the first signal, whoever handles it."""
    ours, systems = socket.socketpair()
    systems.setblocking(False)

    def listen() -> None:
        if ours.recv(1):
            moment.append(time.monotonic())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    before = signal.set_wakeup_fd(systems.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        systems.close()
        listener.join()
        ours.close()


def verdict(codes: dict[int, int]) -> tuple[int, str | None]:
    """(exit code, sentence if the failed process could not speak) from the failed ranks' codes.

    Ranks that only lost contact, or were asked to end then, are victims; another is the cause.
    """
    victims = (LOST, -signal.SIGTERM, 128 + signal.SIGTERM)
    causes = {rank: code for rank, code in codes.items() if code not in victims} or codes
    killed = {rank: code for rank, code in causes.items() if code < 0}
    if killed:
        rank, code = min(killed.items())
        name = signal.Signals(-code).name
        remedy = "go on with: targetprop resume RUN --auto"
        return (
            128 - code,
            f"rank {rank} was killed by signal {-code} ({name}) and the other ranks were stopped; "
            f"{remedy}.",
        )
    rank, code = min(causes.items())
    if code == LOST:
        return code, f"rank {rank} lost contact with a rank on another node; see the message there."
    return code, None
