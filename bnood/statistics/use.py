"""Using BatchNorm statistics: read a model's own, let it normalise with others for a while, or write them in for good.

``use_statistics`` never writes to what the model owns. Every buffer of every module is set aside and a copy put in
its place; on leaving, the originals return. So it does not matter what a layer does with its buffers in train mode.
"""

import contextlib
import inspect
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
Buffers = dict[str, Tensor | None]
# From a layer's name and its input's statistics to those it shall normalise with.
Decide = Callable[[str, LayerStatistics], LayerStatistics | None]
HALF = (torch.float16, torch.bfloat16)


@dataclass(eq=False, frozen=True)
class _Entry:
    """One open context: the thread and the frame that opened it, and the names of the layers in it."""

    thread: int
    frame: int  # its id; the frame itself would keep its local variables alive
    can_pause: bool  # the frame is a generator's or coroutine's
    names: dict[nn.Module, str]


@dataclass(frozen=True)
class _State:
    """What a module has to get back when a context is left."""

    attributes: dict[str, Any]
    buffers: Buffers
    parameters: dict[str, Any]


# The open contexts of each module, outermost first, with the state to restore when the context is left. The first
# state is the module's own: what "running" means, however deep contexts nest.
_OPEN: WeakKeyDictionary[nn.Module, dict[_Entry, _State]] = WeakKeyDictionary()
_LOCK = threading.RLock()


def read_statistics(model: nn.Module) -> BatchNormStatistics:
    """The running statistics of all BatchNorm layers, copied; within :func:`use_statistics` too the model's own.

    Raises:
        UserError: if the model has no BatchNorm layer, or one that was built with ``track_running_stats=False``, or
            one whose running statistics are not finite.
    """
    read = {}
    for name, layer in batchnorm_layers(model).items():
        own = own_buffers(layer)
        mean, var, batches = own.get("running_mean"), own.get("running_var"), own.get("num_batches_tracked")
        if mean is None or var is None:
            raise UserError(f"layer {name!r} keeps no running statistics (track_running_stats=False)")
        read[name] = LayerStatistics(mean.flatten(), var.flatten(), 0 if batches is None else int(batches))
    return BatchNormStatistics(read)


