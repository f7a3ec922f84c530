"""The networks of a study: which there are, and training, stopping and evaluating each of them.

``runs/<study>/`` holds one folder per network; of given ones the evaluation alone. What is done is read from there.
"""

import hashlib
import json
import shutil
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from bnood import tracking
from bnood.data.atomic import write_beside
from bnood.data.image_set import check_images
from bnood.data.sources import images, read_classes
from bnood.errors import UserError
from bnood.evaluation.comparisons import by_name
from bnood.evaluation.evaluate import evaluate
from bnood.evaluation.options import EvaluationOptions
from bnood.evaluation.run import asked, evaluate_run
from bnood.networks.image_classifier import build_network
from bnood.networks.loading import load_network
from bnood.networks.network import Network
from bnood.networks.weights import weights_file
from bnood.statistics import batchnorm_layers
from bnood.study.options import NetworkOptions, StudyOptions
from bnood.training.command_line import read_yaml
from bnood.training.provenance import made_with
from bnood.training.run_folder import CHECKPOINT, load_run, read_config, read_summary

EVALUATION, PASSES = "ood", ".passes"
# Of a stopped network: what H4 compares, and its own control.
STATISTICS_OF_STOPPED = ("running", "recalibrated:id", "recalibrated:target")


@dataclass(frozen=True)
class RunSpec:
    """One network of a study."""

    name: str  # of its folder
    entry: NetworkOptions
    kind: str  # bn, ln, gn, or bn-at-ln for a BatchNorm network stopped at LN's accuracy
    seed: int

    @property
    def names(self) -> dict[str, Any]:
        """In the study's tables."""
        network = f"{self.entry.family} {self.kind}".strip()
        return {"run": self.name, "network": network, "norm": self.norm, "seed": self.seed}

    @property
    def norm(self) -> str:
        return self.kind.partition("-at-")[0]

    @property
    def partner(self) -> str:
        """The norm at whose accuracy this study stops the network; "" for all others."""
        return self.kind.partition("-at-")[2] if self.entry.training is not None else ""

    def of_norm(self, norm: str) -> str:
        """The folder's name of the trained network of this family and seed with another norm."""
        return f"{self.entry.family}-{norm}-s{self.seed}".removeprefix("-")


def run_specs(options: StudyOptions) -> list[RunSpec]:
    """All networks, seed by seed, stopped ones last; UserError if a given run is missing, or two have one name."""
    specs, stopped = list[RunSpec](), list[RunSpec]()
    for entry in options.networks:
        if entry.training is not None:
            for seed in entry.seeds:
                own = RunSpec("", entry, "bn", seed)
                specs += [replace(own, name=own.of_norm(norm), kind=norm) for norm in entry.norms]
                kinds = [f"at-{norm}" for norm in entry.partners]
                stopped += [replace(own, name=f"{own.of_norm('bn')}-{kind}", kind=f"bn-{kind}") for kind in kinds]
        elif entry.run is not None:
            specs += [_spec_of_run(replace(entry, run=folder)) for folder in _run_folders(entry.run)]
        else:
            name = entry.name or str(entry.model).rpartition(":")[2]
            specs.append(RunSpec(name, replace(entry, family=entry.family or name), "bn", entry.seed))
    specs += stopped
    for spec in specs:
        network, seed = spec.names["network"], spec.seed
        if sum(one.name == spec.name or (one.names["network"], one.seed) == (network, seed) for one in specs) > 1:
            same = f"{spec.name} ({network}, seed {seed}) is there twice, by its name or by network and seed"
            raise UserError(f"networks: {same}: give them different names, seeds or families")
    return specs


def _run_folders(pattern: Path) -> list[Path]:
    """The folder, or the sorted run folders that match a pattern with ``*`` or ``?``; UserError if there is none."""
    folders = [pattern] if pattern.exists() else [Path(name) for name in sorted(glob(str(pattern).replace("[", "[[]")))]
    if not (found := [folder for folder in folders if (folder / CHECKPOINT).is_file()]):
        raise UserError(f"networks: run {pattern} has no {CHECKPOINT}; expected a run folder of scripts/train.py")
    return found


