"""The conditions of an evaluation and their forward passes: which statistics, which batches, which images.

A *cell* is one set under one condition: the logits and penultimate features of one forward pass. Every score, metric,
figure and interval is computed from these.

What each condition scores:

- ``running``: every image once, under the moving averages of training.
- ``batch``, pure: batches of one set alone. Each shuffle cuts a new random order into full batches; the last short
  batch is left out (its statistics would be of another size), so n is a multiple of the batch size.
- ``batch``, mixed: every batch holds ``round(share * batch size)`` images (at least one) of one OOD set, the rest are
  in-distribution. Each shuffle fills as many batches as it can without using an image twice. A share that small batches
  cannot hold exactly is noted.
- ``recalibrated:id``: statistics of clean in-distribution training images, under the test transform.
- ``recalibrated:target``: each set under statistics of its own other half: an OOD set under those of its calibration
  half, the in-distribution set under those of training images (as ``recalibrated:id``, whose cell is used again).
- ``recalibrated:mixture``: one set of statistics for both, from in-distribution training images and the OOD set's
  calibration half in a stated share.

No image is scored under statistics that were estimated on it, except under ``batch``, where that is the point.
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bnood.data.image_set import ImageSet
from bnood.errors import UserError
from bnood.statistics import BatchNormStatistics, Method, Mode, estimate_statistics, has_batchnorm, use_statistics
from bnood.training.classifier import Classifier

FAMILIES = ("running", "batch", "recalibrated")


@dataclass
class ConditionOptions:
    """Which conditions are evaluated.

    Args:
        statistics: any of running, batch, recalibrated. running is always evaluated: it is the reference of the others.
            Networks without BatchNorm only have running.
        batch_sizes: batch sizes under ``batch``; at least 2 each.
        shares: OOD shares of the mixed batches, each between 0 and 1, exclusive.
        shuffles: how many random orders of the images are batched; metrics are averaged over them.
        mixture_share: OOD share of the images behind ``recalibrated:mixture``.
        calibration_images: in-distribution training images that statistics are estimated on, at most.
        estimator: ``one_pass`` or ``sequential``, which takes up to as many passes as the network has layers and
            records how far the one-pass estimate was from it; see :mod:`bnood.statistics`.
        forward_batch: images per forward pass where the batch does not matter; on a CPU more are slower, because
            activations leave the processor's cache.
        estimation_batch: images per forward pass where statistics are estimated. One pass normalises by the batch, so
            that the more the better.
        seed: of shuffles, of the halves of the OOD sets and of the bootstrap.
    """

    statistics: tuple[str, ...] = FAMILIES
    batch_sizes: tuple[int, ...] = (128,)
    shares: tuple[float, ...] = (0.1, 0.5)
    shuffles: int = 3
    mixture_share: float = 0.5
    calibration_images: int = 5000
    estimator: Method = "one_pass"
    forward_batch: int = 128
    estimation_batch: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.statistics if name not in FAMILIES]
        if unknown or not self.statistics:
            raise UserError(f"statistics {', '.join(unknown) or 'are empty'}: choose from {', '.join(FAMILIES)}")
        # Pure batches alone would tell the network which set it sees, so mixed ones are always shown beside them.
        for name in ("batch_sizes", "shares") if "batch" in self.statistics else ():
            if not getattr(self, name):
                raise UserError(f"{name} is empty: statistics batch needs at least one, for pure and mixed batches")
        for name in ("batch_sizes", "shares"):
            given = [f"{value:g}" for value in getattr(self, name)]
            if len(set(given)) < len(given):
                raise UserError(f"{name} is {', '.join(given)}: each may be given once only")
        for size in self.batch_sizes:
            if size < 2:
                raise UserError(f"batch size {size}: batch statistics need at least 2 images in a batch")
        for share in (*self.shares, self.mixture_share):
            if not 0 < share < 1:
                raise UserError(f"OOD share {share}: a mixture has a share between 0 and 1; pure batches come anyway")
        for name in ("shuffles", "calibration_images", "forward_batch", "estimation_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it has to be at least 1")


@dataclass(frozen=True)
class Cell:
    """One set under one condition.

    Attributes:
        statistics: ``running``, ``batch``, ``recalibrated:id``, ``recalibrated:target`` or ``recalibrated:mixture``.
        composition: ``pure`` or ``mixed <OOD share>``; empty where the statistics are those of one kind of images.
        batch_size: under ``batch``; 0 where the result does not depend on it.
        shuffle: number of the shuffle, from 0.
        companion: for in-distribution images that shared batch or statistics with an OOD set, that set's name.
        dataset: name of the set.
        role: ``id`` or ``ood``.
        index: int64 ``[n]``, which images of the set were scored.
        logits: float32 ``[n, K]``.
        features: float32 ``[n, D]``, penultimate.
    """

    statistics: str
    composition: str
    batch_size: int
    shuffle: int
    companion: str
    dataset: str
    role: str
    index: np.ndarray
    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class Images:
    """The images of an evaluation.

    Attributes:
        id_set: the in-distribution images that are scored.
        id_calibration: clean in-distribution training images, for recalibration.
        ood: for each OOD set its calibration half and its scoring half.
        tuning: labelled in-distribution images that are neither trained on nor scored, for mitigations; none: left out.
    """

    id_set: ImageSet
    id_calibration: ImageSet
    ood: Mapping[str, tuple[ImageSet, ImageSet]]
    tuning: ImageSet | None = None


@dataclass
class Cost:
    """Images that went through the network: to be scored, and to estimate statistics (all passes)."""

    scored: int = 0
    estimated_on: int = 0


@dataclass
class Conditions:
    """Runs the forward passes of all conditions, cell by cell.

    Attributes:
        notes: one line for everything that was left out, and why.
        estimator_images: how many images each estimate saw, by its name.
        estimates: the statistics that were estimated, by name (``id``, ``target:svhn``, ``mixture:svhn``).
        estimator_distance: for each sequential estimate, how far the one-pass estimate was from it: the largest
            root-mean-square shift of a layer's means in standard deviations, and log ratio of standard deviations.
    """

    classifier: Classifier
    images: Images
    options: ConditionOptions
    cost: Cost = field(default_factory=Cost)
    notes: list[str] = field(default_factory=list)
    estimator_images: dict[str, int] = field(default_factory=dict)
    estimates: dict[str, BatchNormStatistics] = field(default_factory=dict)
    estimator_distance: dict[str, tuple[float, float]] = field(default_factory=dict)

    def cells(self) -> Iterator[Cell]:
        """All cells, each in-distribution cell before the OOD cells that are compared with it."""
        wanted = set(self.options.statistics)
        check_statistics(self.classifier, self.options)
        normalised = has_batchnorm(self.classifier)
        if not normalised and wanted != {"running"}:
            norm = self.classifier.norm
            self.notes.append(
                f"norm {norm} keeps no statistics: only running is evaluated, batch and recalibrated are skipped"
            )
        yield from self._all_sets("running", "running" if normalised else None)
        if "batch" in wanted and normalised:
            for size in self.options.batch_sizes:
                yield from self._pure(size)
                for share in self.options.shares:
                    yield from self._mixed(size, share)
        if "recalibrated" in wanted and normalised:
            yield from self._recalibrated()

    def tuning_outputs(self) -> tuple[Tensor, Tensor]:
        """Logits and features of the tuning images under ``running``."""
        assert self.images.tuning is not None
        statistics: Mode | None = "running" if has_batchnorm(self.classifier) else None
        return self._forward(torch.from_numpy(self.images.tuning.images), statistics, self.options.forward_batch)

    def number_of_cells(self) -> int:
        """How many cells :meth:`cells` will yield, for a progress bar."""
        options, wanted, ood_sets = self.options, set(self.options.statistics), len(self.images.ood)
        total = ood_sets + 1
        if not has_batchnorm(self.classifier):
            return total
        if "batch" in wanted:
            for size in options.batch_sizes:
                total += options.shuffles * sum(len(images) >= size for _, images in self.scored_sets())
                for share in options.shares:
                    fitting = sum(self._mixture(size, share, ood)[0] > 0 for _, ood in self.images.ood.values())
                    total += options.shuffles * 2 * fitting
        if "recalibrated" in wanted:
            total += 2 + ood_sets + ood_sets + 2 * ood_sets
        return total

    def scored_sets(self) -> list[tuple[str, ImageSet]]:
        """Role and images of every set that is scored, the in-distribution set first."""
        return [("id", self.images.id_set), *(("ood", scored) for _, scored in self.images.ood.values())]

    def _all_sets(self, label: str, statistics: BatchNormStatistics | Mode | None) -> Iterator[Cell]:
        for role, images in self.scored_sets():
            yield self._cell(images, role, label, statistics)

    def _cell(
        self,
        images: ImageSet,
        role: str,
        label: str,
        statistics: BatchNormStatistics | Mode | None,
        composition: str = "",
        companion: str = "",
    ) -> Cell:
        """A set under statistics that do not depend on the batch."""
        logits, features = self._forward(torch.from_numpy(images.images), statistics, self.options.forward_batch)
        index = np.arange(len(images))
        return Cell(label, composition, 0, 0, companion, images.name, role, index, logits, features)

    def _pure(self, size: int) -> Iterator[Cell]:
        for role, images in self.scored_sets():
            count = len(images) // size * size
            if count == 0:
                self.notes.append(
                    f"{images.name}: {len(images)} images do not fill a batch of {size}: batch is skipped"
                )
                continue
            for shuffle in range(self.options.shuffles):
                index = self._order(images, shuffle)[:count]
                logits, features = self._forward(torch.from_numpy(images.images[index]), "batch", size)
                yield Cell("batch", "pure", size, shuffle, "", images.name, role, index, logits, features)

    def _mixture(self, size: int, share: float, ood_set: ImageSet) -> tuple[int, int, int]:
        """How many mixed batches can be filled, and the ID and OOD images in each."""
        ood_per_batch = min(size - 1, max(1, round(share * size)))
        id_per_batch = size - ood_per_batch
        batches = min(len(self.images.id_set) // id_per_batch, len(ood_set) // ood_per_batch)
        return batches, id_per_batch, ood_per_batch

    def _note_share(self, what: str, wanted: float, ood: int, total: int) -> None:
        """A share that whole images cannot make up is named as asked for; the true one is noted, once."""
        note = f"{what}: the OOD share {wanted:g} comes to {ood} of {total} images, {ood / total:.3g}"
        if abs(ood / total - wanted) > 0.01 and note not in self.notes:
            self.notes.append(note)

    def _mixed(self, size: int, share: float) -> Iterator[Cell]:
        id_set = self.images.id_set
        for _, ood_set in self.images.ood.values():
            batches, id_per_batch, ood_per_batch = self._mixture(size, share, ood_set)
            if batches == 0:
                self.notes.append(
                    f"{ood_set.name}: {len(ood_set)} images and {len(id_set)} in-distribution ones do not fill a batch "
                    f"of {size} with an OOD share of {share:g}: skipped"
                )
                continue
            self._note_share(f"mixed batches of {size}", share, ood_per_batch, size)
            for shuffle in range(self.options.shuffles):
                parts, indices = [], []
                for images, each in ((id_set, id_per_batch), (ood_set, ood_per_batch)):
                    index = self._order(images, shuffle)[: batches * each]
                    indices.append(index)
                    parts.append(images.images[index].reshape(batches, each, *images.images.shape[1:]))
                stream = np.concatenate(parts, axis=1).reshape(batches * size, *id_set.images.shape[1:])
                outputs = self._forward(torch.from_numpy(stream), "batch", size)
                by_batch = [output.view(batches, size, -1) for output in outputs]
                for role, images, index, inside in (
                    ("id", id_set, indices[0], slice(0, id_per_batch)),
                    ("ood", ood_set, indices[1], slice(id_per_batch, size)),
                ):
                    logits, features = (output[:, inside].flatten(0, 1) for output in by_batch)
                    companion = ood_set.name if role == "id" else ""
                    yield Cell(
                        "batch",
                        f"mixed {share:g}",
                        size,
                        shuffle,
                        companion,
                        images.name,
                        role,
                        index,
                        logits,
                        features,
                    )

    def _recalibrated(self) -> Iterator[Cell]:
        options, id_set = self.options, self.images.id_set
        id_images = self.images.id_calibration.images[: options.calibration_images]
        matched = self._estimate("id", id_images)
        for cell in self._all_sets("recalibrated:id", matched):
            yield cell
            if cell.role == "id":
                yield Cell(**{**vars(cell), "statistics": "recalibrated:target"})
        for name, (calibration, scored) in self.images.ood.items():
            target = self._estimate(f"target:{name}", calibration.images)
            yield self._cell(scored, "ood", "recalibrated:target", target)
        for name, (calibration, scored) in self.images.ood.items():
            share = options.mixture_share
            ood_count = min(len(calibration), max(1, round(len(id_images) * share / (1 - share))))
            id_count = min(len(id_images), max(1, round(ood_count * (1 - share) / share)))
            self._note_share(f"recalibrated:mixture with {name}", share, ood_count, id_count + ood_count)
            # Any part of a set that is sorted by class would be a part of its classes.
            some = np.sort(self._permutation(len(calibration))[:ood_count])
            stream = np.concatenate([id_images[:id_count], calibration.images[some]])
            mixture = self._estimate(f"mixture:{name}", stream)
            composition = f"mixed {share:g}"
            yield self._cell(id_set, "id", "recalibrated:mixture", mixture, composition, companion=name)
            yield self._cell(scored, "ood", "recalibrated:mixture", mixture, composition)

    def _estimate(self, name: str, images: np.ndarray) -> BatchNormStatistics:
        # In random order: one pass normalises by the batch, and a batch of one class, or of ID images alone where
        # a mixture was asked for, would have unlike statistics.
        tensor = torch.from_numpy(images[self._permutation(len(images))])
        size = self.options.estimation_batch
        # Nearly equal batches: a short last one would have unlike statistics in the one-pass estimate.
        batches = list(tensor.tensor_split(-(-len(tensor) // size)))
        estimate = estimate_statistics(self.classifier, batches, method="one_pass")
        if self.options.estimator == "sequential":
            one_pass = estimate
            estimate = estimate_statistics(self.classifier, batches, method="sequential", start=one_pass)
            apart = estimate.distance(one_pass).values()
            self.estimator_distance[name] = (max(pair[0] for pair in apart), max(pair[1] for pair in apart))
            self.cost.estimated_on += len(images)
            if not estimate.converged:
                self.notes.append(f"statistics {name}: they still moved after {estimate.passes} passes; used anyway")
        self.cost.estimated_on += len(images) * estimate.passes
        self.estimator_images[name] = len(images)
        self.estimates[name] = estimate
        return estimate

    def _permutation(self, count: int) -> np.ndarray:
        return np.random.RandomState(self.options.seed).permutation(count)

    def _order(self, images: ImageSet, shuffle: int) -> np.ndarray:
        """A random order of a set's images that depends on the seed, the set's name and the shuffle alone."""
        key = [self.options.seed, zlib.crc32(images.name.encode()), shuffle]
        return np.random.RandomState(key).permutation(len(images))

    def _forward(
        self, images: Tensor, statistics: BatchNormStatistics | Mode | None, size: int
    ) -> tuple[Tensor, Tensor]:
        """Logits and features (float32, CPU) of uint8 ``[n, H, W, 3]``, in batches of ``size`` (the last: the rest)."""
        self.cost.scored += len(images)
        context = (
            evaluation_mode(self.classifier) if statistics is None else use_statistics(self.classifier, statistics)
        )
        with context:
            return forward(self.classifier, images, size)


def check_statistics(classifier: Classifier, options: ConditionOptions) -> None:
    """Refuse to ask a network without BatchNorm for nothing but statistics that it lacks."""
    if not has_batchnorm(classifier) and "running" not in options.statistics:
        raise UserError(
            f"norm {classifier.norm} keeps no statistics, so that there is nothing to evaluate under "
            f"{' or '.join(options.statistics)}; expected running among the statistics"
        )


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """For networks without BatchNorm: everything in evaluation mode, and every flag as it was afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield model
    finally:
        for module, flag in flags:
            module.training = flag


def forward(classifier: Classifier, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Logits ``[n, K]`` and penultimate features ``[n, D]`` of uint8 ``[n, H, W, 3]``, ``size`` images at a time."""
    device = classifier.image_mean.device
    logits, features = [], []
    with torch.inference_mode():
        for batch in images.split(size):
            out, penultimate = classifier(batch.to(device, non_blocking=True), return_features=True)
            logits.append(out.float())
            features.append(penultimate.float())
    return torch.cat(logits).cpu(), torch.cat(features).cpu()
