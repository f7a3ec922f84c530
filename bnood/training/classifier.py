"""The LightningModule: a network, the normalisation constants of its images, and how it is trained."""

import math
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from bnood.data.datamodule import Batch, channel_constants
from bnood.errors import UserError
from bnood.networks.image_classifier import Architecture, ImageClassifier, MemoryFormat, build_network
from bnood.networks.norm import Norm
from bnood.networks.plain import Activation, NormPosition

ECE_BINS = 15
VALIDATION_METRICS = ("validation/accuracy", "validation/nll", "validation/ece")
BELOW_1, FROM_0 = (1, "from 0 up to but not including 1"), (math.inf, "0 or above")
RANGES = {
    "learning_rate": (math.inf, "above 0"), "momentum": BELOW_1, "weight_decay": FROM_0, "label_smoothing": BELOW_1,
    "warmup": BELOW_1, "final_learning_rate": FROM_0, "clip_gradient_norm": FROM_0,
}  # fmt: skip


class NonFiniteLoss(UserError):
    """Training was stopped because its loss was NaN or infinite."""


class Classifier(ImageClassifier, L.LightningModule):
    """An :class:`ImageClassifier` and how it is trained.

    No step waits for the device: counts stay there until the epoch ends; the loss is read every ``log_every_n_steps``.

    Args:
        architecture: ``resnet`` (with a CIFAR stem), ``wide_resnet``, ``mlp`` or ``plain`` (no shortcuts).
        depth: 18 or 34 (ResNet, four stages), 20, 32, 44, 56 or 110 (ResNet, three), 6 n + 4 (WideResNet), hidden
            layers (MLP, plain).
        width: channels of the first stage (ResNet-18: 64, ResNet-20: 16), the widening factor (WideResNet), the units
            (MLP) or channels (plain) of every layer.
        norm: ``bn``, ``ln``, ``gn`` or ``none``; see :mod:`bnood.networks.norm` for what each normalises over.
        groups: groups of ``gn``; has to divide the channels of the first stage.
        num_classes: number of classes of the in-distribution set.
        learning_rate: the schedule's peak.
        momentum: Nesterov momentum of SGD.
        weight_decay: L2 penalty of SGD.
        decay_norm: whether norm parameters and biases decay too, as in most published recipes.
        label_smoothing: 0 by default: smoothing changes the very confidence that is measured here.
        schedule: ``cosine`` (linear warm-up, then a cosine to ``final_learning_rate``) or ``one_cycle``
            (torch's OneCycleLR without the momentum cycle).
        warmup: share of all steps in which the learning rate rises to its peak.
        final_learning_rate: where the cosine ends.
        clip_gradient_norm: upper bound of the gradient's norm, or 0 for none.
        compile: whether training steps (not validation) run a network compiled by ``torch.compile``;
            ``reduce-overhead`` replays CUDA graphs, which takes one CUDA device.
        memory_format: see :class:`ImageClassifier`.
        activation: ``sigmoid``, ``relu``, ``tanh`` or ``gelu``; residual networks have ``relu`` only.
        norm_position: whether the norm stands ``before`` or ``after`` the activation; residual networks: ``before``.
        image_size: side of the square images, which ``mlp`` has to know; set from ``data.image_size``.
    """

    def __init__(
        self, architecture: Architecture = "resnet", depth: int = 18, width: int = 64, norm: Norm = "bn",
        groups: int = 8, num_classes: int = 10, learning_rate: float = 0.1, momentum: float = 0.9,
        weight_decay: float = 5e-4, decay_norm: bool = True, label_smoothing: float = 0.0,
        schedule: Literal["cosine", "one_cycle"] = "cosine", warmup: float = 0.1, final_learning_rate: float = 1e-6,
        clip_gradient_norm: float = 0.0, compile: bool | Literal["reduce-overhead"] = False,
        memory_format: MemoryFormat = "auto", activation: Activation = "relu", norm_position: NormPosition = "before",
        image_size: int = 32,
    ) -> None:  # fmt: skip
        super().__init__(build_network(locals()), norm, memory_format)
        self.save_hyperparameters()
        for name, (below, expected) in RANGES.items():
            value = self.hparams[name]
            if not 0 <= value < below or (expected == "above 0" and value == 0):
                raise UserError(f"model.{name} is {value}; expected {expected}")
        self.shown: dict[str, float] = {}

    def setup(self, stage: str) -> None:
        """Take the constants of the training images, and choose the memory format."""
        if stage == "fit":
            mean, std = channel_constants(self.trainer.datamodule.train_set.images)  # type: ignore[attr-defined]
            self.image_mean.copy_(mean)
            self.image_std.copy_(std)
        self.network.to(memory_format=self.torch_memory_format())
        if mode := self.hparams["compile"]:
            self.network.compile(mode=None if mode is True else mode)

    def on_train_epoch_start(self) -> None:
        self.loss_and_correct = torch.zeros(2, device=self.device)
        self.images_seen = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.hparams["compile"] == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.hparams["label_smoothing"])
        step, every = self.trainer.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (step == 1 or step % every == 0):
            shown = float(self.trainer.strategy.reduce(loss.detach(), reduce_op="mean"))
            self._check_finite(shown)
            rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
            self._record({"train/loss": shown, "learning_rate": rate}, step)
        self.loss_and_correct += torch.stack([loss.detach().float(), (logits.argmax(dim=1) == labels).sum().float()])
        self.images_seen += len(labels)
        return loss

    def on_train_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self.loss_and_correct, reduce_op="mean")
        loss, correct = sums.tolist()
        self._check_finite(loss)
        self._record({"train/accuracy": correct / max(self.images_seen, 1)}, self.trainer.global_step)

    def _check_finite(self, loss: float) -> None:
        """Of the mean over all devices, so that all of them stop."""
        if not math.isfinite(loss):
            found = f"the loss became {loss} in epoch {self.current_epoch}, by step {self.global_step}"
            raise NonFiniteLoss(f"{found}: a lower --model.learning_rate or --model.clip_gradient_norm 1 may help")

    def _record(self, values: dict[str, float], step: int) -> None:
        """Log after so many steps, at once: Lightning logs an epoch's values after the epoch's checkpoint."""
        self.shown |= values
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **values}, step)

    def on_validation_epoch_start(self) -> None:
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        self.validation_sums = torch.zeros(ECE_BINS, 4, dtype=exact, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        with torch.compiler.set_stance("force_eager"):
            logits = self(images).float()
        self.validation_sums += calibration_sums(logits, labels).to(self.validation_sums.dtype)

    def on_validation_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self.validation_sums, reduce_op="sum")
        if self.trainer.sanity_checking:
            return
        count, confidence, right, nll = sums.cpu().double().unbind(dim=1)
        total = float(count.sum())
        found = (right.sum() / total, nll.sum() / total, (confidence - right).abs().sum() / total)
        values = dict(zip(VALIDATION_METRICS, map(float, found), strict=True))
        self._record(values, self.trainer.global_step)
        self.log_dict(values, logger=False)  # for callbacks such as EarlyStopping

    def configure_optimizers(self) -> Any:
        """SGD with Nesterov momentum and a schedule that moves at every step."""
        hparams, parameters = self.hparams, list(self.network.parameters())
        peak, momentum, decay = hparams["learning_rate"], hparams["momentum"], hparams["weight_decay"]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": decay * hparams["decay_norm"]},
        ]
        # Not fused: on a CPU the last bits of parameters whose number is no multiple of the vector width would differ.
        optimizer = torch.optim.SGD(groups, lr=peak, momentum=momentum, nesterov=momentum > 0)
        total, warmup = int(self.trainer.estimated_stepping_batches), hparams["warmup"]
        scheduler: LRScheduler
        if hparams["schedule"] == "one_cycle":
            scheduler = OneCycleLR(optimizer, peak, total_steps=total, pct_start=warmup, cycle_momentum=False)
        else:
            final = hparams["final_learning_rate"] / peak
            scheduler = LambdaLR(optimizer, lambda step: cosine_with_warmup(step, total, warmup, final))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if self.hparams["clip_gradient_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.hparams["clip_gradient_norm"])


def calibration_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits ``[N, K]``, labels ``[N]`` -> per confidence bin: count, confidence, right answers, NLL: ``[15, 4]``."""
    log_probabilities = logits.log_softmax(dim=1)
    confidence, answer = log_probabilities.exp().max(dim=1)
    nll = F.nll_loss(log_probabilities, labels, reduction="none")
    bins = torch.bucketize(confidence, torch.linspace(0, 1, ECE_BINS + 1, device=logits.device)[1:-1], right=True)
    in_bin = (bins == torch.arange(ECE_BINS, device=logits.device)[:, None]).float()
    return in_bin @ torch.stack([torch.ones_like(nll), confidence, (answer == labels).float(), nll], dim=1)


def cosine_with_warmup(step: int, total: int, warmup: float, final: float) -> float:
    """The learning rate at a step as a share of its peak: a linear rise, then half a cosine to the share ``final``."""
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, total - rise))))
