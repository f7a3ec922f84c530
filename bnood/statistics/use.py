"""Using BatchNorm statistics: read a model's own, normalise with others for a while, or write others in for good."""

import contextlib
import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from bnood.errors import UserError
from bnood.statistics.layers import batchnorm_layers, named_modules
from bnood.statistics.moments import channel_moments
from bnood.statistics.values import BatchNormStatistics, LayerStatistics

Mode = Literal["running", "batch"]
# From a layer's name and its input's statistics to those it shall normalise with.
Decide = Callable[[str, LayerStatistics], LayerStatistics | None]
HALF = (torch.float16, torch.bfloat16)
CAN_PAUSE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@dataclass(eq=False, frozen=True)
class _Context:
    """One open context: the thread and the frame that opened it, and the names of the layers in it."""

    thread: int
    frame: int  # its id; the frame itself would keep its local variables alive
    can_pause: bool  # the frame is a generator's or a coroutine's
    names: dict[nn.Module, str]


# What a module gets back when a context is left: the contents of its "attributes", "buffers" and "parameters".
_State = dict[str, dict[str, Any]]
# The contexts that each module is in, outermost first, with the state to restore when each is left. The first state is
# the module's own: what "running" means, however deep contexts nest.
_OPEN: WeakKeyDictionary[nn.Module, dict[_Context, _State]] = WeakKeyDictionary()
_LOCK = threading.RLock()


def read_statistics(model: nn.Module) -> BatchNormStatistics:
    """The running statistics of all BatchNorm layers, copied; within :func:`use_statistics` too the model's own.

    Raises:
        UserError: if the model has no BatchNorm layer, one that was built with ``track_running_stats=False``, or one
            whose running statistics are not finite.
    """
    read = {}
    for name, layer in batchnorm_layers(model).items():
        if not tracks(layer):
            raise UserError(f"layer {name!r} keeps no running statistics (track_running_stats=False)")
        own = own_buffers(layer)
        seen = own.get("num_batches_tracked")
        seen = 0 if seen is None else int(seen)
        read[name] = LayerStatistics(own["running_mean"].flatten(), own["running_var"].flatten(), seen)
    return BatchNormStatistics(read)


@contextmanager
def use_statistics(model: nn.Module, statistics: BatchNormStatistics | Mode) -> Iterator[nn.Module]:
    """Let every BatchNorm layer normalise with the given statistics; everything else is in evaluation mode.

    Inside, copies stand in for the buffers of all modules. On leaving, also by an error, every module has its own
    buffers, training flag and hooks back, and a BatchNorm layer all its attributes. Contexts nest; the innermost
    counts, and "running" is the model's own.

    Limits:
        - Entering while another thread or a paused generator holds the model is refused: give each a copy of the
          model. A context in a generator stays open while the generator is paused.
        - What is written to buffers inside is lost, by ``load_state_dict``, ``.to()`` or ``.double()`` too: load and
          convert outside. A copy, ``state_dict`` or export taken inside keeps the statistics in use, under ``"batch"``
          as flags; :func:`bake` does that in the open.
        - Gradient checkpointing runs the forward pass again during ``backward``: call ``backward`` inside, or the
          gradients are those of other statistics.
        - In half precision, layers that call torch's ``batch_norm`` get float32 statistics and, made on entering,
          float32 copies of scale and shift; gradients reach the originals. Layers that are written out by hand get
          statistics of their own type, and are refused if it cannot hold them.
        - Under ``"batch"``, a subclass with its own forward does what it does in train mode, and SyncBatchNorm shares
          the batch among processes.

    Args:
        model: the network; compiled or wrapped ones too.
        statistics: ``"running"`` (the model's own moving averages), ``"batch"`` (the current batch's mean and biased
            variance, without touching the averages) or statistics that were read, estimated or loaded. These may
            cover some of the layers only; the others use their running statistics.

    Raises:
        UserError: if the model has no BatchNorm layer; if the statistics name a layer that the model lacks or have
            another number of channels; if ``"running"`` is asked of a layer that keeps none; if another context holds
            the model. Under ``"batch"``, also where a forward pass gives a layer a single value per channel.
    """
    layers, modules = batchnorm_layers(model), [module for _, module in named_modules(model)]
    opener, names = _opener(sys._getframe()), {layer: name for name, layer in layers.items()}
    context = _Context(threading.get_ident(), id(opener), bool(opener.f_code.co_flags & CAN_PAUSE), names)  # type: ignore[arg-type]
    del opener
    handles = []
    try:
        with _LOCK:
            _refuse_overlap(layers)
            _check_usable(layers, statistics)
            for module in modules:
                _OPEN.setdefault(module, {})[context] = _state(module)
        copies: dict[int, Tensor] = {}
        for module in modules:
            _set_aside(module, copies)
        for name, layer in layers.items():
            if statistics == "batch":
                # Train mode without tracking hands F.batch_norm no buffers; what a subclass writes to are copies.
                layer.training, layer.track_running_stats = True, False
                handles.append(layer.register_forward_pre_hook(_refuse_single_values, with_kwargs=True))
            elif isinstance(statistics, BatchNormStatistics) and name in statistics:
                put(layer, model, statistics[name].mean, statistics[name].var)
        yield model
    finally:
        for handle in handles:
            handle.remove()
        with _LOCK:
            for module in modules:
                _leave(module, context)


