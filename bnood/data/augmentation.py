"""Batched augmentation: each image gets its own crop and flip, in two indexing operations for the whole batch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4, crop: bool = True) -> Tensor:
    """Random crops of the zero-padded images, each mirrored with probability one half.

    torchvision's transforms draw once per call and so would cut a whole batch alike; here every image draws for
    itself. The draws are made on the CPU, so that they are the same on every device.

    Args:
        images: uint8 ``[N, H, W, 3]``.
        generator: CPU generator of the draws.
        padding: pixels added on every side before cropping back to H x W; 0 disables the crop.
        crop: whether to crop at all; without, images are only flipped.

    Returns:
        uint8 ``[N, H, W, 3]``, a new tensor.
    """
    count, height, width, _ = images.shape
    padding = padding if crop else 0
    offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand((count, 1), generator=generator) < 0.5
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(mirrored, width - 1 - columns, columns) + offsets[0]
    rows = torch.arange(height) + offsets[1]
    if padding:
        images = F.pad(images, (0, 0, padding, padding, padding, padding))
    image = torch.arange(count)[:, None, None]
    index = [i.to(images.device, non_blocking=True) for i in (image, rows[:, :, None], columns[:, None, :])]
    return images[index[0], index[1], index[2]]
