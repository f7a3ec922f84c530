"""Images from the user's own files: one .npz archive, or a folder of image files."""

import heapq
import os
import stat
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bnood.data.image_set import ImageSet
from bnood.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # whatever the suffix: their depth is known to _bits


def check_file(path: Path, expected: str) -> None:
    """Refuse a path that is no regular file without opening it: opening a named pipe would wait."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return
        reason = "it is a folder, a named pipe, a device or a socket"
    except (OSError, ValueError) as error:  # ValueError: a null character
        link = f" through a link to {os.readlink(path)}" if path.is_symlink() else ""
        reason = f"it cannot be read{link} ({getattr(error, 'strerror', error)})"
    raise UserError(f"{path}: {reason}; {expected}")


def read_npz(path: Path, image_size: int | None, name: str) -> ImageSet:
    """The images of an archive; UserError for other arrays than expected, and if H or W is not ``image_size``."""
    expected = "expected an .npz archive with 'images' uint8 [N, H, W, 3] and, if there are any, 'labels' int64 [N]"
    expected += ", or a folder of images"
    check_file(path, expected)
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):  # the list of contents is at the end, so a file cut short fails here
                raise zipfile.BadZipFile("it is cut short or not an .npz archive")
            with np.load(file, allow_pickle=False) as archive:
                found = ImageSet(str(path), np.ascontiguousarray(archive["images"]), archive.get("labels"))
    except Exception as error:  # numpy and zipfile raise a dozen types on damaged archives
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: the archive can't be read ({type(error).__name__}: {error}); {expected}") from error
    height, width = found.images.shape[1:3]
    if image_size is not None and (height, width) != (image_size, image_size):
        found_size = f"images are {height} x {width} pixels; expected {image_size} x {image_size}"
        raise UserError(f"{path}: {found_size} (arrays are never resized here)")
    return found.renamed(name)


def image_files(folder: Path) -> list[Path]:
    """All image files (:data:`SUFFIXES`, in either case) in and below a folder, hidden ones left out, sorted by path.

    Links are followed, except to folders above, and each file on the disk is listed once, by its own path rather than
    by a link. UserError if there are no images, or one is no regular file.
    """
    found: list[tuple[bool, Path]] = []  # (reached through a link, path)
    walked = {_identity(above) for above in folder.resolve().parents}
    waiting = [(False, folder)]  # a heap: what needs no link comes first
    while waiting:
        linked, place = heapq.heappop(waiting)
        visible = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
        for entry in visible if _identity(place) not in walked else ():
            path, through_link = place / entry.name, linked or entry.is_symlink()
            if entry.is_dir():
                heapq.heappush(waiting, (through_link, path))
            elif entry.name.lower().endswith(SUFFIXES):
                check_file(path, "expected an image file")
                found.append((through_link, path))
        walked.add(_identity(place))
    if not found:
        raise UserError(f"{folder}: there are no images in it or below it; expected {', '.join(SUFFIXES)}")
    return sorted({_identity(path): path for _, path in sorted(found, reverse=True)}.values())


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def decode(files: Sequence[Path], image_size: int) -> np.ndarray:
    """The images of some files at one size (:func:`fit`): uint8 ``[N, image_size, image_size, 3]``."""
    images = np.empty((len(files), image_size, image_size, 3), np.uint8)
    with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside the interpreter's lock
        for index, image in enumerate(pool.map(lambda file: fit(open_image(file), image_size), files)):
            images[index] = np.asarray(image)
    return images


def open_image(file: Path) -> Image.Image:
    """The image of a file in mode RGB, the first frame of an animation; orientation tags of cameras are not applied."""
    check_file(file, "expected an image file")
    try:
        with Image.open(file, formats=_FORMATS) as image:
            if max(image.size) > 1000 * min(image.size):  # resizing its shorter side would take all memory
                raise UserError(f"{file}: the image is {image.width} x {image.height}; expected sides up to 1000:1")
            return as_rgb(image, str(file))
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        if isinstance(error, UserError):
            raise
        expected = f"expected a complete file ({', '.join(_FORMATS)}) within Pillow's limit of pixels"
        raise UserError(f"{file}: the image cannot be read ({type(error).__name__}: {error}); {expected}") from error


def _bits(image: Image.Image) -> int:
    """Bits per channel in the file; Pillow's mode hides them: it opens 16-bit colour as RGB, cut to the high byte."""
    opened: Any = image  # Pillow's types lack both attributes
    if image.format == "TIFF":
        return max(opened.tag_v2.get(258, (1,)))  # the tag BitsPerSample
    details = opened.tile[0][3] if image.format in ("PNG", "PPM") else ""
    if isinstance(details, tuple):  # a PPM with another largest value than 255
        return int(details[1]).bit_length()
    return 16 if ";16" in details else 8


def as_rgb(image: Image.Image, where: str) -> Image.Image:
    """The image in mode RGB, laid over black where it is transparent; UserError unless it has 8 bits per channel."""
    if getattr(image, "tile", None) and (bits := _bits(image)) > 8:  # of a file that is not yet decoded
        raise UserError(f"{where}: the image has {bits} bits per channel; expected 8")
    if image.mode not in MODES:
        raise UserError(f"{where}: the image has mode {image.mode}; expected 8 bits per channel: {', '.join(MODES)}")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, image_size: int) -> Image.Image:
    """Shorter side to ``image_size`` (bilinear, antialiased), then the square in the centre: the one way to resize."""
    from torchvision.transforms import functional  # slow to import

    return functional.center_crop(functional.resize(image, [image_size]), [image_size, image_size])
