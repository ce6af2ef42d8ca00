"""The paper's solver against its autograd transcription at its sizes: same gradient, less time."""

import statistics
import time

import torch

import targetprop as tp
import transcription
from targetprop.feedback import losses
from targetprop.feedback.solver import noise_like
from targetprop.training import config

ROUNDS = 5


def timed(function, *args):
    began = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - began


@torch.no_grad()
def ours(layer, trace, e, h):
    return losses.ldrl(layer, trace, e, h)


def test_paper_solver_is_faster_than_its_transcription():
    """Layer by layer, weighed by the paper's K, in turn; the transcription keeps torch's layout."""
    settings = config.load("cifar10-vgg-ldrl-paper").sgd
    torch.manual_seed(0)
    net = tp.networks.simple_vgg((3, 32, 32), 10, feedback="mirror")
    x, generator = torch.randn(128, 3, 32, 32), torch.Generator().manual_seed(0)
    leaves = {}
    for form in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=form)
        with torch.no_grad():
            leaves[form] = net.leaf_traces(net.trace(x.contiguous(memory_format=form))[1])[1:]
    total = {"ours": 0.0, "transcription": 0.0}
    print()
    for i, name in enumerate(net.names[1:]):
        times = {"ours": [], "transcription": []}
        for _ in range(ROUNDS):
            (layer, plain), (_, last) = (
                leaves[torch.contiguous_format][i],
                leaves[torch.channels_last][i],
            )
            e, h = (
                noise_like(a, generator).mul_(settings.noise[i]) for a in (last.input, last.output)
            )
            layer.to(memory_format=torch.channels_last)
            (loss, gradient), seconds = timed(ours, layer, last, e, h)
            times["ours"].append(seconds)
            layer.to(memory_format=torch.contiguous_format)
            (expected, reference), seconds = timed(
                transcription.ldrl, layer, plain, e.contiguous(), h.contiguous()
            )
            times["transcription"].append(seconds)
            torch.testing.assert_close(loss, expected, atol=1e-2, rtol=1e-3)
            # rounding tips near ties in pooling; tests: 1e-10
            assert tp.analysis.distance(reference, gradient) < 2e-2
        medians = {key: statistics.median(value) for key, value in times.items()}
        for key, value in medians.items():
            total[key] += settings.iterations[i] * value
        ratio = medians["transcription"] / medians["ours"]
        milliseconds = ", ".join(f"{key} {1000 * value:.1f} ms" for key, value in medians.items())
        print(f"{name}: {milliseconds}, ×{ratio:.2f}")
    ratio = total["transcription"] / total["ours"]
    print(
        f"with the paper's K: ours {total['ours']:.2f} s, "
        f"transcription {total['transcription']:.2f} s, ×{ratio:.2f}"
    )
    # four products an iteration against seven, and faster weight gradients of small images
    assert ratio > 2
