"""The detectors of an evaluation: which of them can be used, what they are fitted on, and their scores."""

from collections.abc import Callable, Mapping

import numpy as np

from bnood.data.image_set import Images
from bnood.errors import UserError
from bnood.evaluation.comparisons import Sets
from bnood.evaluation.detectors import Detector, NotApplicable, make_detector
from bnood.evaluation.options import DEFAULT_DETECTORS
from bnood.evaluation.passes import Passes
from bnood.evaluation.scores import SCORES
from bnood.networks.network import Outputs
from bnood.statistics import has_batchnorm, read_statistics

Fitted = dict[str, Detector]


class Fitting:
    """Fits the detectors that were asked for, as often as there are conditions.

    Raises ``UserError`` for a detector that needs images, labels or a linear head that there are not; of the default
    detectors these are left out with a note instead.
    """

    def __init__(self, passes: Passes, sets: Sets) -> None:
        self.network, self.options, self.notes, self.sets = passes.network, passes.options, passes.notes, sets
        options = passes.options
        self.images: dict[str, Images] = {}  # what each detector is fitted on, if on anything
        self.usable: Fitted = {}  # the detectors that can be used, unfitted
        self.record: dict[str, dict[str, float]] = {}  # what was fitted
        for name in options.detectors:
            detector = make_detector(name)
            try:
                self._check(detector)
                self.usable[name] = detector
            except UserError as error:
                if not isinstance(error, NotApplicable) and tuple(options.detectors) != DEFAULT_DETECTORS:
                    raise
                self._note(name, error)
        self.own_pass = [detector for detector in self.usable.values() if detector.needs == "own_pass"]
        self.channel_means = any(detector.needs == "channel_means" for detector in self.usable.values())
        # What the detectors of one condition keep at most: each the features of all fitting images.
        width = self.network.feature_width + self.network.num_classes
        self.kept_bytes = sum(4 * width * len(images) for images in self.images.values())

    def fitted_under(self) -> dict[str, str]:
        """The detectors, and under which statistics each is fitted; "" for those that are not fitted."""
        return {name: self.options.fitted_under if name in self.images else "" for name in self.usable}

    def fit(self, run: Callable[[Images], Outputs]) -> Fitted:
        """All detectors, fitted on outputs that ``run`` gives of images."""
        # By identity: the held-out images may have the name of the training images.
        outputs = {key: run(images) for key, images in {id(each): each for each in self.images.values()}.items()}
        fitted: Fitted = {}
        for name in self.usable:
            if name in SCORES:
                continue  # they are computed of all logits anyway
            detector, images = make_detector(name), self.images.get(name)
            try:
                if detector.needs == "channel_means":
                    detector.fit(read_statistics(self.network.model))  # type: ignore[arg-type]
                elif images is None:
                    detector.fit(head=self.network.head)
                else:
                    found = outputs[id(images)]
                    detector.fit(found.features, found.logits, images.labels, self.network.head)
            except NotApplicable as error:
                self._note(name, error)
                continue
            except UserError as error:
                raise UserError(f"{'the network' if images is None else images.name}: {error}") from error
            self.record.setdefault(name, detector.record())
            fitted[name] = detector
        return fitted

    def scores(self, fitted: Fitted, outputs: Mapping[str, Outputs]) -> dict[str, np.ndarray]:
        """Scores ``[N]`` by detector, of images whose outputs are given: "", or the detector's for an own pass."""
        found = {}
        for name, detector in fitted.items():
            given = outputs.get(name, outputs[""])
            try:
                if detector.needs == "channel_means":
                    found[name] = detector.score(given.channel_means)  # type: ignore[call-arg, arg-type]
                else:
                    found[name] = detector.score(given.features, given.logits)
            except NotApplicable as error:
                self._note(name, error)
        return found

    def _check(self, detector: Detector) -> None:
        """Find what a detector is fitted on; raise if it cannot be used."""
        if detector.needs != "features" and not has_batchnorm(self.network.model):
            raise NotApplicable("the network has no BatchNorm layer")
        images = {"nothing": None, "train": self.sets.fitting, "held_out": self.sets.held_out}[detector.fitted_on]
        # A temperature fitted on labels that the network has learnt is too low; a percentile is not.
        if images is None and detector.fitted_on == "held_out" and not detector.needs_labels:
            images = self.sets.fitting
        labels = None if images is None else images.labels
        detector.check_given(images is not None, labels is not None, self.network.head is not None)
        if images is not None:
            self.images[detector.name] = images

    def _note(self, name: str, error: UserError) -> None:
        self.notes[f"detector {name}: {error}"] = None
