"""The price of matching: what recalibrated statistics win on shifted images beside what they cost in detection.

Whoever deploys a network with BatchNorm may estimate its statistics anew on the stream at hand. Under covariate shift
that wins accuracy (Schneider et al. 2020; Nado et al. 2020). But the stream may just as well be OOD, and then the same
step normalises away what would have given it away. Here both are measured on one network, image by image:

- Every shifted set is divided by the seed into a calibration half and a scoring half; labels are not used for it. Sets
  of equal size are divided alike, so that all corruptions of the same images calibrate on the same images, score the
  same images, and are resampled alike: strengths and conditions are paired.
- ``running``: the moving averages of training. Networks without BatchNorm have this condition only.
- ``recalibrated:id``: statistics of clean in-distribution training images.
- ``recalibrated:target``: every set under the statistics of its own calibration half, the OOD sets too. So is
  ``clean``, here; in the table of an evaluation, the in-distribution set is under those of training images.
- Detection, as deployed: the shifted images are the in-distribution side against each OOD set, each side under its own
  statistics of that name. The OOD sets go through the network once for each condition, whatever they are compared with.

Statistics are one-pass estimates (:mod:`bnood.statistics`) on at most ``calibration_images`` images. No image is scored
under statistics that were estimated on it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from bnood.data.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from bnood.data.image_set import ImageSet
from bnood.data.splits import halves
from bnood.errors import UserError
from bnood.evaluation.bootstrap import interval, set_counts, weighted_means
from bnood.evaluation.conditions import Cost, Images, evaluation_mode, forward
from bnood.evaluation.metrics import cross_entropies, detection_metrics, expected_calibration_error
from bnood.evaluation.scores import energy, msp
from bnood.statistics import BatchNormStatistics, estimate_statistics, has_batchnorm, use_statistics
from bnood.training.classifier import Classifier

STATISTICS = ("running", "recalibrated:id", "recalibrated:target")

COLUMNS = (
    "statistics", "dataset", "corruption", "strength", "role", "score", "metric", "value", "low", "high", "change",
    "change_low", "change_high", "n", "n_id", "companion",
)  # fmt: skip


CLEAN, CLEAN_TEST = "clean", "clean-test"

_SCORES = {"msp": msp, "energy": energy}
_DETECTION = ("auroc", "fpr95")

# JPEG of quality 75 moves the pixels of a CIFAR-10 image by 6 of 256 levels on average, and by 12 where it moves them
# most. The most similar image of a class is usually 30 levels away or more, but 10 in places, hence all have to agree.
_LEVELS_APART = 16


@dataclass
class PriceOptions:
    """How much is measured.

    Args:
        id_images: images of each shifted set, before it is halved, at most.
        ood_images: images of each OOD set's scoring half, at most.
        calibration_images: images that any statistics are estimated on, at most.
        forward_batch: images per forward pass where the batch does not matter.
        estimation_batch: images per forward pass where statistics are estimated; see
            :class:`bnood.evaluation.conditions.ConditionOptions`.
        resamples: of the bootstrap, at least 2.
        seed: of the halves, of what is left out, and of the bootstrap.
    """

    id_images: int = 2000
    ood_images: int = 1000
    calibration_images: int = 1000
    forward_batch: int = 128
    estimation_batch: int = 500
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"id_images": 4, "ood_images": 1, "calibration_images": 2, "resamples": 2}
        least |= {"forward_batch": 1, "estimation_batch": 2}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise UserError(f"{name} is {getattr(self, name)}; it has to be at least {lowest}")


def shifted_sets(
    id_set: ImageSet,
    jpeg: ImageSet | None = None,
    corruptions: tuple[str, ...] = CORRUPTIONS,
    strengths: tuple[int, ...] = STRENGTHS,
    seed: int = 0,
    *,
    count: int | None = 2000,
    clean_test: ImageSet | None = None,
) -> dict[str, ImageSet]:
    """The shifted in-distribution sets by name: ``clean``, each corruption at each strength, and the JPEG set.

    ``jpeg`` is put in the order of its clean partners, if they are at hand: those of ``id_set``, so that ``clean`` is
    the very set before compression; else those of ``clean_test``, which then is a set too, as ``clean-test``.

    Args:
        id_set: clean in-distribution images with labels.
        jpeg: shifted images with labels, under any name, or None.
        corruptions: see :mod:`bnood.data.corruptions`.
        strengths: 1 to 5.
        seed: of noise, and of which images are taken.
        count: take so many images of each set, at most; None: all.
        clean_test: clean images that ``jpeg`` may have been made of, where they are not those of ``id_set``.

    Raises:
        UserError: for an unknown corruption or strength, or a JPEG set that has the name of another set.
    """
    clean = replace(id_set.at_most(count, seed), name=CLEAN)
    sets = {CLEAN: clean}
    for corruption in corruptions:
        sets |= {f"{corruption}-{each}": corrupt(clean, corruption, each, seed) for each in strengths}
    if jpeg is None:
        return sets
    if jpeg.name in sets or jpeg.name == CLEAN_TEST:
        raise UserError(f"the JPEG set is named {jpeg.name!r}, as a set that is made here; expected another name")
    found = partners(clean, jpeg)
    if found is None and clean_test is not None:
        some = clean_test.at_most(count, seed)
        found = partners(some, jpeg)
        if found is not None:
            sets[CLEAN_TEST] = replace(some, name=CLEAN_TEST)
    sets[jpeg.name] = jpeg.at_most(count, seed) if found is None else jpeg.subset(found)
    return sets


def partners(clean: ImageSet, compressed: ImageSet) -> np.ndarray | None:
    """For each clean image the index of its compressed version, int64 ``[N]``; None unless every one has its own.

    That is the image of the same class with the least sum of squared differences. It has to be within 16 of 256 levels
    on average, and no two clean images may have the same one.
    """
    if clean.labels is None or compressed.labels is None or clean.images.shape[1:] != compressed.images.shape[1:]:
        return None
    found = np.empty(len(clean), np.int64)
    for label in np.unique(clean.labels):
        rows, candidates = np.flatnonzero(clean.labels == label), np.flatnonzero(compressed.labels == label)
        if len(candidates) < len(rows):
            return None
        wanted, offered = (
            images.reshape(len(images), -1).astype(np.float32)
            for images in (clean.images[rows], compressed.images[candidates])
        )
        # |x - y|^2 but for |x|^2, which is the same for every y.
        distance = (offered**2).sum(axis=1) - 2 * wanted @ offered.T
        nearest = distance.argmin(axis=1)
        if (np.abs(wanted - offered[nearest]).mean(axis=1) > _LEVELS_APART).any():
            return None
        found[rows] = candidates[nearest]
    return found if len(np.unique(found)) == len(found) else None


def price_of_matching(
    classifier: Classifier,
    images: Images,
    shifted: Mapping[str, ImageSet],
    options: PriceOptions | None = None,
    cost: Cost | None = None,
) -> pd.DataFrame:
    """What each condition does to the shifted sets and to detection, with paired changes: columns :data:`COLUMNS`.

    One row per condition, shifted set and figure: with ``companion`` empty, accuracy, nll and ece (score ``""``) and
    the means of msp and energy, over ``n`` shifted images; with an OOD set as ``companion``, auroc and fpr95 of msp and
    energy, of ``n_id`` shifted images against ``n`` images of that set. ``change`` is the value minus that under
    running, on the same images and resamples. Both have 95 % intervals of a bootstrap over images.

    Args:
        classifier: left as it was.
        images: of the evaluation: its training images for recalibration, its OOD sets, and the name of the ID set.
        shifted: by name, each with labels; see :func:`shifted_sets`.
        options: how much is measured.
        cost: is added to.

    Raises:
        UserError: if there is no shifted set, or one has no labels or not enough images.
    """
    options = options or PriceOptions()
    if not shifted:
        raise UserError("no shifted set was given: expected at least one, such as clean")
    for name, images_of_set in shifted.items():
        if images_of_set.labels is None:
            raise UserError(
                f"{name}: the images have no labels; expected labels, for accuracy is what matching may win"
            )
    passes = _Passes(classifier, options, cost or Cost())
    normalised = has_batchnorm(classifier)
    reference = passes.estimate(images.id_calibration) if normalised else None
    ood = {name: passes.ood(name, *halves_of_set, reference) for name, halves_of_set in images.ood.items()}
    rows: list[dict[str, object]] = []
    for name, whole in shifted.items():
        chosen = whole.at_most(options.id_images, options.seed)
        calibration, scored = (chosen.subset(part) for part in halves(len(chosen), options.seed, name))
        assert scored.labels is not None
        # By the name of the clean set, so that all corruptions of the same images are resampled alike.
        counts = set_counts(images.id_set.name, len(scored), options.resamples, options.seed)
        by_statistics = {
            statistics: list(_figures(statistics, logits, scored.labels, counts, ood))
            for statistics, logits in passes.under_all(calibration, scored, reference).items()
        }
        rows += _rows(name, by_statistics)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def corruption_and_strength(name: str) -> tuple[str, int]:
    """What a shifted set went through, from its name; a set of another kind has the one strength 1.

    >>> corruption_and_strength("noise-3"), corruption_and_strength("clean"), corruption_and_strength("cifar10-jpeg75")
    (('noise', 3), ('none', 0), ('jpeg', 1))
    """
    if name in (CLEAN, CLEAN_TEST):
        return "none", 0
    corruption, _, strength = name.rpartition("-")
    if corruption in CORRUPTIONS and strength.isdecimal():
        return corruption, int(strength)
    return ("jpeg" if "jpeg" in name else name), 1


@dataclass(frozen=True)
class _Ood:
    """An OOD set's scores under each condition, ``[M]`` each, and its resample counts ``[1 + R, M]``."""

    scores: dict[str, dict[str, np.ndarray]]
    counts: np.ndarray


