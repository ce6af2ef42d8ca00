"""
ResNet-20 with batch normalisation on CIFAR-10
==============================================

He et al.'s CIFAR network, trained by learned feedback with the usual recipe: SGD with momentum,
a cosine schedule, flips and crops. ``--data FOLDER`` names CIFAR-10's folder
(``targetprop data fetch cifar10``); without it the images are scikit-learn's digits.
"""

import argparse

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", help="folder of CIFAR-10")
parser.add_argument("--rule", default="ldrl", help="backprop, or a rule of targetprop.attach")
parser.add_argument("--steps", type=int, default=150)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--lr", type=float, default=0.05)
args = parser.parse_args()

torch.manual_seed(0)
data = tp.data.load("cifar10", args.data) if args.data else tp.data.load("digits", image_size=16)
mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))


def normalised(images):
    """Floats of mean 0 and deviation 1."""
    return (images / 255 - mean) / std


def flipped_and_cropped(images):
    """Every image moved by up to an eighth and, where that keeps its class, mirrored."""
    side, pad = images.shape[-1], images.shape[-1] // 8
    images = F.pad(images, [pad] * 4)
    top, left = torch.randint(2 * pad + 1, (2,)).tolist()
    images = images[..., top : top + side, left : left + side]
    return images.flip(-1) if args.data and torch.rand(()) < 0.5 else images


# %%
# Batch normalisation, strided convolutions and shortcuts are the model's own business.

model = tp.models.resnet20(data.train.images.shape[1:], data.classes)
optimizer = torch.optim.SGD(
    model.parameters(), args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
if args.rule != "backprop":
    feedback = tp.attach(model, rule=args.rule)
    feedback.follow(optimizer)

losses = []
for _ in range(args.steps):
    chosen = torch.randint(len(data.train.labels), (args.batch,))
    images = flipped_and_cropped(normalised(data.train.images[chosen]))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), data.train.labels[chosen])
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())

# %%
# What came of it.

model.eval()
with torch.no_grad():
    guesses = [model(normalised(part)).argmax(1) for part in data.test.images.split(500)]
accuracy = (torch.cat(guesses) == data.test.labels).float().mean()
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("training loss, nats")
plt.title(f"{data.name}, {args.rule}: test accuracy {accuracy:.3f}")
plt.show()
