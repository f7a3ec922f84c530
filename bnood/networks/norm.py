"""Normalisation layers by name, so that one network serves every norm.

All normalise a feature map ``[N, C, H, W]`` to zero mean and unit variance, then scale and shift each channel. They
differ in which values share a mean (Wu & He 2018, "Group Normalization", figure 2):

- ``bn`` (Ioffe & Szegedy 2015): one channel of all samples, over (N, H, W). The output for an image depends on the
  other images of its batch. For single images, moving averages from training replace the batch's statistics: the
  averages that this project is about.
- ``ln`` (Ba et al. 2016): all channels of one sample, over (C, H, W), as Wu & He define it for feature maps: GroupNorm
  with one group. ConvNeXt's LayerNorm, over C at each pixel, is another.
- ``gn`` (Wu & He 2018): one group of channels of one sample, over (C / groups, H, W).
- ``none``: the identity.

For plain units ``[N, C]`` the pixels are missing: ``bn`` normalises over N, ``ln`` over C, ``gn`` over C / groups.
``ln`` and ``gn`` keep no statistics, so they act the same in training and in evaluation mode.
"""

from typing import Literal, get_args

from torch import nn

Norm = Literal["bn", "ln", "gn", "none"]


def norm_layer(norm: Norm, channels: int, groups: int = 8, units: bool = False) -> nn.Module:
    """The layer for feature maps ``[N, channels, H, W]``, or for ``units`` ``[N, channels]``.

    ``groups`` counts only for ``gn``, where it has to divide ``channels`` (``ValueError`` otherwise).
    """
    if norm not in get_args(Norm):
        raise ValueError(f"unknown norm {norm!r}: choose one of {', '.join(get_args(Norm))}")
    if norm == "none":
        return nn.Identity()
    if norm == "bn":
        return nn.BatchNorm1d(channels) if units else nn.BatchNorm2d(channels)
    if norm == "ln":
        return nn.LayerNorm(channels) if units else nn.GroupNorm(1, channels)
    if groups < 1 or channels % groups:
        raise ValueError(
            f"norm 'gn' needs a number of groups that divides {channels} channels, not {groups}: change model.groups"
        )
    return nn.GroupNorm(groups, channels)
