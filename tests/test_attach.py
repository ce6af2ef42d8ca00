"""The handle that ``attach`` returns: tracking, probes, rules, coverage, copies, errors."""

import copy
import itertools
import math
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import targetprop as tp
from models import collected, distance
from targetprop.feedback import CorrelationSolver, CoupledSolver, PredictiveSolver
from targetprop.feedback.patches import Patch, orthogonal_noise
from targetprop.maps import MAPS, AutogradMap


class Lion(torch.optim.Optimizer):
    """Signs of a momentum (Chen et al. 2023)."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.sub_(group["lr"] * (0.9 * momentum + 0.1 * p.grad).sign_())
                momentum.lerp_(p.grad, 0.01)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum of 2-d weights (Jordan 2024); plain SGD of others."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(0.9).add_(p.grad)
                if p.dim() == 2:
                    x = momentum / momentum.norm().clamp_min(1e-12)
                    for _ in range(5):
                        gram = x @ x.T
                        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
                    p.sub_(group["lr"] * x)
                else:
                    p.sub_(0.1 * group["lr"] * momentum)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.1),
    "lion": lambda p: Lion(p, 1e-3),
    "muon": lambda p: Muon(p, 0.01),
}


def angle(a, b):
    return math.degrees(math.acos(min(1.0, float((a * b).sum() / (a.norm() * b.norm())))))


@pytest.mark.parametrize("gains", ["exact", "learned"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", models.MODELS)
def test_updates_stay_at_the_gradient(name, optimizer, gains):
    """From random ω, over 100 steps, tied weights included."""
    model, x, loss = models.make(name, torch.float32)
    feedback = tp.attach(model, gains=gains, seed=1)
    optimizer = feedback.follow(OPTIMIZERS[optimizer](model.parameters()))
    for step in range(100):
        optimizer.zero_grad()
        torch.manual_seed(step)
        buffers = [b.clone() for b in model.buffers()]
        inputs = x + 0.05 * torch.randn_like(x) if x.is_floating_point() else (x + step) % 11
        loss(model(inputs)).backward()
        if step % 33 == 0:
            found = collected(model)
            optimizer.zero_grad()
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)
            torch.manual_seed(step)
            inputs = x + 0.05 * torch.randn_like(x) if x.is_floating_point() else inputs
            with feedback.exact():
                loss(model(inputs)).backward()
            largest = max(p.grad.norm() for p in model.parameters() if p.grad is not None)
            for key, p in model.named_parameters():
                if p.grad is not None and p.grad.norm() > 1e-4 * largest:
                    assert angle(found[key], p.grad) < 5, (key, step)
        optimizer.step()
    assert max(feedback.mismatch().values()) < 0.05


def plain_and_symmetric(make, *inputs, call=lambda module, *inputs: module(*inputs), **settings):
    """Outputs and gradients of a module and of the same one attached by the symmetric rule."""
    found = []
    for attached in (False, True):
        torch.manual_seed(0)
        module = make().double()
        if attached:
            tp.attach(module, rule="symmetric", **settings)
        given = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        torch.manual_seed(1)
        output = call(module, *given)
        outputs = (
            [output] if isinstance(output, torch.Tensor) else [y for y in output if y is not None]
        )
        sum(
            (y.sin() * torch.linspace(0, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
            for y in outputs
        ).backward()
        gradients = collected(module) | {
            f"input {i}": x.grad for i, x in enumerate(given) if x.grad is not None
        }
        found.append((outputs, gradients))
    (outputs, wanted), (others, gradients) = found
    for y, z in zip(outputs, others, strict=True):
        torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12)
    assert distance(gradients, wanted) < 1e-12


CONVOLUTIONS = [
    lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
    lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=3, bias=False),
    lambda: nn.Conv2d(4, 6, (3, 2), padding="same", padding_mode="zeros"),
    lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    *(
        lambda mode=mode: nn.Conv2d(4, 4, 3, padding=(2, 1), padding_mode=mode)
        for mode in ("reflect", "replicate", "circular")
    ),
    lambda: nn.Conv3d(
        4, 4, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1), groups=4, padding_mode="circular"
    ),
    lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    lambda: nn.ConvTranspose2d(4, 6, 3, stride=(1, 2), dilation=2, bias=False),
    lambda: nn.ConvTranspose3d(4, 2, 2, stride=2),
]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("make", CONVOLUTIONS)
def test_every_convolution_is_exact(make, batched):
    dims = len(make().kernel_size)
    x = torch.randn(2, 4, *(7, 6, 5)[:dims], dtype=torch.float64)
    plain_and_symmetric(make, x if batched else x[0])
    feedback = tp.attach(make())
    assert max(feedback.mismatch().values()) < 1e-5


def test_a_transposed_convolution_takes_an_output_size():
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    plain_and_symmetric(
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2),
        x,
        call=lambda module, x: module(x, output_size=(12, 11)),
    )


ATTENTIONS = [
    (dict(), dict()),
    (dict(bias=False, batch_first=True), dict(need_weights=False)),
    (dict(dropout=0.3), dict(average_attn_weights=False)),
    (dict(dropout=0.3), dict(need_weights=False)),
    (dict(add_bias_kv=True, add_zero_attn=True), dict(key_padding_mask=True, attn_mask=True)),
    (dict(kdim=5, vdim=3), dict(need_weights=False, attn_mask=True)),
    (dict(batch_first=True), dict(key_padding_mask=True, need_weights=False)),
    (dict(), dict(attn_mask="causal", is_causal=True, need_weights=False)),
    (dict(), dict(attn_mask="heads")),
]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("settings", "call"), ATTENTIONS)
def test_attention_is_exact(settings, call, batched):
    length, keys, batch, width = 4, 4 if call.get("is_causal") else 5, 3, 8
    if not batched and (settings.get("batch_first") or call.get("attn_mask") == "heads"):
        pytest.skip("as the other cases")
    first = settings.get("batch_first", False)
    sizes = [
        (length, width),
        (keys, settings.get("kdim", width)),
        (keys, settings.get("vdim", width)),
    ]
    torch.manual_seed(2)
    inputs = [torch.randn(batch, n, d, dtype=torch.float64) for n, d in sizes]
    inputs = inputs if first else [x.transpose(0, 1).contiguous() for x in inputs]
    call = dict(call)
    if not batched:
        inputs = [x[:, 0] for x in inputs]
    if call.get("key_padding_mask"):
        mask = torch.zeros(batch, keys, dtype=torch.bool)
        mask[:, -1] = True
        call["key_padding_mask"] = mask if batched else mask[0]
    if call.get("attn_mask") is True:
        call["attn_mask"] = torch.rand(length, keys) > 0.8
    if call.get("attn_mask") == "causal":
        call["attn_mask"] = nn.Transformer.generate_square_subsequent_mask(
            length, dtype=torch.float64
        )
    if call.get("attn_mask") == "heads":
        call["attn_mask"] = torch.randn(batch * 2, length, keys, dtype=torch.float64)
    plain_and_symmetric(
        lambda: nn.MultiheadAttention(width, 2, **settings),
        *inputs,
        call=lambda m, q, k, v: m(q, k, v, **call),
    )


def test_attention_is_three_maps_and_its_out_projection():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    feedback = tp.attach(model)
    assert list(feedback.maps) == [f"attention.{letter}_proj" for letter in "qkv"] + [
        "attention.out_proj"
    ]
    assert max(feedback.mismatch().values()) < 1e-5
    with torch.no_grad():
        model["attention"].in_proj_feedback_weight[8:16].zero_()
    assert feedback.mismatch()["attention.k_proj"] == 1.0
    assert feedback.mismatch()["attention.q_proj"] < 1e-5


def test_the_table_names_maps_as_the_user_does():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    feedback = tp.attach(model, torch.randn(1, 4))
    assert list(feedback.maps) == ["2"]  # the first layer reads data
    lines = repr(feedback).splitlines()
    assert lines[0].split() == ["map", "θ", "rule", "ω", "mismatch"]
    assert lines[1].startswith("2    2×8  ldrl  probed")
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.1))
    assert repr(feedback).splitlines()[1].startswith("2    2×8  ldrl  tracked, probed")
    del optimizer
    gone = "2    2×8  ldrl  tracked until its optimizer was gone, probed"
    assert repr(feedback).splitlines()[1].startswith(gone)


def test_only_and_skip_choose_by_name():
    def make():
        return nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2)})

    assert list(tp.attach(make(), only="^head").maps) == ["head"]
    assert list(tp.attach(make(), skip="^head").maps) == ["body"]
    with pytest.raises(ValueError, match="no module with a linear map to attach"):
        tp.attach(make(), only="tail")


def test_feedback_learns_from_responses_alone(monkeypatch):
    """Answer for another layer: ω becomes that layer's weights, whatever θ is."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Conv2d(4, 6, 3, groups=2))
    others = {(1, 5, 6): torch.randn(1, 5, 6), (2, 3, 18): torch.randn(2, 3, 18)}
    monkeypatch.setattr(
        Patch, "respond", lambda self, noise: noise @ others[tuple(self.omega.shape)].mT
    )
    tp.attach(model)
    torch.testing.assert_close(model[0].feedback_weight, others[1, 5, 6][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model[1].feedback_weight.view(2, 3, 18), others[2, 3, 18], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("inputs", [1, 2, 3, 17, 1100])
def test_orthogonal_noise(inputs):
    like = torch.zeros((), dtype=torch.float64)
    noise = torch.cat(list(orthogonal_noise(inputs, 0, like)))
    assert set(noise.unique().tolist()) <= {-1.0, 1.0}
    assert inputs <= len(noise) < 2 * inputs or inputs == 1
    assert torch.equal(noise.T @ noise, len(noise) * torch.eye(inputs, dtype=torch.float64))
    assert not torch.equal(noise, torch.cat(list(orthogonal_noise(inputs, 1, like)))) or inputs < 3


@pytest.mark.parametrize("solver", ["predictive", "correlation", "coupled", "fixed"])
def test_every_solver(solver):
    model, x, loss = models.make("convnext", torch.float32)
    feedback = tp.attach(model, solver=solver)
    bound = {"predictive": 1e-4, "correlation": 0.15, "coupled": 0.05, "fixed": math.inf}[solver]
    assert max(feedback.mismatch().values()) < bound
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    for _ in range(5):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()
    assert max(feedback.mismatch().values()) < 1.5 * bound
    if solver == "fixed":
        assert min(feedback.mismatch().values()) > 0.5


def test_kolen_pollack_comes_to_the_weights_by_decay():
    model, x, loss = models.make("mixer", torch.float32)
    feedback = tp.attach(model, rule="kolen_pollack")
    before = feedback.mismatch()
    with pytest.warns(UserWarning, match="weight decay alone"):
        feedback.follow(torch.optim.SGD(model.parameters(), 0.05))
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.05, weight_decay=0.1))
    for _ in range(200):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()
    difference = {site.name: (site.omega - site.theta).norm() for site in feedback.sites}
    other = tp.attach(models.make("mixer", torch.float32)[0], rule="kolen_pollack")
    for site in other.sites:  # ω − θ shrinks by 1 − lr λ a step, exactly
        first = (site.omega - site.theta).norm()
        torch.testing.assert_close(
            difference[site.name], first * (1 - 0.005) ** 200, rtol=1e-3, atol=1e-5
        )
    assert before


