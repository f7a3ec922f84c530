"""The built-in sets: fixed bits of the noise, balanced classes, and that only the outline tells the class."""

import hashlib

import numpy as np
import pytest

from bnood.data.synthetic import CLASSES, SYNTHETIC, UNSEEN, Draws, outlines, synthetic_images


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gaussian_noise", "7a43fc4cda7d1cd8152fdf35da3688b126c8d034a7b9f95b5d89e22b1eb087b9"),
        ("uniform_noise", "450d2b8a76b527c9b4c2d25bdac42ebb79560751e06979c4817f41e3d786a26b"),
    ],
)
def test_noise_has_the_published_pixels(name: str, published: str) -> None:
    """Results were measured on these: whoever changes them changes the results."""
    images = synthetic_images(name, "test")
    assert hashlib.sha256(images.images.tobytes()).hexdigest() == published and images.labels is None


@pytest.mark.parametrize("name", SYNTHETIC)
def test_images_follow_from_set_split_and_position_alone(name: str) -> None:
    state = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    wholes = [synthetic_images(name, split, count=300) for split in SYNTHETIC[name].splits]
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # the global stream is left alone
    few = synthetic_images(name, SYNTHETIC[name].splits[0], count=251)
    np.testing.assert_array_equal(few.images, wholes[0].images[:251])
    assert few.labels is None or np.array_equal(few.labels, np.arange(251) % SYNTHETIC[name].classes)
    assert len({image.tobytes() for whole in wholes for image in whole.images}) == 300 * len(wholes)


def test_outlines_cover_the_same_area_and_no_unseen_one_is_a_class() -> None:
    steady = np.full((1, 5), 0.5)  # middle of every range: no turn, no shift, no stretch
    masks = {
        name: outlines(np.array([0]), Draws(steady), {name: outline})[0]
        for name, outline in [*CLASSES.items(), *UNSEEN.items()]
    }
    areas = [mask.sum() for mask in masks.values()]
    assert max(areas) < 1.1 * min(areas)
    for unseen in UNSEEN:
        for known in CLASSES:
            overlap = np.minimum(masks[unseen], masks[known]).sum() / np.maximum(masks[unseen], masks[known]).sum()
            assert overlap < 0.85, (unseen, known)
