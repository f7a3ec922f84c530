"""Sets of images and their labels, against the classes of a network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import pixels
from torch.utils.data import Subset

from bnood.data.image_set import ImageSet, StreamedSet, folder_labels
from bnood.data.sources import dataset_labels, numbered, read_classes
from bnood.errors import UserError

IMAGES = pixels(4, 2, 2, 3)
LABELS = np.array([3, 1, 2, 0])


def test_labels_are_class_indices_of_any_integer_type() -> None:
    for labels in (LABELS > 1, LABELS[:, None], LABELS - 1, LABELS.astype(np.uint64) + np.uint64(2**63)):
        with pytest.raises(UserError, match=r"^set: labels are .*; expected (int64 \[4\]|class indices from 0 up)"):
            ImageSet("set", IMAGES, labels)
    for kind in (np.int32, np.uint8, np.uint64, ">i4"):
        converted = ImageSet("set", IMAGES, LABELS.astype(kind)).labels
        assert converted is not None and converted.dtype == np.int64 and converted.tolist() == LABELS.tolist()


def test_subsets_keep_the_order_of_the_index_and_labels_beside_their_images() -> None:
    for whole in (ImageSet("set", IMAGES, LABELS), StreamedSet("set", list(IMAGES), LABELS)):
        some = whole.subset(np.array([3, 0, 1])).subset(np.array([2, 0])).renamed("other")
        assert some.name == "other" and some.labels is not None and some.labels.tolist() == [1, 0]
        rows = some.images if isinstance(some, ImageSet) else [some.dataset[index] for index in some.index]
        np.testing.assert_array_equal(rows, IMAGES[[1, 3]])
        assert len(whole.subset(np.array([], int))) == 0


def test_at_most_keeps_order_and_depends_on_the_seed_alone() -> None:
    whole = ImageSet("set", pixels(40, 1, 1, 3), np.arange(40))
    some = whole.at_most(10, seed=3)
    assert some.labels is not None and len(some) == 10 and (np.diff(some.labels) > 0).all()
    np.testing.assert_array_equal(StreamedSet("set", whole.images).at_most(10, seed=3).index, some.labels)
    assert whole.at_most(40, seed=0) is whole and whole.at_most(None, seed=0) is whole


CLASSES = ["emu", "dog", "tabby cat"]


def folder(*names: str) -> ImageSet:
    return ImageSet("photos", np.zeros((len(names), 1, 1, 3), np.uint8), *numbered(names))


@pytest.mark.parametrize(
    ("images", "classes", "num_classes", "labels"),
    [
        (folder("003", "998", "3"), None, 1000, [3, 998, 3]),  # integers are class indices, however few there are
        (folder("dog", "tabby cat", "dog"), CLASSES, 3, [1, 2, 1]),
        (folder("dog", "cat", "1"), None, 3, [2, 1, 0]),
        (ImageSet("photos", np.zeros((1, 1, 1, 3), np.uint8)), None, 3, None),
    ],
)
def test_labels_that_fit_the_network(images: ImageSet, classes, num_classes: int, labels, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("".join(f" {name}\n" for name in CLASSES))
    assert read_classes(tmp_path / "classes.txt") == CLASSES
    found, note = folder_labels(images, classes, num_classes)
    assert note is None and found.folders is None
    assert (None if found.labels is None else found.labels.tolist()) == labels


def test_labels_that_do_not_fit_the_network() -> None:
    with pytest.raises(UserError, match="photos: folders that the list of classes lacks: dog"):
        folder_labels(folder("dog", "cat"), ["cat", "emu"], 2)
    for number in (1, 3):  # more folders than classes, and fewer
        found, note = folder_labels(folder("dog", "cat"), None, number)
        assert found.labels is None and note is not None
        assert f"photos: used without labels, because it has 2 class folder(s) and the network {number}" in note


class Items(list):
    def __init__(self, **attributes) -> None:
        super().__init__([0, 0])
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("dataset", "labels"),
    [
        (Items(), None),
        (Items(targets=torch.tensor([4, 1])), [4, 1]),
        (Items(labels=np.array([4, 1], np.uint8)), [4, 1]),
        (Items(targets=["cat", "dog"], target_transform={"cat": 5, "dog": 2}.get), [5, 2]),
        (Subset(Items(targets=[4, 1]), [1, 0, 1]), [1, 4, 1]),
        (Items(targets=["cat", "dog"]), None),
        (Items(targets=[[1, 0], [0]]), None),
        (Items(targets=[1]), None),
    ],
)
def test_labels_of_a_dataset(dataset, labels) -> None:
    found = dataset_labels(dataset)
    assert (None if found is None else found.tolist()) == labels
