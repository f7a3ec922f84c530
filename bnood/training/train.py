"""Training one network from a typed config (LightningCLI), into ``runs/<name>/``."""

import csv
import io
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bnood import tracking
from bnood.data.datamodule import ImageDataModule
from bnood.errors import UserError
from bnood.training.classifier import Classifier
from bnood.training.command_line import one_line_parsing
from bnood.training.provenance import commit, machine, versions
from bnood.training.run_folder import CHECKPOINT, check_same_network, read_checkpoint, write_beside


class TrainingCLI(LightningCLI):
    """The command line of ``scripts/train.py``: trainer, data and model, plus the run's name and its tracking."""

    run_folder: Path
    run_is_new: bool
    tracked: Any = None
    more_callbacks: Sequence[L.Callback] = ()

    def __init__(self, *args: Any, more_callbacks: Sequence[L.Callback] = (), **kwargs: Any) -> None:
        self.more_callbacks = more_callbacks
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run; default: set-network-seed.")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="Folder of all runs.")
        parser.add_argument("--ckpt_path", type=Path | None, default=None, help="Resume from this checkpoint.")
        parser.add_argument(
            "--keep_epochs",
            type=bool,
            default=False,
            help="Also keep the weights after every epoch, as checkpoints/epoch-<number>.ckpt.",
        )
        parser.add_class_arguments(tracking.TrackingOptions, "wandb")
        parser.add_argument("--no-wandb", action="store_true", help="Turn Weights & Biases off.")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("data.image_size", "model.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with one line for what is wrong, and before anything is written."""
        with one_line_parsing(parser, args):
            super().parse_arguments(parser, args)
        check_config(self.config)

    def before_instantiate_classes(self) -> None:
        """Name the run, and refuse to write over another one."""
        config = self.config
        if config.name is None:
            config.name = default_name(config)
        if config.name in ("", ".", "..") or any(each in config.name for each in ("/", os.sep)):
            raise UserError(
                f"name is {config.name!r}: it names a folder in {config.runs}, so it can't be or have a path"
            )
        self.run_folder = Path(config.runs) / config.name
        trained = self.run_folder / CHECKPOINT
        if config.ckpt_path is not None:
            check_resumable(Path(config.ckpt_path), config)
        if trained.exists() and (config.ckpt_path is None or not trained.samefile(config.ckpt_path)):
            raise UserError(
                f"{self.run_folder} already holds a trained network: choose another --name, "
                f"or resume with --ckpt_path {trained}"
            )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that writes its log and its checkpoint into the run's folder.

        The images are loaded first, so that what is wrong with them shows before there is a folder.
        """
        self.datamodule.setup("fit")
        self.model.check_labels(self.datamodule)
        self.run_is_new = not self.run_folder.exists()
        try:
            return self._instantiate_trainer_in_folder(**kwargs)
        except BaseException:
            tracking.finish(self.tracked)
            self.remove_if_untrained()
            raise

    def remove_if_untrained(self) -> None:
        """Remove a run's folder that this process made, if the training never began."""
        if self.run_is_new and not (self.run_folder / CHECKPOINT).exists():
            shutil.rmtree(self.run_folder, ignore_errors=True)

    def _instantiate_trainer_in_folder(self, **kwargs: Any) -> L.Trainer:
        plain = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        plain.pop("ckpt_path", None)
        write_beside(self.run_folder / "config.yaml", lambda p: p.write_text(yaml.safe_dump(plain, sort_keys=False)))
        loggers: list[Logger] = [self._csv_logger()]
        options = tracking.TrackingOptions(**self.config.wandb.as_dict())
        if self.config.no_wandb:
            options.enabled = False
        tags = [f"norm:{self.config.model.norm}", f"seed:{self.config.seed_everything}"]
        self.tracked = tracking.start_run(
            options,
            name=self.config.name,
            job_type="training",
            tags=[*tags, f"set:{self.config.data.in_distribution}"],
            config=plain,
            folder=self.run_folder,
        )
        logger = tracking.lightning_logger(self.tracked)
        if logger is not None:
            tracking.define_training_metrics(self.tracked)
            loggers.append(logger)
        # The one file is written over after every epoch. Not by save_last with save_top_k=0: since Lightning 2.6 that
        # writes nothing before the training has ended, and a killed run would be lost.
        checkpoints = ModelCheckpoint(
            self.run_folder / CHECKPOINT.parent,
            filename=CHECKPOINT.stem,
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        kept = ModelCheckpoint(
            self.run_folder / CHECKPOINT.parent,
            filename="epoch-{epoch:03d}",
            auto_insert_metric_name=False,
            monitor="epoch",  # Lightning tells two such callbacks apart by what they monitor
            save_top_k=-1,
            save_weights_only=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        given = self.config_init.trainer
        bar = [] if given.enable_progress_bar is False else [ProgressBar()]
        try:
            return super().instantiate_trainer(
                logger=loggers,
                callbacks=[
                    *_listed(given.callbacks),
                    *self.more_callbacks,
                    checkpoints,
                    *([kept] if self.config.keep_epochs else []),
                    *bar,
                    Stopwatch(),
                ],
                plugins=[*_listed(given.plugins), RenamedCheckpoint()],
                default_root_dir=str(self.run_folder),
                **kwargs,
            )
        except ValueError as error:  # Lightning's, for an accelerator or a strategy that it does not know
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error

    def _csv_logger(self) -> CSVLogger:
        """Lightning's CSV logger on ``metrics.csv``, with the rows of the run that is resumed."""
        rows: list[dict[str, Any]] = []
        log = self.run_folder / "metrics.csv"
        if self.config.ckpt_path is not None and log.exists():
            done = read_checkpoint(Path(self.config.ckpt_path))["global_step"]
            with log.open(newline="") as file:
                found = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
            rows = [row | {"step": int(row["step"])} for row in found if row["step"] < done]
        # Every row is written when it is logged: a checkpoint must not outlive the rows of its epochs.
        logger = CSVLogger(self.config.runs, name=self.config.name, version="", flush_logs_every_n_steps=1)
        logger.experiment.metrics.extend(rows)
        logger.experiment.save()  # the logger has just removed the old file
        return logger


class ParsingCLI(TrainingCLI):
    """The training's command line, parsed and checked; nothing is made."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


class ProgressBar(RichProgressBar):
    """Lightning's bar without the logger's version number: a run's name says which it is."""

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class RenamedCheckpoint(TorchCheckpointIO):
    """Writes a checkpoint beside its final place and renames it, so that a kill never leaves half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        # By way of memory: on a full disk, torch.save itself raises a RuntimeError without file or reason.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_beside(Path(path), lambda partial: partial.write_bytes(content.getbuffer()))


class Stopwatch(L.Callback):
    """Seconds spent in training steps and images seen, over all sessions of a resumed run."""

    def __init__(self) -> None:
        self.seconds, self.images, self._start = 0.0, 0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images += len(batch[0]) * trainer.world_size
        if trainer.is_last_batch:
            self.seconds += time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]


def check_config(config: Any) -> None:
    """Raise :class:`UserError` for what the types of the config allow, but no training can do."""
    seed, trainer = config.seed_everything, config.trainer
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"seed_everything is {str(seed).lower()}: it has to be a whole number from 0 to 4294967295")
    for key in ("logger", "default_root_dir"):
        if trainer[key] is not None:
            raise UserError(f"trainer.{key} can't be set: runs are logged to --runs, and to W&B by the section wandb")
    if trainer.fast_dev_run:
        raise UserError("trainer.fast_dev_run leaves no run behind: use --trainer.max_epochs 1 --data.train_count 256")
    endless = trainer.max_epochs in (None, -1) and trainer.max_steps in (None, -1)
    if endless or (trainer.max_epochs is not None and trainer.max_epochs < 1 and trainer.max_epochs != -1):
        raise UserError(f"trainer.max_epochs is {trainer.max_epochs}: the schedule needs a number of epochs from 1 up")


def check_resumable(checkpoint: Path, config: Any) -> None:
    """Raise :class:`UserError` unless the training of a config can go on from a checkpoint."""
    content = read_checkpoint(checkpoint)
    check_same_network(checkpoint, content["hyper_parameters"], config.model.as_dict())
    if "optimizer_states" not in content or "global_step" not in content:
        raise UserError(f"{checkpoint} holds a network, but no optimizer state: expected a last.ckpt of this program")
    done, wanted = content["epoch"] + 1, config.trainer.max_epochs
    if wanted is not None and 0 <= wanted <= done:
        raise UserError(
            f"{checkpoint} has finished all {done} epoch(s): to go on, set --trainer.max_epochs above {done}"
        )


def default_name(config: Any) -> str:
    """``cifar10-resnet18x16-bn-s0``: set, network, norm and seed of a training config."""
    model = config.model
    images = Path(config.data.in_distribution).stem
    return f"{images}-{model.architecture}{model.depth}x{model.width}-{model.norm}-s{config.seed_everything}"


def train(arguments: list[str] | None = None, callbacks: Sequence[L.Callback] = ()) -> Path:
    """Train as ``scripts/train.py`` does.

    Args:
        arguments: the command line after the program's name; None for the process's own.
        callbacks: Lightning callbacks beside those of the config.

    Returns:
        The run's folder.

    Raises:
        UserError: for bad input, and :class:`bnood.training.classifier.NonFiniteLoss` when training diverges.
    """
    _quiet()
    try:
        return _train(arguments, callbacks)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def command_line(
    arguments: list[str] | None, kind: type[TrainingCLI] = TrainingCLI, more_callbacks: Sequence[L.Callback] = ()
) -> TrainingCLI:
    """The parsed command line of a training, and what ``kind`` makes of it: by default trainer, data and model."""
    return kind(
        Classifier,
        ImageDataModule,
        more_callbacks=more_callbacks,
        run=False,
        args=arguments,
        seed_everything_default=0,
        save_config_callback=None,
        auto_configure_optimizers=False,
        trainer_defaults={"max_epochs": 10, "num_sanity_val_steps": 0, "enable_model_summary": False,
                          "log_every_n_steps": 20, "enable_autolog_hparams": False},
        parser_kwargs={"prog": "scripts/train.py", "description": "Train one classifier; see configs/.",
                       "exit_on_error": False, "allow_abbrev": False},
    )  # fmt: skip


def _train(arguments: list[str] | None, callbacks: Sequence[L.Callback]) -> Path:
    cli = command_line(arguments, more_callbacks=callbacks)
    checkpoint = cli.config.ckpt_path
    try:
        try:
            cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=None if checkpoint is None else str(checkpoint))
        except SystemExit:
            if not cli.trainer.interrupted:
                raise
            last = cli.run_folder / CHECKPOINT
            if last.is_file():
                print(f"to go on: python scripts/train.py --config {cli.run_folder / 'config.yaml'} --ckpt_path {last}")
            raise KeyboardInterrupt from None  # Lightning makes exit status 1 of it
        summary = summarise(cli)
        write_beside(cli.run_folder / "summary.json", lambda p: p.write_text(json.dumps(summary, indent=2) + "\n"))
        accuracy = "not measured" if summary["accuracy"] is None else f"{summary['accuracy']:.4f}"
        print(
            f"{cli.run_folder}: validation accuracy {accuracy}, {summary['seconds']:.0f} s of training "
            f"at {summary['images_per_second']:.0f} images/s"
        )
        tracking.log_checkpoint(cli.tracked, cli.run_folder / CHECKPOINT, cli.config.name, summary)
    finally:
        line = tracking.finish(cli.tracked)
        if line:
            print(line)
        if cli.trainer.global_step == 0:
            cli.remove_if_untrained()
    return cli.run_folder


def summarise(cli: TrainingCLI) -> dict[str, Any]:
    """The contents of ``summary.json``; None for what was not measured (validation can be turned off)."""
    measured = {key: float(value) for key, value in cli.trainer.callback_metrics.items()}
    watch = next(callback for callback in cli.trainer.callbacks if isinstance(callback, Stopwatch))  # type: ignore[attr-defined]
    return {
        "accuracy": measured.get("validation/accuracy"),
        "nll": measured.get("validation/nll"),
        "ece": measured.get("validation/ece"),
        "train_accuracy": measured.get("train/accuracy"),
        "epochs": cli.trainer.current_epoch,
        "seconds": watch.seconds,
        "images_per_second": watch.images / max(watch.seconds, 1e-9),
        "parameters": sum(p.numel() for p in cli.model.network.parameters()),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
    }


def _listed(given: Any) -> list[Any]:
    """What a config gives as nothing, one or several."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _quiet() -> None:
    """Leave out Lightning's advice that does not apply: the images are in memory, and no worker could be faster."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter is intended to run from within.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory .* exists and is not empty.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    torch.set_float32_matmul_precision("high")
