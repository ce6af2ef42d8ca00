"""What attach must keep through copies, checkpoints, late optimizers, odd ways to run a model."""

import copy
import gc
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import targetprop as tp
from targetprop.attach import NotCovered

X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4


def build(bias=True):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(8, 16, bias),
        nn.Tanh(),
        nn.Linear(16, 16, bias),
        nn.Tanh(),
        nn.Linear(16, 4, bias),
    )


def scramble(model):
    """ω far from θ, so that a signal through θ shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "feedback" in name:
                parameter.normal_()


def gradient(model):
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    return model[0].weight.grad.clone()


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_made_while_backpropagating_sends_feedback(way):
    model = build()
    feedback = tp.attach(model, X)
    scramble(model)
    with feedback.exact():
        other = way(model)
    torch.testing.assert_close(gradient(other), gradient(model))


def test_a_gradient_of_the_input_needs_feedback_weights_under_transforms_too():
    model = build(bias=False)
    tp.attach(model, X, rule="feedback_alignment")
    for of_input in (
        lambda: torch.func.grad(lambda x: model(x).sum())(X),
        lambda: torch.func.vmap(torch.func.grad(lambda x: model(x).sum()))(X),
        lambda: torch.func.grad(lambda x: torch.func.vmap(lambda v: model(v).sum())(x).sum())(X),
    ):
        with pytest.raises(RuntimeError, match="no feedback weights"):
            of_input()


def test_gradients_of_parameters_are_the_same_under_transforms():
    model = build()
    tp.attach(model, X)
    scramble(model)
    parameters = {name: p for name, p in model.named_parameters() if "feedback" not in name}

    def loss(p, x, y):
        return F.cross_entropy(torch.func.functional_call(model, p, (x,)), y)

    eager = gradient(model)
    torch.testing.assert_close(torch.func.grad(loss)(parameters, X, Y)["0.weight"], eager)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, X[:, None], Y[:, None])
    torch.testing.assert_close(each["0.weight"].mean(0), eager)


class Tapped(nn.Module):
    """Uses a layer's weight beside the layer."""

    def __init__(self):
        super().__init__()
        self.blk = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.o = nn.Linear(8, 2)

    def forward(self, x):
        return self.o(F.linear(self.blk(x), self.blk[1].weight))


@pytest.mark.parametrize("choice", [dict(), dict(skip="^blk$"), dict(only=r"blk\.|^o$")])
def test_leaving_out_a_container_does_not_hide_its_children(choice):
    with pytest.raises(NotCovered, match=r"blk\.1\.weight"):
        tp.attach(Tapped(), X, strict=True, **choice)


def test_the_output_projection_of_an_attention_left_out_is_left_out():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.attn = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.a(x)
            return self.attn(x, x, x)[0]

    feedback = tp.attach(Block(), torch.randn(2, 3, 8), skip="attn$", only=None)
    assert "attn.out_proj" not in feedback.maps


class Mul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, e):
        x, w = ctx.saved_tensors
        return e @ w, e.T @ x


class Fused(nn.Linear):
    def forward(self, x):
        return Mul.apply(x, self.weight)


class Segment(nn.Module):
    def __init__(self, reentrant, bare=True):
        super().__init__()
        self.a, self.b, self.c, self.reentrant = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 4),
            reentrant,
        )
        self.w = nn.Parameter(torch.randn(8, 8)) if bare else None

    def forward(self, x):
        def segment(h):
            h = torch.tanh(self.b(h))
            return h if self.w is None else h @ self.w

        return self.c(checkpoint(segment, self.a(x), use_reentrant=self.reentrant))


def test_products_within_a_function_of_autograd_are_named():
    with pytest.raises(NotCovered, match=r"1\.weight"):
        tp.attach(nn.Sequential(nn.Linear(8, 8), Fused(8, 8), nn.Linear(8, 2)), X, strict=True)


@pytest.mark.parametrize("reentrant", [True, False])
def test_products_under_checkpointing_are_named(reentrant):
    with pytest.raises(NotCovered, match="'w'"):
        tp.attach(Segment(reentrant), X, strict=True)


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_within_a_checkpointed_segment_have_feedback(reentrant):
    model = Segment(reentrant, bare=False)
    feedback = tp.attach(model, X, strict=True)
    assert "b" in feedback.maps
    F.cross_entropy(model(X), Y).backward()
    assert model.a.weight.grad.norm() > 0


