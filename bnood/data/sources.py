"""From what a user names (a set, a file, a folder, a dataset) to its images."""

import difflib
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from bnood.data.files import Photographs, decode, fit, image_files, one_line, read_npz, why_no_file
from bnood.data.image_set import Images, ImageSet, StreamedSet, check_labels
from bnood.data.labels import dataset_labels, numbered
from bnood.data.synthetic import IMAGE_SIZE, SYNTHETIC, synthetic_images
from bnood.errors import UserError

SPLITS = ("train", "val", "test", "extra")


@dataclass(frozen=True)
class TorchvisionSet:
    """A set that torchvision reads and can download.

    Attributes:
        reader: torchvision's class.
        splits: the splits that it is asked for.
        place: where its files are, below the data root; ``{split}`` stands for the split.
    """

    reader: type[datasets.VisionDataset]
    splits: tuple[str, ...]
    place: str


TORCHVISION = {
    "cifar10": TorchvisionSet(datasets.CIFAR10, ("train", "test"), "cifar-10-batches-py"),
    "cifar100": TorchvisionSet(datasets.CIFAR100, ("train", "test"), "cifar-100-python"),
    "svhn": TorchvisionSet(datasets.SVHN, ("train", "test", "extra"), "{split}_32x32.mat"),
    # torchvision's splits of DTD are thirds of its 5,640 images; they are joined, as the set of all is what is scored.
    "dtd": TorchvisionSet(datasets.DTD, ("test",), "dtd/dtd"),
    "mnist": TorchvisionSet(datasets.MNIST, ("train", "test"), "MNIST/raw"),
    "fashion_mnist": TorchvisionSet(datasets.FashionMNIST, ("train", "test"), "FashionMNIST/raw"),
}
"""The sets known to torchvision, by the name that a config uses."""

_DTD_PARTS = ("train", "val", "test")

# What torchvision's readers and downloads raise on files that are missing, damaged, or can't be fetched.
_READING_ERRORS = (
    *(RuntimeError, OSError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError, AssertionError),
    *(ImportError, pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile, zlib.error),
)


def data_root(root: Path | None) -> Path:
    """The folder of the data sets: the argument, else the environment's ``BNOOD_DATA``, else ``./data``."""
    return _expanded(root or os.environ.get("BNOOD_DATA") or "data")


def images(
    source: str | Path | Dataset[Any] | Images,
    *,
    name: str | None = None,
    split: str = "test",
    root: Path | None = None,
    labels: Sequence[int] | np.ndarray | Literal["auto"] | None = "auto",
    image_size: int | None = None,
    download: bool = False,
    seed: int = 0,
    count: int | None = None,
) -> Images:
    """A set of images: a name, an .npz archive, a folder of photographs, or any map-style dataset.

    A string is a path if it ends in ``.npz`` or has a path separator. Any other string is looked up, in this order:

    1. the built-in sets (:data:`bnood.data.synthetic.SYNTHETIC`);
    2. ``<root>/<name>/<split>.npz``, then ``<root>/<name>/images/**``, so also sets that are known nowhere else;
    3. the sets of torchvision (:data:`TORCHVISION`), with its download if asked for, and its checksums;
    4. a folder of that name where the program runs. So the plain name of a known set always means that set; write
       ``./svhn`` for a local folder that happens to have the name.

    Paths, datasets and ``images/**`` have no splits: every split is all of their images. DTD by torchvision is taken
    whole (train, val and test joined) as ``test``.

    Photographs become a :class:`StreamedSet`, decoded when they are read and transformed by the network's own
    transform. With ``image_size`` they become an :class:`ImageSet`, as do torchvision's sets of another size, resized
    by one fixed filter (:func:`bnood.data.files.fit`). That leaves traces which native images don't have: state it
    beside a result. Arrays of an .npz, and built-in images, are never resized.

    Args:
        source: name, path, dataset (items as in :class:`StreamedSet`), or a set that is ready.
        name: of the set; by default the name given, the folder, the stem of the archive (``svhn`` for
            ``svhn/test.npz``), or the class of the dataset.
        split: ``train``, ``val``, ``test`` or ``extra``.
        root: folder of the data sets (:func:`data_root`).
        labels: class indices ``[N]``; None for none; ``auto`` for those of the source. A folder's classes are its top
            folders (:func:`bnood.data.labels.numbered`), unless images lie beside them. A dataset's are its
            ``targets``, ``labels`` or ``samples``, as torchvision's have them.
        image_size: side of the square images, in pixels; None for images as they are.
        download: let torchvision download what is missing.
        seed: of a built-in set's pixels; other sets have no use for it.
        count: number of images of a built-in set; None for the split's own number.

    Raises:
        UserError: if the set or the split isn't known or isn't there, a file is missing, damaged, or holds something
            else than images of this size, or ``count`` is given for a set that isn't built in.
    """
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise UserError(f"image_size is {image_size!r}; expected a number of pixels from 1 up")
    if isinstance(source, Path):
        source = str(source) if _is_path(str(source)) else f"./{source}"
    if isinstance(source, str):
        found = _named(source, split, data_root(root), download, image_size, seed, count)
    elif isinstance(source, ImageSet | StreamedSet):
        found = source
    else:
        found = StreamedSet(type(source).__name__, source, dataset_labels(source))
    if not isinstance(source, str) and image_size is not None:
        raise UserError(f"{found.name}: image_size resizes files only; expected a dataset that gives the right size")
    if not len(found):
        raise UserError(f"{found.name}: there are no images in it; expected at least one")
    if not isinstance(labels, str):
        found = replace(found, labels=None if labels is None else _given_labels(labels, found), folders=None)
    return found if name is None else found.renamed(name)


