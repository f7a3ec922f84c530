"""Random pixels, files of them, and how such files are refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from bnood.data.sources import images
from bnood.errors import UserError


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def save(path: Path, image: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def resized_by_torchvision(image: Image.Image, size: int = 32) -> np.ndarray:
    return np.asarray(transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])(image))


def refused(source: str | Path, split: str = "test", root: Path | None = None, **options) -> str:
    with pytest.raises(UserError) as caught:
        images(source, split=split, root=root, **{"image_size": 32, **options})
    return str(caught.value)
