"""Export: the forward network alone, its logits those of the run's, in every format."""

import io
import json
import sys

import pytest
import torch

from targetprop.commands import main as cli
from targetprop.maps import is_feedback
from targetprop.training import build, checkpoint, config, export
from targetprop.training.session import load_weights

CODE = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, size, classes, width):
        super().__init__()
        self.enter = nn.Linear(size, width)
        self.middle, self.again = nn.Linear(width, width), nn.Linear(width, width)
        self.again.weight = self.middle.weight
        self.norm, self.leave = nn.BatchNorm1d(width), nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu(self.enter(x.flatten(1)))
        x = x + torch.tanh(self.again(self.norm(torch.tanh(self.middle(x)))))
        return self.leave(nn.functional.dropout(x, 0.5, self.training))

def make(in_shape, classes, width=12):
    return Tied(in_shape[0] * in_shape[1] * in_shape[2], classes, width)

class Counts(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)) * (1 if x.sum().item() < 1e9 else 2)

def counts(in_shape, classes):
    return Counts(64, classes)

class Named(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.leave = nn.Linear(64, classes)
        self.my_feedback_weight = nn.Parameter(torch.ones(classes))

    def forward(self, x):
        return self.leave(x.flatten(1)) * self.my_feedback_weight

def named(in_shape, classes):
    return Named(classes)
"""
SHORT = ["--data.limit", 128, "--measure_every", 0, "--device", "cpu", "--steps", 2]
OWN = ["--network.name", "own_exported:make", "--network.options.width", 8]
RUNS = {
    "chain": ["digits-ldrl", "--network.name", "lenet", "--network.channels", "[4,4,8]"],
    "mirror": ["digits-ldrl-paper"],
    "resnet": ["digits-resnet-ldrl", "--network.options.widths", "[4,8]"],
    "vit": ["digits-vit-sign_symmetry"],
    "own": ["digits-ldrl", *OWN],
    "direct": ["digits-backprop", "--algorithm.name", "direct_feedback_alignment", *OWN],
    "double": ["digits-backprop", "--dtype", "float64"],
}


def run(*words):
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the user's own networks, from which runs are started."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "own_exported.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    sys.modules.pop("own_exported", None)


@pytest.fixture(params=RUNS)
def trained(request, place):
    """A run of every kind, made once."""
    folder = place / request.param
    if not folder.exists():
        assert run("train", *RUNS[request.param], *SHORT, "--out", folder) == 0
    return folder


@pytest.fixture
def chain(place):
    folder = place / "chain"
    if not folder.exists():
        assert run("train", *RUNS["chain"], *SHORT, "--out", folder) == 0
    return folder


def images_and_logits(folder, name="last.pt"):
    """Normalised test images and what the run's own network makes of them."""
    session = build.set_up(config.load(str(folder / "config.yaml")), folder)
    session.net.load_state_dict(checkpoint.load(folder / name)["net"])
    x, _ = next(session.test.once(50))
    with torch.no_grad():
        return x.contiguous(), session.net.eval()(x)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_safetensors_hold_the_plain_weights_and_what_they_are_of(trained):
    library = pytest.importorskip("safetensors")
    assert run("export", trained, "--format", "safetensors", "--force") == 0
    with library.safe_open(trained / "last.safetensors", "pt") as file:
        record, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert not any(map(is_feedback, tensors))
    assert record["classes"] == "10"
    assert json.loads(record["class_names"]) == [str(i) for i in range(10)]
    assert json.loads(record["input_shape"]) == [1, 8, 8]
    chosen = config.load(str(trained / "config.yaml"))
    assert record["network"] == chosen.network.name
    assert record["commit"] == str(json.loads((trained / "environment.json").read_text())["commit"])
    net = export.plain(chosen, build.load_data(chosen))
    net.load_state_dict(tensors)
    x, wanted = images_and_logits(trained)
    with torch.no_grad():
        close(net(x), wanted)


def test_onnx_answers_batches_of_any_size(trained, capsys):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if trained.name == "double":  # onnxruntime has no convolution in float64
        assert run("export", trained, "--format", "onnx") == 2
        said = capsys.readouterr().err
        assert "cannot be exported as onnx" in said
        assert len(said.splitlines()) == 1
        assert not (trained / "last.onnx").exists()
        return
    assert run("export", trained, "--format", "onnx", "--force") == 0
    session = runtime.InferenceSession(trained / "last.onnx", providers=["CPUExecutionProvider"])
    x, wanted = images_and_logits(trained)
    for part in (slice(0, 1), slice(0, 50)):
        (found,) = session.run(None, {"images": x[part].numpy()})
        close(torch.from_numpy(found), wanted[part])
    assert session.get_modelmeta().custom_metadata_map["classes"] == "10"
    graph = onnx.load(trained / "last.onnx").graph
    assert not any(is_feedback(tensor.name) for tensor in graph.initializer)


def test_pt2_answers_batches_of_any_size(trained):
    assert run("export", trained, "--format", "pt2", "--force") == 0
    found = {export.RECORD: ""}
    program = torch.export.load(trained / "last.pt2", extra_files=found)
    assert json.loads(found[export.RECORD])["classes"] == "10"
    assert not any(map(is_feedback, program.state_dict))
    x, wanted = images_and_logits(trained)
    for part in (slice(0, 1), slice(0, 50)):
        close(program.module()(x[part]), wanted[part])


def test_the_best_weights_and_a_place_of_ones_own(chain, tmp_path, capsys):
    file = tmp_path / "mine.pt2"
    words = ["export", chain, "--format", "pt2", "--weights", "best", "--out", file]
    assert run(*words) == 0
    assert "the logits of the run's network on 256 test images" in capsys.readouterr().out
    x, wanted = images_and_logits(chain, "best.pt")
    close(torch.export.load(file).module()(x), wanted)
    before = file.read_bytes()
    assert run(*words) == 2
    assert "is there already; give --force" in " ".join(capsys.readouterr().err.split())
    assert file.read_bytes() == before
    assert run(*words, "--force") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pt2"]


def test_products_in_short_formats_are_exported_in_float32(place):
    folder = place / "short"
    words = [*RUNS["chain"], *SHORT, "--dtype", "bfloat16", "--out", folder]
    assert run("train", *words) == 0
    assert run("export", folder, "--format", "pt2") == 0
    program = torch.export.load(folder / "last.pt2")
    assert {value.dtype for value in program.state_dict.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--format", "pt2"], "nowhere holds no run (no config.yaml)"),
        (
            ["chain", "--format", "pt2", "--out", "."],
            "--out . is a folder or no regular file; give a file's name.",
        ),
        (["chain", "--format", "pt2", "--out", "no/a.pt2"], "there is no folder no; make it"),
        (["chain", "--format", "pt2", "--channels", "3"], "channels"),
    ],
)
def test_refusals_are_one_sentence(chain, capsys, words, message):
    assert run("export", *words) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert len(said.splitlines()) == 1