def test_weight_mirror_and_sign_symmetry_variants():
    model, *_ = models.make("mixer", torch.float32)
    assert max(tp.attach(model, rule="weight_mirror").mismatch().values()) < 0.15
    for variant in ("uSF", "frSF", "brSF"):
        model, _x, _loss = models.make("mixer", torch.float32)
        feedback = tp.attach(model, rule=tp.rules.SignSymmetry(variant))
        site = feedback.sites[-1]
        sent = site.module._sent(site.theta, "feedback_weight")
        assert torch.equal(sent.sign(), site.theta.sign())
        sizes = sent.abs()
        assert (float(sizes.std()) < 1e-6) == (variant == "uSF")
        feedback.step()
        same = torch.equal(site.module._sent(site.theta, "feedback_weight").abs(), sizes)
        assert same == (variant != "brSF")
    with pytest.raises(ValueError, match="'uSF', 'brSF' and 'frSF', got 'rSF'"):
        tp.rules.SignSymmetry("rSF")


def test_direct_feedback_alignment_is_its_formula():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(3, (7,))
    tp.attach(model, x, rule="direct_feedback_alignment")
    F.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        a = torch.tanh(model[0](x))
        b = torch.tanh(model[2](a))
        error = (torch.softmax(model[4](b), 1) - F.one_hot(y, 3)) / len(x)
        second = error @ model[4].direct_feedback_weight * (1 - b**2)
        first = error @ model[2].direct_feedback_weight * (1 - a**2)
    torch.testing.assert_close(model[4].weight.grad, error.T @ b)
    torch.testing.assert_close(model[2].weight.grad, second.T @ a)
    torch.testing.assert_close(model[0].weight.grad, first.T @ x)


