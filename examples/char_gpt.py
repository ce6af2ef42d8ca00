"""
A GPT on characters, with a tied head
=====================================

python examples/char_gpt.py TEXT --rule ldrl --steps 2000 --seed 0

Without a text it reads the source of Python's ``argparse``. The last line printed is JSON.
"""

import argparse
import inspect
import json
import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import targetprop as tp

parser = argparse.ArgumentParser()
parser.add_argument("text", type=Path, nargs="?")
parser.add_argument("--rule", default="ldrl", help="backprop, or a rule of targetprop.attach")
parser.add_argument("--gains", default="exact", choices=["exact", "learned"])
parser.add_argument("--no-tracking", action="store_true", help="teach ω by probes alone")
for option, default in {"steps": 2000, "batch": 32, "lr": 1e-3, "seed": 0}.items():
    parser.add_argument(f"--{option}", type=type(default), default=default)
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
args = parser.parse_args()

CONTEXT, text = 128, args.text.read_text() if args.text else inspect.getsource(argparse)
letters = sorted(set(text))
data = torch.tensor([letters.index(letter) for letter in text])
train, held_out = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :].to(args.device)
windows = held_out[: (len(held_out) - 1) // CONTEXT * CONTEXT].view(-1, CONTEXT)
following = held_out[1 : windows.numel() + 1].view(-1, CONTEXT)

torch.manual_seed(args.seed)
model = tp.models.CharGPT(len(letters), CONTEXT).to(args.device)
optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=0.1)
schedule = torch.optim.lr_scheduler.LambdaLR(  # a warm-up, then a cosine down to a tenth
    optimizer,
    lambda s: min((s + 1) / 100, 0.55 + 0.45 * math.cos(math.pi * min(1.0, s / args.steps))),
)
if args.rule != "backprop":
    solver = tp.feedback.PredictiveSolver(0.01, tracking=False) if args.no_tracking else None
    settings = {"rule": args.rule, "solver": solver, "gains": args.gains, "seed": args.seed}
    feedback = tp.attach(model, windows[:2], **settings)
    feedback.follow(optimizer)


@torch.no_grad()
def validate():
    """Mean loss over the whole held-out text."""
    parts = zip(windows.split(128), following.split(128), strict=True)
    losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten()) * len(x) for x, y in parts]
    return float(sum(losses) / len(windows))


generator, began, losses = torch.Generator().manual_seed(args.seed), time.perf_counter(), []
for step in range(args.steps):
    starts = torch.randint(len(train) - CONTEXT - 1, (args.batch,), generator=generator)
    batch = torch.stack([train[start : start + CONTEXT + 1] for start in starts]).to(args.device)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    losses.append(loss.detach())
    if step % 200 == 0:
        print(f"step {step}: held-out loss {validate():.4f} nats", flush=True)
found = {"held_out": validate(), "seconds": round(time.perf_counter() - began, 1)}
if args.rule in ("ldrl", "kolen_pollack", "weight_mirror"):
    found["worst_mismatch"] = max(feedback.mismatch().values())
print(json.dumps({k: v for k, v in vars(args).items() if k != "text"} | found))
plt.subplot(xlabel="step", ylabel="training loss, nats").plot(torch.stack(losses).cpu())
plt.show()