def _spec_of_run(entry: NetworkOptions) -> RunSpec:
    folder = Path(str(entry.run))
    config = read_config(folder / "config.yaml")
    partner = str(read_summary(folder).get("stopped", {}).get("partner", "")).rpartition("-s")[0].rpartition("-")[2]
    kind = f"bn-at-{partner}" if partner else str(config["model"].get("norm", "bn"))
    return RunSpec(entry.name or folder.name, entry, kind, int(config["seed_everything"]))


def evaluation_of(options: StudyOptions, spec: RunSpec) -> EvaluationOptions:
    """What is evaluated of a network that is there: the study's evaluation, and the layer forms that H5 needs."""
    whole = options.evaluation
    if "-at-" in spec.kind:
        return replace(whole, statistics=STATISTICS_OF_STOPPED, shifts=(), placebo=False)
    if spec.norm != "bn" or options.localisation == "none":
        return whole
    forms = layer_forms(len(batchnorm_layers(load(options, spec).model)), options.localisation)
    return replace(whole, statistics=tuple(dict.fromkeys((*whole.statistics, *forms))))


def layer_forms(layers: int, localisation: str) -> list[str]:
    """The statistics that ``localisation`` asks for in a network of so many BatchNorm layers."""
    half = layers // 2
    counts = {"only": [layers - 1], "first": [half] if half else [], "last": [layers - half]}
    if localisation == "all":
        counts = {"only": [*range(layers)]} | {key: [*range(1, layers + 1)] for key in ("first", "last")}
    forms = [f"{form}:{count}" for form, each in counts.items() for count in each]
    return [f"recalibrated:target/{form}" for form in (*forms, "mean", "variance")] if layers else []


def load(options: StudyOptions, spec: RunSpec) -> Network:
    entry = spec.entry
    if entry.model is None:
        return load_run(run_folder(options, spec)).network
    given: dict[str, Any] = {key: getattr(entry, key) for key in ("image_size", "mean", "std", "head")}
    network = load_network(entry.model, entry.weights, **given)
    network.name, network.seed = spec.name, spec.seed
    return network


def run_folder(options: StudyOptions, spec: RunSpec) -> Path:
    """A given run's own folder, or that of a trained one in the study's."""
    return spec.entry.run or options.folder / spec.name


def is_ready(options: StudyOptions, spec: RunSpec) -> bool:
    """Whether a network is trained to its end, or given."""
    folder = options.folder / spec.name
    if spec.entry.training is None or not (read_summary(folder) and (folder / CHECKPOINT).exists()):
        return spec.entry.training is None
    with suppress(UserError):  # what it is made from is not there; making it says so
        return not spec.partner or read_summary(folder).get("stopped") == stopped_at(options, spec)
    return False


def is_done(options: StudyOptions, spec: RunSpec) -> bool:
    """Whether a network is ready and evaluated as the study wants it."""
    record = options.folder / spec.name / EVALUATION / "evaluation.json"
    if not record.exists() or not is_ready(options, spec):
        return False
    try:
        found = json.loads(record.read_text())["asked"]
    except (ValueError, TypeError, KeyError):
        return False  # damaged: it is made again
    return found == _question(options, spec, evaluation_of(options, spec))


def _question(options: StudyOptions, spec: RunSpec, evaluation: EvaluationOptions) -> dict[str, Any]:
    entry = spec.entry
    if entry.model is None:
        return asked(run_folder(options, spec) / CHECKPOINT, options.sets.of_runs(), evaluation)
    file = None if entry.weights is None else weights_file(entry.weights)
    return asked(file, options.sets, evaluation, network=asdict(entry))


