"""How fast training and evaluation are on the CPU, as ratios to what they could be at best, and how much memory.

A machine's speed drifts while it is measured (other programs, heat). So the variants that are compared run in turn, in
short segments, several rounds of them, every other round in the opposite order; and what is reported is the median over
the rounds of the ratio *within* a round, with the lowest and highest. Images are random: no figure depends on them.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from bnood.benchmark_evaluation import bare_passes, evaluation_images, forward_plan, peak_memory, quiet, untrained_run
from bnood.benchmark_training import TrainingSegments
from bnood.errors import UserError
from bnood.evaluation.conditions import ConditionOptions, Conditions
from bnood.evaluation.evaluate import evaluate, write_evaluation
from bnood.evaluation.interventions.sweep import InterventionOptions, intervene
from bnood.training.classifier import Classifier
from bnood.training.provenance import commit, machine, versions
from bnood.training.run_folder import write_beside

PARTS = ("training", "norms", "evaluation", "sweeps", "memory")
GIB = 2**30


@dataclass
class BenchmarkOptions:
    """What is measured, and for how long.

    Args:
        parts: any of training, norms, evaluation, sweeps, memory, by comma.
        steps: training steps of a segment that count.
        warmup: training steps before them that do not.
        rounds: how often each variant is measured.
        threads: of torch; none: as many as it chooses.
        width: channels of the ResNet-18's first stage.
        batch_size: training images per step.
        id_images: in-distribution images that the evaluation scores.
        ood_images: sizes of its OOD sets before they are halved, by comma.
        sweep_images: images of a set that the interventions score, at most.
        memory_id_images: as ``id_images``, where memory is measured; by default CIFAR-10's test images,
        memory_ood_images: and SVHN's.
        calibration_images: in-distribution training images at hand; the conditions use 5,000 of them at most.
    """

    parts: str = ",".join(PARTS)
    steps: int = 40
    warmup: int = 10
    rounds: int = 5
    threads: int | None = None
    width: int = 16
    batch_size: int = 128
    id_images: int = 5000
    ood_images: str = "3500,600,450"
    sweep_images: int = 1000
    memory_id_images: int = 10000
    memory_ood_images: int = 26032
    calibration_images: int = 45000

    def __post_init__(self) -> None:
        unknown = set(self.listed_parts()) - set(PARTS)
        if unknown or not self.listed_parts():
            raise UserError(f"--parts {self.parts}: choose from {', '.join(PARTS)}")
        for name in ("steps", "warmup", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it has to be at least 1")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads is {self.threads}; it has to be at least 1")
        try:
            self.ood_sizes()
        except ValueError as error:
            raise UserError(f"--ood_images {self.ood_images}: give whole numbers, separated by commas") from error

    def listed_parts(self) -> list[str]:
        """The parts by name."""
        return [part.strip() for part in self.parts.split(",") if part.strip()]

    def ood_sizes(self) -> list[int]:
        """The sizes of the OOD sets."""
        return [int(size) for size in self.ood_images.split(",")]


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
        if self.at_least is None and self.at_most is None:
            return None
        return self.value >= (self.at_least or 0.0) and self.value <= (self.at_most or float("inf"))


def result(part: str, name: str, unit: str, rounds: list[float], **limit: float) -> Result:
    """The :class:`Result` of one figure that was measured in several rounds."""
    return Result(part, name, unit, float(np.median(rounds)), min(rounds), max(rounds), **limit)


def ratios(above: list[float], below: list[float]) -> list[float]:
    """The ratio of two variants in each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def in_turn(variants: Mapping[str, Callable[[], float]], rounds: int, console: Console) -> dict[str, list[float]]:
    """Measure all variants once in each round, in the opposite order in every other round."""
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            measured[name].append(variants[name]())
            console.print(f"round {number + 1}/{rounds}, {name}: {measured[name][-1]:.4g}", highlight=False)
    return measured


