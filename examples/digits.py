"""
Digits: the whole of it
=======================

A small convolutional network learns scikit-learn's digits by backpropagation, by learned feedback
(L-DRL) and by feedback alignment. Three lines differ.
"""

import argparse

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

digits = tp.data.load("digits")  # ships with scikit-learn
x, y = digits.train.images / 255, digits.train.labels
held_out, labels = digits.test.images / 255, digits.test.labels

# %%
# The model is anybody's, and so is the loop. ``attach`` gives every linear map that sends a signal
# back feedback weights ω; ``follow`` lets them learn in the optimizer's steps.


def train(rule):
    """Test accuracy after every epoch."""
    torch.manual_seed(args.seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    if rule != "backprop":
        feedback = tp.attach(model, rule=rule)
        feedback.follow(optimizer)

    accuracies = []
    for _ in range(args.epochs):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracies.append((model(held_out).argmax(1) == labels).float().mean().item())
        model.train()
    if rule == "ldrl":
        print(feedback)  # every map, and how far its ω is from θ
    return accuracies


curves = {rule: train(rule) for rule in ("backprop", "ldrl", "feedback_alignment")}

# %%
# L-DRL lies on top of backpropagation: its ω are θ to within a percent, and learned to be so.

for (rule, accuracies), style in zip(curves.items(), ("-", "--", ":"), strict=True):
    plt.plot(range(1, args.epochs + 1), accuracies, style, linewidth=2, label=rule)
    print(f"{rule}: {accuracies[-1]:.4f}")
plt.xlabel("epoch")
plt.ylabel("test accuracy")
plt.legend()
plt.show()
