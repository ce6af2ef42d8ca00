"""Attached modules take what the plain ones take: shapes, forms, calls, or say why not at once."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import targetprop as tp
from targetprop.attach.kinds import KINDS
from targetprop.attach.refusals import label
from targetprop.laboratory.activations import MODULES as ACTIVATIONS
from targetprop.maps import MAPS, AutogradMap

RULES = (
    "ldrl", "feedback_alignment", "kolen_pollack", "weight_mirror", "sign_symmetry", "symmetric",
)  # fmt: skip
DIRECT = dict(rule="direct_feedback_alignment")


def normal(*shape, seed=0):
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def chain(*parts):
    torch.manual_seed(0)
    for part in nn.Sequential(*parts).modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return nn.Sequential(*parts).double()


def dense(*between):
    return chain(nn.Linear(4, 6), *between, nn.Linear(6, 3))


def gradients(model, x, loss=lambda y: y.square().mean()):
    """Output, then the gradients of the loss in x and all that learns."""
    y = model(x)
    own = [p for p in model.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(loss(y), [x, *own], allow_unused=True)]


def same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


# activations at a finite nudge


@pytest.mark.parametrize("kind", [k for k in ACTIVATIONS if k is not nn.Identity])
def test_every_activation_sends_its_difference(kind):
    x, e = normal(5, 3), normal(5, 3, seed=1).detach()
    plain, module = kind(), nn.Sequential(kind(), nn.Linear(3, 3)).double()
    tp.attach(module, rule="symmetric", beta=0.1)
    (found,) = torch.autograd.grad(module[0](x), x, e)
    rho = ACTIVATIONS[kind](plain)
    y, saved = rho.forward(x.detach())
    torch.testing.assert_close(y, plain(x.detach()))
    torch.testing.assert_close(found, -rho.difference(saved, -0.5 * e) / 0.5)
    module[0]._feedback.beta = 1e-6
    (found,) = torch.autograd.grad(module[0](x), x, e)
    torch.testing.assert_close(found, torch.autograd.grad(plain(x), x, e)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [k for k in ACTIVATIONS if k is not nn.Identity])
def test_a_finite_nudge_leaves_what_the_plain_activation_lets_one_write_into(kind):
    def run(model):
        y = model[1](model[0](x))
        y += 1
        return torch.autograd.grad(model[2](y).square().mean(), x)[0]

    x = normal(5, 4)
    model, reference = dense(kind()), dense(kind())
    tp.attach(model, rule="symmetric", beta=1e-6)
    try:
        wanted = run(reference)
    except RuntimeError:  # torch's own keeps its output
        return
    torch.testing.assert_close(run(model), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "kind", [nn.ReLU, nn.ELU, nn.LeakyReLU, nn.SELU, nn.CELU, nn.SiLU, nn.Mish, nn.Hardswish]
)
@pytest.mark.parametrize("used", [True, False])
def test_an_activation_in_place_writes_its_input_at_a_finite_nudge(kind, used):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rho, self.last = nn.Linear(4, 6), kind(inplace=True), nn.Linear(6, 3)

        def forward(self, x):
            h = self.first(x)
            y = self.rho(h)
            return self.last(y if used else h)

    x, model = normal(5, 4), chain(Net())
    reference = copy.deepcopy(model)
    tp.attach(model, rule="symmetric", beta=1e-6)
    for one, other in zip(gradients(model, x), gradients(reference, x), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_finite_nudge_differentiates_twice():
    x, model = normal(5, 4), dense(nn.GELU())
    reference = copy.deepcopy(model)
    tp.attach(model, rule="symmetric", beta=1e-6)
    second = []
    for net in (model, reference):
        (g,) = torch.autograd.grad(net(x).square().mean(), x, create_graph=True)
        second.append(torch.autograd.grad(g.square().sum(), net[0].weight)[0])
    torch.testing.assert_close(*second, atol=1e-4, rtol=1e-4)


def test_a_finite_nudge_within_vmap_is_refused():
    model = dense(nn.GELU())
    tp.attach(model, beta=0.1)
    with pytest.raises(RuntimeError, match=r"the number of samples, which torch.func.vmap hides"):
        torch.func.vmap(model)(normal(5, 4))


def test_a_finite_nudge_takes_a_single_number():
    model = chain(nn.Tanh(), nn.Linear(1, 1))
    tp.attach(model, beta=0.1)
    model[0](normal(1)[0]).backward()


# direct feedback alignment


def test_direct_feedback_refuses_learned_gains():
    model = chain(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="gains='learned' would change nothing"):
        tp.attach(model, normal(2, 4), gains="learned", **DIRECT)
    assert [type(m) for m in model] == [nn.Linear, nn.LayerNorm, nn.Linear]


class Halved(nn.Module):
    def forward(self, x):
        x /= 2
        return x


@pytest.mark.parametrize("after", [nn.ReLU(inplace=True), Halved()])
def test_direct_feedback_lets_one_write_into_what_a_map_makes(after):
    other = copy.deepcopy(after)
    if hasattr(other, "inplace"):
        other.inplace = False
    found = []
    for part in (after, other if hasattr(other, "inplace") else nn.Identity()):
        model = chain(nn.Linear(4, 6), nn.Linear(6, 6), part, nn.Linear(6, 3), part)
        x = normal(5, 4)
        tp.attach(model, x, **DIRECT)
        found.append(gradients(model, x, lambda y: y.square().sum()))
    if hasattr(other, "inplace"):
        same(*found)
    assert all(value is not None for value in found[0])


def test_direct_feedback_names_a_map_that_comes_to_send_a_signal():
    model = dense(nn.ReLU())
    tp.attach(model, normal(5, 4).detach(), **DIRECT)
    with pytest.raises(
        RuntimeError, match=r"'0' \(Linear\) has no feedback weights, because its input"
    ):
        model(normal(5, 4))


def images(size):
    return normal(2, 3, size, size)


@pytest.mark.parametrize(
    ("model", "given", "later"),
    [
        (lambda: chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), images(8), images(9)),
        (lambda: chain(nn.Linear(4, 6), nn.AdaptiveAvgPool2d((1, 6)), nn.Flatten(),
                       nn.Linear(6, 3)), normal(2, 7, 4), normal(2, 5, 4)),
    ],
)  # fmt: skip
def test_direct_feedback_names_the_map_that_reads_another_size(model, given, later):
    model = model()
    feedback = tp.attach(model, given, **DIRECT)
    model(given).sum().backward()
    assert feedback.maps
    with pytest.raises(RuntimeError, match=r"'\d' \(\w+\) read .* attach again with inputs of the"):
        model(later).sum().backward()


def test_direct_feedback_takes_another_length_where_each_position_has_its_error():
    model = dense(nn.ReLU())
    tp.attach(model, normal(2, 7, 4), **DIRECT)
    model(normal(3, 5, 4)).sum().backward()


def test_direct_feedback_takes_one_sample_alone():
    model, x = dense(nn.ReLU()), normal(4)
    tp.attach(model, x, **DIRECT)
    assert model[0].direct_feedback_weight.shape == (3, 4)
    for given in (x, normal(5, 4)):
        e = torch.ones_like(model(given))
        (found,) = torch.autograd.grad(model(given), given, e)
        torch.testing.assert_close(found, e @ model[0].direct_feedback_weight)


def test_direct_feedback_takes_no_width_for_features():
    """An image's errors are a sample's, also where two maps agree in all but their last size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)).double()
    x = normal(2, 3, 8, 8)
    tp.attach(model, x, **DIRECT)
    omega = model[0].direct_feedback_weight
    assert omega.shape == (192, 192)
    e = normal(2, 3, 8, 8, seed=1).detach()
    (found,) = torch.autograd.grad(model(x), x, e)
    torch.testing.assert_close(found, (e.flatten(1) @ omega).view_as(x))
    other = copy.deepcopy(model)
    torch.testing.assert_close(torch.autograd.grad(other(x), x, e)[0], found)


