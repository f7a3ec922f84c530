"""What happens inside a network while it trains: gradients, pre-activations and units of every hidden layer.

A Lightning callback that, every so many steps, sends one fixed batch of training images through the network and
measures each :class:`bnood.networks.hidden_layer.HiddenLayer`, numbered from 1 at the input. Training does not notice:
the gradients come from ``torch.autograd.grad``, which leaves ``.grad`` alone; BatchNorm layers take the probe batch's
own statistics, as in training, by :func:`bnood.statistics.use_statistics`, which leaves their buffers alone; nothing is
drawn at random after the probe images have been.

Quantities per layer (a *unit* is a column of an MLP's layer, or a channel of a ConvNet's over all pixels):

===================== ================================================================================================
gradient_norm         Frobenius norm of the loss's gradient on the linear map's weight
update_ratio          norm of the change of that weight in the step that follows, relative to the weight's norm
preactivation_mean    mean of the activation's input over units, images and pixels; ``_std`` its standard deviation
preactivation_offset  root mean square of the units' means, relative to the root mean square of their standard
                      deviations over images (and pixels): how far off a unit's values lie from zero, whatever the sign
linear_mean           the same three (``linear_std``, ``linear_offset``) of the linear map's own output: what a norm
                      that stands between has to re-place
running_mean          the same three of the activation's input in evaluation mode, with the running averages: BN nets
dead_share            ReLU: share of units whose input is 0 or less for all probe images (at all pixels)
always_on_share       ReLU: share of units whose input is above 0 for all probe images (at all pixels)
saturated_share       sigmoid: share of values below 0.05 or above 0.95; tanh: share beyond 0.9 on either side
===================== ================================================================================================
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnood.data.datamodule import ImageDataModule
from bnood.errors import UserError
from bnood.networks.hidden_layer import HiddenLayer
from bnood.statistics import has_batchnorm, use_statistics
from bnood.training.classifier import Classifier

BINS, LOWEST, HIGHEST = 61, -6.0, 6.0
EDGES = np.linspace(LOWEST, HIGHEST, BINS + 1)
HISTOGRAM_VALUES = 2**19
SATURATED = {nn.Sigmoid: np.log(19.0), nn.Tanh: np.arctanh(0.9)}
"""The size of the activation's input from which on it counts as saturated: sigmoid(log 19) = 0.95."""

LayerFigures = dict[str, float]
Histograms = dict[str, np.ndarray]
"""By mode of the BatchNorm layers (``training``, and of BN nets ``evaluation``): shares ``[layers, 63]``."""


def hidden_layers(network: nn.Module) -> list[HiddenLayer]:
    """The hidden layers of a plain network, from the input on.

    Raises:
        UserError: if there are none.
    """
    layers = [module for module in network.modules() if isinstance(module, HiddenLayer)]
    if not layers:
        raise UserError(f"{type(network).__name__} has no plain hidden layers to record: choose mlp or plain")
    return layers


