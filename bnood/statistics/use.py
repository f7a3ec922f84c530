"""BatchNorm statistics: read them, estimate them on other data, use them for a while, interpolate, save.

Works on any ``torch.nn.Module`` that holds BatchNorm1d/2d/3d or SyncBatchNorm layers (or subclasses of them, such as
timm's BatchNormAct2d), affine or not, with or without running statistics::

    source = read_statistics(model)
    target = estimate_statistics(model, batches)
    with use_statistics(model, target):  # or "running", or "batch"
        logits = model(x)

**What is estimated.** A BatchNorm layer turns each channel's values x into (x - mean) / sqrt(var + eps). Given a set
of images, the statistics of a layer are the mean and the biased variance of its input, per channel, pooled over
*all* elements of *all* images (N H W of them). Batches are merged by Chan et al.'s (1979) update: with counts a and
b, means m and sums of squared deviations S, ::

    delta = m_b - m_a
    m     = m_a + delta * b / (a + b)
    S     = S_a + S_b + delta**2 * a * b / (a + b)

in float64, so the result depends neither on how the images were cut into batches nor on their order as far as the
layer's input does not. (``torch.optim.swa_utils.update_bn`` averages per-batch variances instead, with equal weights;
on batches sorted by class it misses the variance between the classes altogether.)

**Which input.** The input of a layer depends on how the layers before it normalise. ``one_pass`` normalises every layer
with its current batch's statistics while measuring, as training does; the statistics it finds belong to a network that
nobody will use, since afterwards the same statistics serve all images. ``sequential`` repeats the measurement with all
layers using the statistics found so far, until they reproduce themselves: then they are the statistics of the very
network that uses them. The layers nearest the input are exact after one pass, those behind them after two, and so on,
so a feed-forward network of L layers is settled after L passes at most. It may well take most of them: a change in the
first layers grows on its way through the network before it dies out, so a small step is no sign of being close. The
one-pass estimate costs a single pass and is usually near: :meth:`BatchNormStatistics.distance` says how near.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from bnood.errors import UserError
from bnood.statistics.moments import PooledMoments, channel_moments
from bnood.statistics.values import BatchNormStatistics, LayerStatistics

Method = Literal["one_pass", "sequential"]
Mode = Literal["running", "batch"]
Buffers = dict[str, Tensor | None]
# From a layer's name and its input's statistics to those it shall normalise with.
Decide = Callable[[str, LayerStatistics], LayerStatistics | None]
# The own buffers of the layers that are in use_statistics: what "running" means there, however deep contexts nest.
_SET_ASIDE: WeakKeyDictionary[nn.Module, Buffers] = WeakKeyDictionary()


def batchnorm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers of a model by name, in the order of ``named_modules``.

    Raises:
        UserError: if there are none, or if one is lazy and has not seen its first batch.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no BatchNorm layer, so it keeps no statistics to read, estimate or replace"
        )
    for name, layer in layers.items():
        if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
            raise UserError(f"layer {name!r} is lazy and has no channels yet: run one batch through the model first")
    return layers


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer of the model keeps or computes batch statistics."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def read_statistics(model: nn.Module) -> BatchNormStatistics:
    """The running statistics of all BatchNorm layers, copied; within :func:`use_statistics` too the model's own.

    Raises:
        UserError: if the model has no BatchNorm layer, or one that was built with ``track_running_stats=False``.
    """
    read = {}
    for name, layer in batchnorm_layers(model).items():
        mean, var = _own_buffers(layer).values()
        if mean is None or var is None:
            raise UserError(f"layer {name!r} keeps no running statistics (track_running_stats=False)")
        seen = 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)
        read[name] = LayerStatistics(_to_float64(mean), _to_float64(var), seen)
    return BatchNormStatistics(read)


@contextmanager
def use_statistics(model: nn.Module, statistics: BatchNormStatistics | Mode) -> Iterator[nn.Module]:
    """Let every BatchNorm layer normalise with the given statistics; everything else is in evaluation mode.

    On leaving, also by an error, buffers, training flags, momentum and hooks are exactly what they were: the model's
    own buffers are set aside, never written. Contexts nest; the innermost counts, and "running" is the model's own.

    Args:
        model: the network; compiled or wrapped ones too.
        statistics: ``"running"`` (the model's own moving averages), ``"batch"`` (the current batch's mean and biased
            variance, without touching the averages) or statistics that were read, estimated or loaded. These may
            cover some of the layers only; the others use their running statistics.

    Raises:
        UserError: if the model has no BatchNorm layer; if the statistics name a layer that the model lacks or have
            another number of channels; if ``"running"`` is asked of a layer that keeps none. Under ``"batch"``, a
            forward pass that gives a layer a single value per channel is torch's ``ValueError``.
    """
    layers = batchnorm_layers(model)
    _check_usable(layers, statistics)
    training = [(module, module.training) for module in model.modules()]
    saved = [(layer, layer.track_running_stats, _buffers(layer)) for layer in layers.values()]
    outermost: dict[nn.Module, Buffers] = {layer: buffers for layer, _, buffers in saved if layer not in _SET_ASIDE}
    try:
        _SET_ASIDE.update(outermost)
        for module, _ in training:
            module.training = False  # not .eval(): models that override train() would be run into
        for name, layer in layers.items():
            if statistics == "batch":
                # Train mode without tracking hands F.batch_norm no buffers: nothing is there to be changed.
                layer.training, layer.track_running_stats = True, False
            elif isinstance(statistics, BatchNormStatistics) and name in statistics:
                _put(layer, model, statistics[name].mean, statistics[name].var)
            else:
                layer._buffers.update(_own_buffers(layer))
        yield model
    finally:
        for entered in outermost:
            del _SET_ASIDE[entered]
        for layer, tracks, buffers in saved:
            layer.track_running_stats = tracks
            layer._buffers.update(buffers)
        for module, flag in training:
            module.training = flag


def estimate_statistics(
    model: nn.Module,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    method: Method = "one_pass",
    start: BatchNormStatistics | None = None,
    max_passes: int | None = None,
    tolerance: float = 1e-4,
) -> BatchNormStatistics:
    """The statistics of all BatchNorm layers on other data; the model is left untouched. See the module's text.

    Args:
        model: the network; called as ``model(x)``, without gradients, in evaluation mode but for its BatchNorm.
        batches: the data: an iterable of ``x`` or of tuples that begin with ``x``, each batch as large as memory
            allows; ragged and sorted batches do no harm. ``sequential`` goes through it several times, so there
            it has to be a list, a DataLoader or a function that returns an iterator, not an iterator.
            Tensors are moved to the model's device.
        method: ``one_pass`` or ``sequential``.
        start: where ``sequential`` begins; by default at what one pass finds.
        max_passes: how many passes ``sequential`` may take, the first included; by default enough for any
            feed-forward network: two more than it has layers.
        tolerance: ``sequential`` ends when no layer's :meth:`~BatchNormStatistics.distance` to the pass before
            exceeds this.

    Raises:
        UserError: if the model has no BatchNorm layer, if there are no batches or one bare tensor, if a layer saw no
            data, a single value per channel, or NaN or infinite values, or if an iterator was given where several
            passes are needed. A ``sequential``
            estimate that does not settle in time comes with a warning and ``converged=False``.
    """
    layers = batchnorm_layers(model)
    if isinstance(batches, Tensor):
        raise UserError("the batches are one tensor, which would be taken image by image: give [images], or a split")
    if method == "sequential" and isinstance(batches, Iterator):
        raise UserError("sequential estimation needs several passes: give a list or a function, not an iterator")
    once: Callable[[], Iterable[Any]] = batches if callable(batches) else lambda: batches
    if method == "one_pass":
        return BatchNormStatistics(_measure(model, once(), "batch"), passes=1)
    if method != "sequential":
        raise UserError(f"unknown method {method!r}: choose one_pass or sequential")
    # One pass to start from, one for each layer in the worst case, and one to see that nothing moves any more.
    max_passes = len(layers) + 2 if max_passes is None else max_passes
    passes = 0
    if start is None:
        start, passes = BatchNormStatistics(_measure(model, once(), "batch")), 1
    current = start
    while passes < max_passes:
        found = BatchNormStatistics(_measure(model, once(), current), passes=passes + 1)
        passes += 1
        moved = max(max(pair) for pair in current.distance(found).values())
        current = found
        if moved <= tolerance:
            return current
    warnings.warn(
        f"the sequential statistics still moved by more than {tolerance} after {passes} passes; they are used anyway",
        stacklevel=2,
    )
    return BatchNormStatistics(current, passes=passes, converged=False)


def measure_statistics(
    model: nn.Module, batches: Iterable[Any], upstream: BatchNormStatistics | Mode = "running"
) -> BatchNormStatistics:
    """The statistics of each layer's input as it arrives while all layers normalise with ``upstream``; one pass.

    Under ``"running"`` these are what each layer's running statistics stand in for; under ``"batch"`` what
    :func:`estimate_statistics` finds in one pass. ``batches`` as there; the model is left untouched.

    Raises:
        UserError: as :func:`use_statistics` and :func:`estimate_statistics` do.
    """
    return BatchNormStatistics(_measure(model, batches, upstream), passes=1)


@contextmanager
def decide_statistics(model: nn.Module, decide: Decide, layers: Iterable[str] | None = None) -> Iterator[nn.Module]:
    """Let every BatchNorm layer normalise with what ``decide`` makes of its current input's statistics.

    Before a layer runs, ``decide(name, statistics)`` gets those of its input (float64, on the model's device) and
    returns what the layer shall normalise with; None: with what it has, its running statistics or what ``decide``
    gave before. The layers before it have been decided upon by then, so that a set that passes as *one* batch is
    normalised by the fixed point of sequential estimation in a single pass. Everything else is as in
    :func:`use_statistics`.

    Args:
        model: the network.
        decide: called for each layer and batch.
        layers: names of the layers that are asked for; the others use their running statistics. None: all.
    """
    layers_by_name = batchnorm_layers(model)
    asked = layers_by_name if layers is None else {name: layers_by_name[name] for name in layers}

    def act(name: str, layer: _BatchNorm, count: int, mean: Tensor, deviations: Tensor) -> None:
        chosen = decide(name, LayerStatistics(mean, deviations / count, count))
        if chosen is not None:
            _put(layer, model, chosen.mean, chosen.var)

    with use_statistics(model, "running"), _before_layers(asked, act):
        yield model


def _buffers(layer: nn.Module) -> Buffers:
    return {key: layer._buffers.get(key) for key in ("running_mean", "running_var")}


def _own_buffers(layer: nn.Module) -> Buffers:
    return _SET_ASIDE[layer] if layer in _SET_ASIDE else _buffers(layer)


@contextmanager
def _before_layers(
    layers: Mapping[str, _BatchNorm], act: Callable[[str, _BatchNorm, int, Tensor, Tensor], None]
) -> Iterator[None]:
    """Before each layer runs, call ``act`` with its name, itself and its input's moments (``channel_moments``)."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda layer, inputs: act(name, layers[name], *channel_moments(inputs[0]))

    handles = []
    # A graph that was compiled without the hooks would not call them, one compiled with them would never stop to.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        try:
            handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
            yield
        finally:
            for handle in handles:
                handle.remove()


def _measure(
    model: nn.Module, batches: Iterable[Any], upstream: BatchNormStatistics | Mode
) -> dict[str, LayerStatistics]:
    """One pass: pooled statistics of each layer's input, behind layers that use ``upstream``."""
    layers = batchnorm_layers(model)
    moments = {name: PooledMoments() for name in layers}

    def measure(name: str, layer: _BatchNorm, count: int, mean: Tensor, deviations: Tensor) -> None:
        moments[name].merge(count, mean, deviations)
        if upstream == "batch":
            # The layer then normalises with what was measured: its own computation of the same moments is
            # saved, and in channels_last it would lose the variance to cancellation where means are large.
            _put(layer, model, mean, deviations / count)

    device = next((tensor.device for tensor in _tensors(model)), torch.device("cpu"))
    neutral = BatchNormStatistics({n: LayerStatistics(torch.zeros(w), torch.ones(w), 0) for n, w in _widths(layers)})
    # The context's buffers are replaced before each layer, batch by batch, and by the model's own at the end.
    context = use_statistics(model, neutral if upstream == "batch" else upstream)
    seen = False
    with context, _before_layers(layers, measure):
        for batch in batches:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            if len(images):
                seen = True
                model(images.to(device))
    if not seen:
        raise UserError("no batches were given, so there is nothing to estimate BatchNorm statistics from")
    for name, pooled in moments.items():
        if pooled.count == 0:
            raise UserError(f"layer {name!r} was not reached by the forward pass: its statistics cannot be estimated")
        if pooled.count == 1:
            raise UserError(
                f"layer {name!r} received a single value per channel, which has no variance: give two images or more"
            )
        if not torch.isfinite(pooled.deviations).all():
            raise UserError(f"layer {name!r} received NaN or infinite values: no statistics can be estimated from them")
    return {name: LayerStatistics(p.mean, p.deviations / p.count, p.count) for name, p in moments.items()}


def _put(layer: nn.Module, model: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Let the layer normalise with these statistics, in fresh buffers of its type, or the model's if it has none."""
    reference = next((tensor for module in (layer, model) for tensor in _tensors(module)), None)
    kind = torch.float32 if reference is None else reference.dtype
    device = mean.device if reference is None else reference.device
    layer._buffers["running_mean"] = mean.to(device=device, dtype=kind, copy=True)
    layer._buffers["running_var"] = var.to(device=device, dtype=kind, copy=True)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Floating-point parameters and buffers, which tell a module's device and type."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            yield tensor


def _widths(layers: Mapping[str, _BatchNorm]) -> Iterator[tuple[str, int]]:
    return ((name, layer.num_features) for name, layer in layers.items())


def _check_usable(layers: Mapping[str, _BatchNorm], statistics: BatchNormStatistics | Mode) -> None:
    if isinstance(statistics, BatchNormStatistics):
        for name, given in statistics.items():
            if name not in layers:
                raise UserError(f"these statistics are of another model: it has no BatchNorm layer {name!r}")
            channels = layers[name].num_features
            if given.mean.shape != (channels,) or given.var.shape != (channels,):
                raise UserError(f"layer {name!r} has {channels} channels, but the statistics have {len(given.mean)}")
    elif statistics not in ("running", "batch"):
        raise UserError(f"unknown statistics {statistics!r}: give 'running', 'batch' or BatchNormStatistics")
    needs_running = list(layers) if statistics == "running" else []
    if isinstance(statistics, BatchNormStatistics):
        needs_running = [name for name in layers if name not in statistics]
    for name in needs_running:
        if any(buffer is None for buffer in _own_buffers(layers[name]).values()):  # `in` would compare tensors, slowly
            raise UserError(
                f"layer {name!r} keeps no running statistics (track_running_stats=False): use 'batch' or estimated ones"
            )


def _to_float64(values: Tensor) -> Tensor:
    return values.detach().to(device="cpu", dtype=torch.float64, copy=True)
