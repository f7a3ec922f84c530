"""Any image classifier as logits and penultimate features, which are what enters its head."""

import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnood.errors import UserError, is_out_of_memory
from bnood.statistics import batchnorm_layers, has_batchnorm, unwrapped
from bnood.statistics.contexts import lent

PROBE_IMAGES = 8
HEAD_TOLERANCE = 1e-5  # of the largest logit
# Averaging before or after the head differs by this much: bfloat16 keeps 8 bits, convolutions on a GPU 10 (TF32).
LOW_PRECISION_TOLERANCE = 2e-2


class Head(NamedTuple):
    """The last linear layer: ``logits = features @ weight.T + bias``; ``[K, D]`` and ``[K]``, float32 on the CPU."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Outputs:
    """What one forward pass of N images gives, float32 on the CPU."""

    logits: Tensor  # [N, K]
    features: Tensor  # [N, D], what enters the last linear layer
    channel_means: dict[str, Tensor] = field(default_factory=dict)  # [N, C] of each BatchNorm input, if asked for

    def __len__(self) -> int:
        return len(self.logits)

    def at(self, index: Tensor | np.ndarray | slice) -> "Outputs":
        """The outputs of some of the images."""
        means = {name: values[index] for name, values in self.channel_means.items()}
        return Outputs(self.logits[index], self.features[index], means)

    def room(self, count: int) -> "Outputs":
        """Room for the outputs of ``count`` images, to :meth:`put` them there."""
        with torch.inference_mode(False):
            logits, features, *means = (x.new_empty(count, *x.shape[1:]) for x in self._tensors())
        return Outputs(logits, features, dict(zip(self.channel_means, means, strict=True)))

    def put(self, start: int, part: "Outputs") -> None:
        """Write the outputs of some images over those from ``start`` on."""
        for whole, own in zip(self._tensors(), part._tensors(), strict=True):
            whole[start : start + len(own)] = own

    def _tensors(self) -> list[Tensor]:
        return [self.logits, self.features, *self.channel_means.values()]


class Network:
    """A model, the transform of its images, and the way its logits and features are taken.

    The model is left as it was, but for what its own forward sets. Of a wrapped or compiled model the bare one runs.

    Args:
        model: gives logits ``[N, K]``, or an object with ``.logits`` as Hugging Face's models do.
        transform: turns an image (PIL, or uint8 tensor ``[3, H, W]``) into the model's input ``[3, h, w]``; picklable.
            None: images are taken as they are stored, as uint8 ``[n, H, W, 3]`` by a model whose attribute
            ``takes_uint8`` is true, else as float ``[n, 3, H, W]`` in 0..1.
        head: the layer whose input the features are, or its name; by default the last Linear that makes the logits.
            Feature maps are averaged over space.
        call: ``call(model, batch)`` hands a batch to the model and returns its output; default ``model(batch)``.
        name, norm, seed: for tables; default the class of the model, ``bn`` for models with BatchNorm, and none.

    UserError for a model, transform or call of another kind, or a head that the model does not have.
    """

    head: Head | None  # None if the logits are no linear function of the features; this and what follows: after a probe
    num_classes: int  # K, of logits
    feature_width: int  # D, of features

    def __init__(
        self, model: nn.Module, transform: Callable[[Any], Tensor] | None = None, *,
        head: str | nn.Module | None = None, call: Callable[[nn.Module, Any], Any] | None = None,
        name: str | None = None, norm: str | None = None, seed: int | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise UserError(f"a network needs a torch.nn.Module, not {type(model).__name__}")
        for what, given in (("transform", transform), ("call", call)):
            if given is not None and not callable(given):
                raise UserError(f"{what} has to be callable, not {type(given).__name__}")
        self.model = unwrapped(model)
        self.transform, self.transform_text = transform, described(transform)
        self.name = name or type(self.model).__name__
        self.norm = norm or ("bn" if has_batchnorm(self.model) else "none")
        self.seed = seed
        self._call = call
        self._head_name = None if head is None else _layer_name(self.model, head)
        self._found: str | None = None  # the head's name

    @property
    def device(self) -> torch.device:
        """Where the model's parameters lie."""
        return _reference(self.model).device

    def __getattr__(self, name: str) -> Any:
        if name in Network.__annotations__:
            raise UserError(f"{self.name}: call probe(batch) or outputs(batch) first, which find the head")
        raise AttributeError(name)

    def call(self, model: nn.Module, batch: Any) -> Any:
        """Hand one batch to the model, on its device and in its type; serves ``estimate_statistics(call=)`` too."""
        if isinstance(batch, Tensor):
            batch = batch.to(self.device, non_blocking=True)
            if not getattr(model, "takes_uint8", False):
                if batch.dtype == torch.uint8:
                    batch = batch.permute(0, 3, 1, 2) / 255
                batch = batch.to(_reference(model).dtype)
                if batch.ndim == 4:  # convolutions are about 1.5 times as fast in this layout on a CPU
                    batch = batch.contiguous(memory_format=torch.channels_last)
        try:
            return model(batch) if self._call is None else self._call(model, batch)
        except Exception as error:  # whatever the user's model raises
            if isinstance(error, UserError | MemoryError) or is_out_of_memory(error):
                raise
            found = f"{list(batch.shape) if isinstance(batch, Tensor) else ''} ({type(error).__name__}: {error})"
            raise UserError(f"{self.name} cannot take a batch {found}: is it of another size?") from error

    def probe(self, batch: Any) -> str:
        """Find the head on the first 8 images of a batch, once: its name. UserError if there is none, or no logits."""
        if self._found is None:
            few = batch[:PROBE_IMAGES] if isinstance(batch, Tensor) else batch
            with lent(list(self.model.modules())), torch.no_grad(), torch.compiler.set_stance("force_eager"):
                self._found = self._find_head(few)
        return self._found

    def outputs(self, batch: Any, channel_means: bool = False) -> Outputs:
        """Logits and features of one batch of N images, without gradients, float32 on the CPU.

        The model runs in the mode and with the statistics that it has: see :func:`bnood.use_statistics`. On request
        also the spatial means ``[N, C]`` of the last input of each BatchNorm layer that runs.
        """
        head = self.probe(batch)
        layers = {head: self.model.get_submodule(head)} | (batchnorm_layers(self.model) if channel_means else {})
        # A compiled graph does not call hooks that were added after its compilation.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), _inputs_of(layers) as means:
            logits = self._logits(batch)
        for name in [head, *means]:
            if (rows := len(means.get(name, ()))) != len(logits):
                raise UserError(f"{self.name}: layer {name!r} receives {rows} rows for {len(logits)} images")
        on_cpu = {name: mean.detach().to("cpu", torch.float32) for name, mean in means.items()}
        return Outputs(logits.detach().to("cpu", torch.float32), on_cpu.pop(head), on_cpu)

    def _logits(self, batch: Any) -> Tensor:
        output = self.call(self.model, batch)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            wanted = "pass call=, a function of model and batch that returns the logits"
            raise UserError(f"{self.name} gives a {type(output).__name__}, not logits [N, K]: {wanted}")
        count = len(batch) if isinstance(batch, Tensor) else len(logits)
        if logits.ndim != 2 or len(logits) != count or logits.shape[1] < 2 or not logits.is_floating_point():
            found = f"{logits.dtype} tensor {list(logits.shape)} for {count} images"
            raise UserError(f"{self.name} gives a {found}, not logits [N, K] of K >= 2 classes")
        return logits

    def _find_head(self, batch: Any) -> str:
        """The layer with a given name, or else the last Linear whose ``features @ weight.T + bias`` are the logits.

        A layer's name or position is no proof: scaling, a softmax or a second classifier may follow it.
        """
        named = self._head_name
        layers = dict(self.model.named_modules())
        candidates = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear | nn.Conv2d)}
        with _inputs_of(candidates if named is None else {named: layers[named]}) as features:
            logits = self._logits(batch)
        values = logits.double()
        if not values.isfinite().all():
            raise UserError(f"{self.name} gives NaN or infinite values on the first {len(logits)} images")
        if (values.min() >= 0 and (values.sum(1) - 1).abs().max() < 1e-3) or values.logsumexp(1).abs().max() < 1e-3:
            raise UserError(f"{self.name} gives probabilities or their logarithms, not logits: leave out its softmax")
        for name in reversed(features):
            head = _linear(layers[name], features[name], logits)
            if named is not None or (head is not None and isinstance(layers[name], nn.Linear)):
                self.head, self.num_classes, self.feature_width = head, logits.shape[1], features[name].shape[1]
                return name
        if named is not None:
            raise UserError(f"{self.name}: the layer head={named!r} is not given a batch [N, ...] of tensors")
        wanted = "name the layer whose input are the features (head=, on the command line --head)"
        ran = f"these run, last first: {', '.join(list(reversed(features))[:6]) or 'none'}"
        raise UserError(f"no Linear layer of {self.name} makes its output {list(logits.shape)}: {wanted}; {ran}")


