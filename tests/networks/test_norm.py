"""Which values each norm lets share a mean, against NumPy, and what its parameters and modes do."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnood.networks.norm import norm_layer

SAMPLES, CHANNELS, GROUPS = 3, 8, 4


def values(units: bool = False) -> Tensor:
    """``[3, 8, 5, 5]`` or ``[3, 8]`` in float64, with a scale and an offset of its own for every sample and channel."""
    shape = (SAMPLES, CHANNELS, 1, 1)
    pixels = torch.randn(SAMPLES, CHANNELS, 5, 5) * (torch.rand(shape) + 1) + torch.randn(shape) * 5
    return (pixels[:, :, 0, 0] if units else pixels).double()


def layer(norm: str, units: bool = False) -> nn.Module:
    return norm_layer(norm, CHANNELS, GROUPS, units).double().train()  # type: ignore[arg-type]


@pytest.mark.parametrize(("norm", "axes"), [("bn", (0, 3, 4)), ("ln", (1, 2, 3, 4)), ("gn", (2, 3, 4))])
@pytest.mark.parametrize("units", [False, True])
def test_mean_and_variance_are_those_of_numpy_over_the_stated_axes(
    norm: str, axes: tuple[int, ...], units: bool
) -> None:
    x = values(units)
    grouped = x.numpy().reshape(SAMPLES, GROUPS, CHANNELS // GROUPS, *((1, 1) if units else (5, 5)))
    mean, var = grouped.mean(axis=axes, keepdims=True), grouped.var(axis=axes, keepdims=True)
    expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(layer(norm, units=units)(x).detach().numpy(), expected, atol=1e-9)