def probe(classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[list[LayerFigures], Histograms]:
    """Measure all hidden layers on a batch of images, leaving the network as it is.

    Args:
        classifier: the network, in whatever mode.
        images: uint8 ``[N, H, W, 3]``, on the network's device.
        labels: int64 ``[N]``.

    Returns:
        For each layer its quantities by name (without ``update_ratio``), and by mode the shares of the layers'
        pre-activations: below -6, in the bins of :data:`EDGES`, and above 6. BN nets have an evaluation mode of their
        own; every other net has the same pre-activations in both.
    """
    layers = hidden_layers(classifier.network)
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    statistics: AbstractContextManager[Any] = nullcontext()
    if has_batchnorm(classifier.network):
        statistics = use_statistics(classifier.network, "batch")
    with _watched(layers, inputs, outputs), statistics, torch.enable_grad():
        loss = F.cross_entropy(classifier(images), labels, label_smoothing=classifier.hparams["label_smoothing"])
        gradients = torch.autograd.grad(loss, [layer.linear.weight for layer in layers])
    figures = [
        {"gradient_norm": float(gradient.norm())} | layer_figures(layer, inputs[number], outputs[number])
        for number, (layer, gradient) in enumerate(zip(layers, gradients, strict=True))
    ]
    shares = {"training": np.stack([histogram(inputs[number]) for number in range(len(layers))])}
    if has_batchnorm(classifier.network):
        # A training batch centres the units by construction; what an evaluated image meets are the running averages.
        with _watched(layers, inputs, outputs), use_statistics(classifier.network, "running"), torch.no_grad():
            classifier(images)
        for number, values in inputs.items():
            figures[number] |= _moments("running", values)
        shares["evaluation"] = np.stack([histogram(inputs[number]) for number in range(len(layers))])
    return figures, shares


@contextmanager
def _watched(layers: list[HiddenLayer], inputs: dict[int, Tensor], outputs: dict[int, Tensor]) -> Iterator[None]:
    """Collect the activations' inputs and the linear maps' outputs of the forward passes inside."""

    def watch(number: int, layer: HiddenLayer) -> list[Any]:
        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs[number] = arguments[0].detach()

        def after(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            outputs[number] = output.detach()

        return [layer.activation.register_forward_pre_hook(before), layer.linear.register_forward_hook(after)]

    hooks = [hook for number, layer in enumerate(layers) for hook in watch(number, layer)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def layer_figures(layer: HiddenLayer, preactivation: Tensor, linear: Tensor) -> LayerFigures:
    """The quantities of one layer (see the module's text) from its activation's input and its linear map's output.

    Both are ``[N, units]`` or ``[N, units, H, W]``.
    """
    figures = _moments("preactivation", preactivation)
    figures |= _moments("linear", linear) if linear is not preactivation else _renamed(figures)
    # Of values that are NaN or infinite no share can be given: comparisons would make it 0.
    unknown = 0.0 if math.isfinite(figures["preactivation_std"]) else math.nan
    if isinstance(layer.activation, nn.ReLU):
        axes = _all_but_units(preactivation)
        figures["dead_share"] = float((preactivation.amax(dim=axes) <= 0).double().mean()) + unknown
        figures["always_on_share"] = float((preactivation.amin(dim=axes) > 0).double().mean()) + unknown
    bound = SATURATED.get(type(layer.activation))
    if bound is not None:
        figures["saturated_share"] = float((preactivation.abs() > bound).double().mean()) + unknown
    return figures


def _moments(name: str, values: Tensor) -> LayerFigures:
    variances, means = torch.var_mean(values, dim=_all_but_units(values), correction=0)
    means, variances = means.double(), variances.double()
    mean = float(means.mean())
    # All units have as many values: the variance of all is the mean variance plus the variance of the means.
    std = float((variances.mean() + means.var(correction=0)).sqrt())
    spread = float(variances.mean().sqrt())
    offset = float(means.square().mean().sqrt()) / spread if spread > 0 else float("nan")
    return {f"{name}_mean": mean, f"{name}_std": std, f"{name}_offset": offset}


def _all_but_units(values: Tensor) -> list[int]:
    return [axis for axis in range(values.ndim) if axis != 1]


def _renamed(figures: LayerFigures) -> LayerFigures:
    return {name.replace("preactivation", "linear"): value for name, value in figures.items()}


def histogram(values: Tensor) -> np.ndarray:
    """Shares of the values below -6, in 61 equal bins from -6 to 6 (the last one closed), and above 6: ``[63]``.

    Of large feature maps the first images are counted, up to :data:`HISTOGRAM_VALUES` values: counting four million
    takes longer than computing them, and the probe images are in random order.
    """
    flat = values[: max(1, HISTOGRAM_VALUES // values[0].numel())].detach().float().flatten()
    counts = torch.histc(flat, BINS, LOWEST, HIGHEST)
    outside = torch.stack([(flat < LOWEST).sum(), (flat > HIGHEST).sum()]).double()
    inside = counts.double()
    return (torch.cat([outside[:1], inside, outside[1:]]) / flat.numel()).cpu().numpy()


class Recorder(L.Callback):
    """Records the hidden layers of a plain network on a fixed probe batch while it trains.

    A record at step s is of the network before that step's update; the first is of the untrained network, the last,
    which has no ``update_ratio``, of the trained one.

    Args:
        every: steps between records. The cost per record is about that of two or three steps, so that a tenth of the
            training time is kept to from 20 to 50 on; ``seconds_recording`` and ``seconds_training`` say what it was.
        images: probe images, drawn from the training images without augmentation.
        seed: decides which ones.

    Attributes:
        rows: step, epoch, layer, quantity and value of everything recorded.
        shares: step, epoch, and the histograms of all layers by mode (:func:`probe`).
    """

    def __init__(self, every: int = 50, images: int = 256, seed: int = 0) -> None:
        for name, value in (("every", every), ("images", images)):
            if value < 1:
                raise UserError(f"recorder.{name} is {value}; expected a whole number from 1 up")
        self.every, self.images, self.seed = every, images, seed
        self.rows: list[tuple[int, float, int, str, float]] = []
        self.shares: list[tuple[int, float, Histograms]] = []
        self.seconds_recording, self._seconds_epochs, self._recorded_outside = 0.0, 0.0, 0.0
        self._weights: list[Tensor] = []
        self._probe: tuple[Tensor, Tensor] | None = None
        self._epoch_start = 0.0

    @property
    def seconds_training(self) -> float:
        """Seconds spent in training epochs, without validation and without recording."""
        return self._seconds_epochs - (self.seconds_recording - self._recorded_outside)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if pl_module.hparams["compile"]:
            raise UserError("model.compile is true, but a compiled network has no layers to record: set it to false")
        hidden_layers(pl_module.network)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule)
        self._probe = probe_images(data, self.images, self.seed)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every == 0:
            with self._timed():
                self._record(trainer, pl_module)
                self._weights = [layer.linear.weight.detach().clone() for layer in hidden_layers(pl_module.network)]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._weights:
            with self._timed():
                self._record_updates(trainer, pl_module)
        if trainer.is_last_batch:
            self._seconds_epochs += time.perf_counter() - self._epoch_start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        before = self.seconds_recording
        with self._timed():
            self._record(trainer, pl_module)
        self._recorded_outside += self.seconds_recording - before

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Count the time of the epoch in which training broke off."""
        self._seconds_epochs += time.perf_counter() - self._epoch_start

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds_recording += time.perf_counter() - start

    def _record(self, trainer: Any, pl_module: Any) -> None:
        assert self._probe is not None
        images, labels = (each.to(pl_module.device) for each in self._probe)
        figures, shares = probe(pl_module, images, labels)
        step, epoch = trainer.global_step, trainer.global_step / trainer.num_training_batches
        for number, layer in enumerate(figures, start=1):
            self.rows += [(step, epoch, number, quantity, value) for quantity, value in layer.items()]
        self.shares.append((step, epoch, shares))
        log_layers(trainer, step, figures, shares["training"])

    def _record_updates(self, trainer: Any, pl_module: Any) -> None:
        step = trainer.global_step - 1  # the record of the network before the update that has just been made
        for number, (before, layer) in enumerate(
            zip(self._weights, hidden_layers(pl_module.network), strict=True), start=1
        ):
            ratio = float((layer.linear.weight.detach() - before).norm() / before.norm())
            self.rows.append((step, step / trainer.num_training_batches, number, "update_ratio", ratio))
        self._weights = []

    def tables(self, keys: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The long tables of quantities and of histograms, with the given columns in front."""
        quantities = pd.DataFrame(self.rows, columns=["step", "epoch", "layer", "quantity", "value"])
        layers = int(quantities["layer"].max()) if len(quantities) else 0
        quantities.insert(3, "layers", layers)
        low, high = np.append(-np.inf, EDGES), np.append(EDGES, np.inf)
        parts = [
            pd.DataFrame({"step": step, "epoch": epoch, "layer": number, "layers": layers, "mode": mode,
                          "bin_low": low, "bin_high": high, "share": shares[number - 1]})
            for step, epoch, by_mode in self.shares
            for mode, shares in by_mode.items()
            for number in range(1, layers + 1)
        ]  # fmt: skip
        bins = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
        for table in (quantities, bins):
            for position, (name, value) in enumerate(keys.items()):
                table.insert(position, name, value)
        return quantities, bins


def probe_images(data: ImageDataModule, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """So many training images ``[count, H, W, 3]`` and their labels, without augmentation, drawn by the seed."""
    assert data.train_set is not None and data.train_set.labels is not None
    if count > len(data.train_set):
        raise UserError(
            f"probe_images is {count}, but a training has {len(data.train_set)} images (see data.train_count and "
            "data.validation)"
        )
    chosen = np.random.RandomState(seed).permutation(len(data.train_set))[:count]
    return torch.from_numpy(data.train_set.images[chosen]), torch.from_numpy(data.train_set.labels[chosen])


def log_layers(trainer: Any, step: int, figures: list[LayerFigures], shares: np.ndarray) -> None:
    """Log a record to W&B, if the training has such a logger: a curve per layer and quantity, a histogram per layer."""
    for logger in trainer.loggers:
        if type(logger).__name__ != "SurvivingLogger":  # bnood.tracking's; wandb is not imported to find out
            continue
        import wandb

        logged: dict[str, Any] = {}
        for number, layer in enumerate(figures, start=1):
            logged |= {f"layers/{quantity}/{number:02d}": value for quantity, value in layer.items()}
            # wandb wants counts: parts per million keep the shares; what lies outside is in the curves' mean and std.
            counts = np.round(shares[number - 1][1:-1] * 1e6).astype(int).tolist()
            logged[f"preactivations/{number:02d}"] = wandb.Histogram(np_histogram=(counts, EDGES.tolist()))
        logger.log_metrics(logged, step)
