"""Lending a model to a context: copies stand in for its buffers, and it is given back exactly as it was."""

import contextlib
import inspect
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from bnood.errors import UserError

CAN_PAUSE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class _State(NamedTuple):
    attributes: dict[str, Any]
    buffers: dict[str, Any]
    parameters: dict[str, Any]


@dataclass(eq=False)
class Context:
    """One open context."""

    thread: int  # that opened it
    generator: int | None  # id of the generator's frame that opened it; the frame would keep its variables alive
    saved: dict[nn.Module, _State]  # what each module gets back


_OPEN: tuple[Context, ...] = ()  # outermost first; replaced, never changed, so that threads can read it unlocked
_LOCK = threading.RLock()


@contextmanager
def lent(modules: Collection[nn.Module]) -> Iterator[None]:
    """Evaluation mode with copies in the place of all buffers. Afterwards the modules are what they were.

    A BatchNorm layer begins with its own statistics, not with those of a context around this one. Raises ``UserError``
    unless every open context that shares a BatchNorm layer is around this one.
    """
    global _OPEN
    opener = _opener(sys._getframe())
    generator = id(opener) if opener.f_code.co_flags & CAN_PAUSE else None
    del opener
    with _LOCK:
        _refuse_overlap({module for module in modules if isinstance(module, _BatchNorm)})
        context = Context(threading.get_ident(), generator, {module: _state(module) for module in modules})
        _OPEN = (*_OPEN, context)
    try:
        copies: dict[int, Tensor] = {}
        for module in context.saved:
            _set_aside(module, copies)
        yield
    finally:
        with _LOCK:
            later = _OPEN[_OPEN.index(context) + 1 :]
            _OPEN = tuple(other for other in _OPEN if other is not context)
            for module, state in context.saved.items():
                # A generator that was started inside may still hold the module: then it restores this state.
                heir = next((other for other in later if module in other.saved), None)
                if heir is None:
                    _restore(module, state)
                else:
                    heir.saved[module] = state


def innermost(layer: nn.Module) -> Context | None:
    """The context whose statistics the layer uses."""
    return next((context for context in reversed(_OPEN) if layer in context.saved), None)


def own_buffers(layer: nn.Module) -> dict[str, Any]:
    """The layer's own buffers, whatever context it is in."""
    return next((context.saved[layer].buffers for context in _OPEN if layer in context.saved), layer._buffers)


def tracks(layer: nn.Module) -> bool:
    """Whether the layer has running statistics of its own."""
    own = own_buffers(layer)
    return own.get("running_mean") is not None and own.get("running_var") is not None


def _state(module: nn.Module) -> _State:
    attributes = dict(vars(module)) if isinstance(module, _BatchNorm) else _caches(module)
    attributes["training"] = module.training
    return _State(attributes, dict(module._buffers), dict(module._parameters))


def _caches(module: nn.Module) -> dict[str, Any]:
    """Such as LeViT's biases: filled in evaluation mode, stale after the next training step."""
    if not module.training:
        return {}
    return {key: value for key, value in vars(module).items() if type(value) is dict and key[0] != "_"}


def _set_aside(module: nn.Module, copies: dict[int, Tensor]) -> None:
    """Put copies in the place of the buffers; ``copies`` keeps shared what is shared."""
    if isinstance(module, ScriptModule):
        module.training = False  # its compiled code has the buffers
        return
    vars(module).update({key: dict(cache) for key, cache in _caches(module).items()})
    vars(module)["training"] = False  # .eval() would run into models that override train()
    buffers = dict(module._buffers)
    if isinstance(module, _BatchNorm):
        own = next(context.saved[module] for context in _OPEN if module in context.saved)
        buffers, vars(module)["track_running_stats"] = own.buffers, own.attributes["track_running_stats"]
        module._parameters.update(own.parameters)
    for key, buffer in buffers.items():
        if buffer is not None and not is_lazy(buffer):
            if id(buffer) not in copies:
                copies[id(buffer)] = buffer.detach().clone()
            module._buffers[key] = copies[id(buffer)]


def _restore(module: nn.Module, state: _State) -> None:
    if isinstance(module, ScriptModule):
        module.training = state.attributes["training"]
        return
    if isinstance(module, _BatchNorm):
        vars(module).clear()
    vars(module).update(state.attributes)
    module._buffers.clear()
    module._buffers.update(state.buffers)
    module._parameters.update(state.parameters)


def _opener(frame: FrameType) -> FrameType:
    """The frame whose ``with`` statement opens a context, behind context managers that are made of others."""
    while (caller := frame.f_back) is not None and (
        contextlib.__file__ in (frame.f_code.co_filename, caller.f_code.co_filename)
        or "enter__" in frame.f_code.co_name
    ):
        frame = caller
    return frame


def _refuse_overlap(layers: set[nn.Module]) -> None:
    for context in _OPEN:
        if context.saved.keys().isdisjoint(layers):
            continue
        elsewhere = context.thread != threading.get_ident()
        if elsewhere or (context.generator is not None and not _is_running(context.generator)):
            who = "another thread" if elsewhere else "a paused generator or coroutine"
            raise UserError(f"{who} has statistics in use on this model: wait for it, or give it a copy of the model")


def _is_running(generator: int) -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and id(frame) != generator:
        frame = frame.f_back
    return frame is not None
