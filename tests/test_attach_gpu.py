"""What the tests of ``attach`` hold on a CPU holds on a GPU; skipped, with the reason, without."""

import pytest
import torch
from torch import nn

import models
import targetprop as tp
from models import collected, distance, wrong

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(name, dtype=torch.float64):
    model, x, loss = models.make(name, dtype)

    def gpu_loss(output):
        with torch.device("cuda"):
            return loss(output)

    return model.cuda(), x.cuda(), gpu_loss


def gradients(model, x, loss, run=None):
    torch.manual_seed(1)
    model.zero_grad()
    loss((model if run is None else run)(x)).backward()
    return collected(model)


@pytest.mark.parametrize("gains", ["exact", "learned"])
@pytest.mark.parametrize("name", models.MODELS)
def test_the_symmetric_rule_is_backpropagation(name, gains):
    reference, x, loss = on_gpu(name)
    wanted = gradients(reference, x, loss)
    model, x, loss = on_gpu(name)
    tp.attach(model, rule="symmetric", gains=gains, strict=True)
    # kernels draw their own masks
    dropout = name in ("vgg", "vit_attention", "vit_encoder", "gpt2", "bert", "hf_vit")
    for module in [*model.modules(), *reference.modules()] if dropout else []:
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    if dropout:
        wanted = gradients(reference, x, loss)
    if name != "hooked":
        assert distance(gradients(model, x, loss), wanted) < 1e-10


@pytest.mark.parametrize("name", models.MODELS)
def test_every_map_learns_from_noise(name):
    model, *_ = on_gpu(name, torch.float32)
    feedback = tp.attach(model, gains="learned")
    assert max(feedback.mismatch().values()) < 0.01


def far(found, wanted):
    """Relative distance of all gradients as one vector: short formats round small ones by more."""
    missed = sum((found[key].to(value) - value).square().sum() for key, value in wanted.items())
    return float((missed / sum(value.square().sum() for value in wanted.values())).sqrt())


def gpu_wrong(name, dtype, **settings):
    model, x, loss, feedback = wrong(name, dtype, **settings)

    def gpu_loss(output):
        with torch.device("cuda"):
            return loss(output)

    return model.cuda(), x.cuda(), gpu_loss, feedback


@pytest.mark.parametrize("name", ["resnet_basic", "vit_encoder", "gpt_tied", "conv1d", "unet"])
def test_wrong_feedback_is_wrong_on_every_way(name):
    model, x, loss, feedback = gpu_wrong(name, torch.float32)
    precise = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        wanted = gradients(model, x, loss)
        with feedback.exact():
            backprop = gradients(model, x, loss)
            assert distance(backprop, wanted) > 0.1
        torch._dynamo.reset()
        assert (
            distance(gradients(model, x, loss, torch.compile(model, fullgraph=True)), wanted) < 1e-3
        )
        torch._dynamo.reset()
        graphs = torch.compile(model, fullgraph=True, mode="reduce-overhead")
        for _ in range(3):
            found = gradients(model, x, loss, graphs)
        assert distance(found, wanted) < 1e-3
        for dtype in (torch.bfloat16, torch.float16):

            def run(x, dtype=dtype):
                with torch.autocast("cuda", dtype):
                    return model(x)

            with feedback.exact():
                # what the precision costs backprop itself
                error = far(gradients(model, x, loss, run), backprop)
            assert far(gradients(model, x, loss, run), wanted) < 0.02 + 2 * error
        scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        model.zero_grad()
        scaler.scale(loss(model(x))).backward()
        scaler.step(optimizer)
        moved = {
            key: before[key] - p.detach() for key, p in model.named_parameters() if key in wanted
        }
        assert distance(moved, wanted) < 1e-2
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = precise


@pytest.mark.parametrize("kind", ["adamw", "fused adamw", "sgd", "scaled fused adamw"])
def test_tracking_on_the_gpu(kind):
    model, x, loss = on_gpu("gpt_tied", torch.float32)
    feedback = tp.attach(model, solver=tp.feedback.PredictiveSolver(tolerance=10.0))
    with torch.no_grad():
        for site in feedback.sites:
            site.write(site.probe().theta)
    make = {
        "adamw": lambda p: torch.optim.AdamW(p, 0.01),
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    }
    optimizer = make.get(kind, lambda p: torch.optim.AdamW(p, 0.01, fused=True))(model.parameters())
    feedback.follow(optimizer)
    scaler = torch.amp.GradScaler("cuda", enabled="scaled" in kind)
    for _ in range(30):
        optimizer.zero_grad()
        scaler.scale(loss(model(x))).backward()
        scaler.step(optimizer)
        scaler.update()
    assert max(feedback.mismatch().values()) < 1e-4


def test_nccl():
    """DDP and FSDP2 over NCCL, one process: the only count that one GPU allows."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("nccl", init_method="tcp://localhost:29517", rank=0, world_size=1)
    try:
        model, x, loss, _ = gpu_wrong("vit_attention", torch.float32)
        wanted = gradients(model, x, loss)
        replicated = nn.parallel.DistributedDataParallel(model, device_ids=[0])
        assert distance(gradients(model, x, loss, replicated), wanted) < 1e-2
        del replicated
        fully_shard(model, mesh=init_device_mesh("cuda", (1,)))
        model.zero_grad()
        loss(model(x)).backward()
        found = {
            key: p.grad.full_tensor() for key, p in model.named_parameters() if p.grad is not None
        }
        assert distance(found, wanted) < 1e-2
    finally:
        dist.destroy_process_group()
