"""Sets of images: whole arrays in memory, or items that are decoded when they are read."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from typing_extensions import Self

from bnood.errors import UserError


@dataclass(frozen=True, eq=False)
class _Set:
    """What both kinds of image set can do."""

    _rows: ClassVar[str]  # names the attribute with one entry per image
    name: str

    def __len__(self) -> int:
        return len(getattr(self, self._rows))

    def subset(self, index: np.ndarray) -> Self:
        """The images at ``index`` (integers), in that order."""
        rows = {key: getattr(self, key) for key in (self._rows, "labels", "index")}
        chosen: dict[str, Any] = {key: None if each is None else each[index] for key, each in rows.items()}
        return replace(self, **chosen)

    def at_most(self, count: int | None, seed: int) -> Self:
        """``count`` images drawn by ``seed``, in their order; all of them if ``count`` is None or no less."""
        if count is not None and count < 1:
            raise UserError(f"{self.name}: {count} images were asked for; expected a whole number from 1 up")
        if count is None or count >= len(self):
            return self
        return self.subset(np.sort(np.random.RandomState(seed).permutation(len(self))[:count]))

    def renamed(self, name: str) -> Self:
        """The same images under another name."""
        return replace(self, name=name)

    def _check_labels(self, labels: np.ndarray | None) -> None:
        """Make integer labels int64; refuse any that are no class indices, or not one per image."""
        if labels is None:
            return
        found, expected = f"{labels.dtype} {list(labels.shape)}", f"int64 [{len(self)}], one per image"
        fits = labels.dtype.kind in "iu" and labels.shape == (len(self),)
        if fits and len(self) and not 0 <= labels.min() <= labels.max() < 2**63:
            found, expected, fits = f"{labels.min()} to {labels.max()}", "class indices from 0 up, within int64", False
        if not fits:
            raise UserError(f"{self.name}: labels are {found}; expected {expected}")
        object.__setattr__(self, "labels", np.ascontiguousarray(labels, np.int64))


@dataclass(frozen=True, eq=False)
class ImageSet(_Set):
    """Images in memory, all of one size; UserError for arrays of another kind, and labels that are no class indices."""

    _rows = "images"
    images: np.ndarray  # uint8 [N, H, W, 3], RGB; for reading only
    labels: np.ndarray | None = None  # int64 [N], class indices from 0
    folders: tuple[str, ...] | None = None  # sorted names, if labels only number these: folder_labels
    index: np.ndarray = None  # type: ignore[assignment]  # [N], places in the set that these were chosen from

    def __post_init__(self) -> None:
        if self.index is None:
            object.__setattr__(self, "index", np.arange(len(self.images)))
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not min(shape[1:]):
            found = f"{self.images.dtype} {list(shape)}"
            raise UserError(f"{self.name}: images are {found}; expected uint8 [N, H, W, 3] (RGB, 0 to 255)")
        self._check_labels(self.labels)


@dataclass(frozen=True, eq=False)
class StreamedSet(_Set):
    """Images of a map-style dataset, read item by item whenever they are needed and never kept.

    An item is an image, or a tuple or list that starts with one: the path of an image file, a PIL image, a uint8 array
    ``[H, W, 3]``, a uint8 tensor ``[3, H, W]``, or a float tensor ``[3, h, w]``, which counts as transformed already.
    """

    _rows = "index"
    dataset: Any  # with __len__ and __getitem__, which give the same whenever they are asked
    labels: np.ndarray | None = None
    index: np.ndarray = None  # type: ignore[assignment]  # [N], the dataset's items that belong to the set; all
    folders: tuple[str, ...] | None = None
    checked: list[Any] = field(default_factory=list, repr=False)  # transforms that gave the same when read twice

    def __post_init__(self) -> None:
        if not hasattr(self.dataset, "__len__") or not hasattr(self.dataset, "__getitem__"):
            expected = "expected the name or path of a set, or a map-style dataset"
            raise UserError(f"{self.name}: it is a {type(self.dataset).__name__}; {expected}")
        if self.index is None:
            object.__setattr__(self, "index", np.arange(len(self.dataset)))
        self._check_labels(self.labels)


Images = ImageSet | StreamedSet


def content(images: Images) -> str:
    """The same for the same images in memory, the same files, and the same items of one dataset."""
    if isinstance(images, ImageSet):
        return hashlib.sha256(np.ascontiguousarray(images.images).data).hexdigest()
    files = isinstance(images.dataset, list)
    return repr([images.dataset[k] for k in images.index] if files else (id(images.dataset), *images.index))


def check_images(sets: Mapping[str, object]) -> None:
    """Raise ``UserError`` for what is no set of images, and for one set under two names."""
    names: dict[str, str] = {}
    for name, images in sets.items():
        if not isinstance(images, Images):
            raise UserError(f"{name} is a {type(images).__name__}; expected images, as bnood.images(source) gives")
        if not name:
            raise UserError("a set of images has the name '': expected one letter or more")
        if len(images) and (other := names.setdefault(content(images), name)) != name:
            raise UserError(f"{name} are the same images as {other}: give other ones")


def folder_labels(images: Images, classes: Sequence[str] | None, num_classes: int) -> tuple[Images, str | None]:
    """The set with labels that are class indices of a network, or unlabelled with a note that says why.

    Labels that number folders hold if ``classes`` (names in the order of the logits) has every folder, or else if there
    are as many folders as classes. UserError if a label is too large, or ``classes`` are others than the network's.
    """
    if classes is not None and len(classes) != num_classes:
        raise UserError(f"the list of classes has {len(classes)} names; expected {num_classes}, one per logit")
    labels, folders = images.labels, images.folders
    if labels is not None and folders is not None:
        if classes is None and len(folders) != num_classes:
            reason = f"it has {len(folders)} class folder(s) and the network {num_classes} classes"
            advice = "name the folders by class index, or list the classes with --classes FILE"
            note = f"{images.name}: used without labels, because {reason}; {advice}"
            return replace(images, labels=None, folders=None), note
        order = list(classes or folders)
        if missing := [name for name in folders if name not in order]:
            raise UserError(f"{images.name}: folders that the list of classes lacks: {', '.join(missing[:3])}")
        return replace(images, labels=np.array([order.index(name) for name in folders])[labels], folders=None), None
    if labels is not None and len(labels) and (largest := labels.max()) >= num_classes:
        raise UserError(f"{images.name}: a label is {largest}, but the network has {num_classes} classes, from 0 on")
    return images, None


def stratified_split(labels: np.ndarray, validation: int, seed: int, name: str = "the set") -> tuple[np.ndarray, ...]:
    """Indices of training images and of ``validation`` others, int64, sorted; each class is divided in proportion.

    Shares are rounded up for the largest remainders (Hamilton's method), the lower class first where they are equal.
    UserError if either side or a class would be left without training images.
    """
    count = len(labels)
    if isinstance(validation, bool) or not isinstance(validation, int) or not 1 <= validation < count:
        raise UserError(f"{name}: validation is {validation!r}; expected a number of images from 1 to {count - 1}")
    classes, class_number, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    # In integers, so that no remainder is lost to rounding.
    taken, remainders = np.divmod(sizes.astype(np.int64) * validation, count)
    taken[np.argsort(-remainders, kind="stable")[: validation - taken.sum()]] += 1
    if (taken == sizes).any():
        emptied = int(np.argmax(taken == sizes))
        found = f"class {classes[emptied]} has {sizes[emptied]} image(s), and {validation} validation images of {count}"
        raise UserError(f"{name}: {found} would leave it none to train on; expected fewer validation images")
    order = _permutation(count, seed, name)
    by_class = order[np.argsort(class_number[order], kind="stable")]  # each class in a block, shuffled within it
    held_out = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes) < np.repeat(taken, sizes)
    return np.sort(by_class[~held_out]), np.sort(by_class[held_out])


def halves(n: int, seed: int, name: str = "the set") -> tuple[np.ndarray, np.ndarray]:
    """Indices of an adaptation and a scoring split (with the odd one), int64, sorted; UserError for one image."""
    if n < 2:
        raise UserError(f"{name}: it has {n} image(s); expected at least 2, one to adapt to and one to score")
    order = _permutation(n, seed, name)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def check_seed(seed: int, where: str) -> None:
    """Refuse a seed that ``RandomState`` does not take."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise UserError(f"{where}: the seed is {seed!r}; expected an integer from 0 to {2**32 - 1}")


def _permutation(n: int, seed: int, name: str) -> np.ndarray:
    check_seed(seed, name)
    return np.random.RandomState(int(seed)).permutation(n).astype(np.int64)
