"""Never a fallback: with ω wrong on purpose, every way to run a model gives that wrong gradient."""

import copy
import io
import pickle
import warnings
from datetime import timedelta

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import models
import targetprop as tp
import worlds
from models import collected, distance, wrong
from targetprop.maps import MAPS, AutogradMap

NAMES = ["resnet_basic", "vit_encoder", "gpt_tied", "conv1d", "unet", "gpt2"]


def gradients(model, x, loss, run=None):
    model.zero_grad()
    loss((model if run is None else run)(x)).backward()
    return collected(model)


@pytest.fixture(params=NAMES)
def case(request):
    """(model, x, loss, feedback, the wrong gradients), wrong by far."""
    model, x, loss, feedback = wrong(request.param)
    wanted = gradients(model, x, loss)
    with feedback.exact():
        assert distance(gradients(model, x, loss), wanted) > 0.1
    assert all(
        p.grad is None for name, p in model.named_parameters() if name.endswith("feedback_weight")
    )
    return model, x, loss, feedback, wanted


def test_compiled_in_one_graph(case):
    model, x, loss, _, wanted = case
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert distance(gradients(model, x, loss, compiled), wanted) < 1e-9


class Lower(nn.Linear):
    """A registered map."""

    def forward(self, x):
        return F.linear(x, self.weight.tril(), self.bias)


@pytest.mark.parametrize("settings", [{"rule": "symmetric"}, {"beta": 0.1, "gains": "learned"}])
def test_registered_maps_and_finite_nudges_compile_in_one_graph(settings, monkeypatch):
    monkeypatch.setitem(MAPS, Lower, lambda m: AutogradMap(lambda x, w: x @ w.tril().T, -1))
    torch.manual_seed(0)
    model = nn.Sequential(
        Lower(4, 4), nn.GELU(), nn.LayerNorm(4), nn.ReLU(inplace=True), nn.Linear(4, 3)
    )
    x = torch.randn(5, 4, requires_grad=True)
    tp.attach(model, x, **settings)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, wanted = (torch.autograd.grad(run(x).sum(), x)[0] for run in (compiled, model))
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("gains", ["exact", "learned"])
@pytest.mark.parametrize("name", models.MODELS)
def test_compiled_by_inductor(name, gains):
    model, x, loss, _ = wrong(name, torch.float32, gains=gains)
    moving = name in ("parametrised", "hooked")  # spectral norm iterates from pass to pass
    wanted = gradients(model, x, loss)
    torch._dynamo.reset()
    assert distance(gradients(model, x, loss, torch.compile(model, fullgraph=True)), wanted) < (
        1 if moving else 1e-3
    )


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(case, reentrant):
    model, x, loss, _, wanted = case

    def run(x):
        # reentrant checkpoints need an input with gradient
        stand_in = torch.zeros((), dtype=torch.float64, requires_grad=True)
        return checkpoint(
            lambda x, _: getattr(out := model(x), "logits", out),
            x,
            stand_in,
            use_reentrant=reentrant,
        )

    assert distance(gradients(model, x, loss, run), wanted) < 1e-12


def test_accumulation_adds_up(case):
    model, x, loss, _, wanted = case
    model.zero_grad()
    for _ in range(2):
        (loss(model(x)) / 2).backward()
    assert distance(collected(model), wanted) < 1e-12


def test_copies_send_the_same(case):
    model, x, loss, _, wanted = case
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert distance(gradients(other, x, loss), wanted) < 1e-12
        assert [type(m).__name__ for m in other.modules()] == [
            type(m).__name__ for m in model.modules()
        ]
        assert tp.attach(other, rule="feedback_alignment").mismatch()


