"""From what a user names (a set, a file, a folder, a dataset) to its images."""

import difflib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image

from bnood.data.files import check_file, decode, fit, image_files, read_npz
from bnood.data.image_set import Images, ImageSet, StreamedSet, stratified_split
from bnood.data.synthetic import IMAGE_SIZE, SYNTHETIC, synthetic_images
from bnood.errors import UserError

SPLITS = ("train", "val", "test", "extra")
FOLDERS = {*SPLITS, "training", "valid", "validation", "dev", "testing", "unlabeled", "unlabelled"}  # no classes

TORCHVISION: dict[str, tuple[str, tuple[str, ...]]] = {  # by name: torchvision's class, and our splits
    "cifar10": ("CIFAR10", ("train", "test")),
    "cifar100": ("CIFAR100", ("train", "test")),
    "svhn": ("SVHN", ("train", "test", "extra")),
    "dtd": ("DTD", ("test",)),  # all 5,640 images: torchvision's train, val and test joined
    "mnist": ("MNIST", ("train", "test")),
    "fashion_mnist": ("FashionMNIST", ("train", "test")),
}


def data_root(root: Path | None) -> Path:
    """The folder of the data sets: the argument, else the environment's ``BNOOD_DATA``, else ``./data``."""
    return Path(os.path.expanduser(root or os.environ.get("BNOOD_DATA") or "data"))


def is_path(name: str) -> bool:
    """Whether a string is a path, and not the name of a set."""
    return name.lower().endswith(".npz") or name in (".", "..") or os.sep in name or "/" in name


def images(
    source: str | Path | Images | Any, *, name: str | None = None, split: str = "test", root: Path | None = None,
    labels: Sequence[int] | np.ndarray | Literal["auto"] | None = "auto", image_size: int | None = None,
    download: bool = False, count: int | None = None,
) -> Images:  # fmt: skip
    """A set of images: a name, an .npz archive, a folder of photographs, or any map-style dataset.

    A string is a path if it ends in ``.npz`` or has a path separator. Any other one is looked up, in this order: the
    built-in sets (:data:`bnood.data.synthetic.SYNTHETIC`); ``<root>/<name>/<split>.npz``; ``<root>/<name>/images/**``;
    the sets of torchvision (:data:`TORCHVISION`); a folder of that name here (to put it first, write ``./svhn``).

    Args:
        source: name, path, dataset (items as in :class:`StreamedSet`), or a set that is ready.
        name: of the set; by default its name, folder, archive (``svhn`` for ``svhn/test.npz``) or class.
        split: of a named set: ``train``, ``val``, ``test`` or ``extra``.
        root: folder of the data sets (:func:`data_root`).
        labels: class indices ``[N]``; None for none; ``auto`` for those of an archive or dataset, or of a folder's top
            folders if every image lies in one (:func:`numbered`).
        image_size: side of the square images, to which photographs and torchvision's arrays are resized now. None:
            photographs are decoded when they are read (:class:`StreamedSet`).
        download: let torchvision download what is missing.
        count: of the images of a built-in set; None for the split's own number.

    UserError names the set or file that isn't known, isn't there, is damaged, or is another than described here.
    """
    if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
        raise UserError(f"image_size is {image_size!r}; expected a number of pixels from 1 up")
    found: Images
    if isinstance(source, str | Path):
        path = str(source) if isinstance(source, str) or is_path(str(source)) else f"./{source}"
        try:
            path.encode()
            found = _named(path, split, data_root(root), download, image_size, count)
        except (OSError, UnicodeEncodeError) as error:
            path, reason = path.encode(errors="replace").decode(), f"{type(error).__name__}: {error}"
            raise UserError(f"{path}: it cannot be read ({reason}); expected a name or a path in UTF-8") from error
    elif (image_size, count) != (None, None):
        raise UserError(f"{type(source).__name__}: image_size and count are for names and paths; expected neither")
    else:
        ready = isinstance(source, ImageSet | StreamedSet)
        found = source if ready else StreamedSet(type(source).__name__, source, dataset_labels(source))
    if not len(found):
        raise UserError(f"{found.name}: there are no images in it; expected at least one")
    if not (isinstance(labels, str) and labels == "auto"):
        found = replace(found, labels=None if labels is None else np.asarray(labels), folders=None)
    return found if name is None else found.renamed(name)


