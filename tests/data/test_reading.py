"""Batches: the right images in the right order, for any number of workers, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pictures import pixels
from PIL import Image
from torchvision import transforms

from bnood.data.image_set import Images, ImageSet, StreamedSet
from bnood.data.reading import read_batches
from bnood.errors import UserError

TRANSFORM = transforms.Compose([transforms.Resize(12), transforms.CenterCrop(8), transforms.ToTensor()])


def picture(seed: int, height: int = 9, width: int = 11) -> np.ndarray:
    return pixels(height, width, 3, seed=seed)


class Items(list):
    """A map-style dataset whose items a function makes."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(0)(index)


def streamed(make: Callable[[int], Any]) -> StreamedSet:
    return StreamedSet("mine", Items([make] * 100))


def array_set(seed: int, count: int = 20) -> ImageSet:
    return ImageSet(f"arrays{seed}", np.stack([picture(1000 * seed + each) for each in range(count)]))


def batch(*entries: tuple[int, int]) -> np.ndarray:
    return np.array(entries, np.int64)


def refused(images: Images, transform: Any = TRANSFORM, workers: int = 0) -> str:
    with pytest.raises(UserError) as caught:
        list(read_batches([images], [batch(*((0, each) for each in range(40)))], transform, workers))
    return str(caught.value)


def test_arrays_are_indexed_across_sets() -> None:
    first, second = array_set(1), array_set(2)
    one, two = read_batches([first, second], [batch((1, 3), (0, 3)), batch((0, 7), (0, 7))], None)
    np.testing.assert_array_equal(one, np.stack([second.images[3], first.images[3]]))
    np.testing.assert_array_equal(two, first.images[[7, 7]])


@pytest.mark.parametrize("workers", [0, 2])
def test_photographs_are_transformed_and_arrays_beside_them_alike(workers: int) -> None:
    photographs, arrays = streamed(lambda index: Image.fromarray(picture(index, 20, 30))), array_set(1)
    entries = np.stack([np.arange(150) % 2, np.random.RandomState(0).randint(0, 20, 150)], axis=1)
    state = torch.random.get_rng_state()
    found = list(read_batches([photographs, arrays], [entries[:70], entries[70:71], entries[71:]], TRANSFORM, workers))
    assert [len(each) for each in found] == [70, 1, 79] and torch.equal(torch.random.get_rng_state(), state)
    for image, (number, index) in zip(torch.cat(found), entries, strict=True):
        original = arrays.images[index] if number else picture(int(index), 20, 30)
        assert torch.equal(image, TRANSFORM(Image.fromarray(original)))


ITEMS: dict[str, Callable[[int], Any]] = {
    "PIL": lambda index: Image.fromarray(picture(index)),
    "array": lambda index: [picture(index), 3],
    "uint8 tensor": lambda index: torch.from_numpy(picture(index)).permute(2, 0, 1),
}


@pytest.mark.parametrize("make", ITEMS.values(), ids=ITEMS)
def test_every_kind_of_item_gives_the_same_picture(make: Callable[[int], Any]) -> None:
    (raw,) = read_batches([streamed(make)], [batch((0, 5), (0, 2))], None)
    np.testing.assert_array_equal(raw, np.stack([picture(5), picture(2)]))
    (transformed,) = read_batches([streamed(make)], [batch((0, 5))], TRANSFORM)
    assert torch.equal(transformed[0], TRANSFORM(Image.fromarray(picture(5))))


@pytest.mark.parametrize("transform", [None, TRANSFORM])
def test_float_tensors_count_as_transformed(transform: Any) -> None:
    images = streamed(lambda index: (torch.full((3, 2, 2), float(index), dtype=torch.float64), 0))
    (found,) = read_batches([images.subset(np.array([9, 4]))], [batch((0, 1), (0, 0))], transform)
    assert found.dtype == torch.float32 and found[:, 0, 0, 0].tolist() == [4, 9]


BAD: dict[str, tuple[Images, Any, str]] = {
    "random item": (streamed(lambda _: torch.rand(3, 2, 2)), None, "differs when it is read twice"),
    "sizes": (
        streamed(lambda index: Image.fromarray(picture(0, 9, 9 + index // 38))),
        transforms.ToTensor(),
        "mine: images have unequal sizes, [3, 9, 9] and [3, 9, 10]; expected one size",
    ),
    "dictionary": (streamed(lambda _: {"image": 1}), None, "mine: item 0 is dict; expected an image or (image, label)"),
    "16 bits": (streamed(lambda _: Image.new("I;16", (2, 2))), None, "mine: item 0: the image has mode I;16; expected"),
}


@pytest.mark.parametrize(("images", "transform", "message"), BAD.values(), ids=BAD)
def test_unusable_items_and_transforms_are_named(images: Images, transform: Any, message: str) -> None:
    assert message in refused(images, transform)


def test_an_error_in_a_worker_arrives_as_one_line() -> None:
    images = streamed(lambda index: {}[index] if index == 35 else picture(index))
    assert refused(images, workers=2) == "mine: item 35 cannot be read or transformed (KeyError: 35)"
