"""Sets of images and their labels, against the classes of a network."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pictures import pixels
from torch.utils.data import Subset

from bnood.data.image_set import ImageSet, StreamedSet, folder_labels, halves, stratified_split
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
        (folder("20" * 10, "10" * 10), None, 2, [1, 0]),  # too long for a number
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


SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=8),
    share=st.fractions(Fraction(1, 50), Fraction(49, 50)),
    seed=SEEDS,
    shuffled=st.randoms(use_true_random=False),
)
def test_split_is_exact_disjoint_sorted_and_proportional(sizes, share, seed, shuffled) -> None:
    labels = [3 * number - 2 for number, size in enumerate(sizes) for _ in range(size)]
    shuffled.shuffle(labels)
    count, total = len(labels), int(share * len(labels))
    assume(1 <= total < count)
    try:
        train, validation = stratified_split(np.array(labels), total, seed)
    except UserError as error:  # only where rounding up would have taken all of a class
        assert any(size - Fraction(size * total, count) < 1 for size in sizes)
        assert "would leave it none to train on" in str(error)
        return
    assert len(validation) == total
    assert sorted([*train, *validation]) == list(range(count))
    assert list(train) == sorted(train) and list(validation) == sorted(validation)
    for number, size in enumerate(sizes):
        taken = sum(labels[index] == 3 * number - 2 for index in validation)
        assert abs(taken - Fraction(size * total, count)) < 1
        assert taken < size


# Of seed: six validation images of ten even and ten odd ones, and the adaptation half of nine.
FROZEN = {
    0: ([1, 8, 10, 17, 18, 19], [1, 2, 4, 7]), 1: ([3, 6, 7, 10, 16, 17], [2, 6, 7, 8]),
    2**32 - 1: ([8, 11, 16, 17, 18, 19], [1, 5, 7, 8]),
}  # fmt: skip


@pytest.mark.parametrize("seed", FROZEN)
def test_splits_are_frozen(seed: int) -> None:
    """Another numpy version must hold out the same images."""
    assert stratified_split(np.tile([0, 1], 10), 6, seed)[1].tolist() == FROZEN[seed][0]
    adaptation, scoring = (half.tolist() for half in halves(9, seed))
    assert adaptation == FROZEN[seed][1] and sorted(adaptation + scoring) == list(range(9))
    with pytest.raises(UserError, match=r"^svhn: it has 1 image\(s\); expected at least 2, one to adapt to"):
        halves(1, 0, "svhn")


THREE = np.repeat([0, 1, 2], 4)


@pytest.mark.parametrize(
    ("labels", "validation", "seed", "message"),
    [
        *((THREE, wrong, 0, rf"validation is {wrong!r}; .* from 1 to 11$") for wrong in (12, True)),
        (np.array([2] * 9 + [5]), 6, 0, r"class 5 has 1 image\(s\), and 6 validation images of 10 would leave"),
        *((THREE, 3, wrong, f"the seed is {wrong}; expected an integer from 0 to 42949") for wrong in (-1, 2**32)),
    ],
)
def test_impossible_splits_are_refused(labels: np.ndarray, validation, seed, message: str) -> None:
    with pytest.raises(UserError, match=f"^mine: {message}"):
        stratified_split(labels, validation, seed, "mine")
