"""The readers on real files: the tests write each set's original format, small, and read it back."""

import hashlib
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets, transforms

from bnood.data.files import decode
from bnood.data.image_set import ImageSet
from bnood.data.sources import check_known, data_root, load_images
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


# --- .npz archives -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, np.int64, np.uint8, np.uint64, ">i4"])
def test_archive(tmp_path: Path, labels) -> None:
    arrays = {"images": np.asfortranarray(pixels(3, 32, 32, 3))}
    if labels is not None:
        arrays["labels"] = np.array([5, 0, 3]).astype(labels)
    np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]
    loaded = load_images(f"{tmp_path}/mine.npz", "test")
    assert loaded.name == "mine" and loaded.images.flags.c_contiguous
    np.testing.assert_array_equal(loaded.images, pixels(3, 32, 32, 3))
    assert (None if loaded.labels is None else loaded.labels.tolist()) == (None if labels is None else [5, 0, 3])
    assert loaded.labels is None or loaded.labels.dtype == np.int64


GOOD = pixels(3, 32, 32, 3)
BAD_ARRAYS = {
    "no images": ({"data": GOOD}, "it has no array 'images'; expected 'images' uint8"),
    "float": ({"images": GOOD / 255}, "images are float64 [3, 32, 32, 3]; expected uint8 [N, H, W, 3]"),
    "channels first": (
        {"images": pixels(3, 3, 32, 32)},
        "images are uint8 [3, 3, 32, 32]; expected uint8 [N, H, W, 3]",
    ),
    "grey": ({"images": pixels(3, 32, 32)}, "images are uint8 [3, 32, 32]; expected uint8 [N, H, W, 3]"),
    "empty": ({"images": GOOD[:0]}, "it holds no images; expected at least one"),
    "size": ({"images": pixels(3, 28, 32, 3)}, "images are 28 x 32 pixels; expected 32 x 32"),
    "objects": ({"images": np.array([None])}, "can't be read (ValueError: Object arrays cannot be loaded"),
    "few labels": ({"images": GOOD, "labels": np.arange(2)}, "labels are int64 [2]; expected int64 [3]"),
    "column": ({"images": GOOD, "labels": np.zeros((3, 1), int)}, "labels are int64 [3, 1]; expected int64 [3]"),
    "float labels": ({"images": GOOD, "labels": np.zeros(3)}, "labels are float64 [3]; expected int64 [3]"),
    "large": ({"images": GOOD, "labels": np.full(3, 2**63, np.uint64)}, "labels reach 9223372036854775808; expected"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_archive(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    found = refused(f"{tmp_path}/bad.npz")
    assert found.startswith(f"{tmp_path}/bad.npz: ") and message in found


@pytest.mark.parametrize("save_archive", [np.savez, np.savez_compressed])
def test_damaged_archive(tmp_path: Path, save_archive: Callable) -> None:
    file = tmp_path / "bad.npz"
    save_archive(file, images=pixels(50, 32, 32, 3))
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert f"{file}: it is cut short or not an .npz archive; expected one" in refused(str(file))
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert f"{file}: the archive can't be read (" in refused(str(file))
    file.write_text("images")
    assert "not an .npz archive" in refused(str(file))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    assert refused(f"{tmp_path}/none.npz").startswith(f"{tmp_path}/none.npz: there is no such file; expected an .npz")
    assert "there is no such file or folder; expected an .npz archive or a folder" in refused(f"{tmp_path}/none")
    picture = save(tmp_path / "picture.png", GOOD[0])
    assert f"{picture}: it is a file of another kind; expected" in refused(str(picture))


# --- folders of images -------------------------------------------------------------------------------------------


def test_folder_is_walked_in_sorted_order(tmp_path: Path) -> None:
    folder, images = tmp_path / "photos.v1", pixels(5, 32, 32, 3)
    for index, file in enumerate(["a/10.png", "a/9.PNG", "b/deep/c/0.bmp", "b/x.png", "c/0.tif"]):
        save(folder / file, images[index])
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "a" / "._10.png").write_text("what a Mac leaves beside an image")
    (folder / "b" / "loop").symlink_to(folder)
    loaded = load_images(str(folder), "train")
    assert loaded.name == "photos.v1" and loaded.images.flags.c_contiguous
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.labels is not None and loaded.labels.tolist() == [0, 0, 2, 1, 2]  # a, a, c (below b), b, c


def test_labels_are_the_immediate_parents(tmp_path: Path) -> None:
    for file in ("2/x/0.png", "1/y/0.png", "1/x/0.png"):
        save(tmp_path / file, GOOD[0])
    labels = load_images(f"{tmp_path}/", "test").labels
    assert labels is not None and labels.tolist() == [0, 1, 0]  # 1/x, 1/y, 2/x
    save(tmp_path / "0.png", GOOD[0])  # one image outside the classes
    assert load_images(f"{tmp_path}/", "test").labels is None


@pytest.mark.parametrize("shape", [(50, 71), (71, 50), (33, 32), (32, 32), (20, 9), (64, 64)])
def test_resize_is_torchvisions(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = Image.fromarray(pixels(*shape, 3))
    file = save(tmp_path / "image.png", image)
    np.testing.assert_array_equal(decode([file], 32)[0], resized_by_torchvision(image))


def test_modes_become_rgb(tmp_path: Path) -> None:
    colour = Image.fromarray(pixels(32, 32, 3))
    grey = pixels(32, 32)
    alpha = np.where(np.arange(32) < 16, 0, 255)[None, :].repeat(32, 0).astype(np.uint8)
    over_black = np.where(alpha[..., None] > 0, np.asarray(colour), 0)
    palette = colour.quantize(16)
    clear = np.asarray(palette) == 3
    cases: list[tuple[Path, np.ndarray]] = [
        (save(tmp_path / "l.png", grey), np.stack([grey] * 3, -1)),
        (save(tmp_path / "1.png", Image.fromarray(grey > 99)), np.stack([(grey > 99) * 255] * 3, -1)),
        (save(tmp_path / "rgba.png", np.dstack([np.asarray(colour), alpha])), over_black),
        (save(tmp_path / "la.png", np.dstack([grey, alpha])), np.stack([np.where(alpha, grey, 0)] * 3, -1)),
        (save(tmp_path / "p.png", palette), np.asarray(palette.convert("RGB"))),
        (
            save(tmp_path / "p_clear.png", palette, transparency=3),
            np.where(clear[..., None], 0, np.asarray(palette.convert("RGB"))),
        ),
        (save(tmp_path / "cmyk.tif", Image.fromarray(np.full((32, 32, 4), (0, 255, 255, 0), np.uint8), "CMYK")), RED),
    ]
    modes = [Image.open(file).mode for file, _ in cases]
    assert modes == ["L", "1", "RGBA", "LA", "P", "P", "CMYK"] and clear.any()
    for found, (file, expected) in zip(decode([file for file, _ in cases], 32), cases, strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=file.name)


RED = np.full((32, 32, 3), (255, 0, 0))


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.int32, "tif"), (np.float32, "tif")])
def test_images_of_more_than_8_bits_are_refused(tmp_path: Path, dtype: type, suffix: str) -> None:
    save(tmp_path / "good.png", GOOD[0])
    file = save(tmp_path / f"deep.{suffix}", Image.fromarray(np.zeros((32, 32), dtype)))
    mode = Image.open(file).mode
    assert mode in ("I;16", "I", "F")
    assert f"{file}: the image has mode {mode}; expected 8 bits per channel" in refused(f"{tmp_path}/")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_damaged_image(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "a.png", GOOD[0])
    file = save(tmp_path / f"b.{suffix}", pixels(64, 64, 3))
    whole = file.read_bytes()
    for content in (b"", b"no image", whole[:20], whole[: len(whole) // 2]):
        file.write_bytes(content)
        assert refused(f"{tmp_path}/").startswith(f"{file}: the image is corrupt or cut short (")


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    assert f"{tmp_path}/empty: there are no images in it or below it; expected files in .bmp" in refused(
        f"{tmp_path}/empty"
    )


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
    np.savez(tmp_path / "mine" / "train.npz", images=GOOD)
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
    assert "mine: count is 5, but only synthetic sets" in refused("mine", "train", tmp_path, count=5)


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
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    message = refused("cifar10", "test", tmp_path)
    assert message.startswith(f"{file}: the file is cut short or damaged (its MD5 is ")
    assert f"expected {hashlib.md5(whole).hexdigest()}" in message and "--data.download true" in message
    file.unlink()
    assert refused("cifar10", "test", tmp_path).startswith(f"{file}: the file is missing, so cifar10 is incomplete")


def test_checksums_of_the_original_are_checked(tmp_path: Path) -> None:
    """Without the change of checksums that the other tests make, a file of another content is refused."""
    file = tmp_path / "test_32x32.mat"
    scipy.io.savemat(file, {"X": pixels(32, 32, 3, 2), "y": np.array([[1], [10]])})
    message = refused("svhn", "test", tmp_path)
    assert message.startswith(f"{file}: the file is cut short or damaged")
    assert "expected eb5a983be6a315427106f1b164d9cef3" in message


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
    assert refused("dtd", root=tmp_path).startswith(f"{folder}/images/a/1.jpg: the image is corrupt or cut short (File")
    (folder / "labels" / "val1.txt").unlink()
    assert refused("dtd", root=tmp_path).startswith(f"{folder}/labels/val1.txt: the file is missing, so dtd is incompl")


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
        assert f"{raw}: the files of {name} can't be read (" in refused(name, "test", tmp_path)
    file.unlink()
    assert refused(name, "test", tmp_path).startswith(f"{file}: the file is missing, so {name} is incomplete")


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

needs_data = pytest.mark.skipif("BNOOD_DATA" not in os.environ, reason="BNOOD_DATA names no folder with the real sets")


@needs_data
@pytest.mark.parametrize(
    ("name", "split", "count", "classes"),
    [("cifar10", "train", 50_000, 10), ("svhn", "test", 7_136, 10), ("dtd", "test", 1_200, 10)],
)
def test_real_sets(name: str, split: str, count: int, classes: int) -> None:
    loaded = load_images(name, split)
    assert loaded.images.shape == (count, 32, 32, 3) and loaded.images.flags.c_contiguous
    assert loaded.labels is not None and set(loaded.labels.tolist()) == set(range(classes))
    if name == "cifar10":  # the published channel means of the 50,000 training images
        means = loaded.images.reshape(-1, 3).mean(0) / 255
        np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)
