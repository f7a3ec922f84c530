"""One Gaussian for all classes: the Mahalanobis distance where there are too few images of each class."""

from typing import ClassVar

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from bnood.evaluation.detectors.detector import Detector, FittedOn, NotApplicable, import_optional
from bnood.networks.outputs import Head


class Gaussian(Detector):
    """Minus the squared Mahalanobis distance to the mean of all fitting images, in float64.

    The covariance is shrunk towards a multiple of the identity (Ledoit & Wolf 2004, scikit-learn's ``LedoitWolf``), so
    that it is invertible with fewer images than features.
    """

    name: ClassVar[str] = "gaussian"
    fitted_on: ClassVar[FittedOn] = "train"

    def __init__(self) -> None:
        import_optional("sklearn.covariance", self.name)  # refuse now, not after the forward passes

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor | None, head: Head | None) -> None:
        if len(features) < 2:
            raise NotApplicable("a covariance needs two fitting images")
        library = import_optional("sklearn.covariance", self.name)
        fitted = library.LedoitWolf(store_precision=False).fit(features.double().numpy())
        self.mean = fitted.location_
        self.factor = cho_factor(fitted.covariance_, lower=True)

    def _score(self, features: Tensor, logits: Tensor) -> np.ndarray:
        centred = features.double().numpy() - self.mean
        return -(centred * cho_solve(self.factor, centred.T).T).sum(axis=1)