@pytest.mark.parametrize(
    "name", ["resnet_basic", "vit_attention", "gpt_tied", "rnn", "unet", "lora"]
)
def test_direct_feedback_alignment_on_every_architecture(name):
    model, x, loss = models.make(name, torch.float32)
    feedback = tp.attach(model, x, rule="direct_feedback_alignment")
    optimizer = feedback.follow(
        torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    )
    losses = []
    for _ in range(60):
        torch.manual_seed(0)
        optimizer.zero_grad()
        losses.append(loss(model(x)))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    with feedback.exact():
        found = collected_after(model, x, loss)
    reference, x, loss = models.make(name, torch.float32)
    reference.load_state_dict(
        {key: value for key, value in model.state_dict().items() if "feedback" not in key}
    )
    for key, value in collected_after(reference, x, loss).items():
        assert torch.equal(value, found[key])


def collected_after(model, x, loss):
    torch.manual_seed(0)
    model.eval()
    model.zero_grad()
    loss(model(x)).backward()
    return collected(model)


@pytest.mark.parametrize("name", ["vit_attention", "vit_encoder", "vgg", "mixer"])
def test_direct_feedback_alignment_brings_every_sample_its_own_error(name):
    """A batch's gradient is the mean of its samples': no sample's error reaches another."""
    model, x, _ = models.make(name)
    tp.attach(model, x, rule="direct_feedback_alignment")
    model.eval()  # no dropout, fixed statistics

    def found(part):
        model.zero_grad()
        nn.functional.cross_entropy(
            model(x[part]), torch.arange(len(x))[part] % models.CLASSES
        ).backward()
        return collected(model)

    whole, halves = found(slice(0, 6)), [found(slice(0, 3)), found(slice(3, 6))]
    assert distance({key: (halves[0][key] + halves[1][key]) / 2 for key in whole}, whole) < 1e-9