def test_weights_drawn_anew_before_the_first_step_are_found_by_it():
    """As under DDP, which sends θ of the first process to all, but no ω."""
    model = build()
    feedback = tp.attach(model, X)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    with torch.no_grad():
        for layer in (model[2], model[4]):
            layer.weight.normal_()
    assert min(feedback.mismatch().values()) > 0.5
    train(model, optimizer, 1)
    assert max(feedback.mismatch().values()) < 1e-4


def test_layers_unfrozen_later_are_tracked():
    def learning():
        return [p for p in model.parameters() if p.requires_grad]

    model = build()
    model[2].requires_grad_(False)
    feedback = tp.attach(model, X)
    optimizer = feedback.follow(torch.optim.AdamW(learning(), 1e-2))
    train(model, optimizer, 2)
    assert "2" in feedback.maps
    assert "tracked" not in str(feedback).splitlines()[1]
    model[2].weight.requires_grad_(True)
    model[2].bias.requires_grad_(True)
    optimizer.add_param_group({"params": [model[2].weight, model[2].bias]})
    train(model, optimizer, 8)
    assert "tracked" in str(feedback).splitlines()[1]
    assert max(feedback.mismatch().values()) < 1e-4


def test_a_plain_checkpoint_is_probed_though_the_memory_is_restored_too():
    model = build()
    feedback = tp.attach(model, X)
    train(model, feedback.follow(torch.optim.SGD(model.parameters(), 0.3)), 5)
    plain, state = copy.deepcopy(feedback.plain_state_dict()), feedback.state_dict()
    torch.manual_seed(9)
    other = nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)
    )
    second = tp.attach(other, X)
    optimizer = second.follow(torch.optim.SGD(other.parameters(), 0.3))
    other.load_state_dict(plain)
    second.load_state_dict(state)
    train(other, optimizer, 1)
    assert max(second.mismatch().values()) < 1e-4


@pytest.mark.parametrize("follow_first", [True, False])
def test_the_schedule_of_probes_is_restored_in_either_order(follow_first):
    model = build()
    feedback = tp.attach(model, X)
    train(model, feedback.follow(torch.optim.SGD(model.parameters(), 0.01)), 40)
    state, waits = (
        feedback.state_dict(),
        [memory.wait for memory in feedback.learning.memory.values()],
    )
    assert max(waits) > 11
    other = tp.attach(build(), X)
    optimizer = torch.optim.SGD(other.model.parameters(), 0.01)
    if follow_first:
        other.follow(optimizer)
    other.load_state_dict(state)
    other.follow(optimizer)
    assert [memory.wait for memory in other.learning.memory.values()] == waits


def test_a_state_of_another_rule_is_refused():
    mirrored = tp.attach(build(), X, rule="weight_mirror").state_dict()
    with pytest.raises(
        ValueError, match="is of rule weight_mirror, but the model is attached by ldrl"
    ):
        tp.attach(build(), X).load_state_dict(mirrored)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copied_handle_follows_nothing_until_it_is_told_to(way):
    model = build()
    feedback = tp.attach(model, X)
    train(model, feedback.follow(torch.optim.SGD(model.parameters(), 0.3)), 2)
    other = way(feedback)
    assert not other.followed
    optimizer = torch.optim.SGD(
        [p for n, p in other.model.named_parameters() if "feedback" not in n], 0.3
    )
    other.follow(optimizer)
    steps = other.steps
    train(other.model, optimizer, 20)
    assert other.steps == steps + 20
    assert max(other.mismatch().values()) < 1e-4


def test_the_feedback_of_a_model_made_on_meta_is_drawn_when_it_is_there():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    tp.attach(model, rule="feedback_alignment", seed=3)
    gc.collect()  # nobody kept the handle
    model.to_empty(device="cpu")
    for layer in (model[0], model[2]):
        layer.reset_parameters()
    with torch.no_grad():
        model[2].feedback_weight.fill_(float("nan"))
    model(X)
    drawn = tp.attach(
        nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)),
        rule="feedback_alignment",
        seed=3,
    )
    assert torch.equal(model[2].feedback_weight, drawn.model[2].feedback_weight)


def test_a_lost_feedback_weight_recovers():
    model = build()
    feedback = tp.attach(model, X)
    with torch.no_grad():
        model[2].feedback_weight.fill_(float("nan"))
    feedback.follow(torch.optim.SGD(model.parameters(), 0.1))
    feedback.step()
    assert max(feedback.mismatch().values()) < 1e-4


