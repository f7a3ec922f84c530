"""Images from the user's own files: one .npz archive, or a folder of image files.

A resize leaves traces that a network can pick up (photographs brought down to 32 pixels beside CIFAR's native 32
pixels), so there is exactly one filter, used wherever this package resizes (:func:`fit`), and arrays are never resized.
"""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from bnood.data.image_set import ImageSet, as_labels
from bnood.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

# Only these are opened, whatever the suffix: their depth is known to _bits.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_TIFF_BITS_PER_SAMPLE = 258
_ARRAYS = "'images' uint8 [N, H, W, 3] and, if there are any, 'labels' int64 [N]"
# What Pillow's decoders raise on files that are cut short or damaged.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
_THREADS = min(8, os.cpu_count() or 1)


def one_line(error: BaseException) -> str:
    """The type and the message of an error, without its line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def why_no_file(path: Path) -> str | None:
    """Why a path cannot be read as a regular file, or None. It is not opened: opening a named pipe would wait."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return f"it is a link to {os.readlink(path)}, which cannot be read ({error.strerror})"
        missing = isinstance(error, FileNotFoundError)
        return "there is no such file" if missing else f"it cannot be read ({error.strerror})"
    if stat.S_ISREG(mode):
        return None if os.access(path, os.R_OK) else "it cannot be read (Permission denied)"
    if stat.S_ISDIR(mode):
        return "it is a folder"
    return "it is a named pipe" if stat.S_ISFIFO(mode) else "it is a device or a socket"


def read_npz(path: Path, image_size: int | None, name: str | None = None) -> ImageSet:
    """The images of an archive with ``images`` uint8 ``[N, H, W, 3]`` and optional ``labels`` int64 ``[N]``.

    Labels of another integer type are converted where int64 holds them. Pickles are never loaded. The images must be
    ``image_size`` pixels high and wide; None allows any size.

    Raises:
        UserError: if the file is missing, unreadable or empty, lacks ``images``, holds Python objects, or an array
            has another type, shape, size or length than stated above.
    """
    arrays = _read_arrays(path)
    if "images" not in arrays:
        raise UserError(f"{path}: it has no array 'images'; expected {_ARRAYS}")
    images = ImageSet(str(path), np.ascontiguousarray(arrays["images"])).images  # refused if of another shape or type
    if len(images) == 0:
        raise UserError(f"{path}: it holds no images; expected at least one")
    height, width = images.shape[1:3]
    if image_size is not None and (height, width) != (image_size, image_size):
        raise UserError(
            f"{path}: images are {height} x {width} pixels; expected {image_size} x {image_size} (arrays are never "
            "resized here, because a resize leaves traces; resize them yourself and state how)"
        )
    labels = as_labels(arrays["labels"], len(images), str(path)) if "labels" in arrays else None
    return ImageSet(name or path.stem, images, labels)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays ``images`` and ``labels`` of an archive, as far as it has them."""
    if (reason := why_no_file(path)) is not None:
        raise UserError(f"{path}: {reason}; expected an .npz archive with {_ARRAYS}")
    # The list of contents is at the end of an archive, so a file that was cut short fails here.
    if not zipfile.is_zipfile(path):
        reason = "it is cut short or not an .npz archive" if path.stat().st_size else "the file is empty"
        raise UserError(f"{path}: {reason}; expected an archive written by numpy.savez, with {_ARRAYS}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in ("images", "labels") if key in archive.files}
    except MemoryError as error:
        raise UserError(f"{path}: its arrays are larger than the memory ({one_line(error)})") from error
    except (
        *(OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError),
        *(struct.error, zlib.error, zipfile.BadZipFile),
    ) as error:
        raise UserError(f"{path}: the archive can't be read ({one_line(error)}); expected {_ARRAYS}") from error


def image_files(folder: Path) -> list[Path]:
    """All image files in and below a folder, by suffix (``SUFFIXES``, in either case), sorted by path.

    Hidden files and folders are left out. Links are followed, except to folders above, and each file on the disk is
    listed once, however many links and hard links lead to it: by its own path rather than by a link. A copy under
    another name is a file of its own and counts as an image of its own: remove copies before splitting a set.

    Raises:
        UserError: if the folder is missing, unreadable or without images, or something with an image's name is no
            regular file (a named pipe, a device, a link to nothing).
    """
    expected = f"expected a folder of images ({', '.join(SUFFIXES)})"
    if not folder.is_dir():
        problem = why_no_file(folder) or "it is a file"
        raise UserError(f"{folder}: {problem.replace('such file', 'such folder')}; {expected}")
    found: list[tuple[bool, Path]] = []  # (reached through a link, path)
    walked = {_identity(above) for above in folder.resolve().parents}
    waiting = [(False, folder)]
    while waiting:
        linked, place = waiting.pop(waiting.index(min(waiting)))  # what needs no link comes first, then by name
        if _identity(place) in walked:
            continue
        walked.add(_identity(place))
        try:
            entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(f"{place}: the folder can't be read ({error.strerror})") from error
        for entry in entries:
            path, through_link = place / entry.name, linked or entry.is_symlink()
            if entry.is_dir():
                waiting.append((through_link, path))
            elif entry.name.lower().endswith(SUFFIXES):
                if (reason := why_no_file(path)) is not None:
                    raise UserError(f"{path}: {reason}; expected an image file")
                found.append((through_link, path))
    files: dict[tuple[int, int], Path] = {}
    for _, path in sorted(found, key=lambda each: (each[0], each[1].parts)):
        files.setdefault(_identity(path), path)
    if not files:
        raise UserError(f"{folder}: there are no images in it or below it; {expected}")
    return sorted(files.values(), key=lambda file: file.parts)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


class Photographs:
    """Map-style dataset of image files: PIL images in mode RGB, decoded when they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Image.Image:
        return open_image(self.files[index])


