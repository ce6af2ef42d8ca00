"""
With accelerate
===============

Mixed precision and accumulation come from ``Accelerator``; ``follow`` takes the prepared optimizer,
and ``register_for_checkpointing`` keeps the feedback's state beside the rest.
"""

import argparse
import tempfile

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=3)
args = parser.parse_args()

torch.manual_seed(0)
digits = tp.data.load("digits")
loader = DataLoader(
    TensorDataset(digits.train.images.flatten(1) / 255, digits.train.labels), 32, shuffle=True
)
model = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 10))
feedback = tp.attach(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

# %%
# Prepare first, then follow.

accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
feedback.follow(optimizer)
accelerator.register_for_checkpointing(feedback)

right = seen = 0
for epoch in range(args.epochs):
    right = seen = 0
    for x, y in loader:
        with accelerator.accumulate(model):
            logits = model(x)
            accelerator.backward(F.cross_entropy(logits, y))
            optimizer.step()
            optimizer.zero_grad()
        right += (logits.argmax(1) == y).sum().item()
        seen += len(y)
    accelerator.print(f"epoch {epoch + 1}: training accuracy {right / seen:.4f}")

# %%
# Saved and loaded in one call each, ω and the times of their probes included.

with tempfile.TemporaryDirectory() as folder:
    accelerator.save_state(folder)
    accelerator.load_state(folder)
print(f"largest mismatch of ω and θ: {max(feedback.mismatch().values()):.2g}")
