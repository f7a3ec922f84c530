import numpy as np
import pytest

from bnood.data.image_set import ImageSet
from bnood.errors import UserError

IMAGES = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
LABELS = np.array([3, 1, 2, 0])


@pytest.mark.parametrize(
    "images",
    [
        IMAGES.astype(np.float32),
        IMAGES.astype(np.int8),
        IMAGES[0],
        IMAGES[..., :1],
        IMAGES.transpose(0, 3, 1, 2),
    ],
    ids=["float", "int8", "one image", "grey", "channels first"],
)
def test_images_of_another_type_or_shape_are_refused(images: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"^set: images are .*; expected uint8 \[N, H, W, 3\]") as caught:
        ImageSet("set", images)
    assert str(list(images.shape)) in str(caught.value) and str(images.dtype) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [LABELS.astype(np.int32), LABELS.astype(float), LABELS[:3], LABELS[:, None]],
    ids=["int32", "float", "too few", "column"],
)
def test_labels_of_another_type_or_length_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"^set: labels are .*; expected int64 \[4\]") as caught:
        ImageSet("set", IMAGES, labels)
    assert str(list(labels.shape)) in str(caught.value) and str(labels.dtype) in str(caught.value)


def test_subset_takes_images_and_labels_in_the_order_of_the_index() -> None:
    subset = ImageSet("set", IMAGES, LABELS).subset(np.array([2, 0]))
    assert subset.name == "set" and subset.labels is not None
    np.testing.assert_array_equal(subset.images, np.stack([IMAGES[2], IMAGES[0]]))
    np.testing.assert_array_equal(subset.labels, [2, 3])


def test_at_most_keeps_order_and_labels_and_depends_on_the_seed() -> None:
    whole = ImageSet("set", np.arange(40 * 3, dtype=np.uint8).reshape(40, 1, 1, 3), np.arange(40))
    some = whole.at_most(10, seed=3)
    assert some.labels is not None and len(some) == 10 and (np.diff(some.labels) > 0).all()
    assert np.array_equal(some.images[:, 0, 0, 0], 3 * some.labels)
    assert np.array_equal(some.images, whole.at_most(10, seed=3).images)
    assert not np.array_equal(some.images, whole.at_most(10, seed=4).images)
    assert whole.at_most(40, seed=0) is whole and whole.at_most(None, seed=0) is whole