def test_a_detached_copy_has_no_hook_of_direct_feedback():
    model, x = dense(nn.ReLU()), normal(5, 4)
    feedback = tp.attach(model, x, **DIRECT)
    other = copy.deepcopy(model)
    tp.attach(other, x, **DIRECT).detach()
    feedback.detach()
    for net in (model, other):
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
        assert not any(key.startswith("_feedback") for part in net for key in vars(part))


# parametrisations and replaced weights


@pytest.mark.parametrize("rule", ["ldrl", "symmetric"])
@pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrisation_may_come_and_go_in_any_order(change, rule):
    x = normal(5, 4)
    one, other = dense(nn.Tanh()), dense(nn.Tanh())
    feedback = tp.attach(one, rule=rule)
    change(one[2])
    assert type(one[2]).__name__ == "ParametrizedLinear"
    feedback.step()
    one(x).sum().backward()
    feedback.detach()
    one(x).sum().backward()
    parametrize.remove_parametrizations(one[2], "weight")
    assert type(one[2]) is nn.Linear

    change(other[2])
    before = type(other[2])
    feedback = tp.attach(other, rule=rule)
    copy.deepcopy(other)(x).sum().backward()
    feedback.detach()
    assert type(other[2]) is before
    feedback = tp.attach(other, rule=rule)
    parametrize.remove_parametrizations(other[2], "weight")
    assert type(other[2]).__name__ == "Linear"
    feedback.step()
    other(x).sum().backward()
    feedback.detach()
    assert type(other[2]) is nn.Linear
    other(x).sum().backward()


