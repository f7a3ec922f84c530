"""Any image classifier as logits and penultimate features.

The features are what enters the head, the last linear layer; a hook on the head records them::

    network = Network(torchvision.models.resnet18(), transform)
    outputs = network.outputs(images)  # .logits [N, K], .features [N, D]
    weight, bias = network.head  # outputs.logits = outputs.features @ weight.T + bias
"""

import difflib
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnood.errors import UserError, is_out_of_memory
from bnood.networks.head import FoundHead, find_head, received_features
from bnood.networks.outputs import Head, Outputs
from bnood.statistics import batchnorm_layers, has_batchnorm, unwrapped

PROBE_IMAGES = 8


class Network:
    """A model, the transform of its images, and the way its logits and features are taken.

    The model is left exactly as it was found, also after an error. Of a wrapped or compiled model the bare one runs.

    Args:
        model: gives logits ``[N, K]``, or an object with ``.logits`` as Hugging Face's models do.
        transform: turns an image (PIL, or uint8 tensor ``[3, H, W]``) into the model's input ``[3, h, w]``; picklable.
            None: images are taken as they are stored, as uint8 ``[n, H, W, 3]`` by a model whose attribute
            ``takes_uint8`` is true, else as float ``[n, 3, H, W]`` in 0..1.
        head: the layer whose input the features are, or its name; by default the last Linear that makes the logits.
        call: ``call(model, batch)`` hands a batch to the model and returns its output; default ``model(batch)``.
        name: for tables; default the class of the model.
        norm: for tables; default ``bn`` for models with BatchNorm, else ``none``.
        seed: of the training run, for tables.

    Raises:
        UserError: for a model that is no ``nn.Module``, a transform or call that cannot be called, or a head that the
            model does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Callable[[Any], Tensor] | None = None,
        *,
        head: str | nn.Module | None = None,
        call: Callable[[nn.Module, Any], Any] | None = None,
        name: str | None = None,
        norm: str | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UserError(f"a network needs a torch.nn.Module, not {type(model).__name__}")
        for what, given in (("transform", transform), ("call", call)):
            if given is not None and not callable(given):
                raise UserError(f"{what} has to be callable, not {type(given).__name__}")
        self.model = unwrapped(model)
        self.transform = transform
        self.transform_text = described(transform)
        self.name = name or type(self.model).__name__
        self.norm = norm or ("bn" if has_batchnorm(self.model) else "none")
        self.seed = seed
        self._call = call
        self._head_name = None if head is None else _layer_name(self.model, head)
        self._found: FoundHead | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's parameters lie."""
        return _reference(self.model).device

    @property
    def head(self) -> Head | None:
        """Weight and bias of the head, if ``logits = features @ weight.T + bias``, else None; known after a probe."""
        return self._probed().values

    @property
    def num_classes(self) -> int:
        """K, the number of logits; known after a probe."""
        return self._probed().num_classes

    @property
    def feature_width(self) -> int:
        """D, the number of features, 0 where there are none (:class:`FoundHead`); known after a probe."""
        return self._probed().feature_width

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
        except (ValueError, RuntimeError) as error:
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            shape = list(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"{self.name} cannot take a batch {shape} ({reason}): is it of another size?") from error

    def probe(self, batch: Any) -> FoundHead:
        """Find the head on the first 8 images of a batch. Done once: a second call returns what the first one found.

        Raises:
            UserError: if the output is no logits, no Linear makes them and no head was named, or that does not run.
        """
        if self._found is None:
            few = batch[:PROBE_IMAGES] if isinstance(batch, Tensor) else batch
            with _evaluation_mode(self.model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
                self._found = find_head(self.model, lambda: self._checked_logits(few), self._head_name)
        return self._found

    def outputs(self, batch: Any, channel_means: bool = False) -> Outputs:
        """Logits and features of one batch, without gradients, float32 on the CPU.

        The model runs in the mode and with the statistics that it has: see :func:`bnood.use_statistics`.

        Args:
            batch: N images, as the model or ``call`` takes them.
            channel_means: also the spatial means ``[N, C]`` of the last input of each BatchNorm layer that runs.

        Raises:
            UserError: as :meth:`probe` does, and for features of another width than the head takes.
        """
        head = self.probe(batch)
        features: Tensor | None = None
        means: dict[str, Tensor] = {}

        def keep_features(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal features
            features = received_features(head.name, layer, args, kwargs)

        def keep_mean(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                x = args[0].float()
                means[name] = x.flatten(2).mean(2) if x.ndim > 2 else x

            return hook

        # A compiled graph does not call hooks that were added after its compilation.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), ExitStack() as hooks:
            if head.feature_width:
                hooks.callback(head.layer.register_forward_pre_hook(keep_features, with_kwargs=True).remove)
            for name, layer in batchnorm_layers(self.model).items() if channel_means else ():
                hooks.callback(layer.register_forward_pre_hook(keep_mean(name)).remove)
            logits = self._logits(batch)
        if features is None:
            if head.feature_width:
                raise UserError(f"{self.name}: the head {head.name!r} did not run on this batch")
            features = logits.new_empty(len(logits), 0)
        for name, rows in {head.name: features, **means}.items():
            if len(rows) != len(logits):
                raise UserError(f"{self.name}: layer {name!r} receives {len(rows)} rows for {len(logits)} images")
        return Outputs(_on_cpu(logits), _on_cpu(features), {name: _on_cpu(mean) for name, mean in means.items()})

    def _probed(self) -> FoundHead:
        if self._found is None:
            raise UserError(f"{self.name}: call probe(batch) or outputs(batch) first, which find the head")
        return self._found

    def _logits(self, batch: Any) -> Tensor:
        """The logits ``[N, K]`` of a batch."""
        output = self.call(self.model, batch)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"{self.name} gives a {type(output).__name__}, not logits [N, K]: pass call=, "
                "a function of model and batch that returns the logits"
            )
        count = len(batch) if isinstance(batch, Tensor) else len(logits)
        if logits.ndim != 2 or len(logits) != count or logits.shape[1] < 2 or not logits.is_floating_point():
            raise UserError(
                f"{self.name} gives a {logits.dtype} tensor {list(logits.shape)} for {count} images, "
                "not logits [N, K] of K >= 2 classes"
            )
        return logits

    def _checked_logits(self, batch: Any) -> Tensor:
        """The logits of a probe batch, which must not be probabilities: energy and max logit would be meaningless."""
        logits = self._logits(batch)
        values = logits.double()
        if not values.isfinite().all():
            raise UserError(f"{self.name} gives NaN or infinite values on the first {len(logits)} images")
        sums_to_1 = (values.sum(1) - 1).abs().max() < 1e-3 and values.min() >= 0
        if sums_to_1 or values.logsumexp(1).abs().max() < 1e-3:
            raise UserError(f"{self.name} gives probabilities or their logarithms, not logits: leave out its softmax")
        return logits


def described(transform: Callable[[Any], Any] | None) -> str:
    """A transform in one line."""
    if transform is None:
        return "none, images as they are stored"
    return " ".join(getattr(transform, "__qualname__", repr(transform)).split())


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in training:
            module.training = False  # .eval() would run into models that override train()
        yield
    finally:
        for module, flag in training:
            module.training = flag


def _layer_name(model: nn.Module, head: str | nn.Module) -> str:
    known = {name: module for name, module in model.named_modules() if name}
    for name, module in known.items():
        if name == head or module is head:
            return name
    close = difflib.get_close_matches(head, known, n=3) if isinstance(head, str) else []
    hint = f": did you mean {' or '.join(close)}?" if close else ": see model.named_modules()"
    raise UserError(f"{type(model).__name__} has no layer {head if isinstance(head, str) else 'head'!r}{hint}")


def _reference(model: nn.Module) -> Tensor:
    """A tensor of the model's type, on its device; BatchNorm's may be in float32 for a while."""
    others = (module for module in model.modules() if not isinstance(module, _BatchNorm))
    own = (parameter for module in others for parameter in module.parameters(recurse=False))
    tensors = itertools.chain(own, model.parameters(), model.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))


def _on_cpu(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float32)
