"""Post-hoc detectors of out-of-distribution images, by name.

To add one, subclass :class:`Detector` in a file of this package and name the class in ``DETECTORS``.
"""

import difflib
from collections.abc import Callable
from functools import partial

from bnood.errors import UserError
from bnood.evaluation.detectors.batchnorm import BATS, NeuralMeanDiscrepancy
from bnood.evaluation.detectors.detector import Detector, NotApplicable
from bnood.evaluation.detectors.from_pytorch_ood import LIBRARY, FromPytorchOOD
from bnood.evaluation.detectors.ours import BATSFeatures, Gaussian, LogitScore, ReAct, Temperature
from bnood.evaluation.scores import SCORES

__all__ = ["DETECTORS", "Detector", "NotApplicable", "make_detector"]

DETECTORS: dict[str, Callable[[], Detector]] = {
    **{name: partial(LogitScore, name) for name in SCORES},
    **{each.name: each for each in (ReAct, Temperature, Gaussian, BATS, BATSFeatures, NeuralMeanDiscrepancy)},
    **{name: partial(FromPytorchOOD, name) for name in LIBRARY},
}


def make_detector(name: str) -> Detector:
    """An unfitted detector; UserError for an unknown name, or where the library that it comes from is missing."""
    if name not in DETECTORS:
        close = difflib.get_close_matches(name, DETECTORS)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(DETECTORS)}"
        raise UserError(f"unknown detector {name!r}; {hint}")
    return DETECTORS[name]()