@pytest.mark.parametrize("settings", [{}, {"kdim": 7, "vdim": 6}])
def test_direct_feedback_alignment_of_an_attention_to_something_else(settings):
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.key = nn.Linear(3, 8), nn.Linear(3, settings.get("kdim", 8))
            self.value, self.head = nn.Linear(3, settings.get("vdim", 8)), nn.Linear(8, 5)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **settings)

        def forward(self, x):
            key, value = self.key(x[:, :3]), self.value(x[:, :3])
            return self.head(self.attention(self.read(x), value=value, key=key)[0].mean(1))

    model, x = Cross(), torch.randn(6, 5, 3)
    tp.attach(model, x, rule="direct_feedback_alignment")
    nn.functional.cross_entropy(model(x), torch.arange(6) % 5).backward()
    assert model.attention.direct_k_proj_feedback_weight.shape == (5, 3 * settings.get("kdim", 8))
    assert model.key.weight.grad.norm() > 0


def test_direct_feedback_alignment_refuses_samples_in_another_dimension():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):  # (positions, batch, 3) to (batch, 2)
            return self.head(self.second(self.first(x)).mean(0))

    with pytest.raises(ValueError, match=r"reads \(5, 2, 4\) while the output's error is \(2, 2\)"):
        tp.attach(Sequence(), torch.randn(5, 2, 3), rule="direct_feedback_alignment")


def test_direct_feedback_alignment_needs_example_inputs():
    with pytest.raises(ValueError, match="give example inputs"):
        tp.attach(nn.Linear(2, 2), rule="direct_feedback_alignment")


