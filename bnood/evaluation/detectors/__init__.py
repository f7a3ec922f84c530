"""Post-hoc detectors of out-of-distribution images, by name.

To add one, subclass :class:`Detector` in a file of this package and name the class in ``DETECTORS``.
"""

import difflib

from bnood.errors import UserError
from bnood.evaluation.detectors import from_pytorch_ood as library
from bnood.evaluation.detectors.bats import BATS, BATSFeatures
from bnood.evaluation.detectors.detector import Detector, NotApplicable
from bnood.evaluation.detectors.gaussian import Gaussian
from bnood.evaluation.detectors.logit_scores import MSP, Energy, MaxLogit
from bnood.evaluation.detectors.neural_mean_discrepancy import NeuralMeanDiscrepancy
from bnood.evaluation.detectors.react import ReAct
from bnood.evaluation.detectors.temperature import Temperature

__all__ = ["DETECTORS", "Detector", "NotApplicable", "make_detector"]

_ALL: tuple[type[Detector], ...] = (
    *(MSP, Energy, MaxLogit, ReAct, Temperature),
    *(library.Entropy, library.GEN, library.KLMatching, library.OpenMax),
    *(library.KNN, Gaussian, library.Mahalanobis, library.RMD, library.GMM, library.ViM, library.SHE, library.NCI),
    *(library.DICE, library.NNGuide, library.FDBD, library.LTS),
    *(BATS, BATSFeatures, NeuralMeanDiscrepancy),
)
DETECTORS: dict[str, type[Detector]] = {detector.name: detector for detector in _ALL}


def make_detector(name: str) -> Detector:
    """An unfitted detector with its default settings.

    Raises:
        UserError: for an unknown name, or where the library that the detector comes from is not installed.
    """
    if name not in DETECTORS:
        close = difflib.get_close_matches(name, DETECTORS)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(DETECTORS)}"
        raise UserError(f"unknown detector {name!r}; {hint}")
    return DETECTORS[name]()
