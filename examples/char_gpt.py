"""A GPT on characters, trained by learned feedback beside backpropagation.

python examples/char_gpt.py TEXT --rule ldrl --steps 2000 --seed 0
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import targetprop as tp
from targetprop.models.char_gpt import CharGPT

parser = argparse.ArgumentParser()
parser.add_argument("text", type=Path)
parser.add_argument("--rule", default="ldrl", help="backprop, or a rule of targetprop.attach")
parser.add_argument("--gains", default="exact", choices=["exact", "learned"])
parser.add_argument("--no-tracking", action="store_true", help="teach ω by probes alone")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
args = parser.parse_args()

CONTEXT = 128
text = args.text.read_text()
letters = sorted(set(text))
data = torch.tensor([letters.index(letter) for letter in text])
train, held_out = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :].to(args.device)
windows = held_out[: (len(held_out) - 1) // CONTEXT * CONTEXT].view(-1, CONTEXT)
following = held_out[1 : windows.numel() + 1].view(-1, CONTEXT)

torch.manual_seed(args.seed)
model = CharGPT(len(letters), CONTEXT).to(args.device)
optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=0.1)
warm = 100
schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer,
    lambda s: min((s + 1) / warm, 0.55 + 0.45 * math.cos(math.pi * min(1.0, s / args.steps))),
)
feedback = None
if args.rule != "backprop":
    solver = (
        tp.feedback.PredictiveSolver(tolerance=0.01, tracking=False) if args.no_tracking else None
    )
    feedback = tp.attach(
        model, windows[:2], rule=args.rule, solver=solver, gains=args.gains, seed=args.seed
    )
    feedback.follow(optimizer)


@torch.no_grad()
def validate():
    """Mean loss over the whole held-out text."""
    losses = [
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()) * len(x)
        for x, y in zip(windows.split(128), following.split(128), strict=True)
    ]
    return float(sum(losses) / len(windows))


generator, began = torch.Generator().manual_seed(args.seed), time.perf_counter()
for step in range(args.steps):
    starts = torch.randint(len(train) - CONTEXT - 1, (args.batch,), generator=generator)
    batch = torch.stack([train[start : start + CONTEXT + 1] for start in starts]).to(args.device)
    optimizer.zero_grad()
    F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if step % 200 == 0:
        print(f"step {step}: held-out loss {validate():.4f} nats", flush=True)
seconds = time.perf_counter() - began
worst = None
if feedback is not None and not feedback.rule.direct and feedback.rule.own_feedback:
    worst = max(feedback.mismatch().values())
settings = {key: value for key, value in vars(args).items() if key != "text"}
print(
    json.dumps(
        settings | {"held_out": validate(), "seconds": round(seconds, 1), "worst_mismatch": worst}
    )
)
