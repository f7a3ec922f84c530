"""Normalisation layers by name; they differ in which values share a mean (docs/normalisation.md)."""

from typing import Literal

from torch import nn

from bnood.errors import UserError

Norm = Literal["bn", "ln", "gn", "none"]


def norm_layer(norm: Norm, channels: int, groups: int = 8, units: bool = False) -> nn.Module:
    """The layer for feature maps ``[N, channels, H, W]``, or for ``units`` ``[N, channels]``.

    - ``bn``: a mean for each channel, over (N, H, W); in evaluation the moving averages from training replace it.
    - ``ln``: a mean for each image, over (C, H, W), as Wu & He define it; ConvNeXt's, over C at each pixel, is another.
    - ``gn``: a mean for each of the image's ``groups``, which divide the channels, over (C / groups, H, W).
    """
    if norm == "none":
        return nn.Identity()
    if norm == "bn":
        return nn.BatchNorm1d(channels) if units else nn.BatchNorm2d(channels)
    if norm == "ln":
        return nn.LayerNorm(channels) if units else nn.GroupNorm(1, channels)
    if groups < 1 or channels % groups:
        raise UserError(f"gn needs groups of a number that divides {channels} channels: model.groups is {groups}")
    return nn.GroupNorm(groups, channels)
