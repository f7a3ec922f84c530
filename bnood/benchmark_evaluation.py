"""An evaluation to be timed, and the bare forward passes that it is compared with; memory too."""

import contextlib
import copy
import resource
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bnood.benchmark_training import random_images
from bnood.data.splits import halves
from bnood.evaluation.conditions import ConditionOptions, Images
from bnood.training.classifier import Classifier
from bnood.training.run_folder import Run


def evaluation_images(id_images: int, ood_sizes: Iterable[int], calibration_images: int) -> Images:
    """Random images for an evaluation, the OOD sets halved as in a real one."""
    ood = {}
    for number, size in enumerate(ood_sizes):
        images = random_images(f"ood{number}", size, seed=2 + number)
        calibration, scored = (images.subset(part) for part in halves(size, 0, images.name))
        ood[images.name] = (calibration, scored)
    return Images(
        random_images("id", id_images, seed=0),
        random_images("training", calibration_images, seed=1),
        ood,
        tuning=random_images("tuning", 1000, seed=len(ood) + 2),
    )


def untrained_run(width: int, images: Images) -> Run:
    """A run with a network that was only shown some images, so that its running statistics fit its weights."""
    torch.manual_seed(0)
    classifier = Classifier(width=width)
    classifier.network.to(memory_format=classifier.torch_memory_format())
    with torch.inference_mode():
        for batch in torch.from_numpy(images.id_calibration.images[:1000]).split(50):
            classifier(batch)
    return Run(Path("benchmark"), {"seed_everything": 0}, {}, classifier.eval())


class Forward(NamedTuple):
    """Forward passes of the plan.

    Attributes:
        images: how many.
        size: images in a batch.
        by_batch: whether BatchNorm normalises by the batch, as in training mode, instead of by given statistics.
    """

    images: int
    size: int
    by_batch: bool = False


def forward_plan(images: Images, options: ConditionOptions, passes: Mapping[str, int]) -> list[Forward]:
    """The forward passes that all conditions of a network with BatchNorm need.

    Written down from the conditions' definitions (:mod:`bnood.evaluation.conditions`), not taken from their code.

    Args:
        images: of the evaluation.
        options: with all three families of statistics.
        passes: how often each estimate went through its images, by the estimate's name.
    """
    n_id, each = len(images.id_set), options.forward_batch
    tuning = [] if images.tuning is None else [Forward(len(images.tuning), each)]
    scored = [len(half) for _, half in images.ood.values()]
    everything = [Forward(count, each) for count in (n_id, *scored)]
    plan = [*tuning, *everything, *everything]  # mitigations, running, recalibrated:id
    for size in options.batch_sizes:
        plan += [Forward(count // size * size, size, True) for count in (n_id, *scored)] * options.shuffles
        for share in options.shares:
            ood_part = min(size - 1, max(1, round(share * size)))
            batches = [min(n_id // (size - ood_part), count // ood_part) for count in scored]
            plan += [Forward(number * size, size, True) for number in batches] * options.shuffles
    plan += [Forward(count, each) for count in scored]  # recalibrated:target; its ID side is recalibrated:id's
    plan += [Forward(part, each) for count in scored for part in (n_id, count)]  # recalibrated:mixture
    n_matched, share = min(len(images.id_calibration), options.calibration_images), options.mixture_share
    estimated = {"id": n_matched}
    for name, (calibration, _) in images.ood.items():
        n_ood = min(len(calibration), max(1, round(n_matched * share / (1 - share))))
        n_mixed = n_ood + min(n_matched, max(1, round(n_ood * (1 - share) / share)))
        estimated |= {f"target:{name}": len(calibration), f"mixture:{name}": n_mixed}
    for name, count in estimated.items():
        # Nearly equal batches, as for any estimate that normalises by the batch.
        size = -(-count // -(-count // options.estimation_batch))
        plan += [Forward(count, size, True)] * passes[name]
    return plan


def bare_passes(classifier: Classifier, plan: Sequence[Forward]) -> float:
    """Seconds of the plan's forward passes alone, on images that are normalised and in the right memory format."""
    network = copy.deepcopy(classifier.network)  # training mode moves the running statistics
    ready = torch.randn(max(each.size for each in plan), 3, 32, 32)
    ready = ready.contiguous(memory_format=classifier.torch_memory_format())
    started = time.perf_counter()
    with torch.inference_mode():
        for number, size, by_batch in plan:
            network.train(by_batch)
            for begin in range(0, number, size):
                network(ready[: min(size, number - begin)], return_features=True)
    return time.perf_counter() - started


def peak_memory() -> int:
    """The largest resident memory that this process has had so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage's figure is inherited from the process that started this one, where that one was larger.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """An untrained network's sequential statistics may settle slowly, which says nothing here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the sequential statistics still moved")
        yield