def test_hooks_registered_after_follow_see_the_gradient_of_theta_alone():
    model = build()
    feedback = tp.attach(model, X)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.3))
    seen = []

    def clip(optimizer, args, kwargs):
        seen.append(
            [n for n, p in model.named_parameters() if "feedback" in n and p.grad is not None]
        )
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    train(model, optimizer, 1)
    optimizer.register_step_pre_hook(clip)
    train(model, optimizer, 1)  # ours goes behind it after the step that first met it
    train(model, optimizer, 6)
    assert not any(seen[1:])
    assert max(feedback.mismatch().values()) < 1e-4


def test_an_adopted_copy_says_nothing_false_and_is_given_back_clean():
    model = build()
    tp.attach(model)
    other = copy.deepcopy(model)
    feedback = tp.attach(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(other, feedback.follow(torch.optim.SGD(other.parameters(), 0.1)), 3)
    feedback.detach()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in other.modules())


def test_a_checkpoint_loaded_before_training_is_no_step():
    model = build()
    tp.attach(model, X)
    plain = build().state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X)
        model.load_state_dict(plain)
        model(X)


def test_parts_attached_apart_are_refused_as_a_whole():
    model = nn.Sequential(build(), nn.Linear(4, 4))
    tp.attach(model[0])
    tp.attach(nn.Sequential(model[1]))
    with pytest.raises(ValueError, match="each with a feedback of its own"):
        tp.attach(model)


@pytest.mark.parametrize("settings", [dict(rule="weight_mirror"), dict(solver="coupled")])
def test_the_solvers_memory_follows_the_model(settings):
    model = build()
    feedback = tp.attach(model, **settings)
    model.double()
    feedback.step()
    assert max(feedback.mismatch().values()) < 0.2


def test_iterations_of_the_correlation_count():
    one, many = (
        tp.attach(build(), solver=tp.feedback.CorrelationSolver(iterations=n)) for n in (1, 50)
    )
    one.step()
    many.step()
    assert one.learning.memory["2"].probes + 49 == many.learning.memory["2"].probes


@pytest.mark.parametrize(
    "settings",
    [
        dict(rule="weight_mirror", solver="predictive"),
        dict(rule="sign_symmetry", solver=tp.feedback.Fixed(tracking=True)),
    ],
)
def test_a_solver_that_makes_another_rule_of_it_is_refused(settings):
    with pytest.raises(ValueError, match="which makes another rule of it"):
        tp.attach(build(), **settings)


def test_a_subclass_of_an_activation_takes_the_nudge():
    class MyReLU(nn.ReLU):
        pass

    model = nn.Sequential(nn.Linear(8, 16), MyReLU(), nn.Linear(16, 4))
    tp.attach(model, X, beta=0.1)
    gradient(model)
    assert model[0].weight.grad.isfinite().all()


def test_learned_gains_keep_the_format_of_autocast():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    x = torch.randn(2, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(x).dtype
        tp.attach(model, gains="learned")
        assert model(x).dtype == wanted


def test_probes_within_autocast_are_as_exact_as_without():
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    with torch.autocast("cpu", torch.bfloat16):
        feedback = tp.attach(model, torch.randn(2, 16))
        assert max(feedback.mismatch().values()) < 1e-5
        with torch.no_grad():
            model[2].feedback_weight.zero_()
        feedback.link.loads.stale = True
        feedback.step()
    assert max(feedback.mismatch().values()) < 1e-5


def test_redrawn_sizes_of_a_registered_map_are_those_of_the_first_draw():
    class Own(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight)

    tp.register(Own, lambda m: lambda x, w: F.conv2d(x, w))
    try:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), Own(4, 8, 3, bias=False))
        feedback = tp.attach(model, torch.randn(2, 1, 9, 9), rule=tp.rules.SignSymmetry("brSF"))
        first = model[1].feedback_weight.abs().max()
        feedback.step()
        assert model[1].feedback_weight.abs().max() < 1.5 * first
    finally:
        del tp.maps.MAPS[Own]


def test_a_registered_function_that_is_not_the_forward_is_refused():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 3 * F.linear(x, self.weight)

    tp.register(Scaled, lambda m: F.linear, bias_dim=-1)
    try:
        with pytest.raises(ValueError, match="computes another map"):
            tp.attach(nn.Sequential(nn.Linear(8, 8), Scaled(8, 2, bias=False)), X)
    finally:
        del tp.maps.MAPS[Scaled]