@pytest.mark.parametrize("before", [True, False])
def test_omega_joins_the_group_of_its_weight(before):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def groups():
        return [
            dict(params=[model[0].weight, model[0].bias], lr=0.1),
            dict(params=list(model[2].parameters()), lr=0.2),
        ]

    optimizer = torch.optim.SGD(groups(), 1.0) if before else None
    feedback = tp.attach(model)
    optimizer = optimizer or torch.optim.SGD(groups(), 1.0)
    assert feedback.follow(optimizer) is optimizer
    for index, layer in ((0, model[0]), (1, model[2])):
        assert sum(p is layer.feedback_weight for p in optimizer.param_groups[index]["params"]) == 1
        assert not any(
            p is layer.feedback_weight for p in optimizer.param_groups[1 - index]["params"]
        )
    feedback.detach()
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    with pytest.raises(ValueError, match="trains no parameter of the attached model"):
        tp.attach(model).follow(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1))
    with pytest.raises(TypeError, match=r"needs a torch.optim.Optimizer, got str"):
        tp.attach(nn.Linear(2, 2)).follow("adam")


def test_norms_and_clipping_see_the_weights_alone():
    model, x, loss = models.make("vgg", torch.float32)
    plain, *_ = models.make("vgg", torch.float32)
    feedback = tp.attach(model)
    feedback.follow(torch.optim.SGD(model.parameters(), 0.0)).step()
    torch.manual_seed(0)
    loss(model(x)).backward()
    torch.manual_seed(0)
    loss(plain(x)).backward()
    seen = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.testing.assert_close(
        seen, torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0), rtol=1e-4, atol=0
    )


