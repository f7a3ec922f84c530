"""The passes of an evaluation: which detectors are fitted, what is scored and compared under each condition."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from bnood.data.image_set import Images
from bnood.errors import UserError
from bnood.evaluation.comparisons import Pair, Sets
from bnood.evaluation.conditions import Condition, Estimate
from bnood.evaluation.detectors import Detector, NotApplicable, make_detector
from bnood.evaluation.options import DEFAULT_DETECTORS
from bnood.evaluation.passes import Context, Passes, in_batches, shuffled
from bnood.evaluation.scores import SCORES
from bnood.evaluation.tables import Scored, Tables, Where
from bnood.networks.network import Outputs
from bnood.statistics import has_batchnorm, read_statistics

Fitted = dict[str, Detector]
BYTES_FITTED = 1 << 30  # what fitted detectors may take while several conditions are evaluated at once


class Fitting:
    """Fits detectors; refuses those that need what there is not, but leaves out default ones with a note."""

    def __init__(self, passes: Passes, sets: Sets) -> None:
        self.network, self.options, self.notes, self.sets = passes.network, passes.options, passes.notes, sets
        self.images: dict[str, Images] = {}  # what each detector is fitted on, if on anything
        self.usable: Fitted = {}  # the detectors that can be used, unfitted
        self.record: dict[str, dict[str, float]] = {}  # what was fitted
        for name in self.options.detectors:
            detector = make_detector(name)
            try:
                self._check(detector)
                self.usable[name] = detector
            except UserError as error:
                if not isinstance(error, NotApplicable) and tuple(self.options.detectors) != DEFAULT_DETECTORS:
                    raise
                self.notes[f"detector {name}: {error}" if isinstance(error, NotApplicable) else str(error)] = None
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
                self.notes[f"detector {name}: {error}"] = None
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
                self.notes[f"detector {name}: {error}"] = None
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


class _Job(NamedTuple):
    """A comparison under fixed statistics, or ID images alone (``ood_name`` "")."""

    condition: Condition
    pair: Pair
    ours: Estimate
    theirs: Estimate

    @property
    def fitted_to(self) -> Estimate | None:
        """The statistics that detectors are fitted under; None: without detectors."""
        return None if self.condition.logits_only or not self.pair.ood_name else self.ours

    @property
    def sides(self) -> list[tuple[str, Estimate]]:
        """The ID set and the OOD set, where there is one, and the statistics of each."""
        both = (self.pair.id_name, self.ours), (self.pair.ood_name, self.theirs)
        return [(name, estimate) for name, estimate in both if name]


class Engine:
    """Runs the passes of all conditions and hands what they give to the tables."""

    def __init__(
        self, sets: Sets, passes: Passes, fitting: Fitting, tables: Tables, tell: Callable[[str], object]
    ) -> None:
        self.sets, self.passes, self.fitting, self.tables, self.tell = sets, passes, fitting, tables, tell
        self.options, self.notes, self.splits = passes.options, passes.notes, sets.splits(passes.options)
        self.fitted_under_running: Fitted | None = None

    def run(self, conditions: list[Condition]) -> None:
        self.fitted_under_running = self._fitted(Estimate())
        jobs = [job for condition in conditions if not condition.batch_size for job in self._jobs(condition)]
        fitted_to = list(dict.fromkeys(job.fitted_to for job in jobs))
        jobs.sort(key=lambda job: fitted_to.index(job.fitted_to))
        for some in _chunks(fitted_to, max(1, BYTES_FITTED // max(1, self.fitting.kept_bytes))):
            self._fixed([job for job in jobs if job.fitted_to in some])
        for condition in conditions:
            if condition.batch_size:
                self._in_batches(condition)

    def _jobs(self, condition: Condition) -> Iterator[_Job]:
        pairs = self.sets.pairs_of(condition)
        for pair in pairs:
            yield _Job(condition, pair, *condition.estimates(self.splits, pair.id_split, pair.ood_split))
        # Beside the ID images as they are compared with each OOD set, those under as many images as there are.
        known = {pair.id_name: pair.id_split for pair in pairs if pair.comparison == "ood" and pair.id_name}
        alone = condition.paired(self.splits) and condition.ood_fraction is None
        for name, split in known.items() if alone else ():
            yield _Job(condition, Pair(name, "", split, "", ""), *condition.estimates(self.splits, split, split))

    def _fixed(self, jobs: list[_Job]) -> None:
        """Score every set under each of its statistics, by the detectors fitted for each of its comparisons."""
        fitted = {each: {} if each is None else self._fitted(each) for each in {job.fitted_to: None for job in jobs}}
        users: dict[tuple[str, Estimate], dict[Estimate | None, None]] = defaultdict(dict)
        for job in jobs:
            for side in job.sides:
                users[side][job.fitted_to] = None
        scored: dict[tuple[str, Estimate, Estimate | None], Scored] = {}
        for name, images in self.sets.scored.items():
            batches, index = self.passes.whole(images), np.arange(len(images))
            for detect in (True, False):
                wanted = (side for side, of in users.items() if (set(of) != {None}) == detect)
                estimates = [estimate for of, estimate in wanted if of == name]
                for some in _chunks(estimates, self.passes.together(images, self.fitting.channel_means)):
                    self.tell(f"{name} under {', '.join(map(str, some))}")
                    found = self._run([images], batches, [self.passes.fixed(each) for each in some], detect)
                    for estimate, outputs in zip(some, found, strict=True):
                        each = self._summed_up(name, index, outputs, str(estimate))
                        for user in users[name, estimate]:
                            scored[name, estimate, user] = self._with_detectors(each, outputs, fitted[user])
        for job in jobs:
            sides = {name: [scored[name, estimate, job.fitted_to]] for name, estimate in job.sides}
            self._rows(job.condition, job.pair, sides, job.ours, job.theirs)

    def _fitted(self, estimate: Estimate) -> Fitted:
        if self.fitted_under_running is not None and (not estimate.images or self.options.fitted_under == "running"):
            return self.fitted_under_running

        def run(images: Images) -> Outputs:
            return self._run([images], self.passes.whole(images), [self.passes.fixed(estimate)], False)[0][""]

        return self.fitting.fit(run)

    def _in_batches(self, condition: Condition) -> None:
        """Pure batches of each set, or mixed batches of both sides of each comparison."""
        size, fraction = condition.batch_size, condition.ood_fraction
        ood = min(size - 1, max(1, round((fraction or 0) * size)))  # at least one image of each side in a mixed batch
        done: dict[tuple[str, ...], dict[str, list[Scored]]] = {}
        fitted: dict[str, Fitted] = {}  # by the split that fills up the batches, the last one alone for their memory
        for pair in self.sets.pairs_of(condition):
            groups, filler = [{pair.id_name: size - ood, pair.ood_name: ood}], pair.ood_split
            if fraction is None:
                groups, filler = [{name: size} for name in (pair.id_name, pair.ood_name) if name], ""
            sides: dict[str, list[Scored]] = {}
            for counts in groups:
                if tuple(counts) not in done:
                    self.tell(f"{' and '.join(counts)} under {condition.name}")
                    if (batches := self._batches(condition, counts)) and filler not in fitted:
                        fitted = {filler: self._fitted_in_batches(condition, list(counts.values()), filler)}
                    shuffles = range(self.options.shuffles if batches else 0)
                    found = [self._shuffle(condition, counts, batches, each, fitted[filler]) for each in shuffles]
                    done[tuple(counts)] = {name: [each[name] for each in found] for name in counts}
                sides |= done[tuple(counts)]
            self._rows(condition, pair, sides)

    def _batches(self, condition: Condition, counts: dict[str, int]) -> int:
        """How many batches there are with these numbers of images of each set; what a reader should know is noted."""
        sizes, size = {name: len(self.sets.scored[name]) for name in counts}, condition.batch_size
        batches = min(sizes[name] // count for name, count in counts.items())
        other, share = [*counts][-1], [*counts.values()][-1] / size
        if batches == 0:
            few = " and ".join(f"{n} images of {name}" for name, n in sizes.items())
            self.notes[f"{other}: {few} do not fill a batch of {size}: {condition.name} is skipped"] = None
        elif abs(share - (condition.ood_fraction or 1)) > 0.01:
            shown = f"{counts[other]} of {size} images, {share:.3g}"
            self.notes[f"{condition.name}: the OOD fraction comes to {shown}"] = None
        return batches

    def _shuffle(
        self, condition: Condition, counts: dict[str, int], batches: int, shuffle: int, fitted: Fitted
    ) -> dict[str, Scored]:
        """What is scored of each set in one random order, with ``counts`` of its images in each batch."""
        sets = [self.sets.scored[name] for name in counts]
        orders = [shuffled(each.name, len(each), shuffle, self.options.seed) for each in sets]
        orders = [order[: batches * count] for order, count in zip(orders, counts.values(), strict=True)]
        drawn = in_batches(orders, batches)
        (outputs,) = self._run(sets, drawn, [partial(condition.context, self.passes.network.model)])
        found = {}
        for position, (name, order) in enumerate(zip(counts, orders, strict=True)):
            rows = torch.from_numpy(np.concatenate(drawn)[:, 0] == position)
            own = {key: each.at(rows) for key, each in outputs.items()}
            found[name] = self._with_detectors(self._summed_up(name, order, own, condition.name), own, fitted)
        return found

    def _fitted_in_batches(self, condition: Condition, counts: list[int], filler: str) -> Fitted:
        """Detectors fitted in batches of fitting images, filled up with images of a split, both cycled."""
        if self.options.fitted_under == "running":
            return self._fitted(Estimate())

        def run(images: Images) -> Outputs:
            sets = [images, *([self.sets.adaptation[filler]] if filler else [])]
            orders = [shuffled(each.name, len(each), 0, self.options.seed) for each in sets]
            batches = -(-len(images) // counts[0])
            cycled = [np.resize(order, batches * count) for order, count in zip(orders, counts, strict=True)]
            drawn = in_batches(cycled, batches)
            found = self._run(sets, drawn, [partial(condition.context, self.passes.network.model)], False)[0][""]
            own = np.flatnonzero(np.concatenate(drawn)[:, 0] == 0)
            return found.at(torch.from_numpy(own[np.argsort(orders[0], kind="stable")]))

        return self.fitting.fit(run)

    def _run(
        self, sets: Sequence[Images], batches: Sequence[np.ndarray], contexts: Sequence[Context], detect: bool = True
    ) -> list[dict[str, Outputs]]:
        """For each context the outputs by "", and by their names those of detectors that need a pass of their own."""
        own, model = (self.fitting.own_pass if detect else []), self.passes.network.model

        @contextmanager
        def within(context: Context, detector: Any) -> Iterator[None]:
            with context(), detector.context(model):
                yield

        everything: list[Context] = []
        for context in contexts:
            everything += [context, *(partial(within, context, detector) for detector in own)]
        found = self.passes.outputs(sets, batches, everything, detect and self.fitting.channel_means)
        names = ["", *(detector.name for detector in own)]
        return [dict(zip(names, some, strict=True)) for some in _chunks(found, len(names))]

    def _summed_up(self, name: str, index: np.ndarray, outputs: dict[str, Outputs], where: str) -> Scored:
        try:
            return self.tables.summed_up(name, index, outputs[""])
        except UserError as error:
            raise UserError(f"{name} under {where}: {error}") from error

    def _with_detectors(self, scored: Scored, outputs: dict[str, Outputs], fitted: Fitted) -> Scored:
        return replace(scored, scores=scored.scores | self.fitting.scores(fitted, outputs))

    def _rows(self, condition: Condition, pair: Pair, sides: dict[str, list[Scored]], *estimates: Estimate) -> None:
        """Rows of both sides alone, and of their comparison where both were scored."""

        def where(estimate: Estimate, *side: str) -> Where:
            if not estimate.parts:
                return Where(condition.name, "", 0, *side)
            estimator = "one_batch" if estimate.form else self.options.estimator
            return Where(condition.name, estimator, estimate.images, *side)

        known, other = sides.get(pair.id_name, []), sides.get(pair.ood_name, [])
        first, second = estimates or (Estimate(), Estimate())
        ours = where(first, pair.id_name, "id", pair.dataset if condition.paired(self.splits) else "")
        theirs = where(second, pair.dataset, "ood", pair.companion, "control" if pair.companion else pair.comparison)
        if known and pair.comparison == "ood":
            self.tables.add(ours, known)
        if other and pair.comparison == "ood" and not pair.companion:
            self.tables.add(theirs, other)
        if known and other:
            self.tables.compare(theirs, list(zip(known, other, strict=True)))


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
