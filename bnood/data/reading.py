"""From image sets to batches: arrays by indexing, everything else decoded item by item, if asked for by workers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bnood.data.files import as_rgb, one_line
from bnood.data.image_set import Images, ImageSet, StreamedSet
from bnood.errors import UserError

Transform = Callable[[Image.Image], Tensor]

_PART = 32  # images that a worker decodes at a time: every worker holds two parts ready (19 MB each at 224 pixels)
_READ_TWICE = 8  # items that are read twice before a set is used: a random flip passes once in 256 times


def read_batches(
    sets: Sequence[Images], batches: Sequence[np.ndarray], transform: Transform | None, workers: int = 0
) -> Iterator[Tensor]:
    """Yield the images of each batch, in order; the same values for any number of workers.

    Args:
        sets: that the images come from.
        batches: each int64 ``[n, 2]``, n at least 1: position in ``sets``, index in that set.
        transform: from a PIL image (RGB) to a float tensor ``[3, h, w]``. Items that are float tensors skip it.
        workers: processes that decode; 0 decodes here. Arrays without a transform need none.

    Returns:
        Without a transform, images as they are: uint8 ``[n, H, W, 3]``, or float32 ``[n, 3, h, w]`` where a dataset
        gives float tensors. With a transform, float32 ``[n, 3, h, w]``.

    Raises:
        UserError: if sizes are unequal, an item cannot be read, is none that :class:`StreamedSet` allows or differs
            when it is read twice, or the transform gives no float tensor ``[3, h, w]``.
    """
    used = sorted({int(number) for batch in batches for number in np.unique(batch[:, 0])})
    arrays = {number: each.images for number, each in enumerate(sets) if isinstance(each, ImageSet)}
    if transform is None and all(number in arrays for number in used):
        for number in used:
            _same_size(sets[number].name, arrays[used[0]].shape[1:], arrays[number].shape[1:])
        yield from (_indexed(arrays, batch) for batch in batches)
        return
    for number in used:
        _check_repeatable(sets[number], transform)
    parts = [batch[start : start + _PART] for batch in batches for start in range(0, len(batch), _PART)]
    loader = DataLoader(
        _Parts(sets, parts, transform),
        batch_size=None,
        num_workers=workers if len(parts) > workers else 0,
        generator=torch.Generator(),  # the loader would otherwise draw from the global one
    )
    decoded = iter(loader)
    first: Tensor | None = None
    for batch in batches:
        images = [next(decoded) for _ in range(0, len(batch), _PART)]
        for part in images:
            if isinstance(part, UserError):
                raise part
            first = part[:1].clone() if first is None else first
            _same_size(sets[int(batch[0, 0])].name, first.shape[1:], part.shape[1:])
        yield torch.cat(images)


def _indexed(arrays: dict[int, np.ndarray], batch: np.ndarray) -> Tensor:
    numbers = np.unique(batch[:, 0])
    if len(numbers) == 1:
        return torch.from_numpy(arrays[int(numbers[0])][batch[:, 1]])
    images = np.empty((len(batch), *arrays[int(numbers[0])].shape[1:]), np.uint8)
    for number in numbers:
        rows = batch[:, 0] == number
        images[rows] = arrays[int(number)][batch[rows, 1]]
    return torch.from_numpy(images)


class _Parts(Dataset[Any]):
    """Parts of batches, each read as a whole: a tensor ``[n, ..]``, or the error that reading it gave.

    Errors are handed over as values, because a DataLoader pastes a worker's traceback into the message.
    """

    def __init__(self, sets: Sequence[Images], parts: Sequence[np.ndarray], transform: Transform | None) -> None:
        self.sets, self.parts, self.transform = sets, parts, transform

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Tensor | UserError:
        try:
            images: list[Tensor] = []
            for position, index in self.parts[number]:
                images.append(_read(self.sets[position], int(index), self.transform))
                _same_size(self.sets[position].name, images[0].shape, images[-1].shape)
            return torch.stack(images)
        except UserError as error:
            return error


def _read(images: Images, index: int, transform: Transform | None) -> Tensor:
    """One image: float32 ``[3, h, w]``, or uint8 ``[H, W, 3]`` where nothing transforms it."""
    image = Image.fromarray(images.images[index]) if isinstance(images, ImageSet) else _item(images, index)
    if isinstance(image, Tensor):
        return image
    if transform is None:
        return torch.from_numpy(np.array(image))
    try:
        transformed = transform(image)
    except Exception as error:  # whatever the user's transform raises
        raise UserError(f"{images.name}: the transform fails on image {index} ({one_line(error)})") from error
    if not isinstance(transformed, Tensor) or not transformed.is_floating_point() or transformed.ndim != 3:
        raise UserError(
            f"{images.name}: the transform gives {_described(transformed)}; expected a float tensor [3, h, w]"
        )
    return transformed.float()


def _item(images: StreamedSet, index: int) -> Image.Image | Tensor:
    """An image before the transform: PIL in mode RGB, or a float32 tensor ``[3, h, w]``."""
    where = f"{images.name}: item {images.index[index]}"
    try:
        item = images.dataset[int(images.index[index])]
    except UserError:
        raise
    except Exception as error:  # whatever the user's dataset raises
        raise UserError(f"{where} cannot be read ({one_line(error)})") from error
    image = item[0] if isinstance(item, tuple | list) and item else item
    if isinstance(image, Image.Image):
        return as_rgb(image, where)
    if isinstance(image, Tensor) and image.is_floating_point() and image.ndim == 3:
        return image.detach().float()
    if isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] == 3:
        image = image.permute(1, 2, 0).contiguous().numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return Image.fromarray(np.ascontiguousarray(image))
    raise UserError(
        f"{where} is {_described(image)}; expected an image or (image, label), the image being a PIL image, "
        "a uint8 array [H, W, 3], a uint8 tensor [3, H, W] or a float tensor [3, h, w]"
    )


def _check_repeatable(images: Images, transform: Transform | None) -> None:
    """Read some items twice, once for each set and transform."""
    if isinstance(images, StreamedSet) and any(each is transform for each in images.checked):
        return
    for index in np.unique(np.linspace(0, len(images) - 1, _READ_TWICE).astype(int)):
        first, second = (_read(images, int(index), transform) for _ in range(2))
        if first.is_floating_point() and not torch.isfinite(first).all():
            raise UserError(f"{images.name}: image {index} holds NaN or infinity after the transform")
        if not torch.equal(first, second):
            raise UserError(
                f"{images.name}: image {index} differs when it is read twice; expected a dataset and a transform "
                "without random augmentation"
            )
    if isinstance(images, StreamedSet):
        images.checked.append(transform)


def _same_size(name: str, first: Sequence[int], other: Sequence[int]) -> None:
    if first != other:
        raise UserError(
            f"{name}: images have unequal sizes, {list(first)} and {list(other)}; expected one size, by a transform "
            "that resizes and crops or by image_size"
        )


def _described(value: Any) -> str:
    kind = getattr(value, "dtype", None)
    return type(value).__name__ if kind is None else f"{type(value).__name__} {kind} {list(value.shape)}"
