"""The contract of ``test_contract`` for what autograd carries, on three kinds of plain modules."""

import copy
import gc

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import models
import targetprop as tp
import worlds
from cases import PLACES, carried
from targetprop.algorithms.attached import forward_parameters
from targetprop.algorithms.ldrl import AttachedLDRL
from targetprop.ranks import Ranks, mesh

every = pytest.mark.parametrize("place", PLACES, ids="-".join)


def gradients(net):
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def started(place, dtype=torch.float32, **settings):
    """(model, algorithm, optimizer that it follows, x, y)."""
    make, model, x, y = carried(*place, dtype)
    algo = make(model, example_inputs=(x,), **settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-3)
    algo.follow(optimizer)
    return model, algo, optimizer, x, y


def step(algo, optimizer, x, y):
    optimizer.zero_grad()
    report = algo.backward(x, y)
    optimizer.step()
    return report


def learning(place):
    """The names of the plain model's parameters, all of which learn."""
    return {name for name, _ in carried(*place)[1].named_parameters()}


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_have_shape_dtype_and_device_of_their_parameters(place, dtype):
    model, algo, _, x, y = started(place, dtype)
    logits = copy.deepcopy(model)(x).detach()
    report = algo.backward(x, y)
    assert gradients(model).keys() == learning(place)
    for p in forward_parameters(model):
        assert (p.grad.shape, p.grad.dtype, p.grad.device) == (p.shape, p.dtype, p.device)
        assert p.grad.isfinite().all()
    torch.testing.assert_close(report.logits, logits)
    torch.testing.assert_close(report.loss, F.cross_entropy(report.logits, y))


@every
def test_deterministic(place):
    results = []
    for _ in range(2):
        model, algo, optimizer, x, y = started(place)
        for _ in range(3):
            step(algo, optimizer, x, y)
        results.append(model.state_dict() | gradients(model))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


@every
def test_no_hidden_state_between_instances_or_calls(place):
    """Work on one model leaves another's results alone; a pass is not remembered for the next."""
    model, algo, _, x, y = started(place)
    algo.backward(x, y)
    expected = gradients(model)
    model, algo, _, x, y = started(place)
    _, other, _, _, _ = started(place)
    other.backward(torch.randn_like(x)[:3], y[:3])
    statistics = [buffer.clone() for buffer in model.buffers()]
    model(torch.randn_like(x)[:5])
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), statistics, strict=True):
            buffer.copy_(value)
    algo.backward(x, y)
    assert all(torch.equal(value, gradients(model)[key]) for key, value in expected.items())


@every
def test_gradients_accumulate(place):
    model, algo, _, x, y = started(place, torch.float64)
    algo.backward(x, y)
    once = copy.deepcopy(gradients(model))
    algo.backward(x, y)
    floor = 1e-12 * max(value.abs().max() for value in once.values())
    for key, value in gradients(model).items():
        torch.testing.assert_close(value, 2 * once[key], rtol=1e-9, atol=floor)


@every
def test_no_graph_is_left_behind(place):
    model, algo, optimizer, x, y = started(place)
    step(algo, optimizer, x, y)
    gc.collect()

    def graphs():
        found = (o for o in gc.get_objects() if issubclass(type(o), torch.Tensor))
        return [o for o in found if o.grad_fn is not None]

    before = graphs()  # of other tests; held, so that no new one takes their place
    known = set(map(id, before))
    reports = [step(algo, optimizer, x, y) for _ in range(3)]
    gc.collect()
    assert not [o.shape for o in graphs() if id(o) not in known]
    assert not any(report.logits.requires_grad or report.loss.requires_grad for report in reports)
    assert not any(p.grad is not None for name, p in model.named_parameters() if "feedback" in name)


LOSSES = {
    "mse": (dict(loss="mse"), lambda s, y: F.mse_loss(s, F.one_hot(y, models.CLASSES).to(s))),
    "smooth": (dict(label_smoothing=0.1), lambda s, y: F.cross_entropy(s, y, label_smoothing=0.1)),
    "callable": (dict(loss=F.multi_margin_loss), F.multi_margin_loss),
}


@every
@pytest.mark.parametrize("loss", LOSSES)
def test_output_layer_gradient_is_exact_for_every_loss(place, loss):
    settings, function = LOSSES[loss]
    reference = carried(*place)[1]
    model, algo, _, x, y = started(place, **settings)
    algo.backward(x, y)
    function(reference(x), y).backward()
    wanted = gradients(reference)
    for name in list(wanted)[-2:]:  # weight and bias of the head
        torch.testing.assert_close(gradients(model)[name], wanted[name])


@every
def test_frozen_parameters_get_no_gradient(place):
    make, model, x, y = carried(*place)
    first = next(iter(model.parameters()))
    first.requires_grad_(False)
    algo = make(model, example_inputs=(x,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    algo.follow(optimizer)
    before = first.clone()
    step(algo, optimizer, x, y)
    assert first.grad is None
    assert torch.equal(first, before)


@every
def test_alignment_leaves_everything_as_it_was(place):
    model, algo, optimizer, x, y = started(place)
    step(algo, optimizer, x, y)
    kept = copy.deepcopy((model.state_dict(), algo.state_dict(), gradients(model)))
    found = tp.analysis.alignment(model, algo, x, y)
    assert found.keys() == learning(place)
    state, memory, grads = kept
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert all(torch.equal(value, gradients(model)[key]) for key, value in grads.items())
    assert str(memory) == str(algo.state_dict())


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_runs_on_cuda(place):
    make, model, x, y = carried(*place)
    make(model.cuda()).backward(x.cuda(), y.cuda())
    assert all(p.grad.is_cuda for p in forward_parameters(model))


SPLIT = [place for place in PLACES if place[1] != "residual"]
"""Batch normalisation sees the statistics of each part of a batch."""


def shared_out(ranks):
    """The weights after some steps of every case, each process on its part of the same batches."""
    found = {}
    for place in SPLIT:
        model, algo, optimizer, x, y = started(place, torch.float64)
        algo.distribute(ranks)
        mine = ranks.data.part(len(x))
        losses = [step(algo, optimizer, x[mine], y[mine]).loss for _ in range(5)]
        found["-".join(place)] = model.state_dict() | {"losses": torch.stack(losses)}
    return found


def one_of_two(folder):
    dist.init_process_group("gloo")
    ranks = mesh(1)
    found = shared_out(ranks)
    if ranks.leader:
        torch.save(found, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()
    return 0


def test_two_processes_equal_one(tmp_path):
    assert worlds.codes(worlds.spawn(one_of_two, 2, tmp_path)) == [0, 0]
    found = torch.load(tmp_path / "found.pt")
    for name, wanted in shared_out(Ranks()).items():
        for key, value in wanted.items():
            torch.testing.assert_close(
                found[name][key], value, rtol=1e-9, atol=1e-9, msg=f"{name} {key}"
            )


def test_rows_name_the_mismatch_of_every_map_at_every_step():
    """Of a map at rest, that which was last measured: not the maps alone that were just probed."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    algo = AttachedLDRL(model)
    optimizer = algo.follow(torch.optim.SGD(model.parameters(), 0.1))
    for _ in range(4):
        optimizer.zero_grad()
        found = algo.backward(torch.randn(5, 6), torch.randint(3, (5,))).feedback
        optimizer.step()
        assert set(found) == set(algo.feedback.maps)
        assert all(one.mismatch is not None and one.mismatch < 0.02 for one in found.values())
