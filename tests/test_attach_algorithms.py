"""``algo.backward`` on any module, and both engines side by side."""

import copy

import pytest
import torch
from torch import nn

import models
import targetprop as tp
from models import collected, distance
from targetprop import algorithms
from targetprop.algorithms.attached import forward_parameters
from targetprop.feedback import Fixed, Symmetric

CARRIED = {
    "backprop": algorithms.Backprop,
    "ldrl": algorithms.LDRL,
    "ldrl-correlation": lambda net, **k: algorithms.LDRL(net, solver="correlation", **k),
    "ldrl-coupled": lambda net, **k: algorithms.LDRL(net, solver="coupled", **k),
    "ldrl-fixed": lambda net, **k: algorithms.LDRL(net, solver="fixed", **k),
    "feedback_alignment": algorithms.FeedbackAlignment,
    "direct_feedback_alignment": algorithms.DirectFeedbackAlignment,
    "kolen_pollack": algorithms.KolenPollack,
    "weight_mirror": algorithms.WeightMirror,
    "sign_symmetry": algorithms.SignSymmetry,
    "brSF": lambda net, **k: algorithms.SignSymmetry(net, variant="brSF", **k),
}
TOPOLOGIES = {
    "chain": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ELU(), nn.Flatten(), nn.Linear(36, 8), nn.ELU(), nn.Linear(8, models.CLASSES)
    ),
    "residual": lambda: models.ResNet(models.BasicBlock),
    "transformer": lambda: models.ViT(True),
}


@pytest.fixture(params=[(rule, net) for rule in CARRIED for net in TOPOLOGIES], ids="-".join)
def case(request):
    rule, net = request.param
    torch.manual_seed(0)
    model = TOPOLOGIES[net]()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return CARRIED[rule], model, torch.randn(8, 3, 8, 8), torch.arange(8) % models.CLASSES


def steps(algo, optimizer, x, y, count):
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        losses.append(algo.backward(x, y).loss)
        optimizer.step()
    return torch.stack(losses)


def test_trains(case):
    make, model, x, y = case
    algo = make(model)
    direct = isinstance(algo.rule, tp.rules.DirectFeedbackAlignment)
    optimizer = torch.optim.SGD(model.parameters(), 0.005 if direct else 0.05, momentum=0.9, weight_decay=1e-4)
    algo.follow(optimizer)
    losses = steps(algo, optimizer, x, y, 40)
    assert losses[-1] < (0.95 if direct else 0.7) * losses[0]
    assert not losses.requires_grad


def test_the_output_layer_gets_the_gradient(case):
    make, model, x, y = case
    reference = copy.deepcopy(model)
    make(model).backward(x, y)
    nn.functional.cross_entropy(reference(x), y).backward()
    last = list(reference.named_parameters())[-1][0]
    found = dict(model.named_parameters())[last].grad
    torch.testing.assert_close(found, reference.get_parameter(last).grad)


def test_a_resumed_run_goes_on_bit_for_bit(case):
    make, model, x, y = case

    def start():
        net = copy.deepcopy(model)
        algo = make(net, seed=3) if make is not algorithms.Backprop else make(net)
        optimizer = torch.optim.AdamW(net.parameters(), 0.01)
        algo.follow(optimizer)
        return net, algo, optimizer

    whole = start()
    steps(whole[1], whole[2], x, y, 6)
    half = start()
    steps(half[1], half[2], x, y, 3)
    kept = copy.deepcopy([part.state_dict() for part in half])
    other = start()
    if isinstance(other[1].rule, tp.rules.DirectFeedbackAlignment):  # its ω have shapes after a batch only
        steps(other[1], other[2], x, y, 1)
    for part, state in zip(other, kept, strict=True):
        part.load_state_dict(state)
    steps(other[1], other[2], x, y, 3)
    for key, value in whole[0].state_dict().items():
        assert torch.equal(value, other[0].state_dict()[key]), key


def test_every_algorithm_cites_and_refuses(case):
    make, model, x, y = case
    algo = make(model)
    algo.backward(x, y)
    assert "@" in tp.cite(algo)
    with pytest.raises(ValueError, match=r"a batch of shape \(0, 3, 8, 8\) has no samples"):
        algo.backward(x[:0], y[:0])


