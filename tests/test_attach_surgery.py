"""What is done to a model after ``attach`` is followed, or named: never a ω that learns no more."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import targetprop as tp
from targetprop.feedback import PredictiveSolver


def mlp(*sizes, act=nn.Tanh):
    """A perceptron in float64."""
    parts = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), act())]
    return nn.Sequential(*parts[:-1]).double()


def train(model, optimizer, steps, x):
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).sin().square().mean().backward()
        optimizer.step()


@pytest.fixture
def x():
    return torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, 0.02),
        lambda p: torch.optim.RMSprop(p, 0.01),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, 0.05),
    ],
    ids=["adamw", "rmsprop", "momentum", "adagrad"],
)
def test_an_optimizer_that_has_made_steps_gives_omega_its_state(make, x):
    model = mlp(6, 8, 8, 3)
    optimizer = make(model.parameters())
    train(model, optimizer, 20, x)
    feedback = tp.attach(model)
    feedback.follow(optimizer)
    worst = 0.0
    for _ in range(20):
        train(model, optimizer, 1, x)
        worst = max(worst, *feedback.mismatch().values())
    assert worst < 1e-5


def test_a_module_that_joined_is_named(x):
    model = mlp(6, 8, 8, 3)
    feedback = tp.attach(model, x)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.1))
    train(model, optimizer, 1, x)
    model[4] = nn.Linear(8, 3).double()
    with pytest.warns(UserWarning, match=r"'4' \(Linear\) joined the model after attach"):
        train(model, optimizer, 1, x)
    model.insert(4, copy.deepcopy(model[2]))
    with pytest.warns(UserWarning, match=r"'4' \(a copy of an attached Linear\) joined"):
        feedback.follow(torch.optim.SGD(model.parameters(), 0.1))


def test_a_module_that_joined_is_refused_where_strict(x):
    model = mlp(6, 8, 8, 3)
    feedback = tp.attach(model, x, strict=True)
    model[4] = nn.Linear(8, 3).double()
    with pytest.raises(tp.NotCovered, match="joined the model after attach"):
        feedback.step()


@pytest.mark.parametrize("how", ["new parameter", "assign"])
def test_untied_weights_get_an_omega_each(how, x):
    model = mlp(6, 8, 8, 8)
    model[4].weight = model[2].weight
    feedback = tp.attach(model, x)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.05))
    train(model, optimizer, 3, x)
    if how == "assign":
        model.load_state_dict(mlp(6, 8, 8, 8).state_dict(), assign=True)
    else:
        model[4].weight = nn.Parameter(torch.randn(8, 8).double())
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.05))
    train(model, optimizer, 3, x)
    assert model[4].feedback_weight is not model[2].feedback_weight
    assert set(feedback.mismatch()) == {"2", "4"}
    feedback.load_state_dict(feedback.state_dict())
    state = feedback.state_dict()
    state["shapes"]["4"] = (1, 1)
    with pytest.raises(ValueError, match="4"):
        feedback.load_state_dict(state)
    assert max(feedback.mismatch().values()) < 1e-5


def test_a_frozen_weight_that_is_written_is_found_in_the_longest_interval(x):
    model = mlp(6, 8, 8, 3)
    model[2].requires_grad_(False)
    feedback = tp.attach(model)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    train(model, optimizer, 3, x)
    with torch.no_grad():
        model[2].weight.add_(torch.randn(8, 8))
    assert feedback.mismatch()["2"] > 0.1
    train(model, optimizer, 1000, x)
    assert feedback.mismatch()["2"] < 1e-5


def test_a_replaced_frozen_weight_is_noticed_at_once(x):
    model = mlp(6, 8, 8, 3)
    model[2].requires_grad_(False)
    feedback = tp.attach(model)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    train(model, optimizer, 3, x)
    model[2].weight = nn.Parameter(torch.randn(8, 8).double(), requires_grad=False)
    train(model, optimizer, 1, x)
    assert feedback.mismatch()["2"] < 1e-5


@pytest.mark.filterwarnings("ignore:the forward of the model itself")
@pytest.mark.parametrize("tracking", [True, False])
def test_adversaries_learn_where_one_is_frozen_in_the_others_step(tracking):
    torch.manual_seed(0)
    generator, critic = mlp(4, 8, 6), mlp(6, 8, 1)
    solver = PredictiveSolver(tracking=tracking)
    feedback = tp.attach(nn.ModuleDict({"g": generator, "c": critic}), solver=solver)
    steps = [feedback.follow(torch.optim.Adam(n.parameters(), 0.02)) for n in (generator, critic)]
    for _ in range(60):
        made = generator(torch.randn(16, 4).double())
        critic.requires_grad_(False)
        steps[0].zero_grad()
        F.softplus(-critic(made)).mean().backward()
        steps[0].step()
        critic.requires_grad_(True)
        steps[1].zero_grad()
        real = torch.randn(16, 6).double()
        (F.softplus(-critic(real)) + F.softplus(critic(made.detach()))).mean().backward()
        steps[1].step()
    assert max(feedback.mismatch().values()) < 0.05


@pytest.mark.filterwarnings("ignore:the forward of the model itself")
def test_a_graph_survives_the_step_of_another_optimizer():
    """As in a GAN that makes its images once: the critic's step leaves the generator's ω alone."""
    generator, critic = mlp(4, 8, 6), mlp(6, 8, 1)
    solver = PredictiveSolver(tracking=False, tolerance=1e-4)
    feedback = tp.attach(nn.ModuleDict({"g": generator, "c": critic}), solver=solver)
    steps = [feedback.follow(torch.optim.Adam(n.parameters(), 0.02)) for n in (critic, generator)]
    for _ in range(5):
        made = generator(torch.randn(16, 4).double())
        steps[0].zero_grad()
        F.softplus(critic(made.detach())).mean().backward()
        steps[0].step()
        steps[1].zero_grad()
        F.softplus(-critic(made)).mean().backward()
        steps[1].step()
    assert max(feedback.mismatch().values()) < 0.1


@pytest.mark.parametrize("mode", [True, False], ids=["training", "eval"])
def test_the_step_of_an_optimizer_that_is_not_followed_is_noticed(mode, x):
    model = mlp(6, 8, 3).train(mode)
    feedback = tp.attach(model)
    feedback.follow(torch.optim.SGD(model.parameters(), 0.1))
    other = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match="for the optimizer whose step runs"):
        train(model, other, 4, x)


def test_weights_perturbed_and_clipped_between_steps_are_no_alarm(x, recwarn):
    model = mlp(6, 8, 3)
    optimizer = tp.attach(model).follow(torch.optim.SGD(model.parameters(), 0.1))
    for _ in range(6):
        with torch.no_grad():
            model[0].weight.add_(0.01)
        model(x).sum().backward()
        with torch.no_grad():
            model[0].weight.sub_(0.01)
        train(model, optimizer, 1, x)
        with torch.no_grad():
            model[0].weight.clamp_(-1, 1)
    assert not [w for w in recwarn if "learns nothing" in str(w.message)]


def test_a_run_resumed_after_a_thaw_goes_on_bit_for_bit(x):
    def make(seed):
        torch.manual_seed(seed)
        model = mlp(6, 6, 6, 6, 6)
        model[2].requires_grad_(False)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        feedback = tp.attach(model, x.clone().requires_grad_())
        feedback.follow(optimizer)
        return model, optimizer, feedback

    whole = make(0)
    train(whole[0], whole[1], 15, x)
    whole[0][2].requires_grad_(True)
    train(whole[0], whole[1], 16, x)
    states = [copy.deepcopy(part.state_dict()) for part in whole]
    train(whole[0], whole[1], 5, x)
    resumed = make(1)
    resumed[0][2].requires_grad_(True)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    train(resumed[0], resumed[1], 5, x)
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[name]), name


def test_a_plain_checkpoint_loaded_before_saving_is_still_new_after_resuming(x):
    model = mlp(6, 8, 3)
    feedback = tp.attach(model)
    model.load_state_dict(mlp(6, 8, 3).state_dict())
    states = copy.deepcopy((model.state_dict(), feedback.state_dict()))
    again = mlp(6, 8, 3)
    resumed = tp.attach(again)
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert max(resumed.mismatch().values()) > 0.1
    resumed.step()
    assert max(resumed.mismatch().values()) < 1e-5


def test_a_plain_checkpoint_assigned_to_a_model_on_meta_draws_omega(x):
    state = mlp(6, 8, 3).state_dict()
    with torch.device("meta"):
        model = mlp(6, 8, 3)
    feedback = tp.attach(model)
    model.load_state_dict(state, assign=True)
    model(x).sum().backward()
    feedback.step()
    assert max(feedback.mismatch().values()) < 1e-5
    plain = mlp(6, 8, 3)
    plain.load_state_dict(state)
    model.zero_grad()
    for net in (model, plain):
        net(x).sum().backward()
    assert torch.allclose(model[0].weight.grad, plain[0].weight.grad, rtol=1e-5)


def test_a_copy_of_a_model_on_meta_says_that_its_omega_are_not_drawn(x):
    with torch.device("meta"):
        model = mlp(6, 8, 3)
    _kept = tp.attach(model)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model))).to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="attach the copy alone"):
        twin(x)
    feedback = tp.attach(twin)
    twin(x)
    feedback.step()


class Scaled(nn.Linear):
    """3 W x + b."""

    def forward(self, x):
        return 3 * nn.functional.linear(x, self.weight) + self.bias


def test_a_resumed_registered_map_waits_for_its_first_input(x):
    tp.register(Scaled, lambda module: lambda x, w: 3 * F.linear(x, w), bias_dim=-1)
    try:
        model = nn.Sequential(nn.Linear(6, 8), Scaled(8, 3)).double()
        feedback = tp.attach(model)
        optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
        train(model, optimizer, 3, x)
        state = feedback.state_dict()
        resumed = tp.attach(nn.Sequential(nn.Linear(6, 8), Scaled(8, 3)).double())
        resumed.load_state_dict(state)
        resumed.learning.memory["1"].wait = 0
        with pytest.warns(UserWarning, match="cannot learn before its module has run"):
            resumed.step()
        resumed.model(x)
        resumed.step()
        assert max(resumed.mismatch().values()) < 1e-5
    finally:
        del tp.maps.MAPS[Scaled]
