"""Files that are not what they should be: one sentence, at once, whatever they are."""

import errno
import itertools
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from targetprop import data
from targetprop.data import folder
from targetprop.training import checkpoint, files
from targetprop.training.lock import locked


def fifo(path):
    os.mkfifo(path)


def directory(path):
    path.mkdir()


def listening(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


def device(path):
    path.symlink_to("/dev/zero")


def loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize("make", [fifo, directory, listening, device, loop])
def test_what_is_no_regular_file_is_refused_at_once(make, tmp_path):
    path = tmp_path / "x"
    make(path)
    with pytest.raises(files.FileError, match=str(path)):
        files.read_bytes(path)


def test_files_over_their_limit_are_not_read(tmp_path):
    (tmp_path / "x").write_bytes(bytes(101))
    with pytest.raises(files.FileError, match="101 bytes, expected at most 100"):
        files.read_bytes(tmp_path / "x", 100)
    assert files.read_bytes(tmp_path / "x", 101) == bytes(101)


def test_plain_yaml_is_read_as_it_is():
    text = "a: 1\nb: {c: [1.5, true, null, word], d: 2020-01-01}\n1: two\nempty:\n"
    assert files.parse_yaml(text, "here") == {
        "a": 1,
        "b": {"c": [1.5, True, None, "word"], "d": "2020-01-01"},
        "1": "two",
        "empty": None,
    }


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2",
        "a: !!set {x, y}",
        "a: !!binary aGVsbG8=",
        "x: &a [1]\ny: *a",
        "a: " + "9" * 10_000,
        "a: " + "[" * 5_000,
        "{" * 5_000,
        "? [a]\n: 1",
        "a: !!python/object/apply:os.system [true]",
        "a: \x00",
        "a: [1",
        "a: !!int word",
        "&a [*a]",
        "a: " + "x" * 2**21,
    ],
)
def test_other_yaml_is_one_sentence(text):
    began = time.monotonic()
    with pytest.raises(files.FileError, match=r"^here: ") as caught:
        files.parse_yaml(text, "here")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("text", ["", "[1]", "null", '{"a": 1', "\x00", "[" * 10_000, "1e999"])
def test_damaged_json_is_one_sentence(text):
    with pytest.raises(files.FileError, match=r"^here: "):
        files.parse_json(text, "here")


def test_rows_that_are_none_are_marked(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(b'{"a": 1}\ngarbage\n\xff\xfe\n[1]\n{"b": 2}\n{"c"')
    assert [row for _, row in files.rows(path)] == [{"a": 1}, None, None, None, {"b": 2}, None]


def test_a_folder_is_locked_while_a_process_holds_it(tmp_path):
    run = tmp_path / "run"
    with (
        locked(run),
        pytest.raises(files.FileError, match="written by another process"),
        locked(run),
    ):
        pass
    assert not run.exists()
    code = (
        "import sys, time; from pathlib import Path; from targetprop.training.lock import locked\n"
        f"with locked(Path({str(run)!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(files.FileError, match="written by another process"), locked(run):
        pass
    holder.kill()
    holder.wait()
    with locked(run):  # of a dead process
        assert (run / ".lock").exists()
    assert not (run / ".lock").exists()


def picture(path, level=0, size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level,) * 3).save(path, **options)


def classes(root, names="ab", count=3):
    for part in ("train", "test"):
        for level, name in enumerate(names):
            for i in range(count):
                picture(root / part / name / f"{i}.png", 100 * level)


def test_what_is_passed_over_is_counted(tmp_path):
    classes(tmp_path)
    (tmp_path / "train/a/._0.png").write_bytes(b"companion")
    (tmp_path / "train/.hidden").mkdir()
    (tmp_path / "train/a/notes.txt").write_text("x")
    os.mkfifo(tmp_path / "train/b/x.png")
    picture(tmp_path / "train/b/more/9.tif", 100)
    picture(tmp_path / "train/b/more/9.gif", 100)
    found, names, skipped = folder.read_folder(tmp_path / "train")
    assert names == ["a", "b"]
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1, 1, 1]  # in turns
    assert skipped == {"hidden": 1, ".txt": 1, "no regular file": 1}


def test_a_class_without_images_is_refused(tmp_path):
    classes(tmp_path)
    (tmp_path / "train/bird").mkdir()
    (tmp_path / "train/bird/x.raw").write_bytes(b"x")
    with pytest.raises(data.DataError, match=r"bird: holds no image \(1 \.raw passed over\)"):
        folder.read_folder(tmp_path / "train")


def test_orientation_and_depth_are_honoured(tmp_path):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(upright).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    turned = folder.read_image(tmp_path / "turned.jpg")
    assert turned[:, 9:].min() > 200
    assert turned[:, :7].max() < 50
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    shown = folder.read_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(shown[..., 0], grey.astype(int) * 255 // 65535)


def test_other_formats_are_not_decoded_whatever_they_are_called(tmp_path):
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n{ } loop\n")
    with pytest.raises(data.DataError, match=r"x\.png: damaged"):
        folder.read_image(tmp_path / "x.png")


def test_images_too_large_to_decode_are_not_called_damaged(tmp_path):
    Image.new("1", (20_000, 9_500)).save(tmp_path / "big.png")
    with pytest.raises(data.DataError, match=r"too large .* scale it down"):
        folder.read_image(tmp_path / "big.png")


@pytest.mark.parametrize(
    ("number", "written"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)]
)
def test_a_file_system_that_refuses_fsync_is_written_and_a_broken_one_named(
    number, written, tmp_path, monkeypatch
):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    path = tmp_path / "result.json"
    if written:
        checkpoint.write_text(path, "{}")
        assert path.read_text() == "{}"
    else:
        with pytest.raises(OSError, match="Input/output error") as error:
            checkpoint.write_text(path, "{}")
        assert error.value.filename == str(path)
    assert not list(tmp_path.glob(".*"))


def test_links_to_folders_multiply_no_images(tmp_path):
    """Neither one that leads in circles, nor one to another class, whose label would be wrong."""
    for part, name in itertools.product(("train", "test"), ("ant", "bee")):
        place = tmp_path / part / name
        place.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(place / f"{i}.png")
    (tmp_path / "train" / "ant" / "self").symlink_to(".")
    (tmp_path / "train" / "ant" / "other").symlink_to("../bee")
    found = data.load("folder", tmp_path)
    assert len(found.train) == 4
    assert sorted(found.train.labels.tolist()) == [0, 0, 1, 1]
    assert "2 link to a folder" in found.skipped