def test_a_weight_of_another_shape_is_named():
    model = dense(nn.Tanh())
    feedback = tp.attach(model)
    feedback.step()
    model[2].weight = nn.Parameter(torch.randn(5, 6, dtype=torch.float64))
    model[2].bias = None
    message = r"the weight of '2'.* is \(5, 6\) now, but its feedback weights are \(3, 6\); call"
    with pytest.raises(RuntimeError, match=message):
        model(normal(5, 4))
    with pytest.raises(RuntimeError, match=message):
        feedback.step()
    feedback.detach()
    tp.attach(model)
    model(normal(5, 4)).sum().backward()


def test_a_computed_gain_has_no_feedback_gain():
    model = chain(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    feedback = tp.attach(model, gains="learned")
    parametrizations.weight_norm(model[1])
    with pytest.raises(
        RuntimeError, match=r"the gain of '1' \(ParametrizedLayerNorm\) is computed"
    ):
        model(normal(5, 4))
    feedback.detach()


# nothing, jagged, elsewhere


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sizes", [(8, 0), (0, 8), (0, 0)])
def test_a_map_of_nothing_is_as_plain(rule, sizes):
    model = chain(nn.Linear(*sizes))
    reference = copy.deepcopy(model)
    feedback = tp.attach(model, rule=rule)
    feedback.step()
    for shape in ((3, sizes[0]), (2, 3, sizes[0]), (sizes[0],), (0, sizes[0])):
        same(
            gradients(model, normal(*shape), lambda y: y.sum()),
            gradients(reference, normal(*shape), lambda y: y.sum()),
        )


@pytest.mark.parametrize(("weights", "masked"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("shape", [(0, 5, 8), (3, 5, 8), (0, 0, 8)])
def test_an_attention_of_no_samples_is_as_plain(shape, weights, masked):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True).double()
    reference = copy.deepcopy(model)
    tp.attach(model, rule="symmetric")
    masks = {}
    if masked:
        masks = dict(
            key_padding_mask=torch.arange(shape[1]).expand(shape[:2]) > 3,
            attn_mask=torch.ones(shape[1], shape[1], dtype=torch.bool).triu(1),
        )
    found = []
    for net in (model, reference):
        x = normal(*shape)
        y, seen = net(x, x, x, need_weights=weights, **masks)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, net.in_proj_weight])])
        found[-1] += [] if seen is None else [seen]
    same(*found)


def jagged(*lengths):
    return torch.nested.nested_tensor(
        [torch.randn(n, 4, dtype=torch.float64) for n in lengths], layout=torch.jagged
    ).requires_grad_()


@pytest.mark.parametrize("settings", [{}, {"gains": "learned"}, {"beta": 1e-6}])
def test_jagged_tensors_are_as_plain(settings):
    model = chain(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4))
    reference = copy.deepcopy(model)
    tp.attach(model, rule="symmetric", **settings)
    x = jagged(3, 1, 4)
    found = []
    for net in (model, reference):
        y = net(x) + x
        own = [p for p in net.parameters() if p.requires_grad]
        seen = torch.autograd.grad(y.values().square().mean(), [x, *own])
        found.append([y.values(), seen[0].values(), *seen[1:]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_nested_tensors_that_feedback_does_not_serve_are_refused():
    model = dense(nn.Tanh())
    feedback = tp.attach(model)
    strided = torch.nested.nested_tensor([normal(2, 4).detach(), normal(3, 4).detach()])
    with pytest.raises(TypeError, match=r"'0' \(Linear\) .*layout torch.jagged, got torch.strided"):
        model(strided.requires_grad_())
    feedback.detach()
    feedback = tp.attach(model, normal(2, 5, 4), **DIRECT)
    assert list(feedback.maps) == ["0", "2"]
    with pytest.raises(TypeError, match=r"'0' \(Linear\) with feedback takes padded tensors"):
        model(jagged(2, 3))


@pytest.mark.parametrize("rule", RULES)
def test_draws_are_made_where_the_model_is(rule):
    wanted, found, other = dense(nn.Tanh()), dense(nn.Tanh()), dense(nn.Tanh())
    tp.attach(wanted, rule=rule)
    with torch.device("meta"):
        tp.attach(found, rule=rule)
    torch.set_default_device("meta")
    try:
        tp.attach(other, rule=rule)
    finally:
        torch.set_default_device(None)
    for key, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[key], value)
        assert torch.equal(other.state_dict()[key], value)


def test_direct_draws_are_made_where_the_model_is():
    wanted, found, x = dense(nn.Tanh()), dense(nn.Tanh()), normal(2, 4)
    tp.attach(wanted, x, **DIRECT)
    with torch.device("meta"):
        tp.attach(found, x, **DIRECT)
    for key, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[key], value)


