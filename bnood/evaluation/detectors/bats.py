"""BATS (Zhu et al., "Boosting Out-of-distribution Detection with Typical Features", NeurIPS 2022).

Extreme values are clipped to a typical set, the mean plus or minus lambda standard deviations, and the energy score is
taken of what the network makes of them. The paper and its published code differ in what they clip:

- ``bats``, the paper's form: the output of BatchNorm layers inside the network. A layer's normalised input has mean 0
  and standard deviation 1 under the statistics in force, so its output gamma x + beta is clipped to
  beta - lambda |gamma| and beta + lambda |gamma|.
- ``bats_features``, the form of the authors' code (its ``test_ood.py``): the pooled penultimate features, each unit
  with its own mean and standard deviation over ID images.

The default lambda is 3.25, as in the code for CIFAR-10 and ResNet-18 (1.05 there for ImageNet and a ViT).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnood.errors import UserError
from bnood.evaluation.detectors.detector import Detector, FittedOn, Needs, NotApplicable
from bnood.evaluation.scores import energy
from bnood.networks.outputs import Head
from bnood.statistics import BatchNormStatistics, Mode, batchnorm_layers, executed_layers, has_batchnorm, use_statistics

LAMBDA = 3.25


class BATS(Detector):
    """The paper's form, inside the network: ``score`` takes the logits of one more pass under ``context``.

    Args:
        lam: lambda, in standard deviations; infinity gives the energy score.
        layers: how many BatchNorm layers are clipped, of those that run last.
    """

    name: ClassVar[str] = "bats"
    needs: ClassVar[Needs] = "own_pass"

    def __init__(self, lam: float = LAMBDA, layers: int = 1) -> None:
        if not lam > 0 or layers < 1:
            raise UserError(f"BATS needs lambda > 0 and at least one layer, not {lam} and {layers}")
        self.lam, self.layers = lam, layers

    @contextmanager
    def context(self, network: Any, statistics: BatchNormStatistics | Mode | None = None) -> Iterator[None]:
        """Within it, the chosen BatchNorm layers of ``network.model`` clip what they give.

        Args:
            network: a :class:`bnood.networks.network.Network`.
            statistics: entered with ``use_statistics``; None: those of the surrounding context.

        Raises:
            NotApplicable: if the model has no BatchNorm layer.
            UserError: in the pass, for a layer that does not normalise by torch's ``batch_norm``.
        """
        model: nn.Module = network.model
        if not has_batchnorm(model):
            raise NotApplicable("no BatchNorm layer")
        with ExitStack() as stack:
            if statistics is not None:
                stack.enter_context(use_statistics(model, statistics))
            clip = stack.enter_context(_ClippedBatchNorm(self.lam))
            for layer in batchnorm_layers(model).values():
                stack.callback(layer.register_forward_pre_hook(clip.enter).remove)
                stack.callback(layer.register_forward_hook(clip.leave, always_call=True).remove)
            stack.callback(model.register_forward_pre_hook(clip.last(self.layers), with_kwargs=True).remove)
            yield
            if not clip.clipped:
                raise UserError("BATS clipped nothing: the model was not called as a whole")

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return energy(logits)


class _ClippedBatchNorm(TorchFunctionMode):
    """Clips what ``batch_norm`` returns while one of the ``clipped`` layers runs.

    Not a hook on the layer's output: subclasses such as timm's BatchNormAct2d have an activation behind the norm.
    """

    def __init__(self, lam: float) -> None:
        super().__init__()
        self.lam = lam
        self.clipped: set[nn.Module] = set()
        self.running: nn.Module | None = None  # the layer that runs now
        self.done = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if func is not F.batch_norm or self.running not in self.clipped:
            return given
        assert self.running is not None
        self.done = True
        gamma, beta = (getattr(self.running, each) for each in ("weight", "bias"))
        width = self.lam * (given.new_ones(given.shape[1]) if gamma is None else gamma.abs())
        centre = torch.zeros_like(width) if beta is None else beta
        low, high = ((centre + side * width).view(-1, *[1] * (given.ndim - 2)) for side in (-1, 1))
        return given.clamp(low, high)

    def enter(self, layer: nn.Module, _: Any) -> None:
        self.running, self.done = layer, False

    def leave(self, layer: nn.Module, *_: Any) -> None:
        self.running = None
        if layer in self.clipped and not self.done:
            raise UserError(f"BATS cannot clip a {type(layer).__name__}: it does not call torch's batch_norm")

    def last(self, count: int) -> Callable[..., None]:
        """A pre-hook for the model: before its first pass, one without clipping finds the layers that run last."""

        def find(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.clipped:
                names = executed_layers(model, None, call=lambda bare, _: bare.forward(*args, **kwargs))
                self.clipped = {batchnorm_layers(model)[name] for name in names[-count:]}

        return find


class BATSFeatures(Detector):
    """The code's form: features clipped on both sides, then the head and the energy score, in float64."""

    name: ClassVar[str] = "bats_features"
    fitted_on: ClassVar[FittedOn] = "train"
    needs_head: ClassVar[bool] = True

    def __init__(self, lam: float = LAMBDA) -> None:
        if not lam > 0:
            raise UserError(f"BATS needs lambda > 0, not {lam}")
        self.lam = lam

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor | None, head: Head | None) -> None:
        std, mean = torch.std_mean(features.double(), dim=0, correction=0)
        self.low, self.high, self.head = mean - self.lam * std, mean + self.lam * std, head

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        assert self.head is not None
        clipped = features.double().clamp(self.low, self.high)
        return energy(clipped @ self.head.weight.double().T + self.head.bias.double())
