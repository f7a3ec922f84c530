"""The command line of ``scripts/eval_ood.py``: evaluate runs or any network, write folders, print one table."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser

from bnood.errors import UserError
from bnood.evaluation.files import check_replaceable
from bnood.evaluation.options import EvaluationOptions, SetOptions
from bnood.tracking import TrackingOptions
from bnood.training.command_line import one_line_parsing

if TYPE_CHECKING:
    from rich.console import Console

    from bnood.data.image_set import Images
    from bnood.networks.network import Network

# As it stands on a command line (with commas) or in a YAML file (a list, or a single number).
Listed = str | float | list[str | float]

OPTIONS = {
    "statistics": "Statistics, by comma: running, batch, recalibrated, batch:64@0.5, path:0.5, ...",
    "detectors": "Detectors, by comma: msp, energy, max_logit, react, temperature, knn, mahalanobis, vim, ...",
    "fitted_under": "Whether detectors are fitted under each condition's statistics or under running.",
    "calibration": "matched: both sides get statistics of equally many images; v0.1: of all, as version 0.1 did.",
    "calibration_images": "Images that statistics are estimated on, at most.",
    "estimator": "How statistics are estimated: one_pass or sequential.",
    "shuffles": "Random orders of the images under batch.",
    "fit_images": "Training images that detectors are fitted on; 0: all.",
    "held_out_images": "Held-out images that ReAct and the temperature are fitted on; 0: neither.",
    "placebo": "Also compare ID images with ID images under other statistics.",
    "shifts": "Shifted ID sets, by comma: noise-3, blur-5, contrast-1, grey, or labelled sets.",
    "resamples": "Bootstrap resamples behind each interval.",
    "seed": "Of shuffles, splits and bootstrap.",
    "forward_batch": "Images per forward pass where the batch does not matter.",
    "estimation_batch": "Images per forward pass where statistics are estimated.",
    "workers": "Processes that decode photographs.",
}
SETS = {
    "ood": "OOD sets, by comma: names, .npz files, folders.",
    "id_split": "ID images of a run: test, or val (held out of training).",
    "id_count": "Score so many ID images; all.",
    "ood_count": "Open so many images of each OOD set; all.",
    "root": "Folder of the data sets; the run's own.",
    "download": "Let torchvision download what is missing; the run's own.",
}


def build_parser() -> ArgumentParser:
    """Options of ``scripts/eval_ood.py``; lists are written with commas, in a YAML file also as lists."""
    parser = ArgumentParser(
        prog="scripts/eval_ood.py",
        description="Score OOD sets under several BatchNorm statistics: trained runs, or any network.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    add_network(parser)
    kind: Any
    text = str | None
    for name, kind, help_text in (
        ("id", text, "ID images that are scored: a name, .npz file or folder; none: scores alone."),
        ("train", text, "Training images, for recalibrated:id and for detectors; default: half of the ID images."),
        ("out", Path | None, "Folder to write; default: ood/ in a run below --runs, else runs/<network>-eval."),
    ):
        parser.add_argument(*_flags(name), type=kind, default=None, help=help_text)
    for options, helps in ((SetOptions, SETS), (EvaluationOptions, OPTIONS)):
        for option in fields(options):
            default = None if option.default is MISSING else option.default
            many = "tuple" in str(option.type)
            shown = ",".join(default) if isinstance(default, tuple) else default
            kind = (Listed | None if default is None or default == () else Listed) if many else option.type
            parser.add_argument(
                *_flags(option.name), type=kind, default=shown or None if many else shown, help=helps[option.name]
            )
    # Written out: reading them off the class would execute what its module imports for type checkers alone.
    default = TrackingOptions()
    for name, kind, help_text in (
        ("enabled", bool, "Log to Weights & Biases."),
        ("project", str, "The project that runs belong to."),
        ("entity", text, "User or team that owns the project."),
        ("group", text, "Groups runs in the project."),
        ("tags", list[str], "Tags beside those that every run gets."),
        ("mode", Literal["auto", "online", "offline"], "online, offline or auto."),
    ):
        value = getattr(default, name)
        value = list(value) if isinstance(value, tuple) else value
        parser.add_argument(f"--wandb.{name}", type=kind, default=value, help=help_text)
    parser.add_argument("--no-wandb", action="store_true", help="Turn Weights & Biases off.")
    return parser


def add_network(parser: ArgumentParser) -> None:
    """The options that name a network, for :func:`chosen_network`."""
    text, number = str | None, Listed | None
    for name, kind, help_text in (
        ("run", number, "Run folder, or several by comma; default: the newest run."),
        ("model", text, "A network: torchvision:NAME, timm:NAME or package.module:callable."),
        ("weights", text, "Its weights, a state_dict or safetensors file; or package:file."),
        ("head", text, "The layer whose input the features are; default: the last Linear."),
        ("image_size", int | None, "Side of its images in pixels; default: the network's own transform."),
        ("mean", number, "Channel means that its images are normalised with, by comma."),
        ("std", number, "Channel standard deviations, by comma."),
        ("classes", Path | None, "File of the network's class names, one per line, for folders of images."),
    ):
        parser.add_argument(*_flags(name), type=kind, default=None, help=help_text)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="Where runs lie.")


def main(arguments: list[str] | None = None) -> list[Path]:
    """Evaluate as ``scripts/eval_ood.py`` does.

    Args:
        arguments: the command line after the program's name; None for the process's own.

    Returns:
        The folders that were written.

    Raises:
        UserError: for bad input.
    """
    given = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    with one_line_parsing(parser, given):
        config = parser.parse_args(given)
    sets, options = asked_for(config)
    if config.out is not None:
        check_replaceable(config.out)
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200)
    command = shlex.join(["python", "scripts/eval_ood.py", *given])
    if config.model is not None or config.id is not None:
        return [_given_network(config, sets, options, command, console)]
    for name in ("weights", "head", "image_size", "mean", "std", "train", "classes"):
        if getattr(config, name) is not None:
            raise UserError(f"--{name} is for a network that is given: add --model or --id, or leave it out")
    return _runs(config, sets, options, command, console)


def asked_for(config: Any) -> tuple[SetOptions, EvaluationOptions]:
    """What a parsed command line asks for. Raises :class:`UserError` for what makes no sense."""
    found = []
    for options in (SetOptions, EvaluationOptions):
        values: dict[str, Any] = {}
        for option in fields(options):
            value = getattr(config, option.name)
            if "tuple" in str(option.type):
                value = tuple(_listed(value)) if value is not None else option.default
            values[option.name] = value
        found.append(options(**values))
    return found[0], found[1]  # type: ignore[return-value]


def _runs(config: Any, sets: SetOptions, options: EvaluationOptions, command: str, console: "Console") -> list[Path]:
    import pandas as pd

    from bnood.evaluation.evaluate import check_statistics
    from bnood.evaluation.run import check_id_split, evaluate_run
    from bnood.training.run_folder import load_run, newest_run

    folders = [Path(run) for run in dict.fromkeys(_listed(config.run))] if config.run else [newest_run(config.runs)]
    # All runs are read before the first is evaluated: a wrong name should not cost the others' minutes.
    runs = [load_run(folder) for folder in folders]
    if config.out is not None and len(runs) > 1:
        raise UserError(f"--out {config.out} is one folder, but {len(runs)} runs are to be evaluated")
    for run in runs:
        check_id_split(run.config["data"], sets, run.name)
        check_statistics(run.network, options)
    tracking = TrackingOptions(**config.wandb.as_dict())
    tracking.enabled = tracking.enabled and not config.no_wandb
    tables, notes, written = [], [], []
    lines: list[str] = []
    for run in runs:
        with _progress(console, run.name) as progress:
            folder = _folder(config, run.folder, run.name)
            written.append(
                evaluate_run(
                    run,
                    sets,
                    options,
                    wandb=tracking,
                    command=command,
                    progress=progress,
                    say=lines.append,
                    folder=folder,
                )
            )
        table, own = _read(written[-1])
        tables.append(table)
        notes += [f"{run.name}: {note}" for note in own]
    id_set = runs[0].config["data"]["in_distribution"]
    title = f"{', '.join(run.name for run in runs)}: {id_set} ({sets.id_split}) against OOD"
    _print(console, pd.concat(tables, ignore_index=True), title, notes, [*lines, *map(_report, written)])
    return written


def _given_network(config: Any, sets: SetOptions, options: EvaluationOptions, command: str, console: "Console") -> Path:
    """Any network on images that are named, or a run on other images than its own."""
    from bnood.data.corruptions import is_made_here
    from bnood.data.labels import read_classes
    from bnood.data.sources import images
    from bnood.evaluation.comparisons import by_name
    from bnood.evaluation.evaluate import evaluate
    from bnood.evaluation.files import write_evaluation

    for name, value in (("ood", sets.ood), ("id", config.id)):
        if value is None:
            raise UserError(f"--model needs images: give --{name} (names, .npz files or folders)")
    network, size = chosen_network(config)

    def load(source: str, count: int | None = None) -> "Images":
        found = images(source, root=sets.root, image_size=size, download=bool(sets.download))
        return found.at_most(count, options.seed)

    id_set = None if config.id == "none" else load(config.id, sets.id_count)
    train_set = None if config.train in (None, "none") else load(config.train)
    if id_set is not None and train_set is not None and config.id == config.train:
        raise UserError(f"--train {config.train} are the images that are scored: give other ones, or leave --train out")
    ood = by_name(load(source, sets.ood_count) for source in sets.ood or ())
    with _progress(console, network.name) as progress:
        evaluation = evaluate(
            network,
            id_set,
            train_set=train_set,
            ood_sets=ood,
            shifted_sets={shift: load(shift) for shift in options.shifts if not is_made_here(shift)},
            options=options,
            classes=None if config.classes is None else read_classes(config.classes),
            progress=progress,
        )
        title = f"{network.name}: {'no ID images' if id_set is None else id_set.name} against OOD"
        folder = config.out or config.runs / f"{network.name}-eval"
        written = write_evaluation(evaluation, folder, title=title, commands=[command])
    notes = [f"transform: {network.transform_text}", *evaluation.notes]
    _print(console, evaluation.table, title, notes, [_report(written)])
    return written


def chosen_network(config: Any) -> tuple["Network", int | None]:
    """The network, and the size that photographs are resized to where it has no transform of its own."""
    import torch

    if config.model is None:
        from bnood.training.run_folder import load_run, newest_run

        runs = _listed(config.run) if config.run else [newest_run(config.runs)]
        if len(runs) > 1:
            raise UserError(f"--run names {len(runs)} networks: give one of them")
        run = load_run(Path(runs[0]))
        network, size = run.network, run.config["data"].get("image_size", 32)
    else:
        from bnood.networks.loading import load_network

        if config.run is not None:
            raise UserError("--run and --model name two networks: give one of them")
        mean, std = (None if each is None else tuple(_numbers(each)) for each in (config.mean, config.std))
        network = load_network(
            config.model, config.weights, image_size=config.image_size, mean=mean, std=std, head=config.head
        )
        size = None
    network.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return network, size


def _folder(config: Any, run: Path, name: str) -> Path | None:
    """Where the evaluation of a run goes; None: into its own folder, if that lies among the runs."""
    if config.out is not None:
        return config.out
    return None if config.runs.resolve() in run.resolve().parents else config.runs / f"{name}-eval"


def _read(folder: Path) -> tuple[Any, list[str]]:
    """The table and the notes of an evaluation that was written."""
    import json

    import pandas as pd

    from bnood.evaluation.files import RECORD

    return pd.read_csv(folder / "table.csv"), json.loads((folder / RECORD).read_text())["notes"]


def _print(console: "Console", table: Any, title: str, notes: list[str], lines: list[str]) -> None:
    from bnood.evaluation.printing import print_results

    print_results(console, table, title, notes)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _report(folder: Path) -> str:
    return f"report: {folder / 'report.html'}"


@contextmanager
def _progress(console: "Console", name: str) -> Iterator[Callable[[str], object]]:
    """A line that shows the present step, on a terminal."""
    from rich.text import Text

    with console.status(Text(name)) as status:
        yield lambda step: status.update(Text(f"{name}: {step}"))


def _flags(name: str) -> list[str]:
    alternatives = {"root": ["--data.root"], "download": ["--data.download"]}
    return [f"--{name}", *alternatives.get(name, [f"--{name.replace('_', '-')}"] * ("_" in name))]


def _listed(given: Listed) -> list[str]:
    parts = given if isinstance(given, list) else str(given).split(",")
    names = [str(part).strip() for part in parts if str(part).strip()]
    if not names:
        raise UserError(f"{given!r} names nothing: give one or more names, separated by commas")
    return names


def _numbers(text: Listed) -> list[float]:
    try:
        return [float(part) for part in _listed(text)]
    except ValueError as error:
        raise UserError(f"{text}: give numbers, separated by commas") from error
