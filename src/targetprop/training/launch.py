"""Several processes for one run: started here and watched over, or by torchrun before."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from targetprop.ranks import Ranks, mesh
from targetprop.training import rendezvous
from targetprop.training.config import ConfigError
from targetprop.training.rendezvous import started
from targetprop.training.signals import stop_requests

LOST = 4
"""Exit code of a process that lost contact with another one, whose own end tells the cause."""

PATIENCE = 30.0
"""Seconds that a process which was asked to stop has to finish its step and save."""

STUCK = (
    "a rank did not stop within 30 s and was killed; what was done since the last checkpoint is "
    "lost; go on with: targetprop resume RUN --auto."
)

EARLY = "stopped before training began; nothing was lost."

LAUNCHED = "TARGETPROP_LAUNCHED"
"""In the environment of processes that ``launch`` starts and speaks for: its process number."""


@dataclass(frozen=True)
class Layout:
    """How a run is spread out.

    Attributes:
        devices: processes on every node, a GPU each where there are GPUs.
        nodes: machines.
        layer_ranks: how many of all processes share out the layers; the others share out the batch.
        rendezvous: HOST:PORT of one of several nodes, where they find each other.
        timeout: how long to wait for each other, in seconds.
    """

    devices: int = 1
    nodes: int = 1
    layer_ranks: int = 1
    rendezvous: str | None = None
    timeout: float = 60.0

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
        if not 0 < self.timeout <= 86400:
            raise ConfigError(f"--timeout {self.timeout} is out of range; expected up to 86400 s.")
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


def join(layer_ranks: int, timeout: float) -> Ranks:
    """Meet the other processes, if there are any; NCCL carries CUDA tensors, Gloo all else.

    Raises:
        ConfigError: ``layer_ranks`` does not divide their number, or not all came within
            ``timeout`` seconds.
    """
    if not started():
        return Ranks()
    if LAUNCHED in os.environ:
        threading.Thread(target=heed, args=[int(os.environ[LAUNCHED])], daemon=True).start()
    rank, size = rendezvous.numbers(os.environ)
    store = rendezvous.meet(rank, size, timeout)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        return mesh(layer_ranks)
    except ValueError as error:
        raise ConfigError(f"--layer-ranks {layer_ranks}: {error}") from error


def heed(parent: int) -> None:
    """Stop this process, as by SIGTERM, when the one that launched it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(LOST)


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch(words: Sequence[str], layout: Layout) -> tuple[int, str | None]:
    """Run ``targetprop`` with ``words`` in ``layout.devices`` processes here, and wait for them.

    When one dies the others are stopped. SIGTERM and SIGINT reach all: they save and stop.

    Returns:
        (exit code, what to tell the user, if the processes have not said it themselves).

    Raises:
        ConfigError: the other nodes did not come.
    """
    with tempfile.TemporaryDirectory(prefix="targetprop-") as private, stop_requests() as asked:
        common = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // layout.devices)),
            **os.environ,
            "WORLD_SIZE": str(layout.devices * layout.nodes),
            LAUNCHED: str(os.getpid()),
        }
        store, node, serves = None, 0, False
        if layout.rendezvous is None or layout.nodes == 1:
            common[rendezvous.FILE] = str(Path(private) / "store")
            common.setdefault("GLOO_SOCKET_IFNAME", loopback())
        else:
            store, node, serves = rendezvous.nodes(
                layout.rendezvous, layout.nodes, words, layout.timeout
            )
            host, _, port = layout.rendezvous.rpartition(":")
            common |= {
                "MASTER_ADDR": host,
                "MASTER_PORT": port,
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # as under torchrun: the launcher serves
            }
        ranks = {}
        for local in range(layout.devices):
            rank = node * layout.devices + local
            ranks[rank] = subprocess.Popen(
                [sys.executable, "-m", "targetprop", *words],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(local)},
                start_new_session=True,  # what is typed at a terminal comes through us alone
            )
        codes, stuck = watch(ranks, asked)
        if store is not None and not any(codes.values()):
            rendezvous.part(store, layout.nodes, serves, layout.timeout)
    if asked and any(codes.values()):
        number = asked[0]
        early = set(codes.values()) <= {-number, 0}
        return 128 + number, STUCK if stuck else EARLY if early else None
    return verdict({rank: code for rank, code in codes.items() if code and rank not in stuck})


def loopback() -> str:
    """The name of the network that does not leave this machine."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def watch(
    ranks: dict[int, subprocess.Popen[bytes]], asked: list[int]
) -> tuple[dict[int, int], set[int]]:
    """Wait for the processes; ask all to stop when we are asked or one fails, and kill at last.

    Returns:
        (exit codes by rank, the ranks that did not stop and were killed here).
    """
    since, stuck = None, set()
    while any(process.poll() is None for process in ranks.values()):
        failed = any(process.returncode for process in ranks.values())
        running = {rank for rank, process in ranks.items() if process.returncode is None}
        if since is None and (asked or failed):
            since = time.monotonic()
            for rank in running:
                ranks[rank].send_signal(asked[0] if asked else signal.SIGTERM)
        elif since is not None and time.monotonic() - since > PATIENCE:
            stuck |= running
            for rank in running:
                ranks[rank].kill()
        time.sleep(0.05)
    return {rank: process.returncode for rank, process in ranks.items()}, stuck


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
    rank, code = min(causes.items(), default=(0, 0))
    if code == LOST:
        return code, f"rank {rank} lost contact with a rank on another node; see the message there."
    return code, None
