"""Interventions: put other statistics into some of a network's BatchNorm layers, and see what moves.

What the kinds of ``interventions.csv`` are; *matched* statistics of a layer are those of its input **as it arrives
under this very intervention**, over the set's calibration images, never over images that are scored:

- ``none``: running statistics everywhere. ``all``: matched ones everywhere.
- ``only``: matched in one layer. ``first``, ``last``: matched in the first or last k layers.
- ``mean``, ``variance``: in all layers, matched means with running variances, or the other way round.
- ``path``: running + lambda (fully matched - running), in means and variances alike.
- ``prior``: pure batches, each layer normalising with N / (N + n) running + n / (N + n) of its batch of n images
  (Schneider et al. 2020, equation 2).
- ``batch``: the batch's own statistics, for batch sizes times OOD shares; share 1 stands for pure batches of each set.
  Batches are filled as in :mod:`bnood.evaluation.conditions`, which says how.

**One pass is the fixed point.** All calibration images of a set pass as *one* batch, and each matched layer takes the
moments of what arrives and normalises with them before the next layer sees anything. That is exactly where sequential
estimation (:mod:`bnood.statistics`) ends after as many passes as there are layers.

**The passes.** Layers below an intervention need no second computation. The sweep goes through the network once,
segment by segment (:mod:`bnood.evaluation.interventions.segments`), with the state of the images under running and under matched
statistics: ``only`` and ``last`` start from the first, ``first`` from the second. What is matched in ``only`` is the
input under running statistics, in ``first`` the input under matched ones, so that both are known for all layers after
the two walks of the calibration images; ``last`` alone needs its own pass over them, from its first layer on.
"""

import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bnood.data.image_set import ImageSet
from bnood.errors import UserError
from bnood.evaluation.conditions import Images
from bnood.evaluation.interventions.effects import Effects, Outcome, Place
from bnood.evaluation.interventions.layer_sweep import layer_sweep
from bnood.evaluation.interventions.segments import Outputs, Segments
from bnood.statistics import BatchNormStatistics, LayerStatistics, read_statistics

# Called with the number of outcomes so far, of all, and the name of the last.
Progress = Callable[[int, int, str], None]

LAYER_KINDS = ("none", "all", "only", "first", "last")


@dataclass
class InterventionOptions:
    """Which interventions, on how many images.

    Args:
        id_images: in-distribution images that are scored, at most; chosen at random, as in all sets.
        ood_images: images of each OOD set's scoring half that are scored, at most.
        calibration_images: images that statistics are matched to, at most; they pass as one batch.
        lambdas: the path's places between running (0) and matched (1).
        priors: Schneider et al.'s N.
        prior_batch: their n, images in a batch.
        batch_sizes: under ``batch``; at least 2 each.
        shares: OOD shares of mixed batches, each between 0 and 1, exclusive; pure batches come anyway.
        resamples: bootstrap resamples behind each interval.
        chunk: images per forward pass where the batch does not matter.
        seed: of the choice of images, their order in batches and the bootstrap.
    """

    id_images: int = 1000
    ood_images: int = 1000
    calibration_images: int = 1000
    lambdas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    priors: tuple[float, ...] = (16, 64, 256, 1024)
    prior_batch: int = 128
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    shares: tuple[float, ...] = (0.1, 0.5, 0.9)
    resamples: int = 1000
    chunk: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("id_images", "ood_images", "calibration_images", "prior_batch", "resamples"):
            if getattr(self, name) < 2:
                raise UserError(f"{name} of the interventions is {getattr(self, name)}; it has to be at least 2")
        if self.chunk < 1:
            raise UserError(f"chunk of the interventions is {self.chunk}; it has to be at least 1")
        for name, right, expected in (
            ("lambdas", lambda value: 0 < value < 1, "between 0 (kind none) and 1 (kind all)"),
            ("priors", lambda value: value >= 0, "a number of images, 0 or more"),
            ("batch_sizes", lambda value: value >= 2, "at least 2, for one image has no statistics"),
            ("shares", lambda value: 0 < value < 1, "between 0 and 1, exclusive: pure batches come anyway"),
        ):
            values = getattr(self, name)
            wrong = [value for value in values if not right(value)]
            if wrong:
                raise UserError(f"{name} of the interventions contains {wrong[0]:g}; expected {expected}")
            if len(set(values)) < len(values):
                raise UserError(f"{name} of the interventions is {values}: each may be given once only")


@dataclass
class Interventions:
    """What the interventions did.

    Attributes:
        table: ``interventions.csv`` without run, norm and seed (:data:`bnood.evaluation.interventions.effects.COLUMNS`).
        draws: ``intervention_draws.parquet``.
        record: options, images, forward passes needed and done, seconds, notes.
    """

    table: pd.DataFrame
    draws: pd.DataFrame
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """One line for everything that was left out."""
        return list(self.record["notes"])


