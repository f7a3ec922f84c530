"""Names, and torchvision's sets: the tests write each set's original format, small, and read it back."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision import datasets, transforms

from bnood.data.image_set import ImageSet, StreamedSet
from bnood.data.sources import check_known, data_root, images, load_images
from bnood.data.synthetic import SYNTHETIC, synthetic_images
from bnood.errors import UserError


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def refused(name: str, split: str = "test", root: Path | None = None, **options) -> str:
    """The message with which a set is refused."""
    with pytest.raises(UserError) as caught:
        load_images(name, split, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save(path: Path, image: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def resized_by_torchvision(image: Image.Image, size: int = 32) -> np.ndarray:
    return np.asarray(transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])(image))


# --- names -------------------------------------------------------------------------------------------------------


def test_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNOOD_DATA", "/somewhere")
    assert data_root(Path("/given")) == Path("/given") and data_root(None) == Path("/somewhere")
    monkeypatch.delenv("BNOOD_DATA")
    assert data_root(None) == Path("data")
    assert data_root(Path("~/x")) == Path.home() / "x"


def test_order_of_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, here = tmp_path / "root", tmp_path / "here"
    archive, photo, local = pixels(2, 32, 32, 3, seed=1), pixels(32, 32, 3, seed=2), pixels(32, 32, 3, seed=3)
    for name in ("svhn", "cifar10-jpeg75", "shapes"):
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

    for name in ("svhn", "cifar10-jpeg75"):
        np.testing.assert_array_equal(first(name), archive[0])
        np.testing.assert_array_equal(first(name, "train"), photo)
        np.testing.assert_array_equal(first(f"./{name}"), local)
    np.testing.assert_array_equal(first("only_here"), local)
    np.testing.assert_array_equal(first("shapes"), synthetic_images("shapes", "test", count=1).images[0])
    monkeypatch.setenv("BNOOD_DATA", str(root))
    assert len(load_images("svhn", "test")) == 2


def test_synthetic_sets_need_no_root(tmp_path: Path) -> None:
    for name in SYNTHETIC:
        loaded = load_images(name, "test", tmp_path / "none", seed=3, count=4)
        np.testing.assert_array_equal(loaded.images, synthetic_images(name, "test", seed=3, count=4).images)
    assert "drawn at 32 x 32 pixels; expected an image size of 32, not 64" in refused("shapes", image_size=64, count=1)


def test_names_and_splits_that_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "train.npz", images=pixels(3, 32, 32, 3))
    for name, closest in {"cifra10": "cifar10", "SVHN": "svhn", "shape": "shapes", "min": "mine"}.items():
        message = refused(name, root=tmp_path)
        assert f"{name!r} is no known set" in message and f"did you mean {closest!r}?" in message
        assert str(tmp_path) in message and all(known in message for known in ("dtd", "fashion_mnist", "mine"))
    assert "did you mean" not in refused("qqqqqq", root=tmp_path)
    assert "'' is no known set" in refused("", root=tmp_path)
    assert f"{tmp_path}/mine/test.npz: there is no such file; mine has train there" in refused("mine", root=tmp_path)
    assert "svhn: there is no split 'tset'; expected one of train, val, test, extra" in refused("svhn", "tset")
    assert "cifar10: there is no split 'extra'; expected train or test" in refused("cifar10", "extra", tmp_path)
    assert "dtd: there is no split 'train'; expected test (train, val" in refused("dtd", "train", tmp_path)
    assert "mine: count is 5, but only built-in sets" in refused("mine", "train", tmp_path, count=5)


# --- what else images() takes -------------------------------------------------------------------------------------


class Items:
    """A map-style dataset."""

    def __init__(self, count: int, **attributes) -> None:
        self.count = count
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return pixels(8, 8, 3, seed=index), index


def test_datasets_are_streamed_with_the_labels_that_they_carry_or_are_given() -> None:
    def labels(dataset, **options) -> list[int] | None:
        found = images(dataset, **options)
        assert isinstance(found, StreamedSet) and len(found) == len(dataset)
        return None if found.labels is None else found.labels.tolist()

    assert images(Items(2)).name == "Items" and images(Items(2), name="mine").name == "mine"
    assert labels(Items(2)) is None
    assert labels(Items(2, targets=[4, 1])) == [4, 1]
    assert labels(Items(2, targets=torch.tensor([4, 1]))) == [4, 1]
    assert labels(Items(2, labels=np.array([4, 1], np.uint8))) == [4, 1]
    assert labels(Items(2, samples=[("a.png", 4), ("b.png", 1)])) == [4, 1]
    assert labels(Items(2, targets=[4, 1], target_transform=lambda label: label + 1)) == [5, 2]
    assert labels(Subset(Items(3, targets=[4, 1, 7]), [2, 0])) == [7, 4]
    assert labels(Items(2, targets=["cat", "dog"])) is None and labels(Items(2, targets=[[1, 0], [0, 1]])) is None
    assert labels(Items(2, targets=[4, 1]), labels=[0, 3]) == [0, 3]
    assert labels(Items(2, targets=[4, 1]), labels=None) is None


def test_what_images_cannot_be_read_from_is_refused() -> None:
    class Endless:
        def __iter__(self):
            return iter(())

    for source, options, message in (
        (Endless(), {}, "Endless: it is a Endless; expected the name or path of a set, or a map-style dataset"),
        (3, {}, "int: it is a int; expected the name or path"),
        (Items(0), {}, "Items: there are no images in it; expected at least one"),
        (Items(2), {"labels": [0]}, r"Items: labels are int64 \[1\]; expected int64 \[2\], one per image"),
        (Items(2), {"labels": [0, -1]}, "Items: a label is -1; expected class indices from 0 up"),
        (Items(2), {"labels": [0.0, np.nan]}, r"Items: labels are float64 \[2\]; expected int64"),
        (Items(2), {"image_size": 32}, "Items: image_size and count are for names and paths"),
        ("shapes", {"image_size": 0}, "image_size is 0; expected a number of pixels from 1 up"),
        ("~nobody-of-this-name/x", {}, "~nobody-of-this-name/x: .*; expected a path without ~"),
    ):
        with pytest.raises(UserError, match=message):
            images(source, **options)


def test_a_set_keeps_its_name_and_an_archive_of_a_split_is_named_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "test.npz", images=pixels(3, 20, 24, 3))
    found = images(tmp_path / "mine" / "test.npz")
    assert found.name == "mine" and found.images.shape == (3, 20, 24, 3)
    assert images(found) is found and images(found, name="other").name == "other"


# --- torchvision's readers on files in the original formats --------------------------------------------------------


def write_cifar(reader: type[datasets.CIFAR10], root: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> ImageSet:
    """All files of a small CIFAR, pickled as the original is, their checksums in place of the original's."""
    folder = root / reader.base_folder
    folder.mkdir()
    images, labels, checksums = [], [], {}
    for index, (file, _) in enumerate([*reader.train_list, *reader.test_list]):
        images.append(pixels(4, 32, 32, 3, seed=index))
        labels.append([index, 9, 0, 3])
        planes = images[-1].transpose(0, 3, 1, 2).reshape(4, 3072)  # the original has red, green, blue planes
        (folder / file).write_bytes(pickle.dumps({"data": planes, key: labels[-1]}))
    (folder / reader.meta["filename"]).write_bytes(pickle.dumps({reader.meta["key"]: [str(i) for i in range(10)]}))
    for file in folder.iterdir():
        checksums[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(reader, which, [[file, checksums[file]] for file, _ in getattr(reader, which)])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": checksums[reader.meta["filename"]]})
    return ImageSet("written", np.concatenate(images), np.concatenate(labels))


@pytest.mark.parametrize(
    ("name", "reader", "key"),
    [("cifar10", datasets.CIFAR10, "labels"), ("cifar100", datasets.CIFAR100, "fine_labels")],
)
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reader, key: str) -> None:
    written = write_cifar(reader, tmp_path, monkeypatch, key)
    assert written.labels is not None
    for split, part in {"train": slice(0, -4), "test": slice(-4, None)}.items():
        loaded = load_images(name, split, tmp_path)
        assert loaded.name == name and loaded.images.flags.c_contiguous and loaded.labels is not None
        np.testing.assert_array_equal(loaded.images, written.images[part])
        np.testing.assert_array_equal(loaded.labels, written.labels[part])
    larger = load_images(name, "test", tmp_path, image_size=48).images
    np.testing.assert_array_equal(larger[1], resized_by_torchvision(Image.fromarray(written.images[-3]), 48))


