"""Ways to run an attached model that once fell back on θᵀ or forgot its feedback without a word."""

import copy
import dataclasses
import gc
import inspect
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import targetprop as tp
from targetprop.attach import NotCovered
from targetprop.rules import Rule

X, Y = (
    torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    torch.arange(16) % 3,
)


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    ).double()


def wrong():
    """A model whose ω are random, and its gradient of the first weight as a plain pass finds it."""
    model = build()
    feedback = tp.attach(model)
    with torch.no_grad():
        for site in feedback.sites:
            site.omega.normal_()
    F.cross_entropy(model(X), Y).backward()
    own = model[0].weight.grad.clone()
    model.zero_grad()
    return model, feedback, own


def stacked(model):
    states, _ = torch.func.stack_module_state([model])
    base = copy.deepcopy(model).to("meta")
    run = torch.func.vmap(lambda state, x: torch.func.functional_call(base, state, (x,)), (0, None))
    loss = F.cross_entropy(run(states, X)[0], Y)
    return torch.autograd.grad(loss, states["0.weight"])[0][0]


def vmapped(model):
    F.cross_entropy(torch.func.vmap(model)(X), Y).backward()
    return model[0].weight.grad


def functional(model):
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p):
        return F.cross_entropy(
            torch.func.vmap(lambda x: torch.func.functional_call(model, p, (x,)))(X), Y
        )

    return torch.func.grad(loss)(parameters)["0.weight"]


@pytest.mark.parametrize("way", [vmapped, functional, stacked])
def test_transforms_of_torch_func_carry_through_omega(way):
    model, _, own = wrong()
    torch.testing.assert_close(way(model), own)


def test_forward_mode_is_refused():
    model, _, _ = wrong()
    with pytest.raises(RuntimeError, match="forward mode AD"):
        torch.func.jvp(model, (X,), (X,))


@pytest.mark.parametrize(
    "trace",
    [lambda m: torch.export.export(m, (X,)), lambda m: make_fx(m)(X)],
    ids=["export", "make_fx"],
)
def test_exports_that_would_backpropagate_are_refused(trace):
    model, feedback, _ = wrong()
    with pytest.raises(Exception, match="an exported or traced graph keeps no feedback"):
        trace(model)
    with feedback.exact():
        trace(model)


@pytest.mark.parametrize(
    "settings",
    [dict(solver=tp.feedback.PredictiveSolver(tracking=False)), dict(rule="weight_mirror")],
)
def test_a_second_optimizer_drives_probes_as_the_first_did(settings):
    model = build()
    feedback = tp.attach(model, **settings)
    for stage in range(2):
        optimizer = feedback.follow(torch.optim.Adam(model.parameters(), 0.01))
        for _ in range(5):
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
        assert feedback.steps == 5 * (stage + 1)


def test_two_optimizers_in_turn_make_one_step_a_round():
    model = build()
    feedback = tp.attach(model)
    first, second = (feedback.follow(torch.optim.SGD(model[i].parameters(), 0.01)) for i in (0, 2))
    for _ in range(4):
        F.cross_entropy(model(X), Y).backward()
        first.step()
        second.step()
    assert feedback.steps == 4


