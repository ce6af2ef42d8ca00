"""ω learn what the model has, whatever is loaded, toggled, nested, copied or called by others."""

import copy
import gc
import math
import types
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import targetprop as tp
from targetprop.feedback import CorrelationSolver
from targetprop.maps import MAPS


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def x():
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def train(model, optimizer, x, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


# What is loaded.


def test_weights_loaded_without_feedback_are_learned_before_a_signal_travels(x):
    model = net()
    feedback = tp.attach(model)
    other = {name: torch.randn_like(value) for name, value in feedback.plain_state_dict().items()}
    model.load_state_dict(other)
    assert "1.4" not in repr(feedback).split("\n", 1)[1]  # the last mismatch is no longer so
    (model(x) - 1).square().mean().backward()
    sent = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with feedback.exact():
        (model(x) - 1).square().mean().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for own, wanted in zip(sent, found, strict=True):
        assert (own - wanted).norm() <= 1e-4 * wanted.norm()


def test_a_good_checkpoint_mends_a_run_that_diverged(x):
    model = net()
    feedback = tp.attach(model)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 1e30))
    plain = {name: value.clone() for name, value in feedback.plain_state_dict().items()}
    train(model, optimizer, x, 4)
    assert not model[4].feedback_weight.isfinite().all()
    state = feedback.state_dict()
    feedback.load_state_dict(state)  # of a run that diverged, too
    optimizer.param_groups[0]["lr"] = 1e-3
    model.load_state_dict(plain)
    train(model, optimizer, x, 3)
    assert all(p.isfinite().all() for p in model.parameters())
    assert max(feedback.mismatch().values()) < 1e-4


def test_a_full_state_with_other_weights_is_noticed_at_the_next_step(x):
    model = net()
    feedback = tp.attach(model)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 1e-3))
    train(model, optimizer, x, 400)  # now every map waits for long
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["4.weight"] = torch.randn(3, 8)
    model.load_state_dict(state)
    train(model, optimizer, x, 1)
    assert max(feedback.mismatch().values()) < 1e-4


def test_a_weight_mirror_begins_anew_with_loaded_weights(x):
    model = net()
    feedback = tp.attach(model, solver=CorrelationSolver())
    train(model, feedback.follow(torch.optim.SGD(model.parameters(), 1e-3)), x, 30)
    model.load_state_dict({k: torch.randn_like(v) for k, v in feedback.plain_state_dict().items()})
    train(model, next(s.optimizer for s in feedback._rounds.steps), x, 1)
    fresh = tp.attach(net(), solver=CorrelationSolver())
    assert max(feedback.mismatch().values()) < 1.5 * max(fresh.mismatch().values())


@pytest.mark.parametrize("rule", ["ldrl", "feedback_alignment"])
@pytest.mark.parametrize("way", ["assign", "to_empty"])
def test_a_model_made_on_meta_keeps_the_feedback_that_a_checkpoint_brings(x, way, rule):
    made = net()
    full = tp.attach(made, rule=rule, seed=5)
    train(made, full.follow(torch.optim.SGD(made.parameters(), 0.01)), x, 3)
    with torch.device("meta"):
        model = net()
    feedback = tp.attach(model, rule=rule, seed=6)
    if way == "to_empty":
        model.to_empty(device="cpu")
    model.load_state_dict(made.state_dict(), assign=way == "assign")
    model(x)
    feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    for name, value in made.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_attention_made_on_meta_gets_the_feedback_that_it_would_have_had(x):
    def attention():
        return nn.MultiheadAttention(8, 2)

    with torch.device("meta"):
        model = attention()
    feedback = tp.attach(model, rule="feedback_alignment", seed=3)
    model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.zeros_(p)
    query = torch.randn(4, 2, 8)
    model(query, query, query)
    drawn = tp.attach(attention(), rule="feedback_alignment", seed=3)
    assert torch.equal(model.in_proj_feedback_weight, drawn.model.in_proj_feedback_weight)
    assert feedback.model is model


