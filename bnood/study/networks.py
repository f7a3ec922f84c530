"""The networks of a study: which there are, and training, stopping and evaluating each of them.

``runs/<study>/`` holds one folder per network: as ``scripts/train.py`` writes it for trained networks, with copies of a
given run's config and summary and a link to its checkpoint, or with the evaluation alone for a given model. What is done
is read from these folders, so that a study goes on wherever it was stopped.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bnood.errors import UserError
from bnood.evaluation.options import EvaluationOptions
from bnood.study.options import NetworkOptions, StudyOptions, flat, read_mapping
from bnood.training.run_folder import CHECKPOINT, write_beside

EVALUATION = "ood"
ASKED = "asked.json"  # what a model's evaluation was asked, beside it
CUTS = 8
# Of a stopped network: what H4 compares, and its own control.
STATISTICS_OF_STOPPED = ("running", "recalibrated:id", "recalibrated:target")
# Keys of a training config that do not decide what is learnt: where things lie and what is shown or logged.
IRRELEVANT = {
    *("data.root", "data.download", "trainer.logger", "trainer.callbacks", "trainer.default_root_dir"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
    *("trainer.enable_autolog_hparams", "trainer.enable_checkpointing", "trainer.profiler", "trainer.barebones"),
    *("trainer.model_registry", "trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
}


@dataclass(frozen=True)
class RunSpec:
    """One network of a study.

    Attributes:
        name: of its folder.
        entry: the entry of ``networks:`` that it comes from.
        kind: its place in the family: bn, ln, gn, or bn-at-ln for a BatchNorm network at LN's accuracy.
        seed: of its training.
    """

    name: str
    entry: NetworkOptions
    kind: str
    seed: int

    @property
    def network(self) -> str:
        """Its name in the study's tables, the same for all seeds."""
        return f"{self.entry.family} {self.kind}".strip()

    @property
    def norm(self) -> str:
        return self.kind.partition("-at-")[0]

    @property
    def partner(self) -> str:
        """The norm at whose accuracy a network of this study is stopped; "" for all others."""
        return self.kind.partition("-at-")[2] if self.entry.training is not None else ""


def run_specs(options: StudyOptions) -> list[RunSpec]:
    """All networks: a whole seed after the other, so that an unfinished study has whole seeds; stopped ones last.

    Raises:
        UserError: if a given run is missing, or two networks have one name, or one network and seed.
    """
    specs: list[RunSpec] = []
    for entry in options.networks:
        prefix = f"{entry.family}-" if entry.family else ""
        if entry.training is not None:
            specs += [RunSpec(f"{prefix}{n}-s{seed}", entry, n, seed) for seed in entry.seeds for n in entry.norms]
        elif entry.run is not None:
            specs.append(_spec_of_run(entry))
        else:
            name = entry.name or str(entry.model).rpartition(":")[2]
            specs.append(RunSpec(name, replace(entry, family=entry.family or name), "bn", entry.seed))
    for entry in options.networks:
        prefix = f"{entry.family}-" if entry.family else ""
        specs += [
            RunSpec(f"{prefix}bn-s{seed}-at-{partner}", entry, f"bn-at-{partner}", seed)
            for seed in entry.seeds
            for partner in entry.partners
        ]
    for what, keys in (("name", [s.name for s in specs]), ("network and seed", [(s.network, s.seed) for s in specs])):
        if twice := [key for key in keys if keys.count(key) > 1]:
            shown = twice[0] if isinstance(twice[0], str) else f"{twice[0][0]}, seed {twice[0][1]}"
            raise UserError(f"networks: two have the {what} {shown}: give them different names, seeds or families")
    return specs


