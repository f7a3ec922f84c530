"""Measure speed: python scripts/benchmark.py [--device cuda] [--parts training] [--output a.json]

A machine's speed drifts while it is measured (other programs, heat). So the variants that are compared run in turn, in
short segments, several rounds of them, every other round in the opposite order. What is reported is the median over the
rounds of the ratio within a round, with the lowest and highest. Images are random: no figure depends on them.
"""

import contextlib
import copy
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bnood.errors import UserError, run_door

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from torch import nn

    from bnood.data.image_set import ImageSet
    from bnood.networks.image_classifier import ImageClassifier

# Three that need no fitting, then nine of all kinds.
DETECTORS = (
    *("msp", "energy", "max_logit", "react", "temperature", "entropy", "gen"),
    *("knn", "mahalanobis", "vim", "dice", "bats"),
)
PARTS = {"cpu": ("training", "evaluation"), "cuda": ("training", "side_by_side")}


@dataclass
class BenchmarkOptions:
    """What is measured, and for how long.

    Args:
        device: cpu or cuda.
        parts: by comma; training, and evaluation (on cpu) or side_by_side (on cuda).
        steps: training steps of a segment that count.
        warmup: training steps before them that do not; compiling takes place in them.
        rounds: how often each variant is measured.
        threads: of torch.
        width: channels of the ResNet-18's first stage.
        batch_size: training images per step.
        side_by_side: trainings that share the GPU, at most.
        images: of the ID set, the OOD set and the training set of an evaluation, each.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    parts: str = ""
    steps: int = 40
    warmup: int = 10
    rounds: int = 5
    threads: int | None = None
    width: int = 16
    batch_size: int = 128
    side_by_side: int = 4
    images: int = 5000

    def __post_init__(self) -> None:
        known = PARTS[self.device]
        self.parts = self.parts or ",".join(known)
        if not set(self.listed_parts()) <= set(known):
            raise UserError(f"--parts {self.parts}: choose from {', '.join(known)} with --device {self.device}")
        for name in ("steps", "warmup", "rounds", "threads", "side_by_side", "images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it has to be at least 1")

    def listed_parts(self) -> list[str]:
        """The parts by name."""
        return [part.strip() for part in self.parts.split(",")]


@dataclass(frozen=True)
class Result:
    """One measured figure: its median, lowest and highest over the rounds, and the limit that it should keep."""

    part: str
    name: str
    unit: str
    value: float
    low: float
    high: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def kept(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        if self.at_least is None:
            return None if self.at_most is None else self.value <= self.at_most
        return self.value >= self.at_least


def result(part: str, name: str, unit: str, rounds: list[float], **limit: float) -> Result:
    """The :class:`Result` of one figure that was measured in several rounds."""
    return Result(part, name, unit, statistics.median(rounds), min(rounds), max(rounds), **limit)


def ratios(above: list[float], below: list[float]) -> list[float]:
    """The ratio of two variants in each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def in_turn(variants: Mapping[str, Callable[[], float]], rounds: int, console: "Console") -> dict[str, list[float]]:
    """Measure all variants once in each round, in the opposite order in every other round."""
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            measured[name].append(variants[name]())
            console.print(f"round {number + 1}/{rounds}, {name}: {measured[name][-1]:.4g}", highlight=False)
    return measured