def make_and_evaluate(options: StudyOptions, spec: RunSpec, command: str) -> None:
    """The job of one network: do what is not yet done of training (or stopping) and evaluating it."""
    folder, ready = options.folder / spec.name, is_ready(options, spec)
    if spec.partner and not ready:
        stop(options, spec)
    elif not ready:
        from bnood.training.train import train  # brings Lightning

        print("training")
        resumed = ["--ckpt_path", str(folder / CHECKPOINT)] if (folder / CHECKPOINT).exists() else []
        train([*training_arguments(options, spec), *resumed])
    if is_done(options, spec):
        return
    print("evaluation")
    evaluation = evaluation_of(options, spec)
    # Passes are kept until the evaluation is written; those of another question, version or code are not used.
    code = [file.read_bytes() for file in sorted(Path(__file__).parents[1].rglob("*.py"))]
    given = repr((_question(options, spec, evaluation), made_with()["versions"], code))
    store = folder / PASSES / hashlib.sha256(given.encode()).hexdigest()[:16]
    if spec.entry.model is not None:
        _evaluate_model(options, spec, command, store)
    else:
        run, sets, place = load_run(run_folder(options, spec)), options.sets.of_runs(), folder / EVALUATION
        evaluate_run(run, sets, evaluation, options.wandb, command, print, print, folder=place, store=store)
    shutil.rmtree(store.parent, ignore_errors=True)


def given_images(options: StudyOptions) -> dict[str, Any]:
    """The images that models which are no runs of this project are evaluated on, as ``evaluate`` takes them."""
    sets, seed = options.sets, options.evaluation.seed
    opened = partial(images, root=sets.root, download=bool(sets.download))
    ood = by_name(opened(source).at_most(sets.ood_count, seed) for source in sets.ood or ())
    train_set = None if sets.train is None else opened(sets.train)
    classes = None if sets.classes is None else read_classes(sets.classes)
    id_set = opened(sets.id).at_most(sets.id_count, seed)
    check_images({"sets.id": id_set, **({} if train_set is None else {"sets.train": train_set}), **ood})
    return {"id_set": id_set, "train_set": train_set, "ood_sets": ood, "classes": classes}


def _evaluate_model(options: StudyOptions, spec: RunSpec, command: str, store: Path) -> None:
    network, given, folder = load(options, spec), given_images(options), options.folder / spec.name
    network.model.to("cuda" if torch.cuda.is_available() else "cpu")
    evaluation, id_name = evaluation_of(options, spec), given["id_set"].name
    question = _question(options, spec, evaluation)
    tracked = tracking.start_run(
        options.wandb, name=f"{spec.name}-ood", job_type="evaluation", tags=[f"seed:{spec.seed}", f"set:{id_name}"],
        config=question, folder=folder,
    )  # fmt: skip
    try:
        found = evaluate(network, **given, options=evaluation, progress=print, store=store)
        found.record["asked"] = question
        found.write(folder / EVALUATION, title=f"{spec.name}: {id_name} against OOD", commands=[command])
        tracking.log_evaluation(tracked, folder / EVALUATION, found.table, options.claim.primary_sets)
    finally:
        if line := tracking.finish(tracked):
            print(line)


