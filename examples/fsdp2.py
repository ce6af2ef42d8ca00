"""
Sharded: FSDP2
==============

``torchrun --nproc-per-node 2 examples/fsdp2.py`` shards θ and ω over two processes, block by block.
Run by itself it is one process.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
args = parser.parse_args()

if "RANK" in os.environ:  # torchrun's
    dist.init_process_group("gloo")
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
rank, world = dist.get_rank(), dist.get_world_size()

digits = tp.data.load("digits")
x, y = digits.train.images[rank::world] / 255, digits.train.labels[rank::world]

# %%
# Attach *before* ``fully_shard``, so that ω are sharded with the block that they belong to.

torch.manual_seed(0)
model = tp.models.vit((1, 8, 8), 10, patch=2, layers=2, width=32)
feedback = tp.attach(model, x[:2])
mesh = init_device_mesh("cpu", (world,))
for block in model.encoder.layers:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
feedback.follow(optimizer)

for _ in range(args.steps):
    batch = torch.randint(len(x), (32,))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x[batch]), y[batch])
    loss.backward()
    optimizer.step()

# %%
# A measurement gathers one map at a time.

worst = max(feedback.mismatch().values())
if rank == 0:
    print(f"{world} process(es), loss {loss.item():.3f}, largest mismatch {worst:.2g}")
dist.destroy_process_group()
