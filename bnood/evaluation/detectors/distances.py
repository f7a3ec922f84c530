"""Distances to what is normal: of the features to one Gaussian, of the channel means to BatchNorm's running means."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor
from typing_extensions import Self

from bnood.errors import UserError
from bnood.evaluation.detectors.detector import Detector, NotApplicable, import_optional
from bnood.statistics import BatchNormStatistics


class Gaussian(Detector):
    """Minus the squared Mahalanobis distance to the mean of all fitting images, one class for all, in float64.

    The covariance is shrunk towards a multiple of the identity (Ledoit & Wolf 2004, scikit-learn's ``LedoitWolf``), so
    that it is invertible with fewer images than features.
    """

    name = "gaussian"
    fitted_on = "train"

    def __init__(self) -> None:
        import_optional("sklearn.covariance", self.name)  # refuse now, not after the forward passes

    def _fit(self, features: Any, logits: Any, labels: Any, head: Any) -> None:
        if len(features) < 2:
            raise NotApplicable("a covariance needs two fitting images")
        library = import_optional("sklearn.covariance", self.name)
        fitted = library.LedoitWolf(store_precision=False).fit(features.double().numpy())
        self.mean, self.factor = fitted.location_, cho_factor(fitted.covariance_, lower=True)

    def _score(self, features: Tensor, logits: Tensor) -> np.ndarray:
        centred = features.double().numpy() - self.mean
        return -(centred * cho_solve(self.factor, centred.T).T).sum(axis=1)


class NeuralMeanDiscrepancy(Detector):
    """Minus the root mean square, over all channels of all layers, of an image's standardised mean discrepancies.

    A discrepancy (Dong et al., CVPR 2022) is the spatial mean of a BatchNorm layer's input minus the running mean; here
    it is divided by the running standard deviation. The paper hands the vector of them to a classifier that is trained
    on ID and a few OOD images; here no OOD image takes part.
    """

    name = "nmd"
    needs = "channel_means"
    reference: BatchNormStatistics | None = None

    def fit(self, running: BatchNormStatistics) -> Self:  # type: ignore[override]
        """Take the network's running statistics, ``read_statistics(model)``, whatever statistics are in force."""
        self.reference = running
        return self

    def score(self, channel_means: Mapping[str, Tensor]) -> np.ndarray:  # type: ignore[override]
        """Scores ``[N]`` float64 from ``{layer: [N, C]}``, :attr:`bnood.networks.outputs.Outputs.channel_means`."""
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
            scale = running.var + torch.finfo(torch.float32).eps
            squares = squares + ((means.double() - running.mean) ** 2 / scale).sum(dim=1)
            channels += means.shape[1]
        return -(squares / channels).sqrt().numpy()

    def _score(self, features: Tensor, logits: Tensor) -> np.ndarray:
        raise NotImplementedError