def test_a_state_that_is_refused_leaves_the_feedback_as_it_was(x):
    model = net()
    feedback = tp.attach(model)
    before, bad = feedback.state_dict(), feedback.state_dict()
    bad["maps"]["2"]["wait"], bad["maps"]["4"]["wait"] = 77, "soon"
    with pytest.raises(ValueError, match="no counts"):
        feedback.load_state_dict(bad)
    assert feedback.state_dict() == before


# What is toggled.


@pytest.mark.parametrize("rule", ["ldrl", "feedback_alignment"])
def test_gradients_are_never_of_feedback_weights_that_were_told_to_need_them(x, rule):
    model = net()
    feedback = tp.attach(model, rule=rule)
    model.requires_grad_(False).requires_grad_(True)  # as adversarial loops do
    a = x.clone().requires_grad_()
    loss = model(a).sum()
    with pytest.warns(UserWarning, match="create_graph=True"):
        (down,) = torch.autograd.grad(loss, a, create_graph=True)
    ((down.norm(dim=1) - 1) ** 2).mean().backward()
    assert all(site.omega.grad is None for site in feedback.sites)
    feedback.follow(torch.optim.SGD(model.parameters(), 0.1))
    assert not any(site.omega.requires_grad for site in feedback.sites)


def test_a_measurement_within_a_cache_leaves_the_graph_of_computed_weights(x):
    model = net()
    nn.utils.parametrizations.weight_norm(model[2])
    feedback = tp.attach(model)
    with parametrize.cached():
        feedback.mismatch()
        model(x).sum().backward()
    assert model[2].parametrizations.weight.original1.grad is not None


# Optimizers.


def test_an_optimizer_that_took_steps_by_itself_gives_feedback_its_state(x):
    model = net()
    feedback = tp.attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(20):
        train(model, optimizer, x, 1)
        feedback.step()
    feedback.follow(optimizer)
    worst = 0
    for _ in range(5):
        train(model, optimizer, x, 1)
        worst = max(worst, *feedback.mismatch().values())
    assert worst < 1e-4


