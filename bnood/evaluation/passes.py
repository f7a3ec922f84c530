"""Forward passes: estimating statistics once each, and the outputs of images under one or several statistics."""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals

from bnood import statistics as bn
from bnood.data.atomic import write_beside
from bnood.data.image_set import Images
from bnood.data.reading import read_batches
from bnood.errors import UserError
from bnood.evaluation.conditions import REFERENCE, Estimate, in_form
from bnood.evaluation.options import EvaluationOptions
from bnood.networks.image_classifier import ImageClassifier
from bnood.networks.network import Network, Outputs
from bnood.statistics.contexts import lent

Augment = Callable[[Tensor, torch.Generator], Tensor]
Context = Callable[[], AbstractContextManager[object]]
Notes = dict[str, None]  # lines for the reader, each once, in their order
# Outputs of one set under several statistics that are held at once, so that photographs are decoded once for all.
BYTES_TOGETHER = 1 << 28


@dataclass
class Passes:
    """Runs a network on images; everything is float32 on the CPU afterwards, and the model as it was."""

    network: Network
    adaptation: Mapping[str, Images]  # what statistics are estimated on, by the name of the split
    options: EvaluationOptions
    augment: Augment | None = None
    notes: Notes = field(default_factory=dict)
    store: Path | None = None  # a folder for what every pass gives, from which this evaluation goes on after a kill
    runs: int = 0  # calls of ``outputs``, which come in the same order in every run of an evaluation
    scored: int = 0  # images that went through the network to be scored or fitted on, in all passes
    estimated_on: int = 0  # images that went through it to estimate statistics, in all passes
    estimates: dict[Estimate, bn.BatchNormStatistics] = field(default_factory=dict)

    def fixed(self, estimate: Estimate) -> Context:
        """The context in which the network normalises with fixed statistics."""
        model = self.network.model
        if not bn.has_batchnorm(model):
            return lambda: lent(list(model.modules()))
        statistics = self.statistics(estimate) if estimate.parts else "running"
        return lambda: bn.use_statistics(model, statistics)  # type: ignore[arg-type]

    def outputs(
        self, sets: Sequence[Images], batches: Sequence[np.ndarray], contexts: Sequence[Context], means: bool = False
    ) -> list[Outputs]:
        """Outputs of batches (int64 ``[n, 2]``: set, index in it) under each context; each batch is read once."""
        self.scored += len(contexts) * sum(map(len, batches))
        self.runs += 1

        def run() -> list[Outputs]:
            # Written into their place at once: small tensors that stay between large ones that go fragment the memory.
            found, start, alone = list[Outputs](), 0, len(contexts) == 1
            ours = isinstance(self.network.model, ImageClassifier)  # others may keep tensors, and be trained with them
            with torch.no_grad(), torch.inference_mode(ours), contexts[0]() if alone else nullcontext():
                for batch in read_batches(sets, batches, self.network.transform, self.options.workers):
                    for position, context in enumerate(contexts):
                        with nullcontext() if alone else context():
                            outputs = self.network.outputs(batch, channel_means=means)
                        if start == 0:
                            found.append(outputs.room(sum(map(len, batches))))
                        found[position].put(start, outputs)
                    start += len(outputs)
            return found

        return self._kept(f"outputs {self.runs}", run)

    def _kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """What ``compute`` gives, or gave before this evaluation was stopped."""
        if self.store is None:
            return compute()
        file = self.store / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.pt"
        with suppress(Exception), safe_globals([Outputs, bn.BatchNormStatistics, bn.LayerStatistics]):
            return torch.load(file)  # fails if it is not there, or damaged
        found = compute()
        write_beside(file, partial(torch.save, found))
        return found

    def whole(self, images: Images) -> list[np.ndarray]:
        """All images in order, as batches for statistics that do not depend on them."""
        size, (pairs,) = self.options.forward_batch, in_batches([np.arange(len(images))], 1)
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]

    def together(self, images: Images, channel_means: bool) -> int:
        """Under how many statistics at once a set's outputs may be held; 1 where decoding costs nothing."""
        if self.network.transform is None and hasattr(images, "images"):
            return 1
        width = self.network.num_classes + self.network.feature_width + 20_000 * channel_means
        return max(1, BYTES_TOGETHER // (4 * width * len(images)))

    def statistics(self, estimate: Estimate) -> bn.BatchNormStatistics:
        """The statistics behind an estimate with parts; estimated once."""
        if estimate not in self.estimates:
            made = partial(self._in_form if estimate.form else self._estimated, estimate)
            found = self._kept(str(estimate), made) if estimate.share == 1 else self._on_path(estimate)
            self.estimates[estimate] = found
            if not found.converged:
                self.notes[f"statistics {estimate}: they still moved after {found.passes} passes; used anyway"] = None
            self.estimated_on += estimate.images * found.passes
        return self.estimates[estimate]

    def _on_path(self, estimate: Estimate) -> bn.BatchNormStatistics:
        target, running = self.statistics(Estimate(estimate.parts)), bn.read_statistics(self.network.model)
        return bn.BatchNormStatistics({name: running[name] for name in target}).interpolate(target, estimate.share)

    def _images(self, estimate: Estimate) -> tuple[list[Images], np.ndarray]:
        """The images of an estimate: their sets, and ``[n, 2]`` in the order of the parts."""
        sets, pairs = [self.adaptation[split] for split, _ in estimate.parts], []
        for position, (split, count) in enumerate(estimate.parts):
            # Any part of a set that is sorted by class would be a part of its classes; the reference is shuffled.
            order = np.arange(count) if split == REFERENCE else self._permutation(len(sets[position]))
            pairs.append(np.stack([np.full(count, position), np.sort(order[:count])], axis=1))
        return sets, np.concatenate(pairs)

    def _estimated(self, estimate: Estimate) -> bn.BatchNormStatistics:
        if estimate.augmented and self.augment is None:
            raise UserError("recalibrated:augmented needs the training augmentation, known of networks trained here")
        sets, pairs = self._images(estimate)
        # In random order: one pass normalises by the batch, and a batch of one class, or of ID images alone where
        # a mixture was asked for, would have unlike statistics. Nearly equal batches for the same reason.
        stored = self.network.transform is None and all(hasattr(images, "images") for images in sets)
        most = self.options.estimation_batch or (500 if stored else 128)  # photographs of 224 px then take about 3 GB
        batches = np.array_split(pairs[self._permutation(len(pairs))], -(-len(pairs) // most))

        def read() -> Iterator[Tensor]:
            generator = torch.Generator().manual_seed(self.options.seed)
            for images in read_batches(sets, batches, self.network.transform, self.options.workers):
                yield self.augment(images, generator) if estimate.augmented and self.augment else images

        model, call = self.network.model, self.network.call
        return bn.estimate_statistics(model, read, method=self.options.estimator, call=call)

    def _in_form(self, estimate: Estimate) -> bn.BatchNormStatistics:
        """Target statistics in some layers, measured on one batch as it arrives there under this very condition."""
        sets, pairs = self._images(estimate)
        network, model = self.network, self.network.model
        (batch,) = read_batches(sets, [pairs], network.transform, self.options.workers)
        layers = in_form(estimate.form, bn.executed_layers(model, batch[:2], call=network.call))
        running = bn.read_statistics(model)
        found: dict[str, bn.LayerStatistics] = {}

        def decide(name: str, own: bn.LayerStatistics) -> bn.LayerStatistics:
            mean = running[name].mean.to(own.mean) if estimate.form == "variance" else own.mean
            var = running[name].var.to(own.var) if estimate.form == "mean" else own.var
            found[name] = bn.LayerStatistics(mean, var, own.count)
            return found[name]

        with torch.no_grad(), bn.decide_statistics(model, decide, layers):
            network.call(model, batch)
        return bn.BatchNormStatistics(found, passes=1)

    def _permutation(self, count: int) -> np.ndarray:
        return np.random.RandomState(self.options.seed).permutation(count)


def shuffled(name: str, count: int, shuffle: int, seed: int) -> np.ndarray:
    """A random order of a set's images that depends on the seed, the set's name and the shuffle alone."""
    return np.random.RandomState([seed, zlib.crc32(name.encode()), shuffle]).permutation(count)


def in_batches(orders: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """``count`` batches ``[n, 2]`` (position of the set, index in it), an equal share of each set's order in each."""
    parts = [np.stack([np.full(len(order), k), order], axis=1) for k, order in enumerate(orders)]
    return list(np.concatenate([part.reshape(count, -1, 2) for part in parts], axis=1))
