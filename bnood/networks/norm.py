"""Normalisation layers by name, so that one network serves every norm.

All four normalise a feature map ``[N, C, H, W]`` to zero mean and unit variance and then scale and
shift each channel with learned parameters; they differ only in *which values share a mean*. Picture
the block of Wu & He (2018, "Group Normalization", figure 2): the samples N along one edge, the channels
C along another, the pixels H x W folded into the third.

- ``bn`` (Ioffe & Szegedy 2015) cuts the block into slices of one channel through *all samples*:
  statistics over (N, H, W), one pair per channel. An image's output therefore depends on the images
  beside it; for use on single images, moving averages from training replace the batch's statistics.
  Those averages are what this project is about.
- ``ln`` (Ba et al. 2016) cuts slices of one sample through *all channels and pixels*: statistics over
  (C, H, W), one pair per sample. This is the meaning Wu & He give it for feature maps (GroupNorm with
  one group, a scale and shift per channel). It is not ConvNeXt's variant, which normalises over C at
  each pixel separately.
- ``gn`` (Wu & He 2018) lies between: the channels of one sample are dealt, in order, into groups, and
  each group is normalised on its own: statistics over (C / groups, H, W), one pair per sample and group.
  One group is ``ln``; as many groups as channels is InstanceNorm, one mean per sample and channel, which
  throws a channel's overall strength away. In between, channels that answer to similar things (edges
  of several orientations, say) keep their strengths relative to each other but not to the other groups.
- ``none`` leaves the feature map as it is.

For layers of plain units, ``[N, C]``, the same cuts lack the pixels (:func:`unit_norm_layer`): ``bn`` normalises each
unit over the N samples, ``ln`` the C units of one sample, ``gn`` the C / groups units of one group of one sample. There
InstanceNorm would be left with a single value, and has no meaning.

``ln`` and ``gn`` never look at another image and keep no statistics, so they act the same in training and
in evaluation mode.
"""

from typing import Literal, get_args

from torch import nn

Norm = Literal["bn", "ln", "gn", "none"]


def norm_layer(norm: Norm, channels: int, groups: int = 8) -> nn.Module:
    """The normalisation layer ``norm`` for feature maps ``[N, channels, H, W]``; see the module's text.

    ``groups`` counts only for ``gn``, where it has to divide ``channels`` (``ValueError`` otherwise).
    """
    if norm == "bn":
        return nn.BatchNorm2d(channels)
    if norm == "ln":
        return nn.GroupNorm(1, channels)
    if norm == "gn":
        return _group_norm(groups, channels)
    return _no_norm(norm)


def unit_norm_layer(norm: Norm, units: int, groups: int = 8) -> nn.Module:
    """The normalisation layer ``norm`` for ``[N, units]``: one scale and one shift per unit, as for channels.

    ``groups`` counts only for ``gn``, where it has to divide ``units`` (``ValueError`` otherwise).
    """
    if norm == "bn":
        return nn.BatchNorm1d(units)
    if norm == "ln":
        return nn.LayerNorm(units)
    if norm == "gn":
        return _group_norm(groups, units)
    return _no_norm(norm)


def _group_norm(groups: int, channels: int) -> nn.Module:
    if groups < 1 or channels % groups:
        raise ValueError(
            f"norm 'gn' needs a number of groups that divides {channels} channels, not {groups}: change model.groups"
        )
    return nn.GroupNorm(groups, channels)


def _no_norm(norm: Norm) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"unknown norm {norm!r}: choose one of {', '.join(get_args(Norm))}")