class Shrinking(torch.optim.SGD):
    """Steps of the base class, then a decay of what has a gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(0.95)


def test_a_step_within_a_step_counts_once(x):
    model = net()
    feedback = tp.attach(model)
    optimizer = feedback.follow(Shrinking(model.parameters(), 1e-2))
    for _ in range(20):
        train(model, optimizer, x, 1)
        assert max(feedback.mismatch().values()) < 1e-5
        assert all(site.omega.grad is None for site in feedback.sites)
    assert feedback.steps == 20


def test_a_step_that_failed_does_not_stop_the_next_from_counting(x):
    class Failing(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            if self.fails:
                raise FloatingPointError("of the user's own")
            return super().step(closure)

    model = net()
    feedback = tp.attach(model)
    optimizer = feedback.follow(Failing(model.parameters(), 1e-2))
    optimizer.fails = True
    with pytest.raises(FloatingPointError):
        train(model, optimizer, x, 1)
    optimizer.fails = False
    train(model, optimizer, x, 3)
    assert feedback.steps == 3
    assert all(site.omega.grad is None for site in feedback.sites)


class SharpnessAware(torch.optim.Optimizer):
    """Foret et al. (2021): the gradient at w + ρ g/‖g‖ moves w, by the steps of another."""

    def __init__(self, params, base, rho=0.05, **settings):
        super().__init__(params, {"rho": rho} | settings)
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure):
        moved = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        size = torch.stack([p.grad.norm() for p in moved]).norm()
        before = {p: p.clone() for p in moved}
        for p in moved:
            p.add_(p.grad * 0.05 / size)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p in moved:
            p.copy_(before[p])
        self.base_optimizer.step()


def test_sharpness_aware_minimisation_moves_weights_as_without_feedback(x):
    runs = []
    for attached in (False, True):
        model = net().double()
        optimizer = SharpnessAware(model.parameters(), torch.optim.SGD, lr=0.1)
        if attached:
            feedback = tp.attach(model)
            feedback.follow(optimizer)

        def closure(model=model):
            loss = (model(x.double()) - 1).square().mean()
            loss.backward()
            return loss

        for _ in range(10):
            optimizer.zero_grad()
            closure()
            optimizer.step(closure)
        runs.append([p.detach() for n, p in model.named_parameters() if "feedback" not in n])
    first = [p.detach() for p in net().double().parameters()]
    for start, plain, own in zip(first, *runs, strict=True):  # ω is not moved to w + ρ g/‖g‖
        assert (own - plain).norm() < 0.05 * (plain - start).norm()
    assert feedback.steps == 10
    assert max(feedback.mismatch().values()) < 1e-9


def test_followed_optimizers_are_not_kept_alive(x):
    model = net()
    feedback, gone = tp.attach(model), []
    for _ in range(5):
        optimizer = feedback.follow(torch.optim.Adam(model.parameters(), 1e-3))
        train(model, optimizer, x, 3)
        gone.append(weakref.ref(optimizer))
        del optimizer
    gc.collect()
    assert not any(ref() for ref in gone)
    assert max(feedback.mismatch().values()) < 1e-5
    feedback.detach()


# Who is told.


def test_a_model_whose_handle_nobody_kept_is_named(x):
    model = net()
    tp.attach(model)
    gc.collect()
    with pytest.warns(UserWarning, match="its feedback learns nothing: call follow"):
        train(model, torch.optim.SGD(model.parameters(), 0.1), x, 3)


def test_a_copy_that_trains_without_a_handle_is_named(x):
    model = net()
    feedback = tp.attach(model)
    other = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"it is a copy of the model .*attach\(copy\)"):
        train(other, torch.optim.SGD(other.parameters(), 0.1), x, 3)
    averaged = copy.deepcopy(model).eval()  # moved by others, and never trained
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            with torch.no_grad():
                for p in averaged.parameters():
                    p.mul_(0.9)
                averaged(x)
    assert feedback.model is model


def test_a_detached_handle_says_so(x):
    model = net()
    feedback = tp.attach(model)
    feedback.detach()
    for act in (feedback.step, lambda: feedback.follow(torch.optim.SGD(model.parameters(), 0.1))):
        with pytest.raises(RuntimeError, match="was detached"):
            act()


def test_a_warning_made_an_error_leaves_the_model_plain():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 2))
    kinds = [type(module) for module in model]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="PReLU"):
            tp.attach(model, beta=0.1)
    assert [type(module) for module in model] == kinds


def test_the_table_of_a_symmetric_model_says_what_it_uses():
    assert "is θ" in repr(tp.attach(net(), rule="symmetric"))


# What runs outside the maps.


def test_weights_from_elsewhere_are_named(x):
    model = net()
    feedback = tp.attach(model)
    other = {k: torch.randn_like(v) for k, v in feedback.plain_state_dict().items()}
    with pytest.warns(UserWarning, match="another than the model's own"):
        grad(lambda p: functional_call(model, p, (x,)).square().sum())(other)


def test_gradients_of_each_sample_are_of_the_models_own_weights(x):
    model = net()
    tp.attach(model)
    own = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p, sample):
        return functional_call(model, p, (sample[None],)).square().sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        each = vmap(grad(loss), (None, 0))(own, x)
        model(x).square().sum().backward()
    torch.testing.assert_close(each["0.weight"].sum(0), model[0].weight.grad)


def test_a_method_of_an_attached_module_is_no_map():
    class Tied(nn.Linear):
        def decode(self, h):
            return F.linear(h, self.weight.T)

    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.middle, self.ends = nn.Linear(4, 4), Tied(6, 4)

        def forward(self, x):
            return self.ends.decode(torch.tanh(self.middle(self.ends(x))))

    with pytest.raises(tp.NotCovered, match=r"ends\.weight"):
        tp.attach(Autoencoder(), torch.randn(5, 6), strict=True)


def test_a_forward_written_over_an_attached_one_is_named(x):
    model = net()
    tp.attach(model)
    model[2].forward = types.MethodType(lambda self, v: F.linear(v, self.weight), model[2])
    with pytest.warns(UserWarning, match=r"2\.weight"):
        model(x)


class Scaled(nn.Module):
    """A map whose size is learned apart."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.size = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return F.linear(x, self.weight) * self.size + self.bias


