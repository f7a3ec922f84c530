"""Augmentation, against a search for the crop and the flip that each image got."""

import numpy as np
import pytest
import torch

from bnood.data.augmentation import PADDING, draw_crops, padded
from bnood.data.augmentation import crop_and_flip as crop_some


def images(count: int, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(1, 256, (count, height, width, 3), dtype=np.uint8))


def crop_and_flip(before: torch.Tensor, generator: torch.Generator, padding: int = PADDING) -> torch.Tensor:
    draws = draw_crops(len(before), generator, padding)
    return crop_some(padded(before, padding), torch.arange(len(before)), draws, padding)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws_of(before: np.ndarray, after: np.ndarray, padding: int) -> list[tuple[int, int, bool]]:
    """Row offset, column offset and flip of each image, found by trying all of them."""
    height, width = before.shape[1:3]
    found = []
    for source, result in zip(before, after, strict=True):
        padded = np.zeros((height + 2 * padding, width + 2 * padding, 3), np.uint8)
        padded[padding : padding + height, padding : padding + width] = source
        matches = [
            (row, column, flip)
            for row in range(2 * padding + 1)
            for column in range(2 * padding + 1)
            for flip in (False, True)
            if np.array_equal(padded[row : row + height, column : column + width][:, :: -1 if flip else 1], result)
        ]
        assert len(matches) == 1
        found += matches
    return found


def test_every_image_gets_its_own_crop_and_flip() -> None:
    before = images(600)
    after = crop_and_flip(before, seeded(), padding=4)
    assert after.dtype == torch.uint8
    assert after.shape == before.shape
    rows, columns, flips = zip(*draws_of(before.numpy(), after.numpy(), 4), strict=True)
    # 600 draws of 9 values: 66.7 each, standard deviation 7.7.
    for offsets in (rows, columns):
        counts = np.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert abs(counts - 600 / 9).max() < 35
    assert 240 < sum(flips) < 360
    # Independent of each other: knowing one tells nothing about another.
    assert abs(np.corrcoef([rows, columns, flips])[np.triu_indices(3, 1)]).max() < 0.15


def test_without_crop_images_are_only_mirrored() -> None:
    before = images(50)
    after = crop_and_flip(before, seeded(), padding=0)
    flips = [flip for row, column, flip in draws_of(before.numpy(), after.numpy(), 0)]
    assert 10 < sum(flips) < 40


def test_same_generator_state_same_result_and_input_untouched() -> None:
    before = images(20)
    kept = before.clone()
    first, again, other = (crop_and_flip(before, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, kept)
    assert first.data_ptr() != before.data_ptr()


@pytest.mark.parametrize("count", [0, 1])
def test_small_batches(count: int) -> None:
    assert crop_and_flip(images(count), seeded()).shape == (count, 12, 10, 3)