def load_images(name: str, split: str, root: Path | None = None, *, image_size: int = 32, **options: Any) -> ImageSet:
    """The images of a set as one array; arguments and errors as for :func:`images`."""
    return cast(ImageSet, images(name, split=split, root=root, image_size=image_size, **options))


def read_classes(path: Path) -> list[str]:
    """The class names in a text file, one per line, in the order of the logits; UserError if it is no such file."""
    expected = "expected a text file with one class name per line, in the order of the logits"
    check_file(path, expected)
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error}; {expected}") from error
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{path}: a line is empty or comes twice; {expected}")
    return names


def check_known(name: str, root: Path | None = None) -> None:
    """Refuse a name that :func:`images` finds nowhere. Paths pass unseen."""
    known = is_path(name) or name in SYNTHETIC or name in TORCHVISION
    if not known and not (data_root(root) / name).is_dir() and not Path(name).is_dir():
        raise UserError(_unknown(name, data_root(root)))


def training_split(data: Mapping[str, Any]) -> tuple[ImageSet, ImageSet]:
    """The images that a run was trained on and those held out, from the section ``data`` of its configuration."""
    name, seed = data["in_distribution"], data.get("split_seed", 0)
    given = {key: data[key] for key in ("root", "download", "image_size") if key in data}
    loaded = load_images(name, "train", **given)
    if loaded.labels is None:
        raise UserError(f"{name}: training needs labels, but the set has none")
    train, validation = stratified_split(loaded.labels, data.get("validation", 1000), seed, loaded.name)
    if data.get("train_count") is not None:
        # An arbitrary but fixed subset that keeps no class order of the source.
        train = np.sort(np.random.RandomState(seed).permutation(train)[: data["train_count"]])
    return loaded.subset(train), loaded.subset(validation)


def has_test_images(name: str, root: Path | None = None) -> bool:
    """Whether a set's ``test`` images are others than its ``train`` images: paths and ``images/**`` have no splits."""
    check_known(name, root)
    folder = data_root(root) / name
    stored = any((folder / f"{split}.npz").exists() for split in ("train", "test"))
    split = name in SYNTHETIC or stored or (name in TORCHVISION and not (folder / "images").is_dir())
    return split and not is_path(name)


def dataset_labels(dataset: Any) -> np.ndarray | None:
    """``targets`` or ``labels`` of a dataset or its Subset after ``target_transform``; None if they are no integers."""
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        labels = dataset_labels(dataset.dataset)
        return None if labels is None else labels[np.asarray(dataset.indices, np.int64)]
    values, fits = np.empty(0), False
    with suppress(ValueError):  # a ragged list
        values = np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None)))
        fits = values.ndim == 1 and len(values) == len(dataset)
    if fits and (transform := getattr(dataset, "target_transform", None)) is not None:
        values = np.array([transform(value) for value in values.tolist()])
    return values if fits and values.dtype.kind in "iu" else None


