"""Where the processes of a run find each other: a store that all of them reach, and a roll call.

On one machine it is a file in a folder that nobody but its user may enter. Over several machines it
is a TCP port, to which anybody who reaches it can write: it belongs on a trusted network.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch.distributed as dist

from targetprop.training.config import ConfigError

FILE = "TARGETPROP_STORE"
"""In the environment of processes on one machine: the path of their store."""

UNSET = "start it with torchrun or --devices, or unset RANK and WORLD_SIZE"


def started() -> bool:
    """Whether this process is one of several that torchrun or ``launch`` started."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def numbers(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, size) of a process from RANK and WORLD_SIZE.

    Raises:
        ConfigError: they are none, or a variable that belongs to them is missing.
    """
    rank, size = environment["RANK"], environment["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size) < 2**31):
        raise ConfigError(f"RANK={rank} and WORLD_SIZE={size} number no process; {UNSET}.")
    missing = [n for n in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(n)]
    if missing and FILE not in environment:
        raise ConfigError(
            f"RANK={rank} and WORLD_SIZE={size} are set but {missing[0]} is not; {UNSET}."
        )
    port = environment.get("MASTER_PORT", "1")
    if FILE not in environment and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"MASTER_PORT={port} is no port; {UNSET}.")
    return int(rank), int(size)


def meet(rank: int, size: int, seconds: float) -> dist.Store:
    """The store of a run's processes, once all of them are there.

    Raises:
        ConfigError: they were not within ``seconds``.
    """
    path, limit = os.environ.get(FILE), timedelta(seconds=seconds)
    if path:
        store, where = dist.FileStore(path, size), "their meeting place on this machine"
    else:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        where = f"{host}:{port}"
        serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        listener = None
        if serves:
            listener = listen(port)
            if listener is None:
                raise ConfigError(f"MASTER_PORT={port} is taken by another program; give another.")
        store = connect(host, port, seconds, listener)
        # what torchrun numbers its restarts by
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    store.set_timeout(limit)
    call(store, "rank", rank, size, seconds, where)
    return store


def call(store: dist.Store, kind: str, number: int, count: int, seconds: float, where: str) -> None:
    """Say that the ``number``-th of ``count`` is here, and wait for the others.

    Raises:
        ConfigError: some did not come within ``seconds``.
    """
    store.set(f"{kind}/{number}", "here")
    deadline = time.monotonic() + seconds
    while not store.check([f"{kind}/{other}" for other in range(count)]):
        if time.monotonic() > deadline:
            absent = [str(n) for n in range(count) if not store.check([f"{kind}/{n}"])]
            raise ConfigError(
                f"{kind} {', '.join(absent)} of {count} did not come to {where} within --timeout "
                f"{seconds:g} s; start all of them with the same command, or wait longer."
            )
        time.sleep(0.05)


def listen(port: int) -> socket.socket | None:
    """A socket that listens at ``port`` of this machine, or None where another program does."""
    dual = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise ConfigError(f"port {port} cannot be listened at ({error.strerror}).") from error


def is_here(host: str) -> bool:
    """Whether ``host`` is this machine: one of its addresses can be bound."""
    for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind, protocol) as trial:
                trial.bind(address)
                return True
        except OSError:
            continue
    return False


def connect(
    host: str, port: int, seconds: float, listener: socket.socket | None = None
) -> dist.Store:
    """The store at HOST:PORT; with a ``listener``, which this process serves itself.

    Raises:
        ConfigError: nobody answers, or somebody who keeps no store.
    """
    deadline = time.monotonic() + seconds
    if listener is None:  # TCPStore would warn at every attempt
        reach(host, port, deadline, seconds)
    found: list[dist.Store | Exception] = []

    def attempt() -> None:
        try:
            found.append(
                dist.TCPStore(
                    host,
                    port,
                    is_master=listener is not None,
                    wait_for_workers=False,
                    master_listen_fd=None if listener is None else listener.detach(),
                )
            )
        except RuntimeError as error:
            found.append(error)

    # in a thread, since a program that listens and says nothing would hold us for ever
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(max(1.0, deadline - time.monotonic()))
    if not found or isinstance(found[0], Exception):
        why = str(found[0]).splitlines()[0] if found else "it does not answer"
        raise ConfigError(
            f"{host}:{port} is no meeting place of this program ({why}); another program listens "
            "there: give another port."
        )
    return found[0]


def reach(host: str, port: int, deadline: float, seconds: float) -> None:
    """Wait until somebody listens at HOST:PORT."""
    while True:
        try:
            left = max(0.1, deadline - time.monotonic())
            socket.create_connection((host, port), timeout=left).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                why = error.strerror or "no answer"
                raise ConfigError(
                    f"nobody listens at {host}:{port} within --timeout {seconds:g} s ({why}); "
                    "start the command on that host too, with the same HOST:PORT."
                ) from error
            time.sleep(0.2)


def nodes(
    place: str, count: int, words: Sequence[str], seconds: float
) -> tuple[dist.Store, int, bool]:
    """Meet the other machines of a run at HOST:PORT: (store, this one's number, whether it serves).

    The first program on HOST serves.

    Raises:
        ConfigError: they were not there within ``seconds``, run another command, or are too many.
    """
    host, _, port = place.rpartition(":")
    listener = listen(int(port)) if is_here(host) else None
    serves = listener is not None
    store = connect(host, int(port), seconds, listener)
    store.set_timeout(timedelta(seconds=seconds))
    ours = json.dumps(list(words))
    first = store.compare_set("command", "", ours).decode()
    if first != ours:
        raise ConfigError(
            f"the run that meets at {place} has another command ({' '.join(json.loads(first))}); "
            "give the same on every node, or another port."
        )
    number = store.add("nodes", 1) - 1
    if number >= count:
        raise ConfigError(f"{place} has its {count} nodes already; give another run another port.")
    call(store, "node", number, count, seconds, place)
    return store, number, serves


def part(store: dist.Store, count: int, serves: bool, seconds: float) -> None:
    """Say that this machine needs the store no more; who serves it waits for the others."""
    deadline = time.monotonic() + seconds
    if store.add("done", 1) < count and serves:
        while store.add("done", 0) < count and time.monotonic() < deadline:
            time.sleep(0.1)
