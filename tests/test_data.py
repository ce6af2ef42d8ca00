"""Readers, catalogue and batches; damaged files are one typed error (bar 5)."""

import gzip
import hashlib
import io
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from targetprop.data import Batches, DataError, Images, fetch, formats, load, sources, split
from targetprop.data.pipeline import flip_and_crop, seeded

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def idx(array):
    return (
        b"\x00\x00\x08"
        + bytes([array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


RNG = np.random.default_rng(0)
PIXELS, LABELS = (
    RNG.integers(0, 256, (12, 6, 5), np.uint8),
    RNG.integers(0, 10, 12).astype(np.uint8),
)
RECORDS = np.concatenate([LABELS[:, None], RNG.integers(0, 256, (12, 3072), np.uint8)], 1)


def tar_of(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def npz_of(**arrays):
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def read_pair(path):
    labels = path.with_name("labels")
    labels.write_bytes(idx(LABELS))
    return formats.read_idx_pair(path, labels, 10)


FORMATS = {
    "idx": (idx(PIXELS), read_pair, (1, 6, 5)),
    "idx.gz": (gzip.compress(idx(PIXELS)), read_pair, (1, 6, 5)),
    "cifar.bin": (RECORDS.tobytes(), lambda p: formats.read_cifar_files([p], 10), (3, 32, 32)),
    "cifar.tar.gz": (
        tar_of({"a.bin": RECORDS[:6].tobytes(), "b.bin": RECORDS[6:].tobytes()}),
        lambda p: formats.read_cifar_archive(p, ["a.bin", "b.bin"], 10),
        (3, 32, 32),
    ),
    "imagenet.npz": (
        npz_of(data=RECORDS[:, 1:], labels=LABELS.astype(np.int64) + 1),
        lambda p: formats.read_imagenet32([p], 10),
        (3, 32, 32),
    ),
}
every = pytest.mark.parametrize("name", FORMATS)


@every
def test_reads_what_is_published(name, tmp_path):
    content, read, shape = FORMATS[name]
    (tmp_path / name).write_bytes(content)
    data = read(tmp_path / name)
    assert data.images.shape == (12, *shape)
    assert data.images.dtype == torch.uint8
    assert data.labels.tolist() == LABELS.tolist()
    expected = PIXELS[:, None] if "idx" in name else RECORDS[:, 1:].reshape(-1, 3, 32, 32)
    assert np.array_equal(data.images.numpy(), expected)


@every
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damage=st.data())
def test_damage_is_the_typed_error_or_right_shapes(name, tmp_path, damage):
    content, read, shape = FORMATS[name]
    if damage.draw(st.booleans()):
        changed = content[: damage.draw(st.integers(0, len(content) - 1))]
    else:
        changed = bytearray(content)
        for _ in range(damage.draw(st.integers(1, 4))):
            changed[damage.draw(st.integers(0, len(content) - 1))] ^= 1 << damage.draw(
                st.integers(0, 7)
            )
    path = tmp_path / name
    path.write_bytes(bytes(changed))
    try:
        data = read(path)
    except DataError as error:
        message = str(error)
    else:
        assert data.images.shape[1:] == shape
        assert data.labels.shape == data.images.shape[:1]
        assert 0 <= data.labels.min() <= data.labels.max() < 10
        return
    assert str(tmp_path) in message  # it names the file


@every
def test_every_truncation_of_a_length_framed_file_is_refused(name, tmp_path):
    content, read, _ = FORMATS[name]
    path = tmp_path / name
    for length in np.linspace(0, len(content) - 1, 25).astype(int):
        if name == "cifar.bin" and length and length % 3073 == 0:
            continue
        path.write_bytes(content[:length])
        with pytest.raises(DataError):
            read(path)


def test_wrong_magic_labels_and_lengths_are_named(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\x00\x00\x0d\x03" + idx(PIXELS)[4:])
    with pytest.raises(DataError, match="magic number 00000d03"):
        read_pair(path)
    path.write_bytes(idx(PIXELS[:5]))
    with pytest.raises(DataError, match="does not go with"):
        read_pair(path)
    path.write_bytes(RECORDS.tobytes().replace(bytes([LABELS[0]]), b"\x0b", 1))
    with pytest.raises(DataError, match=r"label 11 is outside 0\.\.9"):
        formats.read_cifar_files([path], 10)
    path.write_bytes(npz_of(data=RECORDS[:, 1:], labels=LABELS.astype(np.int64)))
    with pytest.raises(DataError, match="label -1"):
        formats.read_imagenet32([path], 10)
    path.write_bytes(npz_of(data=RECORDS[:, 1:]))
    with pytest.raises(DataError, match="expected 'data' and 'labels'"):
        formats.read_imagenet32([path], 10)


def test_nothing_is_unpickled(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "train_data_batch_1.npz"
    path.write_bytes(npz_of(data=np.array([Payload()], dtype=object), labels=LABELS))
    with pytest.raises(DataError):
        formats.read_imagenet32([path], 10)
    assert not (tmp_path / "executed").exists()


def write_folder(root, size=(5, 4)):
    for part in ("train", "test"):
        for i, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True)
            for j in range(3):
                Image.new("RGB", size, (100 * i, 10 * j, 0)).save(root / part / name / f"{j}.png")


def test_image_folder(tmp_path):
    write_folder(tmp_path)
    data = load("folder", tmp_path)
    assert data.in_shape == (3, 4, 5)
    assert data.classes == 2
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]  # a limit takes all classes alike
    assert load("folder", tmp_path, image_size=8).in_shape == (3, 8, 8)
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "ant" / "9.png")
    with pytest.raises(DataError, match=r"give data\.image_size"):
        load("folder", tmp_path)
    (tmp_path / "train" / "ant" / "9.png").write_bytes(b"not a png")
    with pytest.raises(DataError, match=r"9\.png: damaged"):
        load("folder", tmp_path)
    (tmp_path / "train" / "ant" / "9.png").unlink()
    (tmp_path / "test" / "cat").mkdir()
    with pytest.raises(DataError, match="'cat' does not occur"):
        load("folder", tmp_path)
    with pytest.raises(DataError, match="holds no class folders"):
        load("folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match="needs its root"):
        load("folder")


def test_digits_ship_with_the_package():
    data = load("digits")
    assert (len(data.train), len(data.test), data.in_shape, data.classes) == (
        1438,
        359,
        (1, 8, 8),
        10,
    )
    assert data.train.labels.bincount().min() > 100
    pixels = data.train.images.double() / 255
    assert pixels.mean().item() == pytest.approx(data.mean[0], abs=0.01)
    assert pixels.std().item() == pytest.approx(data.std[0], abs=0.01)


def official(monkeypatch, tmp_path, name):
    """A data set with small files in its official layout, whose hashes the catalogue is told."""
    source = sources.SOURCES[name]
    arrays = [PIXELS, LABELS, PIXELS, LABELS]
    contents = [gzip.compress(idx(a)) for a in arrays]
    files = [
        replace(f, digest=f"md5:{hashlib.md5(c).hexdigest()}", url=f"http://data.invalid/{f.name}")
        for f, c in zip(source.layouts[0], contents, strict=True)
    ]
    monkeypatch.setitem(sources.SOURCES, name, replace(source, layouts=(tuple(files),)))
    return files, contents


def test_catalogue_checks_hashes_and_names_the_command(monkeypatch, tmp_path):
    files, contents = official(monkeypatch, tmp_path, "mnist")
    with pytest.raises(DataError, match="targetprop data fetch mnist --data-dir"):
        load("mnist", tmp_path)
    (tmp_path / "mnist").mkdir()
    for file, content in zip(files, contents, strict=True):
        (tmp_path / "mnist" / file.name).write_bytes(content)
    assert len(load("mnist", tmp_path).train) == 12
    assert len(load("mnist", tmp_path / "mnist").test) == 12
    altered = bytearray(contents[0])
    altered[30] ^= 1
    (tmp_path / "mnist" / files[0].name).write_bytes(altered)
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte\.gz: md5 is .* truncated or altered"
    ):
        load("mnist", tmp_path)


def test_unknown_set_names_the_nearest():
    with pytest.raises(DataError, match="did you mean 'cifar10'"):
        load("cifar-10")
    with pytest.raises(DataError, match="registered users only"):
        load("imagenet32", "/nonexistent")


def serve(monkeypatch, contents):
    """Stand in for the network: pooch's downloader writes what the address should give."""
    import pooch

    def choose(url, progressbar=False):
        def download(url, output, pooch_):
            content = contents[url.rsplit("/", 1)[1]]
            if progressbar:
                progressbar.total = len(content)
                progressbar.update(len(content))
                progressbar.reset()
                progressbar.update(len(content))
                progressbar.close()
            Path(output).write_bytes(content)

        return download

    monkeypatch.setattr(pooch.core, "choose_downloader", choose)


def test_fetch_keeps_whole_files_only(monkeypatch, tmp_path):
    files, contents = official(monkeypatch, tmp_path, "fashion-mnist")
    good = {f.name: c for f, c in zip(files, contents, strict=True)}
    serve(monkeypatch, good | {files[2].name: contents[2][:-3]})
    with pytest.raises(DataError, match="could not fetch"):
        fetch.fetch("fashion-mnist", tmp_path)
    assert sorted(p.name for p in (tmp_path / "fashion-mnist").iterdir()) == sorted(
        f.name for f in files[:2]
    )
    serve(monkeypatch, good)
    assert len(fetch.fetch("fashion-mnist", tmp_path)) == 4
    assert len(load("fashion-mnist", tmp_path).train) == 12
    assert fetch.fetch("digits") == []
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch.fetch("imagenet32", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet32"])
def test_layouts_of_the_larger_sets(monkeypatch, tmp_path, name):
    source = sources.SOURCES[name]
    fine = np.concatenate([LABELS[:, None], RECORDS], 1)
    if name == "imagenet32":
        for file in source.layouts[0]:
            (tmp_path / file.name).write_bytes(
                npz_of(data=RECORDS[:, 1:], labels=LABELS.astype(int) + 1)
            )
        data = load(name, tmp_path)
        assert (len(data.train), len(data.test), data.classes) == (120, 12, LABELS.max() + 1)
        test = source.layouts[0][-1].name
        (tmp_path / test).write_bytes(npz_of(data=RECORDS[:, 1:], labels=LABELS.astype(int) + 2))
        with pytest.raises(DataError, match="among the test images only"):
            load(name, tmp_path)
        return
    bare = tuple(tuple(replace(f, digest=None) for f in files) for files in source.layouts)
    monkeypatch.setitem(sources.SOURCES, name, replace(source, layouts=bare))
    content = (RECORDS if name == "cifar10" else fine).tobytes()
    names = [f.name for f in source.layouts[1]]
    archive = tmp_path / "tar" / source.layouts[0][0].name
    archive.parent.mkdir()
    archive.write_bytes(tar_of({n: content for n in names}))
    (tmp_path / "bin").mkdir()
    for n in names:
        (tmp_path / "bin" / n).write_bytes(content)
    a, b = load(name, tmp_path / "tar"), load(name, tmp_path / "bin")
    assert torch.equal(a.train.images, b.train.images)
    assert a.train.labels.tolist() == LABELS.tolist() * (len(names) - 1)
    archive.write_bytes(tar_of({names[0]: content}))
    with pytest.raises(DataError, match="lacks"):
        load(name, tmp_path / "tar")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_official_files_where_they_are_at_hand(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not beside the project")
    data = load(name, SHARED)
    assert (len(data.train), len(data.test), data.in_shape) == (60000, 10000, (1, 28, 28))


def batches(**settings):
    images = torch.arange(40 * 3 * 6 * 5).reshape(40, 3, 6, 5).remainder(251).to(torch.uint8)
    return Batches(Images(images, torch.arange(40)), (0.5,) * 3, (0.25,) * 3, 8, **settings)


def test_batches_depend_on_seed_epoch_and_position_only():
    def run(seed, epoch, start=0):
        return [
            (x, y.tolist()) for x, y in batches(augment="flip-crop", seed=seed).epoch(epoch, start)
        ]

    a, b = run(0, 1), run(0, 1)
    assert all(torch.equal(x, z) and y == w for (x, y), (z, w) in zip(a, b, strict=True))
    assert all(torch.equal(x, z) for (x, _), (z, _) in zip(a[2:], run(0, 1, 2), strict=True))
    assert sorted(label for _, y in a for label in y) == list(range(40))
    assert [y for _, y in run(0, 2)] != [y for _, y in a] != [y for _, y in run(1, 1)]


def test_normalisation_and_evaluation_order():
    some = batches()
    x, y = next(some.once(10))
    assert y.tolist() == list(range(10))
    torch.testing.assert_close(x, (some.data.images[:10] / 255 - 0.5) / 0.25)


def test_crop_equals_edge_padding_then_cropping():
    images = torch.randint(0, 256, (6, 2, 7, 5), dtype=torch.uint8)
    found = flip_and_crop(images, seeded(3), flip=False, padding=2)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    crops = [padded[:, :, i : i + 7, j : j + 5] for i in range(5) for j in range(5)]
    assert all(any(torch.equal(found[b], c[b]) for c in crops) for b in range(6))


def test_augmented_grey_images_have_plain_strides():
    """Strides of channels-last kind on one channel crash torch's CPU convolutions."""
    found = flip_and_crop(torch.zeros(4, 1, 6, 5, dtype=torch.uint8), seeded(0))
    assert found.stride() == (30, 30, 5, 1)


def test_flip_alone_mirrors_about_half():
    images = torch.randint(0, 256, (400, 1, 3, 6), dtype=torch.uint8)
    found = flip_and_crop(images, seeded(0), padding=0)
    flipped = (found == images.flip(-1)).flatten(1).all(1)
    assert ((found == images).flatten(1).all(1) | flipped).all()
    assert 150 < flipped.sum() < 250


def test_split_is_a_partition():
    rest, held = split(batches().data, 0.25)
    assert sorted(rest.labels.tolist() + held.labels.tolist()) == list(range(40))
    assert len(held) == 10
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        split(batches().data, 1.0)


def test_what_torchvision_laid_down_is_found(tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 3), ("t10k", 2)):
        pixels = np.zeros((count, 2, 2), np.uint8)
        sizes = np.array(pixels.shape, ">u4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + pixels.tobytes())
        labels = b"\0\0\x08\x01" + np.array([count], ">u4").tobytes() + bytes(range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    found = load("mnist", tmp_path)
    assert (len(found.train), len(found.test)) == (3, 2)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"lacks .*MNIST/raw/t10k-labels-idx1-ubyte;"):
        load("mnist", tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="cifar-10-batches-py: holds pickles"):
        load("cifar10", tmp_path)


def test_the_fingerprint_of_a_data_set_tells_swapped_labels_and_classes():
    whole = load("digits")
    swapped = Images(whole.train.images, whole.train.labels.roll(1))
    others = [
        replace(whole, train=swapped),
        replace(whole, test=whole.test[:-1]),
        replace(whole, names=tuple("abcdefghij")),
    ]
    assert load("digits").fingerprint == whole.fingerprint
    assert all(other.fingerprint != whole.fingerprint for other in others)
