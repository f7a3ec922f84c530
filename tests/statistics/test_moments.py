"""Pooled moments against numpy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_moments import numpy_moments

from bnood.statistics.moments import PooledMoments, channel_moments


@pytest.mark.parametrize("shape", [(7, 3), (1, 5), (4, 3, 9), (6, 2, 5, 7), (2, 3, 4, 5, 6), (1, 2, 40, 40)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_moments_of_every_shape_and_type(shape: tuple[int, ...], kind: torch.dtype) -> None:
    x = (torch.randn(shape) * 3 + 2).to(kind)
    count, mean, deviations = channel_moments(x)
    expected_mean, expected_var = numpy_moments(x)
    assert count == x.numel() // shape[1]
    assert mean.dtype == deviations.dtype == torch.float64
    np.testing.assert_allclose(mean, expected_mean, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(deviations / count, expected_var, rtol=5e-6, atol=1e-9)


@pytest.mark.parametrize("rows", [1023, 1024, 1025, 3072, 140_001])
def test_no_row_is_lost_or_counted_twice_at_block_limits(rows: int) -> None:
    x = torch.arange(rows, dtype=torch.float64).unsqueeze(1)
    count, mean, deviations = channel_moments(x)
    assert count == rows
    assert mean.item() == pytest.approx((rows - 1) / 2, rel=1e-12)
    assert deviations.item() == pytest.approx(rows * (rows**2 - 1) / 12, rel=1e-12)  # of 0, 1, ..., rows - 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_small_variance_survives_a_large_mean_in_float32(memory_format: torch.memory_format) -> None:
    x = (torch.randn(50, 4, 16, 16) + 5000).to(memory_format=memory_format)
    count, mean, deviations = channel_moments(x)
    expected_mean, expected_var = numpy_moments(x)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-9)
    np.testing.assert_allclose(deviations / count, expected_var, rtol=1e-5)


def test_constant_channels_have_no_deviation_and_the_input_is_left_alone() -> None:
    x = torch.full((9, 2, 3, 3), 0.1)
    _, mean, deviations = channel_moments(x)
    np.testing.assert_allclose(mean, 0.1, rtol=1e-7)
    assert (deviations >= 0).all() and (deviations < 1e-12).all()
    assert torch.equal(x, torch.full((9, 2, 3, 3), 0.1))


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    offset=st.floats(-1e4, 1e4),
    drift=st.floats(-100, 100),
    seed=st.integers(0, 2**20),
)
def test_any_split_into_batches_gives_the_same_moments(
    sizes: list[int], offset: float, drift: float, seed: int
) -> None:
    """``drift`` moves the mean from batch to batch, as in data sorted by class."""
    generator = torch.Generator().manual_seed(seed)
    batches = [
        torch.randn(size, 3, 2, generator=generator, dtype=torch.float64) + offset + drift * number
        for number, size in enumerate(sizes)
    ]
    pooled = PooledMoments()
    for batch in batches:
        pooled.merge(*channel_moments(batch))
    expected_mean, expected_var = numpy_moments(torch.cat(batches))
    assert pooled.count == 2 * sum(sizes)
    np.testing.assert_allclose(pooled.mean, expected_mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pooled.deviations / pooled.count, expected_var, rtol=1e-6, atol=1e-9)