def test_several_optimizers_probe_once_a_step():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    feedback = tp.attach(model)
    optimizers = [
        feedback.follow(torch.optim.SGD(layer.parameters(), 0.1)) for layer in (model[0], model[2])
    ]
    for _ in range(3):
        model(torch.randn(2, 4)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert feedback.steps == 3
    assert max(feedback.mismatch().values()) < 1e-5


def test_probes_back_off_and_come_back():
    model = nn.Linear(8, 8)
    solver = PredictiveSolver(tolerance=0.01, probe_every=2, probe_every_at_most=16)
    feedback = tp.attach(model, solver=solver)
    feedback.follow(torch.optim.SGD(model.parameters(), 0.0))
    probed = []
    for step in range(1, 100):
        feedback.step()
        if feedback.report:
            probed.append(step)
    assert probed[0] == 2
    assert [b - a for a, b in itertools.pairwise(probed)] == [4, 8, *[16] * 5]
    with torch.no_grad():
        model.feedback_weight.zero_()
    while not feedback.report:
        feedback.step()
    assert feedback.mismatch()[""] < 1e-5
    gaps = []
    for step in range(40):
        feedback.step()
        if feedback.report:
            gaps.append(step)
    assert gaps == [0, 2, 6, 14, 30]  # at once again after it had risen, then ever more rarely


def test_without_an_optimizer_to_follow_probes_teach_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    feedback = tp.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(30):
        optimizer.zero_grad()
        model(torch.randn(4, 4)).square().mean().backward()
        optimizer.step()
        feedback.step()
        assert max(feedback.mismatch().values()) < 0.3
    assert max(memory.probes for memory in feedback.learning.memory.values()) > 5


def test_feedback_that_nobody_teaches_is_said():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    tp.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    model(torch.randn(4, 4)).sum().backward()
    model(torch.randn(4, 4)).sum().backward()  # accumulation says nothing
    optimizer.step()
    with pytest.warns(
        UserWarning,
        match=r"feedback learns nothing: call follow\(optimizer\) of its feedback or algorithm",
    ):
        model(torch.randn(4, 4))
    model(torch.randn(4, 4))
    assert not model._forward_pre_hooks


def test_a_loaded_plain_checkpoint_is_learned_at_the_next_step():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    feedback = tp.attach(model)
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model.load_state_dict(other.state_dict(), strict=True)
    assert min(feedback.mismatch().values()) > 0.5
    feedback.step()
    assert max(feedback.mismatch().values()) < 1e-5


def test_a_frozen_weight_is_calibrated_and_then_looked_at_rarely():
    model, _x, _loss = models.make("lora", torch.float32)
    feedback = tp.attach(model)
    assert "rarely checked" in repr(feedback)
    optimizer = feedback.follow(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    )
    seen = []
    for _ in range(1200):
        optimizer.zero_grad()
        optimizer.step()
        seen += feedback.report
    frozen = [name for name in feedback.maps if name.endswith("base")]
    assert frozen
    assert all(seen.count(name) == 1 for name in frozen)
    assert any(name.endswith("up") for name in seen)


@pytest.mark.parametrize("solver", ["predictive", "correlation", "coupled"])
def test_a_resumed_run_goes_on_bit_for_bit(solver):
    def start():
        model, x, loss = models.make("resnet_basic", torch.float32)
        feedback = tp.attach(model, solver=solver, seed=5)
        return (
            model,
            x,
            loss,
            feedback,
            feedback.follow(torch.optim.AdamW(model.parameters(), 0.01)),
        )

    def steps(count, model, x, loss, feedback, optimizer):
        for _ in range(count):
            optimizer.zero_grad()
            loss(model(x)).backward()
            optimizer.step()

    whole = start()
    steps(24, *whole)
    half = start()
    steps(12, *half)
    kept = copy.deepcopy([half[0].state_dict(), half[3].state_dict(), half[4].state_dict()])
    other = start()
    for part, state in zip((other[0], other[3], other[4]), kept, strict=True):
        part.load_state_dict(state)
    steps(12, *other)
    for key, value in whole[0].state_dict().items():
        assert torch.equal(value, other[0].state_dict()[key]), key
    assert {k: m.state_dict() for k, m in whole[3].learning.memory.items()}.keys() == other[
        3
    ].learning.memory.keys()
    with pytest.raises(ValueError, match="is of other maps than the model's"):
        tp.attach(nn.Linear(2, 2), solver=solver).load_state_dict(kept[1])


class Scaled(nn.Module):
    """y = c (x θᵀ) + b: an equalised learning rate."""

    def __init__(self, inputs, outputs, c):
        super().__init__()
        self.weight, self.bias, self.c = (
            nn.Parameter(torch.randn(outputs, inputs)),
            nn.Parameter(torch.zeros(outputs)),
            c,
        )

    def forward(self, x):
        return self.c * F.linear(x, self.weight) + self.bias


@pytest.fixture
def scaled():
    tp.register(Scaled, lambda module: lambda x, w: module.c * F.linear(x, w), bias_dim=-1)
    yield Scaled
    del tp.maps.MAPS[Scaled]


@pytest.mark.parametrize("solver", ["predictive", "correlation", "coupled"])
@pytest.mark.parametrize("c", [4.0, 2.0, -1.0, 0.05])
def test_a_registered_map_with_a_scale(scaled, c, solver):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), scaled(6, 5, c), nn.Tanh(), scaled(5, 3, c))
    feedback = tp.attach(model, torch.randn(2, 6), solver=solver)
    assert max(feedback.mismatch().values()) < (0.2 if solver == "correlation" else 0.05)
    assert max(memory.probes for memory in feedback.learning.memory.values()) <= {
        "predictive": 20
    }.get(solver, 300)
    plain_and_symmetric(
        lambda: nn.Sequential(nn.Linear(6, 6), scaled(6, 5, c)),
        torch.randn(3, 6, dtype=torch.float64),
    )


def test_a_finite_nudge_tends_to_the_gradient():
    model, x, loss = models.make("vgg")
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    tp.attach(model, rule="symmetric")
    wanted = collected_after(model, x, loss)
    distances = []
    for beta in (1e-1, 1e-3, 1e-6):
        other, *_ = models.make("vgg")
        tp.attach(other, rule="symmetric", beta=beta)
        distances.append(distance(collected_after(other, x, loss), wanted))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-4
    with pytest.raises(ValueError, match="beta=-1 is no positive number"):
        tp.attach(nn.Linear(2, 2), beta=-1)


def test_a_finite_nudge_refuses_gradient_scalers():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    feedback = tp.attach(model, beta=0.1)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.1))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.randn(2, 4)).sum()).backward()
    with pytest.raises(RuntimeError, match="a gradient scaler would enlarge"):
        scaler.step(optimizer)