def training_arguments(options: StudyOptions, spec: RunSpec) -> list[str]:
    """The command line of ``scripts/train.py`` that trains a network from the start."""
    sets, entry = options.sets, spec.entry
    given = {
        "config": str(entry.training), "runs": str(options.folder), "name": spec.name, "seed_everything": spec.seed,
        "model.norm": spec.norm, "keep_epochs": spec.norm == "bn" and bool(entry.partners),
        "trainer.enable_progress_bar": False, **entry.overrides.get(spec.norm, {}),
        **{f"wandb.{key}": value for key, value in asdict(options.wandb).items()},
        **({} if sets.root is None else {"data.root": str(sets.root)}),
        **({"data.download": True} if sets.download else {}),
    }  # fmt: skip
    return [f"--{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in given.items()]


def check_training(options: StudyOptions, spec: RunSpec) -> dict[str, Any]:
    """The training config as ``config.yaml`` would hold it; UserError if it is wrong, or not what was trained."""
    from bnood.training.checks import settings_that_decide
    from bnood.training.train import ParsingCLI, command_line

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli = command_line(training_arguments(options, spec), ParsingCLI)
            expected = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
        with torch.device("meta"):  # takes no memory, and tells whether there is such a network
            build_network(expected["model"])
    except UserError as error:
        where = f"{spec.entry.training} with overrides.{spec.norm}"
        raise UserError(f"the training of {spec.norm} ({where}): {error}") from error
    folder, file = options.folder / spec.name, options.folder / spec.name / "config.yaml"
    if not file.exists() and (folder / CHECKPOINT).exists():
        raise UserError(f"{file} is missing: how the network was trained is unknown; move the folder away")
    if not file.exists():
        return expected
    found, wanted = (
        settings_that_decide(config) | {"data.in_distribution": config["data"]["in_distribution"]}
        for config in (read_config(file), expected)
    )
    for key in [key for key in wanted if found.get(key, wanted[key]) != wanted[key]]:
        trained = f"{folder} was trained with {key} {found[key]}, but the study wants {wanted[key]}"
        raise UserError(f"{trained}: choose another name for the study, or move the folder away")
    return expected


def stopped_at(options: StudyOptions, spec: RunSpec) -> dict[str, Any]:
    """The first kept epoch of the BatchNorm training that is nearest to its partner's final validation accuracy.

    Nothing is chosen on test or OOD images. Raises ``UserError`` if no epoch was kept, or accuracies are not known.
    """
    folder, partner = options.folder / spec.of_norm("bn"), options.folder / spec.of_norm(spec.partner)
    wanted = read_summary(partner).get("accuracy")
    if wanted is None:
        raise UserError(f"{partner}/summary.json has no accuracy: {spec.name} can't be stopped where it is")
    try:
        table = pd.read_csv(folder / "metrics.csv")
        log = table.groupby("epoch")["validation/accuracy"].last().dropna()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}/metrics.csv: expected the log of a training ({reason})") from error
    files = {int(file.stem.partition("-")[2]) for file in _epoch_file(folder, 0).parent.glob("epoch-*.ckpt")}
    if absent := sorted(files - {*table["epoch"]}):
        raise UserError(f"{folder}/metrics.csv has no row of epoch {absent[0]}, of which the weights were kept")
    kept = {int(epoch): value for epoch, value in log.items() if _epoch_file(folder, int(epoch)).exists()}
    if not kept:
        none = f"{folder} kept no epochs with a validation accuracy, which {spec.name} is taken from"
        raise UserError(f"{none}: train it with --keep_epochs true, or set equal_accuracy: false")
    epoch = min(kept, key=lambda each: (abs(kept[each] - wanted), each))
    taken = {"run": folder.name, "epoch": epoch, "accuracy": float(kept[epoch])}
    return taken | {"partner": partner.name, "partner_accuracy": wanted}


def stop(options: StudyOptions, spec: RunSpec) -> None:
    """Make the folder of a BatchNorm network that is stopped at its partner's accuracy; its summary comes last."""
    choice = stopped_at(options, spec)
    source, folder = options.folder / choice["run"], options.folder / spec.name
    own = ("seconds", "nll", "ece", "train_accuracy")  # of the finished network
    summary = {key: value for key, value in read_summary(source).items() if key not in own}
    summary |= {"accuracy": choice["accuracy"], "epochs": choice["epoch"] + 1, "stopped": choice}
    config = yaml.safe_dump(read_yaml(source / "config.yaml") | {"name": spec.name}, sort_keys=False)
    write_beside(folder / CHECKPOINT, lambda path: shutil.copyfile(_epoch_file(source, choice["epoch"]), path))
    write_beside(folder / "config.yaml", lambda path: path.write_text(config))
    write_beside(folder / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=2) + "\n"))


def _epoch_file(folder: Path, epoch: int) -> Path:
    """The weights after an epoch, counted from 0, that ``--keep_epochs true`` keeps."""
    return folder / CHECKPOINT.parent / f"epoch-{epoch:03d}.ckpt"
