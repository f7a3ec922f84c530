import numpy as np
import pytest
from pictures import pixels

from bnood.data.image_set import ImageSet, StreamedSet
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
    np.testing.assert_array_equal(some.images, whole.images[some.labels])
    np.testing.assert_array_equal(StreamedSet("set", whole.images).at_most(10, seed=3).index, some.labels)
    assert not np.array_equal(some.images, whole.at_most(10, seed=4).images)
    assert whole.at_most(40, seed=0) is whole and whole.at_most(None, seed=0) is whole