def measure_training(options: BenchmarkOptions, console: Console) -> list[Result]:
    """Images per second of a bare loop, of bnood and of a conventional pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        segments = _segments(options, folder)
        rates = in_turn(
            {
                "bare loop": segments.bare,
                "bnood": segments.bnood,
                "conventional, 0 workers": lambda: segments.conventional(0),
                "conventional, 2 workers": lambda: segments.conventional(2),
            },
            options.rounds,
            console,
        )
    fastest = max((name for name in rates if name.startswith("conventional")), key=lambda name: np.median(rates[name]))
    return [
        *(result("training", name, "images/s", values) for name, values in rates.items()),
        result("training", "bnood / bare loop", "", ratios(rates["bnood"], rates["bare loop"]), at_least=0.9),
        result("training", f"bnood / {fastest}", "", ratios(rates["bnood"], rates[fastest]), at_least=1.8),
    ]


def measure_norms(options: BenchmarkOptions, console: Console) -> list[Result]:
    """Images per second of each norm in both memory formats: LN and GN relative to BN, ``auto`` to the other format."""
    formats = ("channels_last", "contiguous")
    with tempfile.TemporaryDirectory() as folder:
        segments = _segments(options, folder)
        variants = {
            f"{norm} {layout}": lambda norm=norm, layout=layout: segments.bnood(norm, layout)
            for norm in ("bn", "ln", "gn")
            for layout in formats
        }
        rates = in_turn(variants, options.rounds, console)
    results = [result("norms", name, "images/s", values) for name, values in rates.items()]
    chosen = {norm: _automatic_format(norm) for norm in ("bn", "ln", "gn")}
    for norm in ("ln", "gn"):
        ratio = ratios(rates[f"{norm} {chosen[norm]}"], rates[f"bn {chosen['bn']}"])
        results.append(result("norms", f"{norm} {chosen[norm]} / bn {chosen['bn']}", "", ratio, at_least=0.7))
    for norm, auto in chosen.items():
        other = next(layout for layout in formats if layout != auto)
        ratio = ratios(rates[f"{norm} {auto}"], rates[f"{norm} {other}"])
        results.append(result("norms", f"{norm}: auto ({auto}) / {other}", "", ratio, at_least=1.0))
    return results


def _automatic_format(norm: Any) -> str:
    chosen = Classifier(width=8, norm=norm).torch_memory_format()
    return "channels_last" if chosen == torch.channels_last else "contiguous"


def _segments(options: BenchmarkOptions, folder: str) -> TrainingSegments:
    return TrainingSegments(Path(folder), options.warmup, options.steps, options.batch_size, options.width)


def measure_evaluation(options: BenchmarkOptions, console: Console) -> list[Result]:
    """Seconds of a whole evaluation and of its forward part, relative to the bare forward passes that they need."""
    images = evaluation_images(options.id_images, options.ood_sizes(), options.calibration_images)
    conditions = ConditionOptions()
    run = untrained_run(options.width, images)
    with quiet():
        record = evaluate(run, images, conditions, resamples=2).record  # says how many passes the estimates take
    assert isinstance(record["estimator_passes"], dict)
    plan = forward_plan(images, conditions, record["estimator_passes"])

    def cells() -> float:
        started = time.perf_counter()
        for _ in Conditions(run.classifier, images, conditions).cells():
            pass
        return time.perf_counter() - started

    def whole() -> float:
        started = time.perf_counter()
        evaluate(run, images, conditions)
        return time.perf_counter() - started

    with quiet():
        seconds = in_turn(
            {"bare forward passes": lambda: bare_passes(run.classifier, plan), "forward part": cells, "whole": whole},
            options.rounds,
            console,
        )
    bare = seconds["bare forward passes"]
    needed = float(sum(each.images for each in plan))
    done = [float(str(record["images_scored"])), float(str(record["images_estimated_on"]))]
    return [
        result("evaluation", "passes needed", "images", [needed]),
        result("evaluation", "passes done, to score", "images", done[:1]),
        result("evaluation", "passes done, to estimate statistics", "images", done[1:]),
        *(result("evaluation", name, "s", values) for name, values in seconds.items()),
        result("evaluation", "forward part / bare forward passes", "", ratios(seconds["forward part"], bare)),
        result("evaluation", "whole / bare forward passes", "", ratios(seconds["whole"], bare), at_most=1.2),
    ]


def measure_sweeps(options: BenchmarkOptions, console: Console) -> list[Result]:
    """Forward passes that all interventions need (interventions x images) and those done, and their seconds."""
    images = evaluation_images(options.id_images, options.ood_sizes(), options.calibration_images)
    count = options.sweep_images
    asked = InterventionOptions(id_images=count, ood_images=count, calibration_images=count)
    run = untrained_run(options.width, images)
    record = intervene(run.classifier, images, asked).record
    needed, done = (float(record[f"passes_{which}"]) for which in ("needed", "done"))
    shown = {"forward": record["seconds_forward"], "metrics and intervals": record["seconds_metrics"]}
    for name, seconds in shown.items():
        console.print(f"sweeps, {name}: {seconds:.4g} s", highlight=False)
    return [
        result("sweeps", "passes needed", "images", [needed]),
        result("sweeps", "passes done, layers below an intervention once", "images", [done]),
        result("sweeps", "done / needed", "", [done / needed], at_most=1.0),
        *(result("sweeps", name, "s", [seconds]) for name, seconds in shown.items()),
    ]


def measure_memory(options: BenchmarkOptions, console: Console) -> list[Result]:
    """Peak memory of a process that evaluates and writes its tables, all images at hand, libraries included."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        peak = fresh.submit(peak_of_evaluation, options, torch.get_num_threads()).result()
    return [result("memory", "peak of an evaluation", "GiB", [peak / GIB], at_most=3e9 / GIB)]