@pytest.mark.parametrize("name", ["dtp", "targetprop", "drl", "ddtp_linear", "parallel_ldrl", "fixed_weight_dtp"])
def test_explicit_algorithms_say_that_they_need_a_pair(name):
    with pytest.raises(TypeError, match=r"needs explicit passes: make the network by targetprop.pair"):
        algorithms.ALGORITHMS[name](nn.Linear(2, 2))


def test_paired_networks_are_not_attached():
    net = tp.networks.mlp((2,), 2, (4,))
    with pytest.raises(ValueError, match=r"holds a network of targetprop\.pair"):
        tp.attach(net)
    with pytest.raises(TypeError, match=r"not a network of targetprop\.pair"):
        algorithms.SignSymmetry(net)


def test_data_parallel_wrappers_get_one_sentence():
    with pytest.raises(TypeError, match="averages gradients itself, got DataParallel"):
        algorithms.LDRL(nn.DataParallel(nn.Linear(2, 2)))


@pytest.mark.parametrize("random", [False, True])
def test_both_engines_agree_as_the_nudge_vanishes(random):
    """Explicit targets at β = 1e-6 and the attached engine at β → 0, with the same ω: float64, smooth units."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3, 2, 1), nn.Sigmoid(), nn.Flatten(),
        nn.Linear(45, 7), nn.GELU(), nn.Linear(7, 5),
    ).double()  # fmt: skip
    x, y = torch.randn(6, 2, 12, 12, dtype=torch.float64), torch.randint(5, (6,))
    net = tp.pair(copy.deepcopy(plain)).double()
    explicit = algorithms.LDRL(net, beta=1e-6, solver=Fixed() if random else Symmetric())
    feedback = tp.attach(plain, rule="feedback_alignment" if random else "symmetric")
    if random:
        paired = [layer for layer in net.layers if layer.feedback_map is not None]
        with torch.no_grad():
            for site, layer in zip(feedback.sites[1:], paired, strict=True):
                site.omega.copy_(layer.omega)
    explicit.backward(x, y)
    nn.functional.cross_entropy(plain(x), y).backward()
    wanted = list(collected(plain).values())
    found = [p.grad for p in net.forward_parameters()]
    pairs = {str(i): value for i, value in enumerate(wanted)}
    assert distance({str(i): value for i, value in enumerate(found)}, pairs) < 1e-5


def test_gradients_accumulate_and_reach_the_loss_and_the_input():
    model = nn.Linear(4, 3)
    temperature = nn.Parameter(torch.tensor(2.0))
    algo = algorithms.LDRL(model, loss=lambda logits, y: nn.functional.cross_entropy(logits * temperature, y))
    x, y = torch.randn(5, 4, requires_grad=True), torch.randint(3, (5,))
    algo.backward(x, y)
    once = model.weight.grad.clone()
    assert temperature.grad is not None
    assert x.grad is not None
    algo.backward(x, y)
    torch.testing.assert_close(model.weight.grad, 2 * once)
    assert len(forward_parameters(model)) == 2


def test_alignment_of_an_attached_model():
    model, x, loss = models.make("vit_encoder", torch.float32)  # with dropout, in training mode
    feedback = tp.attach(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = tp.analysis.alignment(model, feedback, lambda model: loss(model(x)))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert found.keys() == {name for name, p in model.named_parameters() if "feedback" not in name}
    seen = {name: entry for name, entry in found.items() if "in_proj_bias" not in name}  # a key's bias has no gradient
    assert max(entry.update_angle for entry in seen.values()) < 0.1
    assert found["head.weight"].mismatch < 1e-4
    assert found["stem.bias"].mismatch is None
    feedback.detach()
    wrong = tp.attach(model, rule="feedback_alignment")
    model.head.requires_grad_(False)
    found = tp.analysis.alignment(model, wrong, lambda model: loss(model(x)))
    assert not any(name.startswith("head") for name in found)
    assert max(entry.update_angle for entry in found.values()) > 5
    with pytest.raises(TypeError, match=r"takes \(net, algorithm, x, y\) or \(model, feedback, loss_fn\), got str"):
        tp.analysis.alignment(model, "ldrl", x)


def test_alignment_of_a_chain_with_a_frozen_layer():
    net = tp.networks.mlp((1, 4, 4), 3, (6, 5))
    net.layers[1].theta.requires_grad_(False)
    algo = algorithms.LDRL(net)
    found = tp.analysis.alignment(net, algo, torch.randn(4, 1, 4, 4), torch.randint(3, (4,)))
    assert len(found) == 3
    assert found["fc_0"].update_angle < 10