class Raw(nn.Module):
    """A product with a bare parameter, through another name, beside an attached layer."""

    def __init__(self):
        super().__init__()
        self.first, self.matrix, self.last = (
            nn.Linear(4, 4),
            nn.Parameter(torch.randn(4, 4)),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)) @ self.matrix.t().tanh())


@pytest.mark.parametrize("example", [True, False])
def test_a_product_outside_a_map_is_named(example):
    x = torch.randn(3, 4)
    if example:
        with pytest.warns(
            UserWarning,
            match=r"'matrix' is multiplied by mm \(test_attach.py, line \d+\) outside a map",
        ):
            tp.attach(Raw(), x)
        with pytest.raises(tp.NotCovered, match="'matrix' is multiplied"):
            tp.attach(Raw(), x, strict=True)
    else:
        model = Raw()
        tp.attach(model)
        with pytest.warns(UserWarning, match="'matrix' is multiplied"):
            model(x)
        model(x)  # said once
        model = Raw()
        tp.attach(model, strict=True)
        with pytest.raises(tp.NotCovered, match="'matrix' is multiplied"):
            model(x)


def test_a_weight_used_past_its_module_is_named():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body = nn.Embedding(5, 4), nn.Linear(4, 4)

        def forward(self, tokens):
            return F.linear(self.body(self.embed(tokens)), self.embed.weight)

    with pytest.warns(UserWarning, match=r"'embed.weight' is multiplied by .*mm .* outside a map"):
        tp.attach(Tied(), torch.zeros(1, 2, dtype=torch.long))


@pytest.mark.parametrize(
    "make", [lambda: nn.LSTM(4, 4), lambda: nn.GRUCell(4, 4), lambda: nn.Bilinear(4, 4, 4)]
)
def test_fused_kernels_are_named_with_the_remedy(make):
    def model():
        return nn.ModuleList([nn.Linear(4, 4), make()])

    with pytest.warns(UserWarning, match=rf"'1' \({type(make()).__name__}\): .*write"):
        tp.attach(model())
    with pytest.raises(tp.NotCovered):
        tp.attach(model(), strict=True)
    tp.attach(model(), strict=True, skip="^1$")


def test_a_failed_pass_leaves_no_mode_behind():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    tp.attach(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 3))
    assert torch.overrides._get_current_function_mode() is None
    model(torch.randn(2, 4))
    assert not model._forward_hooks


def test_an_input_that_comes_to_need_a_gradient_is_said():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    tp.attach(model, torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="attach again with inputs like these"):
        model(torch.randn(2, 4, requires_grad=True))


def test_ties_are_kept_and_share_feedback():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].weight = model[0].weight
    feedback = tp.attach(model)
    assert model[0].feedback_weight is model[1].feedback_weight
    assert "shared" in repr(feedback)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    for _ in range(10):
        optimizer.zero_grad()
        model[1](torch.tanh(model[0](torch.randn(3, 4, requires_grad=True)))).sum().backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a ModuleList has no forward to be watched
            optimizer.step()
    assert max(feedback.mismatch().values()) < 1e-5


def test_hooks_of_the_user_keep_firing():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    fired = []
    model[2].register_forward_hook(lambda m, a, out: fired.append("forward"))
    model[2].register_full_backward_hook(lambda m, a, out: fired.append("backward"))
    tp.attach(model)
    model(torch.randn(2, 4)).sum().backward()
    assert fired == ["forward", "backward"]


def test_an_attached_model_is_refused_another_rule():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    feedback = tp.attach(model)
    with pytest.raises(ValueError, match=r"attached by LDRL.* already"):
        tp.attach(model, rule="feedback_alignment")
    feedback.detach()
    tp.attach(model, rule="feedback_alignment")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(rule="ldlr"), "unknown rule 'ldlr'; did you mean 'ldrl'"),
        (
            dict(solver="sgd"),
            "unknown solver 'sgd' of attached maps; "
            "known are correlation, coupled, fixed, predictive",
        ),
        (dict(solver=tp.feedback.SGDSolver()), "SGDSolver needs a layer's noisy pass"),
        (dict(rule="feedback_alignment", solver="predictive"), "does not learn ω"),
        (dict(gains="none"), "gains='none' is neither"),
    ],
)
def test_bad_settings_get_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        tp.attach(nn.Linear(2, 2), **settings)
    with pytest.raises(ValueError, match="has no shape yet"):
        tp.attach(nn.LazyLinear(2))