@contextmanager
def decide_statistics(model: nn.Module, decide: Decide, layers: Iterable[str] | None = None) -> Iterator[nn.Module]:
    """Let every BatchNorm layer normalise with what ``decide`` makes of its current input's statistics.

    Before a layer runs, ``decide(name, statistics)`` gets those of its input (float64, on the model's device) and
    returns what the layer shall normalise with; None: with what it has, its running statistics or what ``decide``
    gave before. The layers before it have been decided upon by then, so that a set that passes as *one* batch is
    normalised by the fixed point of sequential estimation in a single pass. Everything else is as in
    :func:`use_statistics`, without gradients.

    Args:
        model: the network.
        decide: called for each layer and batch.
        layers: names of the layers that are asked for; the others use their running statistics. None: all.

    Raises:
        UserError: as :func:`use_statistics`; for unknown ``layers``; if ``decide`` returns what is not finite, a
            negative variance or another number of channels.
    """
    all_layers = batchnorm_layers(model)
    names = list(all_layers if layers is None else layers)
    for name in names:
        if name not in all_layers:
            raise UserError(f"the model has no BatchNorm layer {name!r}")

    def act(name: str, layer: _BatchNorm, count: int, mean: Tensor, deviations: Tensor) -> None:
        chosen = decide(name, LayerStatistics(mean, deviations / count, count))
        if chosen is not None:
            chosen.check(name)
            _check_channels(name, layer, chosen)
            put(layer, model, chosen.mean, chosen.var)

    with use_statistics(model, "running"), before_layers({name: all_layers[name] for name in names}, act):
        yield model


