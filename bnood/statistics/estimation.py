"""Estimating BatchNorm statistics on data, in one pass or until they reproduce themselves."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset, IterableDataset

from bnood.errors import UserError
from bnood.statistics.contexts import tracks
from bnood.statistics.layers import batchnorm_layers, fixed_layers, listed, unwrapped
from bnood.statistics.moments import PooledMoments
from bnood.statistics.use import Mode, before_layers, put, use_statistics
from bnood.statistics.values import BatchNormStatistics, LayerStatistics

Method = Literal["one_pass", "sequential"]
Call = Callable[[nn.Module, Any], Any]  # hands one batch to the bare model


def estimate_statistics(
    model: nn.Module, batches: Iterable[Any] | Callable[[], Iterable[Any]], *, method: Method = "one_pass",
    start: BatchNormStatistics | None = None, max_passes: int | None = None, tolerance: float = 1e-4,
    call: Call | None = None,
) -> BatchNormStatistics:  # fmt: skip
    """The statistics of all BatchNorm layers on other data; the model is left untouched.

    They are the mean and the biased variance of a layer's input, per channel, pooled in float64 over all elements of
    all images: the cut into batches matters only as far as the layer's input depends on it. ``one_pass`` normalises
    every layer with its current batch's statistics while measuring. ``sequential`` repeats the measurement with the
    statistics found so far until they reproduce themselves; each pass makes at least one more layer exact. Layers that
    evaluation mode does not run are left out; a layer that runs several times per pass pools its inputs.

    Args:
        model: the network; called without gradients, in evaluation mode but for its BatchNorm, and without wrappers.
        batches: tensors ``x [N, ...]`` or tuples that begin with ``x``; ragged and sorted batches do no harm.
            ``sequential`` needs a list, a DataLoader or a function that returns an iterator.
        method: ``one_pass`` or ``sequential``.
        start: where ``sequential`` begins; by default at what one pass finds.
        max_passes: of ``sequential``, the first included; by default two more than there are layers.
        tolerance: ``sequential`` ends when no layer moves further than this (:meth:`~BatchNormStatistics.distance`).
        call: how one batch is handed to the model, ``call(bare_model, batch)``, for batches of other kinds. By default
            ``model(x)``, with ``x`` moved to the model's device.

    Raises:
        UserError: if the model has or runs no BatchNorm layer, if there are no batches, they need ``call``, or an
            iterator would have to be read twice, if a layer saw NaN or infinite values or, in one pass, a batch with a
            single value per channel.

    Warns:
        UserWarning: naming layers that were not run and those that keep fixed statistics (FrozenBatchNorm2d), and if a
            ``sequential`` estimate does not settle in time (``converged=False``).
    """
    layers = batchnorm_layers(model)
    _check_batches(batches)
    if method not in ("one_pass", "sequential"):
        raise UserError(f"unknown method {method!r}: choose one_pass or sequential")
    if method == "one_pass" and not (start is None and max_passes is None):
        raise UserError("start and max_passes belong to method='sequential', not to one pass")
    if not isinstance(start, BatchNormStatistics | None):
        raise UserError(f"start is a {type(start).__name__}; expected BatchNormStatistics")
    if max_passes is not None and max_passes < 1:
        raise UserError(f"max_passes is {max_passes}: an estimate takes one pass at least")
    if not (isinstance(tolerance, int | float) and tolerance >= 0):
        raise UserError(f"tolerance is {tolerance!r}: give 0 or more")
    if method == "sequential" and isinstance(batches, Iterator):
        raise UserError("sequential estimation needs several passes: give a list or a function, not an iterator")
    once: Callable[[], Iterable[Any]] = batches if callable(batches) else lambda: batches
    max_passes = len(layers) + 2 if max_passes is None else max_passes
    current = _measure(model, once(), "batch" if start is None else _complete(layers, start), call, method)
    _warn_of_others(model, layers, current)
    if method == "one_pass":
        return BatchNormStatistics(current, passes=1)
    passes, moved = 1, float("nan") if start is None else _movement(start, current)
    while not moved <= tolerance and passes < max_passes:
        found = _measure(model, once(), _complete(layers, current), call)
        passes, moved, current = passes + 1, _movement(current, found), found
    converged = moved <= tolerance
    if not converged:
        still = f"the sequential statistics still moved by more than {tolerance} after {passes} passes; used anyway"
        warnings.warn(still, stacklevel=2)
    return BatchNormStatistics(current, passes=passes, converged=converged)


def executed_layers(model: nn.Module, batch: Any, call: Call | None = None) -> list[str]:
    """The names of the BatchNorm layers that evaluation mode runs on a batch, in the order of their first run."""
    layers = batchnorm_layers(model)
    names: dict[str, None] = {}

    def note(name: str, layer: _BatchNorm, count: int, mean: Tensor, deviations: Tensor) -> None:
        names[name] = None

    with use_statistics(model, _complete(layers, {})), before_layers(layers, note):
        _run(unwrapped(model), batch, 1, call)
    return list(names)


def _measure(
    model: nn.Module,
    batches: Iterable[Any],
    upstream: BatchNormStatistics | Mode,
    call: Call | None,
    method: Method = "one_pass",
) -> dict[str, LayerStatistics]:
    """One pass: pooled statistics of the input of each layer that ran, behind layers that use ``upstream``."""
    layers, bare = batchnorm_layers(model), unwrapped(model)
    moments: dict[str, PooledMoments] = {}
    number, seen = 0, False

    def single_value(name: str, where: str) -> UserError:
        hint = "give two images or more per batch, or leave out the last one"
        return UserError(f"layer {name!r} received a single value per channel{where}, which has no variance: {hint}")

    def measure(name: str, layer: _BatchNorm, count: int, mean: Tensor, deviations: Tensor) -> None:
        if count == 1 and upstream == "batch" and method == "one_pass":  # sequential forgets where it started
            raise single_value(name, f" in batch {number}")
        moments.setdefault(name, PooledMoments()).merge(count, mean, deviations)
        if upstream == "batch":
            # Its own computation would lose the variance to cancellation in channels_last where means are large.
            put(name, layer, bare, mean, deviations / count)

    used = _complete(layers, {}) if upstream == "batch" else upstream
    with use_statistics(model, used), before_layers(layers, measure):
        for number, batch in enumerate(batches, start=1):
            seen = _run(bare, batch, number, call) or seen
    if not seen:
        raise UserError("no batches were given, so there is nothing to estimate BatchNorm statistics from")
    if not moments:
        raise UserError(f"the forward pass ran none of the model's BatchNorm layers ({listed(list(layers))})")
    for name, pooled in moments.items():
        if pooled.count == 1:
            raise single_value(name, "")
        if not torch.isfinite(pooled.deviations).all():
            raise UserError(f"layer {name!r} received NaN or infinite values: no statistics can be estimated from them")
    in_order = ((name, moments[name]) for name in layers if name in moments)
    return {name: LayerStatistics(p.mean, p.deviations / p.count, p.count) for name, p in in_order}


def _run(bare: nn.Module, batch: Any, number: int, call: Call | None) -> bool:
    """Hand a batch to the model; False if it is empty."""
    if call is not None:
        call(bare, batch)
        return True
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor):
        kind = f"{'is' if x is batch else 'begins with'} a {type(x).__name__}"
        raise UserError(f"batch {number} {kind}, not a tensor: convert it, or give call= to hand it to the model")
    if x.ndim < 2:
        hint = "give a list of batches, each a tensor of images or a tuple that begins with one"
        raise UserError(f"batch {number} has the shape {list(x.shape)}, not [N, ...]: {hint}")
    if not len(x):
        return False
    tensors = chain(bare.parameters(), bare.buffers())
    bare(x.to(next((tensor.device for tensor in tensors), x.device), copy=True))  # some models write into x
    return True


def _check_batches(batches: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
    if isinstance(batches, Tensor):
        raise UserError("the batches are one tensor, which would be taken image by image: give [images], or a split")
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise UserError("the batches are a Dataset, which gives single images: put a DataLoader around it")


def _complete(layers: dict[str, _BatchNorm], statistics: Mapping[str, LayerStatistics]) -> BatchNormStatistics:
    """These statistics, and something to normalise with for layers that have none: such as did not run."""
    neutral = {
        name: LayerStatistics(torch.zeros(layer.num_features), torch.ones(layer.num_features), 0)
        for name, layer in layers.items()
        if not tracks(layer)
    }
    return BatchNormStatistics(neutral | dict(statistics))


def _movement(before: Mapping[str, LayerStatistics], found: Mapping[str, LayerStatistics]) -> float:
    """The largest distance over the layers that ran, infinite if one was unknown before."""
    if not found.keys() <= before.keys():
        return float("inf")
    known = BatchNormStatistics({name: before[name] for name in found})
    return max(max(pair) for pair in known.distance(BatchNormStatistics(found)).values())


def _warn_of_others(model: nn.Module, layers: dict[str, _BatchNorm], found: dict[str, LayerStatistics]) -> None:
    missed, fixed = [name for name in layers if name not in found], fixed_layers(model)
    if missed:
        warnings.warn(f"evaluation did not run {listed(missed)}: the statistics leave that out", stacklevel=3)
    if fixed:
        warnings.warn(f"{fixed}, which no estimate replaces", stacklevel=3)