def intervene(
    classifier: nn.Module, images: Images, options: InterventionOptions, *, progress: Progress | None = None
) -> Interventions:
    """Run all interventions on all sets; the network is left as it was.

    Args:
        classifier: a :class:`~bnood.training.classifier.Classifier`, or any network with BatchNorm layers that is called as
            ``model(images, return_features=True)`` and gives logits and penultimate features.
        images: the sets; their calibration halves are matched to, their scoring halves are scored.
        options: which interventions.
        progress: called after each outcome.

    Raises:
        UserError: if the network has no BatchNorm layer, if a set has fewer than two images, or if logits are not
            finite.
    """
    sweep = Sweep(classifier, chosen_images(images, options), options)
    effects = Effects(
        sweep.images.id_set, [scored for _, scored in sweep.images.ood.values()], options.resamples, options.seed
    )
    started, summing, total = time.perf_counter(), 0.0, sweep.number_of_outcomes()
    for number, outcome in enumerate(sweep.outcomes(), start=1):
        began = time.perf_counter()
        effects.add(outcome)
        summing += time.perf_counter() - began
        if progress is not None:
            place = outcome.place
            progress(number, total, f"{outcome.dataset}, {place.kind} {place.place}".rstrip())
    record = {
        "options": asdict(options),
        "id": {"name": sweep.images.id_set.name, "n": len(sweep.images.id_set)},
        "ood": {
            name: {"calibration": len(calibration), "scored": len(scored)}
            for name, (calibration, scored) in sweep.images.ood.items()
        },
        "layers": list(sweep.segments.layers),
        "passes_needed": sweep.needed,
        "passes_done": round(sweep.segments.passed),
        "passes_done_on_calibration": round(sweep.segments.matching),
        "passes_needed_by_layers": sweep.needed_by_layers,
        "passes_done_by_layers": round(sweep.done_by_layers),
        "seconds_forward": time.perf_counter() - started - summing,
        "seconds_metrics": summing,
        "notes": sweep.notes,
    }
    return Interventions(effects.table(), effects.draws(), record)


def chosen_images(images: Images, options: InterventionOptions) -> Images:
    """At most so many images of each set as the options say, chosen at random by the seed and the set's name."""

    def some(part: ImageSet, count: int, what: str) -> ImageSet:
        if len(part) < 2:
            raise UserError(f"{part.name}: {len(part)} image(s) to be {what}; interventions need at least 2")
        if count >= len(part):
            return part
        return part.subset(np.sort(_order(part, options.seed)[:count]))

    ood = {
        name: (
            some(calibration, options.calibration_images, "matched to"),
            some(scored, options.ood_images, "scored"),
        )
        for name, (calibration, scored) in images.ood.items()
    }
    return replace(
        images,
        id_set=some(images.id_set, options.id_images, "scored"),
        id_calibration=some(images.id_calibration, options.calibration_images, "matched to"),
        ood=ood,
    )


def _order(images: ImageSet, seed: int) -> np.ndarray:
    """A random order that depends on the seed and the set's name: the first shuffle of :mod:`bnood.evaluation.conditions`."""
    return np.random.RandomState([seed, zlib.crc32(images.name.encode()), 0]).permutation(len(images))


