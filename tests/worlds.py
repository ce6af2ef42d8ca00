"""What the tests of several processes run: a function for any number of them, which start fast."""

import importlib
import multiprocessing
import os
import signal
import socket
from pathlib import Path

import torch
import torch.distributed as dist

from cases import CASES, make
from targetprop.analysis import figures
from targetprop.commands import main as cli
from targetprop.ranks import Group, Ranks, mesh
from targetprop.training import checkpoint, lock
from targetprop.training.logging import Metrics

# A server with all imported, what training imports late too: a process starts in milliseconds.
LATE = (
    "jsonargparse",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.utils.tensorboard",
)
for module in LATE:
    importlib.import_module(module)
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["worlds"])


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def spawn(function, size, *args):
    """``size`` processes that call function(*args), each in the environment that torchrun gives."""
    where = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    started = []
    for rank in range(size):
        environment = where | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
        started.append(processes.Process(target=call, args=(environment, function, args)))
        started[-1].start()
    return started


def call(environment, function, args):
    os.environ.update(environment)
    torch.set_num_threads(1)
    raise SystemExit(function(*args))


def codes(started, seconds=120):
    """The exit codes; −n of a process killed by signal n."""
    for process in started:
        process.join(seconds)
        assert process.exitcode is not None, "a process hangs"
    return [process.exitcode for process in started]


def train(case, name, ranks, steps=20):
    """Parameters and buffers after steps of SGD, each process on its part of batches of eight."""
    net, x, _ = make(name)
    algo = CASES[case](net)
    algo.distribute(ranks)
    lr = 1e-4 if case == "targetprop" else 0.02  # without difference correction updates are large
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=1e-3)
    algo.follow(optimizer)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        inputs = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        labels = torch.randint(5, (len(x),), generator=generator)
        mine = ranks.data.part(len(x))
        optimizer.zero_grad()
        losses.append(algo.backward(inputs[mine], labels[mine]).loss)
        optimizer.step()
    memory = algo.state_dict()  # by all processes
    return {
        "net": net.state_dict(),
        "losses": torch.stack(losses),
        "feedback": memory.get("feedback", {}),
    }


def train_all(cases, layers, folder):
    """One process's share of every case; the first writes what came out."""
    dist.init_process_group("gloo")
    ranks = mesh(layers)
    for case, name in cases:
        found = train(case, name, ranks)
        if ranks.leader:
            torch.save(found, folder / f"{case}-{name}.pt")
    dist.destroy_process_group()


def program(words, kill=None):
    """``targetprop`` with ``words``; ``kill`` = (rank, kind, count): kill −9 at so many events."""
    if kill is not None and kill[0] == int(os.environ.get("RANK", 0)):
        _, kind, count = kill
        countdown(kind, count)
    return cli.main(words)


def countdown(kind, count):
    """Let this process kill itself amid the ``count``-th event of a kind.

    "step": an update; "write": of a checkpoint; "exchange"; "report": of a row, a picture or
    another file; "lock": the lock was taken, or is about to be given back.
    """
    left = [count]

    def die_at_last():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if kind == "step":
        original = torch.optim.SGD.step

        def step(self, *args):
            die_at_last()  # gradients are there, weights have not moved
            return original(self, *args)

        torch.optim.SGD.step = step
    elif kind == "write":
        write = checkpoint.write_atomically

        def torn(path, fill):
            def part(file):
                if path.suffix == ".pt":
                    file.write(b"half a checkpoint")
                    file.flush()
                    die_at_last()
                    file.seek(0)
                fill(file)

            write(path, part)

        checkpoint.write_atomically = torn
    elif kind == "report":
        write, add, draw = checkpoint.write_atomically, Metrics.write, figures.draw_runs

        def torn_text(path, fill):
            def part(file):
                if path.suffix != ".pt":
                    file.write(b"half a file")
                    file.flush()
                    die_at_last()
                    file.seek(0)
                    file.truncate()
                fill(file)

            write(path, part)

        def torn_row(self, *args, **kwargs):
            if self._file is not None and left[0] == 0:
                self._file.write('{"kind": "train", "st')
                self._file.flush()
            die_at_last()
            add(self, *args, **kwargs)

        def torn_picture(curves, path):
            path.write_bytes(b"half a picture")
            die_at_last()
            draw(curves, path)

        checkpoint.write_atomically, Metrics.write = torn_text, torn_row
        figures.draw_runs = torn_picture
    elif kind == "lock":
        take, unlink = lock.taken, Path.unlink

        def taken(path):
            handle = take(path)
            die_at_last()
            return handle

        def given_back(path, missing_ok=False):
            if path.name == lock.NAME:
                die_at_last()
            unlink(path, missing_ok)

        lock.taken, Path.unlink = taken, given_back
    else:
        exchange = Group._exchange

        def broken(self, *args, **kwargs):
            die_at_last()
            exchange(self, *args, **kwargs)

        Group._exchange = broken


ALONE = Ranks()
