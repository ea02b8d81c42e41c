"""The readers, on tiny files written here byte by byte in the published formats."""

import gzip
import struct

import numpy as np
import pytest
import torch

from gramjd.errors import InputError
from gramjd.experiments.data import cifar, eurosat, idx, sets, svhn
from gramjd.experiments.data.files import MissingFilesError
from gramjd.extras import MissingExtraError

RANDOM = np.random.default_rng(0)


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def write_idx(path, array):
    data = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    images, labels = pixels(5, 4, 3), np.arange(5, dtype=np.uint8)
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", images)
    write_idx(tmp_path / f"t10k-labels-idx1-ubyte{suffix}", labels)
    got_images, got_labels = idx.read(tmp_path, "test", "somewhere")
    assert np.array_equal(got_images.numpy(), images[:, None])
    assert got_labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "00 00 08"),
        (b"\0\0\x09\1\0\0\0\0", "00 00 09 01"),
        (b"\0\0\x08\3\0\0\0\1", "8 bytes"),
        (b"\0\0\x08\1\0\0\0\3ab", r"2 bytes after the header, expected the 3 of shape \(3,\)"),
    ],
)
def test_idx_refuses(tmp_path, data, said):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError, match=said):
        idx.read_idx(tmp_path / "x")


def test_idx_counts_labels(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels(5, 2, 2))
    write_idx(tmp_path / "train-labels-idx1-ubyte", pixels(4))
    with pytest.raises(InputError, match="expected 5, one per image"):
        idx.read(tmp_path, "train", "somewhere")


def write_cifar(folder, per_file=2):
    images = pixels(6 * per_file, 3, 32, 32)
    labels = (np.arange(len(images)) % 10).astype(np.uint8)
    for k, name in enumerate([*cifar.FILES["train"], *cifar.FILES["test"]]):
        part = slice(per_file * k, per_file * (k + 1))
        records = np.concatenate([labels[part, None], images[part].reshape(per_file, -1)], 1)
        (folder / name).write_bytes(records.tobytes())
    return images, labels


def test_cifar(tmp_path):
    images, labels = write_cifar(tmp_path)
    train, test = (cifar.read(tmp_path, part, "somewhere") for part in ("train", "test"))
    assert np.array_equal(torch.cat([train[0], test[0]]).numpy(), images)
    assert np.array_equal(torch.cat([train[1], test[1]]).numpy(), labels)
    (tmp_path / "test_batch.bin").write_bytes(b"\0" * 3074)
    with pytest.raises(InputError, match="3074 bytes, expected a multiple of 3073"):
        cifar.read(tmp_path, "test", "somewhere")
    (tmp_path / "test_batch.bin").write_bytes(b"\x0b" + b"\0" * 3072)
    with pytest.raises(InputError, match="label 11"):
        cifar.read(tmp_path, "test", "somewhere")


def test_svhn(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    images = pixels(32, 32, 3, 4)
    scipy_io.savemat(tmp_path / "train_32x32.mat", {"X": images, "y": np.array([[1], [10], [9], [10]], dtype=np.uint8)})
    got, labels = svhn.read(tmp_path, "train", "somewhere")
    assert labels.tolist() == [1, 0, 9, 0]  # the set's authors write 10 for the digit 0
    assert np.array_equal(got.numpy(), images.transpose(3, 2, 0, 1))
    scipy_io.savemat(tmp_path / "test_32x32.mat", {"X": images[..., :3], "y": np.zeros((4, 1))})
    with pytest.raises(InputError, match=r"y \[4\]"):
        svhn.read(tmp_path, "test", "somewhere")
    (tmp_path / "test_32x32.mat").write_bytes(b"no MATLAB file at all, but long enough to have a header" * 9)
    with pytest.raises(InputError, match="damaged"):
        svhn.read(tmp_path, "test", "somewhere")


def test_svhn_names_its_extra(tmp_path, monkeypatch):
    (tmp_path / "train_32x32.mat").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=r"gramjd\[paper\]"):
        svhn.read(tmp_path, "train", "somewhere")


def write_eurosat(folder, per_class=1):
    pillow = pytest.importorskip("PIL.Image")
    images = {}
    for name in eurosat.CLASSES:
        (folder / name).mkdir(parents=True)
        for k in range(per_class):
            images[name, k] = pixels(64, 64, 3)
            pillow.fromarray(images[name, k]).save(folder / name / f"{name}_{k}.png")
    return images


def test_eurosat(tmp_path):
    images = write_eurosat(tmp_path)
    entries = eurosat.index(tmp_path, "somewhere")
    assert [label for _, label in entries] == list(range(10))
    got, labels = eurosat.read([entries[3], entries[0]])
    assert labels.tolist() == [3, 0]
    assert np.array_equal(got[1].numpy(), images["AnnualCrop", 0].transpose(2, 0, 1))
    __import__("PIL.Image").Image.new("RGB", (3, 5)).save(tmp_path / "River" / "small.png")
    with pytest.raises(InputError, match="3x5 pixels, expected 64x64"):
        eurosat.read([(tmp_path / "River" / "small.png", 8)])
    (tmp_path / "River" / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match="damaged"):
        eurosat.read([(tmp_path / "River" / "x.jpg", 8)])


def test_whole_sets_are_scaled_by_their_training_images(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "TRAIN_SIZE", 7)
    (tmp_path / "cifar10").mkdir()
    write_cifar(tmp_path / "cifar10")
    write_eurosat(tmp_path / "eurosat")
    for key, held_out in (("cifar10", 2), ("eurosat", 3)):
        data = sets.DATA[key].load(tmp_path, 0)
        assert (len(data.train_images), len(data.test_images)) == (7, held_out)
        assert data.train_images.mean((0, 2, 3)).abs().max() < 1e-5
        torch.testing.assert_close(data.train_images.std((0, 2, 3)), torch.ones(3))
        assert not torch.equal(data.train_labels, sets.DATA[key].load(tmp_path, 1).train_labels)
    # None of EuroSAT's held-out images is a training image.
    both = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert len(both.unique(dim=0)) == 10


def test_a_set_with_too_few_images(tmp_path):
    (tmp_path / "cifar10").mkdir()
    write_cifar(tmp_path / "cifar10")
    with pytest.raises(InputError, match="got 10 images, expected at least the 1024"):
        sets.DATA["cifar10"].load(tmp_path, 0)


@pytest.mark.parametrize("key", [key for key in sets.DATA if key != "digits"])
def test_missing_files_say_where_to_put_them(tmp_path, key):
    with pytest.raises(MissingFilesError, match=f"in .*{key}.*; get the .* from http.* and put them there"):
        sets.DATA[key].load(tmp_path, 0)
