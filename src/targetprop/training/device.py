"""Where a run computes and in which format: device, precision, memory layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from targetprop.laboratory.pairing import Network
from targetprop.training.config import ConfigError, MemoryFormat, Precision


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``"auto"`` is CUDA where there is one.

    Raises:
        ConfigError: it does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # of "meta" nothing can be read
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={name} is not available here; use device=cpu, or auto."
        ) from error
    return device


def weight_dtype(precision: Precision) -> torch.dtype:
    """The format of weights and images: TF32 and bfloat16 are formats of products only."""
    return torch.float64 if precision == "float64" else torch.float32


def layout(net: nn.Module, memory_format: MemoryFormat) -> torch.memory_format:
    """The memory format of weights and images.

    ``auto`` lays channels innermost, which torch's convolutions run faster, except where a
    convolution reads a single channel: there torch 2.13 on a CPU writes past its buffers.

    Raises:
        ConfigError: ``channels_last`` for such a network.
    """
    single = any(isinstance(m, nn.Conv2d) and m.in_channels // m.groups == 1 for m in net.modules())
    if memory_format == "channels_last" and single:
        raise ConfigError(
            "memory_format=channels_last does not work where a convolution reads one channel; "
            "use contiguous."
        )
    return (
        torch.contiguous_format if single or memory_format == "contiguous" else torch.channels_last
    )


def prepare(
    net: Any, device: torch.device, precision: Precision, memory_format: MemoryFormat
) -> Any:
    """``net`` on ``device``, its products in ``precision``.

    Raises:
        ConfigError: bfloat16 of no :class:`~targetprop.laboratory.pairing.Network`; as ``layout``.
    """
    form = layout(net, memory_format)
    net = net.to(device, weight_dtype(precision), memory_format=form)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
            precision == "tf32"
        )
    if precision == "bfloat16":
        if not isinstance(net, Network):
            raise ConfigError(
                "dtype=bfloat16 needs a paired network; run a plain module under torch.autocast."
            )
        net.compute_in(torch.bfloat16)
    return net
