"""What a study is: its networks, image sets, evaluation, thresholds, and where its jobs run."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from bnood.errors import UserError
from bnood.evaluation.options import EvaluationOptions, SetOptions
from bnood.study.claim import ClaimOptions
from bnood.tracking import TrackingOptions
from bnood.training.command_line import dotted, read_yaml

Setting = bool | int | float | str | list[str] | None
# What an override of a norm may not change: the study sets it itself, or all norms are compared on the same images.
FIXED = {"config", "name", "runs", "seed_everything", "ckpt_path", "keep_epochs", "model.norm", "data.root",
         "data.in_distribution", "data.ood", "data.split_seed", "data.validation", "data.image_size",
         "data.train_count"}  # fmt: skip
# Keys of a study that may change from one call to the next.
FREE = ("runs", "executor", "wandb", "networks", "demo", "sets.root", "sets.download", "evaluation.workers")
# Settings of one kind of network alone, with their defaults.
OF_KIND: dict[str, dict[str, Any]] = {
    "training": {"norms": ("bn", "ln", "gn"), "seeds": (0, 1, 2), "overrides": {}, "equal_accuracy": True},
    "model": dict.fromkeys(("weights", "image_size", "mean", "std", "head")),
}


@dataclass
class NetworkOptions:
    """One entry of ``networks:``, with exactly one of ``training``, ``run`` and ``model``.

    Args:
        training: a training config; every pair of the norms and seeds is trained.
        norms, seeds: of the trained networks.
        overrides: for each norm the settings in which it differs from the training config, under the names that
            ``scripts/train.py`` gives them, for instance ``ln: {trainer.max_epochs: 36}``.
        equal_accuracy: also evaluate BatchNorm networks stopped at the accuracy of LN and GN (for H4).
        run: a run folder, which is read and never written into; ``runs/other/*`` is every run folder that matches.
        model: a network as ``torchvision:NAME``, ``timm:NAME`` or ``package.module:callable``.
        weights: its weights: a file, or ``package:file`` in an installed package.
        image_size, mean, std: of its images and their normalisation, where its own transform should not hold.
        head: name of its last Linear layer, where that cannot be found.
        family: networks of one family are pooled over seeds.
        name: of the network and its folder in the study; default: the run folder's, or the model's.
        seed: of a given model; networks of one family need different seeds.
    """

    training: Path | None = None
    norms: tuple[Literal["bn", "ln", "gn"], ...] = ("bn", "ln", "gn")
    seeds: tuple[int, ...] = (0, 1, 2)
    overrides: dict[str, dict[str, Setting]] = field(default_factory=dict)
    equal_accuracy: bool = True
    run: Path | None = None
    model: str | None = None
    weights: str | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    head: str | None = None
    family: str = ""
    name: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.norms, self.seeds = tuple(self.norms), tuple(self.seeds)
        kinds = [kind for kind in ("training", "run", "model") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "nothing"
            raise UserError(f"networks: an entry has {found}; expected one of training, run and model")
        for kind, defaults in OF_KIND.items():
            given = [key for key, default in defaults.items() if getattr(self, key) != default]
            if given and kinds != [kind]:
                raise UserError(f"networks: {kinds[0]} {getattr(self, kinds[0])} has {given[0]}, which is for {kind}")
        if {" ", "/"} & {*self.family}:
            raise UserError(f"networks: family is {self.family!r}; expected a name without spaces and slashes")
        if self.name is not None and (self.training or not _is_folder_name(self.name)):
            raise UserError(f"networks: name is {self.name!r}; expected the name of a folder, for a run or a model")
        for key, values in (("norms", self.norms), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise UserError(f"networks: {key} is {list(values)}: expected one or more, each once")
        if wrong := [seed for seed in self.seeds if isinstance(seed, bool) or not 0 <= seed < 2**32]:
            raise UserError(f"networks: seeds has {wrong[0]}; expected whole numbers from 0 to 4294967295")
        for norm, settings in self.overrides.items():
            if norm not in self.norms:
                raise UserError(f"overrides.{norm}: there is no such norm in norms ({', '.join(self.norms)})")
            for key in sorted(FIXED & settings.keys()):
                raise UserError(f"overrides.{norm}.{key}: the study sets {key} itself, the same for all norms")

    @property
    def partners(self) -> tuple[str, ...]:
        """The norms at whose accuracy BatchNorm networks are stopped."""
        wanted = self.training is not None and self.equal_accuracy and "bn" in self.norms
        return tuple(norm for norm in self.norms if norm != "bn") if wanted else ()


@dataclass
class StudySets(SetOptions):
    """The image sets: those of every evaluation, and for models that are not runs of this project their own.

    Args:
        id: the ID images that models are scored on: a name, an .npz file or a folder.
        train: training images of the models, for statistics and detectors.
        classes: file with one class name per line, in the order of the models' logits.
    """

    id: str | None = None
    train: str | None = None
    classes: Path | None = None

    def of_runs(self) -> SetOptions:
        """The part that the evaluation of a run takes."""
        return SetOptions(**{name: getattr(self, name) for name in SetOptions.__dataclass_fields__})


@dataclass
class ExecutorOptions:
    """Where the jobs of a study run, through joblib.

    Args:
        backend: ``sequential`` (in this process) or ``loky`` (processes of this machine).
        workers: how many networks are worked on at a time; ``sequential`` has one.
        threads_per_worker: torch's threads for each of them; only with the same number are results the same bits.
    """

    backend: Literal["sequential", "loky"] = "sequential"
    workers: int = 1
    threads_per_worker: int = 1

    def __post_init__(self) -> None:
        for name in ("workers", "threads_per_worker"):
            if getattr(self, name) < 1:
                raise UserError(f"executor.{name} is {getattr(self, name)}; it has to be at least 1")


@dataclass
class StudyOptions:
    """What a study trains, evaluates and judges.

    Args:
        name: of the study, of its folder and of its group in Weights & Biases.
        networks: what is trained or given.
        sets: which images are scored.
        evaluation: under which statistics and with which detectors.
        localisation: target statistics in parts of the network, for H5: ``none``; ``places`` (the five places that are
            judged); ``all`` (every layer, and every count of first and last layers).
        claim: thresholds of the verdicts.
        executor: where the jobs run.
        wandb: what is logged; the group is the study's name unless another is given.
        runs: the folder that holds the study's folder.
        demo: print a short answer as a hint, without a verdict.
    """

    name: str
    networks: list[NetworkOptions]
    sets: StudySets = field(default_factory=StudySets)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    localisation: Literal["none", "places", "all"] = "places"
    claim: ClaimOptions = field(default_factory=ClaimOptions)
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)
    wandb: TrackingOptions = field(default_factory=TrackingOptions)
    runs: Path = Path("runs")
    demo: bool = False

    def __post_init__(self) -> None:
        if not _is_folder_name(self.name):
            raise UserError(f"name is {self.name!r}: expected the name of a folder in {self.runs}")
        if not self.networks:
            raise UserError("networks is empty: expected one or more entries with training, run or model")
        for key in ("id", "ood"):
            if any(one.model is not None for one in self.networks) and not getattr(self.sets, key):
                raise UserError(f"sets.{key} is missing: name the {key.upper()} images of the models under networks")
        self.wandb.group = self.wandb.group or self.name

    @property
    def folder(self) -> Path:
        """``runs/<study>``."""
        return self.runs / self.name


def _is_folder_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name


def check_same_study(options: StudyOptions) -> str:
    """The text of ``study.yaml``, the resolved config; UserError where the folder's own differs in more than FREE."""
    file, plain = options.folder / "study.yaml", json.loads(json.dumps(asdict(options), default=str))
    before, now = (dict(dotted(each)) for each in (read_yaml(file) if file.exists() else plain, plain))
    for key in dict.fromkeys([*now, *before]):
        if not isinstance(now.get(key), dict) and not key.startswith(FREE) and before.get(key) != now.get(key):
            found = f"{options.folder} was made with {key} {before.get(key)}, but the config says {now.get(key)}"
            raise UserError(f"{found}: choose another name, or remove {file} to go on with the new one")
    return yaml.safe_dump(plain, sort_keys=False)
