"""The time of a training step with feedback attached over the plain one's, step by step in turn.

python benchmarks/attach_cost.py resnet18_bn vit char_gpt simple_vgg --steps 14 [--compiled]
python benchmarks/attach_cost.py resnet18_bn --contenders attach attach:untracked attach:coupled
"""

import argparse
import statistics
import time

import torch

from targetprop.benchmarking.contenders import CONTEXT, NETWORKS, Setting, contender

parser = argparse.ArgumentParser()
parser.add_argument("networks", nargs="+", choices=list(NETWORKS))
parser.add_argument("--steps", type=int, default=14, help="timed steps of each")
parser.add_argument(
    "--contenders", nargs="+", default=["attach"], help="as targetprop bench has it"
)
parser.add_argument("--warmup", type=int, default=3)
parser.add_argument("--compiled", action="store_true")
args = parser.parse_args()

for name in args.networks:
    text = name == "char_gpt"
    setting = Setting(name, batch_size=32 if text else 128, compiled=args.compiled)
    kinds = ["plain", *args.contenders]
    racers = [contender(kind, setting, (3, 32, 32), 10, torch.device("cpu")) for kind in kinds]
    generator, times = torch.Generator().manual_seed(0), [[] for _ in kinds]
    for step in range(args.warmup + args.steps):
        if text:
            x = torch.randint(65, (32, CONTEXT), generator=generator)
            y = x.roll(-1, 1)
        else:
            x = torch.randn(128, 3, 32, 32, generator=generator).contiguous(
                memory_format=torch.channels_last
            )
            y = torch.randint(10, (128,), generator=generator)
        for which, found in zip(racers, times, strict=True):
            began = time.perf_counter()
            which.step(x, y)
            if step >= args.warmup:
                found.append(time.perf_counter() - began)
    plain, *others = (1000 * statistics.median(found) for found in times)
    how = "compiled" if args.compiled else "eager"
    for kind, other in zip(args.contenders, others, strict=True):
        print(
            f"{name}, {how}: plain {plain:.1f} ms, {kind} {other:.1f} ms, "
            f"ratio of medians {other / plain:.3f}"
        )
