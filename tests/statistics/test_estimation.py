"""Moments and estimated statistics against numpy, in float64, over all values of each layer's input at once."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from bnood.errors import UserError
from bnood.statistics import LayerStatistics, estimate_statistics, read_statistics, use_statistics
from bnood.statistics.moments import PooledMoments, channel_moments

METHODS = ("one_pass", "sequential")


def numpy_moments(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance per channel of ``[N, C, ...]``, in float64, two passes."""
    values = x.double().numpy().swapaxes(0, 1).reshape(x.shape[1], -1)
    return values.mean(axis=1), values.var(axis=1)


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
    count, mean, deviations = channel_moments(torch.arange(rows, dtype=torch.float64).unsqueeze(1))
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
def test_any_cut_into_batches_gives_the_same_moments(sizes: list[int], offset: float, drift: float, seed: int) -> None:
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


def assert_moments(found: LayerStatistics, inputs: Tensor, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """That these are mean, biased variance and count of ``inputs [N, C, ...]``."""
    mean, var = numpy_moments(inputs)
    np.testing.assert_allclose(found.mean, mean, rtol=rtol, atol=atol)
    np.testing.assert_allclose(found.var, var, rtol=rtol, atol=atol)
    assert found.mean.dtype == found.var.dtype == torch.float64
    assert found.count == inputs.numel() // inputs.shape[1]


def sorted_classes(shape: tuple[int, ...] = (10, 3, 6, 6), classes: int = 4) -> list[Tensor]:
    """One batch per class, in order: the classes' means lie much further apart than the values within a class."""
    return [torch.randn(shape) + 10 * number for number in range(classes)]


@pytest.mark.parametrize(
    ("batches", "update_bn_is_wrong"),
    [
        (sorted_classes((50, 2)), lambda averaged, var: (averaged.running_var < 2).all() and (var > 100).all()),
        ([torch.randn(99, 2), torch.randn(3, 2) + 50], lambda averaged, var: (averaged.running_mean > 20).all()),
    ],
    ids=["sorted", "ragged"],
)
def test_sorted_and_ragged_batches_are_weighted_where_update_bn_is_wrong(
    batches: list[Tensor], update_bn_is_wrong: Callable
) -> None:
    assert_moments(estimate_statistics(nn.BatchNorm1d(2), batches)[""], torch.cat(batches), atol=1e-5)
    averaged = nn.BatchNorm1d(2)
    update_bn(batches, averaged)
    assert update_bn_is_wrong(averaged, numpy_moments(torch.cat(batches))[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_large_mean_does_not_swallow_the_variance(method: str, memory_format: torch.memory_format) -> None:
    class TwoLayers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    images = (torch.randn(40, 4, 12, 12) + 5000).to(memory_format=memory_format)
    found = estimate_statistics(TwoLayers(), list(images.split(16)), method=method)
    assert_moments(found["first"], images)
    # The second layer's input has mean 0 and variance 1 only if the first used the right statistics.
    np.testing.assert_allclose(found["second"].mean, 0, atol=1e-3)
    np.testing.assert_allclose(found["second"].var, 1, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 6, 13, 40], ids=["single", "last of 4", "last of 1", "whole"])
def test_the_cut_into_batches_does_not_matter(method: str, size: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    images = torch.cat(sorted_classes())
    found = estimate_statistics(model, list(images.split(size)), method=method)
    assert list(found) == ["1"]
    assert_moments(found["1"], model[0](images).detach(), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d, (9, 3)),
        (nn.BatchNorm1d, (9, 3, 5)),
        (nn.BatchNorm2d, (9, 3, 4, 5)),
        (nn.BatchNorm3d, (9, 3, 2, 3, 4)),
        (nn.SyncBatchNorm, (9, 3, 4, 5)),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_layer(layer: type[nn.Module], shape: tuple[int, ...], options: dict, method: str) -> None:
    model = nn.Sequential(layer(3, **options), nn.Tanh(), layer(3, **options))
    images = torch.randn(shape) * 4 + 1
    found = estimate_statistics(model, [images], method=method)
    mean, var = (torch.as_tensor(figure).view(1, 3, *[1] * (len(shape) - 2)) for figure in numpy_moments(images))
    assert_moments(found["0"], images)
    assert_moments(found["2"], torch.tanh((images.double() - mean) / (var + 1e-5).sqrt()))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"affine": False, "track_running_stats": False}])
def test_models_of_other_types(kind: torch.dtype, options: dict) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options), nn.ReLU(), nn.Conv2d(4, 2, 1)).to(kind)
    images = torch.randn(20, 3, 6, 6).to(kind)
    for method in METHODS:
        found = estimate_statistics(model, list(images.split(8)), method=method)
        assert_moments(found["1"], model[0](images).detach(), rtol=2e-5, atol=2e-5)
        with use_statistics(model, found), torch.no_grad():
            assert model(images).dtype == kind


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_called_twice_pools_both_inputs(method: str) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = self.alias = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + self.alias(2 * x.mul_(0.5) + 7)  # the model writes into its input

    x = torch.randn(30, 3)
    found = estimate_statistics(Shared(), list(x.split(7)), method=method)
    assert list(found) == ["norm"]
    assert_moments(found["norm"], torch.cat([x, x + 7]))


def test_what_the_models_own_hooks_do_to_the_input_counts() -> None:
    model = nn.BatchNorm1d(3)
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 3,))
    x = torch.randn(30, 3)
    assert_moments(estimate_statistics(model, [x])[""], 3 * x)


def three_layers() -> nn.Sequential:
    model = nn.Sequential(
        *(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU()),
        *(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU()),
        *(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)),
    )
    for index in (1, 4, 7):
        nn.init.normal_(model[index].weight)
        nn.init.normal_(model[index].bias)
    return model.double()


