"""What the project's norms average over, against their definitions."""

from pathlib import Path

import numpy as np
import pytest

from bnood.lab.norm_picture import CHANNELS, SAMPLES, SIDE, share_a_mean, write_norm_picture
from bnood.networks.norm import Norm


@pytest.mark.parametrize(
    ("norm", "groups", "samples", "channels"),
    [
        ("bn", 1, slice(None), slice(CHANNELS - 1, None)),
        ("ln", 1, slice(0, 1), slice(None)),
        ("gn", 2, slice(0, 1), slice(CHANNELS // 2, None)),
        ("gn", CHANNELS, slice(0, 1), slice(CHANNELS - 1, None)),
    ],
)
def test_norms_share_a_mean_over_their_own_axes(norm: Norm, groups: int, samples: slice, channels: slice) -> None:
    wanted = np.zeros((SAMPLES, CHANNELS, SIDE**2), bool)
    wanted[samples, channels] = True
    np.testing.assert_array_equal(share_a_mean(norm, groups), wanted)


def test_picture_is_a_png(tmp_path: Path) -> None:
    assert write_norm_picture(tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")
