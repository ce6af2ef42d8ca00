"""What is measured beside training: accuracy, angles, where a network stopped being finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from targetprop.algorithms import Algorithm, AttachedAlgorithm
from targetprop.analysis.alignment import alignment_of_grad, attached_angles
from targetprop.data import Batches
from targetprop.laboratory.pairing import Network
from targetprop.training.session import Session


@torch.no_grad()
def accuracy(net: nn.Module, algo: Algorithm, batches: Batches) -> dict[str, float]:
    """Mean loss and top-1 accuracy over a set, evaluating; top-5 too for more than 10 classes."""
    net.eval()
    # sums of loss, top-1 and top-5; whether there are more than 10 classes
    found = torch.zeros(4, dtype=torch.float64)
    for x, y in batches.once():
        logits = net(x)
        top5 = logits.topk(min(5, logits.shape[1])).indices
        hits = (logits.argmax(1) == y).sum().item(), (top5 == y[:, None]).any(1).sum().item()
        found += torch.tensor(
            [algo.loss(logits, y).item() * len(y), *hits, float(logits.shape[1] > 10)],
            dtype=torch.float64,
        )
    net.train()
    batches.peers.total_(found)
    loss, top1, top5, wide = (found / len(batches.data)).tolist()
    return {"loss": loss, "accuracy": top1, **({"top5": top5} if wide else {})}


def first_nonfinite(net: nn.Module, x: Tensor) -> str:
    """The first layer whose weights, or else whose output on x, are not finite."""
    if not isinstance(net, Network):
        bad = next((name for name, p in net.named_parameters() if not p.isfinite().all()), None)
        return "the network's output" if bad is None else f"the parameter '{bad}'"
    for name, layer in zip(net.names, net.layers, strict=True):
        if not all(p.isfinite().all() for p in layer.forward_map.parameters()):
            return f"the weights of layer '{name}'"
    with torch.no_grad():
        for name, (_, trace) in zip(net.names, net.leaf_traces(net.trace(x)[1]), strict=True):
            if not trace.output.isfinite().all():
                return f"the output of layer '{name}'"
    return f"the loss on the output of layer '{net.names[-1]}'"


def measure(session: Session, x: Tensor, y: Tensor) -> dict[str, float]:
    """Angle of each layer's update, as it stands in ``.grad``, to the batch's backprop gradient."""
    if isinstance(session.algo, AttachedAlgorithm):
        return attached_angles(session.net, session.algo, x, y)
    net: Any = session.net
    aligned = alignment_of_grad(net, session.algo, x, y)
    return {name: angle for name, (angle, _) in zip(net.names, aligned, strict=True)}
