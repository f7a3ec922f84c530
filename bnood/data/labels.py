"""Labels: from folders, from datasets, and whether they fit the classes of a network."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bnood.data.files import check_file
from bnood.data.image_set import Images
from bnood.errors import UserError


def numbered(folders: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Integer labels ``[N]`` from the name of each image's folder, and the sorted names that they number.

    If every name is an integer, it is the class index, and there are no names: nothing was numbered.
    """
    if all(name.isdecimal() for name in folders):
        return np.array([int(name) for name in folders]), None
    names, labels = np.unique(folders, return_inverse=True)
    return labels, tuple(names.tolist())


def folder_labels(images: Images, classes: Sequence[str] | None, num_classes: int) -> tuple[Images, str | None]:
    """The set with labels that are class indices of a network, or unlabelled with a note that says why.

    Labels that number folders hold if ``classes`` (names in the order of the logits, :func:`read_classes`) has every
    folder, or else if there are as many folders as classes. Other labels are class indices already. UserError if
    ``classes`` are not ``num_classes`` or lack a folder, or a label is ``num_classes`` or more.
    """
    if classes is not None and len(classes) != num_classes:
        raise UserError(f"the list of classes has {len(classes)} names; expected {num_classes}, one per logit")
    labels, folders = images.labels, images.folders
    if labels is not None and folders is not None:
        if classes is None and len(folders) != num_classes:
            return replace(images, labels=None, folders=None), (
                f"{images.name}: used without labels, because it has {len(folders)} class folder(s) and the network "
                f"{num_classes} classes; name the folders by class index, or list the classes with --classes FILE"
            )
        order = list(classes or folders)
        if missing := [name for name in folders if name not in order]:
            raise UserError(f"{images.name}: folders that the list of classes lacks: {', '.join(missing[:3])}")
        return replace(images, labels=np.array([order.index(name) for name in folders])[labels], folders=None), None
    if labels is not None and len(labels) and (largest := labels.max()) >= num_classes:
        raise UserError(f"{images.name}: a label is {largest}; expected at most {num_classes - 1}, the last class")
    return images, None


def read_classes(path: Path) -> list[str]:
    """The class names in a text file, one per line, in the order of the logits; UserError if it is no such file."""
    expected = "expected a text file with one class name per line, in the order of the logits"
    check_file(path, expected)
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it is not UTF-8 text; {expected}") from error
    for number, name in enumerate(names, 1):
        if not name or name in names[: number - 1]:
            raise UserError(f"{path}, line {number}: {f'{name} comes twice' if name else 'it is empty'}; {expected}")
    return names


def dataset_labels(dataset: Any) -> np.ndarray | None:
    """The integer labels of a map-style dataset without reading its items, or None.

    They are its ``targets`` or ``labels`` after its ``target_transform``, also behind ``torch.utils.data.Subset``.
    """
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        labels = dataset_labels(dataset.dataset)
        return None if labels is None else labels[np.asarray(dataset.indices, np.int64)]
    try:
        values = np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None)))
    except ValueError:  # a ragged list
        return None
    if values.ndim != 1 or len(values) != len(dataset):
        return None
    if (transform := getattr(dataset, "target_transform", None)) is not None:
        values = np.array([transform(value) for value in values.tolist()])
    return values if values.dtype.kind in "iu" else None