# calls


class Lower(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.tril(), self.bias)


class Scaled(Lower):
    """A map of more than one input."""

    def forward(self, x, scale=1):
        return super().forward(x) * scale


@pytest.fixture
def registered(monkeypatch):
    for kind in (Lower, Scaled):
        monkeypatch.setitem(MAPS, kind, lambda m: AutogradMap(lambda x, w: x @ w.tril().T, -1))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("settings", [{}, DIRECT])
def test_a_registered_map_is_called_by_the_name_of_its_input(settings):
    model = chain(Lower(4, 4), Scaled(4, 4))
    x = normal(2, 4)
    tp.attach(model, x, **settings)
    torch.testing.assert_close(model[0](x=x), model[0](x))
    with pytest.raises(TypeError, match="argument"):
        model[0](input=x)
    with pytest.raises(TypeError, match=r"'1' \(Scaled\) with feedback takes one input, got 2"):
        model[1](x, scale=2)


@pytest.mark.parametrize(
    "kind",
    sorted((t for kind in KINDS.values() for t in kind.types), key=lambda kind: kind.__name__),
    ids=lambda kind: kind.__name__,
)
def test_every_kind_takes_its_input_by_name(kind):
    name = list(inspect.signature(kind.forward).parameters)[1]
    if kind in ACTIVATIONS:
        module, shape = kind(), (2, 3)
    elif kind is nn.MultiheadAttention:
        module, shape = kind(4, 2), (2, 3, 4)
    elif kind is nn.SyncBatchNorm:
        return  # on GPUs
    else:
        dims = next((int(c) for c in kind.__name__ if c.isdigit()), 1)
        size = {nn.GroupNorm: (2, 4), nn.LayerNorm: (4,), nn.RMSNorm: (4,)}.get(kind)
        size = size or ((4, 4, 1) if "Conv" in kind.__name__ else (4, 4))
        if "Norm" in kind.__name__ and dims and kind not in (nn.GroupNorm, nn.LayerNorm):
            size = (4,)
        module = kind(*size, **({"affine": True} if "Instance" in kind.__name__ else {}))
        shape = (2, 4, *[4] * dims) if kind is not nn.Linear else (2, 4)
    model = nn.Sequential(module, nn.Linear(4, 4)).double()
    tp.attach(model, gains="learned", beta=0.1 if kind in ACTIVATIONS else None)
    x = normal(*shape)
    more = {"key": x, "value": x} if kind is nn.MultiheadAttention else {}
    y = model[0](**{name: x}, **more)
    (y[0] if isinstance(y, tuple) else y).sum().backward()


def test_a_module_of_no_handle_is_named_by_its_class():
    model = dense()
    feedback = tp.attach(model)
    assert label(model[0]) == "'0' (Linear)"
    assert label(copy.deepcopy(model)[0]) == "Linear"
    feedback.detach()


def test_a_module_of_another_class_since_stays_attached_whole():
    """As FSDP makes it."""
    model, x = dense(nn.Tanh()), normal(5, 4)
    feedback = tp.attach(model, rule="feedback_alignment")
    before = gradients(model, x)
    model[2].__class__ = type("FSDPLinear", (type(model[2]),), {})
    with pytest.warns(UserWarning, match="FSDPLinear got another class after attach"):
        feedback.detach()
    assert type(model[0]) is nn.Linear
    assert "feedback_weight" in model[2]._parameters
    torch.testing.assert_close(gradients(model, x)[-1], before[-1])
