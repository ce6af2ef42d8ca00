"""
In Hugging Face's Trainer
=========================

A small GPT-2 of ``transformers``, with the head tied to the embedding, learns to count through
learned feedback. The Trainer gets the followed optimizer; nothing is downloaded.
"""

import argparse
import tempfile

import matplotlib.pyplot as plt
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import targetprop as tp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=120)
args = parser.parse_args()

torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=32, n_positions=16, n_embd=64, n_layer=2, n_head=4, bos_token_id=0,
        eos_token_id=0,
    )
)  # fmt: skip

# %%
# GPT-2's ``Conv1D`` is a linear map like any other, and the tied head shares one ω with its uses.

feedback = tp.attach(model)
optimizer = feedback.follow(torch.optim.AdamW(model.parameters(), lr=3e-3))
print(feedback)

# %%
# The sequences count upwards, by a stride of their own, modulo 32.

count, length = 32 * args.steps, 16
start, stride = torch.randint(32, (count, 1)), torch.randint(1, 4, (count, 1))
tokens = (start + stride * torch.arange(length)) % 32
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            folder, max_steps=args.steps, per_device_train_batch_size=32, logging_steps=5,
            report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.train()

# %%
# Two tokens tell the stride, and a model that has learned it is left with their entropy.

rows = [row for row in trainer.state.log_history if "loss" in row]
plt.plot([row["step"] for row in rows], [row["loss"] for row in rows])
plt.xlabel("step")
plt.ylabel("training loss, nats")
plt.show()
print(f"largest mismatch of ω and θ: {max(feedback.mismatch().values()):.2g}")
