"""Neural Mean Discrepancy (Dong et al., CVPR 2022): how far an image's channel means are from BatchNorm's means.

The discrepancy vector holds, for every channel of every BatchNorm layer, the spatial mean of the layer's input minus
the running mean. The paper hands this vector to a small classifier (logistic regression or a multilayer perceptron)
that is trained on ID and a few OOD images. Here no OOD image takes part: the score is minus the vector's length.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from bnood.errors import UserError
from bnood.evaluation.detectors.detector import Detector, Needs
from bnood.statistics import BatchNormStatistics


class NeuralMeanDiscrepancy(Detector):
    """Minus the root mean square of the discrepancies over all channels of all layers.

    Args:
        form: ``"standardised"`` divides each discrepancy by the channel's running standard deviation, so that layers
            with large activations do not decide alone; ``"plain"`` does not.
    """

    name: ClassVar[str] = "nmd"
    needs: ClassVar[Needs] = "channel_means"

    def __init__(self, form: Literal["standardised", "plain"] = "standardised") -> None:
        if form not in ("standardised", "plain"):
            raise UserError(f"nmd: unknown form {form!r}: choose standardised or plain")
        self.form = form
        self.reference: BatchNormStatistics | None = None

    def fit(self, running: BatchNormStatistics) -> Self:  # type: ignore[override]
        """Take the network's running statistics, ``read_statistics(model)``, whatever statistics are in force."""
        self.reference = running
        return self

    def score(self, channel_means: Mapping[str, Tensor]) -> np.ndarray:  # type: ignore[override]
        """Scores ``[N]`` float64 from ``{layer: [N, C]}``, :attr:`bnood.networks.outputs.Outputs.channel_means`.

        Raises ``UserError`` if ``fit`` was not called, or a layer has no running statistics.
        """
        if self.reference is None:
            raise UserError("detector 'nmd' has to be fitted before it scores: call fit(read_statistics(model))")
        if not channel_means:
            raise UserError("detector 'nmd' needs the channel means of at least one BatchNorm layer")
        squares, channels = torch.zeros(()), 0
        for name, means in channel_means.items():
            if name not in self.reference:
                raise UserError(f"detector 'nmd': layer {name!r} keeps no running statistics")
            running = self.reference[name]
            # A channel that was constant in training has variance 0; the smallest float32 step keeps it finite.
            scale = running.var + torch.finfo(torch.float32).eps if self.form == "standardised" else 1.0
            squares = squares + ((means.double() - running.mean) ** 2 / scale).sum(dim=1)
            channels += means.shape[1]
        return -(squares / channels).sqrt().numpy()

    def _score(self, features: Tensor, logits: Tensor) -> np.ndarray:
        raise NotImplementedError
