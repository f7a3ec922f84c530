"""A study: the grid of norms and seeds, and what of it is done.

``runs/<study>/`` holds one run folder per cell, as ``scripts/train.py`` writes it, named ``<norm>-s<seed>``; and for
the comparison at equal accuracy ``bn-s<seed>-at-<norm>``: the BN network of that seed, stopped at the epoch whose
validation accuracy is nearest to that of ``<norm>-s<seed>``. What is done is read from these folders alone, so that a
study goes on wherever it was stopped, and takes over runs that were trained by hand with the same settings.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from bnood.errors import UserError
from bnood.evaluation.run_evaluation import EvaluationOptions
from bnood.networks.norm import Norm
from bnood.study.claim.options import ClaimOptions
from bnood.study.executors import ExecutorOptions
from bnood.tracking import TrackingOptions
from bnood.training.run_folder import CHECKPOINT, read_checkpoint, write_beside
from bnood.training.train import ParsingCLI, command_line

Setting = bool | int | float | str | list[str] | None
State = Literal["new", "half", "unsummarised", "done"]

# What a study decides itself, so that an override of a norm may not.
FIXED = ("config", "name", "runs", "seed_everything", "ckpt_path", "keep_epochs", "model.norm", "data.root")
# What all norms have in common, as they are compared on the same images.
SHARED = tuple(
    f"data.{key}" for key in ("in_distribution", "ood", "split_seed", "validation", "image_size", "train_count")
)
# Keys of a training config that do not decide what is learnt: where things lie and what is shown or logged.
IRRELEVANT = {
    *("data.root", "data.download", "trainer.logger", "trainer.callbacks", "trainer.default_root_dir"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
    *("trainer.enable_autolog_hparams", "trainer.enable_checkpointing", "trainer.profiler", "trainer.barebones"),
    *("trainer.model_registry", "trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
}
# Keys of a study that may change from one call to the next. Seeds may only be added.
FREE = ("runs", "root", "download", "executor", "wandb", "seeds")


@dataclass
class StudyOptions:
    """What a study trains, evaluates and judges.

    Args:
        name: of the study, of its folder and of its group in Weights & Biases.
        training: the training config that all cells start from.
        norms: the norms that are compared.
        seeds: the seeds, each of which every norm is trained with.
        overrides: for each norm the settings in which it differs from the training config, under the names that
            ``scripts/train.py`` gives them, for instance ``ln: {trainer.max_epochs: 36}``.
        equal_accuracy: whether BN networks stopped at the accuracy of LN and GN are made and evaluated as well.
        evaluation: what is evaluated.
        claim: thresholds of the verdicts.
        executor: where the cells run.
        wandb: what is logged; the group is the study's name unless another is given.
        runs: the folder that holds the study's folder.
        root: folder of the data sets; else the environment's BNOOD_DATA, else ./data.
        download: let torchvision download what is missing.
    """

    name: str
    training: Path
    norms: tuple[Norm, ...] = ("bn", "ln", "gn")
    seeds: tuple[int, ...] = (0, 1, 2)
    overrides: dict[str, dict[str, Setting]] = field(default_factory=dict)
    equal_accuracy: bool = True
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    claim: ClaimOptions = field(default_factory=ClaimOptions)
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)
    wandb: TrackingOptions = field(default_factory=TrackingOptions)
    runs: Path = Path("runs")
    root: Path | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name:
            raise UserError(f"name is {self.name!r}: it names a folder in {self.runs}, so it can't be or have a path")
        for key in ("norms", "seeds"):
            given = getattr(self, key)
            if not given:
                raise UserError(f"{key} is empty: a study needs at least one")
            if len(set(given)) < len(given):
                raise UserError(f"{key} is {', '.join(map(str, given))}: each may be given once only")
        wrong = [seed for seed in self.seeds if isinstance(seed, bool) or not 0 <= seed < 2**32]
        if wrong:
            raise UserError(f"seeds contains {wrong[0]}; expected whole numbers from 0 to 4294967295")
        for norm, settings in self.overrides.items():
            if norm not in self.norms:
                raise UserError(f"overrides.{norm}: there is no such norm in norms ({', '.join(self.norms)})")
            for key in settings:
                if key in FIXED:
                    raise UserError(f"overrides.{norm}.{key}: the study sets {key} itself")
                if key in SHARED:
                    raise UserError(
                        f"overrides.{norm}.{key}: norms are compared on the same images; set {key} in {self.training}"
                    )
        if self.evaluation.sets.root is not None or self.evaluation.sets.download is not None:
            raise UserError("evaluation.sets.root and download: in a study, set root and download themselves")

    @property
    def folder(self) -> Path:
        """``runs/<study>``."""
        return self.runs / self.name

    @property
    def partners(self) -> tuple[str, ...]:
        """The norms at whose accuracy BN networks are stopped."""
        return tuple(n for n in self.norms if n in ("ln", "gn")) if self.equal_accuracy and "bn" in self.norms else ()


@dataclass(frozen=True)
class StudyCell:
    """One network of a study: trained, or a BN network stopped at the accuracy of its ``partner`` norm."""

    norm: str
    seed: int
    partner: str | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.norm}-s{self.seed}" + (f"-at-{self.partner}" if self.partner else "")

    @property
    def network(self) -> str:
        """Its name in the pooled tables, the same for all seeds."""
        return f"{self.norm}-at-{self.partner}" if self.partner else self.norm


def trained_cells(options: StudyOptions) -> list[StudyCell]:
    """The grid norm x seed, a whole seed after the other, so that an unfinished study has whole seeds."""
    return [StudyCell(norm, seed) for seed in options.seeds for norm in options.norms]


def stopped_cells(options: StudyOptions) -> list[StudyCell]:
    """The BN networks that are compared at equal accuracy."""
    return [StudyCell("bn", seed, partner) for seed in options.seeds for partner in options.partners]


def cell_evaluation(options: StudyOptions, cell: StudyCell) -> EvaluationOptions:
    """What is evaluated of a cell: of a stopped network no sweeps and, of the statistics, running and re-estimated.

    Re-estimation on in-distribution images is the stopped networks' own control.
    """
    whole = options.evaluation
    sets = replace(whole.sets, root=options.root, download=options.download)
    if cell.partner is None:
        return replace(whole, sets=sets)
    return replace(
        whole,
        sets=sets,
        conditions=replace(whole.conditions, statistics=("running", "recalibrated")),
        sweeps=replace(whole.sweeps, enabled=False),
    )


def training_arguments(options: StudyOptions, cell: StudyCell) -> list[str]:
    """The command line of ``scripts/train.py`` that trains a cell from the start."""
    given = {
        "config": str(options.training),
        "runs": str(options.folder),
        "name": cell.name,
        "seed_everything": cell.seed,
        "model.norm": cell.norm,
        "keep_epochs": cell.norm == "bn" and bool(options.partners),
        **({} if options.root is None else {"data.root": str(options.root)}),
        **({"data.download": True} if options.download else {}),
        **{"trainer.enable_progress_bar": False, **options.overrides.get(cell.norm, {})},
    }
    return [f"--{key}={_as_text(value)}" for key, value in given.items()] + _tracking_arguments(options)


def tracking_options(options: StudyOptions) -> TrackingOptions:
    """What the cells log: all in one group."""
    return TrackingOptions(**{**asdict(options.wandb), "group": options.wandb.group or options.name})


def _tracking_arguments(options: StudyOptions) -> list[str]:
    if not options.wandb.enabled:
        return ["--no-wandb"]
    return [f"--wandb.{key}={_as_text(value)}" for key, value in asdict(tracking_options(options)).items()]


def _as_text(value: object) -> str:
    """A setting as it stands on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def expected_config(options: StudyOptions, cell: StudyCell) -> dict[str, Any]:
    """The training config of a cell, as its ``config.yaml`` would hold it.

    Raises:
        UserError: if the training config or an override is wrong.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli = command_line(training_arguments(options, cell), ParsingCLI)
            return yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    except UserError as error:
        where = f"{options.training} with overrides.{cell.norm}"
        raise UserError(f"the training of {cell.norm} ({where}): {error}") from error


def check_same_training(folder: Path, expected: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` if a run folder was trained otherwise than its cell of the grid would be.

    So it is if it holds a checkpoint and nothing says how that was trained.
    """
    file = folder / "config.yaml"
    if not file.exists():
        if (folder / CHECKPOINT).exists():
            raise UserError(
                f"{file} is missing, so that nobody knows how {folder / CHECKPOINT} was trained: put it back, or move "
                "the folder away"
            )
        return
    found, wanted = (dict(flat(config)) for config in (read_mapping(file), expected))
    sections = ("seed_everything", "trainer.", "data.", "model.")
    for key in (key for key in wanted if key.startswith(sections) and key not in IRRELEVANT):
        if key in found and found[key] != wanted[key]:
            raise UserError(
                f"{folder} was trained with {key} {found[key]}, but the study wants {wanted[key]}: "
                "choose another name for the study, or move the folder away"
            )