@dataclass(frozen=True)
class _Figure:
    """One figure of one shifted set under one condition; ``values`` ``[1 + R]``: itself, and of each resample."""

    score: str
    metric: str
    companion: str
    n: int
    n_id: int
    values: np.ndarray = field(repr=False)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.score, self.metric, self.companion


@dataclass
class _Passes:
    """The forward passes."""

    classifier: Classifier
    options: PriceOptions
    cost: Cost

    def estimate(self, images: ImageSet) -> BatchNormStatistics:
        # In random order, because one pass normalises by the batch; in nearly equal batches, for the same reason.
        order = np.random.RandomState(self.options.seed).permutation(len(images))[: self.options.calibration_images]
        stream = torch.from_numpy(images.images[order])
        self.cost.estimated_on += len(stream)
        return estimate_statistics(
            self.classifier, list(stream.tensor_split(-(-len(stream) // self.options.estimation_batch)))
        )

    def under_all(
        self, calibration: ImageSet, scored: ImageSet, reference: BatchNormStatistics | None
    ) -> dict[str, np.ndarray]:
        """Logits ``[n, K]`` under each of :data:`STATISTICS`; without ``reference``, of a network without BatchNorm."""
        if reference is None:
            with evaluation_mode(self.classifier):
                return {"running": self._logits(scored)}
        logits = {}
        for name, statistics in zip(STATISTICS, ("running", reference, self.estimate(calibration)), strict=True):
            with use_statistics(self.classifier, statistics):  # type: ignore[arg-type]
                logits[name] = self._logits(scored)
        return logits

    def ood(self, name: str, calibration: ImageSet, scored: ImageSet, reference: BatchNormStatistics | None) -> _Ood:
        some = scored.at_most(self.options.ood_images, self.options.seed)
        logits = self.under_all(calibration, some, reference)
        counts = set_counts(name, len(some), self.options.resamples, self.options.seed)
        return _Ood({statistics: _scores(found) for statistics, found in logits.items()}, counts)

    def _logits(self, images: ImageSet) -> np.ndarray:
        self.cost.scored += len(images)
        return forward(self.classifier, torch.from_numpy(images.images), self.options.forward_batch)[0].numpy()


def _scores(logits: np.ndarray) -> dict[str, np.ndarray]:
    return {name: score(logits) for name, score in _SCORES.items()}


def _figures(
    statistics: str, logits: np.ndarray, labels: np.ndarray, counts: np.ndarray, ood: Mapping[str, _Ood]
) -> Iterator[_Figure]:
    """All figures of a shifted set under one condition."""
    scores, correct, n = _scores(logits), logits.argmax(axis=1) == labels, len(labels)
    columns = {("", "accuracy"): correct, ("", "nll"): cross_entropies(logits, labels)}
    columns |= {(name, "mean"): values for name, values in scores.items()}
    means = weighted_means(np.stack(list(columns.values()), axis=1), counts)
    for position, (score, metric) in enumerate(columns):
        yield _Figure(score, metric, "", n, 0, means[:, position])
    yield _Figure("", "ece", "", n, 0, expected_calibration_error(scores["msp"], correct, counts=counts))
    for companion, other in ood.items():
        for score, values in scores.items():
            found = detection_metrics(values, other.scores[statistics][score], counts, other.counts)
            for metric in _DETECTION:
                yield _Figure(score, metric, companion, other.counts.shape[1], n, found[metric])


def _rows(name: str, by_statistics: Mapping[str, list[_Figure]]) -> Iterator[dict[str, object]]:
    corruption, strength = corruption_and_strength(name)
    running = {figure.key: figure.values for figure in by_statistics["running"]}
    for statistics, figures in by_statistics.items():
        for figure in figures:
            change = figure.values - running[figure.key]
            low, high = interval(figure.values[1:])
            change_low, change_high = interval(change[1:])
            yield {
                "statistics": statistics, "dataset": name, "corruption": corruption, "strength": strength,
                "role": "shifted", "score": figure.score, "metric": figure.metric, "value": figure.values[0],
                "low": low, "high": high, "change": change[0], "change_low": change_low, "change_high": change_high,
                "n": figure.n, "n_id": figure.n_id, "companion": figure.companion,
            }  # fmt: skip
