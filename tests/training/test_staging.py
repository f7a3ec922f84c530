"""A folder is written as a whole or not at all: real files, a real full disk."""

import os
from pathlib import Path

import pytest
from limits import files_up_to

from bnood.errors import UserError
from bnood.training.atomic import staged_folder


def content(folder: Path) -> dict[str, str]:
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def final(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "ood"
    (folder / "figures").mkdir(parents=True)
    (folder / "table.csv").write_text("old table")
    (folder / "figures" / "a.png").write_text("old figure")
    return folder


def test_the_new_folder_takes_the_place_of_the_old_one_as_a_whole(final: Path) -> None:
    with staged_folder(final) as beside:
        assert beside.parent == final.parent and list(beside.iterdir()) == []
        (beside / "table.csv").write_text("new table")
        assert content(final) == {"table.csv": "old table", "figures/a.png": "old figure"}
    assert content(final.parent) == {"ood/table.csv": "new table"}
    assert sorted(path.name for path in final.parent.iterdir()) == ["ood"]


def test_a_new_folder_is_made_with_its_parents_and_may_be_read_by_others(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with staged_folder(tmp_path / "runs" / "a" / "ood") as beside:
        (beside / "x").write_text("1")
    assert content(tmp_path) == {"runs/a/ood/x": "1"}
    assert (tmp_path / "runs" / "a" / "ood").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("wrong"), UserError("no")])
def test_an_error_inside_leaves_the_old_folder(final: Path, error: BaseException) -> None:
    before = content(final.parent)
    with pytest.raises(type(error)), staged_folder(final) as beside:
        (beside / "table.csv").write_text("half")
        raise error
    assert content(final.parent) == before and list(final.parent.iterdir()) == [final]


def test_a_full_disk_leaves_the_old_folder_and_is_one_line(final: Path) -> None:
    before = content(final.parent)
    with files_up_to(4096), pytest.raises(UserError) as raised, staged_folder(final) as beside:
        (beside / "table.csv").write_text("new table")
        (beside / "scores.parquet").write_bytes(bytes(10_000))
    assert content(final.parent) == before and list(final.parent.iterdir()) == [final]
    assert str(raised.value) == (
        f"{final}: the evaluation cannot be written there (File too large); earlier files are kept"
    )


def test_messages_name_the_place_that_the_user_knows(final: Path) -> None:
    with pytest.raises(UserError) as raised, staged_folder(final) as beside:
        raise UserError(f"{beside / 'figures'} can't be written")
    assert str(raised.value) == f"{final / 'figures'} can't be written"


def test_a_file_in_its_place_is_kept(tmp_path: Path) -> None:
    (tmp_path / "ood").write_text("mine")
    refused = pytest.raises(UserError, match=r"ood: the evaluation cannot be written there \(File exists\)")
    with refused, staged_folder(tmp_path / "ood"):
        pytest.fail("it has to be refused before anything is written")
    assert content(tmp_path) == {"ood": "mine"}


def test_the_old_folder_comes_back_if_the_new_one_cannot_be_renamed(
    final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, replace = content(final.parent), Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(UserError, match="Input/output error"), staged_folder(final) as beside:
        (beside / "table.csv").write_text("new table")
    assert content(final.parent) == before and list(final.parent.iterdir()) == [final]


def test_what_a_killed_process_left_is_cleared_away(final: Path) -> None:
    left = final.with_name(f".ood.{os.getpid()}.partial")
    left.mkdir()
    (left / "half").write_text("half")
    with staged_folder(final) as beside:
        (beside / "table.csv").write_text("new table")
    assert content(final) == {"table.csv": "new table"}