def peak_of_evaluation(options: BenchmarkOptions, threads: int) -> int:
    """Evaluate in this process and return its peak resident memory in bytes."""
    torch.set_num_threads(threads)
    images = evaluation_images(options.memory_id_images, [options.memory_ood_images], options.calibration_images)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        evaluation = evaluate(untrained_run(options.width, images), images, ConditionOptions())
        write_evaluation(evaluation, Path(folder))
    return peak_memory()


def results_table(results: Iterable[Result], title: str) -> Table:
    """One row per figure."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("part", "figure"):
        table.add_column(name, no_wrap=True)
    for name in ("median", "lowest", "highest", "required", "kept"):
        table.add_column(name, justify="right")
    part = None
    for each in results:
        if part not in (None, each.part):
            table.add_section()
        part = each.part
        limit = "" if each.at_least is None else f">= {each.at_least:.3g}"
        limit += "" if each.at_most is None else f"<= {each.at_most:.3g}"
        kept = {None: "", True: "yes", False: "NO"}[each.kept]
        value = f"{_shown(each.value)} {each.unit}".rstrip()
        table.add_row(part, each.name, value, _shown(each.low), _shown(each.high), limit, kept)
    return table


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main(arguments: list[str] | None = None) -> list[Result]:
    """Measure as ``scripts/benchmark.py`` does: print one table and, with ``--output``, write a JSON file.

    Args:
        arguments: the command line after the program's name; None for the process's own.

    Raises:
        UserError: for bad input.
    """
    parser = ArgumentParser(prog="scripts/benchmark.py", description="Measure speed and memory on the CPU.")
    parser.add_class_arguments(BenchmarkOptions)
    parser.add_argument("--output", type=Path | None, default=None, help="Write the figures into this JSON file too.")
    given = parser.parse_args(arguments)
    output = given.pop("output")
    options = BenchmarkOptions(**given.as_dict())
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 150)
    measures = {
        "training": measure_training,
        "norms": measure_norms,
        "evaluation": measure_evaluation,
        "sweeps": measure_sweeps,
        "memory": measure_memory,
    }
    results = [each for part in options.listed_parts() for each in measures[part](options, console)]
    stated = {"machine": machine(), "threads": torch.get_num_threads(), "commit": commit(), "versions": versions()}
    console.print(results_table(results, f"{stated['machine']}; torch {torch.__version__}; commit {stated['commit']}"))
    if output is not None:
        text = json.dumps(
            stated | {"options": asdict(options), "results": [asdict(each) | {"kept": each.kept} for each in results]},
            indent=2,
        )
        write_beside(output, lambda path: path.write_text(text + "\n"))
    return results
