"""Labels of folders against the classes of a network."""

from pathlib import Path

import numpy as np
import pytest

from bnood.data.image_set import ImageSet
from bnood.data.labels import folder_labels, numbered, read_classes
from bnood.errors import UserError


def folder(*names: str) -> ImageSet:
    return ImageSet("photos", np.zeros((len(names), 1, 1, 3), np.uint8), *numbered(names))


def labels(images: ImageSet, classes: list[str] | None, num_classes: int) -> list[int] | None:
    found, note = folder_labels(images, classes, num_classes)
    assert (note is None) == (found.labels is not None) and found.folders is None
    return None if found.labels is None else found.labels.tolist()


def test_integer_folders_are_class_indices_however_few_they_are() -> None:
    assert labels(folder("003", "998", "3"), None, 1000) == [3, 998, 3]
    with pytest.raises(UserError, match="photos: a label is 998; expected at most 9, the last class"):
        labels(folder("003", "998"), None, 10)


def test_named_folders_follow_the_list_of_classes() -> None:
    assert labels(folder("dog", "cat", "dog"), ["emu", "dog", "cat"], 3) == [1, 2, 1]
    with pytest.raises(UserError, match="photos: folders that the list of classes lacks: dog"):
        labels(folder("dog", "cat"), ["cat", "emu"], 2)
    with pytest.raises(UserError, match="the list of classes has 2 names; expected 3, one per logit"):
        labels(folder("dog"), ["dog", "cat"], 3)


def test_named_folders_without_a_list_count_only_if_there_is_one_for_each_class() -> None:
    assert labels(folder("dog", "cat", "1"), None, 3) == [2, 1, 0]
    assert labels(folder("dog", "cat"), None, 3) is None
    _, note = folder_labels(folder("dog", "cat"), None, 3)
    assert note is not None and "photos: used without labels, because it has 2 folders and the network 3" in note


def test_an_unlabelled_set_stays_unlabelled_without_a_note() -> None:
    unlabelled = ImageSet("photos", np.zeros((1, 1, 1, 3), np.uint8))
    assert folder_labels(unlabelled, None, 3) == (unlabelled, None)


def test_class_names_are_read_one_per_line(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("dog\n tabby cat \n")
    assert read_classes(file) == ["dog", "tabby cat"]
    for content, message in (
        (b"dog\n\ncat\n", "classes.txt, line 2: it is empty; expected a text file with one class name"),
        (b"dog\ncat\ndog\n", "classes.txt, line 3: dog comes twice; expected"),
        (b"\xff\xfe", "classes.txt: it is not UTF-8 text; expected"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_classes(file)
    with pytest.raises(UserError, match=r"gone.txt: No such file or directory; expected"):
        read_classes(tmp_path / "gone.txt")
