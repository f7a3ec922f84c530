"""Which values each norm lets share a mean, against NumPy, and what its parameters and modes do."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnood.networks.norm import norm_layer

SAMPLES, CHANNELS, GROUPS = 3, 8, 4


def feature_map() -> Tensor:
    """``[3, 8, 5, 5]`` in float64, with a scale and an offset of its own for every sample and channel."""
    shape = (SAMPLES, CHANNELS, 1, 1)
    return torch.randn(SAMPLES, CHANNELS, 5, 5).double() * (torch.rand(shape) + 1).double() + torch.randn(shape) * 5


def layer(norm: str, groups: int = GROUPS) -> nn.Module:
    return norm_layer(norm, CHANNELS, groups).double().train()  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["bn", "ln", "gn"])
def test_mean_and_variance_are_those_of_numpy_over_the_stated_axes(norm: str) -> None:
    x = feature_map()
    values = x.numpy().reshape(SAMPLES, GROUPS, CHANNELS // GROUPS, 5, 5)
    if norm == "bn":
        axes: tuple[int, ...] = (0, 3, 4)
    else:
        axes = (1, 2, 3, 4) if norm == "ln" else (2, 3, 4)
    mean, var = values.mean(axis=axes, keepdims=True), values.var(axis=axes, keepdims=True)
    expected = ((values - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(layer(norm)(x).detach().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("norm", ["bn", "ln", "gn"])
def test_scale_and_shift_are_learned_per_channel(norm: str) -> None:
    built = layer(norm)
    assert {name: tuple(p.shape) for name, p in built.named_parameters()} == {"weight": (8,), "bias": (8,)}
    x = feature_map()
    plain = built(x)
    scale, shift = torch.randn(2, 8).double()
    built.weight.data, built.bias.data = scale, shift
    torch.testing.assert_close(built(x), plain * scale.view(1, 8, 1, 1) + shift.view(1, 8, 1, 1))


def test_one_group_is_ln_and_as_many_as_channels_is_instance_norm() -> None:
    x = feature_map()
    torch.testing.assert_close(layer("gn", 1)(x), layer("ln")(x))
    torch.testing.assert_close(layer("ln")(x), nn.functional.layer_norm(x, x.shape[1:]))
    torch.testing.assert_close(layer("gn", CHANNELS)(x), nn.InstanceNorm2d(CHANNELS)(x))
    assert not torch.allclose(layer("gn", 2)(x), layer("ln")(x), atol=0.1)


@pytest.mark.parametrize("norm", ["ln", "gn", "none"])
def test_modes_are_the_same_and_no_statistics_are_kept(norm: str) -> None:
    x, built = feature_map(), layer(norm)
    in_training = built.train()(x)
    assert torch.equal(built.eval()(x), in_training)
    assert torch.equal(built(x[:1]), in_training[:1])
    assert not list(built.buffers())


def test_none_is_the_identity_and_bn_differs_between_modes() -> None:
    x = feature_map()
    assert torch.equal(layer("none")(x), x) and not list(layer("none").parameters())
    bn = layer("bn")
    assert not torch.allclose(bn(x), bn.eval()(x), atol=0.1)


@pytest.mark.parametrize("groups", [3, 16, 0, -2])
def test_groups_that_do_not_divide_the_channels(groups: int) -> None:
    with pytest.raises(ValueError, match=f"divides 8 channels, not {groups}"):
        norm_layer("gn", 8, groups)
    for norm in ("bn", "ln", "none"):
        norm_layer(norm, 8, groups)  # type: ignore[arg-type]


def test_unknown_norm() -> None:
    with pytest.raises(ValueError, match="unknown norm 'batch': choose one of bn, ln, gn, none"):
        norm_layer("batch", 8)  # type: ignore[arg-type]
