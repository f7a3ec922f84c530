"""The command line of ``scripts/study.py``: train, evaluate and judge the networks of a study."""

import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, ArgumentParser

from bnood.errors import UserError
from bnood.study.options import StudyOptions, check_same_study, write_study_file
from bnood.training.command_line import one_line_parsing

if TYPE_CHECKING:
    from bnood.study.networks import RunSpec


def parse(given: list[str]) -> tuple[StudyOptions, bool]:
    """The study that a command line describes, and ``judge_only``."""
    parser = ArgumentParser(
        prog="scripts/study.py",
        description="Train, evaluate and judge networks; rerun to resume. See configs/studies/.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    parser.add_class_arguments(StudyOptions)
    parser.add_argument("--judge_only", type=bool, default=False, help="Only judge what is there.")
    parser.add_argument("--no-wandb", action="store_true", help="Turn Weights & Biases off.")
    try:
        with one_line_parsing(parser, given), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jsonargparse's, about names of its own functions
            config = parser.parse_args(given)
            made = parser.instantiate_classes(config)
    except UserError as error:
        if "arguments are required" not in str(error):
            raise
        example = "--config configs/studies/demo.yaml"
        raise UserError(f"a study needs a config: give --config, for example {example} ({error})") from error
    options = StudyOptions(**{key: made[key] for key in StudyOptions.__dataclass_fields__})
    options.wandb.enabled = options.wandb.enabled and not config.no_wandb
    return options, config.judge_only


def main(arguments: list[str] | None = None) -> Path:
    """Run a study as ``scripts/study.py`` does, by default from the process's own command line; returns its folder.

    Trains and evaluates what is not yet done, unless ``judge_only``, then judges. Raises ``UserError`` for bad input,
    and if a network failed, in which case no verdict is written.
    """
    given = sys.argv[1:] if arguments is None else arguments
    options, judge_only = parse(given)
    from bnood.study.networks import check_training, is_done, load, run_specs
    from bnood.study.results import conclude
    from bnood.training.atomic import locked

    command = shlex.join(["python", "scripts/study.py", *given])
    specs = run_specs(options)
    check_same_study(options)
    trained = [spec for spec in specs if spec.entry.training is not None and not spec.partner]
    trainings = [check_training(options, spec) for spec in trained]
    if judge_only and not options.folder.is_dir():
        raise UserError(f"{options.folder}: there is no such study to be judged; run it without --judge_only true")
    if not judge_only:
        if not all(is_done(options, spec) for spec in specs):
            _check_sets(options, specs, trainings)
            for spec in specs:
                if spec.entry.model is not None:
                    load(options, spec)
        write_study_file(options)
    with locked(options.folder, "another process is working on this study"):
        if not judge_only:
            _work(options, specs, command)
        done = [spec for spec in specs if is_done(options, spec)]
        missing = [f"{spec.name} is not evaluated" for spec in specs if spec not in done]
        for line in missing:
            print(f"note: {line}")
        conclude(options, done, command, missing)
    return options.folder


def _work(options: StudyOptions, specs: Sequence["RunSpec"], command: str) -> None:
    """Train and evaluate; stopped networks need two others, everything else can be done side by side."""
    from bnood.study.execution import Job, run_jobs
    from bnood.study.networks import is_done, make_and_evaluate

    logs = options.folder / "logs"
    for stage in ([spec for spec in specs if not spec.partner], [spec for spec in specs if spec.partner]):
        left = [spec for spec in stage if not is_done(options, spec)]
        jobs = [Job(spec.name, make_and_evaluate, (options, spec, command), logs / f"{spec.name}.log") for spec in left]
        if not jobs:
            continue
        print(f"{options.name}: {', '.join(job.name for job in jobs)} (logs in {logs})", flush=True)
        outcomes = run_jobs(jobs, options.executor, lambda line: print(line, flush=True))
        if failed := [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]:
            text = f"{len(failed)} failed: {'; '.join(failed)}"
            raise UserError(f"{text}; no verdict is written (--judge_only true judges what is there)")


def _check_sets(options: StudyOptions, specs: Sequence["RunSpec"], trainings: list[dict[str, Any]]) -> None:
    """Open every image set once before anything is trained or written: hours may pass before it is needed."""
    from bnood.data.sources import images, read_classes
    from bnood.evaluation.run import check_id_split, load_run_images
    from bnood.training.command_line import read_yaml

    sets = options.sets
    configs = [*trainings, *(read_yaml(spec.entry.run / "config.yaml") for spec in specs if spec.entry.run)]
    opened: list[list[str]] = []
    for config in {str(config["data"]): config for config in configs}.values():
        check_id_split(config["data"], sets.of_runs(), f"every network of {options.name}")
        run: Any = SimpleNamespace(config=config, name=options.name)
        try:
            opened.append(list(load_run_images(run, sets.of_runs(), options.evaluation).ood_sets))
        except UserError as error:
            raise UserError(str(error).replace("--data.", "--sets.")) from error
    if any(spec.entry.model is not None for spec in specs):
        sources = [source for source in (sets.id, sets.train) if source is not None]
        found = [images(each, root=sets.root, download=bool(sets.download)) for each in (*sources, *(sets.ood or ()))]
        opened.append([one.name for one in found[len(sources) :]])
        if sets.classes is not None:
            read_classes(sets.classes)
    for names in opened:
        if not names:
            raise UserError("sets.ood is empty: a study needs at least one OOD set, for example [svhn, dtd]")
        if missing := [name for name in options.claim.primary_sets if name not in names]:
            raise UserError(f"claim.primary_sets: {', '.join(missing)} is not among the OOD sets ({', '.join(names)})")