def test_a_plain_checkpoint_loads_strictly_and_leaves_feedback(case):
    model, _x, _loss, _, _ = case
    plain = {key: value for key, value in model.state_dict().items() if "feedback" not in key}
    omega = {key: value.clone() for key, value in model.state_dict().items() if "feedback" in key}
    assert omega
    model.load_state_dict(plain, strict=True)
    for key, value in omega.items():
        assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    model, x, loss, feedback = wrong(name, torch.float32)
    wanted = gradients(model, x, loss)

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    found = gradients(model, x, loss, run)
    with feedback.exact():
        right = gradients(model, x, loss, run)
    assert distance(found, wanted) < 0.3 * distance(right, wanted)
    assert all(value.dtype == torch.float32 for value in found.values())


def test_autocast_reads_omega_of_now_not_of_its_cache():
    model, x, loss, _ = wrong("resnet_basic", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        first = gradients(model, x, loss)
        with torch.no_grad():
            model.head.feedback_weight.mul_(-1)
        second = gradients(model, x, loss)
    assert torch.allclose(second["stem.0.0.weight"], -first["stem.0.0.weight"], rtol=0.2, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_weights_learn_and_train(dtype):
    model, x, loss = models.make("vit_encoder", dtype)
    feedback = tp.attach(model)
    assert max(feedback.mismatch().values()) < 0.01
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    for _ in range(3):
        loss(model(x).float()).backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_gradient_scaler_steps_as_without(case):
    model, x, loss, _, wanted = case
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    model.zero_grad()
    scaler.scale(loss(model(x))).backward()
    scaler.step(optimizer)
    moved = {
        name: before[name] - p.detach() for name, p in model.named_parameters() if name in wanted
    }
    assert distance(moved, wanted) < 1e-9


def replicated(name, wrapper, seed):
    """One of two processes: the gradients of its half of the batch, averaged by the wrapper."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    model, x, loss, _ = wrong(name)
    wanted = gradients(model, x, loss)
    half = len(x) // 2
    mine = x[half * dist.get_rank() :][:half]

    def halves(output):  # the whole batch's loss as the mean of two halves'
        logits = output.flatten(0, -2)
        labels = (torch.arange(len(x)) % models.CLASSES)[half * dist.get_rank() :][:half]
        return nn.functional.cross_entropy(logits, labels)

    if wrapper == "ddp":
        run = nn.parallel.DistributedDataParallel(model)
        model.zero_grad()
        halves(run(mine)).backward()
        found = collected(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for child in model.children():
            if any(True for _ in child.parameters()):
                fully_shard(child, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model.zero_grad()
        halves(model(mine)).backward()
        found = {
            name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None
        }
    assert distance(found, wanted) < 1e-9
    run = None
    dist.barrier()
    dist.destroy_process_group()
    return 0


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["convnext", "vit_attention", "unet"])
def test_two_processes(name, wrapper):
    assert worlds.codes(worlds.spawn(replicated, 2, name, wrapper, 0)) == [0, 0]


def trained(name, wrapper):
    """One of two processes: ω tracks and is probed where parameters are replicated or sharded."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    model, x, loss = models.make(name, torch.float32)
    feedback = tp.attach(model, seed=1)
    run = model
    if wrapper == "ddp":
        run = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = feedback.follow(torch.optim.AdamW(model.parameters(), 0.01))
    for step in range(25):
        optimizer.zero_grad()
        loss(run(x + 0.1 * step + dist.get_rank())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert all(p.grad is None for key, p in model.named_parameters() if "feedback" in key)
    assert max(feedback.mismatch().values()) < 0.01
    omega = feedback.sites[-1].omega
    if wrapper == "ddp":
        other = omega.detach().clone()
        dist.broadcast(other, 0)
        assert torch.equal(other, omega)
    else:  # a wrong ω is found and mended through its shards
        with torch.no_grad():
            omega.to_local().zero_()
        feedback.link.loads.stale = True
        feedback.step()
        assert max(feedback.mismatch().values()) < 0.01
    run = None
    dist.barrier()
    dist.destroy_process_group()
    return 0


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_two_processes_learn_feedback(wrapper):
    assert worlds.codes(worlds.spawn(trained, 2, "convnext", wrapper)) == [0, 0]


def drawn_apart(name, wrapper):
    """Of two processes with θ and ω of their own: DDP hands out one θ, every ω must become its."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    model, x, loss = models.make(name, torch.float32)
    torch.manual_seed(dist.get_rank())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    feedback = tp.attach(model, seed=dist.get_rank())
    run = nn.parallel.DistributedDataParallel(model)
    optimizer = feedback.follow(torch.optim.SGD(model.parameters(), 0.01))
    for _ in range(2):
        optimizer.zero_grad()
        loss(run(x)).backward()
        optimizer.step()
    assert max(feedback.mismatch().values()) < 0.01
    theta = feedback.sites[-1].theta.detach().clone()
    dist.broadcast(theta, 0)
    assert torch.equal(theta, feedback.sites[-1].theta)
    run = None
    dist.barrier()
    dist.destroy_process_group()
    return 0


def test_two_processes_that_drew_their_own_weights():
    assert worlds.codes(worlds.spawn(drawn_apart, 2, "convnext", "ddp")) == [0, 0]


class Recorder(torch.optim.SGD):
    """SGD that keeps the gradients it is given, by name."""

    def __init__(self, model, lr=0.0):
        super().__init__([p for p in model.parameters() if p.requires_grad], lr)
        self.model, self.seen = model, None

    def step(self, closure=None):
        found = None if closure is None else closure()
        self.seen = self.seen or collected(self.model)
        return found


def test_lightning():
    lightning = pytest.importorskip("lightning")
    model, x, loss, feedback = wrong("vit_attention", torch.float32)
    wanted = gradients(model, x, loss)
    model.zero_grad()
    recorder = Recorder(model)

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, index):
            return loss(self.model(batch[0]))

        def configure_optimizers(self):
            return feedback.follow(recorder)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=len(x))
        lightning.Trainer(
            max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(Task(), loader)  # fmt: skip
    assert distance(recorder.seen, wanted) < 1e-5


def test_lightning_tracks_through_its_closure():
    lightning = pytest.importorskip("lightning")
    model, x, loss = models.make("vit_attention", torch.float32)
    # no probe corrects anything
    feedback = tp.attach(model, solver=tp.feedback.PredictiveSolver(tolerance=10.0))

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, index):
            return loss(self.model(batch[0]))

        def configure_optimizers(self):
            return feedback.follow(torch.optim.AdamW(self.parameters(), 0.01))

    with torch.no_grad():
        for site in feedback.sites:
            site.write(site.probe().theta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=2)
        lightning.Trainer(
            max_steps=12, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=0.5,
        ).fit(Task(), loader)  # fmt: skip
    assert max(feedback.mismatch().values()) < 1e-4


def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model, x, _, feedback = wrong("gpt2", torch.float32)
    model.zero_grad()
    model(input_ids=x, labels=x).loss.backward()
    wanted = collected(model)
    model.zero_grad()
    recorder = Recorder(model)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=len(x), report_to=[],
        save_strategy="no", max_grad_norm=0.0, use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in x]
    feedback.follow(recorder)
    schedule = torch.optim.lr_scheduler.ConstantLR(recorder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.Trainer(
            model, arguments, train_dataset=data, optimizers=(recorder, schedule)
        ).train()
    # the trainer's mean counts tokens otherwise
    scale = recorder.seen["transformer.wte.weight"].norm() / wanted["transformer.wte.weight"].norm()
    assert distance({key: value / scale for key, value in recorder.seen.items()}, wanted) < 1e-4


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    model, x, loss, feedback = wrong("vit_attention", torch.float32)
    wanted = gradients(model, x, loss)
    accelerator = accelerate.Accelerator(cpu=True)
    run, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.0))
    feedback.follow(optimizer)
    optimizer.zero_grad()
    accelerator.backward(loss(run(x)))
    optimizer.step()
    assert distance(collected(model), wanted) < 1e-5