def decode(files: Sequence[Path], image_size: int) -> np.ndarray:
    """The images of some files at one size (:func:`fit`): uint8 ``[N, image_size, image_size, 3]``."""
    images = np.empty((len(files), image_size, image_size, 3), np.uint8)

    def fill(index: int) -> None:
        images[index] = np.asarray(fit(open_image(files[index]), image_size))

    with ThreadPoolExecutor(_THREADS) as pool:  # Pillow decodes and resizes outside the interpreter's lock.
        for _ in pool.map(fill, range(len(files))):
            pass
    return images


def open_image(file: Path) -> Image.Image:
    """The image of a file in mode RGB (:func:`as_rgb`).

    The first frame of an animation is taken. Orientation tags of cameras are not applied, as in torchvision's readers.

    Raises:
        UserError: naming the file and why it cannot be used.
    """
    if (reason := why_no_file(file)) is not None:
        raise UserError(f"{file}: {reason}; expected an image file")
    try:
        with Image.open(file, formats=_FORMATS) as image:
            if _bits(image) > 8:
                raise UserError(f"{file}: the image has {_bits(image)} bits per channel; expected 8")
            return as_rgb(image, str(file))
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(
            f"{file}: the image has more pixels than the limit of {limit}; expected a smaller one"
        ) from error
    except UnidentifiedImageError as error:
        problem = f"it is no image of a known format ({', '.join(_FORMATS)})" if file.stat().st_size else "it is empty"
        raise UserError(f"{file}: {problem}; expected an image file") from error
    except _DECODING_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{file}: it cannot be read ({error.strerror}); expected an image file") from error
        raise UserError(
            f"{file}: the image is corrupt or cut short ({one_line(error)}); expected a complete image file"
        ) from error


def _bits(image: Image.Image) -> int:
    """Bits per channel in the file; Pillow's mode hides them: it opens 16-bit colour as RGB, cut to the high byte."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (1,)))  # type: ignore[attr-defined]
    details: Any = image.tile[0][3] if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    raw_mode, *others = details if isinstance(details, tuple) else (details,)
    if image.format == "PPM" and others and isinstance(others[0], int):  # the largest value
        return others[0].bit_length()
    return 16 if ";16" in str(raw_mode) and image.format in ("PNG", "PPM") else 8


def as_rgb(image: Image.Image, where: str) -> Image.Image:
    """The image in mode RGB; whatever is transparent is laid over black, so that colours hidden under it don't count.

    Raises:
        UserError: for a mode without 8 bits per channel (16-bit and float images have no agreed scale to 0 to 255).
    """
    if image.mode not in MODES:
        raise UserError(f"{where}: the image has mode {image.mode}; expected 8 bits per channel: {', '.join(MODES)}")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, image_size: int) -> Image.Image:
    """Shorter side to ``image_size`` (bilinear, antialiased when it shrinks), then the square in the centre.

    The same as torchvision's ``Resize`` and ``CenterCrop`` on a PIL image in mode RGB or L.
    """
    width, height = image.size
    shorter = min(width, height)
    size = (int(image_size * width / shorter), int(image_size * height / shorter))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - image_size) / 2), round((size[1] - image_size) / 2)
    return image.crop((left, top, left + image_size, top + image_size))