def test_cifar_with_damaged_or_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(datasets.CIFAR10, tmp_path, monkeypatch, "labels")
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-100])
    damaged = f"{file.parent}: files of cifar10 are missing, cut short or damaged (RuntimeError: Dataset not found or"
    assert damaged in refused("cifar10", "test", tmp_path)
    file.unlink()
    assert damaged in refused("cifar10", "test", tmp_path)


def test_checksums_of_the_original_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "test_32x32.mat"
    scipy.io.savemat(file, {"X": pixels(32, 32, 3, 2), "y": np.array([[1], [10]])})
    assert f"{file}: files of svhn are missing, cut short or damaged" in refused("svhn", "test", tmp_path)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(5, 32, 32, 3)
    file = tmp_path / "test_32x32.mat"
    scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": np.array([[1], [10], [9], [2], [10]], np.uint8)})
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
    for image, name in zip(loaded.images, ["a/0", "a/1", "b/0", "b/2", "c/5"], strict=True):
        with Image.open(folder / "images" / f"{name}.jpg") as original:
            np.testing.assert_array_equal(image, resized_by_torchvision(original))

    (folder / "images" / "a" / "1.jpg").unlink()
    assert refused("dtd", root=tmp_path).startswith(f"{folder}/images/a/1.jpg: there is no such file; expected")
    (folder / "labels" / "val1.txt").unlink()
    assert f"{folder}: files of dtd are missing, cut short or damaged (" in refused("dtd", root=tmp_path)


