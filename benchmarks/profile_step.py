"""A step's time by torch's operators: backprop, L-DRL between probes, L-DRL when all are probed.

python benchmarks/profile_step.py [NETWORK] [BATCH]
"""

import sys
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

import targetprop as tp

GROUPS = {
    "convolution": ("mkldnn_convolution", "convolution_backward", "cudnn_convolution"),
    "matrix product": ("aten::mm", "aten::addmm"),
    "pooling": ("max_pool2d", "max_unpool2d", "avg_pool2d"),
    "activation": ("elu", "threshold", "relu"),
    "fill, copy": ("fill_", "copy_", "zero_"),
    "noise": ("normal_",),
    "optimizer": ("Optimizer", "_foreach"),
}


def group(name):
    """The group of an operator's name."""
    return next(
        (label for label, parts in GROUPS.items() if any(part in name for part in parts)),
        "other elementwise and sums",
    )


def operators(step):
    """Milliseconds by group of operators."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    total = Counter()
    for event in found.key_averages():
        total[group(event.key)] += event.self_cpu_time_total / 1000
    return total


def main(network="simple_vgg", batch="128"):
    """Print a Markdown table; the mean over four steps of each kind."""
    x = torch.randn(int(batch), 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (int(batch),))
    solvers = {
        "L-DRL, no probe": tp.feedback.Fixed(tracking=True),
        "L-DRL, every layer probed": tp.feedback.PredictiveSolver(probe_every=1),
    }
    columns = {}
    for name in ("backprop", *solvers):
        torch.manual_seed(0)
        net = tp.networks.NETWORKS[network]((3, 32, 32), 10).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        algo = (
            tp.algorithms.LDRL(net, solver=solvers[name])
            if name in solvers
            else tp.algorithms.Backprop(net)
        )

        def step(algo=algo, optimizer=optimizer):
            optimizer.zero_grad()
            algo.backward(x, y)
            optimizer.step()

        for _ in range(3):
            step()
        columns[name] = sum((operators(step) for _ in range(4)), Counter())
    labels = [*GROUPS, "other elementwise and sums"]
    print(f"| ms | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for label in labels:
        print(
            f"| {label} | "
            + " | ".join(f"{column[label] / 4:.1f}" for column in columns.values())
            + " |"
        )
    print(
        "| all | "
        + " | ".join(f"{sum(column.values()) / 4:.1f}" for column in columns.values())
        + " |"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