@pytest.mark.parametrize("rule", ["symmetric", "feedback_alignment"])
def test_what_a_registered_module_learns_beside_its_weight_is_learned(x, rule):
    try:
        tp.register(Scaled, lambda module: lambda v, w: F.linear(v, w) * module.size)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Scaled(8, 3)).double()
        feedback = tp.attach(model, x.double(), rule=rule, strict=True)
        model(x.double()).square().sum().backward()
        sent = model[2].size.grad.clone()
        model.zero_grad()
        with feedback.exact():
            model(x.double()).square().sum().backward()
        torch.testing.assert_close(sent, model[2].size.grad, rtol=1e-12, atol=0)
    finally:
        MAPS.pop(Scaled)


def test_jacobians_of_a_whole_batch_at_once(x):
    model = net().double()
    tp.attach(model, rule="symmetric")
    model_plain = net().double()
    x = x.double()
    own = torch.autograd.functional.jacobian(model, x, vectorize=True)
    plain = torch.autograd.functional.jacobian(model_plain, x)
    torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-14)


def test_a_weight_that_is_measured_is_that_which_the_rule_sends(x):
    model = net()
    feedback = tp.attach(model, rule="sign_symmetry")
    found = tp.analysis.alignment(model, feedback, lambda m: m(x).square().sum())
    sent = feedback.rule.sent(model[2].weight, model[2].feedback_weight).detach()
    cosine = F.cosine_similarity(sent.flatten(), model[2].weight.detach().flatten(), 0)
    assert found["2.weight"].weight_angle == pytest.approx(math.degrees(math.acos(cosine)), abs=0.1)


def test_a_measurement_leaves_a_losss_own_gradients_alone():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.ones(()))

        def forward(self, logits, y):
            return F.cross_entropy(logits * self.t, y)

    net, loss = tp.pair(nn.Sequential(nn.Linear(4, 5), nn.ELU(), nn.Linear(5, 3))), Tempered()
    algo = tp.algorithms.LDRL(net, loss=loss)
    tp.analysis.alignment(net, algo, torch.randn(6, 4), torch.randint(3, (6,)))
    assert loss.t.grad is None


@pytest.mark.parametrize("masks", [{"key_padding_mask": (2, 1)}, {"attn_mask": (1, 5)}])
def test_masks_are_not_broadcast(masks):
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    tp.attach(model)
    q = torch.randn(2, 5, 8)
    given = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in masks.items()}
    with pytest.raises(RuntimeError, match="expected"):
        model(q, q, q, **given)


def test_a_weight_that_a_hook_makes_only_in_a_pass_is_asked_for():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    weight = model[2].weight
    del model[2].weight
    model[2].register_parameter("weight_orig", weight)
    with pytest.raises(ValueError, match=r"'2' .* has no weight before its first pass"):
        tp.attach(model)


# A pass that has begun, copies, phases.


