"""Score OOD sets under several BatchNorm statistics: python scripts/eval_ood.py [--run runs/my-run] [--ood svhn,dtd]"""

import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, ArgumentParser

from bnood.data.atomic import check_replaceable
from bnood.errors import Terminated, UserError, run_door
from bnood.evaluation.options import EvaluationOptions, Names, SetOptions, listed
from bnood.tracking import TrackingOptions
from bnood.training.command_line import one_line_parsing

if TYPE_CHECKING:
    from rich.console import Console

    from bnood.data.image_set import Images
    from bnood.networks.network import Network

TEXT = str | None
# Of scores.parquet, which has a column for each detector too.
COLUMNS = ("dataset", "role", "statistics", "companion", "shuffle", "index", "label", "prediction")
OF_A_MODEL, OF_IMAGES = ("weights", "head", "image_size", "mean", "std"), ("train", "classes")


def build_parser() -> ArgumentParser:
    """Options of ``scripts/eval_ood.py``; lists are written with commas, in a YAML file also as lists."""
    description = "Score OOD sets under several BatchNorm statistics: trained runs, or any network. "
    description += "--detectors also takes your own, as package.module:Class."
    parser = ArgumentParser("scripts/eval_ood.py", description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    add_network(parser)
    scored = "ID images that are scored: a name, .npz file or folder; none: scores alone."
    parser.add_argument("--id", type=TEXT, help=scored)
    train = "Training images, for recalibrated:id (default: half of the ID images) and for detectors that are fitted."
    parser.add_argument("--train", type=TEXT, help=train)
    out = "Folder to write; default: ood/ in a run below --runs, else runs/<network>-eval."
    parser.add_argument("--out", type=Path | None, help=out)
    parser.add_class_arguments(SetOptions)
    parser.add_class_arguments(EvaluationOptions)
    parser.add_class_arguments(TrackingOptions, "wandb")
    parser.add_argument("--no-wandb", "--no_wandb", action="store_true", help="Turn Weights & Biases off.")
    return parser


def add_network(parser: ArgumentParser) -> None:
    """The options that name a network, for :func:`chosen_network`."""
    numbers = str | list[float] | None
    for name, kind, help_text in (
        ("run", Names | None, "Run folder, or several by comma; default: the newest run."),
        ("model", TEXT, "A network: torchvision:NAME, timm:NAME or package.module:callable."),
        ("weights", TEXT, "Its weights, a state_dict or safetensors file; or package:file."),
        ("head", TEXT, "The layer whose input the features are; default: the last Linear that makes the logits."),
        ("mean", numbers, "Channel means that its images are normalised with, by comma."),
        ("std", numbers, "Channel standard deviations, by comma."),
        ("classes", Path | None, "File of the network's class names, one per line, for folders of images."),
    ):
        parser.add_argument(f"--{name}", type=kind, help=help_text)
    size = "Side of its images in pixels; default: the network's own transform."
    parser.add_argument("--image_size", "--image-size", type=int | None, help=size)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="Where runs lie.")


def main(arguments: list[str] | None = None) -> list[Path]:
    """Evaluate as ``scripts/eval_ood.py`` does, by default from the process's own command line.

    Returns the folders that were written. Raises ``UserError`` for bad input.
    """
    given = [_spelt(each) for each in (sys.argv[1:] if arguments is None else arguments)]
    parser = build_parser()
    with one_line_parsing(parser, given):
        config = parser.parse_args(given)
    if config.out is not None:
        check_replaceable(config.out)
    sets = SetOptions(**{name: config[name] for name in SetOptions.__dataclass_fields__})
    config.detectors = [_own_detector(name) if ":" in name else name for name in listed(config.detectors)]
    options = EvaluationOptions(**{name: config[name] for name in EvaluationOptions.__dataclass_fields__})
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200)
    command = shlex.join(["python", "scripts/eval_ood.py", *given])
    is_given = config.model is not None or config.id is not None
    for name in OF_IMAGES if not is_given else ():
        if config[name] is not None:
            raise UserError(f"--{name} is for images that are given: add --model or --id, or leave it out")
    return (_given_network if is_given else _runs)(config, sets, options, command, console)


