"""The passes of an evaluation: what is fitted, scored and compared under each condition."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
from bnood.evaluation.fitting import Fitted, Fitting
from bnood.evaluation.options import EvaluationOptions
from bnood.evaluation.passes import Context, Passes, Progress, estimate_name, shuffled
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


class Engine:
    """Runs the passes of all conditions and hands what they give to the tables."""

    def __init__(
        self, sets: Sets, options: EvaluationOptions, passes: Passes, fitting: Fitting, tables: Tables, tell: Progress
    ) -> None:
        self.network, self.notes = passes.network, passes.notes
        self.sets, self.options, self.passes, self.fitting, self.tables = sets, options, passes, fitting, tables
        self.tell, self.splits = tell, sets.splits(options)

    def run(self, conditions: list[Condition]) -> None:
        """All passes of all conditions."""
        self.fitted_under_running = self._fitted(Estimate())
        self._fixed([condition for condition in conditions if not condition.batch_size])
        for condition in conditions:
            if condition.batch_size and condition.ood_fraction is None:
                self._pure(condition)
            elif condition.batch_size:
                self._mixed(condition)

    # Fixed statistics.

    def _fixed(self, conditions: list[Condition]) -> None:
        """All comparisons under fixed statistics, those with the same statistics of the ID side together."""
        blocks: dict[Estimate | None, list[_Job]] = defaultdict(list)  # None: without detectors
        for condition in conditions:
            for pair in self.sets.pairs_of(condition):
                ours, theirs = condition.estimates(self.splits, pair.id_split, pair.ood_split)
                blocks[None if condition.logits_only else ours].append(_Job(condition, pair, ours, theirs))
            # Beside the ID images as they are compared with each OOD set, those under as many images as there are.
            known = {
                pair.id_name: pair.id_split for pair in self.sets.pairs if pair.comparison == "ood" and pair.id_name
            }
            for name, split in known.items() if condition.paired(self.splits) else ():
                own = condition.alone(self.splits, split)
                if own is not None and any(pair.id_name == name for pair in self.sets.pairs_of(condition)):
                    blocks[None].append(_Job(condition, Pair(name, "", split, "", ""), own, own))
        at_once = max(1, BYTES_FITTED // max(1, self.fitting.kept_bytes))
        for some in _chunks(list(blocks), at_once):
            self._blocks({block: blocks[block] for block in some})

    def _blocks(self, blocks: Mapping[Estimate | None, list[_Job]]) -> None:
        fitted = {block: {} if block is None else self._fitted_to(block) for block in blocks}
        # Which detectors score each set under each of its statistics.
        wanted: dict[str, dict[Estimate, dict[Estimate | None, None]]] = defaultdict(lambda: defaultdict(dict))
        for block, jobs in blocks.items():
            for job in jobs:
                for name, estimate in ((job.pair.id_name, job.ours), (job.pair.ood_name, job.theirs)):
                    if name:
                        wanted[name][estimate][block] = None
        scored: dict[tuple[str, Estimate, Estimate | None], Scored] = {}
        for name, images in self.sets.scored.items():
            batches, index = self.passes.whole(images), np.arange(len(images))
            at_once = self.passes.together(images, self.fitting.channel_means)
            for to_score in (True, False):
                estimates = [each for each, users in wanted[name].items() if (set(users) != {None}) == to_score]
                for some in _chunks(estimates, at_once):
                    self.tell(f"{name} under {', '.join(estimate_name(each) or 'running' for each in some)}")
                    found = self._run([images], batches, [self.passes.fixed(each) for each in some], to_score)
                    for estimate, outputs in zip(some, found, strict=True):
                        each = self._summed_up(name, index, outputs, estimate_name(estimate) or "running")
                        for block in wanted[name][estimate]:
                            scored[name, estimate, block] = self._with_detectors(each, outputs, fitted[block])
        for block, jobs in blocks.items():
            for job in jobs:
                known = scored.get((job.pair.id_name, job.ours, block))
                other = [scored[job.pair.ood_name, job.theirs, block]] if job.pair.ood_name else []
                self._rows(job.condition, job.pair, job.ours, job.theirs, [known], other)

    def _fitted_to(self, estimate: Estimate) -> Fitted:
        """Detectors for the ID side's statistics; those fitted under running where that was asked for."""
        if not estimate.images or self.options.fitted_under == "running":
            return self.fitted_under_running
        return self._fitted(estimate)

    def _fitted(self, estimate: Estimate) -> Fitted:
        context = self.passes.fixed(estimate)
        return self.fitting.fit(lambda images: self._run([images], self.passes.whole(images), [context], False)[0][0])

    # Statistics of batches.

    def _pure(self, condition: Condition) -> None:
        size, pairs = condition.batch_size, self.sets.pairs_of(condition)
        names = dict.fromkeys(name for pair in pairs for name in (pair.id_name, pair.ood_name) if name)
        fitted = self._fitted_in_batches(condition, size, None)
        scored: dict[str, list[Scored]] = {}
        for name in names:
            images = self.sets.scored[name]
            count = len(images) // size * size
            if count == 0:
                self._note(f"{name}: {len(images)} images do not fill a batch of {size}: {condition.name} is skipped")
                continue
            self.tell(f"{name} under {condition.name}")
            scored[name] = []
            for shuffle in range(self.options.shuffles):
                index = shuffled(name, len(images), shuffle, self.options.seed)[:count]
                batches = list(_pairs(0, index).reshape(-1, size, 2))
                (outputs,) = self._run([images], batches, [self._context(condition)])
                each = self._summed_up(name, index, outputs, condition.name)
                scored[name].append(self._with_detectors(each, outputs, fitted))
        for pair in pairs:
            none: list[Scored] = []
            self._rows(condition, pair, None, None, scored.get(pair.id_name, none), scored.get(pair.ood_name, none))

    def _mixed(self, condition: Condition) -> None:
        together: dict[tuple[str, str], list[Pair]] = defaultdict(list)
        for pair in self.sets.pairs_of(condition):
            together[pair.id_name, pair.ood_name].append(pair)
        for (id_name, ood_name), pairs in together.items():
            if not id_name:
                self._note(f"{condition.name} needs ID images: it is skipped")
                continue
            known, other = self.sets.scored[id_name], self.sets.scored[ood_name]
            ood_each = _ood_images(condition)
            id_each = condition.batch_size - ood_each
            batches = min(len(known) // id_each, len(other) // ood_each)
            if batches == 0:
                self._note(
                    f"{other.name}: {len(other)} images and {len(known)} in-distribution ones do not fill a batch of "
                    f"{condition.batch_size} with an OOD fraction of {condition.ood_fraction:g}: skipped"
                )
                continue
            self._note_fraction(condition.name, condition, ood_each, condition.batch_size)
            self.tell(f"{id_name} and {ood_name} under {condition.name}")
            fitted = self._fitted_in_batches(condition, id_each, self.sets.adaptation[pairs[0].ood_split])
            sides: tuple[list[Scored], list[Scored]] = ([], [])
            for shuffle in range(self.options.shuffles):
                indices = [
                    shuffled(images.name, len(images), shuffle, self.options.seed)[: batches * each]
                    for images, each in ((known, id_each), (other, ood_each))
                ]
                parts = [_pairs(k, index).reshape(batches, -1, 2) for k, index in enumerate(indices)]
                (found,) = self._run([known, other], list(np.concatenate(parts, axis=1)), [self._context(condition)])
                inside = np.arange(batches * condition.batch_size) % condition.batch_size < id_each
                for side, images, index, rows in zip(sides, (known, other), indices, (inside, ~inside), strict=True):
                    outputs = _at(found, rows)
                    each = self._summed_up(images.name, index, outputs, condition.name)
                    side.append(self._with_detectors(each, outputs, fitted))
            for pair in pairs:
                self._rows(condition, pair, None, None, *sides)

    def _context(self, condition: Condition) -> Context:
        return lambda: condition.context(self.network.model)

    def _fitted_in_batches(self, condition: Condition, each: int, filler: Images | None) -> Fitted:
        """Detectors fitted in batches of ``each`` fitting images, filled up with images of ``filler``, both cycled."""
        if self.options.fitted_under == "running":
            return self.fitted_under_running

        def run(images: Images) -> Outputs:
            order = shuffled(images.name, len(images), 0, self.options.seed)
            count = -(-len(order) // each)
            parts = [_pairs(0, np.resize(order, count * each)).reshape(count, each, 2)]
            sets = [images]
            if filler is not None:
                others = condition.batch_size - each
                order_of_filler = shuffled(filler.name, len(filler), 0, self.options.seed)
                parts.append(_pairs(1, np.resize(order_of_filler, count * others)).reshape(count, others, 2))
                sets.append(filler)
            batches = list(np.concatenate(parts, axis=1))
            found = self._run(sets, batches, [self._context(condition)], False)[0][0]
            own = np.arange(count * condition.batch_size) % condition.batch_size < each
            return found.at(torch.from_numpy(np.flatnonzero(own)[np.argsort(order, kind="stable")]))

        return self.fitting.fit(run)

    # What all have in common.

    def _run(
        self, sets: Sequence[Images], batches: Sequence[np.ndarray], contexts: Sequence[Context], to_score: bool = True
    ) -> list[tuple[Outputs, dict[str, Outputs]]]:
        """For each context the outputs, and those of detectors that need a pass of their own."""
        own = self.fitting.own_pass if to_score else {}

        @contextmanager
        def within(context: Context, name: str) -> Iterator[None]:
            with context(), own[name].context(self.network):  # type: ignore[attr-defined]
                yield

        everything: list[Context] = []
        for context in contexts:
            everything += [context, *(partial(within, context, name) for name in own)]
        found = self.passes.outputs(sets, batches, everything, to_score and self.fitting.channel_means)
        step = 1 + len(own)
        return [
            (found[start], dict(zip(own, found[start + 1 : start + step], strict=True)))
            for start in range(0, len(found), step)
        ]

    def _summed_up(
        self, name: str, index: np.ndarray, outputs: tuple[Outputs, dict[str, Outputs]], where: str
    ) -> Scored:
        try:
            return self.tables.summed_up(name, index, outputs[0])
        except UserError as error:
            raise UserError(f"{name} under {where}: {error}") from error

    def _with_detectors(self, scored: Scored, outputs: tuple[Outputs, dict[str, Outputs]], fitted: Fitted) -> Scored:
        return replace(scored, scores=scored.scores | self.fitting.scores(fitted, *outputs))

    def _rows(
        self,
        condition: Condition,
        pair: Pair,
        ours: Estimate | None,
        theirs: Estimate | None,
        known: Sequence[Scored | None],
        other: Sequence[Scored],
    ) -> None:
        """Rows of both sides alone, and of their comparison where both were scored."""
        id_side = [each for each in known if each is not None]
        comparison = self._where(condition, theirs, pair.dataset, "ood", pair.companion, pair.comparison)
        if pair.comparison == "ood":
            companion = pair.dataset if condition.paired(self.splits) else ""
            if id_side:
                self.tables.add(self._where(condition, ours, pair.id_name, "id", companion), id_side)
            if other and not pair.companion:
                self.tables.add(comparison, list(other))
        if id_side and other:
            self.tables.compare(comparison, list(zip(id_side, other, strict=True)))

    def _where(
        self,
        condition: Condition,
        estimate: Estimate | None,
        dataset: str,
        role: str,
        companion: str,
        comparison: str = "",
    ) -> Where:
        images = 0 if estimate is None else estimate.images
        estimator = "one_batch" if estimate is not None and estimate.form else self.options.estimator
        return Where(
            condition.name, estimator if condition.estimated else "", images, dataset, role, companion, comparison
        )

    def _note_fraction(self, what: str, condition: Condition, ood: int, total: int) -> None:
        """A fraction that whole images cannot make up is named as asked for; the true one is noted, once."""
        assert condition.ood_fraction is not None
        if abs(ood / total - condition.ood_fraction) > 0.01:
            self._note(f"{what}: the OOD fraction comes to {ood} of {total} images, {ood / total:.3g}")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _pairs(position: int, index: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(index), position), index], axis=1)


def _ood_images(condition: Condition) -> int:
    """OOD images in each mixed batch: at least one, and at least one ID image beside them."""
    assert condition.ood_fraction is not None
    return min(condition.batch_size - 1, max(1, round(condition.ood_fraction * condition.batch_size)))


def _at(outputs: tuple[Outputs, dict[str, Outputs]], rows: np.ndarray) -> tuple[Outputs, dict[str, Outputs]]:
    chosen = torch.from_numpy(rows)
    return outputs[0].at(chosen), {name: each.at(chosen) for name, each in outputs[1].items()}


def _chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
