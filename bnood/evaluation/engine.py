"""The passes of an evaluation: what is fitted, scored and compared under each condition."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from bnood.data.image_set import Images
from bnood.errors import UserError
from bnood.evaluation.comparisons import Pair, Sets
from bnood.evaluation.conditions import Condition, Estimate
from bnood.evaluation.fitting import Fitted, Fitting
from bnood.evaluation.passes import Context, Passes, in_batches, shuffled
from bnood.evaluation.tables import Scored, Tables, Where
from bnood.networks.outputs import Outputs

# What fitted detectors may take while several conditions are evaluated at once.
BYTES_FITTED = 1 << 30


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


class Engine:
    """Runs the passes of all conditions and hands what they give to the tables."""

    def __init__(
        self, sets: Sets, passes: Passes, fitting: Fitting, tables: Tables, tell: Callable[[str], object]
    ) -> None:
        self.sets, self.passes, self.fitting, self.tables, self.tell = sets, passes, fitting, tables, tell
        self.options, self.notes, self.splits = passes.options, passes.notes, sets.splits(passes.options)

    def run(self, conditions: list[Condition]) -> None:
        """All passes of all conditions."""
        self.fitted_under_running = self._fitted(Estimate())
        jobs: dict[Estimate | None, list[_Job]] = defaultdict(list)
        for condition in conditions:
            if not condition.batch_size:
                for job in self._jobs(condition):
                    jobs[job.fitted_to].append(job)
        at_once = max(1, BYTES_FITTED // max(1, self.fitting.kept_bytes))
        for some in _chunks(list(jobs), at_once):
            self._fixed({fitted_to: jobs[fitted_to] for fitted_to in some})
        for condition in conditions:
            if condition.batch_size:
                self._in_batches(condition)

    # Fixed statistics.

    def _jobs(self, condition: Condition) -> Iterator[_Job]:
        pairs = self.sets.pairs_of(condition)
        for pair in pairs:
            yield _Job(condition, pair, *condition.estimates(self.splits, pair.id_split, pair.ood_split))
        # Beside the ID images as they are compared with each OOD set, those under as many images as there are.
        known = {pair.id_name: pair.id_split for pair in pairs if pair.comparison == "ood" and pair.id_name}
        for name, split in known.items() if condition.paired(self.splits) else ():
            if (own := condition.alone(self.splits, split)) is not None:
                yield _Job(condition, Pair(name, "", split, "", ""), own, own)

    def _fixed(self, jobs: dict[Estimate | None, list[_Job]]) -> None:
        """Score every set under each of its statistics, by the detectors fitted for each of its comparisons."""
        fitted = {each: {} if each is None else self._fitted_to(each) for each in jobs}
        wanted: dict[str, dict[Estimate, dict[Estimate | None, None]]] = defaultdict(lambda: defaultdict(dict))
        for job in (job for group in jobs.values() for job in group):
            for name, estimate in ((job.pair.id_name, job.ours), (job.pair.ood_name, job.theirs)):
                if name:
                    wanted[name][estimate][job.fitted_to] = None
        scored: dict[tuple[str, Estimate, Estimate | None], Scored] = {}
        for name, images in self.sets.scored.items():
            batches, index = self.passes.whole(images), np.arange(len(images))
            for detect in (True, False):
                estimates = [each for each, users in wanted[name].items() if (set(users) != {None}) == detect]
                for some in _chunks(estimates, self.passes.together(images, self.fitting.channel_means)):
                    self.tell(f"{name} under {', '.join(map(str, some))}")
                    found = self._run([images], batches, [self.passes.fixed(each) for each in some], detect)
                    for estimate, outputs in zip(some, found, strict=True):
                        each = self._summed_up(name, index, outputs, str(estimate))
                        for user in wanted[name][estimate]:
                            scored[name, estimate, user] = self._with_detectors(each, outputs, fitted[user])
        for job in (job for group in jobs.values() for job in group):
            known = [scored[job.pair.id_name, job.ours, job.fitted_to]] if job.pair.id_name else []
            other = [scored[job.pair.ood_name, job.theirs, job.fitted_to]] if job.pair.ood_name else []
            self._rows(job.condition, job.pair, (job.ours, job.theirs), known, other)

    def _fitted_to(self, estimate: Estimate) -> Fitted:
        """Detectors for the ID side's statistics; those fitted under running where that was asked for."""
        if not estimate.images or self.options.fitted_under == "running":
            return self.fitted_under_running
        return self._fitted(estimate)

    def _fitted(self, estimate: Estimate) -> Fitted:
        def run(images: Images) -> Outputs:
            return self._run([images], self.passes.whole(images), [self.passes.fixed(estimate)], False)[0][""]

        return self.fitting.fit(run)

    # Statistics of batches.

    def _in_batches(self, condition: Condition) -> None:
        """Pure batches of each set, or mixed batches of both sides of each comparison."""
        size, fraction = condition.batch_size, condition.ood_fraction
        done: dict[tuple[str, ...], list[list[Scored]]] = {}
        wanted: list[tuple[tuple[str, ...], list[int]]]
        fitted = None if fraction is not None else self._fitted_in_batches(condition, [size], [])
        for pair in self.sets.pairs_of(condition):
            if fraction is None:
                wanted = [((name,), [size]) for name in (pair.id_name, pair.ood_name) if name]
            elif pair.id_name:
                ood = min(size - 1, max(1, round(fraction * size)))  # at least one image of each side in every batch
                wanted = [((pair.id_name, pair.ood_name), [size - ood, ood])]
            else:
                self.notes[f"{condition.name} needs ID images: it is skipped"] = None
                continue
            for names, counts in wanted:
                if names not in done:
                    filler = [self.sets.adaptation[pair.ood_split]] if fraction is not None else []
                    done[names] = self._shuffles(condition, names, counts, fitted, filler)
            sides = [scored for names, _ in wanted for scored in done[names]]
            self._rows(condition, pair, (None, None), sides[0] if pair.id_name else [], sides[-1])

    def _shuffles(
        self,
        condition: Condition,
        names: tuple[str, ...],
        counts: list[int],
        fitted: Fitted | None,
        filler: list[Images],
    ) -> list[list[Scored]]:
        """What is scored of each set, in every random order: ``counts`` of its images in each batch."""
        sets = [self.sets.scored[name] for name in names]
        size = condition.batch_size
        batches = min(len(images) // count for images, count in zip(sets, counts, strict=True))
        if batches == 0:
            beside = "" if len(sets) == 1 else f" and {len(sets[0])} in-distribution ones"
            short = f"{len(sets[-1])} images{beside} do not fill a batch of {size}"
            self.notes[f"{names[-1]}: {short}: {condition.name} is skipped"] = None
            return [[] for _ in sets]
        if abs(counts[-1] / size - (condition.ood_fraction or 1)) > 0.01:
            shown = f"{counts[-1]} of {size} images, {counts[-1] / size:.3g}"
            self.notes[f"{condition.name}: the OOD fraction comes to {shown}"] = None
        self.tell(f"{' and '.join(names)} under {condition.name}")
        if fitted is None:
            fitted = self._fitted_in_batches(condition, counts, filler)
        found: list[list[Scored]] = [[] for _ in sets]
        for shuffle in range(self.options.shuffles):
            orders = [
                shuffled(images.name, len(images), shuffle, self.options.seed)[: batches * count]
                for images, count in zip(sets, counts, strict=True)
            ]
            drawn = in_batches(orders, batches)
            (outputs,) = self._run(sets, drawn, [partial(condition.context, self.passes.network.model)])
            for position, (name, order) in enumerate(zip(names, orders, strict=True)):
                rows = torch.from_numpy(np.concatenate(drawn)[:, 0] == position)
                own = {key: each.at(rows) for key, each in outputs.items()}
                each = self._summed_up(name, order, own, condition.name)
                found[position].append(self._with_detectors(each, own, fitted))
        return found

    def _fitted_in_batches(self, condition: Condition, counts: list[int], filler: list[Images]) -> Fitted:
        """Detectors fitted in batches of fitting images, filled up with images of ``filler``, both cycled."""
        if self.options.fitted_under == "running":
            return self.fitted_under_running

        def run(images: Images) -> Outputs:
            sets = [images, *filler]
            orders = [shuffled(each.name, len(each), 0, self.options.seed) for each in sets]
            batches = -(-len(images) // counts[0])
            cycled = [np.resize(order, batches * count) for order, count in zip(orders, counts, strict=True)]
            drawn = in_batches(cycled, batches)
            found = self._run(sets, drawn, [partial(condition.context, self.passes.network.model)], False)[0][""]
            own = np.flatnonzero(np.concatenate(drawn)[:, 0] == 0)
            return found.at(torch.from_numpy(own[np.argsort(orders[0], kind="stable")]))

        return self.fitting.fit(run)

    # What all have in common.

    def _run(
        self, sets: Sequence[Images], batches: Sequence[np.ndarray], contexts: Sequence[Context], detect: bool = True
    ) -> list[dict[str, Outputs]]:
        """For each context the outputs by "", and by their names those of detectors that need a pass of their own."""
        names = ["", *(self.fitting.own_pass if detect else ())]

        @contextmanager
        def within(context: Context, name: str) -> Iterator[None]:
            with context(), ExitStack() as stack:
                if name:
                    stack.enter_context(self.fitting.usable[name].context(self.passes.network))  # type: ignore[attr-defined]
                yield

        everything = [partial(within, context, name) for context in contexts for name in names]
        found = self.passes.outputs(sets, batches, everything, detect and self.fitting.channel_means)
        return [dict(zip(names, some, strict=True)) for some in _chunks(found, len(names))]

    def _summed_up(self, name: str, index: np.ndarray, outputs: dict[str, Outputs], where: str) -> Scored:
        try:
            return self.tables.summed_up(name, index, outputs[""])
        except UserError as error:
            raise UserError(f"{name} under {where}: {error}") from error

    def _with_detectors(self, scored: Scored, outputs: dict[str, Outputs], fitted: Fitted) -> Scored:
        return replace(scored, scores=scored.scores | self.fitting.scores(fitted, outputs))

    def _rows(
        self,
        condition: Condition,
        pair: Pair,
        estimates: tuple[Estimate | None, Estimate | None],
        known: list[Scored],
        other: list[Scored],
    ) -> None:
        """Rows of both sides alone, and of their comparison where both were scored."""

        def where(estimate: Estimate | None, *side: str) -> Where:
            if estimate is None or not estimate.parts:
                return Where(condition.name, "", 0, *side)
            return Where(condition.name, "one_batch" if estimate.form else estimator, estimate.images, *side)

        estimator = self.options.estimator
        ours = where(estimates[0], pair.id_name, "id", pair.dataset if condition.paired(self.splits) else "")
        kind = "control" if pair.companion else pair.comparison
        theirs = where(estimates[1], pair.dataset, "ood", pair.companion, kind)
        if pair.comparison == "ood":
            if known:
                self.tables.add(ours, known)
            if other and not pair.companion:
                self.tables.add(theirs, other)
        if known and other:
            self.tables.compare(theirs, list(zip(known, other, strict=True)))


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
