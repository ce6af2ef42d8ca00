"""PAPER §2 and §3 written out plainly with autograd, to compare with."""

import torch
import torch.nn.functional as F

from targetprop.laboratory.activations import Activation
from targetprop.laboratory.pooling import AvgPool, Flatten, MaxPool


def feedback_of(layer, trace, target, omega):
    """G(t): unpool by the winners of ``trace``, the activation again, the transpose by autograd."""
    r = target
    for step, saved in zip(reversed(layer.stage.steps), reversed(trace.saved), strict=True):
        if isinstance(step, Flatten):
            r = r.reshape(len(r), *saved[0])
        elif isinstance(step, MaxPool):
            r = F.max_unpool2d(
                r, saved[0], step.kernel, step.stride, step.padding, output_size=saved[1][-2:]
            )
        elif isinstance(step, AvgPool):
            r = F.adaptive_avg_pool2d(r, saved[0].shape[-2:])
        else:
            assert isinstance(step, Activation)
            r = step.rho(r)
    module = layer.forward_map
    if isinstance(module, torch.nn.Linear):
        return F.linear(r, omega.T)
    padding = (
        module.padding
        if module.padding != "same"
        else tuple(
            d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)
        )
    )
    geometry = dict(stride=module.stride, padding=padding, dilation=module.dilation)
    shape = [
        (o - 1) * s - 2 * p + d * (k - 1) + 1
        for o, s, p, d, k in zip(
            r.shape[-2:], module.stride, padding, module.dilation, module.kernel_size, strict=True
        )
    ]
    extra = [want - got for want, got in zip(trace.input.shape[-2:], shape, strict=True)]
    return F.conv_transpose2d(
        r, omega, None, output_padding=extra, groups=module.groups, **geometry
    )


def ldrl(layer, trace, e, h):
    """The L-DRL loss of (a) and its gradient on ω."""
    with torch.no_grad():
        noisy = layer.trace(trace.input + e)
    omega = layer.omega.detach().clone().requires_grad_()
    clean = feedback_of(layer, trace, trace.output, omega)
    of_input = feedback_of(layer, noisy, noisy.output, omega) - clean
    of_output = feedback_of(layer, trace, trace.output + h, omega) - clean
    loss = (-2 * (e * of_input).flatten(1).sum(1) + of_output.square().flatten(1).sum(1)).mean()
    return loss.detach(), torch.autograd.grad(loss, omega)[0]
