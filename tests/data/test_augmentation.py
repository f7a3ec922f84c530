"""Augmentation, against a search for the crop and the flip that each image got."""

import numpy as np
import torch

from bnood.data.augmentation import crop_and_flip, draw_crops, padded


def augmented(count: int, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images ``[N, 12, 10, 3]``, and each of them cropped and flipped."""
    before = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (count, 12, 10, 3), np.uint8))
    draws = draw_crops(count, torch.Generator().manual_seed(0), padding)
    return before, crop_and_flip(padded(before, padding), torch.arange(count), draws, padding)


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
    before, after = augmented(600, padding=4)
    assert after.dtype == torch.uint8
    assert after.shape == before.shape
    rows, columns, flips = zip(*draws_of(before.numpy(), after.numpy(), 4), strict=True)
    # 600 draws of 9 values: 66.7 each, standard deviation 7.7.
    for offsets in (rows, columns):
        counts = np.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert abs(counts - 600 / 9).max() < 35
    assert 240 < sum(flips) < 360
    flipped, mirrored = augmented(50, padding=0)
    assert 10 < sum(flip for _, _, flip in draws_of(flipped.numpy(), mirrored.numpy(), 0)) < 40
