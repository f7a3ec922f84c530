"""Names, and torchvision's sets: the tests write each set's original format, small, and read it back."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from pictures import pixels, refused, resized_by_torchvision, save
from PIL import Image
from torchvision import datasets

from bnood.data.image_set import StreamedSet
from bnood.data.sources import has_test_images, images, load_images
from bnood.data.synthetic import synthetic_images


def test_order_of_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, here = tmp_path / "root", tmp_path / "here"
    archive, photo, local = pixels(2, 32, 32, 3, seed=1), pixels(32, 32, 3, seed=2), pixels(32, 32, 3, seed=3)
    for name in ("svhn", "shapes"):
        (root / name).mkdir(parents=True)
        np.savez(root / name / "test.npz", images=archive)
        save(root / name / "images" / "0.png", photo)
        save(here / name / "0.png", local)
    save(here / "only_here" / "0.png", local)
    monkeypatch.chdir(here)

    def first(name: str, split: str = "test") -> np.ndarray:
        loaded = load_images(name, split, root)
        assert loaded.name == Path(name).name
        return loaded.images[0]

    np.testing.assert_array_equal(first("svhn"), archive[0])
    np.testing.assert_array_equal(first("svhn", "train"), photo)
    np.testing.assert_array_equal(first("./svhn"), local)
    np.testing.assert_array_equal(first("only_here"), local)
    np.testing.assert_array_equal(first("shapes"), synthetic_images("shapes", "test", count=1).images[0])
    monkeypatch.setenv("BNOOD_DATA", str(root))
    assert len(load_images("svhn", "test")) == 2


@pytest.mark.parametrize(
    ("name", "has"), [("shapes", True), ("svhn", True), ("photos", False), ("here", False), ("./here", False)]
)
def test_which_sets_have_test_images_of_their_own(name: str, has: bool, tmp_path: Path, monkeypatch) -> None:
    """A set without any gives the same images as train and as test."""
    save(tmp_path / "photos" / "images" / "0.png", pixels(8, 8, 3))
    save(tmp_path / "here" / "0.png", pixels(8, 8, 3))
    monkeypatch.chdir(tmp_path)
    assert has_test_images(name, tmp_path) == has


def test_a_path_to_the_layout_of_the_data_root_is_the_set_by_that_name(tmp_path: Path) -> None:
    for place in ("photos/images/7", "other/images/7", "other/more"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "a.png")
    found = images(tmp_path / "photos")
    assert (found.name, found.folders) == ("photos", None) and found.labels is not None and found.labels.tolist() == [7]
    assert images(tmp_path / "other").folders == ("images", "more")  # here images is a class like any other


def test_names_and_splits_that_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "train.npz", images=pixels(3, 32, 32, 3))
    for name, closest in {"SVHN": "svhn", "min": "mine"}.items():
        message = refused(name, root=tmp_path)
        assert f"{name!r} is no known set" in message and f"did you mean {closest!r}?" in message
        assert str(tmp_path) in message and all(known in message for known in ("dtd", "fashion_mnist", "mine"))
    assert "'' is no known set" in refused("", root=tmp_path)
    assert "cifar10: there is no split 'extra'; expected train or test" in refused("cifar10", "extra", tmp_path)
    assert "dtd: there is no split 'train'; expected test (train, val" in refused("dtd", "train", tmp_path)
    assert "mine: count is 5, but only built-in sets" in refused("mine", "train", tmp_path, count=5)


class Items(list):
    targets = (4, 1)


def test_datasets_are_streamed_with_the_labels_that_they_carry_or_are_given() -> None:
    items = Items(pixels(2, 8, 8, 3))
    found = images(items)
    assert isinstance(found, StreamedSet) and (found.name, len(found), found.dataset) == ("Items", 2, items)
    for labels, expected in (("auto", [4, 1]), ([0, 3], [0, 3])):
        assert images(items, name="mine", labels=labels).labels.tolist() == expected  # type: ignore


@pytest.mark.parametrize(("name", "key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str) -> None:
    """All files of a small CIFAR, pickled as the original is, their checksums in place of the original's."""
    reader = getattr(datasets, name.upper())
    folder = tmp_path / reader.base_folder
    folder.mkdir()
    files = [file for file, _ in [*reader.train_list, *reader.test_list]]
    written = pixels(len(files), 4, 32, 32, 3)
    labels = [[number, 9, 0, 3] for number in range(len(files))]
    for file, batch, numbers in zip(files, written, labels, strict=True):
        planes = batch.transpose(0, 3, 1, 2).reshape(4, 3072)  # the original has red, green, blue planes
        (folder / file).write_bytes(pickle.dumps({"data": planes, key: numbers}))
    (folder / reader.meta["filename"]).write_bytes(pickle.dumps({reader.meta["key"]: [str(i) for i in range(10)]}))
    checksums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(reader, which, [[file, checksums[file]] for file, _ in getattr(reader, which)])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": checksums[reader.meta["filename"]]})

    for split, part in {"train": slice(0, -1), "test": slice(-1, None)}.items():
        loaded = load_images(name, split, tmp_path)
        assert loaded.name == name and loaded.images.flags.c_contiguous and loaded.labels is not None
        np.testing.assert_array_equal(loaded.images, np.concatenate(written[part]))
        np.testing.assert_array_equal(loaded.labels, np.concatenate(labels[part]))
    larger = load_images(name, "test", tmp_path, image_size=48).images
    np.testing.assert_array_equal(larger[1], resized_by_torchvision(Image.fromarray(written[-1, 1]), 48))

    (folder / files[0]).write_bytes(b"damaged")
    message = f"{name}: the images of split 'train' aren't there or not whole (RuntimeError: Dataset not found or corru"
    assert message in refused(name, "train", tmp_path)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(5, 32, 32, 3)
    file = tmp_path / "test_32x32.mat"
    scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": np.array([[1], [10], [9], [2], [10]], np.uint8)})
    assert "svhn: the images of split 'test' aren't there or not whole" in refused("svhn", root=tmp_path)  # checksum
    entry = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", {**datasets.SVHN.split_list, "test": entry})
    loaded = load_images("svhn", "test", tmp_path)
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.images.flags.c_contiguous and loaded.labels is not None
    assert loaded.labels.tolist() == [1, 0, 9, 2, 0]  # the original's 10 is the digit 0