class Attends(nn.Module):
    """Self-attention, projected together or apart."""

    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **settings)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Triangular(nn.Linear):
    """A registered map."""

    def forward(self, x):
        return F.linear(x, self.weight.tril(), self.bias)


TWICE = {
    "linear": (lambda: nn.Linear(4, 4), (3, 5, 4)),
    "conv": (lambda: nn.Conv1d(4, 4, 3, padding="same", padding_mode="circular"), (3, 4, 5)),
    "transposed conv": (lambda: nn.ConvTranspose2d(4, 4, 3, 2, groups=2), (2, 4, 3, 3)),
    "attention": (Attends, (3, 5, 4)),
    "attention apart": (lambda: Attends(kdim=4, vdim=4), (3, 5, 4)),
    "layer norm": (lambda: nn.LayerNorm(4), (3, 5, 4)),
    "batch norm": (lambda: nn.BatchNorm2d(4), (3, 4, 2, 2)),
    "rms norm": (lambda: nn.RMSNorm(4), (3, 5, 4)),
    "registered": (lambda: Triangular(4, 4), (3, 5, 4)),
    "parametrised": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), (3, 5, 4)),
}


@pytest.mark.parametrize("kind", TWICE)
def test_gradient_penalties_differentiate_twice(kind, monkeypatch):
    """By the symmetric rule every second derivative is autograd's, in θ and in the input."""
    monkeypatch.setitem(MAPS, Triangular, lambda m: AutogradMap(lambda x, w: x @ w.tril().T, -1))
    torch.manual_seed(0)
    make, shape = TWICE[kind]
    model = nn.Sequential(make(), nn.Tanh(), make()).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    reference = copy.deepcopy(model)
    tp.attach(model, rule="symmetric", gains="learned")
    start, found = torch.randn(shape, dtype=torch.float64), []
    for net in (model, reference):
        x = start.clone().requires_grad_()
        sent = torch.autograd.grad(
            net(x).sin().sum(), [x, *net.parameters()], create_graph=True, materialize_grads=True
        )
        penalty = sum(g.square().sum() for g in sent)
        found.append(torch.autograd.grad(penalty, [x, *net.parameters()], materialize_grads=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_gradient_penalty_goes_through_omega():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    tp.attach(model, rule="feedback_alignment")
    x = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    with pytest.warns(UserWarning, match="lacks its terms through θ"):
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    slope = 1 - model[:2](x).square()
    sent = slope * model[2].feedback_weight @ model[0].feedback_weight
    torch.testing.assert_close(g, sent)
    (found,) = torch.autograd.grad(g.square().sum(), model[0].bias)
    wanted = torch.autograd.grad(sent.square().sum(), model[0].bias)[0]
    torch.testing.assert_close(found, wanted)


def test_functional_transforms():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    reference = copy.deepcopy(model)
    tp.attach(model, rule="symmetric")
    x = torch.randn(5, 4, dtype=torch.float64)

    def per_sample(net):
        parameters = dict(net.named_parameters())
        loss = lambda p, x: torch.func.functional_call(net, p, (x[None],)).sum()  # noqa: E731
        return torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)

    found, wanted = per_sample(model), per_sample(reference)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value)


def test_omega_learns_on_several_correlations():
    feedback = tp.attach(nn.Linear(16, 8), solver=CorrelationSolver(window=400))
    first = feedback.mismatch()[""]
    for _ in range(300):
        feedback.step()
    assert feedback.mismatch()[""] < 0.7 * first
    assert tp.attach(nn.Linear(16, 8), solver=CoupledSolver()).mismatch()[""] < 0.02


def test_importing_the_library_loads_torch_and_the_standard_library_alone():
    code = (
        "import sys, torch; before = set(sys.modules); import targetprop; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(*sorted(new - {name.split('.')[0] for name in before} "
        "- set(sys.stdlib_module_names)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["targetprop"]