@pytest.mark.parametrize(
    "change", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_a_weight_that_something_computes_from_now_on_is_probed_soon(change):
    model = build()
    feedback = tp.attach(model)
    optimizer = feedback.follow(torch.optim.Adam(model.parameters(), 0.01))
    for step in range(120):
        if step == 100:
            change(model[2])
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    assert feedback.mismatch()["2"] < 0.05


class Product(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.a, self.c, self.op = nn.Linear(6, 8), nn.Linear(8, 3), op
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return self.c(torch.tanh(self.op(torch.tanh(self.a(x)), self.weight)))


MASK = torch.tril(torch.ones(8, 8, dtype=torch.float64))
CHOSEN = torch.arange(8)


@torch.jit.script
def scripted(h, w):
    return torch.matmul(h, w)


@torch.library.custom_op("targetprop_tests::product", mutates_args=())
def custom(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return h @ w


def saved(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def sent(ctx, e):
    h, w = ctx.saved_tensors
    return e @ w.T, h.T @ e


custom.register_autograd(sent, setup_context=saved)


def modulated(h, w):
    """A modulated convolution, as in StyleGAN2."""
    style = h[:, None, :, None, None]
    kernels = w[None, :, :, None, None] * style
    kernels = kernels * torch.rsqrt(1e-8 + kernels.square().sum((2, 3, 4), keepdim=True))
    x = h.reshape(1, -1, 1, 1)
    y = F.conv2d(x, kernels.reshape(-1, *kernels.shape[2:]), groups=len(h))
    return y.reshape(h.shape)


def experts(h, w):
    """Each sample by the matrix that it chooses."""
    stack = torch.stack([w, 2 * w])
    return torch.einsum("bi,bio->bo", h, stack[(h.sum(1) > 0).long()])


PRODUCTS = {
    "modulated": modulated,
    "kernel": lambda h, w: F.conv1d(
        h.view(1, -1, 1), (w * h[:, None]).view(-1, 8, 1), groups=len(h)
    ).view(len(h), 8),
    "experts": experts,
    "gather": lambda h, w: h @ w[CHOSEN],
    "index_select": lambda h, w: h @ w.index_select(0, CHOSEN),
    "vmap of a product": lambda h, w: torch.vmap(torch.matmul, in_dims=(0, None))(h, w),
    "script": scripted,
    "custom_op": custom,
    "aten": lambda h, w: torch.ops.aten.mm.default(h, w),
    "addmm_": lambda h, w: torch.zeros(len(h), 8, dtype=h.dtype).addmm_(h, w),
    "solve_triangular": lambda h, w: torch.linalg.solve_triangular(w, h.T, upper=True).T,
    "embedding_bag": lambda h, w: F.embedding_bag(
        CHOSEN.expand(len(h), 8), w, per_sample_weights=h, mode="sum"
    ),
    "rows": lambda h, w: torch.stack([h @ row for row in w], 1),
    "sum": lambda h, w: (h[:, None] * w).sum(-1),
    "cosine": lambda h, w: F.cosine_similarity(h[:, None], w[None], dim=-1),
    "detached": lambda h, w: h @ w.detach(),
    "copied": lambda h, w: h @ torch.empty_like(w).copy_(w),
    "attention": lambda h, w: F.scaled_dot_product_attention(h, w, w),
    "mask": lambda h, w: F.linear(h, w * MASK),
    "identity": lambda h, w: h @ (torch.eye(8, dtype=w.dtype) + w),
    "where": lambda h, w: h @ torch.where(MASK > 0, w, 0 * MASK),
    "linalg.matmul": torch.linalg.matmul,
    "linalg.multi_dot": lambda h, w: torch.linalg.multi_dot([h, w, w]),
    "linalg.solve": lambda h, w: torch.linalg.solve(w, h.T).T,
    "cdist": torch.cdist,
    "vmap": lambda h, w: torch.func.vmap(lambda v: v @ w)(h),
}


@pytest.mark.parametrize("op", PRODUCTS)
def test_products_outside_maps_are_named(op):
    with pytest.raises(NotCovered, match="'weight' is multiplied by"):
        tp.attach(Product(PRODUCTS[op]).double(), X, strict=True)


def gate(h, w):
    """Weights that only scale or add: LayerScale, positions, gates, bias of positions, norms."""
    tokens = h.view(2, 8, 8)
    tokens = tokens + w + w[CHOSEN]
    tokens = F.layer_norm(tokens * w, (8, 8), w, w)
    scores = torch.baddbmm(w.expand(2, 8, 8), tokens, tokens.mT)
    tokens = F.scaled_dot_product_attention(
        tokens[:, None], tokens[:, None], tokens[:, None], attn_mask=w + scores[:, None]
    )[:, 0]
    scale, gains = w[0].view(8, 1, 1), w[1]
    images = F.group_norm(tokens.mT.reshape(2, 8, 4, 2) * scale, 2, gains, gains)
    pooled = (images * torch.sigmoid(w[2]).view(1, 8, 1, 1)).mean((2, 3))
    table = F.embedding((h[:, 0] > 0).long(), w)
    return h + pooled.repeat_interleave(8, 0) + (table * h @ h.T) @ table


def test_weights_that_scale_or_add_are_no_products():
    model = Product(gate).double()
    tp.attach(model, X, strict=True)
    model.op = lambda h, w: torch.stack([h, (h.detach() @ w)]).sum(0)
    twin = copy.deepcopy(model)
    tp.attach(twin, strict=True)
    twin(X)


def test_only_leaves_the_watch_on():
    model = nn.Sequential(Product(torch.matmul).double())
    with pytest.raises(NotCovered, match=r"'0\.weight'"):
        tp.attach(model, X, only="0", strict=True)


class Branch(nn.Module):
    """An auxiliary branch that only training runs."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(h @ self.weight if self.training else h)


@pytest.mark.parametrize("inputs", [(), (X,)], ids=["first pass", "example inputs"])
def test_a_branch_of_training_is_seen_after_a_pass_in_eval(inputs):
    model = Branch().double().eval()
    feedback = tp.attach(model, *inputs, strict=True)
    model(X)
    model.train()
    with pytest.raises(NotCovered, match="'weight' is multiplied by mm"):
        model(X)
    assert feedback.first_pass.done


def test_a_module_added_after_attach_is_told_so():
    model = nn.Sequential(*build())
    tp.attach(model, strict=True)
    model.append(nn.Linear(3, 3).double())
    with pytest.raises(NotCovered, match=r"'5' was added after attach; call detach\(\) and"):
        model(X)


def test_a_hook_that_multiplies_beside_a_map_is_named():
    model = build()
    model.low = nn.Parameter(torch.randn(8, 8).double())
    model[2].register_forward_hook(lambda module, args, out: out + args[0] @ model.low)
    model.forward = lambda x: model[4](model[2](model[0](x)))
    with pytest.raises(NotCovered, match="'low' is multiplied by mm"):
        tp.attach(model, X, strict=True)


def test_learned_queries_through_maps_are_signals():
    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.q, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.queries = nn.Parameter(torch.randn(4, 8))

        def forward(self, x):
            h = self.a(x)
            return self.c((self.q(self.queries) @ h.T).softmax(-1) @ h)

    tp.attach(Pooling().double(), X, strict=True)


def test_the_watch_changes_no_number_and_leaves_parts_to_the_compiler():
    class Part(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = nn.Sequential(build()[0], Part(*build()[1:4]), build()[4])
    plain = model(X)
    model[1].compile(backend=backend)
    tp.attach(model, rule="symmetric", strict=True)
    for _ in range(2):
        assert torch.equal(model(X), plain)
    assert graphs


def test_a_model_whose_own_forward_never_runs_is_told_of():
    model = build()
    optimizer = tp.attach(model, strict=True).follow(torch.optim.SGD(model.parameters(), 0.1))
    x = X
    for part in model:
        x = part(x)
    x.sum().backward()
    with pytest.raises(NotCovered, match="never ran eagerly"):
        optimizer.step()


def test_lbfgs_is_refused_with_tracking_only():
    model = build()
    with pytest.raises(ValueError, match="L-BFGS steps along one direction"):
        tp.attach(model).follow(torch.optim.LBFGS(model.parameters()))
    losses = []
    for attached in (False, True):
        model = build()
        optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=4)
        if attached:
            tp.attach(model, solver=tp.feedback.PredictiveSolver(1e-12, tracking=False)).follow(
                optimizer
            )

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
            return loss

        losses.append([optimizer.step(closure).item() for _ in range(2)])
    assert losses[0][0] == pytest.approx(losses[1][0])


def test_direct_feedback_forgets_the_error_when_its_pass_ends():
    model = build()
    tp.attach(model, X, rule="direct_feedback_alignment")
    inner = model[:4](X)
    F.cross_entropy(model(X), Y).backward()
    with pytest.raises(RuntimeError, match="does not depend on the last map"):
        inner.square().sum().backward()


def test_what_would_change_nothing_is_refused():
    model = build()
    with pytest.raises(ValueError, match="skip='typo' matches no module"):
        tp.attach(model, skip="typo")
    with pytest.raises(ValueError, match=r"beta=0\.1 finds no activation"):
        tp.attach(nn.Linear(3, 2), beta=0.1)
    tp.attach(model)
    with pytest.raises(ValueError, match=r"attached already.*beta=0\.1"):
        tp.attach(model, beta=0.1)
    with pytest.raises(
        ValueError, match=r"a part of the model is attached already but '1' \(Linear\) is not"
    ):
        tp.attach(nn.Sequential(model, nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="complex weights"):
        tp.attach(nn.Sequential(nn.Linear(3, 2, dtype=torch.complex128)))


class Scale(nn.LayerNorm):
    def forward(self, x):
        return x * self.weight


def test_settings_that_reach_a_part_of_the_model_say_what_they_miss():
    tp.attach(build(), gains="learned", strict=True)  # no γ at all: none is read on the way back
    model = nn.Sequential(nn.Linear(4, 4), Scale(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"attach knows \(there is '1' \(Scale\)\)"):
        tp.attach(model, gains="learned")
    with pytest.warns(UserWarning, match=r"no feedback gains to '1' \(Scale\), read as they are"):
        tp.attach(nn.Sequential(*model, nn.LayerNorm(2)), gains="learned")
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.PReLU(), nn.ReLU6())
    with pytest.warns(UserWarning, match=r"nudges no '3' \(PReLU\), '4' \(ReLU6\), whose exact"):
        feedback = tp.attach(model, beta=0.1)
    assert str(feedback).endswith("nudged by β = 0.1: '1' (ReLU)")
    feedback.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tp.attach(model, beta=0.1, skip="^[34]$")


@pytest.mark.parametrize("inputs", [(), (X,)], ids=["first pass", "example inputs"])
def test_a_copy_attached_again_is_watched_as_strictly(inputs):
    model = Product(torch.matmul).double()
    with pytest.warns(UserWarning, match="'weight' is multiplied by mm"):
        tp.attach(model, X)
    twin = copy.deepcopy(model)

    def run():
        tp.attach(twin, *inputs, strict=True)
        twin(X)

    with pytest.raises(NotCovered, match="'weight' is multiplied by mm"):
        run()


def test_example_inputs_of_a_copy_leave_its_omegas_as_they_are():
    model = build()
    feedback = tp.attach(model, rule="feedback_alignment")
    twin = copy.deepcopy(model)
    again = tp.attach(twin, X, rule="feedback_alignment")
    assert list(again.maps) == list(feedback.maps)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ((nn.Linear,), TypeError, "takes a torch.nn.Module, got the class Linear; give"),
        ((build(), (X, Y)), TypeError, r"the example input, a tuple .*attach\(model, x\)"),
        ((build(), dict(only="(")), ValueError, r"only='\(' is no regular expression"),
        ((build(), dict(skip=3)), ValueError, "skip=3 is no regular expression"),
        ((build(), dict(seed="a")), TypeError, "seed='a' is no integer"),
    ],
)
def test_odd_arguments_are_refused_in_a_sentence(given, error, sentence):
    settings = given[-1] if isinstance(given[-1], dict) else {}
    with pytest.raises(error, match=sentence):
        tp.attach(*(g for g in given if g is not settings), **settings)


def test_a_state_of_something_else_is_refused():
    feedback = tp.attach(build())
    for state in ({}, build().state_dict()):
        with pytest.raises(ValueError, match=r"no state of a feedback; give what feedback\.state"):
            feedback.load_state_dict(state)
    other = build()
    other[2], other[4] = nn.Linear(8, 9).double(), nn.Linear(9, 3).double()
    with pytest.raises(ValueError, match="other maps than the model's: 2, 4 differ"):
        feedback.load_state_dict(tp.attach(other).state_dict())


def test_a_map_without_omega_is_named():
    model = build()
    tp.attach(model, X)
    with pytest.raises(RuntimeError, match=r"'0' \(Linear\) has no feedback weights"):
        model(X.clone().requires_grad_())


def test_alignment_refuses_a_handle_of_something_else_and_a_loss_without_its_model():
    model, other = build(), build()
    feedback, gone = tp.attach(model), tp.attach(other)

    def loss(m):
        return F.cross_entropy(m(X), Y)

    with pytest.raises(ValueError, match="this feedback is another model's"):
        tp.analysis.alignment(model, gone, loss)
    gone.detach()
    with pytest.raises(ValueError, match="this feedback was detached"):
        tp.analysis.alignment(other, gone, loss)
    for given in ((X, Y), (F.cross_entropy,), (nn.CrossEntropyLoss(),), (X,)):
        with pytest.raises(TypeError, match=r"give loss_fn: lambda m: loss\(m\(x\), y\)"):
            tp.analysis.alignment(model, feedback, *given)
    compiled = torch.compile(model, backend="eager")
    assert len(tp.analysis.alignment(compiled, feedback, loss)) == 6


def test_paired_networks_that_ran_direct_feedback_are_copied_and_algorithms_pickled():
    net = tp.pair(build())
    algo = tp.algorithms.DirectFeedbackAlignment(net)
    algo.backward(X, Y)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(X), net(X))
    plain = tp.algorithms.FeedbackAlignment(tp.pair(build()))
    plain.backward(X, Y)
    other = pickle.loads(pickle.dumps(plain))
    torch.testing.assert_close(other.net(X), plain.net(X))


@pytest.mark.parametrize(
    "refused", [dict(skip="typo"), dict(beta=0.1), dict()], ids=["skip", "beta", "complex"]
)
def test_what_is_refused_leaves_the_model_as_it_was(refused):
    model = nn.Sequential(
        nn.Linear(3, 3), nn.Linear(3, 2, dtype=torch.float32 if refused else torch.complex64)
    )
    with pytest.raises(ValueError, match=r"matches no module|finds no activation|complex weights"):
        tp.attach(model, **refused)
    assert [type(module) for module in model] == [nn.Linear, nn.Linear]
    assert not any("feedback" in name for name in model.state_dict())


def test_the_reminder_needs_no_forward_of_the_whole_model():
    model = build()
    tp.attach(model, X)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            x = X
            for part in model:
                x = part(x)
            x.sum().backward()
            optimizer.step()
    assert any("feedback learns nothing" in " ".join(str(t.message).split()) for t in told)


class Nameless(Rule):
    """A rule of the user's that says too little."""


@dataclasses.dataclass(frozen=True)
class Misshapen(Rule):
    """A rule of the user's that sends what no map takes."""

    name, equation, papers = "misshapen", "B = row", ("lillicrap2016",)

    def sent(self, theta, omega):
        return omega.flatten()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"rule": Nameless()},
            "has no name and no equation and no papers; set the class",
        ),
        ({"rule": Misshapen}, r"is a class; give a value of it: Misshapen\(\)"),
        ({"rule": Misshapen(), "solver": "predictive"}, r"from its method solver\(\)"),
        ({"beta": "a"}, "'a' is no positive number"),
        ({"beta": True}, "True is no positive number"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"seed": 2**70}, "is out of range"),
        ({"strict": "no"}, "neither True nor False"),
        ({"skip": ["0", "2"]}, r"such as skip=r'\^\(0\|2\)\$'"),
    ],
)
def test_odd_arguments_are_one_sentence(settings, sentence):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises((ValueError, TypeError), match=sentence):
        tp.attach(model, **settings)
    assert not hasattr(model[0], "feedback_weight")