def random_images(name: str, count: int, seed: int) -> "ImageSet":
    """Random pixels of CIFAR's size, labelled in turn."""
    import numpy as np

    from bnood.data.image_set import ImageSet

    images = np.random.RandomState(seed).randint(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageSet(name, images, np.arange(count, dtype=np.int64) % 10)


class Segments:
    """``warmup + steps`` steps of a fresh network, in several ways; images per second after the warm-up."""

    def __init__(self, options: BenchmarkOptions, folder: Path) -> None:
        import numpy as np

        self.options, self.folder, self.count = options, folder, 0
        self.images = random_images("images", (options.warmup + options.steps) * options.batch_size + 10, seed=0)
        assert self.images.labels is not None
        np.savez(folder / "images.npz", images=self.images.images, labels=self.images.labels)

    def bare(self, compiled: bool = False) -> float:
        """A PyTorch loop over batches that are ready on the device: no augmentation, no metrics, no logging."""
        import torch

        from bnood.networks.image_classifier import build_model

        options, device = self.options, self.options.device
        network = build_model("resnet", 18, options.width, "bn").to(device).to(memory_format=torch.channels_last)
        if compiled:
            network.compile(mode="reduce-overhead")
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        count = (options.warmup + options.steps) * options.batch_size
        pixels = torch.from_numpy(self.images.images[:count]).split(options.batch_size)
        ready = [((x.to(device).float() - 127.5) / 63.75).permute(0, 3, 1, 2) for x in pixels]
        labels = torch.from_numpy(self.images.labels)[:count].to(device).split(options.batch_size)
        started = 0.0
        for step, (x, y) in enumerate(zip(ready, labels, strict=True)):
            if step == options.warmup:
                _wait(device)
                started = time.perf_counter()
            if compiled:
                torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
        _wait(device)
        return self._rate(time.perf_counter() - started)

    def train(self, *more: str, meet: Callable[[], object] = lambda: None) -> float:
        """Training as ``scripts/train.py`` does it: augmentation, metrics, log, progress bar, checkpoint."""
        from lightning.pytorch.callbacks import LambdaCallback

        from bnood.training.train import command_line

        self.count += 1
        options, times = self.options, list[float]()

        def batch_ended(trainer: Any, model: Any, outputs: Any, batch: Any, number: int) -> None:
            if number + 1 == options.warmup or trainer.is_last_batch:
                _wait(options.device)
                if not times:
                    meet()
                times.append(time.perf_counter())

        with _drawn_to_nowhere():
            cli = command_line(
                [
                    *("--data.in_distribution", str(self.folder / "images.npz"), "--data.validation", "10"),
                    *("--data.batch_size", str(options.batch_size), "--model.width", str(options.width)),
                    *("--trainer.max_epochs", "1", "--trainer.precision", "bf16-mixed", "--no-wandb"),
                    *("--trainer.accelerator", "gpu" if options.device == "cuda" else "cpu"),
                    *("--runs", str(self.folder), "--name", f"segment-{os.getpid()}-{self.count}", *more),
                ],
                more_callbacks=[LambdaCallback(on_train_batch_end=batch_ended)],
            )
            cli.trainer.fit(cli.model, cli.datamodule)
        return self._rate(times[1] - times[0])

    def _rate(self, seconds: float) -> float:
        return self.options.steps * self.options.batch_size / seconds


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def measure_training(options: BenchmarkOptions, console: "Console") -> list[Result]:
    """Images per second of train.py and of a bare loop; on a GPU also of both compiled, with CUDA graphs."""
    cuda = options.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        segments = Segments(options, Path(folder))
        variants: dict[str, Callable[[], float]] = {"bare loop": segments.bare, "train.py": segments.train}
        if cuda:
            variants |= {
                "bare loop, compiled": lambda: segments.bare(compiled=True),
                "train.py, compiled": lambda: segments.train("--model.compile", "reduce-overhead"),
            }
        rates = in_turn(variants, options.rounds, console)
    bare = rates["bare loop"]
    results = [result("training", name, "images/s", values) for name, values in rates.items()]
    results.append(result("training", "train.py / bare loop", "", ratios(rates["train.py"], bare), at_least=0.95))
    if cuda:
        compiled = ratios(rates["train.py, compiled"], bare)
        results.append(result("training", "train.py, compiled / bare loop", "", compiled, at_least=2.0))
    return results


def measure_side_by_side(options: BenchmarkOptions, console: "Console") -> list[Result]:
    """Images per second of 1, 2, ... trainings on one GPU together; each counts its steps from the same moment."""
    context, results = multiprocessing.get_context("spawn"), []
    for number in range(1, options.side_by_side + 1):
        barrier, rates = context.Barrier(number), context.Queue()
        started = [context.Process(target=_one_of_several, args=(options, barrier, rates)) for _ in range(number)]
        for process in started:
            process.start()
        total = sum(rates.get(timeout=300) for _ in started)
        for process in started:
            process.join()
        console.print(f"{number} side by side: {total:.4g}", highlight=False)
        results.append(result("side_by_side", f"{number} x train.py, together", "images/s", [total]))
    return results


def _one_of_several(options: BenchmarkOptions, barrier: Any, rates: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rates.put(Segments(options, Path(folder)).train(meet=lambda: barrier.wait(timeout=200)))


def evaluated(options: BenchmarkOptions, detectors: tuple[str, ...]) -> tuple["ImageClassifier", Callable[[], Any]]:
    """An untrained network whose running statistics fit its weights, and its evaluation with the default statistics."""
    import torch

    from bnood.evaluation.evaluate import evaluate
    from bnood.networks.image_classifier import ImageClassifier, build_model
    from bnood.networks.network import Network

    torch.manual_seed(0)
    classifier = ImageClassifier(build_model("resnet", 18, options.width, "bn"))
    classifier.network.to(memory_format=classifier.torch_memory_format())
    train_set = random_images("train", options.images, seed=1)
    with torch.inference_mode():
        for batch in torch.from_numpy(train_set.images[:1000]).split(50):
            classifier(batch)
    network = Network(classifier.eval())
    id_set, held_out, ood = (random_images(f"set{seed}", options.images, seed) for seed in (0, 2, 3))
    given: dict[str, Any] = {"train_set": train_set, "held_out": held_out, "ood_sets": {"ood": ood}}
    return classifier, lambda: evaluate(network, id_set, **given, detectors=detectors)


def forward_passes(network: "nn.Module", run: Callable[[], object]) -> list[tuple[int, bool]]:
    """What ``run`` passes through a network: images of each batch, and whether plain PyTorch would be in train mode."""
    from torch.nn.modules.batchnorm import _BatchNorm

    seen: list[tuple[int, bool]] = []
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]

    # Where the batch normalises itself, and where statistics are estimated, a hook stands before each layer.
    def record(module: "nn.Module", inputs: tuple[Any, ...]) -> None:
        seen.append((len(inputs[0]), any(norm.training or norm._forward_pre_hooks for norm in norms)))

    hook = network.register_forward_pre_hook(record)
    try:
        run()
    finally:
        hook.remove()
    return seen


def bare_passes(network: "nn.Module", passes: list[tuple[int, bool]]) -> float:
    """Seconds of those passes alone, on images that are normalised and in the right memory format."""
    import torch

    model = copy.deepcopy(network)  # training mode moves the running statistics
    ready = torch.randn(max(count for count, _ in passes), 3, 32, 32).contiguous(memory_format=torch.channels_last)
    started = time.perf_counter()
    with torch.inference_mode():
        for count, by_batch in passes:
            model.train(by_batch)
            model(ready[:count])
    return time.perf_counter() - started


def measure_evaluation(options: BenchmarkOptions, console: "Console") -> list[Result]:
    """Seconds of a whole evaluation, relative to those of its forward passes alone: three scores, twelve detectors."""
    results = []
    for name, detectors, limit in (("three scores", DETECTORS[:3], 1.1), ("twelve detectors", DETECTORS, 1.5)):
        classifier, run = evaluated(options, detectors)

        def whole(run: Callable[[], Any] = run) -> float:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started

        passes = forward_passes(classifier.network, run)
        bare = partial(bare_passes, classifier.network, passes)
        seconds = in_turn({f"passes, {name}": bare, name: whole}, options.rounds, console)
        above, below = seconds[name], seconds[f"passes, {name}"]
        results += [
            result("evaluation", f"{name}: images passed", "images", [float(sum(count for count, _ in passes))]),
            result("evaluation", name, "s", above),
            result("evaluation", f"{name} / forward passes", "", ratios(above, below), at_most=limit),
        ]
    return results


def results_table(results: Iterable[Result], title: str) -> "Table":
    """One row per figure."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for name in ("part", "figure", "median", "lowest", "highest", "required", "kept"):
        table.add_column(name, no_wrap=True)
    for each in results:
        limit = "" if each.at_least is None else f">= {each.at_least:.3g}"
        limit = limit if each.at_most is None else f"<= {each.at_most:.3g}"
        kept = {None: "", True: "yes", False: "NO"}[each.kept]
        value = f"{_shown(each.value)} {each.unit}".rstrip()
        table.add_row(each.part, each.name, value, _shown(each.low), _shown(each.high), limit, kept)
    return table


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


@contextlib.contextmanager
def _drawn_to_nowhere() -> Iterator[None]:
    """Let progress bars draw, which is part of what they cost, but out of sight; no advice either."""
    os.environ.update(FORCE_COLOR="1", TERM="xterm")
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


def main(arguments: list[str] | None = None) -> list[Result]:
    """Measure, print one table and, with ``--output``, write a JSON file."""
    import torch
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from bnood.data.atomic import write_beside
    from bnood.training.command_line import one_line_parsing
    from bnood.training.provenance import made_with

    parser = ArgumentParser(prog="scripts/benchmark.py", description="Measure speed.", exit_on_error=False)
    parser.add_class_arguments(BenchmarkOptions)
    parser.add_argument("--output", type=Path | None, default=None, help="Write the figures into this JSON file too.")
    with one_line_parsing(parser, arguments):
        given = parser.parse_args(arguments)
    output = given.pop("output")
    options = BenchmarkOptions(**given.as_dict())
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch finds no CUDA device here")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 120)
    measures = {"training": measure_training, "side_by_side": measure_side_by_side, "evaluation": measure_evaluation}
    results = [each for part in options.listed_parts() for each in measures[part](options, console)]
    stated = {"threads": torch.get_num_threads(), **made_with()}
    console.print(results_table(results, f"{stated['machine']}; torch {torch.__version__}; commit {stated['commit']}"))
    if output is not None:
        figures = {"options": asdict(options), "results": [asdict(each) | {"kept": each.kept} for each in results]}
        write_beside(output, lambda path: path.write_text(json.dumps(stated | figures, indent=2) + "\n"))
    return results


if __name__ == "__main__":
    run_door(main)
