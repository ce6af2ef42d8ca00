"""
A rule of your own
==================

What travels back through a map is B in ``A_Bᵀ e``. A rule says what B is, made of θ and ω. This one
mixes: a share α of the learned transpose, the rest fixed and random.
"""

import argparse
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()

# %%
# A frozen dataclass; its fields are settings. ω is drawn at random and stays (the default solver of
# a rule), so α weighs the signs of θ against chance.


@dataclass(frozen=True)
class PartlySigned(tp.rules.Rule):
    """B = (1 − α) ω + α |ω| sign(θ): between feedback alignment and sign symmetry."""

    alpha: float = 0.5
    name = "partly_signed"
    equation = "B = (1 − α) ω + α |ω| sign(θ)"
    papers = ("liao2016",)
    rows = ()

    def sent(self, theta, omega):
        """B, shaped like θ."""
        return (1 - self.alpha) * omega + self.alpha * omega.abs() * theta.sign()


# %%
# Everything else comes with ``attach``: any model, any loop, the measurement of angles.

digits = tp.data.load("digits")
x, y = digits.train.images.flatten(1) / 255, digits.train.labels


def train(alpha):
    """The largest angle of a weight's update to the gradient, after training."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    feedback = tp.attach(model, rule=PartlySigned(alpha))
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    for _ in range(args.steps):
        batch = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    found = tp.analysis.alignment(model, feedback, lambda net: F.cross_entropy(net(x), y))
    return max(row.update_angle for name, row in found.items() if name.endswith("weight"))


alphas = [0.0, 0.25, 0.5, 0.75, 1.0]
plt.plot(alphas, [train(alpha) for alpha in alphas], "o-")
plt.xlabel("α: share of the signs of θ")
plt.ylabel("largest angle to the gradient, °")
plt.show()