def load_images(
    name: str,
    split: str,
    root: Path | None = None,
    *,
    download: bool = False,
    image_size: int = 32,
    seed: int = 0,
    count: int | None = None,
) -> ImageSet:
    """The images of a set as one array; arguments and errors as for :func:`images`."""
    options = {"image_size": image_size, "download": download, "seed": seed, "count": count}
    found = images(name, split=split, root=root, **options)  # type: ignore[arg-type]
    assert isinstance(found, ImageSet)  # as image_size is given
    return found


def _given_labels(labels: Sequence[int] | np.ndarray, images: Images) -> np.ndarray:
    array = np.asarray(labels)
    array = array.astype(np.int64) if array.dtype.kind in "iu" else array
    check_labels(array, len(images), images.name)
    return array


def _named(
    name: str, split: str, root: Path, download: bool, image_size: int | None, seed: int, count: int | None
) -> Images:
    """The set that a name or a path means."""
    if split not in SPLITS:
        raise UserError(f"{name}: there is no split {split!r}; expected one of {', '.join(SPLITS)}")
    if name in SYNTHETIC:
        if image_size not in (None, IMAGE_SIZE):
            raise UserError(
                f"{name}: its images are drawn at {IMAGE_SIZE} pixels; expected that image_size, not {image_size}"
            )
        return synthetic_images(name, split, seed=seed, count=count)
    if count is not None:
        raise UserError(f"{name}: count is {count}, but only built-in sets are drawn in any number; leave count out")
    if _is_path(name):
        return _from_path(_expanded(name), image_size)
    folder = root / name
    if name and (folder / f"{split}.npz").exists():
        return read_npz(folder / f"{split}.npz", image_size, name)
    if name and (folder / "images").is_dir():
        return _from_folder(folder / "images", image_size, name)
    if name in TORCHVISION:
        return _from_torchvision(name, split, root, download, image_size)
    stored = sorted(file.stem for file in folder.glob("*.npz")) if name else []
    if stored:
        raise UserError(f"{folder / f'{split}.npz'}: there is no such file; {name} has {', '.join(stored)} there")
    if name and Path(name).is_dir():
        return _from_folder(Path(name), image_size)
    raise UserError(_unknown(name, root))


def check_known(name: str, root: Path | None = None) -> None:
    """Refuse a name that :func:`images` would find nowhere; whether its images are there is not looked at.

    Raises:
        UserError: with the nearest known name. Paths pass: what lies there may come later.
    """
    known = not name or _is_path(name) or name in SYNTHETIC or name in TORCHVISION
    if not known and not (data_root(root) / name).is_dir() and not Path(name).is_dir():
        raise UserError(_unknown(name, data_root(root)))


def _is_path(name: str) -> bool:
    separators = {"/", os.sep, os.altsep or os.sep}
    return name.lower().endswith(".npz") or name in (".", "..") or any(each in name for each in separators)


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}; expected a path without ~") from error


def _from_path(path: Path, image_size: int | None) -> Images:
    if path.is_dir():
        return _from_folder(path, image_size)
    expected = "expected an .npz archive or a folder of images"
    if path.suffix.lower() == ".npz":
        archive_of_split = path.stem in SPLITS and path.resolve().parent.name
        return read_npz(path, image_size, archive_of_split or path.stem)
    reason = why_no_file(path) or "it is a file of another kind"
    raise UserError(f"{path}: {reason.replace('such file', 'such file or folder')}; {expected}")


def _from_folder(path: Path, image_size: int | None, name: str | None = None) -> Images:
    """All images in and below a folder; the class is the top folder, if every image lies in one."""
    files = image_files(path)
    tops = [file.relative_to(path).parts for file in files]
    classified = all(len(parts) > 1 for parts in tops)
    labels, folders = numbered([parts[0] for parts in tops]) if classified else (None, None)
    return _photographs(name or path.resolve().name or str(path), files, labels, folders, image_size)


def _photographs(
    name: str, files: list[Path], labels: np.ndarray | None, folders: tuple[str, ...] | None, image_size: int | None
) -> Images:
    if image_size is None:
        return StreamedSet(name, Photographs(files), labels, folders=folders)
    return ImageSet(name, decode(files, image_size), labels, folders)