def drifting_batches() -> list[Tensor]:
    return [torch.randn(size, 4).double() * (1 + size / 20) + size / 10 for size in (12, 40, 25, 3)]


def numpy_norm(layer: nn.Module, x: np.ndarray, of: np.ndarray) -> np.ndarray:
    """``x [N, C]`` normalised with the moments of ``of``, then scaled and shifted."""
    normalised = (x - of.mean(axis=0)) / np.sqrt(of.var(axis=0) + layer.eps)
    return normalised * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def numpy_inputs(model: nn.Sequential, x: np.ndarray) -> list[np.ndarray]:
    """The inputs of the three layers when each normalises with the moments of all of ``x [N, 4]``."""
    inputs = []
    for index in (0, 3, 6):
        linear = model[index]
        x = x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
        inputs.append(x)
        x = np.maximum(numpy_norm(model[index + 1], x, x), 0)
    return inputs


def test_one_pass_pools_what_each_batch_makes_of_itself() -> None:
    model, batches = three_layers(), drifting_batches()
    found = estimate_statistics(model, batches, method="one_pass")
    assert found.passes == 1 and found.converged
    per_batch = [numpy_inputs(model, batch.numpy()) for batch in batches]
    for position, name in enumerate(("1", "4", "7")):
        pooled = np.concatenate([inputs[position] for inputs in per_batch])
        assert_moments(found[name], torch.from_numpy(pooled), rtol=1e-9, atol=1e-9)


def test_sequential_statistics_belong_to_the_network_that_uses_them() -> None:
    model, batches = three_layers(), drifting_batches()
    found = estimate_statistics(model, batches, method="sequential", tolerance=1e-9)
    everything = numpy_inputs(model, torch.cat(batches).numpy())
    for position, name in enumerate(("1", "4", "7")):
        assert_moments(found[name], torch.from_numpy(everything[position]), rtol=1e-9, atol=1e-9)
    # Each pass makes one more layer of the chain exact; the fourth finds nothing to move.
    assert (found.passes, found.converged) == (4, True)
    # One pass agrees in the first layer only, or if there is but one batch.
    apart = found.distance(estimate_statistics(model, batches, method="one_pass"))
    assert max(apart["1"]) < 1e-9 and max(apart["4"]) > 0.05 and max(apart["7"]) > 0.05
    assert max(max(pair) for pair in found.distance(estimate_statistics(model, [torch.cat(batches)])).values()) < 1e-9


def test_where_sequential_begins_and_ends() -> None:
    model, batches = three_layers(), drifting_batches()
    settled = estimate_statistics(model, batches, method="sequential", tolerance=1e-9)
    again = estimate_statistics(model, batches, method="sequential", tolerance=1e-9, start=settled)
    assert (again.passes, again.converged) == (1, True)
    elsewhere = estimate_statistics(
        model, batches, method="sequential", tolerance=1e-9, start=read_statistics(three_layers())
    )
    assert max(max(pair) for pair in settled.distance(elsewhere).values()) < 1e-9
    with pytest.warns(UserWarning, match="still moved by more than 1e-09 after 2 passes"):
        stopped = estimate_statistics(model, batches, method="sequential", tolerance=1e-9, max_passes=2)
    assert (stopped.passes, stopped.converged) == (2, False)
    assert estimate_statistics(model, batches, method="sequential", tolerance=10).passes == 2


def test_all_forms_of_batches() -> None:
    model, x = nn.BatchNorm1d(3), torch.randn(20, 3)

    def generate() -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((part, torch.zeros(len(part))) for part in x.split(6))

    loader = DataLoader(TensorDataset(x, torch.zeros(20)), batch_size=6)
    for batches in (list(x.split(6)), [[x, 0]], [(x,)], loader, generate, lambda: iter([x]), [x[:0], x]):
        for method in METHODS:
            assert_moments(estimate_statistics(model, batches, method=method)[""], x)
    assert_moments(estimate_statistics(model, generate())[""], x)
    assert_moments(estimate_statistics(model, [x[:0], x[:9], x[9:]], call=lambda bare, some: bare(some))[""], x)
    with pytest.raises(UserError, match="not an iterator"):
        estimate_statistics(model, generate(), method="sequential")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(method: str, bad: float) -> None:
    x = torch.randn(20, 3)
    x[7, 1] = bad
    with pytest.raises(UserError, match="layer '1' received NaN or infinite"):
        estimate_statistics(nn.Sequential(nn.Identity(), nn.BatchNorm1d(3)), list(x.split(5)), method=method)


def test_estimating_needs_no_gradients_and_dropout_is_off() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    x = torch.randn(50, 3)
    with torch.inference_mode():
        quiet = estimate_statistics(model, [x])
    found = estimate_statistics(model, [x])
    assert_moments(found["2"], model[0](x).detach())
    assert torch.equal(found["2"].mean, quiet["2"].mean) and not found["2"].mean.requires_grad


def test_compiled_models_are_measured_and_stop_being_measured() -> None:
    """A graph from before the estimate knows no hooks, and a graph with hooks in it would go on writing buffers."""
    plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    compiled = torch.compile(plain, backend="eager")
    x = torch.randn(30, 3) + 2
    with torch.no_grad():
        compiled(x)
    buffers = [buffer.clone() for buffer in plain.buffers()]
    for _ in range(2):
        assert_moments(estimate_statistics(compiled, list(x.split(11)))["1"], plain[0](x).detach())
        with torch.no_grad():
            compiled(x)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x + 5), plain(x + 5))
    assert all(torch.equal(now, before) for now, before in zip(plain.buffers(), buffers, strict=True))
