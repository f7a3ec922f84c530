"""Statistics as values: reading, mixing, comparing, saving; every figure worked out by hand or by numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from refusal import files_up_to
from safetensors.torch import save_file
from torch import nn

from bnood.errors import UserError
from bnood.statistics import BatchNormStatistics, LayerStatistics, batchnorm_layers, read_statistics


def layer(mean: list[float], var: list[float], count: int = 1) -> LayerStatistics:
    return LayerStatistics(torch.tensor(mean, dtype=torch.float64), torch.tensor(var, dtype=torch.float64), count)


def random_statistics(seed: int) -> BatchNormStatistics:
    generator = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> torch.Tensor:
        return torch.rand(channels, generator=generator, dtype=torch.float64)

    # Neither alphabetical nor numerical order, so that a reader that sorts is caught.
    return BatchNormStatistics(
        {name: LayerStatistics(draw(c) - 0.5, draw(c), 10**12 + seed) for name, c in (("z.1", 3), ("a", 5), ("z.0", 1))}
    )


def trained_model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(6), nn.BatchNorm1d(6))
    model(torch.randn(8, 3, 6, 6))
    model(torch.randn(8, 3, 6, 6) + 1)
    return model


def test_models_without_statistics_to_read_are_refused() -> None:
    with pytest.raises(UserError, match="layer '1' is lazy"):
        batchnorm_layers(nn.Sequential(nn.Identity(), nn.LazyBatchNorm2d()))
    with pytest.raises(UserError, match="Sequential has no BatchNorm layer"):
        read_statistics(nn.Sequential(nn.GroupNorm(1, 3), nn.InstanceNorm2d(3, track_running_stats=True)))


def test_reading_gives_copies_of_the_buffers() -> None:
    model = trained_model()
    read = read_statistics(model)
    assert list(read) == ["1", "4"] and len(read) == 2 and read.passes == 0
    for name in read:
        module = model.get_submodule(name)
        np.testing.assert_array_equal(read[name].mean, module.running_mean.double().numpy())
        np.testing.assert_array_equal(read[name].var, module.running_var.double().numpy())
        assert read[name].count == 2
        assert read[name].mean.dtype == torch.float64
    before = read["1"].mean.clone()
    model(torch.randn(8, 3, 6, 6) + 9)
    assert torch.equal(read["1"].mean, before)
    mean = torch.zeros(2, dtype=torch.float64)  # no conversion copies it
    copied = BatchNormStatistics({"a": LayerStatistics(mean, torch.ones(2), 1)})["a"]
    mean.fill_(7)
    assert copied.mean.tolist() == [0.0, 0.0] and copied.var.dtype == torch.float64


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_interpolation_is_linear_in_means_and_variances(share: float) -> None:
    ours, theirs = random_statistics(1), random_statistics(2)
    between = ours.interpolate(theirs, share)
    assert list(between) == list(ours)
    for name in ours:
        for figure in ("mean", "var"):
            a, b = (np.asarray(getattr(s[name], figure)) for s in (ours, theirs))
            np.testing.assert_allclose(getattr(between[name], figure), (1 - share) * a + share * b, rtol=1e-13)
            if share in (0, 1):
                np.testing.assert_array_equal(getattr(between[name], figure), b if share else a)
        assert between[name].count == (ours if share < 0.5 else theirs)[name].count


def test_what_cannot_be_mixed() -> None:
    for share in (-0.1, 1.01, float("nan")):
        with pytest.raises(UserError, match="has to lie between 0 and 1"):
            random_statistics(1).interpolate(random_statistics(2), share)
    for prior, images in ((0, 0), (-1, 5), (5, -1)):
        with pytest.raises(UserError, match="non-negative and not both zero"):
            random_statistics(1).with_prior(random_statistics(2), prior, images)
    one, two = BatchNormStatistics({"a": layer([0], [1])}), BatchNormStatistics({"b": layer([0], [1])})
    wide = BatchNormStatistics({"a": layer([0, 0], [1, 1])})
    with pytest.raises(UserError, match="layer 'a' is in only one"):
        one.interpolate(two, 0.5)
    # One channel would otherwise be broadcast over two.
    with pytest.raises(UserError, match="layer 'a' has 1 or 2 channels"):
        one.interpolate(wide, 0.5)
    with pytest.raises(UserError, match="layer 'a' has 2 or 1 channels"):
        wide.distance(one)


@pytest.mark.parametrize(("prior", "images"), [(0, 5), (5, 0), (16, 48), (1.5, 0.5)])
def test_prior_follows_the_equation(prior: float, images: float) -> None:
    source, target = random_statistics(3), random_statistics(4)
    mixed = source.with_prior(target, prior, images)
    for name in source:
        for figure in ("mean", "var"):
            s, t = (np.asarray(getattr(of[name], figure)) for of in (source, target))
            expected = prior / (prior + images) * s + images / (prior + images) * t
            np.testing.assert_allclose(getattr(mixed[name], figure), expected, rtol=1e-13)


def test_distance_by_hand() -> None:
    """Shifts of 3 and 4 standard deviations: root mean square sqrt(12.5). Standard deviations times e and 1 / e: 1."""
    ours = BatchNormStatistics({"x": layer([0, 1], [1, 4]), "y": layer([2], [9])})
    theirs = BatchNormStatistics({"x": layer([3, 9], [np.e**2, 4 * np.e**-2]), "y": layer([2], [9])})
    distance = ours.distance(theirs)
    assert distance["x"] == pytest.approx((np.sqrt(12.5), 1.0), rel=1e-12)
    assert distance["y"] == (0.0, 0.0)
    assert theirs.distance(ours)["x"] == pytest.approx((np.sqrt((9 / np.e**2 + 16 * np.e**2) / 2), 1.0), rel=1e-12)


def test_distance_ignores_channels_that_are_constant_in_both_only() -> None:
    ours, theirs = BatchNormStatistics({"x": layer([0, 0], [0, 1])}), BatchNormStatistics({"x": layer([5, 2], [0, 1])})
    assert ours.distance(theirs)["x"] == pytest.approx((np.sqrt(2), 0.0))
    assert ours.distance(BatchNormStatistics({"x": layer([0, 0], [1, 1])}))["x"][1] > 100


def test_saving_and_loading_gives_the_same_bits_in_the_same_order(tmp_path: Path) -> None:
    saved = random_statistics(5)
    saved.save(tmp_path / "s.safetensors")
    loaded = BatchNormStatistics.load(str(tmp_path / "s.safetensors"))
    assert list(loaded) == ["z.1", "a", "z.0"]
    for name in saved:
        assert torch.equal(loaded[name].mean, saved[name].mean) and torch.equal(loaded[name].var, saved[name].var)
        assert loaded[name].mean.dtype == loaded[name].var.dtype == torch.float64
        assert loaded[name].count == saved[name].count == 10**12 + 5
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]
    strided = torch.arange(6, dtype=torch.float64)[::2]  # of a bare layer, whose name is empty
    BatchNormStatistics({"": LayerStatistics(strided, strided + 1, 3)}).save(tmp_path / "s")
    assert BatchNormStatistics.load(tmp_path / "s")[""].mean.tolist() == [0.0, 2.0, 4.0]
    BatchNormStatistics({}).save(tmp_path / "s")
    assert len(BatchNormStatistics.load(tmp_path / "s")) == 0


def test_a_full_disk_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    random_statistics(1).save(path)
    before = path.read_bytes()
    with files_up_to(100), pytest.raises(UserError, match="can't be written: File too large"):
        random_statistics(2).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_files_that_hold_no_statistics(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(UserError, match="no such file"):
        BatchNormStatistics.load(path)
    random_statistics(1).save(path)
    whole = path.read_bytes()
    save_file({"weight": torch.zeros(2)}, path)
    for damaged in (b"", b"not a safetensors file", whole[:-1], whole[: len(whole) // 2], path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="does not hold BatchNorm statistics") as caught:
            BatchNormStatistics.load(path)
        assert str(path) in str(caught.value)
