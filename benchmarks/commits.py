"""Time and memory of training steps at two commits, in turn, a process for each contender of each.

git worktree add /tmp/before COMMIT
python benchmarks/commits.py /tmp/before/src simple_vgg backprop ldrl untracked paper --steps 12
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("before", help="the src folder of the other commit")
parser.add_argument("network")
parser.add_argument("contenders", nargs="+")
parser.add_argument("--steps", type=int, default=12, help="timed steps of each")
parser.add_argument("--warmup", type=int, default=3)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
args = parser.parse_args()


def serve() -> None:
    """Take a step whenever asked; answer with its seconds and the peak resident memory in MiB."""
    import torch

    try:
        from targetprop.benchmarking.contenders import Setting, contender
    except ModuleNotFoundError:  # before there was a room for it
        from targetprop.experiments.contenders import Setting, contender
    shape = (1, 28, 28) if args.network == "lenet" else (3, 32, 32)
    setting = Setting(args.network, batch_size=args.batch_size)
    taken = contender(args.contenders[0], setting, shape, 10, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    layout = torch.contiguous_format if shape[0] == 1 else torch.channels_last
    for _ in sys.stdin:
        x = torch.randn(args.batch_size, *shape, generator=generator).contiguous(
            memory_format=layout
        )
        y = torch.randint(10, (args.batch_size,), generator=generator)
        began = time.perf_counter()
        taken.step(x, y)
        spent = time.perf_counter() - began
        print(spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def start(source: str, name: str) -> subprocess.Popen[str]:
    """A process that trains the contender ``name`` by the package in ``source``."""
    words = [
        sys.executable,
        __file__,
        args.before,
        args.network,
        name,
        "--batch-size",
        str(args.batch_size),
        "--worker",
    ]
    environment = os.environ | {"PYTHONPATH": source}
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )


def main() -> None:
    """Ask every process for a step in turn, then print medians and ratios."""
    here = os.path.join(os.path.dirname(__file__), "..", "src")
    workers = {
        (name, source): start(source, name)
        for name in args.contenders
        for source in (args.before, here)
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in workers}
    memory: dict[tuple[str, str], float] = {}
    for step in range(args.warmup + args.steps):
        turns = list(workers.items())
        for key, worker in turns if step % 2 == 0 else turns[::-1]:
            print("step", file=worker.stdin, flush=True)
            seconds, memory[key] = (float(word) for word in worker.stdout.readline().split())
            if step >= args.warmup:
                times[key].append(seconds)
    for worker in workers.values():
        worker.communicate()
    median = {key: 1000 * statistics.median(found) for key, found in times.items()}
    first = median[args.contenders[0], here]
    for name in args.contenders:
        was, now = (name, args.before), (name, here)
        print(
            f"{args.network} {name}: before {median[was]:.1f} ms, {memory[was]:.0f} MiB;", end=" "
        )
        print(f"now {median[now]:.1f} ms, {memory[now]:.0f} MiB;", end=" ")
        print(
            f"now/before {median[now] / median[was]:.3f}; "
            f"now/{args.contenders[0]} {median[now] / first:.3f}"
        )


serve() if args.worker else main()