def numbered(folders: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels that number the folders by their sorted names, and these; the names themselves, if all are integers."""
    if all(name.isdecimal() and len(name) < 19 for name in folders):  # longer ones are no int64
        return np.array([int(name) for name in folders]), None
    names, labels = np.unique(folders, return_inverse=True)
    return labels, tuple(names.tolist())


def _named(name: str, split: str, root: Path, download: bool, image_size: int | None, count: int | None) -> Images:
    if split not in SPLITS:
        raise UserError(f"{name}: there is no split {split!r}; expected one of {', '.join(SPLITS)}")
    if name in SYNTHETIC:
        if image_size not in (None, IMAGE_SIZE):
            raise UserError(f"{name}: drawn at 32 x 32 pixels; expected an image size of 32, not {image_size}")
        return synthetic_images(name, split, count)
    if count is not None:
        raise UserError(f"{name}: count is {count}, but only built-in sets are drawn in any number; leave count out")
    folder, path = root / name, Path(os.path.expanduser(name))  # pathlib's refuses ~ of an unknown user
    if is_path(name):
        if not path.is_dir():
            return read_npz(path, image_size, path.resolve().parent.name if path.stem in SPLITS else path.stem)
        # The layout under the data root, <name>/images/**, is understood of a path too.
        alone = [each.name for each in path.iterdir()] == ["images"] and (path / "images").is_dir()
        return _photographs(path.resolve().name or name, path / "images" if alone else path, image_size)
    if not name:
        raise UserError(_unknown(name, root))
    if (folder / f"{split}.npz").exists():
        return read_npz(folder / f"{split}.npz", image_size, name)
    if (folder / "images").is_dir():
        return _photographs(name, folder / "images", image_size)
    if name in TORCHVISION:
        return _from_torchvision(name, split, root, download, image_size)
    if stored := sorted(file.stem for file in folder.glob("*.npz")):
        raise UserError(f"{folder / f'{split}.npz'}: there is no such file; {name} has {', '.join(stored)} there")
    if path.is_dir():
        return _photographs(path.resolve().name, path, image_size)
    raise UserError(_unknown(name, root))


def _photographs(name: str, folder: Path, image_size: int | None, files: list[Path] | None = None) -> Images:
    """The image files of a folder, labelled by its top folders."""
    files = image_files(folder) if files is None else files
    parts = [file.relative_to(folder).parts for file in files]
    in_folders = all(len(each) > 1 for each in parts)
    if in_folders and len(top := {each[0] for each in parts}) > 1 and {each.lower() for each in top} <= FOLDERS:
        raise UserError(f"{folder}: its folders are splits ({', '.join(sorted(top))}), not classes: name one of them")
    labels, names = numbered([each[0] for each in parts]) if in_folders else (None, None)
    if image_size is None:
        return StreamedSet(name, files, labels, folders=names)
    return ImageSet(name, decode(files, image_size), labels, names)


def _unknown(name: str, root: Path) -> str:
    local = sorted({file.parent.name for pattern in ("*/*.npz", "*/images") for file in root.glob(pattern)})
    known = list(dict.fromkeys([*SYNTHETIC, *TORCHVISION, *local]))
    hint = "".join(f"did you mean {close!r}? " for close in difflib.get_close_matches(name.lower(), known, n=1))
    return (
        f"{name!r} is no known set, and neither a folder here nor below the data root {root}; {hint}"
        f"expected one of {', '.join(known)}, or the path of an .npz archive or of a folder of images"
    )


def _from_torchvision(name: str, split: str, root: Path, download: bool, image_size: int | None) -> Images:
    from torchvision import datasets  # slow to import, and needed here alone

    class_name, splits = TORCHVISION[name]
    if split not in splits:
        joined = " (train, val and test joined)" if name == "dtd" else ""
        raise UserError(f"{name}: there is no split {split!r}; expected {' or '.join(splits)}{joined}")
    reader = getattr(datasets, class_name)
    try:
        if name == "dtd":
            parts = [reader(root, part, download=download, loader=Path) for part in ("train", "val", "test")]
            files = sorted(part[index][0] for part in parts for index in range(len(part)))
            return _photographs(name, root / "dtd" / "dtd" / "images", image_size, files)
        chosen = {"split": split} if name == "svhn" else {"train": split == "train"}
        dataset = reader(root, **chosen, download=download)
    except Exception as error:  # readers and downloads raise a dozen types on files that are missing or damaged
        if isinstance(error, UserError):
            raise
        # With a download, too: torchvision takes a folder that exists for complete, and then downloads nothing.
        raise UserError(
            f"{name}: the images of split {split!r} aren't there or not whole ({type(error).__name__}: {error}); "
            f"expected {root / name / f'{split}.npz'}, {root / name / 'images'}, or the original files below {root}: "
            "get them with --data.download true, or name their place with --data.root or BNOOD_DATA"
        ) from error
    pixels = dataset.data.transpose(0, 2, 3, 1) if name == "svhn" else np.asarray(dataset.data)
    labels = np.asarray(dataset.labels if name == "svhn" else dataset.targets)
    if image_size is not None and pixels.shape[1:3] != (image_size, image_size):
        resized = (fit(Image.fromarray(np.ascontiguousarray(image)), image_size) for image in pixels)
        pixels = np.stack([np.asarray(image) for image in resized])
    if pixels.ndim == 3:  # grey
        pixels = np.repeat(pixels[..., None], 3, axis=3)
    return ImageSet(name, np.ascontiguousarray(pixels), labels)
