"""Attached models have backpropagation's exact gradients where ω = θ: float64, training mode."""

import pytest
import torch

import models
import targetprop as tp


def gradients(model, x, loss):
    """Output and gradients of the loss, in a real input and all parameters; with its own seed."""
    torch.manual_seed(1)
    model.zero_grad()
    x = x.clone().requires_grad_(x.is_floating_point())
    value = loss(model(x))
    value.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return value.detach(), found | ({"input": x.grad} if x.requires_grad else {})


@pytest.mark.parametrize("gains", ["exact", "learned"])
@pytest.mark.parametrize("name", models.MODELS)
def test_the_symmetric_rule_is_backpropagation(name, gains):
    model, x, loss = models.make(name)
    reference = models.make(name)[0]
    keys = list(model.state_dict())
    value, wanted = gradients(reference, x, loss)
    tp.attach(model, rule="symmetric", gains=gains, strict=True)
    assert list(model.state_dict()) == keys
    found_value, found = gradients(model, x, loss)
    torch.testing.assert_close(found_value, value, rtol=1e-12, atol=1e-12)
    assert found.keys() == wanted.keys()
    largest = max(value.norm() for value in wanted.values())
    # the floor is for gradients that are 0 but for rounding, as of a bias before a normalisation
    for key in wanted:
        assert (found[key] - wanted[key]).norm() <= 1e-12 * wanted[key].norm().clamp_min(
            1e-3 * largest
        ), key


@pytest.mark.parametrize("name", models.MODELS)
def test_exact_is_backpropagation_bit_for_bit(name):
    model, x, loss = models.make(name, torch.float32)
    reference = models.make(name, torch.float32)[0]
    value, wanted = gradients(reference, x, loss)
    feedback = tp.attach(model, rule="feedback_alignment")
    with feedback.exact():
        found_value, found = gradients(model, x, loss)
    assert torch.equal(value, found_value)
    for key in wanted:
        assert torch.equal(found[key], wanted[key]), key


@pytest.mark.parametrize("name", models.MODELS)
def test_detach_gives_the_model_back(name):
    model, x, loss = models.make(name)
    classes = [type(module) for module in model.modules()]
    keys, attributes = list(model.state_dict()), set(vars(model))
    tp.attach(model, gains="learned").detach()
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == keys
    assert set(vars(model)) == attributes
    gradients(model, x, loss)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_map_learns_from_noise(name):
    model, *_ = models.make(name, torch.float32)
    feedback = tp.attach(model, gains="learned")
    assert feedback.maps
    assert max(feedback.mismatch().values()) < 0.01
    assert max(memory.probes for memory in feedback.learning.memory.values()) <= 20
