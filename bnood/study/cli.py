"""The command line of ``scripts/study.py``: train, evaluate and judge the networks of a study."""

import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser

from bnood.errors import UserError
from bnood.study.options import StudyOptions, check_same_study, write_study_file
from bnood.training.command_line import one_line_parsing


def build_parser() -> ArgumentParser:
    """Options of ``scripts/study.py``."""
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
    return parser


def parse(given: list[str]) -> tuple[StudyOptions, bool]:
    """The study that a command line describes, and ``judge_only``."""
    parser = build_parser()
    try:
        with one_line_parsing(parser, given), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jsonargparse's, about names of its own functions
            config = parser.parse_args(given)
            made = parser.instantiate_classes(config)
    except UserError as error:
        if "arguments are required" not in str(error):
            raise
        raise UserError(
            f"a study needs a config: give --config, for example --config configs/studies/demo.yaml ({error})"
        ) from error
    options = StudyOptions(**{key: made[key] for key in StudyOptions.__dataclass_fields__})
    options.wandb.enabled = options.wandb.enabled and not config.no_wandb
    return options, config.judge_only


def main(arguments: list[str] | None = None) -> Path:
    """Run a study as ``scripts/study.py`` does, by default from the process's own command line; returns its folder."""
    given = sys.argv[1:] if arguments is None else arguments
    options, judge_only = parse(given)
    command = shlex.join(["python", "scripts/study.py", *given])
    run_study(options, judge_only=judge_only, command=command)
    return options.folder


def run_study(options: StudyOptions, *, judge_only: bool = False, command: str) -> None:
    """Train and evaluate what is not yet done, unless ``judge_only``, then judge.

    ``command`` is what to type to get this study again, for the report. Raises ``UserError`` for bad input, and if a
    network failed, in which case no verdict is written.
    """
    from bnood.study.execution import Job, check_executor, run_jobs
    from bnood.study.networks import is_done, load, make_and_evaluate, run_specs
    from bnood.study.results import conclude
    from bnood.training.atomic import locked

    specs = run_specs(options)
    check_same_study(options)
    expected = _check_trainings(options, specs)
    if judge_only and not options.folder.is_dir():
        raise UserError(f"{options.folder}: there is no such study to be judged; run it without --judge_only true")
    failed: list[str] = []
    if not judge_only:
        check_executor(options.executor)
        if not all(is_done(options, spec) for spec in specs):
            _check_sets(options, specs, expected)
            for spec in specs:
                if spec.entry.model is not None:
                    load(options, spec)
        write_study_file(options)
    with locked(options.folder, "another process is working on this study"):
        # Stopped networks need two others; everything else can be done side by side.
        for stage in ([s for s in specs if not s.partner], [s for s in specs if s.partner]):
            if judge_only or failed:
                break
            left = [spec for spec in stage if not is_done(options, spec)]
            logs = options.folder / "logs"
            jobs = [Job(s.name, make_and_evaluate, (options, s, command), logs / f"{s.name}.log") for s in left]
            if jobs:
                print(f"{options.name}: {', '.join(job.name for job in jobs)} (logs in {logs})", flush=True)
            outcomes = run_jobs(jobs, options.executor, lambda line: print(line, flush=True))
            failed += [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]
        if failed:
            text = f"{len(failed)} failed: {'; '.join(failed)}"
            raise UserError(f"{text}; no verdict is written (--judge_only true judges what is there)")
        done = [spec for spec in specs if is_done(options, spec)]
        missing = [f"{spec.name} is not evaluated" for spec in specs if spec not in done]
        for line in missing:
            print(f"note: {line}")
        conclude(options, done, command, missing)


def _check_trainings(options: StudyOptions, specs: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The training configs by network, after a check that what is trained already was trained by them."""
    from bnood.study.networks import check_same_training, expected_config

    expected: dict[str, dict[str, Any]] = {}
    for spec in specs:
        if spec.entry.training is not None and not spec.partner:
            config = expected.setdefault(spec.network, expected_config(options, spec))
            check_same_training(options.folder / spec.name, config | {"seed_everything": spec.seed})
    return expected


def _check_sets(options: StudyOptions, specs: Sequence[Any], expected: dict[str, dict[str, Any]]) -> None:
    """Open every image set once before anything is trained or written: hours may pass before it is needed."""
    from bnood.data.labels import read_classes
    from bnood.data.sources import images
    from bnood.evaluation.run import check_id_split, load_run_images
    from bnood.training.yaml_files import read_yaml

    sets = options.sets
    configs = [*expected.values(), *(read_yaml(s.entry.run / "config.yaml") for s in specs if s.entry.run is not None)]
    by_data = {str(config["data"]): config for config in configs}
    names: list[list[str]] = []
    for config in by_data.values():
        check_id_split(config["data"], sets.of_runs(), f"every network of {options.name}")
        run: Any = SimpleNamespace(config=config, name=options.name)
        try:
            names.append(list(load_run_images(run, sets.of_runs(), options.evaluation).ood_sets))
        except UserError as error:
            raise UserError(str(error).replace("--data.", "--sets.")) from error
    if any(spec.entry.model is not None for spec in specs):
        sources = [source for source in (sets.id, sets.train) if source is not None]
        opened = [images(each, root=sets.root, download=bool(sets.download)) for each in (*sources, *(sets.ood or ()))]
        names.append([one.name for one in opened[len(sources) :]])
        if sets.classes is not None:
            read_classes(sets.classes)
    for found in names:
        if not found:
            raise UserError("sets.ood is empty: a study needs at least one OOD set, for example [svhn, dtd]")
        if missing := [name for name in options.claim.primary_sets if name not in found]:
            raise UserError(f"claim.primary_sets: {', '.join(missing)} is not among the OOD sets ({', '.join(found)})")
