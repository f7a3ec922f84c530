"""Images from the user's own files: one .npz archive, or a folder of image files."""

import heapq
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

from bnood.data.image_set import ImageSet
from bnood.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")

# Only these are opened, whatever the suffix: their depth is known to _bits.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_ARRAYS = "'images' uint8 [N, H, W, 3] and, if there are any, 'labels' int64 [N]"
# What Pillow's decoders and numpy's reader raise on files that are cut short or damaged.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
_ARCHIVE_ERRORS = (*_DECODING_ERRORS, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile)
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
    except ValueError:
        return "no path holds a null character"
    if stat.S_ISREG(mode):
        return None if os.access(path, os.R_OK) else "it cannot be read (Permission denied)"
    if stat.S_ISDIR(mode):
        return "it is a folder"
    return "it is a named pipe" if stat.S_ISFIFO(mode) else "it is a device or a socket"


def read_npz(path: Path, image_size: int | None, name: str | None = None) -> ImageSet:
    """The images of an archive with ``images`` uint8 ``[N, H, W, 3]`` and optional ``labels``, integers ``[N]``.

    Raises:
        UserError: if the file cannot be read or lacks ``images``, an array has another type, shape or length, holds
            Python objects (pickles are never loaded), or H and W differ from ``image_size`` (None: any).
    """
    if (reason := why_no_file(path)) is not None:
        raise UserError(f"{path}: {reason}; expected an .npz archive with {_ARRAYS}")
    # The list of contents is at the end of an archive, so a file that was cut short fails here.
    if not zipfile.is_zipfile(path):
        reason = "it is cut short or not an .npz archive" if path.stat().st_size else "the file is empty"
        raise UserError(f"{path}: {reason}; expected an archive written by numpy.savez, with {_ARRAYS}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("images", "labels") if key in archive.files}
    except MemoryError as error:
        raise UserError(f"{path}: its arrays are larger than the memory ({one_line(error)})") from error
    except _ARCHIVE_ERRORS as error:
        raise UserError(f"{path}: the archive can't be read ({one_line(error)}); expected {_ARRAYS}") from error
    if "images" not in arrays:
        raise UserError(f"{path}: it has no array 'images'; expected {_ARRAYS}")
    found = ImageSet(str(path), np.ascontiguousarray(arrays["images"]), arrays.get("labels"))
    if not len(found):
        raise UserError(f"{path}: it holds no images; expected at least one")
    height, width = found.images.shape[1:3]
    if image_size is not None and (height, width) != (image_size, image_size):
        raise UserError(
            f"{path}: images are {height} x {width} pixels; expected {image_size} x {image_size} (arrays are never "
            "resized here, because a resize leaves traces; resize them yourself and state how)"
        )
    return ImageSet(name or path.stem, found.images, found.labels)


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
    waiting = [(False, folder)]  # a heap: what needs no link comes first
    while waiting:
        linked, place = heapq.heappop(waiting)
        if _identity(place) in walked:
            continue
        walked.add(_identity(place))
        try:
            entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(f"{place}: the folder can't be read ({error.strerror})") from error
        for entry in entries:
            each = (linked or entry.is_symlink(), place / entry.name)
            if entry.is_dir():
                heapq.heappush(waiting, each)
            elif entry.name.lower().endswith(SUFFIXES):
                if (reason := why_no_file(each[1])) is not None:
                    raise UserError(f"{each[1]}: {reason}; expected an image file")
                found.append(each)
    files: dict[tuple[int, int], Path] = {}
    for _, path in sorted(found):
        files.setdefault(_identity(path), path)
    if not files:
        raise UserError(f"{folder}: there are no images in it or below it; {expected}")
    return sorted(files.values())


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
    with ThreadPoolExecutor(_THREADS) as pool:  # Pillow decodes and resizes outside the interpreter's lock.
        for index, image in enumerate(pool.map(lambda file: fit(open_image(file), image_size), files)):
            images[index] = np.asarray(image)
    return images


def open_image(file: Path) -> Image.Image:
    """The image of a file in mode RGB (:func:`as_rgb`), the first frame of an animation; UserError says why not.

    Orientation tags of cameras are not applied, as in torchvision's readers.
    """
    if (reason := why_no_file(file)) is not None:
        raise UserError(f"{file}: {reason}; expected an image file")
    try:
        with Image.open(file, formats=_FORMATS) as image:
            if _bits(image) > 8:
                raise UserError(f"{file}: the image has {_bits(image)} bits per channel; expected 8")
            if max(image.size) > 1000 * min(image.size):  # resizing its shorter side would take all memory
                raise UserError(
                    f"{file}: the image has {image.width} x {image.height} pixels; expected sides up to 1000:1"
                )
            return as_rgb(image, str(file))
    except UserError:
        raise
    except (Image.DecompressionBombError, *_DECODING_ERRORS) as error:
        if isinstance(error, Image.DecompressionBombError):
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            problem = f"the image has more pixels than the limit of {limit}; expected a smaller one"
        elif isinstance(error, UnidentifiedImageError):
            empty = file.stat().st_size == 0
            problem = "it is empty" if empty else f"it is no image of a known format; expected {', '.join(_FORMATS)}"
        elif isinstance(error, OSError) and error.errno is not None:
            problem = f"it cannot be read ({error.strerror})"
        else:
            problem = f"the image is corrupt or cut short ({one_line(error)}); expected a complete file"
        raise UserError(f"{file}: {problem}") from error


def _bits(image: Image.Image) -> int:
    """Bits per channel in the file; Pillow's mode hides them: it opens 16-bit colour as RGB, cut to the high byte."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]  # the tag BitsPerSample
    details: Any = image.tile[0][3] if image.format in ("PNG", "PPM") else ""  # type: ignore[attr-defined]
    if isinstance(details, tuple):  # a PPM with another largest value than 255
        return int(details[1]).bit_length()
    return 16 if ";16" in details else 8


def as_rgb(image: Image.Image, where: str) -> Image.Image:
    """The image in mode RGB, laid over black where it is transparent, so that colours hidden there don't count.

    Refuses modes without 8 bits per channel: 16-bit and float images have no agreed scale to 0 to 255.
    """
    if image.mode not in MODES:
        raise UserError(f"{where}: the image has mode {image.mode}; expected 8 bits per channel: {', '.join(MODES)}")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, image_size: int) -> Image.Image:
    """Shorter side to ``image_size`` (bilinear, antialiased), then the square in the centre.

    This is the only filter that resizes: networks pick up the traces that different filters leave.
    """
    from torchvision.transforms import functional  # slow to import

    return functional.center_crop(functional.resize(image, [image_size]), [image_size, image_size])
