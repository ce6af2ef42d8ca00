"""The operators that a step consists of, at the sizes of simple_vgg's second block; tracked by pytest-benchmark."""

import pytest
import torch

import targetprop as tp
from targetprop.feedback.predictive import correction
from targetprop.feedback.solver import noise_like, taps

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(params=FORMATS)
def second_block(request):
    """(layer, trace, difference at its output) of a batch of 128."""
    form = FORMATS[request.param]
    torch.manual_seed(0)
    net = tp.networks.simple_vgg((3, 32, 32), 10).to(memory_format=form)
    with torch.no_grad():
        layer, trace = net.leaf_traces(net.trace(torch.randn(128, 3, 32, 32).contiguous(memory_format=form))[1])[1]
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


def test_probe(benchmark, second_block):
    """One iteration of the predictive solver at its default number of samples."""
    layer, trace, _ = second_block
    use, generator = taps(layer, trace.input), torch.Generator().manual_seed(0)
    samples = -(-2 * round(use.fan_in) // use.positions)

    def probe():
        e = noise_like(trace.input, generator, samples)
        return correction(layer, layer.omega, use, e, layer.respond(e))

    benchmark(probe)