def bake(model: nn.Module, statistics: BatchNormStatistics) -> None:
    """Write statistics into the model for good: they replace the values of its running means and variances.

    Nothing else changes: neither weights nor ``num_batches_tracked`` nor layers that the statistics leave out. After
    it, evaluation mode gives the outputs of ``use_statistics(model, statistics)``, and so does a saved and loaded
    ``state_dict``; in half precision, up to the rounding of the buffers. Keep ``read_statistics(model)`` to go back.

    Raises:
        UserError: if the statistics do not fit the model, a layer keeps no running statistics or has a type that
            cannot hold them, or inside :func:`use_statistics`. The model is untouched then.
    """
    layers = batchnorm_layers(model)
    if any(layer in _OPEN for layer in layers.values()):
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

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        context = _innermost(layers[name])

        def measure(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Not in a context inside this one, and not for a copy made inside, which took the hook along.
            if layer is layers[name] and _innermost(layer) is context:
                act(name, layers[name], *channel_moments(_input(layer, args, kwargs)))

        return measure

    handles = []
    # A graph that was compiled without the hooks would not call them, one compiled with them would never stop to.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        try:
            for name, layer in layers.items():
                handles.append(layer.register_forward_pre_hook(hook(name), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


def put(layer: _BatchNorm, model: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Inside a context: let the layer normalise with these statistics, in fresh buffers of its or the model's type."""
    reference = next((tensor for module in (layer, model) for tensor in floating_tensors(module)), mean.float())
    kind, name, own = reference.dtype, _innermost(layer).names[layer], own_buffers(layer)
    code = getattr(layer.forward, "__code__", None)
    if kind in HALF and {"batch_norm", "super"} & set(getattr(code, "co_names", ())):
        # Half-precision buffers round means by up to 1 / 256, and float16 overflows. Torch's kernel takes float32
        # statistics for inputs in half precision if scale and shift are float32 too; in a forward written out by
        # hand they would spread to its output. Autograd follows the conversion.
        kind = torch.float32
        with torch.enable_grad():
            half = {key: p for key, p in layer._parameters.items() if p is not None and p.dtype in HALF}
            layer._parameters.update({key: p.float() for key, p in half.items()})  # type: ignore[misc]
    for key, values in (("running_mean", mean), ("running_var", var)):
        layer._buffers[key] = _converted(name, values, own.get(key), kind, reference.device)


def own_buffers(layer: nn.Module) -> dict[str, Any]:
    """The layer's own buffers, whatever context it is in."""
    return next(iter(_OPEN[layer].values()))["buffers"] if layer in _OPEN else layer._buffers


def tracks(layer: nn.Module) -> bool:
    """Whether the layer has running statistics of its own."""
    own = own_buffers(layer)
    return own.get("running_mean") is not None and own.get("running_var") is not None


def floating_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Floating-point parameters and buffers, which tell a module's device and type."""
    return filter(torch.is_floating_point, itertools.chain(module.parameters(), module.buffers()))


def _converted(name: str, values: Tensor, own: Tensor | None, kind: torch.dtype, device: torch.device) -> Tensor:
    """A copy of values ``[C]`` in the shape of a buffer: ``[1, C, 1, 1]``, or ``[parts * C]`` of ghost BatchNorm."""
    if own is not None and own.shape != values.shape:
        values = values.repeat(own.numel() // values.numel()).view(own.shape)
    converted = values.to(device, kind, copy=True)
    if kind == torch.float16 and not torch.isfinite(converted).all():
        raise UserError(
            f"layer {name!r} is in float16, which cannot hold its statistics (up to {float(values.abs().max()):.4g}; "
            "the limit is 65504): convert the layer to float32 or bfloat16"
        )
    return converted


def _input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise UserError(f"a {type(layer).__name__} was called without a tensor, so it has no input to normalise")


def _refuse_single_values(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Torch refuses these in train mode too, without the layer's name; subclasses may take them."""
    x = _input(layer, args, kwargs)
    if layer.training and x.ndim > 1 and x.numel() == x.shape[1]:
        name = repr(_innermost(layer).names[layer]) if layer in _OPEN else type(layer).__name__
        raise UserError(
            f"layer {name} received a single value per channel, in a batch of shape {list(x.shape)}, which has no "
            "variance: 'batch' needs two images or more"
        )


def _innermost(layer: nn.Module) -> _Context:
    return next(reversed(_OPEN[layer]))


def _state(module: nn.Module) -> _State:
    attributes = dict(vars(module)) if isinstance(module, _BatchNorm) else _caches(module)
    attributes["training"] = module.training
    return {
        "attributes": attributes,
        "buffers": dict(module._buffers),
        "parameters": dict(module._parameters),
    }


def _caches(module: nn.Module) -> dict[str, Any]:
    """Such as LeViT's biases: filled in evaluation mode, and stale after the next step if training goes on."""
    if not module.training:
        return {}
    return {key: value for key, value in vars(module).items() if type(value) is dict and not key.startswith("_")}


def _set_aside(module: nn.Module, copies: dict[int, Tensor]) -> None:
    """Evaluation mode, with copies in the place of the buffers; ``copies`` keeps shared what is shared.

    A BatchNorm layer goes back to its own state first, not to that of a context around this one.
    """
    buffers = dict(module._buffers)
    if isinstance(module, _BatchNorm):
        own = next(iter(_OPEN[module].values()))
        buffers, vars(module)["track_running_stats"] = own["buffers"], own["attributes"]["track_running_stats"]
        module._parameters.update(own["parameters"])
    for key, buffer in buffers.items():
        if buffer is not None and not is_lazy(buffer):
            if id(buffer) not in copies:
                copies[id(buffer)] = buffer.detach().clone()
            module._buffers[key] = copies[id(buffer)]
    vars(module).update({key: dict(cache) for key, cache in _caches(module).items()})
    vars(module)["training"] = False  # not .eval(): models that override train() would be run into


def _leave(module: nn.Module, context: _Context) -> None:
    """Restore a module. If a later context is still open, it keeps the module and restores this state instead."""
    contexts = _OPEN.get(module, {})
    if context not in contexts:
        return
    later = list(contexts)[list(contexts).index(context) + 1 :]
    state = contexts.pop(context)
    if later:
        contexts[later[0]] = state
        return
    if not contexts:
        del _OPEN[module]
    if isinstance(module, _BatchNorm):
        vars(module).clear()
    vars(module).update(state["attributes"])
    module._buffers.clear()
    module._buffers.update(state["buffers"])
    module._parameters.update(state["parameters"])


def _opener(frame: FrameType) -> FrameType:
    """The frame whose ``with`` statement opens a context, behind context managers that are made of others."""
    while (caller := frame.f_back) is not None and (
        contextlib.__file__ in (frame.f_code.co_filename, caller.f_code.co_filename)
        or "enter__" in frame.f_code.co_name
    ):
        frame = caller
    return frame


def _refuse_overlap(layers: Mapping[str, _BatchNorm]) -> None:
    """Refuse to enter unless every open context is around this one: in this thread, and not a paused generator's."""
    contexts = {context for layer in layers.values() for context in _OPEN.get(layer, ())}
    running, frame = set(), sys._getframe() if contexts else None
    while frame is not None:
        running.add(id(frame))
        frame = frame.f_back
    for context in contexts:
        elsewhere = context.thread != threading.get_ident()
        if elsewhere or (context.can_pause and context.frame not in running):
            raise UserError(
                f"{'another thread' if elsewhere else 'a paused generator or coroutine'} has statistics in use on this "
                "model: wait until it is done, or give it a copy of the model"
            )


def _check_usable(layers: Mapping[str, _BatchNorm], statistics: BatchNormStatistics | Mode) -> None:
    given = statistics if isinstance(statistics, BatchNormStatistics) else {}
    if not isinstance(statistics, BatchNormStatistics) and statistics not in ("running", "batch"):
        raise UserError(f"unknown statistics {statistics!r}: give 'running', 'batch' or BatchNormStatistics")
    for name in given:
        if name not in layers:
            raise UserError(f"these statistics are of another model: it has no BatchNorm layer {name!r}")
        _check_channels(name, layers[name], given[name])
    for name, layer in layers.items():
        if statistics != "batch" and name not in given and not tracks(layer):
            raise UserError(
                f"layer {name!r} keeps no running statistics (track_running_stats=False): use 'batch' or estimated ones"
            )


def _check_channels(name: str, layer: _BatchNorm, given: LayerStatistics) -> None:
    own = own_buffers(layer).get("running_mean")
    # Ghost BatchNorm keeps several means per channel: both what it keeps and what is estimated fit.
    if len(given.mean) not in (layer.num_features, None if own is None else own.numel()):
        raise UserError(f"layer {name!r} has {layer.num_features} channels, but the statistics have {len(given.mean)}")
