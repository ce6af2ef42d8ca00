"""
In Lightning
============

``configure_optimizers`` returns the followed optimizer. Nothing else is new: automatic
optimisation, gradient clipping and accumulation stay as they are.
"""

import argparse

import lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=3)
args = parser.parse_args()

digits = tp.data.load("digits")
loader = DataLoader(
    TensorDataset(digits.train.images.flatten(1) / 255, digits.train.labels), 32, shuffle=True
)

# %%
# The handle is made with the model, so that its ω are there when the optimizer is.


class Digits(lightning.LightningModule):
    """A perceptron that learns through ω."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))
        self.feedback = tp.attach(self.net)

    def training_step(self, batch, index):
        """Loss, and the training accuracy for the log."""
        x, y = batch
        logits = self.net(x)
        self.log("accuracy", (logits.argmax(1) == y).float().mean(), on_epoch=True)
        return F.cross_entropy(logits, y)

    def configure_optimizers(self):
        """Adam, followed."""
        return self.feedback.follow(torch.optim.Adam(self.parameters(), lr=3e-3))

    def on_save_checkpoint(self, checkpoint):
        """ω travel with the model; the solver's memory goes beside it."""
        checkpoint["feedback"] = self.feedback.state_dict()

    def on_load_checkpoint(self, checkpoint):
        """Where every map is in its probes."""
        self.feedback.load_state_dict(checkpoint["feedback"])


lightning.seed_everything(0, verbose=False)
module = Digits()
trainer = lightning.Trainer(
    max_epochs=args.epochs, accelerator="cpu", logger=False, gradient_clip_val=1.0,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(module, loader)
print(f"training accuracy {trainer.callback_metrics['accuracy_epoch']:.4f}")
print(module.feedback)
