"""The images that a run was trained on and those that were held out, from the section ``data`` of its configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bnood.data.image_set import ImageSet
from bnood.data.sources import TORCHVISION, check_known, data_root, is_path, load_images
from bnood.data.splits import stratified_split
from bnood.data.synthetic import SYNTHETIC
from bnood.errors import UserError


def training_split(data: Mapping[str, Any]) -> tuple[ImageSet, ImageSet]:
    """The images trained on and those held out; keys as in a training config, all but ``in_distribution`` optional.

    Raises:
        UserError: if the images are not there or have no labels.
    """
    name, seed = data["in_distribution"], data.get("split_seed", 0)
    place = {"download": data.get("download", False), "image_size": data.get("image_size", 32)}
    images = load_images(name, "train", data.get("root"), **place)
    if images.labels is None:
        raise UserError(f"{name}: training needs labels (in an .npz: int64 [N]), but the set has none")
    train, validation = stratified_split(images.labels, data.get("validation", 1000), seed, images.name)
    if data.get("train_count") is not None:
        # An arbitrary but fixed subset that keeps no class order of the source.
        train = np.sort(np.random.RandomState(seed).permutation(train)[: data["train_count"]])
    return images.subset(train), images.subset(validation)


def has_test_images(name: str, root: Path | None = None) -> bool:
    """Whether a set's ``test`` images are others than its ``train`` images: paths and ``images/**`` have no splits."""
    if name in SYNTHETIC or is_path(name):
        return name in SYNTHETIC
    check_known(name, root)
    folder = data_root(root) / name
    if any((folder / f"{split}.npz").exists() for split in ("train", "test")):
        return True
    return name in TORCHVISION and not (folder / "images").is_dir()
