"""
A layer of your own
===================

A product of a signal with a parameter, written in your own ``forward``, is out of ``attach``'s
sight until ``tp.register`` says what is bilinear in it. Until then it is named, never passed over.
"""

import argparse
import warnings

import torch
import torch.nn.functional as F
from torch import nn

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
args = parser.parse_args()


class Circulant(nn.Module):
    """A circular convolution along the features."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 1, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        """(B, width) to (B, width)."""
        return circulant(x, self.weight) + self.bias


def circulant(x, weight):
    """Bilinear in x and weight; nothing else is asked of a map."""
    padded = F.pad(x[:, None], (x.shape[-1] - 1, 0), mode="circular")
    return F.conv1d(padded, weight)[:, 0]


def network():
    """Two circulant layers between dense ones."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 32), nn.Tanh(), Circulant(32), nn.Tanh(), Circulant(32), nn.Tanh(),
        nn.Linear(32, 10),
    )  # fmt: skip


digits = tp.data.load("digits")
x, y = digits.train.images.flatten(1) / 255, digits.train.labels

# %%
# Before it is registered, ``attach`` warns (and ``strict=True`` refuses).

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tp.attach(network(), x[:2])
print(caught[0].message)

# %%
# Registered, it is a map like any other. Both of its transposes are autograd's.

tp.register(Circulant, lambda module: circulant, bias_dim=-1)
model = network()
feedback = tp.attach(model, x[:2], strict=True)
optimizer = feedback.follow(torch.optim.Adam(model.parameters(), lr=3e-3))
for _ in range(args.steps):
    batch = torch.randint(len(x), (64,))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x[batch]), y[batch])
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
print(feedback)