class Two(nn.Module):
    """Two parts that may run apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b = net(), nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        return self.b(self.a(x))


def test_weights_loaded_while_a_graph_waits_do_not_break_it(x):
    model = Two()
    tp.attach(model)
    model(x)
    half = model.a(x)
    model.b.load_state_dict({k: v for k, v in Two().b.state_dict().items()})
    model.b(half).sum().backward()
    assert model.a[0].weight.grad.norm() > 0


def test_weights_loaded_into_a_model_that_is_partly_compiled_or_mapped(x):
    model = Two()
    feedback = tp.attach(model)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    model.a.compile(backend="aot_eager")
    train(model, optimizer, x, 2)
    model.load_state_dict(Two().state_dict())
    train(model, optimizer, x, 1)
    assert max(feedback.mismatch().values()) < 1e-4
    model = Two()
    tp.attach(model)
    model(x)
    model.load_state_dict(Two().state_dict())
    model.b(vmap(model.a)(x.clone().requires_grad_())).sum().backward()


def test_a_frozen_model_whose_handle_nobody_kept_learns_what_is_loaded(x):
    model, other = net().requires_grad_(False), net()
    for p in other.parameters():
        nn.init.normal_(p)
    tp.attach(model)
    gc.collect()
    model.load_state_dict(other.state_dict())
    sent, wanted = (
        torch.autograd.grad(m(v).sum(), v)[0]
        for m in (model, other)
        for v in [x.clone().requires_grad_()]
    )
    torch.testing.assert_close(sent, wanted, rtol=1e-3, atol=1e-4)


def test_a_mask_that_the_kernel_ignores_may_be_longer():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    q = torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.triu(torch.full((16, 16), -math.inf), 1)
    plain = model(q, q, q, attn_mask=mask, is_causal=True, need_weights=False)[0]
    tp.attach(model)
    own = model(q, q, q, attn_mask=mask, is_causal=True, need_weights=False)[0]
    torch.testing.assert_close(own, plain)


@pytest.mark.parametrize("case", ["phases", "assign", "lbfgs", "target"])
def test_what_is_taught_or_not_meant_to_learn_is_not_warned_of(x, case):
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if case == "phases":
            feedback = tp.attach(model)
            first = feedback.follow(torch.optim.SGD(model[0].parameters(), 0.01))
            rest = feedback.follow(torch.optim.SGD(model[2:].parameters(), 0.01))
            train(model, rest, x, 5)
            train(model, first, x, 5)
        elif case == "assign":
            tp.attach(model)
            model.load_state_dict(net().state_dict(), assign=True)
            own = {k: v.detach() for k, v in model.named_parameters()}
            vmap(grad(lambda p, v: functional_call(model, p, (v[None],)).sum()), (None, 0))(own, x)
        elif case == "lbfgs":
            feedback = tp.attach(model, solver=tp.feedback.PredictiveSolver(tracking=False))
            optimizer = torch.optim.LBFGS(model.parameters(), 0.1)

            def closure():
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                return loss

            for _ in range(3):
                optimizer.step(closure)
                feedback.step()
        else:
            feedback = tp.attach(model)
            optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
            target = copy.deepcopy(model).requires_grad_(False)
            for _ in range(4):
                train(model, optimizer, x, 1)
                for own, moved in zip(target.parameters(), model.parameters(), strict=True):
                    own.lerp_(moved.detach(), 0.1)
                target(x)


def test_a_resumed_run_goes_on_bit_for_bit_over_a_plain_preload(x):
    def start():
        model = net()
        feedback = tp.attach(model)
        optimizer = feedback.follow(torch.optim.Adam(model.parameters(), 0.01))
        model.load_state_dict({k: v + 0.1 for k, v in feedback.plain_state_dict().items()})
        return model, optimizer, feedback

    run = start()
    train(run[0], run[1], x, 7)
    states = copy.deepcopy([part.state_dict() for part in run])
    other = start()
    for part, state in zip(other, states, strict=True):
        part.load_state_dict(state)
    for model, optimizer, _ in (run, other):
        train(model, optimizer, x, 6)
    for one, two in zip(run[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(one, two)


def closely(model, feedback, x):
    """Whether the signal of ω is that of θ."""
    sent = gradients(model, x)
    with feedback.exact():
        wanted = gradients(model, x)
    return all((a - b).norm() <= 1e-4 * b.norm() for a, b in zip(sent, wanted, strict=True))


def gradients(model, x):
    own = [p for name, p in model.named_parameters() if "feedback" not in name]
    return torch.autograd.grad((model(x) - 1).square().mean(), own)


@pytest.mark.parametrize("case", ["closure", "closure of a copy", "compiled", "other model"])
def test_steps_that_teach_nothing_are_told_of_whoever_calls_the_model(x, case):
    model = net()
    feedback = tp.attach(model)
    called = model
    if case == "closure of a copy":
        called = model = copy.deepcopy(model)
    if case == "compiled":
        called = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def closure():
        optimizer.zero_grad()
        loss = called(x).square().mean()
        loss.backward()
        return loss

    if case == "other model":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            feedback.follow(optimizer)
            train(net(), torch.optim.SGD(net().parameters(), 0.1), x, 4)
            for _ in range(4):
                optimizer.step(closure)
        return

    def run():
        for _ in range(4):
            if case == "compiled":
                closure()
                optimizer.step()
            else:
                optimizer.step(closure)

    with pytest.warns(UserWarning, match="its feedback learns nothing"):
        run()


def test_a_warm_up_by_backpropagation_is_no_neglect(x):
    model = net()
    feedback = tp.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            with feedback.exact():
                optimizer.zero_grad()
                (model(x) - 1).square().mean().backward()
            optimizer.step()
        feedback.follow(optimizer)
    assert closely(model, feedback, x)


@pytest.mark.parametrize("feedback_first", [True, False])
def test_weights_saved_before_they_were_learned_are_learned_on_resumption(x, feedback_first):
    model = net()
    feedback = tp.attach(model)
    model.load_state_dict({k: torch.randn_like(v) for k, v in feedback.plain_state_dict().items()})
    states = copy.deepcopy([model.state_dict(), feedback.state_dict()])
    model = net()
    feedback = tp.attach(model)
    parts = list(zip((model, feedback), states, strict=True))
    for part, state in reversed(parts) if feedback_first else parts:
        part.load_state_dict(state)
    assert closely(model, feedback, x)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_checkpoint_with_others_feedback_is_measured_before_a_signal_travels(x, frozen):
    """``state.update(pretrained)`` leaves the old ω beside new weights."""
    model = net()
    feedback = tp.attach(model)
    state = model.state_dict()
    state.update({k: torch.randn_like(v) for k, v in feedback.plain_state_dict().items()})
    model.load_state_dict(state)
    if frozen:
        model.requires_grad_(False)
        x.requires_grad_()
        sent = torch.autograd.grad(model(x).sum(), x)[0]
        with feedback.exact():
            wanted = torch.autograd.grad(model(x).sum(), x)[0]
        assert (sent - wanted).norm() <= 1e-4 * wanted.norm()
    else:
        assert closely(model, feedback, x)


def test_a_copy_that_is_loaded_with_plain_weights_says_that_it_learns_nothing(x):
    feedback = tp.attach(net())
    frozen = copy.deepcopy(feedback.model).requires_grad_(False)
    frozen.load_state_dict({k: v + 1 for k, v in feedback.plain_state_dict().items()})
    with pytest.warns(UserWarning, match="a copy of an attached model was loaded"):
        frozen(x.requires_grad_())


def test_weights_drawn_anew_before_follow_are_measured_by_it(x):
    model = net()
    feedback = tp.attach(model)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    assert closely(model, feedback, x)
    assert max(feedback.mismatch().values()) < 1e-5


def test_weights_from_elsewhere_are_told_of_after_a_load_too(x):
    model = net()
    tp.attach(model)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    fast = {k: v.detach() + 1 for k, v in model.named_parameters() if "feedback" not in k}
    with pytest.warns(UserWarning, match="another than the model's own"):
        functional_call(model, fast, (x.requires_grad_(),))


@pytest.mark.parametrize("parameters", [True, False])
def test_weights_from_elsewhere_are_not_for_the_feedback_to_learn(x, parameters):
    model = net()
    feedback = tp.attach(model)
    model.load_state_dict({k: v + 1 for k, v in feedback.plain_state_dict().items()})
    other = {k: nn.Parameter(torch.randn_like(v)) for k, v in feedback.plain_state_dict().items()}
    if not parameters:
        other = {k: v.detach() for k, v in other.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional_call(model, other, (x.clone().requires_grad_(),)).sum().backward()
    assert closely(model, feedback, x)


def test_weights_that_a_checkpoint_assigned_are_the_models_own(x):
    model = net()
    feedback = tp.attach(model)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert closely(model, feedback, x)
    own = {name: p.detach() for name, p in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functional_call(model, own, (x.requires_grad_(),)).sum().backward()


def test_a_handle_of_a_part_leaves_the_whole_to_the_first(x):
    model = net()
    feedback = tp.attach(model)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    tp.attach(model[2:])
    state = model.state_dict()
    state.update({k: torch.randn_like(v) for k, v in feedback.plain_state_dict().items()})
    model.load_state_dict(state)
    train(model, optimizer, x, 1)
    assert max(feedback.mismatch().values()) < 1e-4


def test_a_model_that_lost_a_map_is_attached_again(x):
    model = net()
    tp.attach(model)
    model[4] = nn.Identity()
    assert list(tp.attach(model).maps) == ["0", "2"]


@pytest.mark.parametrize("how", ["assigned", "replaced"])
def test_own_weights_passed_to_functional_call_are_learned(x, how):
    model = net()
    feedback = tp.attach(model)
    if how == "assigned":
        plain = {k: torch.randn_like(v) for k, v in feedback.plain_state_dict().items()}
        model.load_state_dict(plain, assign=True)
    else:
        for layer in (model[0], model[2], model[4]):
            layer.weight = nn.Parameter(torch.randn_like(layer.weight))
        feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    loss = (functional_call(model, dict(model.named_parameters()), (x,)) - 1).square().mean()
    loss.backward()
    sent = model[0].weight.grad.clone()
    model.zero_grad()
    with feedback.exact():
        (model(x) - 1).square().mean().backward()
    assert (sent - model[0].weight.grad).norm() <= 1e-4 * sent.norm()


def test_a_run_without_tracking_goes_on_bit_for_bit_when_followed_between_loads(x):
    """ω over tolerance were so when the run was saved; that is no reason to learn them now."""

    def start():
        model = net()
        solver = tp.feedback.PredictiveSolver(tracking=False)
        return model, tp.attach(model, solver=solver)

    model, feedback = start()
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.5))
    train(model, optimizer, x, 9)
    other, again = start()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed = again.follow(torch.optim.SGD(other.parameters(), 0.5))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(copy.deepcopy(feedback.state_dict()))
    train(model, optimizer, x, 9)
    train(other, resumed, x, 9)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_checkpointed_model_compiles_whole(x):
    class Checked(nn.Sequential):
        def forward(self, x):
            for part in self:
                x = checkpoint(part, x, use_reentrant=False)
            return x

    model = Checked(*net())
    feedback = tp.attach(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    sent = torch.autograd.grad(compiled(x).sum(), model[0].weight)[0]
    with feedback.exact():
        wanted = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
    assert (sent - wanted).norm() <= 1e-4 * wanted.norm()


def test_a_copy_that_failed_half_way_does_not_disturb_other_optimizers(x):
    class Refuses(nn.Module):
        def __deepcopy__(self, memo):
            raise ValueError("no copy of this")

    model = nn.Sequential(*net(), Refuses())
    tp.attach(model[:5])
    kept = None
    try:
        copy.deepcopy(model)
    except ValueError as error:
        kept = error  # and with it the frames that hold half a copy
    other = net()
    train(other, torch.optim.SGD(other.parameters(), 0.1), x, 2)
    assert kept is not None


def test_a_model_may_hold_its_own_handle(x):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()
            self.feedback = tp.attach(self)

        def forward(self, x):
            return self.net(x)

    model = copy.deepcopy(Holder())
    assert model.feedback.model is model
    optimizer = model.feedback.follow(torch.optim.SGD(model.parameters(), 0.1))
    train(model, optimizer, x, 20)
    assert max(model.feedback.mismatch().values()) < 1e-4


def test_a_module_that_joined_a_copy_is_named(x):
    model = net()
    feedback = tp.attach(model, strict=True)
    model, feedback = copy.deepcopy((model, feedback))
    model.append(nn.Linear(3, 3))
    with pytest.raises(tp.NotCovered, match=r"'5' \(Linear\) joined"):
        feedback.step()


def test_a_base_class_that_counts_its_subclasses_does_not_see_ours(x):
    seen = {}

    class Named(nn.Linear):
        def __init_subclass__(cls, /, name, **settings):
            assert name not in seen
            seen[name] = cls

    class Mine(Named, name="mine"):
        pass

    model = nn.Sequential(Mine(6, 4), nn.Tanh(), Mine(4, 3))
    feedback = tp.attach(model, x)
    assert seen == {"mine": Mine}
    assert closely(model, feedback, x)
    assert type(Mine(2, 2)) is Mine


def test_a_trace_is_refused_in_one_sentence(x):
    model = net()
    tp.attach(model)
    with pytest.raises(RuntimeError, match=r"traced graph keeps no feedback.*no_grad"):
        torch.jit.trace(model, x)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(model, x)(x), model(x))
