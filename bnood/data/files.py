"""Images from the user's own files: one .npz archive, or a folder of image files.

A resize leaves traces that a network can pick up (a shortcut: photographs that were brought down to 32 pixels beside
CIFAR's and SVHN's native 32 pixels), so there is exactly one filter, used wherever anything is resized (:func:`fit`),
and arrays are never resized at all. The remaining traces, also those of JPEG, have to be stated beside a result.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from bnood.data.image_set import ImageSet
from bnood.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

_FORMAT = "'images' uint8 [N, H, W, 3] and, if there are any, 'labels' int64 [N]"
# What Pillow's decoders raise on files that are cut short, damaged, or not images at all.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
_WORKERS = min(8, os.cpu_count() or 1)


def one_line(error: BaseException) -> str:
    """The type and the message of an error, without its line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def read_npz(path: Path, image_size: int, name: str | None = None) -> ImageSet:
    """The images of an archive with ``images`` uint8 ``[N, H, W, 3]`` and optional ``labels`` int64 ``[N]``.

    Labels of another integer type are converted where int64 holds them. Images are never resized.

    Args:
        path: of the archive.
        image_size: the H and W, in pixels, that the images must have.
        name: of the set; the file's stem by default.

    Raises:
        UserError: if the file is missing, unreadable or empty, lacks ``images``, holds Python objects (pickles are
            never loaded), or an array has another type, shape, size or length than stated above.
    """
    arrays = _read_arrays(path)
    if "images" not in arrays:
        raise UserError(f"{path}: it has no array 'images'; expected {_FORMAT}")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"{path}: images are {images.dtype} {list(images.shape)}; expected uint8 [N, H, W, 3] (RGB, 0 to 255)"
        )
    if len(images) == 0:
        raise UserError(f"{path}: it holds no images; expected at least one, uint8 [N, {image_size}, {image_size}, 3]")
    height, width = images.shape[1:3]
    if (height, width) != (image_size, image_size):
        raise UserError(
            f"{path}: images are {height} x {width} pixels; expected {image_size} x {image_size} (arrays are never "
            "resized here, because a resize leaves traces; resize them yourself and state how)"
        )
    labels = _as_int64(arrays["labels"], len(images), path) if "labels" in arrays else None
    return ImageSet(name or path.stem, np.ascontiguousarray(images), labels)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays ``images`` and ``labels`` of an archive, as far as it has them."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected an .npz archive with {_FORMAT}")
    try:
        # The list of contents is at the end of an archive, so a file that was cut short fails here.
        if not zipfile.is_zipfile(path):
            raise UserError(
                f"{path}: it is cut short or not an .npz archive; expected one, written by numpy.savez, with {_FORMAT}"
            )
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in ("images", "labels") if key in archive.files}
    except UserError:
        raise
    except (
        *(OSError, ValueError, EOFError, KeyError, NotImplementedError, MemoryError, RuntimeError),
        *(struct.error, zlib.error, zipfile.BadZipFile),
    ) as error:
        raise UserError(f"{path}: the archive can't be read ({one_line(error)}); expected {_FORMAT}") from error


def _as_int64(labels: np.ndarray, count: int, path: Path) -> np.ndarray:
    """The labels as int64 ``[count]``; an error if they are no integers, too large, or not one per image."""
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise UserError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}; expected int64 [{count}], one per image"
        )
    if labels.dtype.kind == "u" and labels.max() > np.iinfo(np.int64).max:
        raise UserError(f"{path}: labels reach {labels.max()}; expected int64, at most {np.iinfo(np.int64).max}")
    return np.ascontiguousarray(labels, dtype=np.int64)


