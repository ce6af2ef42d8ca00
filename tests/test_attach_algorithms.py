"""``algo.backward`` on any module, and both engines side by side."""

import copy

import pytest
import torch
from torch import nn

import models
import targetprop as tp
from cases import CARRIED, PLACES, carried, make
from models import collected, distance
from targetprop import algorithms
from targetprop.algorithms.attached import forward_parameters
from targetprop.feedback import Fixed, Symmetric


@pytest.fixture(params=PLACES, ids="-".join)
def case(request):
    return carried(*request.param)


def gradients_of(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


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
    optimizer = torch.optim.SGD(
        model.parameters(), 0.005 if direct else 0.05, momentum=0.9, weight_decay=1e-4
    )
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
        algo = make(
            net, example_inputs=(x,), **({} if make is algorithms.Backprop else {"seed": 3})
        )
        optimizer = torch.optim.AdamW(net.parameters(), 0.01)
        algo.follow(optimizer)
        return net, algo, optimizer

    whole = start()
    steps(whole[1], whole[2], x, y, 6)
    half = start()
    steps(half[1], half[2], x, y, 3)
    kept = copy.deepcopy([part.state_dict() for part in half])
    other = start()
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


def test_copies_of_algorithms_train_their_own_copies(case):
    make, model, x, y = case
    algo = make(model)
    copied = copy.deepcopy(algo)
    copied.backward(x, y)
    assert not gradients_of(model)
    algo.backward(x, y)
    assert all(
        torch.equal(value, gradients_of(copied.net)[name])
        for name, value in gradients_of(model).items()
    )


@pytest.mark.parametrize(
    "name", ["dtp", "targetprop", "drl", "ddtp_linear", "parallel_ldrl", "fixed_weight_dtp"]
)
def test_explicit_algorithms_say_that_they_need_a_pair(name):
    with pytest.raises(
        TypeError, match=r"needs explicit passes: make the network by targetprop.pair"
    ):
        algorithms.ALGORITHMS[name](nn.Linear(2, 2))


def test_attaching_a_paired_network_uses_the_feedback_of_its_layers():
    net, x, y = make("resnet18", torch.float64)
    omegas = [layer.omega for layer in net.layers[1:]]
    values = [omega.detach().clone() for omega in omegas]
    feedback = tp.attach(net, x, rule="feedback_alignment")
    nn.functional.cross_entropy(net(x), y).backward()
    feedback.detach()
    assert all(layer.omega is omega for layer, omega in zip(net.layers[1:], omegas, strict=True))
    assert all(torch.equal(omega, value) for omega, value in zip(omegas, values, strict=True))
    attached = [p.grad.clone() for p in net.forward_parameters()]
    net.zero_grad()
    # the other engine, with the same ω
    algorithms.LDRL(net, beta=1e-6, solver=Fixed()).backward(x, y)
    explicit = [p.grad for p in net.forward_parameters()]
    assert distance(dict(enumerate(explicit)), dict(enumerate(attached))) < 1e-5


@pytest.mark.parametrize("settings", [dict(gains="learned"), dict(beta=0.1)])
def test_attaching_a_paired_network_refuses_what_its_layers_do_themselves(settings):
    with pytest.raises(ValueError, match="would change nothing"):
        tp.attach(tp.networks.mlp((2,), 2, (4,)), **settings)


def test_beta_of_an_error_carrying_rule_on_a_paired_network_is_refused():
    with pytest.raises(ValueError, match=r"so beta=0\.1 would change nothing"):
        algorithms.FeedbackAlignment(tp.networks.mlp((2,), 2, (4,)), beta=0.1)


def test_sign_symmetry_of_a_paired_network_draws_sizes():
    net, x, y = make("mlp")
    algorithms.SignSymmetry(net, variant="frSF").backward(x, y)
    assert all((layer.omega >= 0).all() for layer in net.layers[1:])


def test_a_copied_paired_network_keeps_its_attached_feedback():
    net, x, y = make("lenet")
    algorithms.FeedbackAlignment(net).backward(x, y)
    other = copy.deepcopy(net)
    net.zero_grad()
    other.zero_grad()
    algorithms.FeedbackAlignment(net).backward(x, y)
    algorithms.FeedbackAlignment(other).backward(x, y)
    for a, b in zip(net.forward_parameters(), other.forward_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
        assert a is not b


def test_data_parallel_wrappers_get_one_sentence():
    with pytest.raises(TypeError, match="averages gradients itself, got DataParallel"):
        algorithms.LDRL(nn.DataParallel(nn.Linear(2, 2)))


@pytest.mark.parametrize("random", [False, True])
def test_both_engines_agree_as_the_nudge_vanishes(random):
    """Explicit targets at β = 1e-6, the attached engine at β → 0, one ω: float64, smooth units."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3, 2, 1),
        nn.Sigmoid(), nn.Flatten(), nn.Linear(45, 7), nn.GELU(), nn.Linear(7, 5),
    ).double()  # fmt: skip
    x, y = torch.randn(6, 2, 12, 12, dtype=torch.float64), torch.randint(5, (6,))
    net = tp.pair(copy.deepcopy(plain)).double()
    explicit = algorithms.LDRL(net, beta=1e-6, solver=Fixed() if random else Symmetric())
    feedback = tp.attach(plain, rule="feedback_alignment" if random else "symmetric")
    if random:
        paired = [layer for layer in net.layers if layer.has_feedback]
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
    algo = algorithms.LDRL(
        model, loss=lambda logits, y: nn.functional.cross_entropy(logits * temperature, y)
    )
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
    # a key's bias has no gradient
    seen = {name: entry for name, entry in found.items() if "in_proj_bias" not in name}
    assert max(entry.update_angle for entry in seen.values()) < 0.1
    assert found["head.weight"].mismatch < 1e-4
    assert found["stem.bias"].mismatch is None
    feedback.detach()
    wrong = tp.attach(model, rule="feedback_alignment")
    model.head.requires_grad_(False)
    found = tp.analysis.alignment(model, wrong, lambda model: loss(model(x)))
    assert not any(name.startswith("head") for name in found)
    assert max(entry.update_angle for entry in found.values()) > 5
    with pytest.raises(
        TypeError, match=r"takes \(net, algorithm, x, y\) or \(model, feedback, loss_fn\), got str"
    ):
        tp.analysis.alignment(model, "ldrl", x)


def test_alignment_of_the_symmetric_rule_is_perfect_and_takes_a_closure():
    model, x, loss = models.make("resnet_basic")
    feedback = tp.attach(model, rule="symmetric")
    found = tp.analysis.alignment(model, feedback, lambda: loss(model(x)))
    assert max(entry.update_angle for entry in found.values()) < 1e-5
    assert all(entry.update_size == pytest.approx(1) for entry in found.values())
    with pytest.raises(TypeError, match="a scalar tensor that needs a gradient"):
        tp.analysis.alignment(model, feedback, lambda: 0.0)


def test_alignment_of_several_maps_in_one_weight_shows_the_worst():
    model, x, loss = models.make("vit_attention", torch.float32)
    feedback = tp.attach(model)
    with torch.no_grad():
        model.attention.in_proj_feedback_weight[-1] += 1  # of the values, the last of three maps
    found = tp.analysis.alignment(model, feedback, lambda model: loss(model(x)))
    assert (
        found["attention.in_proj_weight"].mismatch == feedback.mismatch()["attention.v_proj"] > 0.1
    )


@pytest.mark.parametrize(
    "rule", ["backprop", "ldrl", "feedback_alignment", "direct_feedback_alignment"]
)
def test_alignment_of_algorithms_on_a_plain_module(rule):
    model, x, _ = models.make("resnet_basic", torch.float32)
    algo = CARRIED[rule](model)
    y = torch.arange(len(x)) % models.CLASSES
    found = tp.analysis.alignment(model, algo, x, y)
    assert found["head.weight"].update_size == pytest.approx(1, abs=1e-4)
    worst = max(entry.update_angle for entry in found.values())
    assert worst < 0.1 if rule in ("backprop", "ldrl") else worst > 5
    assert not gradients_of(model)


def test_alignment_of_a_chain_with_a_frozen_layer():
    net = tp.networks.mlp((1, 4, 4), 3, (6, 5))
    net.layers[1].theta.requires_grad_(False)
    algo = algorithms.LDRL(net)
    found = tp.analysis.alignment(net, algo, torch.randn(4, 1, 4, 4), torch.randint(3, (4,)))
    assert len(found) == 3
    assert found["fc_0"].update_angle < 10


@pytest.mark.parametrize("rule", ["feedback_alignment", "direct_feedback_alignment"])
def test_backprop_on_an_attached_model_is_backprop(rule):
    model, x, _ = models.make("resnet_basic", torch.float32)
    reference = copy.deepcopy(model)
    tp.attach(model, x, rule=rule)
    y = torch.arange(len(x)) % models.CLASSES
    algorithms.Backprop(model).backward(x, y)
    nn.functional.cross_entropy(reference(x), y).backward()
    wanted = gradients_of(reference)
    assert all(torch.equal(value, wanted[name]) for name, value in gradients_of(model).items())


def test_an_attached_model_keeps_its_handle_and_its_feedback():
    model, x, _ = models.make("resnet_basic", torch.float32)
    feedback = tp.attach(model, x, seed=4)
    keys = list(model.state_dict())
    assert algorithms.LDRL(model).feedback is feedback
    assert algorithms.LDRL(model, seed=4, solver="predictive").feedback is feedback
    for other in (dict(seed=5), dict(solver="coupled"), dict(beta=0.1)):
        with pytest.raises(
            ValueError, match=rf"attached with other settings already, got {next(iter(other))}="
        ):
            algorithms.LDRL(model, **other)
    with pytest.raises(ValueError, match="the model is attached by"):
        algorithms.FeedbackAlignment(model)
    copied = copy.deepcopy(model)
    assert algorithms.LDRL(copied).feedback is not feedback
    # the map that reads data got no feedback by being adopted
    assert list(copied.state_dict()) == keys


@pytest.mark.parametrize("solver", ["predictive", "coupled"])
def test_without_follow_backward_probes(solver):
    """The loop as on networks of ``pair``: nothing but ``backward`` and the optimizer."""
    model, x, _ = models.make("resnet_basic", torch.float32)
    algo = algorithms.LDRL(model, solver=solver)
    start = max(algo.feedback.mismatch().values())
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    steps(algo, optimizer, x, torch.arange(len(x)) % models.CLASSES, 60)
    # 0.75 where nothing learns
    assert max(algo.feedback.mismatch().values()) < max(0.2, 1.5 * start)


def test_a_map_that_reads_data_gets_no_feedback_by_example_inputs():
    model, x, _ = models.make("resnet_basic", torch.float32)
    algo = algorithms.LDRL(model, example_inputs=(x,))
    assert "stem.0.0" not in algo.feedback.maps
    assert "stem.0.0.feedback_weight" not in model.state_dict()


def test_a_model_without_logits_gets_one_sentence():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(
        TypeError,
        match=r"Two returned tuple; expected logits as a tensor, or an output with \.logits",
    ):
        algorithms.Backprop(Two(3, 2)).backward(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))


def test_foreign_state_and_layer_ranks_are_refused():
    algo = algorithms.LDRL(nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"another algorithm than ldrl on a plain module, got \['directs'\]"
    ):
        algo.load_state_dict({"directs": {}})
    with pytest.raises(ValueError, match="another algorithm than backprop"):
        algorithms.Backprop(nn.Linear(3, 2)).load_state_dict(algo.state_dict())
    two = tp.ranks.Group()
    two.size = 2
    with pytest.raises(
        ValueError, match="AttachedLDRL does not train its feedback layer by layer, so 2 processes"
    ):
        algo.distribute(tp.ranks.Ranks(two, tp.ranks.ALONE, two))


def test_kolen_pollack_without_follow_is_told_of():
    """Nothing but tracking could teach it: probing in ``backward`` would hide that it does not."""
    model, x, _ = models.make("resnet_basic", torch.float32)
    algo = algorithms.KolenPollack(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, weight_decay=0.01)
    with pytest.warns(UserWarning, match=r"its feedback learns nothing: call follow\(optimizer\)"):
        steps(algo, optimizer, x, torch.arange(len(x)) % models.CLASSES, 3)


def test_a_plain_checkpoint_is_one_call_away():
    model, _, _ = models.make("resnet_basic")
    plain = copy.deepcopy(model)
    feedback = tp.attach(model)
    assert (
        feedback.plain_state_dict().keys() == plain.state_dict().keys() < model.state_dict().keys()
    )
    plain.load_state_dict(feedback.plain_state_dict())


def test_reports_and_algorithms_are_printed_in_a_line():
    net, x, y = make("mlp")
    algo = algorithms.LDRL(net)
    assert repr(algo).startswith("LDRL(Network, beta=0.01, solver=PredictiveSolver(")
    assert repr(algo.backward(x, y)).startswith("Report(loss=")
    assert len(repr(algo.backward(x, y)).splitlines()) == 1
