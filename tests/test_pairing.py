"""From user modules to networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import targetprop as tp
from cases import NETWORKS, make
from targetprop import maps


def test_pairing_keeps_the_users_modules_and_function():
    modules = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Flatten(), nn.Linear(27, 4)),
    )
    x = torch.randn(2, 1, 8, 8)
    net = tp.pair(modules)
    assert net.layers[0].theta is modules[0].weight
    torch.testing.assert_close(net(x), modules(x))
    assert net.names == ("conv_0", "fc_1")
    assert not net.layers[0].has_feedback
    assert net.layers[1].omega.shape == (4, 27)
    with pytest.raises(ValueError, match="no feedback weight"):
        _ = net.layers[0].omega


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_forward_and_feedback(name):
    net, x, _ = make(name)
    forward, feedback = list(net.forward_parameters()), list(net.feedback_parameters())
    assert {id(p) for p in net.parameters()} == {id(p) for p in forward + feedback}
    logits, traces = net.trace(x)
    torch.testing.assert_close(logits, net(x))
    assert len(net.leaf_traces(traces)) == len(net.layers) == len(net.names)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Sequential(nn.Linear(3, 3), nn.Bilinear(3, 3, 3)),
            r"'1' \(Bilinear\) has no feedback; register",
        ),
        (nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout())), r"'1\.0' \(Dropout\)"),
        (
            nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)),
            r"'1' \(LayerNorm\) is nothing that explicit passes know",
        ),
        (Own(), r"through an nn.Sequential of layers, got Own; .* targetprop.attach\(model\)"),
        (nn.Sequential(nn.ReLU()), "no linear map"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d((None, 1))), "both output sizes"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(3, 3)), "start at dimension 1"),
        (nn.Sequential(nn.Linear(3, 3), tp.Sum(nn.ReLU())), "starts with a linear map"),
    ],
)
def test_what_cannot_be_paired_is_named(module, message):
    with pytest.raises(tp.PairingError, match=message):
        tp.pair(module)


def test_a_registered_type_is_exact():
    tp.register(
        nn.Conv1d,
        lambda m: lambda x, w: F.conv1d(x, w, None, m.stride, m.padding, m.dilation, m.groups),
    )
    try:
        torch.manual_seed(0)
        net = tp.pair(
            nn.Sequential(
                nn.Conv1d(2, 3, 3),
                nn.ELU(),
                nn.Conv1d(3, 4, 3, padding=1),
                nn.ELU(),
                nn.Flatten(),
                nn.Linear(24, 3),
            )
        ).double()
        x, y = torch.randn(5, 2, 8).double(), torch.randint(3, (5,))
        result = tp.analysis.alignment(
            net, tp.algorithms.LDRL(net, 1e-6, tp.feedback.Symmetric()), x, y
        )
        assert max(layer.update_angle for layer in result.values()) < 1e-4
    finally:
        del maps.MAPS[nn.Conv1d]


@pytest.mark.parametrize("name", tp.networks.NETWORKS)
@pytest.mark.parametrize("in_shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28)])
def test_networks_take_any_image(name, in_shape):
    channels = {"lenet": (2, 3, 4), "mlp": (5,), "simple_vgg": (2,) * 5}.get(name, (2, 2, 3, 3))
    net = tp.networks.NETWORKS[name](in_shape, 7, channels)
    assert net(torch.zeros(2, *in_shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("make_net", "count"),
    [
        # PAPER-DETAILS §3 gives these numbers of forward parameters
        (lambda: tp.networks.lenet((3, 32, 32), 10), 2_156_490),
        (lambda: tp.networks.lenet((3, 32, 32), 10, bias=False), 2_155_872),
        (lambda: tp.networks.lenet((1, 28, 28), 10), 1_663_370),
        (lambda: tp.networks.simple_vgg((3, 32, 32), 10), 2_221_706),
        (lambda: tp.networks.simple_vgg((3, 32, 32), 1000), 2_729_576),
    ],
)
def test_networks_have_the_papers_size(make_net, count):
    assert sum(p.numel() for p in make_net().forward_parameters()) == count


def test_feedback_starts_as_pytorch_would_start_the_papers_modules():
    torch.manual_seed(0)
    net = tp.networks.lenet((3, 32, 32), 10)
    conv, fc = net.layers[1].omega.detach(), net.layers[3].omega.detach()
    assert conv.abs().max().item() == pytest.approx((32 * 25) ** -0.5, rel=0.01)
    assert fc.abs().max().item() == pytest.approx(10**-0.5, rel=0.01)
    theta = net.layers[3].theta.detach()
    # the initial distance of the paper's figure 4.2: √(1 + 512/10)
    assert tp.analysis.distance(theta, fc).item() == pytest.approx(7.22, abs=0.25)


@pytest.mark.parametrize(
    "bad", [dict(activation="eluu"), dict(feedback="mirrored"), dict(channels=(1, 2))]
)
def test_bad_network_settings_are_refused(bad):
    with pytest.raises(ValueError):
        tp.networks.lenet((1, 8, 8), 10, **bad)
    with pytest.raises(ValueError, match="not an image"):
        tp.networks.lenet((8, 8), 10)