def described(transform: Callable[[Any], Any] | None) -> str:
    if transform is None:
        return "none, images as they are stored"
    return " ".join(getattr(transform, "__qualname__", repr(transform)).split())


@contextmanager
def _inputs_of(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what layers receive, ``[N, C]``, averaged over space; in order of execution, of each its last run."""
    found: dict[str, Tensor] = {}

    def record(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        found.pop(name, None)
        if isinstance(x, Tensor) and x.ndim > 1:
            last = isinstance(layer, nn.Linear) or (x.ndim == 3 and not isinstance(layer, _BatchNorm))
            x = x.movedim(-1, 1) if last else x  # where the channels are
            found[name] = x.float().flatten(2).mean(2) if x.ndim > 2 else x

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(partial(record, name), with_kwargs=True).remove)
        yield found


def _layer_name(model: nn.Module, head: str | nn.Module) -> str:
    known = {name: module for name, module in model.named_modules() if name}
    for name, module in known.items():
        if name == head or module is head:
            return name
    close = difflib.get_close_matches(str(head), known, n=3) or list(known)[-6:]
    raise UserError(f"{type(model).__name__} has no layer {str(head)!r}: did you mean {' or '.join(close)}?")


def _reference(model: nn.Module) -> Tensor:
    """A tensor of the model's type, on its device; BatchNorm's may be in float32 for a while."""
    others = (module for module in model.modules() if not isinstance(module, _BatchNorm))
    own = (parameter for module in others for parameter in module.parameters(recurse=False))
    tensors = itertools.chain(own, model.parameters(), model.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))


def _linear(layer: nn.Module, features: Tensor, logits: Tensor) -> Head | None:
    """The layer's weight and bias, if they turn the features into the logits."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or len(features) != len(logits):
        return None
    weight = weight.detach().flatten(1)
    if weight.shape != (logits.shape[1], features.shape[1]):
        return None
    found = nn.functional.linear(features.to(weight.dtype), weight, bias)
    low = torch.finfo(found.dtype).bits < 32 or (found.is_cuda and isinstance(layer, nn.Conv2d))
    atol = (LOW_PRECISION_TOLERANCE if low else HEAD_TOLERANCE) * max(1.0, float(logits.abs().max()))
    if not torch.allclose(found.float(), logits.float(), rtol=0, atol=atol):
        return None
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    return Head(weight.to("cpu", torch.float32), bias.to("cpu", torch.float32))
