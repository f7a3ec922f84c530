"""From image sets to batches: arrays by indexing, all else item by item, by workers if asked for; crops and flips."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from bnood.data.files import as_rgb, open_image
from bnood.data.image_set import Images, ImageSet, StreamedSet
from bnood.errors import UserError

Transform = Callable[[Image.Image], Tensor]

PADDING = 4  # pixels of zeros on every side, from which crops of the image's size are taken
_PART = 32  # images that a worker decodes at a time: every worker holds two parts ready (19 MB each at 224 pixels)
_READ_TWICE = 8  # items that are read twice before a set is used: a random flip passes once in 256 times


def read_batches(
    sets: Sequence[Images], batches: Sequence[np.ndarray], transform: Transform | None, workers: int = 0
) -> Iterator[Tensor]:
    """Yield the images of each batch, in order; the same values for any number of workers.

    ``batches`` are int64 ``[n, 2]``, n at least 1: position in ``sets``, index in that set. ``transform`` turns a PIL
    image (RGB) into a float tensor ``[3, h, w]``; items that are float tensors skip it. ``workers`` are processes.

    Gives float32 ``[n, 3, h, w]`` after a transform or from float tensors, else uint8 ``[n, H, W, 3]``. UserError if
    sizes are unequal, or an item cannot be read, is of another kind or differs when read twice.
    """
    used = [sets[number] for number in np.unique(np.concatenate(batches)[:, 0])] if len(batches) else []
    size: Sequence[int] | None = None
    if transform is None and all(isinstance(images, ImageSet) for images in used):
        for images in cast(list[ImageSet], used):
            size = _same_size(images.name, size, images.images.shape[1:])
        yield from (_indexed(cast(Sequence[ImageSet], sets), batch) for batch in batches)
        return
    for images in used:
        _check_repeatable(images, transform)
    parts = [batch[start : start + _PART] for batch in batches for start in range(0, len(batch), _PART)]
    loader: DataLoader[Tensor | UserError] = DataLoader(
        parts,  # type: ignore[arg-type]  # a list has all that is needed of a dataset
        batch_size=None,
        collate_fn=partial(_decoded, sets, transform),
        num_workers=workers if len(parts) > workers else 0,
        generator=torch.Generator(),  # the loader would otherwise draw from the global one
    )
    decoded = iter(loader)
    for batch in batches:
        found = []
        for _ in range(0, len(batch), _PART):
            if isinstance(part := next(decoded), UserError):
                raise part
            size = _same_size(sets[batch[0, 0]].name, size, part.shape[1:])
            found.append(part)
        yield torch.cat(found)


def _indexed(sets: Sequence[ImageSet], batch: np.ndarray) -> Tensor:
    if (batch[:, 0] == batch[0, 0]).all():
        return torch.from_numpy(sets[batch[0, 0]].images[batch[:, 1]])
    images = np.empty((len(batch), *sets[batch[0, 0]].images.shape[1:]), np.uint8)
    for number in np.unique(batch[:, 0]):
        rows = batch[:, 0] == number
        images[rows] = sets[number].images[batch[rows, 1]]
    return torch.from_numpy(images)


def _decoded(sets: Sequence[Images], transform: Transform | None, part: np.ndarray) -> Tensor | UserError:
    """A part of a batch, or its error as a value: a DataLoader pastes tracebacks into messages."""
    try:
        images: list[Tensor] = []
        for position, index in part:
            images.append(_read(sets[position], int(index), transform))
            _same_size(sets[position].name, images[0].shape, images[-1].shape)
        return torch.stack(images)
    except UserError as error:
        return error


def _read(images: Images, index: int, transform: Transform | None) -> Tensor:
    """One image: float32 ``[3, h, w]``, or uint8 ``[H, W, 3]`` where nothing transforms it."""
    items, number = (images.images, index) if isinstance(images, ImageSet) else (images.dataset, images.index[index])
    where = f"{images.name}: item {number}"
    try:
        image = as_image(items[int(number)], where)
        if isinstance(image, Image.Image):
            image = torch.from_numpy(np.array(image)) if transform is None else transform(image)
    except Exception as error:  # whatever the user's dataset or transform raises
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where} cannot be read or transformed ({type(error).__name__}: {error})") from error
    if transform is not None and not (isinstance(image, Tensor) and image.is_floating_point() and image.ndim == 3):
        raise UserError(f"{where}: the transform gives {_described(image)}; expected a float tensor [3, h, w]")
    return image.detach().float() if image.is_floating_point() else image


def as_image(item: Any, where: str) -> Image.Image | Tensor:
    """The image of an item before the transform: PIL in mode RGB, or a float tensor ``[3, h, w]``."""
    image = item[0] if isinstance(item, tuple | list) and item else item
    if isinstance(image, Path):
        return open_image(image)
    if isinstance(image, Image.Image):
        return as_rgb(image, where)
    if isinstance(image, Tensor) and image.ndim == 3:
        if image.is_floating_point():
            return image
        image = image.permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return Image.fromarray(np.ascontiguousarray(image))
    kinds = "a path, a PIL image, a uint8 array [H, W, 3], a uint8 tensor [3, H, W] or a float tensor [3, h, w]"
    raise UserError(f"{where} is {_described(image)}; expected an image or (image, label), the image being {kinds}")


def _check_repeatable(images: Images, transform: Transform | None) -> None:
    checked = images.checked if isinstance(images, StreamedSet) else []
    if any(each is transform for each in checked):
        return
    for index in np.unique(np.linspace(0, len(images) - 1, _READ_TWICE).astype(int)):
        first, second = (_read(images, int(index), transform) for _ in range(2))
        if first.is_floating_point() and not torch.isfinite(first).all():
            raise UserError(f"{images.name}: image {index} holds NaN or infinity after the transform")
        if not torch.equal(first, second):
            wanted = "expected a dataset and a transform without random augmentation"
            raise UserError(f"{images.name}: image {index} differs when it is read twice; {wanted}")
    checked.append(transform)


def _same_size(name: str, first: Sequence[int] | None, other: Sequence[int]) -> Sequence[int]:
    if first not in (None, other):
        found = f"images have unequal sizes, {list(first or ())} and {list(other)}"
        raise UserError(f"{name}: {found}; expected one size: resize them by the transform or image_size")
    return other


def _described(value: Any) -> str:
    kind = getattr(value, "dtype", None)
    return type(value).__name__ if kind is None else f"{type(value).__name__} {kind} {list(value.shape)}"


def padded(images: Tensor, padding: int = PADDING) -> Tensor:
    """uint8 ``[N, H, W, 3]`` with a margin of zeros: ``[N, H + 2 padding, W + 2 padding, 3]``."""
    return pad(images, (0, 0, padding, padding, padding, padding)) if padding else images


def draw_crops(count: int, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """Row offset, column offset, mirrored or not of each image: int64 ``[3, count]``, on the CPU for every device."""
    columns, rows = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.stack([rows, columns, mirrored.long()])


def crop_and_flip(images: Tensor, index: Tensor, draws: Tensor, padding: int = PADDING) -> Tensor:
    """Crops of the :func:`padded` ``images[index]``, by :func:`draw_crops`: uint8 ``[N, H, W, 3]``, a new tensor."""
    height, width = images.shape[1] - 2 * padding, images.shape[2] - 2 * padding
    first_row, first_column, mirrored = draws[:, :, None]
    across = torch.arange(width, device=images.device)
    columns = torch.where(mirrored > 0, width - 1 - across, across) + first_column
    rows = index[:, None] * images.shape[1] + torch.arange(height, device=images.device) + first_row
    places = rows[:, :, None] * images.shape[2] + columns[:, None, :]  # gathered faster than by three indices
    return images.flatten(0, 2).index_select(0, places.flatten()).view(*places.shape, images.shape[3])
