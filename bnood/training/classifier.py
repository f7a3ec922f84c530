"""The LightningModule: a network, the normalisation constants of its images, and how it is trained."""

import math
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from bnood.data.datamodule import Batch, ImageDataModule, channel_constants
from bnood.errors import UserError
from bnood.networks import Activation, Architecture, NormPosition, build_model
from bnood.networks.norm import Norm

MemoryFormat = Literal["auto", "channels_last", "contiguous"]


class NonFiniteLoss(UserError):
    """Training was stopped because its loss was NaN or infinite."""


class Classifier(L.LightningModule):
    """An image classifier: uint8 images in, logits (and penultimate features) out.

    The constants that normalise the images are those of the in-distribution training images. They travel in the
    checkpoint, so that every other set is normalised by the same ones.

    Args:
        architecture: ``resnet`` (with a CIFAR stem), ``wide_resnet``, ``mlp`` or ``plain`` (no shortcuts).
        depth: 18 or 34 (ResNet, four stages), 20, 32, 44, 56 or 110 (ResNet, three stages), 6 n + 4 (WideResNet);
            hidden layers (MLP, plain).
        width: channels of the first stage (ResNet-18: 64, ResNet-20: 16), the widening factor (WideResNet), the units
            (MLP) or channels (plain) of every layer.
        norm: ``bn``, ``ln``, ``gn`` or ``none``; see :mod:`bnood.networks.norm` for what each normalises over.
        groups: groups of ``gn``; has to divide the channels of the first stage.
        num_classes: number of classes of the in-distribution set.
        learning_rate: the schedule's peak.
        momentum: Nesterov momentum of SGD.
        weight_decay: L2 penalty of SGD.
        decay_norm: whether norm parameters and biases decay too (as in most published recipes), or weights only.
        label_smoothing: 0 by default: smoothing changes the very confidence that is measured here.
        schedule: ``cosine`` (linear warm-up, then a cosine to ``final_learning_rate``) or ``one_cycle``
            (torch's OneCycleLR without the momentum cycle); both change at every step.
        warmup: share of all steps in which the learning rate rises to its peak.
        final_learning_rate: where the cosine ends.
        clip_gradient_norm: upper bound of the gradient's norm, or 0 for none.
        compile: whether to compile the network with ``torch.compile``.
        memory_format: ``auto`` takes what was measured to be fastest: contiguous for ``gn`` on a CPU, where
            GroupNorm is slow in channels_last, and channels_last everywhere else.
        activation: ``sigmoid``, ``relu``, ``tanh`` or ``gelu``; residual networks have ``relu`` only.
        norm_position: whether the norm stands ``before`` or ``after`` the activation; residual networks: ``before``.
        image_size: side of the square images, which ``mlp`` has to know; set from ``data.image_size``.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        architecture: Architecture = "resnet",
        depth: int = 18,
        width: int = 64,
        norm: Norm = "bn",
        groups: int = 8,
        num_classes: int = 10,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        decay_norm: bool = True,
        label_smoothing: float = 0.0,
        schedule: Literal["cosine", "one_cycle"] = "cosine",
        warmup: float = 0.1,
        final_learning_rate: float = 1e-6,
        clip_gradient_norm: float = 0.0,
        compile: bool = False,
        memory_format: MemoryFormat = "auto",
        activation: Activation = "relu",
        norm_position: NormPosition = "before",
        image_size: int = 32,
    ) -> None:
        super().__init__()
        for name, value, right, expected in (
            ("depth", depth, depth >= 1, "a number of layers from 1 up"),
            ("width", width, width >= 1, "a number of channels from 1 up"),
            ("groups", groups, groups >= 1, "a number of groups from 1 up"),
            ("num_classes", num_classes, num_classes >= 2, "at least 2"),
            ("learning_rate", learning_rate, 0 < learning_rate < math.inf, "above 0"),
            ("momentum", momentum, 0 <= momentum < 1, "from 0 up to but not including 1"),
            ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "0 or above"),
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "from 0 up to but not including 1"),
            ("warmup", warmup, 0 <= warmup < 1, "a share of all steps, from 0 up to but not including 1"),
            ("final_learning_rate", final_learning_rate, 0 <= final_learning_rate < math.inf, "0 or above"),
            ("clip_gradient_norm", clip_gradient_norm, 0 <= clip_gradient_norm < math.inf, "0 (no bound) or above"),
        ):
            if not right:
                raise UserError(f"model.{name} is {value}; expected {expected}")
        self.save_hyperparameters()
        try:
            self.network = build_model(
                architecture, depth, width, norm, groups, num_classes, activation, norm_position, image_size
            )
        except ValueError as error:
            raise UserError(f"model: {error}") from error
        self.register_buffer("image_mean", torch.full((3,), 127.5))
        self.register_buffer("image_std", torch.full((3,), 63.75))
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.validation_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.validation_ece = MulticlassCalibrationError(num_classes, n_bins=15)
        self.validation_nll = MeanMetric()

    @property
    def norm(self) -> Norm:
        """The norm of the network, by name."""
        return self.hparams["norm"]

    def forward(self, images: Tensor, return_features: bool = False) -> Any:
        """uint8 ``[N, H, W, 3]`` -> logits ``[N, K]``; with ``return_features`` also the penultimate ``[N, D]``."""
        return self.network(self.normalise(images), return_features=return_features)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 ``[N, H, W, 3]`` -> what the network takes, ``[N, 3, H, W]`` by the training images' constants."""
        scaled = (images.to(self.image_mean.dtype) - self.image_mean) / self.image_std
        return scaled.permute(0, 3, 1, 2).contiguous(memory_format=self.torch_memory_format())

    def torch_memory_format(self) -> torch.memory_format:
        """The layout that the network's activations have on the device where it is now."""
        choice = self.hparams["memory_format"]
        if choice == "auto":
            choice = "contiguous" if self.norm == "gn" and self.image_mean.device.type == "cpu" else "channels_last"
        return torch.channels_last if choice == "channels_last" else torch.contiguous_format

    def setup(self, stage: str) -> None:
        """Take the constants of the training images, check the labels, and choose the memory format."""
        if stage == "fit":
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            if isinstance(data, ImageDataModule) and data.train_set is not None:
                self.take_constants(data)
        self.network.to(memory_format=self.torch_memory_format())
        if self.hparams["compile"]:
            self.network.compile()

    def check_labels(self, data: ImageDataModule) -> None:
        """Raise :class:`UserError` unless all labels are 0 to ``num_classes`` - 1."""
        for images in (data.train_set, data.validation_set):
            assert images is not None and images.labels is not None
            low, high = int(images.labels.min()), int(images.labels.max())
            if low < 0:  # cross_entropy would leave out images with the label -100 without a word
                raise UserError(f"{data.in_distribution} has the label {low}; expected labels from 0 up")
            if high >= self.hparams["num_classes"]:
                raise UserError(
                    f"{data.in_distribution} has labels up to {high}, but model.num_classes is "
                    f"{self.hparams['num_classes']}: set --model.num_classes {high + 1}"
                )

    def take_constants(self, data: ImageDataModule) -> None:
        """Set the normalisation constants to those of the training images."""
        assert data.train_set is not None
        self.check_labels(data)
        mean, std = channel_constants(data.train_set.images)
        self.image_mean.copy_(torch.tensor(mean))
        self.image_std.copy_(torch.tensor(std).clamp_min(1e-3))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.hparams["label_smoothing"])
        # On an accelerator, looking at the loss waits for the device: look only at the steps that log it anyway.
        logged = (batch_idx + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if (loss.device.type == "cpu" or logged) and not torch.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss became {loss.item()} in epoch {self.current_epoch}, step {self.global_step}: training "
                f"stopped (learning rate {self.optimizers().param_groups[0]['lr']:.3g}; a lower "  # type: ignore[union-attr]
                f"--model.learning_rate or --model.clip_gradient_norm 1 may help)"
            )
        if logged:
            self.log("train/loss", loss)
            self.log("learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        self.train_accuracy.update(logits, labels)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/accuracy", self.train_accuracy.compute(), prog_bar=True)
        self.train_accuracy.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy, negative log-likelihood and calibration error of held-out in-distribution images."""
        images, labels = batch
        logits = self(images).float()
        self.validation_accuracy.update(logits, labels)
        self.validation_ece.update(logits.softmax(dim=1), labels)
        self.validation_nll.update(F.cross_entropy(logits, labels), weight=len(labels))

    def on_validation_epoch_end(self) -> None:
        for name in ("accuracy", "nll", "ece"):
            metric = getattr(self, f"validation_{name}")
            self.log(f"validation/{name}", metric.compute(), prog_bar=name == "accuracy")
            metric.reset()

    def configure_optimizers(self) -> Any:
        """SGD with Nesterov momentum and a schedule that moves at every step."""
        hparams = self.hparams
        matrices = [p for p in self.network.parameters() if p.ndim > 1]
        vectors = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": hparams["weight_decay"]},
            {"params": vectors, "weight_decay": hparams["weight_decay"] if hparams["decay_norm"] else 0.0},
        ]
        peak, momentum = hparams["learning_rate"], hparams["momentum"]
        optimizer = torch.optim.SGD(groups, lr=peak, momentum=momentum, nesterov=momentum > 0)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler: torch.optim.lr_scheduler.LRScheduler
        if hparams["schedule"] == "one_cycle":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, peak, total_steps=total, pct_start=hparams["warmup"], cycle_momentum=False
            )
        else:
            final = hparams["final_learning_rate"] / peak
            scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: cosine_with_warmup(step, total, hparams["warmup"], final)
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if self.hparams["clip_gradient_norm"] > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.hparams["clip_gradient_norm"])


def cosine_with_warmup(step: int, total: int, warmup: float, final: float) -> float:
    """The learning rate at ``step`` of ``total`` as a share of its peak: a linear rise, then half a cosine.

    ``warmup`` is the share of the steps in which it rises, ``final`` the share of the peak where it ends.
    """
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    progress = min(1.0, (step - rise) / max(1.0, total - rise))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
