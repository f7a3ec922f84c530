"""Batched augmentation: each image gets its own crop and flip, in one indexing operation for the whole batch."""

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 4  # pixels of zeros on every side, from which crops of the image's size are taken


def padded(images: Tensor, padding: int = PADDING) -> Tensor:
    """uint8 ``[N, H, W, 3]`` with a margin of zeros: ``[N, H + 2 padding, W + 2 padding, 3]``."""
    return F.pad(images, (0, 0, padding, padding, padding, padding)) if padding else images


def draw_crops(count: int, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """Row offset, column offset, mirrored or not of each image: int64 ``[3, count]``, on the CPU for every device."""
    columns, rows = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.stack([rows, columns, mirrored.long()])


def crop_and_flip(images: Tensor, index: Tensor, draws: Tensor, padding: int = PADDING) -> Tensor:
    """Crops of the :func:`padded` ``images[index]``, by :func:`draw_crops`: uint8 ``[N, H, W, 3]``, a new tensor.

    Everything is on one device, and nothing waits for it.
    """
    height, width = images.shape[1] - 2 * padding, images.shape[2] - 2 * padding
    first_row, first_column, mirrored = draws[:, :, None]
    across = torch.arange(width, device=images.device)
    columns = torch.where(mirrored > 0, width - 1 - across, across) + first_column
    rows = torch.arange(height, device=images.device) + first_row
    return images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
