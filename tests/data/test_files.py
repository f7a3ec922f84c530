"""Archives and folders of image files, good and bad: what is read, and which cause a refusal names."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import pixels, refused, save
from PIL import Image

from bnood.data.files import as_rgb, image_files, open_image
from bnood.data.sources import images, load_images
from bnood.errors import UserError


def tree(root: Path, *files: str) -> Path:
    for seed, file in enumerate(files):
        save(root / file, pixels(32, 32, 3, seed=seed))
    return root


GOOD = pixels(3, 32, 32, 3)


def test_archive_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=np.asfortranarray(GOOD), labels=np.array([5, 0, 3], np.uint8))
    loaded = load_images(f"{tmp_path}/mine.npz", "test")
    assert loaded.name == "mine" and loaded.images.flags.c_contiguous and loaded.labels is not None
    np.testing.assert_array_equal(loaded.images, GOOD)
    assert loaded.labels.tolist() == [5, 0, 3]


def test_folder_is_walked_in_sorted_order_and_labelled_by_top_folder(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos.v1", "a/10.png", "a/9.PNG", "b/images/c/0.bmp", "b/x.png", "c/0.tif")
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "a" / "._10.png").write_text("what a Mac leaves beside an image")
    loaded = load_images(str(folder), "train")
    assert loaded.name == "photos.v1" and loaded.folders == ("a", "b", "c") and loaded.labels is not None
    np.testing.assert_array_equal(loaded.images, [pixels(32, 32, 3, seed=seed) for seed in range(5)])
    streamed = images(folder).labels
    assert streamed is not None and streamed.tolist() == loaded.labels.tolist() == [0, 0, 1, 1, 2]
    save(folder / "0.png", GOOD[0])  # one image outside the classes
    assert images(folder).labels is None
    splits = tree(tmp_path / "x", "Train/a/0.png", "val/0.png")
    assert "its folders are splits (Train, val), not classes" in refused(splits)
    with pytest.raises(UserError, match=r"caf\?: it cannot be read .* expected a name or a path in UTF-8"):
        images(os.fsdecode(b"./caf\xe9"))


LINKS = {
    "folders that link to each other": (("a/x.png", "b/y.png"), {"a/to_b": "../b", "b/to_a": "../a"}),
    "links to itself and above": (("a/x.png",), {"a/self": ".", "a/up": "..", "a/far_up": "../..", "a/root": "/"}),
    "a link to a file": (("x.png",), {"copy.png": "x.png"}),
    "a link in a folder that sorts first": (("b/x.png",), {"a": "b", "0.png": "b/x.png"}),
}


@pytest.mark.parametrize(("files", "links"), LINKS.values(), ids=LINKS)
def test_linked_files_are_listed_once(tmp_path: Path, files: tuple[str, ...], links: dict[str, str]) -> None:
    tree(tmp_path / "in" / "set", *files)
    tree(tmp_path, "outside.png")
    os.link(tmp_path / "in" / "set" / files[0], tmp_path / "in" / "set" / "z.png")
    for link, target in links.items():
        (tmp_path / "in" / "set" / link).symlink_to(target)
    assert image_files(tmp_path / "in" / "set") == [tmp_path / "in" / "set" / file for file in files]


def test_what_is_no_file_but_has_an_images_name_is_refused_without_opening_it(tmp_path: Path) -> None:
    file = tmp_path / "f.png"
    for make in (os.mkfifo, lambda file: file.symlink_to("/dev/zero")):
        make(file)
        assert f"{file}: it is a folder, a named pipe, a device or a socket; expected an image" in refused(tmp_path)
        file.unlink()
    file.symlink_to("gone.png")
    assert f"{file}: it cannot be read through a link to gone.png (No such file" in refused(tmp_path)


def test_modes_become_rgb(tmp_path: Path) -> None:
    colour, grey = pixels(32, 32, 3), pixels(32, 32)
    alpha = np.where(np.arange(32) < 16, 0, 255)[None, :].repeat(32, 0).astype(np.uint8)
    palette = Image.fromarray(colour).quantize(16)
    opaque, clear = np.asarray(palette.convert("RGB")), (np.asarray(palette) == 3)[..., None]
    cmyk = Image.fromarray(np.full((32, 32, 4), (0, 255, 255, 0), np.uint8), "CMYK")
    for file, mode, expected in (
        (save(tmp_path / "l.png", grey), "L", grey[..., None]),
        (save(tmp_path / "1.png", Image.fromarray(grey > 99)), "1", (grey > 99)[..., None] * 255),
        (save(tmp_path / "rgba.png", np.dstack([colour, alpha])), "RGBA", np.where(alpha[..., None] > 0, colour, 0)),
        (save(tmp_path / "la.png", np.dstack([grey, alpha])), "LA", np.where(alpha, grey, 0)[..., None]),
        (save(tmp_path / "p.png", palette), "P", opaque),
        (save(tmp_path / "p_clear.png", palette, transparency=3), "P", np.where(clear, 0, opaque)),
        (save(tmp_path / "cmyk.tif", cmyk), "CMYK", np.array([255, 0, 0])),
    ):
        assert Image.open(file).mode == mode
        found = np.asarray(open_image(file))
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape), err_msg=file.name)


def deep_png(path: Path, colour_type: int, channels: int) -> None:
    """A 16-bit PNG, written by hand: Pillow writes only grey ones."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + np.full((8, channels), 4000, ">u2").tobytes() for _ in range(8))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, colour_type, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def in_16_bits(tiff: Path) -> None:
    """Change the tag BitsPerSample of a TIFF file."""
    tiff.write_bytes(tiff.read_bytes().replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 16, 16, 16)))


DEEP: dict[str, tuple[str, int, Callable[[Path], object]]] = {
    "PNG grey": ("x.png", 16, lambda file: deep_png(file, 0, 1)),
    "PNG RGBA": ("x.png", 16, lambda file: deep_png(file, 6, 4)),
    "TIFF grey": ("x.tif", 16, lambda file: save(file, np.zeros((8, 8), np.uint16))),
    "TIFF float": ("x.tif", 32, lambda file: save(file, np.zeros((8, 8), np.float32))),
    "TIFF RGB": ("x.tif", 16, lambda file: (save(file, GOOD[0]), in_16_bits(file))),
    "PPM": ("x.ppm", 16, lambda file: file.write_bytes(b"P6 8 8 65535\n" + bytes(8 * 8 * 6))),
}


@pytest.mark.parametrize(("name", "bits", "write"), DEEP.values(), ids=DEEP)
def test_files_of_more_than_8_bits_are_refused_whatever_their_mode(tmp_path: Path, name: str, bits: int, write) -> None:
    save(tmp_path / "good.png", GOOD[0])
    write(tmp_path / name)
    assert f"{tmp_path / name}: the image has {bits} bits per channel; expected 8" in refused(tmp_path)
    with pytest.raises(UserError, match=r"an item: the image .* expected 8"):
        as_rgb(Image.open(tmp_path / name), "an item")


def test_images_of_extreme_sizes_are_refused_with_the_limit(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path / "narrow" / "0.png", np.zeros((1, 1001), np.uint8))
    save(tmp_path / "large" / "0.png", np.zeros((40, 50), np.uint8))
    assert "0.png: the image is 1001 x 1; expected sides up to 1000:1" in refused(tmp_path / "narrow")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    message = refused(tmp_path / "large")
    assert "exceeds limit of 1800 pixels" in message and "within Pillow's limit of pixels" in message
