"""Corruptions: each against the moments that it should have, or a calculation by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bnood.data.corruptions import CONSTANTS, shifted
from bnood.data.image_set import ImageSet, StreamedSet
from bnood.errors import UserError


def random_set(n: int = 6, height: int = 12, width: int = 15) -> ImageSet:
    """Images of random pixels, from black to white, with labels; not square, so that no axis passes for another."""
    rng = np.random.default_rng(0)
    return ImageSet("random", rng.integers(0, 256, (n, height, width, 3), np.uint8), rng.integers(0, 10, n))


def grey_set(level: int, n: int = 40) -> ImageSet:
    return ImageSet("grey", np.full((n, 32, 32, 3), level, np.uint8))


@pytest.mark.parametrize("strength", [1, 5])
def test_noise_has_the_mean_and_the_deviation_that_it_should_have(strength: int) -> None:
    # On grey, nothing is clipped. Rounding to whole levels adds a variance of 1/12.
    changed = shifted(grey_set(128), f"noise-{strength}", seed=1).images - 128.0
    expected = np.sqrt((255 * CONSTANTS["noise"][strength - 1]) ** 2 + 1 / 12)
    assert abs(changed.mean()) < 5 * expected / np.sqrt(changed.size)
    assert changed.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * changed.size))
    assert shifted(grey_set(255), f"noise-{strength}").images.min() > 50  # clipped, not wrapped around


def test_noise_follows_from_the_seed_and_the_position_alone() -> None:
    images = random_set(7)
    before, changed = images.images.copy(), shifted(images, "noise-4", seed=5)
    whole = changed.images
    assert changed.name == "noise-4" and (images.images == before).all()
    np.testing.assert_array_equal(changed.labels, images.labels)
    np.testing.assert_array_equal(shifted(images.subset(np.arange(3)), "noise-4", seed=5).images, whole[:3])


@pytest.mark.parametrize("strength", [1, 5])
@pytest.mark.parametrize("shape", [(12, 15), (3, 2)], ids=["large", "smaller than the kernel"])
def test_blur_is_a_sum_over_shifted_copies(strength: int, shape: tuple[int, int]) -> None:
    images, (height, width) = random_set(3, *shape), shape
    sigma = CONSTANTS["blur"][strength - 1]
    radius = int(4 * sigma + 0.5)
    weights = {shift: np.exp(-0.5 * (shift / sigma) ** 2) for shift in range(-radius, radius + 1)}
    expected = np.zeros(images.images.shape)
    for down, down_weight in weights.items():
        for right, right_weight in weights.items():
            rows = np.clip(np.arange(height) + down, 0, height - 1)
            columns = np.clip(np.arange(width) + right, 0, width - 1)
            expected += down_weight * right_weight * images.images[:, rows][:, :, columns]
    expected /= sum(weights.values()) ** 2
    # Half a level for rounding; and a value near a half may go either way.
    assert np.abs(shifted(images, f"blur-{strength}").images - expected).max() < 0.5 + 1e-9


def test_contrast_by_hand() -> None:
    # Channel 0: mean 100, distances -40, 0, 0, 40 times 0.15. Channel 2: mean 127.5, so 127.5 -+ 19.125. A second
    # image has means of its own.
    first = np.array([[[60, 7, 0], [100, 7, 0]], [[100, 7, 255], [140, 7, 255]]], np.uint8)
    changed = shifted(ImageSet("two", np.stack([first, np.full_like(first, 200)])), "contrast-5").images
    assert changed[0].tolist() == [[[94, 7, 108], [100, 7, 108]], [[100, 7, 147], [106, 7, 147]]]
    assert (changed[1] == 200).all()


def test_grey_is_the_luma_of_arrays_and_of_streamed_images(tmp_path: Path) -> None:
    images = random_set(3)
    Image.fromarray(images.images[1]).save(tmp_path / "1.png")
    items = [(Image.fromarray(images.images[0]), 0), tmp_path / "1.png", images.images[2]]
    streamed = StreamedSet("photographs", items, images.labels).subset(np.array([2, 1, 0]))
    whole, read = shifted(images, "grey"), shifted(streamed, "grey")
    assert (whole.name, read.name) == ("grey", "grey") and read.labels.tolist() == images.labels[::-1].tolist()
    np.testing.assert_array_equal(np.stack([read.dataset[index] for index in range(3)]), whole.images)
    assert np.abs(whole.images - images.images @ np.array([0.299, 0.587, 0.114])[..., None]).max() < 0.51
    with pytest.raises(UserError, match="shift 'grey': features holds float tensors"):
        shifted(StreamedSet("features", [torch.zeros(3, 4, 4)]), "grey").dataset[0]
    with pytest.raises(UserError, match="shift 'noise-3' is for images held in memory: give image_size"):
        shifted(streamed, "noise-3")