def read_folder(path: Path, image_size: int, name: str | None = None) -> ImageSet:
    """The images in a folder and below it, in the sorted order of their paths relative to it.

    Files count as images by their suffix (``SUFFIXES``, in either case); hidden files and folders are left out, and
    links to folders are followed. If no image lies in the folder itself, the name of each image's immediate parent is
    its class, and classes are numbered in sorted order; otherwise there are no labels. A folder has no splits.

    Args:
        path: of the folder.
        image_size: H and W, in pixels, to which the images are brought (:func:`fit`).
        name: of the set; the folder's name by default.

    Raises:
        UserError: if the folder is missing, unreadable or has no images, or an image can't be used (:func:`decode`).
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; expected a folder of images ({', '.join(SUFFIXES)})")
    files = _image_files(path)
    if not files:
        raise UserError(f"{path}: there are no images in it or below it; expected files in {', '.join(SUFFIXES)}")
    labels = None if any(file.parent == path for file in files) else labels_of_parents(files)
    return ImageSet(name or path.resolve().name or str(path), decode(files, image_size), labels)


def labels_of_parents(files: Sequence[Path]) -> np.ndarray:
    """int64 ``[N]``: each file's class, the name of its folder, numbered in sorted order."""
    classes = [file.parent.name for file in files]
    return np.unique(classes, return_inverse=True)[1].astype(np.int64).reshape(-1)


def _image_files(folder: Path) -> list[Path]:
    """All image files in and below a folder, sorted."""

    def stop(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename}: the folder can't be read ({one_line(error)})") from error

    files = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=stop):
        here = Path(place)
        # A link to a folder that holds the link would be walked without end.
        above = {here.resolve(), *here.resolve().parents}
        folders[:] = [each for each in folders if not each.startswith(".") and (here / each).resolve() not in above]
        files += [here / each for each in names if each.lower().endswith(SUFFIXES) and not each.startswith(".")]
    return sorted(files, key=lambda file: file.relative_to(folder).parts)


def decode(files: Sequence[Path], image_size: int) -> np.ndarray:
    """uint8 ``[N, image_size, image_size, 3]``, in the order of the files.

    Grey, palette, CMYK and black-and-white images become RGB; whatever is transparent is laid over black, so that the
    colours hidden under it don't count. The first frame of an animation is taken. Orientation tags of cameras are
    not applied, as in torchvision's readers.

    Raises:
        UserError: naming the first file that is corrupt or cut short, or of a mode without 8 bits per channel (16-bit
            and floating-point images have no agreed scale to 0 to 255).
    """
    images = np.empty((len(files), image_size, image_size, 3), np.uint8)

    def fill(index: int) -> None:
        images[index] = _decode_one(files[index], image_size)

    with ThreadPoolExecutor(_WORKERS) as pool:  # Pillow decodes and resizes outside the interpreter's lock.
        for _ in pool.map(fill, range(len(files))):
            pass
    return images


def _decode_one(file: Path, image_size: int) -> np.ndarray:
    try:
        with Image.open(file) as image:
            if image.mode not in MODES:
                raise UserError(
                    f"{file}: the image has mode {image.mode}; expected 8 bits per channel: {', '.join(MODES)}"
                )
            image.load()
            return np.asarray(fit(_as_rgb(image), image_size))
    except UserError:
        raise
    except (*_DECODING_ERRORS, Image.DecompressionBombError) as error:
        raise UserError(
            f"{file}: the image is corrupt or cut short ({one_line(error)}); expected a complete image file"
        ) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, image_size: int) -> Image.Image:
    """Shorter side to ``image_size`` (bilinear, antialiased when it shrinks), then the square in the centre.

    The one filter for every set that has to be resized; the same as torchvision's ``Resize`` and ``CenterCrop`` on a
    Pillow image. An image that has the size already is not touched.

    Args:
        image: mode RGB or L.
        image_size: pixels of each side of the result.
    """
    width, height = image.size
    shorter = min(width, height)
    size = (int(image_size * width / shorter), int(image_size * height / shorter))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - image_size) / 2), round((size[1] - image_size) / 2)
    return image.crop((left, top, left + image_size, top + image_size))
