"""The detectors of an evaluation: which of them can be used, what they are fitted on, and their scores.

Fitting images are never scored. Under ``fitted_under = condition`` they pass under the statistics of the ID side, in
batches as the condition has them; the scored OOD images never take part.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bnood.data.image_set import Images
from bnood.errors import UserError
from bnood.evaluation.comparisons import Sets
from bnood.evaluation.detectors import NotApplicable, make_detector
from bnood.evaluation.detectors.detector import Detector
from bnood.evaluation.options import DEFAULT_DETECTORS, EvaluationOptions
from bnood.evaluation.scores import SCORES, energy
from bnood.networks.network import Network
from bnood.networks.outputs import Outputs
from bnood.statistics import has_batchnorm, read_statistics

Fitted = dict[str, Detector]
Run = Callable[[Images], Outputs]


@dataclass
class Fitting:
    """Fits the detectors that were asked for, as often as there are conditions.

    Raises:
        UserError: for an unknown detector, and for one that needs images, labels or a linear head that there are not.
            Of the default detectors these are left out with a note instead.
    """

    network: Network
    sets: Sets
    options: EvaluationOptions
    notes: list[str]
    record: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._images: dict[str, Images] = {}
        self.own_pass: Fitted = {}
        self.names: list[str] = []
        for name in self.options.detectors:
            detector = make_detector(name)
            missing = self._missing(detector)
            if (
                missing
                and not isinstance(missing, NotApplicable)
                and tuple(self.options.detectors) != DEFAULT_DETECTORS
            ):
                raise missing
            if missing:
                self._note(f"detector {name}: {missing}")
                continue
            self.names.append(name)
            if detector.needs == "own_pass":
                self.own_pass[name] = detector

    @property
    def channel_means(self) -> bool:
        """Whether a detector needs them."""
        return any(make_detector(name).needs == "channel_means" for name in self.names)

    @property
    def kept_bytes(self) -> int:
        """What the detectors of one condition keep at most: each the features of all fitting images."""
        count = sum(make_detector(name).fitted_on == "train" for name in self.names)
        images = 0 if self.sets.fitting is None else len(self.sets.fitting)
        return 4 * count * images * (self.network.feature_width + self.network.num_classes)

    def fitted_under(self) -> dict[str, str]:
        """The detectors, and under which statistics each is fitted; "" for those that are not fitted."""
        fitted = {name: name in self._images for name in self.names}
        return {name: self.options.fitted_under if fitted[name] else "" for name in self.names}

    def fit(self, run: Run) -> Fitted:
        """All detectors, fitted on outputs that ``run`` gives of images."""
        # By identity: the held-out images may have the name of the training images.
        outputs = {key: run(images) for key, images in {id(each): each for each in self._images.values()}.items()}
        fitted: Fitted = {}
        for name in self.names:
            if name in SCORES:
                continue  # they are computed of all logits anyway
            detector, images = make_detector(name), self._images.get(name)
            try:
                if detector.needs == "channel_means":
                    detector.fit(read_statistics(self.network.model))  # type: ignore[arg-type]
                elif images is not None:
                    found = outputs[id(images)]
                    detector.fit(found.features, found.logits, images.labels, self.network.head)
                elif detector.needs == "features":
                    detector.fit(head=self.network.head)
            except NotApplicable as error:
                self._note(f"detector {name}: {error}")
                continue
            except UserError as error:
                raise UserError(f"{'the network' if images is None else images.name}: {error}") from error
            self.record.setdefault(name, detector.record())
            fitted[name] = detector
        return fitted

    def scores(self, fitted: Fitted, outputs: Outputs, own: Mapping[str, Outputs]) -> dict[str, np.ndarray]:
        """Scores ``[N]`` by detector of images whose outputs, and outputs in passes of their own, are given."""
        found = {}
        for name, detector in fitted.items():
            try:
                if detector.needs == "own_pass":
                    found[name] = energy(own[name].logits).numpy()
                elif detector.needs == "channel_means":
                    found[name] = detector.score(outputs.channel_means)  # type: ignore[call-arg, arg-type]
                else:
                    found[name] = detector.score(outputs.features, outputs.logits)
            except NotApplicable as error:
                self._note(f"detector {name}: {error}")
        return found

    def _missing(self, detector: Detector) -> UserError | None:
        """Why a detector cannot be used; its images are noted where it can."""
        if detector.needs != "features" and not has_batchnorm(self.network.model):
            return NotApplicable("the network has no BatchNorm layer")
        if detector.needs_head and self.network.head is None:
            return UserError(
                f"detector {detector.name!r} needs weight and bias of the network's last linear layer, and "
                f"{self.network.name} has none that makes its logits: give head="
            )
        if detector.fitted_on == "nothing":
            return None
        images = self.sets.fitting
        if detector.fitted_on == "held_out":
            # A temperature fitted on labels that the network has learnt is too low; a percentile is not.
            images = self.sets.held_out if self.sets.held_out is not None or detector.needs_labels else images
        if images is None:
            wanted = "training images" if detector.fitted_on == "train" else "labelled ID images held out of training"
            return UserError(f"detector {detector.name!r} is fitted on {wanted}, and none were given")
        if images.labels is None and (detector.needs_labels or detector.class_conditional):
            return UserError(f"detector {detector.name!r} needs labels, and {images.name} has none")
        self._images[detector.name] = images
        return None

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