def test_mismatch_is_of_what_the_rule_sends():
    model = build()
    feedback = tp.attach(model, X, rule="sign_symmetry")
    rule = feedback.rule
    theta, omega = model[2].weight, model[2].feedback_weight
    expected = ((rule.sent(theta, omega) - theta).norm() / theta.norm()).item()
    assert feedback.mismatch()["2"] == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_first_pass_leaves_nothing_behind():
    class Stops(nn.Sequential):
        stop = True

        def forward(self, x):
            if self.stop:
                raise KeyboardInterrupt
            return super().forward(x)

    model = Stops(*build())
    tp.attach(model)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    model.stop = False
    model(X)
    assert torch._C._len_torch_dispatch_stack() == 0


def test_a_forward_that_returns_nothing_is_watched_once():
    class Silent(nn.Sequential):
        def forward(self, x):
            self.out = super().forward(x)

    model = Silent(*build())
    feedback = tp.attach(model)
    model(X)
    assert feedback.first_pass.done


def test_a_buffer_that_the_forward_replaces_is_put_back():
    class Averages(nn.Linear):
        def __init__(self):
            super().__init__(8, 4)
            self.register_buffer("ema", torch.zeros(()))

        def forward(self, x):
            self.ema = 0.9 * self.ema + 0.1 * x.mean()
            return F.linear(x, self.weight)

    model = nn.Sequential(nn.Linear(8, 8), Averages(), nn.Linear(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tp.attach(model, X)
    assert model[1].ema == 0


def test_a_compiled_module_is_attached_as_what_it_compiles():
    model = build()
    feedback = tp.attach(torch.compile(model, backend="eager"), X)
    assert feedback.model is model


def test_names_of_an_optimizers_parameters_stay_in_step():
    model = build()
    feedback = tp.attach(model, X)
    optimizer = torch.optim.AdamW(
        n_p for n_p in model.named_parameters() if "feedback" not in n_p[0]
    )
    if "param_names" not in optimizer.param_groups[0]:
        pytest.skip("this torch keeps no names")
    feedback.follow(optimizer)
    names = dict(
        zip(
            optimizer.param_groups[0]["param_names"],
            optimizer.param_groups[0]["params"],
            strict=True,
        )
    )
    assert names["2.feedback_weight"] is model[2].feedback_weight
    feedback.detach()
    assert (
        len(optimizer.param_groups[0]["param_names"])
        == len(optimizer.param_groups[0]["params"])
        == 6
    )


def test_a_parameter_called_like_a_feedback_weight_is_refused():
    class Own(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.feedback_weight = nn.Parameter(torch.zeros(3))

    with pytest.raises(ValueError, match="where ω would go"):
        tp.attach(nn.Sequential(nn.Linear(8, 8), Own()))


def test_classes_made_for_a_model_go_with_it():
    import gc

    from targetprop.attach import kinds

    def once():
        model = nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 2)
        )
        tp.attach(model).detach()

    once()
    gc.collect()
    before = len(kinds._classes)
    for _ in range(3):
        once()
    gc.collect()
    assert len(kinds._classes) <= before


def test_a_registered_map_that_never_ran_eagerly_is_named():
    class Own(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight)

    tp.register(Own, lambda m: F.linear, bias_dim=-1)
    try:
        model = nn.Sequential(nn.Linear(8, 8), Own(8, 2, bias=False))
        feedback = tp.attach(model)
        with pytest.warns(UserWarning, match="the ω of '1' cannot learn before"):
            feedback.step()
    finally:
        del tp.maps.MAPS[Own]


class Lower(nn.Linear):
    """Uses the lower triangle of its weight alone."""

    def forward(self, x):
        return F.linear(x, self.weight.tril(), self.bias)


def test_the_mismatch_of_a_registered_map_is_that_of_what_it_computes():
    tp.register(Lower, lambda module: lambda x, w: x @ w.tril().T)
    try:
        feedback = tp.attach(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), Lower(8, 8)), torch.randn(2, 8)
        )
        # above the diagonal nothing can be learned
        assert feedback.sites[0].omega.sub(feedback.sites[0].theta).norm() > 0.1
        assert feedback.mismatch()["2"] < 0.01
    finally:
        del tp.maps.MAPS[Lower]