def test_dtd_joins_its_three_splits(tmp_path: Path) -> None:
    folder = tmp_path / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    count = 0
    for part, names in {"train": ["b/2", "a/1"], "val": ["a/0"], "test": ["c/5", "b/0"]}.items():
        for name in names:
            count += 1
            save(folder / "images" / f"{name}.jpg", pixels(60, 80, 3, seed=count))
        (folder / "labels" / f"{part}1.txt").write_text("".join(f"{name}.jpg\n" for name in names))
    loaded = load_images("dtd", "test", tmp_path)
    assert loaded.labels is not None and loaded.labels.tolist() == [0, 0, 1, 1, 2]
    with Image.open(folder / "images" / "b" / "0.jpg") as original:
        np.testing.assert_array_equal(loaded.images[2], resized_by_torchvision(original))

    (folder / "labels" / "val1.txt").unlink()
    assert "dtd: the images of split 'test' aren't there or not whole (FileNotFound" in refused("dtd", root=tmp_path)


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist(tmp_path: Path, name: str, folder: str) -> None:
    raw, images = tmp_path / folder / "raw", pixels(3, 28, 28)
    raw.mkdir(parents=True)
    for part, labels in {"train": [9, 9, 9], "t10k": [7, 2, 1]}.items():  # torchvision wants the files of both
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 3) + bytes(labels))
    loaded = load_images(name, "test", tmp_path)
    assert loaded.images.flags.c_contiguous and loaded.labels is not None and loaded.labels.tolist() == [7, 2, 1]
    np.testing.assert_array_equal(loaded.images[1], resized_by_torchvision(Image.fromarray(images[1]).convert("RGB")))

    message = refused("mnist" if name == "fashion_mnist" else "dtd", "test", tmp_path / "none")
    assert "the images of split 'test' aren't there" in message and not (tmp_path / "none").exists()
