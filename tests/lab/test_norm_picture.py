"""The picture of the norms shows what the layers do: the coloured cells are read back and compared with the axes."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Polygon

from bnood.errors import UserError
from bnood.lab.norm_picture import BLOCKS, CHANNELS, SAMPLES, SIDE, main, norm_picture, share_a_mean, write_norm_picture

ROOT = Path(__file__).parents[2]
LAST = slice(CHANNELS - 1, CHANNELS)
# By hand: samples, channels and pixels that share a mean with the first sample's last channel.
SHARED = {
    "BatchNorm": np.s_[:, LAST, :],
    "LayerNorm": np.s_[:1, :, :],
    "GroupNorm": np.s_[:1, CHANNELS // 2 :, :],
    "InstanceNorm": np.s_[:1, LAST, :],
}


def wanted(name: str) -> np.ndarray:
    block = np.zeros((SAMPLES, CHANNELS, SIDE**2), dtype=bool)
    block[SHARED[name]] = True
    return block


@pytest.fixture(scope="module")
def figure() -> Figure:
    return norm_picture()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_the_layers_average_over_what_the_papers_say(block) -> None:
    np.testing.assert_array_equal(share_a_mean(block.norm, block.groups), wanted(block.name))


def test_another_place_and_no_norm() -> None:
    other = share_a_mean("gn", 3, place=(2, 1, 0))
    block = np.zeros_like(other)
    block[2, :2, :] = True
    np.testing.assert_array_equal(other, block)
    assert share_a_mean("none", place=(1, 2, 3)).sum() == 1, "without a norm a value is alone"


@pytest.mark.parametrize("place", range(4))
def test_cells_are_coloured_where_values_share_the_mean(figure: Figure, place: int) -> None:
    block, axes = BLOCKS[place], figure.axes[place]
    assert axes.get_title() == block.name
    cells = [patch for patch in axes.patches if isinstance(patch, Polygon)]
    assert len(cells) == CHANNELS * SIDE**2 + SAMPLES * CHANNELS + SAMPLES * SIDE**2
    for cell in cells:
        where = ast.literal_eval(str(cell.get_gid()).split(" ", 1)[1])
        red, green, blue = cell.get_facecolor()[:3]
        is_grey = red == green == blue
        assert is_grey != wanted(block.name)[where], (block.name, cell.get_gid())
    fronts = [cell for cell in cells if str(cell.get_gid()).startswith("front")]
    assert {cell.get_facecolor()[:3] for cell in fronts} <= {to_rgb(block.colour), to_rgb("#D6D6D6")}


def test_what_is_written_beneath_is_counted(figure: Figure) -> None:
    for block, axes in zip(BLOCKS, figure.axes, strict=True):
        texts = " ".join(text.get_text() for text in axes.texts)
        assert block.axes in texts
        assert f"{wanted(block.name).sum()} of {SAMPLES * CHANNELS * SIDE**2} values" in texts


def test_nothing_is_cut_off(figure: Figure) -> None:
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01


def test_the_command_of_the_docs_writes_the_picture(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "normalisation.md").read_text(encoding="utf-8")
    assert "python -m bnood.lab.norm_picture docs/normalisation.png" in text
    path = tmp_path / "docs" / "normalisation.png"
    command = [sys.executable, "-m", "bnood.lab.norm_picture", str(path)]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip() == str(path)
    assert imread(path).shape == imread(ROOT / "docs" / "normalisation.png").shape


def test_wrong_names_are_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"picture\.svg: the picture is a PNG"):
        write_norm_picture(tmp_path / "picture.svg")
    with pytest.raises(SystemExit):
        main([])
    assert "give one file name" in capsys.readouterr().err