def _spelt(argument: str) -> str:
    """``--fit-images`` as ``--fit_images``, and ``--data.root``, as messages about sets have it, as ``--root``."""
    flag, equals, value = argument.partition("=")
    return f"--{flag[2:].removeprefix('data.').replace('-', '_')}{equals}{value}" if flag[:2] == "--" else argument


def _own_detector(spec: str) -> str:
    """Make ``package.module:Class`` known as a detector: its name."""
    from bnood.evaluation.detectors import DETECTORS, Detector

    module, _, attribute = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # scripts/ comes first where a script runs
    try:
        kind = getattr(importlib.import_module(module), attribute)
        made = kind()
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        if isinstance(error, Terminated):
            raise
        raise UserError(f"detector {spec} cannot be made ({type(error).__name__}: {error})") from error
    name = getattr(made, "name", None)
    if not isinstance(made, Detector) or not isinstance(name, str):
        raise UserError(f"detector {spec}: expected a subclass of Detector with a name")
    if name in COLUMNS or not name.replace("-", "_").isidentifier():
        raise UserError(f"detector {spec}: the name {name!r} is a column of scores.parquet, or not one word")
    if DETECTORS.setdefault(name, kind) is not kind:
        raise UserError(f"detector {spec}: there is another detector of the name {name!r}")
    return name


def _runs(config: Any, sets: SetOptions, options: EvaluationOptions, command: str, console: "Console") -> list[Path]:
    from bnood.evaluation.evaluate import check_statistics
    from bnood.evaluation.run import check_id_split, evaluate_run
    from bnood.training.run_folder import load_run

    check_options(config)
    # All runs are read before the first is evaluated: a wrong name should not cost the others' minutes.
    runs = [load_run(name) for name in dict.fromkeys(_named_runs(config))]
    if config.out is not None and len(runs) > 1:
        raise UserError(f"--out {config.out} is one folder, but {len(runs)} runs are to be evaluated")
    for run in runs:
        check_id_split(run.config["data"], sets, run.name)
        check_statistics(run.network, options)
    tracking = TrackingOptions(**config.wandb)
    tracking.enabled = tracking.enabled and not config.no_wandb
    written, lines = [], list[str]()
    for run in runs:
        inside = config.runs.resolve() in run.folder.resolve().parents
        folder = config.out or (None if inside else config.runs / f"{run.name}-eval")
        with _progress(console, run.name) as tell:
            say = lines.append
            written.append(evaluate_run(run, sets, options, tracking, command, tell, say=say, folder=folder))
    id_set = runs[0].config["data"]["in_distribution"]
    title = f"{', '.join(run.name for run in runs)}: {id_set} ({sets.id_split}) against OOD"
    _print(console, title, written, lines)
    return written


