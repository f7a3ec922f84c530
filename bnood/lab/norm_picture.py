"""A picture of what each norm averages over: ``python -m bnood.lab.norm_picture docs/normalisation.png``.

A feature map ``[N, C, H, W]`` is a block with the channels along one edge, the pixels H x W folded into the second and
the samples of the batch along the third, as Wu & He (2018, "Group Normalization", figure 2) picture it. In each of
four blocks one set of values that share a mean is coloured. Which these are is not typed in: the project's own layer
is asked (:func:`share_a_mean`), so that the picture cannot claim what the layer does not do.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from bnood.errors import UserError, one_line_errors
from bnood.networks.norm import Norm, norm_layer
from bnood.report.figures import DPI, STYLE
from bnood.training.run_folder import write_beside

SAMPLES, CHANNELS, SIDE = 4, 6, 2  # of the block; H = W = SIDE
DEPTH = (0.42, 0.36)  # how far a step to the next sample goes to the right and up, in widths of a channel
GREY = "#D6D6D6"
SHADES = {"front": 1.0, "top": 1.08, "side": 0.86}  # light falls from above and from the left


class Block(NamedTuple):
    """One of the four norms: its layer, and what is written over and under its block."""

    name: str
    norm: Norm
    groups: int
    colour: str
    axes: str
    means: str


BLOCKS = (
    Block("BatchNorm", "bn", 1, "#0072B2", "over N, H, W", "one mean per channel,\nshared by all samples"),
    Block("LayerNorm", "ln", 1, "#D55E00", "over C, H, W", "one mean per sample,\nshared by all channels"),
    Block("GroupNorm", "gn", 2, "#009E73", "over C/groups, H, W", "one mean per sample and\ngroup (here 2 groups)"),
    Block("InstanceNorm", "gn", CHANNELS, "#CC79A7", "over H, W", "one mean per sample\nand channel"),
)


def share_a_mean(norm: Norm, groups: int = 1, place: tuple[int, int, int] = (0, CHANNELS - 1, 0)) -> np.ndarray:
    """Which values of the block share a mean with the value at `place`: booleans ``[N, C, H * W]``.

    Found by trial: one value of a random feature map is changed, and the layer's outputs (in training mode) that
    change with it are those whose mean it entered.
    """
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(SAMPLES, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    layer = norm_layer(norm, CHANNELS, groups).double().train()
    changed = block.clone()
    changed.view(SAMPLES, CHANNELS, -1)[place] += 1.0
    with torch.no_grad():
        difference = (layer(changed) - layer(block)).abs()
    return (difference > 1e-9).view(SAMPLES, CHANNELS, -1).numpy()


def _shaded(colour: str, face: str) -> tuple[float, ...]:
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return tuple(np.clip(rgb * SHADES[face], 0, 1))


def _cells(face: str) -> list[tuple[tuple[int, int, int], list[tuple[float, float]]]]:
    """The cells that a face shows: (sample, channel, pixel) and the corners in the plane of the paper."""
    pixels = SIDE**2

    def corner(n: float, c: float, p: float) -> tuple[float, float]:
        return c + DEPTH[0] * n, p + DEPTH[1] * n

    found = []
    if face == "front":
        for c in range(CHANNELS):
            for p in range(pixels):
                edges = ((c, p), (c + 1, p), (c + 1, p + 1), (c, p + 1))
                found.append(((0, c, p), [corner(0, x, y) for x, y in edges]))
    elif face == "top":
        for n in range(SAMPLES):
            for c in range(CHANNELS):
                edges = ((n, c), (n, c + 1), (n + 1, c + 1), (n + 1, c))
                found.append(((n, c, pixels - 1), [corner(x, y, pixels) for x, y in edges]))
    else:
        for n in range(SAMPLES):
            for p in range(pixels):
                edges = ((n, p), (n + 1, p), (n + 1, p + 1), (n, p + 1))
                found.append(((n, CHANNELS - 1, p), [corner(x, CHANNELS, y) for x, y in edges]))
    return found


def _draw(axes: Axes, block: Block) -> None:
    shared = share_a_mean(block.norm, block.groups)
    for face in ("front", "top", "side"):
        for place, corners in _cells(face):
            colour = _shaded(block.colour if shared[place] else GREY, face)
            axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="white", linewidth=1.3, gid=f"{face} {place}"))
    right, up = DEPTH[0] * SAMPLES, DEPTH[1] * SAMPLES
    quiet: dict[str, Any] = {"color": "#444444", "fontsize": 9.5}
    axes.text(CHANNELS / 2, -0.2, "channels C", ha="center", va="top", **quiet)
    axes.text(-0.2, SIDE**2 / 2, "pixels H \u00d7 W", ha="right", va="center", rotation=90, **quiet)
    angle = float(np.degrees(np.arctan2(up, right)))
    axes.text(right / 2 - 0.28, SIDE**2 + up / 2 + 0.28, "samples N", ha="center", va="center", rotation=angle, **quiet)
    axes.set_title(block.name, color=block.colour, fontweight="bold", fontsize=15, pad=12)
    means = f"{shared.sum()} of {shared.size} values share it"
    axes.text(CHANNELS / 2, -1.0, block.axes, ha="center", va="top", fontsize=12.5, fontweight="bold")
    axes.text(CHANNELS / 2, -1.75, f"{block.means};\n{means}", ha="center", va="top", fontsize=10.5, linespacing=1.35)
    axes.set(xlim=(-0.9, CHANNELS + right + 0.2), ylim=(-3.4, SIDE**2 + up + 0.3), aspect="equal")
    axes.set_axis_off()


@matplotlib.rc_context(STYLE)
def norm_picture() -> Figure:
    """Four blocks ``[N, C, H x W]``, one per norm; the values that share one mean are coloured."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, block in zip(figure.subplots(1, len(BLOCKS)), BLOCKS, strict=True):
        _draw(axes, block)
    size = f"N = {SAMPLES}, C = {CHANNELS}, H = W = {SIDE}"
    figure.suptitle(f"What a norm averages over: the coloured values share one mean and one variance ({size})")
    return figure


def write_norm_picture(path: Path) -> Path:
    """Draw the picture into the PNG file `path`.

    Raises:
        UserError: `path` does not end in ``.png``, or cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: the picture is a PNG; give a file name that ends in .png")
    write_beside(path, partial(norm_picture().savefig, format="png", dpi=DPI))
    return path


def main(arguments: list[str]) -> None:
    """``python -m bnood.lab.norm_picture FILE.png``."""
    with one_line_errors():
        if len(arguments) != 1:
            raise UserError("give one file name: python -m bnood.lab.norm_picture docs/normalisation.png")
        print(write_norm_picture(Path(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
