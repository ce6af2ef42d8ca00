"""
Over several processes: DDP
===========================

``torchrun --nproc-per-node 2 examples/ddp.py`` trains on two processes. Every process draws the
same noise for its probes, so ω stay equal without a message. Run by itself it is one process.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
args = parser.parse_args()

if "RANK" in os.environ:  # torchrun's
    dist.init_process_group("gloo")
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
rank, world = dist.get_rank(), dist.get_world_size()

digits = tp.data.load("digits")
x, y = digits.train.images[rank::world] / 255, digits.train.labels[rank::world]

# %%
# Attach, wrap, follow. DDP averages the gradients of θ; ω gets the mean when the optimizer steps.

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
feedback = tp.attach(net)
model = DistributedDataParallel(net)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
feedback.follow(optimizer)

generator = torch.Generator().manual_seed(rank)
for _ in range(args.steps):
    batch = torch.randint(len(x), (32 // world,), generator=generator)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x[batch]), y[batch])
    loss.backward()
    optimizer.step()

# %%
# ω are bit for bit the same everywhere.

omega = net[3].feedback_weight.detach()
largest, smallest = omega.clone(), omega.clone()
dist.all_reduce(largest, dist.ReduceOp.MAX)
dist.all_reduce(smallest, dist.ReduceOp.MIN)
assert torch.equal(largest, smallest)
if rank == 0:
    print(f"{world} process(es), loss {loss.item():.3f}, mismatch {feedback.mismatch()}")
dist.destroy_process_group()
