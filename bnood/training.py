"""Training one network from a typed config (LightningCLI), into ``runs/<name>/``."""

import csv
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from bnood import tracking
from bnood.classifier import Classifier
from bnood.data.datamodule import ImageDataModule
from bnood.errors import UserError
from bnood.provenance import commit, machine, versions
from bnood.runs import CHECKPOINT, check_same_network, read_checkpoint, write_beside


class TrainingCLI(LightningCLI):
    """The command line of ``scripts/train.py``: trainer, data and model, plus the run's name and its tracking."""

    run_folder: Path
    tracked: Any = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run; default: set-network-seed.")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="Folder of all runs.")
        parser.add_argument("--ckpt_path", type=Path | None, default=None, help="Resume from this checkpoint.")
        parser.add_class_arguments(tracking.TrackingOptions, "wandb")
        parser.add_argument("--no-wandb", action="store_true", help="Turn Weights & Biases off.")
        parser.link_arguments("seed_everything", "data.seed")

    def before_instantiate_classes(self) -> None:
        config = self.config
        if config.name is None:
            config.name = default_name(config)
        self.run_folder = Path(config.runs) / config.name
        if config.ckpt_path is not None:
            content = read_checkpoint(Path(config.ckpt_path))
            check_same_network(Path(config.ckpt_path), content["hyper_parameters"], config.model.as_dict())
        elif (self.run_folder / CHECKPOINT).exists():
            raise UserError(
                f"{self.run_folder} already holds a trained network: choose another --name, "
                f"or resume with --ckpt_path {self.run_folder / CHECKPOINT}"
            )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that writes its log and its checkpoint into the run's folder."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
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
        checkpoints = ModelCheckpoint(
            self.run_folder / CHECKPOINT.parent, save_last=True, save_top_k=0, save_on_train_epoch_end=True
        )
        checkpoints.CHECKPOINT_NAME_LAST = CHECKPOINT.stem
        extra = [checkpoints, RichProgressBar(), Stopwatch()]
        return super().instantiate_trainer(
            logger=loggers,
            callbacks=extra,
            plugins=[RenamedCheckpoint()],
            default_root_dir=str(self.run_folder),
            **kwargs,
        )

    def _csv_logger(self) -> CSVLogger:
        """Lightning's CSV logger on ``metrics.csv``, with the rows of the run that is resumed."""
        rows: list[dict[str, Any]] = []
        log = self.run_folder / "metrics.csv"
        if self.config.ckpt_path is not None and log.exists():
            done = read_checkpoint(Path(self.config.ckpt_path))["global_step"]
            with log.open(newline="") as file:
                found = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
            rows = [row | {"step": int(row["step"])} for row in found if row["step"] < done]
        logger = CSVLogger(self.config.runs, name=self.config.name, version="")
        logger.experiment.metrics.extend(rows)
        return logger


class RenamedCheckpoint(TorchCheckpointIO):
    """Writes a checkpoint beside its final place and renames it, so that a kill never leaves half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_beside(Path(path), lambda partial: torch.save(checkpoint, partial))


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


def default_name(config: Any) -> str:
    """``cifar10-resnet18x16-bn-s0``: set, network, norm and seed of a training config."""
    model = config.model
    images = Path(config.data.in_distribution).stem
    return f"{images}-{model.architecture}{model.depth}x{model.width}-{model.norm}-s{config.seed_everything}"


def train(arguments: list[str] | None = None) -> Path:
    """Train as ``scripts/train.py`` does.

    Args:
        arguments: the command line after the program's name; None for the process's own.

    Returns:
        The run's folder.

    Raises:
        UserError: for bad input, and :class:`bnood.classifier.NonFiniteLoss` when training diverges.
    """
    _quiet()
    cli = TrainingCLI(
        Classifier,
        ImageDataModule,
        run=False,
        args=arguments,
        seed_everything_default=0,
        save_config_callback=None,
        auto_configure_optimizers=False,
        trainer_defaults={"max_epochs": 10, "num_sanity_val_steps": 0, "enable_model_summary": False,
                          "log_every_n_steps": 20, "enable_autolog_hparams": False},
        parser_kwargs={"prog": "scripts/train.py", "description": "Train one classifier; see configs/."},
    )  # fmt: skip
    checkpoint = cli.config.ckpt_path
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=None if checkpoint is None else str(checkpoint))
        summary = summarise(cli)
        write_beside(cli.run_folder / "summary.json", lambda p: p.write_text(json.dumps(summary, indent=2) + "\n"))
        print(
            f"{cli.run_folder}: validation accuracy {summary['accuracy']:.4f}, {summary['seconds']:.0f} s of training "
            f"at {summary['images_per_second']:.0f} images/s"
        )
        tracking.log_checkpoint(cli.tracked, cli.run_folder / CHECKPOINT, cli.config.name, summary)
    finally:
        line = tracking.finish(cli.tracked)
        if line:
            print(line)
    return cli.run_folder


def summarise(cli: TrainingCLI) -> dict[str, Any]:
    """The contents of ``summary.json``."""
    measured = {key: float(value) for key, value in cli.trainer.callback_metrics.items()}
    watch = next(callback for callback in cli.trainer.callbacks if isinstance(callback, Stopwatch))  # type: ignore[attr-defined]
    return {
        "accuracy": measured["validation/accuracy"],
        "nll": measured["validation/nll"],
        "ece": measured["validation/ece"],
        "train_accuracy": measured["train/accuracy"],
        "epochs": cli.trainer.current_epoch,
        "seconds": watch.seconds,
        "images_per_second": watch.images / max(watch.seconds, 1e-9),
        "parameters": sum(p.numel() for p in cli.model.network.parameters()),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
    }


def _quiet() -> None:
    """Leave out Lightning's advice that does not apply: the images are in memory, and no worker could be faster."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory .* exists and is not empty.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    torch.set_float32_matmul_precision("high")