@contextmanager
def use_statistics(model: nn.Module, statistics: BatchNormStatistics | Mode) -> Iterator[nn.Module]:
    """Let every BatchNorm layer normalise with the given statistics; everything else is in evaluation mode.

    On leaving, also by an error, every module has its own buffers, training flag and hooks back, and every BatchNorm
    layer all its attributes. Contexts nest; the innermost counts, and "running" is the model's own.

    Limits:
        - One context at a time: entering while another thread or a paused generator holds the model is refused. Give
          each its own copy of the model. Inside a generator the context stays open while the generator is paused.
        - What is written into buffers inside is lost on leaving, by ``load_state_dict``, ``.to()`` or ``.double()``
          too: load and convert outside. A copy, ``state_dict`` or export taken inside keeps the statistics in use;
          :func:`bake` is the cleaner way to that.
        - Gradient checkpointing runs the forward pass again during ``backward``: call ``backward`` inside, or the
          gradients are those of other statistics.
        - Half precision: layers that use torch's batch_norm get float32 statistics, and float32 copies of their scale
          and shift, made on entering; gradients reach the originals. Layers written out by hand get the statistics in
          their own type, and are refused where it cannot hold them.
        - Under ``"batch"``, a subclass with its own forward does what it does in train mode, on copies of its buffers.
          A synchronised BatchNorm shares the batch among processes.

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
    layers = batchnorm_layers(model)
    modules = [module for _, module in named_modules(model)]
    opener = _opener(sys._getframe())
    can_pause = bool(
        opener.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR)
    )
    names: dict[nn.Module, str] = {layer: name for name, layer in layers.items()}
    entry = _Entry(threading.get_ident(), id(opener), can_pause, names)
    del opener
    handles = []
    try:
        with _LOCK:
            _refuse_overlap(layers)
            _check_usable(layers, statistics)
            for module in modules:
                _OPEN.setdefault(module, {})[entry] = _state(module)
        copies: dict[int, Tensor] = {}
        for module in modules:
            module.training = False  # not .eval(): models that override train() would be run into
            _copy_tensors(module, copies)
        for name, layer in layers.items():
            if statistics == "batch":
                # Train mode without tracking hands F.batch_norm no buffers; what it writes anyway are copies.
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
                _leave(module, entry)


@contextmanager
def decide_statistics(model: nn.Module, decide: Decide, layers: Iterable[str] | None = None) -> Iterator[nn.Module]:
    """Let every BatchNorm layer normalise with what ``decide`` makes of its current input's statistics.

    Before a layer runs, ``decide(name, statistics)`` gets those of its input (float64, on the model's device) and
    returns what the layer shall normalise with; None: with what it has, its running statistics or what ``decide``
    gave before. The layers before it have been decided upon by then, so that a set that passes as *one* batch is
    normalised by the fixed point of sequential estimation in a single pass. Everything else is as in
    :func:`use_statistics`. No gradients inside.

    Args:
        model: the network.
        decide: called for each layer and batch.
        layers: names of the layers that are asked for; the others use their running statistics. None: all.

    Raises:
        UserError: as :func:`use_statistics`; if ``layers`` names one that the model lacks; in the forward pass, if
            ``decide`` returns values that are not finite, a negative variance or another number of channels.
    """
    layers_by_name = batchnorm_layers(model)
    names = list(layers_by_name) if layers is None else list(layers)
    for name in names:
        if name not in layers_by_name:
            raise UserError(f"the model has no BatchNorm layer {name!r}")

    def act(name: str, layer: _BatchNorm, count: int, mean: Tensor, deviations: Tensor) -> None:
        chosen = decide(name, LayerStatistics(mean, deviations / count, count))
        if chosen is not None:
            chosen.check(name)
            _check_channels(name, layer, chosen)
            put(layer, model, chosen.mean, chosen.var)

    with use_statistics(model, "running"), before_layers({name: layers_by_name[name] for name in names}, act):
        yield model


def bake(model: nn.Module, statistics: BatchNormStatistics) -> None:
    """Write statistics into the model for good: its running means and variances become these.

    Nothing else changes: not the weights, not ``num_batches_tracked``, not the layers that the statistics leave out.
    Afterwards evaluation mode, and a ``state_dict`` saved and loaded, give the outputs that
    ``use_statistics(model, statistics)`` gives. (In half precision, up to the rounding of the model's own buffers.)
    The old values are gone: keep :func:`read_statistics` of before to go back.

    Raises:
        UserError: if the statistics do not fit the model, if a layer keeps no running statistics, if its buffers'
            type cannot hold the values, or inside :func:`use_statistics`. The model is untouched then.
    """
    layers = batchnorm_layers(model)
    with _LOCK:
        if any(layer in _OPEN for layer in layers.values()):
            raise UserError("statistics cannot be written into a model inside use_statistics: leave the context first")
        _check_usable(layers, statistics)
        written: list[tuple[Tensor, Tensor]] = []
        for name, given in statistics.items():
            own = own_buffers(layers[name])
            for values, buffer in ((given.mean, own.get("running_mean")), (given.var, own.get("running_var"))):
                if buffer is None:
                    raise UserError(f"layer {name!r} has no buffers to write to (track_running_stats=False)")
                written.append((buffer, _held(name, _shaped(values, buffer), buffer.dtype)))
        with torch.no_grad():
            for buffer, values in written:
                buffer.copy_(values)


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
                act(name, layers[name], *channel_moments(_input(name, args, kwargs)))

        return measure

    handles = []
    # A graph that was compiled without the hooks would not call them, one compiled with them would never stop to.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        try:
            handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
            yield
        finally:
            for handle in handles:
                handle.remove()


def own_buffers(layer: nn.Module) -> Buffers:
    """The layer's own buffers, whatever context it is in."""
    entries = _OPEN.get(layer)
    return layer._buffers if not entries else next(iter(entries.values())).buffers


def put(layer: _BatchNorm, model: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Inside a context: let the layer normalise with these statistics, in fresh buffers."""
    reference = next((tensor for module in (layer, model) for tensor in floating_tensors(module)), None)
    kind = torch.float32 if reference is None else reference.dtype
    device = mean.device if reference is None else reference.device
    held_in_float32 = kind in HALF and _calls_torch(layer)
    if held_in_float32:
        # Half-precision buffers would round means by up to 1 / 256 and overflow in float16. Torch takes float32
        # statistics for half-precision inputs, if scale and shift are float32 too; autograd follows the conversion.
        kind = torch.float32
        with torch.enable_grad():
            for key, parameter in layer._parameters.items():
                if parameter is not None and parameter.dtype in HALF:
                    layer._parameters[key] = parameter.float()  # type: ignore[assignment]
    own = own_buffers(layer)
    for key, values in (("running_mean", mean), ("running_var", var)):
        values = _shaped(values, own.get(key)).to(device=device, copy=True)
        layer._buffers[key] = _held(_innermost(layer).names[layer], values, kind)


def _innermost(layer: nn.Module) -> _Entry:
    return next(reversed(_OPEN[layer]))


def floating_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Floating-point parameters and buffers, which tell a module's device and type."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            yield tensor


def _held(name: str, values: Tensor, kind: torch.dtype) -> Tensor:
    """The values in another type, which has to be able to hold them."""
    converted = values.to(kind)
    if kind == torch.float16 and not torch.isfinite(converted).all():
        raise UserError(
            f"layer {name!r} is in float16, which cannot hold its statistics (up to {float(values.abs().max()):.4g}, "
            "the limit is 65504): convert the layer to float32 or bfloat16"
        )
    return converted


def _shaped(values: Tensor, own: Tensor | None) -> Tensor:
    """Values ``[C]`` for a buffer of another shape: ``[1, C, 1, 1]``, or ``[parts * C]`` as ghost BatchNorm keeps."""
    if own is None or own.shape == values.shape:
        return values
    return values.repeat(own.numel() // values.numel()).view(own.shape)


def _calls_torch(layer: _BatchNorm) -> bool:
    """Whether the layer's forward calls torch's batch_norm; written out by hand, float32 would spread to its output."""
    names = getattr(getattr(layer.forward, "__code__", None), "co_names", ())
    return "batch_norm" in names or "super" in names


def _input(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise UserError(f"layer {name!r} was called without a tensor, so there is nothing to normalise")


def _refuse_single_values(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Torch refuses these in train mode too, without the layer's name; subclasses may take them."""
    for x in (*args, *kwargs.values()):
        if layer.training and isinstance(x, Tensor) and x.ndim > 1 and x.numel() == x.shape[1]:
            name = repr(_innermost(layer).names[layer]) if layer in _OPEN else type(layer).__name__
            raise UserError(
                f"layer {name} received a single value per channel, in a batch of shape {list(x.shape)}: it has no "
                "variance; give 'batch' statistics batches of two images or more"
            )


def _state(module: nn.Module) -> _State:
    if isinstance(module, _BatchNorm):
        return _State(dict(vars(module)), dict(module._buffers), dict(module._parameters))
    return _State({"training": module.training}, dict(module._buffers), {})


def _copy_tensors(module: nn.Module, copies: dict[int, Tensor]) -> None:
    """Put copies in the place of a module's buffers; ``copies`` keeps those shared that are shared.

    BatchNorm layers start from their own, not from those of a context around this one, and their tensors that are
    not registered as buffers are copied too.
    """

    def copied(tensor: Tensor) -> Tensor:
        if is_lazy(tensor):
            return tensor
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone()
        return copies[id(tensor)]

    buffers: Buffers = dict(module._buffers)
    if isinstance(module, _BatchNorm):
        state = next(iter(_OPEN[module].values()))
        buffers, attributes = state.buffers, vars(module)
        layer_parameters = state.parameters
        module._parameters.update(layer_parameters)
        attributes.update({key: copied(value) for key, value in attributes.items() if isinstance(value, Tensor)})
        attributes["track_running_stats"] = state.attributes["track_running_stats"]
    module._buffers.update({key: None if value is None else copied(value) for key, value in buffers.items()})


def _leave(module: nn.Module, entry: _Entry) -> None:
    """Restore a module; if a later context is still open, leave it running and let it restore this state instead."""
    entries = _OPEN.get(module, {})
    if entry not in entries:
        return
    later = list(entries)[list(entries).index(entry) + 1 :]
    state = entries.pop(entry)
    if later:
        entries[later[0]] = state
        return
    if not entries:
        del _OPEN[module]
    for key in vars(module).keys() - state.attributes.keys() if isinstance(module, _BatchNorm) else ():
        del vars(module)[key]
    vars(module).update(state.attributes)
    module._buffers.clear()
    module._buffers.update(state.buffers)
    module._parameters.update(state.parameters)


def _opener(frame: FrameType) -> FrameType:
    """The frame whose ``with`` statement opens a context, behind context managers that are made of others."""
    while (caller := frame.f_back) is not None:
        in_contextlib = frame.f_code.co_filename == contextlib.__file__
        if not (in_contextlib or caller.f_code.co_filename == contextlib.__file__ or "enter__" in frame.f_code.co_name):
            break
        frame = caller
    return frame


def _refuse_overlap(layers: Mapping[str, _BatchNorm]) -> None:
    """Refuse to enter unless every open context is around this one: same thread, and not a paused generator's."""
    entries = {entry for layer in layers.values() for entry in _OPEN.get(layer, ())}
    if not entries:
        return
    stack, frame = set(), sys._getframe()
    while frame is not None:
        stack.add(id(frame))
        frame = frame.f_back  # type: ignore[assignment]
    for entry in entries:
        if entry.thread != threading.get_ident():
            raise UserError(
                "another thread has statistics in use on this model: use a lock, or a copy of the model per thread"
            )
        if entry.can_pause and entry.frame not in stack:
            raise UserError(
                "a paused generator or coroutine has statistics in use on this model: finish or close it first, or "
                "use a copy of the model"
            )


def _check_usable(layers: Mapping[str, _BatchNorm], statistics: BatchNormStatistics | Mode) -> None:
    if isinstance(statistics, BatchNormStatistics):
        for name, given in statistics.items():
            if name not in layers:
                raise UserError(f"these statistics are of another model: it has no BatchNorm layer {name!r}")
            _check_channels(name, layers[name], given)
    elif statistics not in ("running", "batch"):
        raise UserError(f"unknown statistics {statistics!r}: give 'running', 'batch' or BatchNormStatistics")
    needs_running = list(layers) if statistics == "running" else []
    if isinstance(statistics, BatchNormStatistics):
        needs_running = [name for name in layers if name not in statistics]
    for name in needs_running:
        if not tracks(layers[name]):
            raise UserError(
                f"layer {name!r} keeps no running statistics (track_running_stats=False): use 'batch' or estimated ones"
            )


def tracks(layer: _BatchNorm) -> bool:
    """Whether the layer has running statistics of its own."""
    own = own_buffers(layer)
    return own.get("running_mean") is not None and own.get("running_var") is not None


def _check_channels(name: str, layer: _BatchNorm, given: LayerStatistics) -> None:
    own = own_buffers(layer).get("running_mean")
    # Ghost BatchNorm keeps several means per channel; what it keeps and what is estimated both fit.
    if given.mean.numel() not in (layer.num_features, None if own is None else own.numel()):
        raise UserError(
            f"layer {name!r} has {layer.num_features} channels, but the statistics have {given.mean.numel()}"
        )
