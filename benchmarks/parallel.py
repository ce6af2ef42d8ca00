"""Time of a step in one process and in several, in turn; what the same layers would take on more.

Every process is held to one core and one thread; rank 0 alone, and all together along the samples
or along the layers, take turns. From the layers' times in one process and a stated network, the
last table computes larger worlds.

    torchrun --nproc-per-node 2 benchmarks/parallel.py --network simple_vgg --solver paper
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time

import torch
import torch.distributed as dist

import targetprop as tp
from targetprop.algorithms.sharing import assign
from targetprop.analysis.tables import markdown
from targetprop.ranks import ALONE, Ranks, mesh
from targetprop.training.logging import commit, processor

SOLVERS = {
    "paper": lambda: tp.feedback.SGDSolver(
        noise=(0.4, 0.4, 0.2, 0.2, 0.08),
        lr=(1e-4, 3.5e-4, 8e-3, 8e-3, 0.18),
        iterations=(20, 30, 35, 55, 20),
    ),
    "sgd": lambda: tp.feedback.SGDSolver(lr=1e-5, iterations=20),
    "untracked": lambda: tp.feedback.PredictiveSolver(tracking=False),
    "default": tp.feedback.PredictiveSolver,
}


def contender(args, ranks):
    """One step as a function, on weights of its own."""
    torch.manual_seed(0)
    kind = "mirror" if args.solver in ("paper", "sgd") else "matched"
    net = getattr(tp.networks, args.network)((3, 32, 32), 10, args.channels, feedback=kind)
    net = net.to(memory_format=torch.channels_last)
    algo = tp.algorithms.LDRL(net, solver=SOLVERS[args.solver]())
    algo.distribute(ranks)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    mine = ranks.data.part(args.batch_size)
    x = torch.randn(args.batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(1))[mine]
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (args.batch_size,), generator=torch.Generator().manual_seed(2))[mine]

    def step():
        optimizer.zero_grad()
        algo.backward(x, y)
        optimizer.step()

    return step, algo, x


def layer_seconds(algo, x, rounds):
    """Median seconds of every layer's feedback training on a batch, and iterations a batch."""
    seconds = {name: [] for name in algo.generators}
    iterations = dict.fromkeys(seconds, 0.0)
    with torch.no_grad():
        leaves = dict(zip(algo.net.names, algo.net.leaf_traces(algo.net.trace(x)[1]), strict=True))
        for _ in range(rounds):
            for index, name in enumerate(seconds):
                began = time.perf_counter()
                memory = algo.feedback_state[name], algo.generators[name]
                report = algo.solver.train(index, *leaves[name], *memory)
                seconds[name].append(time.perf_counter() - began)
                iterations[name] += report.iterations / rounds
    # a mean where work comes on some batches only
    return {name: statistics.mean(values) for name, values in seconds.items()}, iterations


def computed(step, seconds, iterations, algo, data, layers, bandwidth, latency):
    """Seconds of a step on data × layers processes: work divided, time of exchanges added."""
    weights = {
        name: algo.net.layers[algo.net.names.index(name)].omega.numel() * 4 for name in seconds
    }
    theta = sum(p.numel() for p in algo.net.forward_parameters()) * 4
    rest = step - sum(seconds.values())
    owners = assign(seconds, layers)
    loads = [0.0] * layers
    for name, rank in owners.items():
        loads[rank] += seconds[name] / data
        if data > 1:  # the statistics of every iteration
            loads[rank] += iterations[name] * (
                latency + 2 * (data - 1) / data * weights[name] / bandwidth
            )
    total = rest / data + max(loads)
    if data > 1:
        total += latency + 2 * (data - 1) / data * theta / bandwidth
    if layers > 1:
        total += (
            layers * latency
            + sum(weights[name] for name in seconds if iterations[name]) / bandwidth
        )
    return total


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="simple_vgg", choices=["simple_vgg", "resnet34"])
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128, 128, 256])
    parser.add_argument("--solver", default="paper", choices=SOLVERS)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="a turn")
    parser.add_argument(
        "--bandwidth", type=float, default=1.25e9, help="bytes a second, of the computed table"
    )
    parser.add_argument(
        "--latency", type=float, default=5e-5, help="seconds an exchange, of the computed table"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["LOCAL_RANK"])]})
    dist.init_process_group("gloo")
    size = dist.get_world_size()
    by_samples, by_layers = mesh(1), mesh(size)
    world = by_samples.world
    makers = {"one process": Ranks(), f"{size}, samples": by_samples, f"{size}, layers": by_layers}
    contenders = {name: contender(args, ranks) for name, ranks in makers.items()}
    spent = {name: [] for name in contenders}
    for turn in range(args.turns + 1):
        for name, (step, _, _) in contenders.items():
            world.wait()
            if makers[name].world is ALONE and world.rank:
                continue
            count = args.steps if turn else args.warmup
            began = time.perf_counter()
            for _ in range(count):
                step()
            if turn:
                spent[name].append((time.perf_counter() - began) / count)
    world.wait()
    if world.rank == 0:
        _, algo, x = contenders["one process"]
        seconds, iterations = layer_seconds(algo, x, 3 if args.solver in ("paper", "sgd") else 20)
        report(args, spent, seconds, iterations, algo)
    world.wait()
    dist.destroy_process_group()


def report(args, spent, seconds, iterations, algo):
    one = statistics.median(spent["one process"])
    rows = []
    for name, values in spent.items():
        middle = statistics.median(values)
        low, high = min(values), max(values)
        rows.append([name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{one / middle:.2f}"])
    print(
        f"{args.network} {args.channels}, {args.solver}, batch {args.batch_size}, "
        f"{args.turns} turns of {args.steps} steps; commit {commit()}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {processor()}\n"
    )
    print(markdown(["processes", "s a step, median", "range", "speed-up"], rows))
    rest = one - sum(seconds.values())
    layers = [[name, f"{seconds[name]:.3f}", f"{iterations[name]:g}"] for name in seconds]
    print(
        "\n"
        + markdown(
            ["layer", "feedback, s", "iterations"], [["all else", f"{rest:.3f}", ""], *layers]
        )
    )
    rows = []
    for data, split in ((1, 1), (2, 1), (1, 2), (4, 1), (1, 4), (2, 2), (8, 1), (4, 2), (2, 4)):
        found = computed(one, seconds, iterations, algo, data, split, args.bandwidth, args.latency)
        rows.append(
            [str(data * split), str(data), str(split), f"{found:.3f}", f"{one / found:.2f}"]
        )
    print(
        "\n"
        + markdown(
            ["processes", "along samples", "along layers", "s a step, computed", "speed-up"], rows
        )
    )


if __name__ == "__main__":
    main()