class Sweep:
    """The forward passes of all interventions.

    Attributes:
        images: what is scored and matched to.
        segments: the network.
        running: its running statistics.
        needed: images that are scored times interventions, without those that coincide with another.
        needed_by_layers, done_by_layers: the part of ``needed``, and of ``segments.passed``, that belongs to ``none``,
            ``all``, ``only``, ``first`` and ``last``.
        notes: one line for everything that was left out, and why.
    """

    def __init__(self, model: nn.Module, images: Images, options: InterventionOptions) -> None:
        self.images, self.options, self.notes = images, options, list[str]()
        self.segments = Segments(model, torch.from_numpy(images.id_set.images[:1]), options.chunk)
        self.running = read_statistics(model)
        self.needed, self.needed_by_layers, self.done_by_layers = 0, 0, 0.0

    def outcomes(self) -> Iterator[Outcome]:
        """Every intervention on every set, in the order that :class:`~bnood.evaluation.interventions.effects.Effects` needs."""
        for outcome in self._all():
            kind, layers = outcome.place.kind, outcome.place.position
            # The first or last one is an ``only``, the first or last L of L are ``all``: the same thing once more.
            again = kind in ("first", "last") and layers in (1, len(self.segments.layers))
            self.needed += 0 if again else len(outcome.index)
            if kind in LAYER_KINDS and not again:
                self.needed_by_layers += len(outcome.index)
            yield outcome

    def number_of_outcomes(self) -> int:
        """How many :meth:`outcomes` yields, for a progress bar; batches that no set fills are counted all the same."""
        options, ood_sets = self.options, len(self.images.ood)
        each = 4 + 3 * len(self.segments.layers) + len(options.lambdas) + len(options.priors)
        return (1 + ood_sets) * (each + len(options.batch_sizes)) + 2 * ood_sets * len(options.batch_sizes) * len(
            options.shares
        )

    def _sets(self) -> list[tuple[ImageSet, ImageSet]]:
        return [(self.images.id_calibration, self.images.id_set), *self.images.ood.values()]

    def _all(self) -> Iterator[Outcome]:
        for calibration, scored in self._sets():
            for place, outputs in self._whole_set(calibration, scored):
                yield Outcome(place, "", scored.name, np.arange(len(scored)), outputs)
            yield from self._prior(scored)
        for size in self.options.batch_sizes:
            for _, scored in self._sets():
                yield from self._pure(scored, size)
            for share in self.options.shares:
                for _, scored in self.images.ood.values():
                    yield from self._mixed(scored, size, share)

    def _whole_set(self, calibration: ImageSet, scored: ImageSet) -> Iterator[tuple[Place, Outputs]]:
        """The kinds in which batches play no part."""
        matched_to, images = (self.segments.to_device(part.images) for part in (calibration, scored))
        before = self.segments.passed
        matched = yield from layer_sweep(self.segments, matched_to, images)
        self.done_by_layers += self.segments.passed - before
        for kind in ("mean", "variance"):
            yield Place(kind), self.segments.finish(images, 0, self._matched_in_part(matched_to, kind))
        for share in self.options.lambdas:
            statistics = self.running.interpolate(matched, share)
            yield Place("path", f"{share:g}", share), self.segments.finish(images, 0, statistics)

    def _matched_in_part(self, calibration: Tensor, kind: str) -> BatchNormStatistics:
        """All layers with matched means and running variances, or the other way round."""

        def mixed(name: str, own: LayerStatistics) -> LayerStatistics:
            running = self.running[name]
            mean, var = (own.mean, running.var) if kind == "mean" else (running.mean, own.var)
            return LayerStatistics(mean, var, own.count)

        _, own = self.segments.measure(calibration, range(len(self.segments)), mixed, self.segments.layers)
        return BatchNormStatistics({name: mixed(name, own[name]) for name in self.running})

    def _prior(self, scored: ImageSet) -> Iterator[Outcome]:
        size = self.options.prior_batch
        index = self._full_batches(scored, size, "prior")
        for prior in self.options.priors if len(index) else ():

            def mixed(name: str, own: LayerStatistics, prior: float = prior) -> LayerStatistics:
                here = LayerStatistics(own.mean.cpu(), own.var.cpu(), own.count)
                source = BatchNormStatistics({name: self.running[name]})
                return source.with_prior(BatchNormStatistics({name: here}), prior, size)[name]

            outputs = self.segments.in_batches(self.segments.to_device(scored.images[index]), size, mixed)
            yield Outcome(Place("prior", f"{prior:g}", prior), "", scored.name, index, outputs)

    def _pure(self, scored: ImageSet, size: int) -> Iterator[Outcome]:
        index = self._full_batches(scored, size, "batch")
        if len(index):
            outputs = self.segments.in_batches(self.segments.to_device(scored.images[index]), size)
            yield Outcome(Place("batch", f"{size}", size, 1.0), "", scored.name, index, outputs)

    def _full_batches(self, scored: ImageSet, size: int, kind: str) -> np.ndarray:
        """Images in random order, as many as fill batches of ``size``."""
        count = len(scored) // size * size
        if count == 0:
            self.notes.append(f"{scored.name}: {len(scored)} images do not fill a batch of {size}: {kind} is skipped")
        return _order(scored, self.options.seed)[:count]

    def _mixed(self, ood_set: ImageSet, size: int, share: float) -> Iterator[Outcome]:
        """Batches of both; the in-distribution images come first in each."""
        id_set = self.images.id_set
        ood_each = min(size - 1, max(1, round(share * size)))
        id_each = size - ood_each
        batches = min(len(id_set) // id_each, len(ood_set) // ood_each)
        if batches == 0:
            self.notes.append(
                f"{ood_set.name}: {len(ood_set)} images and {len(id_set)} in-distribution ones do not fill a batch "
                f"of {size} with an OOD share of {share:g}: skipped"
            )
            return
        note = f"batches of {size}: the OOD share {share:g} comes to {ood_each} of {size} images"
        if abs(ood_each / size - share) > 0.01 and note not in self.notes:
            self.notes.append(note)
        parts, indices = [], []
        for part, each in ((id_set, id_each), (ood_set, ood_each)):
            indices.append(_order(part, self.options.seed)[: batches * each])
            parts.append(part.images[indices[-1]].reshape(batches, each, *part.images.shape[1:]))
        stream = np.concatenate(parts, axis=1).reshape(batches * size, *id_set.images.shape[1:])
        outputs = self.segments.in_batches(self.segments.to_device(stream), size)
        place = Place("batch", f"{size}", size, share)
        inside = np.arange(batches * size) % size < id_each
        yield Outcome(place, ood_set.name, id_set.name, indices[0], outputs.at(inside))
        yield Outcome(place, "", ood_set.name, indices[1], outputs.at(~inside))
