"""Using BatchNorm statistics: read a model's own, normalise with others for a while, or write others in for good."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnood.errors import UserError
from bnood.statistics.contexts import innermost, lent, own_buffers, tracks
from bnood.statistics.layers import batchnorm_layers, named_modules
from bnood.statistics.moments import channel_moments
from bnood.statistics.values import BatchNormStatistics, LayerStatistics

Mode = Literal["running", "batch"]
# From a layer's name and its input's statistics to those it shall normalise with.
Decide = Callable[[str, LayerStatistics], LayerStatistics | None]
HALF = (torch.float16, torch.bfloat16)


def read_statistics(model: nn.Module) -> BatchNormStatistics:
    """The running statistics of all BatchNorm layers, copied; within :func:`use_statistics` too the model's own.

    Raises ``UserError`` if the model has no BatchNorm layer, or one whose running statistics are missing or not finite.
    """
    read = {}
    for name, layer in batchnorm_layers(model).items():
        if not tracks(layer):
            raise UserError(f"layer {name!r} keeps no running statistics (track_running_stats=False)")
        own = own_buffers(layer)
        seen = own.get("num_batches_tracked")
        mean, var = own["running_mean"].flatten(), own["running_var"].flatten()
        read[name] = LayerStatistics(mean, var, 0 if seen is None else int(seen))
    return BatchNormStatistics(read)


@contextmanager
def use_statistics(model: nn.Module, statistics: BatchNormStatistics | Mode) -> Iterator[nn.Module]:
    """Let every BatchNorm layer normalise with the given statistics; everything else is in evaluation mode.

    Inside, copies stand in for the buffers of all modules. On leaving, also by an error, every module has its own
    buffers, training flag and hooks back, and a BatchNorm layer all its attributes. Contexts nest; the innermost
    counts, and "running" is the model's own.

    Limits:
        - Entering while another thread or a paused generator holds the model is refused: give each a copy of it.
        - What is written to buffers inside is lost, by ``load_state_dict``, ``.to()`` or ``.double()`` too. A copy,
          ``state_dict`` or export taken inside keeps the statistics in use, under ``"batch"`` as flags.
        - Gradient checkpointing runs the forward pass again during ``backward``: call ``backward`` inside.
        - In half precision, layers that call torch's ``batch_norm`` get float32 statistics, scale and shift; others are
          refused if their type cannot hold the statistics.
        - Under ``"batch"``, a subclass with its own forward and SyncBatchNorm do what they do in train mode.

    Args:
        model: the network; compiled or wrapped ones too.
        statistics: ``"running"`` (the model's own moving averages), ``"batch"`` (the current batch's mean and biased
            variance) or given ones; layers that these leave out use their running statistics.

    Raises:
        UserError: if the statistics do not fit the model's layers or channels, ``"running"`` is asked of a layer that
            keeps none, or another context holds the model; under ``"batch"`` for a single value per channel.
    """
    modules = dict(named_modules(model))
    layers = batchnorm_layers(model, modules)
    _check_usable(layers, statistics)
    with lent(modules.values()), ExitStack() as hooks:
        for name, layer in layers.items():
            if statistics == "batch":
                # Train mode without tracking hands F.batch_norm no buffers; what a subclass writes to are copies.
                layer.training, layer.track_running_stats = True, False
                hook = partial(_refuse_single_values, name)  # no closure: models are copied and pickled with it
                hooks.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            elif isinstance(statistics, BatchNormStatistics) and name in statistics:
                put(name, layer, model, statistics[name].mean, statistics[name].var)
        yield model


@contextmanager
def decide_statistics(model: nn.Module, decide: Decide, layers: Iterable[str] | None = None) -> Iterator[nn.Module]:
    """Let every BatchNorm layer normalise with what ``decide`` makes of its current input's statistics.

    Before a layer runs, ``decide(name, statistics)`` gets those of its input (float64, on the model's device) and
    returns what the layer shall normalise with; None keeps its running statistics. The layers before it have been
    decided upon by then. ``layers`` names those that are asked for, by default all; the others use their running
    statistics. Everything else is as in :func:`use_statistics`, without gradients.
    Raises ``UserError`` as there, for unknown ``layers``, and if ``decide`` returns no statistics of the layer.
    """
    asked = batchnorm_layers(model)
    if layers is not None:
        names = list(layers)
        if unknown := [name for name in names if name not in asked]:
            raise UserError(f"the model has no BatchNorm layer {unknown[0]!r}")
        asked = {name: asked[name] for name in names}

    def act(name: str, layer: _BatchNorm, count: int, mean: Tensor, deviations: Tensor) -> None:
        chosen = decide(name, LayerStatistics(mean, deviations / count, count))
        if chosen is not None:
            chosen.check(name)
            _check_channels(name, layer, chosen)
            put(name, layer, model, chosen.mean, chosen.var)

    with use_statistics(model, "running"), before_layers(asked, act):
        yield model


def bake(model: nn.Module, statistics: BatchNormStatistics) -> None:
    """Write statistics into the model for good: they replace the values of its running means and variances.

    Nothing else changes. Keep ``read_statistics(model)`` to go back.

    Raises ``UserError`` if the statistics do not fit the model, a layer keeps no running statistics or has a type that
    cannot hold them, or inside :func:`use_statistics`. The model is untouched then.
    """
    layers = batchnorm_layers(model)
    if any(innermost(layer) for layer in layers.values()):
        raise UserError("statistics cannot be written into a model inside use_statistics: leave the context first")
    if not isinstance(statistics, BatchNormStatistics):
        raise UserError(f"only BatchNormStatistics can be written into a model, not {statistics!r}")
    _check_usable(layers, statistics)
    values = []
    for name, given in statistics.items():
        if not tracks(layers[name]):
            raise UserError(f"layer {name!r} has no buffers to write to (track_running_stats=False)")
        for key, new in (("running_mean", given.mean), ("running_var", given.var)):
            own = layers[name].get_buffer(key)
            values.append((own, _converted(name, new, own, own.dtype, own.device)))
    with torch.no_grad():
        for own, new in values:
            own.copy_(new)


@contextmanager
def before_layers(
    layers: Mapping[str, _BatchNorm], act: Callable[[str, _BatchNorm, int, Tensor, Tensor], None]
) -> Iterator[None]:
    """Inside a context: before each layer runs, call ``act`` with its name, itself and its input's moments."""

    def hook(name: str) -> Callable[..., None]:
        context = innermost(layers[name])

        def measure(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Not in a context inside this one, and not for a copy made inside, which took the hook along.
            if layer is layers[name] and innermost(layer) is context:
                x, channels = _input(layer, args, kwargs), layers[name].num_features
                if x.ndim < (4 if isinstance(layer, nn.BatchNorm2d) else 2) or x.shape[1] != channels:
                    found = f"layer {name!r} has {channels} channels, but its input the shape {list(x.shape)}"
                    raise UserError(f"{found}: give batches of images, not single ones")
                if x.numel():  # not of an empty batch
                    act(name, layers[name], *channel_moments(x))

        return measure

    # A graph that was compiled without the hooks would not call them, one compiled with them would never stop to.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(hook(name), with_kwargs=True).remove)
        yield


def put(name: str, layer: _BatchNorm, model: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Inside a context: let the layer normalise with these statistics, in fresh buffers of its or the model's type."""
    tensors = chain(layer._parameters.values(), layer._buffers.values(), model.parameters(), model.buffers())
    floating = (tensor for tensor in tensors if tensor is not None and tensor.is_floating_point())
    reference = next(floating, torch.empty(0, device=mean.device))
    kind, own = reference.dtype, own_buffers(layer)
    code = getattr(layer.forward, "__code__", None)
    if kind in HALF and {"batch_norm", "super"} & set(getattr(code, "co_names", ())):
        # Half-precision buffers round and overflow. Torch's kernel takes float32 statistics if scale and shift are
        # float32 too; in a forward written out by hand they would spread.
        kind = torch.float32
        with torch.enable_grad():
            half = {key: p for key, p in layer._parameters.items() if p is not None and p.dtype in HALF}
            layer._parameters.update({key: p.float() for key, p in half.items()})  # type: ignore[misc]
    for key, values in (("running_mean", mean), ("running_var", var)):
        layer._buffers[key] = _converted(name, values, own.get(key), kind, reference.device)


def _converted(name: str, values: Tensor, own: Tensor | None, kind: torch.dtype, device: torch.device) -> Tensor:
    """A copy of values ``[C]`` in the shape of a buffer: ``[1, C, 1, 1]``, or ``[parts * C]`` of ghost BatchNorm."""
    if own is not None and own.shape != values.shape:
        values = values.repeat(own.numel() // values.numel()).view(own.shape)
    converted = values.to(device, kind, copy=True)
    if kind == torch.float16 and not torch.isfinite(converted).all():
        reach = f"up to {float(values.abs().max()):.4g}, the limit is 65504"
        raise UserError(f"layer {name!r} is in float16, which cannot hold its statistics ({reach}): use float32")
    return converted


def _input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise UserError(f"a {type(layer).__name__} was called without a tensor, so it has no input to normalise")


def _refuse_single_values(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = _input(layer, args, kwargs)
    if layer.training and x.ndim > 1 and x.numel() == x.shape[1]:
        found = f"layer {name!r} received a single value per channel, in a batch of shape {list(x.shape)}"
        raise UserError(f"{found}, which has no variance: 'batch' needs two images or more")


def _check_usable(layers: Mapping[str, _BatchNorm], statistics: BatchNormStatistics | Mode) -> None:
    if statistics == "batch":
        return
    if not isinstance(statistics, BatchNormStatistics) and statistics != "running":
        given = repr(statistics) if isinstance(statistics, str) else type(statistics).__name__
        raise UserError(f"unknown statistics {given}: give 'running', 'batch' or BatchNormStatistics")
    values_of = {} if statistics == "running" else dict(statistics)
    for name, values in values_of.items():
        if name not in layers:
            raise UserError(f"these statistics are of another model: it has no BatchNorm layer {name!r}")
        _check_channels(name, layers[name], values)
    for name, layer in layers.items():
        if name not in values_of and not tracks(layer):
            hint = "use 'batch' or estimated ones"
            raise UserError(f"layer {name!r} keeps no running statistics (track_running_stats=False): {hint}")


def _check_channels(name: str, layer: _BatchNorm, given: LayerStatistics) -> None:
    own = own_buffers(layer).get("running_mean")
    # Ghost BatchNorm keeps several means per channel: both what it keeps and what is estimated fit.
    if len(given.mean) not in (layer.num_features, None if own is None else own.numel()):
        raise UserError(f"layer {name!r} has {layer.num_features} channels, but the statistics have {len(given.mean)}")