def test_without_validation_there_is_no_best(place, capsys):
    words = ["digits-backprop", *SHORT, "--data.validation", 0, "--out", "unvalidated"]
    assert run("train", *words) == 0
    assert run("export", "unvalidated", "--format", "pt2", "--weights", "best") == 2
    assert "give --weights last" in capsys.readouterr().err


def test_a_damaged_checkpoint_leaves_no_file(chain, tmp_path, capsys):
    (tmp_path / "config.yaml").write_bytes((chain / "config.yaml").read_bytes())
    content = bytearray((chain / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "last.pt").write_bytes(content)
    assert run("export", tmp_path, "--format", "pt2") == 2
    assert "damaged" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "last.pt"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("counts", "cannot be exported as pt2"),
        ("named", "parameter 'my_feedback_weight' of network 'own_exported:named' is named as"),
    ],
)
def test_networks_that_cannot_be_exported_are_refused(place, capsys, name, message):
    words = ["digits-backprop", "--network.name", f"own_exported:{name}", *SHORT]
    assert run("train", *words, "--out", name) == 0
    assert run("export", name, "--format", "pt2") == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert len(said.splitlines()) == 1
    assert not (place / name / "last.pt2").exists()


def test_a_file_that_answers_otherwise_is_not_kept(chain, capsys, monkeypatch):
    def wrong(made):
        file = io.BytesIO()
        torch.save(3, file)
        return file.getvalue(), lambda images: made.net(images) + 1e-2

    monkeypatch.setitem(export.FORMATS, "pt2", export.Format(wrong))
    assert run("export", chain, "--format", "pt2", "--out", "wrong.pt2") == 2
    assert "gives other logits than the run's network" in " ".join(capsys.readouterr().err.split())
    assert not list(chain.parent.glob("*wrong*"))


def test_a_write_that_fails_leaves_nothing(chain, capsys, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    assert run("export", chain, "--format", "pt2", "--out", tmp_path / "a.pt2") == 2
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(chain, capsys, monkeypatch):
    monkeypatch.setitem(export.FORMATS, "onnx", export.Format(export.onnx, ("no_such_package",)))
    assert run("export", chain, "--format", "onnx", "--out", "missing.onnx") == 2
    said = capsys.readouterr().err
    assert "--format onnx needs no_such_package; pip install 'targetprop[export]'." in said


def test_the_network_of_a_run_can_be_had_in_python(trained, chain):
    import targetprop as tp

    for folder in (trained, chain):
        chosen = config.load(str(folder / "config.yaml"))
        session = build.set_up(chosen, folder)
        load_weights(session.net, checkpoint.load(folder / "last.pt"), folder / "last.pt")
        x, _ = next(iter(session.test.once()))
        net = tp.load_network(folder)
        assert not [name for name, _ in net.named_parameters() if is_feedback(name)]
        with torch.no_grad():
            torch.testing.assert_close(net(x), session.net.eval()(x))
    with pytest.raises(config.ConfigError, match="holds no run"):
        tp.load_network(folder / "nowhere")