def _given_network(
    config: Any, sets: SetOptions, options: EvaluationOptions, command: str, console: "Console"
) -> list[Path]:
    """Any network on images that are named, or a run on other images than its own."""
    from bnood.data.corruptions import is_made_here
    from bnood.data.sources import images, read_classes
    from bnood.evaluation.comparisons import by_name
    from bnood.evaluation.evaluate import evaluate

    for name, value in (("ood", sets.ood), ("id", config.id)):
        if value is None:
            raise UserError(f"--model needs images: give --{name} (names, .npz files or folders)")
    network, size = chosen_network(config)

    def load(source: str, count: int | None = None) -> "Images":
        found = images(source, root=sets.root, image_size=size, download=bool(sets.download))
        return found.at_most(count, options.seed)

    id_set = None if config.id == "none" else load(config.id, sets.id_count)
    train_set = None if config.train in (None, "none") else load(config.train)
    both = [Path(each) for each in (config.id, config.train) if each and Path(each).exists()]
    if id_set is not None and (config.id == config.train or (len(both) == 2 and both[0].samefile(both[1]))):
        raise UserError(f"--train {config.train} are the images that are scored: give other ones, or leave --train out")
    ood = by_name(load(source, sets.ood_count) for source in sets.ood or ())
    shifted = {shift: load(shift) for shift in options.shifts if not is_made_here(shift)}
    classes = None if config.classes is None else read_classes(config.classes)
    given: dict[str, Any] = {"train_set": train_set, "ood_sets": ood, "shifted_sets": shifted, "classes": classes}
    with _progress(console, network.name) as tell:
        found = evaluate(network, id_set, **given, options=options, progress=tell)
        title = f"{network.name}: {'OOD images alone' if id_set is None else f'{id_set.name} against OOD'}"
        written = [found.write(config.out or config.runs / f"{network.name}-eval", title=title, commands=[command])]
    _print(console, title, written, [])
    return written


def check_options(config: Any) -> None:
    """Refuse options of ``--model`` without it: a run has its own weights, head and normalisation."""
    for name in OF_A_MODEL if config.model is None else ():
        if config[name] is not None:
            raise UserError(f"--{name} is for --model, and a run of scripts/train.py has its own: leave it out")


def chosen_network(config: Any) -> tuple["Network", int | None]:
    """The network, and the size that photographs are resized to where it has no transform of its own."""
    import torch

    size = None
    check_options(config)
    if config.model is None:
        from bnood.training.run_folder import load_run

        runs = _named_runs(config)
        if len(runs) > 1:
            raise UserError(f"--run names {len(runs)} networks: give one of them")
        run = load_run(runs[0])
        network, size = run.network, run.config["data"].get("image_size", 32)
    else:
        from bnood.networks.loading import load_network

        if config.run is not None:
            raise UserError("--run and --model name two networks: give one of them")
        channels = {name: _numbers(config[name]) for name in ("mean", "std")}
        network = load_network(config.model, config.weights, image_size=config.image_size, head=config.head, **channels)
    network.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return network, size


def _named_runs(config: Any) -> list[Path]:
    """The folders of the runs that ``--run`` names, by default the one whose checkpoint was written last."""
    from bnood.training.run_folder import CHECKPOINT

    found = sorted(config.runs.glob(f"*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    if not found and not config.run:
        wanted = "train one with scripts/train.py, or name it with --run"
        raise UserError(f"no run with a checkpoint in {config.runs}/: {wanted}")
    return [Path(name) for name in listed(config.run)] if config.run else [found[-1].parent.parent]


def _numbers(given: str | list[float] | None) -> tuple[float, ...] | None:
    try:
        return None if given is None else tuple(float(part) for part in listed(given))
    except ValueError as error:
        raise UserError(f"{given}: give numbers, separated by commas") from error


def _print(console: "Console", title: str, written: list[Path], lines: list[str]) -> None:
    """One table of all evaluations that were written, their notes, other lines, and where the reports lie."""
    import pandas as pd

    from bnood.evaluation.evaluate import RECORD
    from bnood.evaluation.printing import print_results

    records = [json.loads((folder / RECORD).read_text()) for folder in written]
    notes = [f"{record['run']}: {note}" for record in records for note in record["notes"]]
    table = pd.concat([pd.read_csv(folder / "table.csv") for folder in written], ignore_index=True)
    print_results(console, table, title, notes)
    for line in (*lines, *(f"report: {folder / 'report.html'}" for folder in written)):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def _progress(console: "Console", name: str) -> Iterator[Callable[[str], object]]:
    """A line that shows the present step, on a terminal."""
    from rich.text import Text

    with console.status(Text(name)) as status:
        yield lambda step: status.update(Text(f"{name}: {step}"))


if __name__ == "__main__":
    run_door(main)
