"""The operators of a step, at the sizes of simple_vgg's second block, for pytest-benchmark."""

import pytest
import torch

import targetprop as tp
from targetprop.feedback.solver import noise_like, probe_of

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(params=FORMATS)
def second_block(request):
    """(layer, trace, difference at its output) of a batch of 128."""
    form = FORMATS[request.param]
    torch.manual_seed(0)
    net = tp.networks.simple_vgg((3, 32, 32), 10).to(memory_format=form)
    with torch.no_grad():
        layer, trace = net.leaf_traces(
            net.trace(torch.randn(128, 3, 32, 32).contiguous(memory_format=form))[1]
        )[1]
    with torch.no_grad():
        yield layer, trace, torch.randn_like(trace.output)


def test_forward(benchmark, second_block):
    layer, trace, _ = second_block
    benchmark(layer.trace, trace.input)


def test_feedback(benchmark, second_block):
    benchmark(second_block[0].difference, *second_block[1:])


def test_gradients(benchmark, second_block):
    benchmark(second_block[0].gradients, *second_block[1:])


def test_stage_transposed(benchmark, second_block):
    layer, trace, d = second_block
    benchmark(layer.stage.vjp, trace.saved, d)


def test_stage_difference(benchmark, second_block):
    layer, trace, d = second_block
    benchmark(layer.stage.difference, trace.saved, trace.output, d)


def test_noise(benchmark, second_block):
    _, trace, _ = second_block
    benchmark(noise_like, trace.input, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("what", ["mismatch", "difference"])
def test_probe(benchmark, second_block, what):
    """What a probe measures, and what it solves for."""
    layer, trace, _ = second_block
    benchmark(getattr(probe_of(layer, trace), what), 0)
