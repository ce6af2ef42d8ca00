"""
Looking inside
==============

The laboratory shows what ``attach`` keeps out of sight: targets, differences, angles and mismatch,
layer by layer, over training, here of L-DRL whose ω start at random.
"""

import argparse

import matplotlib.pyplot as plt
import torch
from torch import nn

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
args = parser.parse_args()

torch.manual_seed(0)
digits = tp.data.load("digits")
x, y = digits.train.images / 255, digits.train.labels
net = tp.pair(
    nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ELU(), nn.Conv2d(8, 16, 3, stride=2), nn.ELU(),
        nn.Flatten(), nn.Linear(144, 64), nn.ELU(), nn.Linear(64, 10),
    )
)  # fmt: skip

# %%
# The solver that shows the most: ω is the running correlation of noise and response, taught by one
# probe a batch, so it comes near θᵀ step by step, and trails behind it as θ moves.

solver = tp.feedback.CorrelationSolver(first_iterations=1)
algo = tp.algorithms.LDRL(net, beta=0.01, solver=solver)
optimizer = algo.follow(torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9))

angles, mismatches = [], []
for _ in range(args.steps):
    batch = torch.randint(len(x), (64,))
    found = tp.analysis.alignment(net, algo, x[batch], y[batch])
    angles.append([row.update_angle for row in found.values()])
    mismatches.append(
        [row.mismatch or float("nan") for row in found.values()]
    )  # the first has no ω
    optimizer.zero_grad()
    report = algo.backward(x[batch], y[batch])
    optimizer.step()
print(f"loss {report.loss:.3f}; last angles {[round(a, 2) for a in angles[-1]]}°")

# %%
# Down a column the layers, along a row the training.

fig, axes = plt.subplots(2, 1, figsize=(9, 5), sharex=True)
for axis, values, label in zip(
    axes, (angles, mismatches), ("angle to the gradient, °", "Jacobian mismatch"), strict=True
):
    picture = axis.imshow(
        torch.tensor(values).T, aspect="auto", interpolation="nearest", cmap="viridis"
    )
    axis.set_yticks(range(len(found)), list(found))
    fig.colorbar(picture, ax=axis, label=label)
axes[-1].set_xlabel("step")
plt.tight_layout()
plt.show()