def test_what_a_rule_sends_is_shaped_like_the_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    tp.attach(model, rule=Misshapen())
    with pytest.raises(
        ValueError, match=r"sent\(\) of the rule Misshapen gave shape \(16,\) for '0'"
    ):
        model(torch.randn(3, 4, requires_grad=True)).sum().backward()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (kind, {name: odd})
        for kind in (tp.feedback.PredictiveSolver, tp.feedback.CoupledSolver, tp.feedback.SGDSolver)
        for name in inspect.signature(kind).parameters
        for odd in ("a", {}, 1j)
    ],
)
def test_settings_of_solvers_are_of_their_kind(kind, settings):
    with pytest.raises(ValueError, match=r"is no number|neither True nor False"):
        kind(**settings)


@pytest.mark.parametrize("state", [None, [], 3, "x", {"maps": {}, "stale": "a"}])
def test_what_is_no_state_of_a_feedback_is_refused(state):
    feedback = tp.attach(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="state"):
        feedback.load_state_dict(state)


def test_a_registered_map_must_call_its_weight_weight():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return x @ self.w

    tp.register(Mixer, lambda module: lambda x, w: x @ w)
    with pytest.raises(ValueError, match=r"no parameter called 'weight'.*; name it so"):
        tp.attach(nn.Sequential(Mixer(), nn.Linear(4, 2)))


def test_attached_again_the_first_handle_says_nothing_false():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    first = tp.attach(model)
    optimizer = first.follow(torch.optim.SGD(model.parameters(), 0.1))
    tp.attach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()


def test_a_map_whose_optimizer_is_gone_was_tracked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    feedback = tp.attach(model)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.1))
    assert "tracked, probed" in repr(feedback)
    del optimizer
    gc.collect()
    assert "tracked until its optimizer was gone, probed" in repr(feedback)


def test_warnings_point_at_the_users_line(recwarn):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    tp.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)  # not followed
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
    (told,) = [w for w in recwarn if "learns nothing" in str(w.message)]
    assert told.filename == __file__