def _spec_of_run(entry: NetworkOptions) -> RunSpec:
    folder = Path(str(entry.run))
    if not (folder / CHECKPOINT).is_file():
        raise UserError(f"networks: run {folder} has no {CHECKPOINT}; expected a run folder as scripts/train.py writes it")
    config = read_mapping(folder / "config.yaml")
    try:
        norm, seed = str(config["model"]["norm"]), int(config["seed_everything"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.yaml'}: expected model.norm and seed_everything") from error
    partner = str(read_summary(folder).get("stopped", {}).get("partner", "")).rpartition("-s")[0].rpartition("-")[2]
    return RunSpec(entry.name or folder.name, entry, f"bn-at-{partner}" if partner else norm, seed)


def evaluation_of(options: StudyOptions, spec: RunSpec) -> EvaluationOptions:
    """What is evaluated of a network that is there: the study's evaluation, and the layer forms that H5 needs."""
    whole = options.evaluation
    if "-at-" in spec.kind:
        return replace(whole, statistics=STATISTICS_OF_STOPPED, shifts=(), placebo=False)
    if spec.norm != "bn" or options.localisation == "none":
        return whole
    from bnood.statistics import batchnorm_layers

    layers = len(batchnorm_layers(load(options, spec).model))
    return replace(whole, statistics=(*whole.statistics, *layer_forms(layers, options.localisation)))


def layer_forms(layers: int, localisation: str) -> list[str]:
    """The statistics of :class:`StudyOptions`' ``localisation`` for a network of so many BatchNorm layers."""
    half = layers // 2
    first, last, only = {half}, {layers - half}, {layers - 1}
    if localisation == "cuts":
        spread = {round(layers * cut / (CUTS + 1)) for cut in range(1, CUTS + 1)} - {0}
        first, last = first | spread, last | spread
    elif localisation == "all":
        first, last, only = set(range(1, layers + 1)), set(range(1, layers + 1)), set(range(layers))
    counts = (("only", only), ("first", first - {0}), ("last", last - {0}))
    forms = [f"{form}:{count}" for form, each in counts for count in sorted(each)]
    return [f"recalibrated:target/{form}" for form in (*forms, "mean", "variance")]


def load(options: StudyOptions, spec: RunSpec) -> Any:
    """The network of a spec as :class:`bnood.networks.network.Network`, named as in the study's tables."""
    entry = spec.entry
    if entry.model is None:
        from bnood.training.run_folder import load_run

        return load_run(options.folder / spec.name).network
    from bnood.networks.loading import load_network

    given = {key: getattr(entry, key) for key in ("image_size", "mean", "std", "head")}
    network = load_network(entry.model, entry.weights, **given)
    network.name, network.seed = spec.name, spec.seed
    return network


def is_ready(options: StudyOptions, spec: RunSpec) -> bool:
    """Whether a network is trained to its end, or there from the start."""
    folder = options.folder / spec.name
    if spec.entry.model is not None:
        return True
    if spec.partner:
        return bool(read_summary(folder)) and read_summary(folder).get("stopped") == _stopped_at_or_none(options, spec)
    if spec.entry.run is not None:
        return (folder / CHECKPOINT).exists() and (folder / CHECKPOINT).samefile(spec.entry.run / CHECKPOINT)
    return bool(read_summary(folder)) and (folder / CHECKPOINT).exists()


def is_done(options: StudyOptions, spec: RunSpec) -> bool:
    """Whether a network is ready and evaluated as the study wants it."""
    if not is_ready(options, spec):
        return False
    folder, evaluation = options.folder / spec.name, evaluation_of(options, spec)
    if spec.entry.model is None:
        from bnood.evaluation.run import is_evaluated

        return is_evaluated(folder, options.sets.of_runs(), evaluation)
    try:
        found = json.loads((folder / ASKED).read_text())
    except (OSError, ValueError):
        return False
    return found == _question(options, spec, evaluation) and (folder / EVALUATION / "table.csv").exists()


def make_and_evaluate(options: StudyOptions, spec: RunSpec, command: str) -> None:
    """The job of one network: do what is not yet done of training (or stopping, or adopting) and evaluating it."""
    if not is_ready(options, spec):
        print("network", flush=True)
        make = stop if spec.partner else train_network if spec.entry.training is not None else adopt
        make(options, spec)
    if is_done(options, spec):
        return
    print("evaluation", flush=True)
    folder, evaluation = options.folder / spec.name, evaluation_of(options, spec)
    if spec.entry.model is not None:
        _evaluate_model(options, spec, evaluation, command)
        return
    from bnood.evaluation.run import evaluate_run
    from bnood.training.run_folder import load_run

    evaluate_run(
        load_run(folder), options.sets.of_runs(), evaluation, wandb=options.wandb, command=command, progress=_say
    )


def train_network(options: StudyOptions, spec: RunSpec) -> None:
    """Train a network from where it is: from the start, or from its last checkpoint."""
    from bnood.training.train import train

    arguments, checkpoint = training_arguments(options, spec), options.folder / spec.name / CHECKPOINT
    if checkpoint.exists():
        arguments += ["--ckpt_path", str(checkpoint)]
    train(arguments)


def training_arguments(options: StudyOptions, spec: RunSpec) -> list[str]:
    """The command line of ``scripts/train.py`` that trains a network from the start."""
    sets, entry = options.sets, spec.entry
    given = {
        "config": str(entry.training),
        "runs": str(options.folder),
        "name": spec.name,
        "seed_everything": spec.seed,
        "model.norm": spec.norm,
        "keep_epochs": spec.norm == "bn" and bool(entry.partners),
        **({} if sets.root is None else {"data.root": str(sets.root)}),
        **({"data.download": True} if sets.download else {}),
        **{"trainer.enable_progress_bar": False, **entry.overrides.get(spec.norm, {})},
        **({f"wandb.{key}": value for key, value in asdict(options.wandb).items()} if options.wandb.enabled else {}),
    }
    arguments = [f"--{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in given.items()]
    return arguments if options.wandb.enabled else [*arguments, "--no-wandb"]


def expected_config(options: StudyOptions, spec: RunSpec) -> dict[str, Any]:
    """The training config of a network, as its ``config.yaml`` would hold it.

    Raises:
        UserError: if the training config or an override is wrong.
    """
    from bnood.training.train import ParsingCLI, command_line

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli = command_line(training_arguments(options, spec), ParsingCLI)
            return yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    except UserError as error:
        where = f"{spec.entry.training} with overrides.{spec.norm}"
        raise UserError(f"the training of {spec.norm} ({where}): {error}") from error


def check_same_training(folder: Path, expected: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` if a run folder was trained otherwise than the study would train it."""
    file = folder / "config.yaml"
    if not file.exists():
        if (folder / CHECKPOINT).exists():
            raise UserError(f"{file} is missing: how {folder / CHECKPOINT} was trained is unknown; move the folder away")
        return
    found, wanted = (dict(flat(config)) for config in (read_mapping(file), expected))
    for key, value in wanted.items():
        decides = key.startswith(("seed_everything", "trainer.", "data.", "model.")) and key not in IRRELEVANT
        if decides and key in found and found[key] != value:
            raise UserError(
                f"{folder} was trained with {key} {found[key]}, but the study wants {value}: "
                "choose another name for the study, or move the folder away"
            )


def adopt(options: StudyOptions, spec: RunSpec) -> None:
    """Make the study's folder of a given run, which itself is never written into."""
    source, folder = Path(str(spec.entry.run)), options.folder / spec.name
    (folder / CHECKPOINT.parent).mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "summary.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    (folder / CHECKPOINT).symlink_to((source / CHECKPOINT).resolve())


def stopped_at(options: StudyOptions, spec: RunSpec) -> dict[str, Any]:
    """Which epoch of the BatchNorm training is nearest to its partner's final validation accuracy.

    Only validation images decide: nothing is chosen on test or OOD images. Of equally near epochs the first is taken.

    Returns:
        run, epoch (from 0), accuracy, partner, partner_accuracy: what ``summary.json`` of the stopped network keeps.

    Raises:
        UserError: if no epoch was kept, or accuracies were not measured.
    """
    prefix = f"{spec.entry.family}-" if spec.entry.family else ""
    folder, partner = (options.folder / f"{prefix}{norm}-s{spec.seed}" for norm in ("bn", spec.partner))
    wanted = read_summary(partner).get("accuracy")
    if wanted is None:
        raise UserError(f"{partner}/summary.json has no accuracy: {spec.name} can't be stopped where it is")
    log = _read_log(folder)
    column = "validation/accuracy"
    measured = log.dropna(subset=[column]).groupby("epoch")[column].last() if column in log else {}
    kept = {int(epoch): value for epoch, value in dict(measured).items() if _epoch_file(folder, int(epoch)).exists()}
    if not kept:
        raise UserError(
            f"{folder} kept no epochs with a validation accuracy (checkpoints/epoch-000.ckpt ...), which {spec.name} "
            "is taken from: train it with --keep_epochs true, or set equal_accuracy: false"
        )
    epoch = min(kept, key=lambda each: (abs(kept[each] - wanted), each))
    return {"run": folder.name, "epoch": epoch, "accuracy": float(kept[epoch]), "partner": partner.name,
            "partner_accuracy": wanted}  # fmt: skip


def _stopped_at_or_none(options: StudyOptions, spec: RunSpec) -> dict[str, Any] | None:
    try:
        return stopped_at(options, spec)
    except UserError:
        return None


def stop(options: StudyOptions, spec: RunSpec) -> None:
    """Make the folder of a BatchNorm network that is stopped at its partner's accuracy; its summary comes last."""
    choice = stopped_at(options, spec)
    source, folder = options.folder / choice["run"], options.folder / spec.name
    row = _read_log(source).query("epoch == @choice['epoch']")
    measured = {key: _last(row, f"validation/{key}") for key in ("nll", "ece")}
    measured["train_accuracy"] = _last(row, "train/accuracy")
    known = {key: value for key, value in read_summary(source).items() if key != "seconds"}
    summary = known | measured | {"accuracy": choice["accuracy"], "epochs": choice["epoch"] + 1, "stopped": choice}
    config = read_mapping(source / "config.yaml") | {"name": spec.name}
    checkpoint = _epoch_file(source, choice["epoch"])
    write_beside(folder / CHECKPOINT, lambda path: shutil.copyfile(checkpoint, path))
    write_beside(folder / "config.yaml", lambda path: path.write_text(yaml.safe_dump(config, sort_keys=False)))
    write_beside(folder / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=2) + "\n"))


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json``; empty if there is none or it is damaged."""
    try:
        content = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _epoch_file(folder: Path, epoch: int) -> Path:
    """Where ``train.py --keep_epochs true`` keeps the weights after an epoch, counted from 0."""
    return folder / CHECKPOINT.parent / f"epoch-{epoch:03d}.ckpt"


def _read_log(folder: Path) -> Any:
    import pandas as pd

    file = folder / "metrics.csv"
    try:
        log = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected the log of a training ({' '.join(str(error).split())})") from error
    if "epoch" not in log:
        raise UserError(f"{file} has no column epoch: it is not the log of a training")
    return log


def _last(log: Any, column: str) -> float | None:
    """The last measured value of a column; None if there is none."""
    values = log[column].dropna().tolist() if column in log else []
    return float(values[-1]) if values else None


def _question(options: StudyOptions, spec: RunSpec, evaluation: EvaluationOptions) -> dict[str, Any]:
    """What the evaluation of a model is asked; where the data lie and how it is run are left out."""
    entry, sets = asdict(spec.entry), asdict(options.sets)
    for key in ("root", "download"):
        sets.pop(key)
    asked = asdict(evaluation)
    asked.pop("workers")
    weights = Path(str(spec.entry.weights))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    return json.loads(json.dumps({"network": entry, "weights": digest, "sets": sets, **asked}, default=str))


def _evaluate_model(options: StudyOptions, spec: RunSpec, evaluation: EvaluationOptions, command: str) -> None:
    """Evaluate a model that is not a run of this project on the sets of the study."""
    import bnood
    from bnood import tracking

    network, sets, folder = load(options, spec), options.sets, options.folder / spec.name
    question = _question(options, spec, evaluation)

    def opened(name: str, count: int | None = None, labelled: bool = False) -> Any:
        more = {"classes": sets.classes, "num_classes": network.num_classes} if labelled else {"labels": None}
        images = bnood.images(name, root=sets.root, **more)
        return images if count is None else images.at_most(count, evaluation.seed)

    run = tracking.start_run(
        options.wandb, name=f"{spec.name}-ood", job_type="evaluation", tags=[f"seed:{spec.seed}", f"set:{sets.id}"],
        config=question, folder=folder,
    )  # fmt: skip
    try:
        found = bnood.evaluate(
            network,
            opened(str(sets.id), sets.id_count, labelled=True),
            train_set=None if sets.train is None else opened(sets.train, labelled=True),
            ood_sets={Path(name).stem: opened(name, sets.ood_count) for name in sets.ood or ()},
            options=evaluation,
            progress=_say,
        )
        found.write(folder / EVALUATION)
        tracking.log_evaluation(run, folder / EVALUATION, found.table, options.claim.primary_sets)
    finally:
        if line := tracking.finish(run):
            print(line)
    write_beside(folder / ASKED, lambda path: path.write_text(json.dumps(question, indent=2) + "\n"))


def _say(step: str) -> None:
    print(step, flush=True)