def _unknown(name: str, root: Path) -> str:
    """The message for a name that is nowhere."""
    local = sorted(each.name for each in root.iterdir() if each.is_dir()) if root.is_dir() else []
    local = [each for each in local if (root / each / "images").is_dir() or any((root / each).glob("*.npz"))]
    known = list(dict.fromkeys([*SYNTHETIC, *TORCHVISION, *local]))
    closest = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {closest[0]!r}? " if closest else ""
    return (
        f"{name!r} is no known set, and neither a folder here nor below the data root {root}; {hint}"
        f"expected one of {', '.join(known)}, or the path of an .npz archive or of a folder of images"
    )


def _from_torchvision(name: str, split: str, root: Path, download: bool, image_size: int | None) -> Images:
    known = TORCHVISION[name]
    if split not in known.splits:
        joined = " (train, val and test joined)" if name == "dtd" else ""
        raise UserError(f"{name}: there is no split {split!r}; expected {' or '.join(known.splits)}{joined}")
    try:
        if name == "dtd":
            files = _dtd_files(root, download)
        elif name == "svhn":
            svhn = datasets.SVHN(root, split, download=download)
            images, labels = svhn.data.transpose(0, 2, 3, 1), svhn.labels
        else:
            dataset = known.reader(root, train=split == "train", download=download)
            images, labels = np.asarray(dataset.data), np.asarray(dataset.targets)
    except _READING_ERRORS as error:
        raise UserError(_fault(name, split, root, download, error)) from error
    if name == "dtd":
        return _photographs(name, files, *numbered([file.parent.name for file in files]), image_size)
    return ImageSet(name, _as_rgb_of_size(images, image_size), labels.astype(np.int64, copy=False).reshape(-1))


def _dtd_files(root: Path, download: bool) -> list[Path]:
    """DTD's photographs, all three of torchvision's splits, sorted."""
    parts = [datasets.DTD(root, part, download=download, loader=Path) for part in _DTD_PARTS]
    return sorted(part[index][0] for part in parts for index in range(len(part)))


def _as_rgb_of_size(images: np.ndarray, image_size: int | None) -> np.ndarray:
    """uint8 ``[N, H, W]`` or ``[N, H, W, 3]`` -> uint8 ``[N, image_size, image_size, 3]``, contiguous."""
    if image_size is not None and images.shape[1:3] != (image_size, image_size):
        resized = np.empty((len(images), image_size, image_size, *images.shape[3:]), np.uint8)
        for index, image in enumerate(images):
            resized[index] = fit(Image.fromarray(np.ascontiguousarray(image)), image_size)
        images = resized
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    return np.ascontiguousarray(images)


def _torchvision_files(name: str, split: str, root: Path) -> list[tuple[Path, str | None]]:
    """The files that torchvision reads, and their MD5 checksums where it keeps any."""
    reader, place = TORCHVISION[name].reader, root / TORCHVISION[name].place.format(split=split)
    if issubclass(reader, datasets.SVHN):
        return [(place, reader.split_list[split][2])]
    if issubclass(reader, datasets.CIFAR10):
        meta = [reader.meta["filename"], reader.meta["md5"]]
        return [(place / file, md5) for file, md5 in [*reader.train_list, *reader.test_list, meta]]
    if issubclass(reader, datasets.MNIST):
        return [(place / Path(file).stem, None) for file, _ in reader.resources]
    return [(place / "labels" / f"{part}1.txt", None) for part in _DTD_PARTS]


def _fault(name: str, split: str, root: Path, download: bool, error: Exception) -> str:
    """What is wrong with the files of a set that torchvision could not read, and what would be right."""
    place = root / TORCHVISION[name].place.format(split=split)
    again = f"expected the original files; remove {place} and get them anew with --data.download true"
    files = _torchvision_files(name, split, root)
    missing = [file for file, _ in files if not file.is_file()]
    if download and (missing or isinstance(error, URLError)):
        # torchvision takes some folders for complete because they exist, and then downloads nothing.
        return (
            f"{name}: the download to {root} failed ({one_line(error)}); expected {(missing or [place])[0]} from a "
            f"server that can be reached, and no incomplete {place} from an earlier attempt"
        )
    if len(missing) == len(files) and not place.exists():
        return (
            f"{name}: the images of split {split!r} aren't there; looked for {root / name / f'{split}.npz'}, "
            f"{root / name / 'images'} and {place}; download them with --data.download true, or say with --data.root "
            "or BNOOD_DATA where they are"
        )
    if missing:
        return f"{missing[0]}: the file is missing, so {name} is incomplete; {again}"
    for file, md5 in files:
        if md5 is not None and (found := calculate_md5(file)) != md5:
            return f"{file}: the file is cut short or damaged (its MD5 is {found}, expected {md5}); {again}"
    return f"{place}: the files of {name} can't be read ({one_line(error)}); {again}"
