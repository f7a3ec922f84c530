"""Labels: from folders, from datasets, and whether they fit the classes of a network."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bnood.data.image_set import Images
from bnood.errors import UserError


def numbered(folders: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels int64 ``[N]`` from the name of each image's top folder, and the names that they number.

    If every name is an integer, it is the class index, and no names are returned: nothing was numbered.
    """
    if all(name.isdecimal() for name in folders):
        return np.array([int(name) for name in folders], np.int64), None
    names, labels = np.unique(folders, return_inverse=True)
    return labels.astype(np.int64).reshape(-1), tuple(str(name) for name in names)


def folder_labels(images: Images, classes: Sequence[str] | None, num_classes: int) -> tuple[Images, str | None]:
    """The set with labels that are class indices of a network, or unlabelled with a note that says why.

    Labels that number folders hold if ``classes`` names every folder, or if there are as many folders as classes.
    Other labels stay as they are.

    Args:
        images: the set.
        classes: the names of the network's classes, in the order of its logits (:func:`read_classes`), or None.
        num_classes: number of logits.

    Raises:
        UserError: if ``classes`` has another length than ``num_classes`` or lacks a folder, or a label is
            ``num_classes`` or more.
    """
    if classes is not None and len(classes) != num_classes:
        raise UserError(f"the list of classes has {len(classes)} names; expected {num_classes}, one per logit")
    if images.labels is None:
        return images, None
    if images.folders is None:
        if len(images) and images.labels.max() >= num_classes:
            raise UserError(
                f"{images.name}: a label is {images.labels.max()}; expected 0 to {num_classes - 1}, because the "
                f"network has {num_classes} classes"
            )
        return images, None
    if classes is not None:
        missing = [name for name in images.folders if name not in classes]
        if missing:
            raise UserError(f"{images.name}: not in the list of classes: {', '.join(missing[:3])}")
        order = np.array([classes.index(name) for name in images.folders], np.int64)
        return replace(images, labels=order[images.labels], folders=None), None
    if len(images.folders) == num_classes:
        return replace(images, folders=None), None
    note = (
        f"{images.name}: used without labels, because it has {len(images.folders)} folders and the network "
        f"{num_classes} classes; name the folders by class index, or list the classes with --classes FILE"
    )
    return replace(images, labels=None, folders=None), note


def read_classes(path: Path) -> list[str]:
    """The class names in a text file, one per line, in the order of the logits.

    Raises:
        UserError: if the file cannot be read, a line is empty, or a name comes twice.
    """
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"{path}: cannot read the class names ({reason}); expected a text file, one name per line"
        ) from error
    names = [name.strip() for name in names]
    for number, name in enumerate(names, 1):
        if not name or name in names[: number - 1]:
            problem = f"{name!r} comes twice" if name else "the line is empty"
            raise UserError(
                f"{path}, line {number}: {problem}; expected one class name per line, in the order of logits"
            )
    return names


def dataset_labels(dataset: Any) -> np.ndarray | None:
    """The labels of a map-style dataset without reading its items, or None.

    Looks at ``targets``, ``labels`` and ``samples`` as torchvision's datasets have them, sees through
    ``torch.utils.data.Subset``, and applies the dataset's ``target_transform``.
    """
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        labels = dataset_labels(dataset.dataset)
        return None if labels is None else labels[np.asarray(dataset.indices, np.int64)]
    for attribute in ("targets", "labels", "samples"):
        values = getattr(dataset, attribute, None)
        if values is None or callable(values) or len(values) != len(dataset):
            continue
        if attribute == "samples":
            values = [sample[1] if isinstance(sample, tuple) and len(sample) == 2 else None for sample in values]
        if (transform := getattr(dataset, "target_transform", None)) is not None:
            values = [transform(value) for value in values]
        try:
            array = np.asarray(values)
        except ValueError:  # values of unequal lengths
            continue
        if array.dtype.kind in "iu" and array.shape == (len(dataset),) and (not len(array) or array.min() >= 0):
            return array.astype(np.int64)
    return None