def write_mnist(folder: Path, prefix: str, images: np.ndarray, labels: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">IIII", 0x803, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + bytes(labels))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist(tmp_path: Path, name: str, folder: str) -> None:
    raw, images = tmp_path / folder / "raw", pixels(3, 28, 28)
    write_mnist(raw, "train", pixels(5, 28, 28, seed=1), [9] * 5)
    write_mnist(raw, "t10k", images, [7, 2, 1])
    loaded = load_images(name, "test", tmp_path)
    assert loaded.images.flags.c_contiguous and loaded.labels is not None and loaded.labels.tolist() == [7, 2, 1]
    for found, image in zip(loaded.images, images, strict=True):
        np.testing.assert_array_equal(found, resized_by_torchvision(Image.fromarray(image).convert("RGB")))
    assert load_images(name, "train", tmp_path).labels.tolist() == [9] * 5  # type: ignore[union-attr]

    file = raw / "t10k-images-idx3-ubyte"
    for length in (0, 3, 1000):
        file.write_bytes(file.read_bytes()[:length])
        assert f"{raw}: files of {name} are missing, cut short or damaged (" in refused(name, "test", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "dtd", "mnist", "fashion_mnist"])
def test_a_set_that_is_not_there(tmp_path: Path, name: str) -> None:
    message = refused(name, "test", tmp_path / "none")
    assert f"{name}: the images of split 'test' aren't there; looked for {tmp_path}/none/{name}/test.npz" in message
    assert "--data.download true" in message and "BNOOD_DATA" in message
    assert not (tmp_path / "none").exists()


def test_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that isn't there: nothing listens at port 9 of this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    for _ in range(2):  # first without any file, then with files that are all damaged
        message = refused("cifar10", "train", tmp_path, download=True)
        assert f"cifar10: the download to {tmp_path} failed (URLError" in message
        (tmp_path / "cifar-10-batches-py").mkdir(exist_ok=True)
        for file, _ in [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list, ["batches.meta", ""]]:
            (tmp_path / "cifar-10-batches-py" / file).write_text("damaged")


def test_names_are_checked_without_opening_anything(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("shapes", "svhn", "dtd", "gaussian_noise", "mine", "some/where.npz", "no/such/folder"):
        check_known(name, tmp_path)
    with pytest.raises(UserError, match=r"'svnh' is no known set, .* did you mean 'svhn'\?"):
        check_known("svnh", tmp_path)


# --- the real sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "count", "classes"),
    [("cifar10", "train", 50_000, 10), ("svhn", "test", 7_136, 10), ("dtd", "test", 1_200, 10)],
)
def test_real_sets(real_data: Path, name: str, split: str, count: int, classes: int) -> None:
    loaded = load_images(name, split, real_data)
    assert loaded.images.shape == (count, 32, 32, 3) and loaded.images.flags.c_contiguous
    assert loaded.labels is not None and set(loaded.labels.tolist()) == set(range(classes))
    if name == "cifar10":  # the published channel means of the 50,000 training images
        means = loaded.images.reshape(-1, 3).mean(0) / 255
        np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)