def training_state(folder: Path, epochs: int) -> State:
    """How far the training of a run is.

    Args:
        folder: of the run.
        epochs: that it has when it is finished.

    Returns:
        ``new`` (no epoch finished), ``half`` (can be resumed), ``unsummarised`` (all epochs are done, but the process
        ended before it wrote ``summary.json``) or ``done``.
    """
    if not (folder / CHECKPOINT).exists():
        return "new"
    if read_summary(folder):
        return "done"
    done = read_checkpoint(folder / CHECKPOINT)["epoch"] + 1
    return "unsummarised" if done >= epochs else "half"


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json``; empty if there is none or it is damaged."""
    file = folder / "summary.json"
    try:
        content = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def read_mapping(file: Path) -> dict[str, Any]:
    """A YAML file that this program wrote.

    Raises:
        UserError: if it is damaged.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, expected a mapping")
    return content


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"model": {"norm": "bn"}}`` -> ``("model.norm", "bn")``."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain_options(options: StudyOptions) -> dict[str, Any]:
    """The resolved config, as ``study.yaml`` holds it."""
    return json.loads(json.dumps(asdict(options), default=str))


def check_same_study(options: StudyOptions) -> None:
    """Check that the study's folder, if there is one, was made by this config.

    Seeds may be added later; where things lie, how cells run and what is logged may change.

    Raises:
        UserError: naming the first key that differs.
    """
    file, wanted = options.folder / "study.yaml", plain_options(options)
    if not file.exists():
        return
    found = read_mapping(file)
    seeds = found.get("seeds", [])
    if not isinstance(seeds, list):
        raise UserError(f"{file}: seeds is {seeds}; expected a list such as [0, 1]. Mend it, or remove the file")
    lost = [str(seed) for seed in seeds if seed not in options.seeds]
    if lost:
        raise UserError(
            f"{file} has seed {', '.join(lost)}, which the config lacks: name all of them under seeds, or remove "
            f"{file} to judge without"
        )
    before, now = (dict(flat({k: v for k, v in each.items() if k not in FREE})) for each in (found, wanted))
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{options.folder} was made with {key} {before.get(key)}, but the config says {now.get(key)}: "
                f"choose another name, or remove {file} to judge the runs there anew"
            )


def write_study_file(options: StudyOptions) -> None:
    """Write ``study.yaml``, the resolved config."""
    text = yaml.safe_dump(plain_options(options), sort_keys=False)
    write_beside(options.folder / "study.yaml", lambda path: path.write_text(text))
