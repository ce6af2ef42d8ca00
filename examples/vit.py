"""
A vision transformer, and the angle of every update
===================================================

A small ViT learns digits through feedback weights of its own, in the attention's four products
too. At the end ``tp.analysis.alignment`` measures how far each update is from the gradient.
"""

import argparse

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--layers", type=int, default=3)
parser.add_argument("--width", type=int, default=64)
args = parser.parse_args()

digits = tp.data.load("digits")
x, y = digits.train.images / 255, digits.train.labels


def train(rule):
    """The model, its feedback and its training losses."""
    torch.manual_seed(0)
    model = tp.models.vit((1, 8, 8), 10, patch=2, layers=args.layers, width=args.width)
    feedback = tp.attach(model, x[:2], rule=rule)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    feedback.follow(optimizer)
    losses = []
    for _ in range(args.steps):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, feedback, losses


# %%
# The example inputs ``x[:2]`` tell ``attach`` which maps only read data: the patches need no ω.

rules = ("ldrl", "sign_symmetry", "feedback_alignment")
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for rule in rules:
    model, feedback, losses = train(rule)
    found = tp.analysis.alignment(model, feedback, lambda net: F.cross_entropy(net(x), y))
    weights = {name: row.update_angle for name, row in found.items() if name.endswith("weight")}
    left.plot(losses, label=rule)
    right.plot(list(weights.values()), "o-", markersize=3, label=rule)
    print(f"{rule}: loss {losses[-1]:.3f}, largest angle {max(weights.values()):.2f}°")

# %%
# 90° would be an update that knows nothing of the gradient.

left.set(xlabel="step", ylabel="training loss, nats")
right.set(xlabel="weight, from the first layer to the last", ylabel="angle to the gradient, °")
right.axhline(90, color="grey", linewidth=0.5)
left.legend()
plt.tight_layout()
plt.show()
