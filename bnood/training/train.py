"""Training one network from a typed config (LightningCLI), into ``runs/<name>/``."""

import json
import logging
import re
import shutil
import signal
import traceback
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse.typing import register_type
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bnood import tracking
from bnood.data.atomic import locked, write_beside
from bnood.data.datamodule import ImageDataModule
from bnood.errors import Terminated, UserError, is_first_process, is_out_of_memory
from bnood.training.callbacks import MetricsLog, ProgressBar, RunFiles, Stopwatch
from bnood.training.checks import check_config, check_data, check_resumable, settings_that_decide
from bnood.training.classifier import VALIDATION_METRICS, Classifier, NonFiniteLoss
from bnood.training.command_line import one_line_parsing
from bnood.training.provenance import made_with
from bnood.training.run_folder import CHECKPOINT, read_checkpoint

IRRELEVANT_ADVICE = (  # Lightning's; of the last: what is logged is the same in all processes
    ".*is smaller than the logging interval.*", ".*LightningCLI's args parameter is intended to run from within.*",
    ".*isinstance\\(treespec, LeafSpec\\).*", ".*Checkpoint directory .* exists and is not empty.*",
    ".*The dirpath has changed from .*", ".*when logging on epoch level in distributed setting.*",
)  # fmt: skip

register_type(torch.device)  # of StochasticWeightAveraging: config.yaml has to read back


class TrainingCLI(LightningCLI):
    """The command line of ``scripts/train.py``: trainer, data and model are made, nothing is written."""

    run_folder: Path

    def __init__(self, *args: Any, more_callbacks: Sequence[L.Callback] = (), **kwargs: Any) -> None:
        self.more_callbacks = more_callbacks
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run; default: set-network-seed.")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="Folder of all runs.")
        parser.add_argument("--ckpt_path", type=Path | None, default=None, help="Resume from this checkpoint.")
        keep_help = "Also keep the weights after every epoch, as checkpoints/epoch-<number>.ckpt."
        parser.add_argument("--keep_epochs", type=bool, default=False, help=keep_help)
        parser.add_class_arguments(tracking.TrackingOptions, "wandb")
        parser.add_argument("--no-wandb", action="store_true", help="Turn Weights & Biases off.")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("data.image_size", "model.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with one_line_parsing(parser, args):
            super().parse_arguments(parser, args)
        check_config(self.config, own_command_line=args is None)

    def before_instantiate_classes(self) -> None:
        config, name = self.config, self.config.name
        if name is None:  # cifar10-resnet18x16-bn-s0
            model, images = config.model, Path(config.data.in_distribution).stem
            name = f"{images}-{model.architecture}{model.depth}x{model.width}-{model.norm}-s{config.seed_everything}"
        if name in ("", ".", "..") or Path(name).name != name:
            raise UserError(f"name is {name!r}: it names a folder in {config.runs}, so it can't be or have a path")
        config.name, self.run_folder = name, Path(config.runs) / name
        self.resumed = None if config.ckpt_path is None else read_checkpoint(Path(config.ckpt_path))
        self.check_free()

    def check_free(self) -> None:
        """Refuse to write over a network that this training does not resume."""
        own = self.run_folder / CHECKPOINT
        self.in_place = self.config.ckpt_path is not None and own.exists() and own.samefile(self.config.ckpt_path)
        if own.exists() and not self.in_place:
            held = f"{self.run_folder} already holds a trained network"
            raise UserError(f"{held}: choose another --name, or resume with --ckpt_path {own}")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if found := re.search(r"Errors:\s+- (.*)", str(error)):  # a callback's, about its arguments
                raise UserError(f"trainer: {found[1]}") from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that will write its log and its checkpoints into the run's folder."""
        self.datamodule.setup("fit")  # what is wrong with the images shows before there is a folder
        self.log, self.watch, given = MetricsLog(self.run_folder / "metrics.csv"), Stopwatch(), self.config_init.trainer
        files = RunFiles(self.log)
        callbacks = [*_listed(given.callbacks), *self.more_callbacks, *self._checkpoints(), self.watch]
        if given.enable_progress_bar is not False:
            callbacks.append(ProgressBar(refresh_rate=2))  # a second; Lightning's 100 slow training on a CPU by 4 %
        own = {"logger": self.log, "callbacks": callbacks, "plugins": [*_listed(given.plugins), files]}
        try:
            trainer = super().instantiate_trainer(**own, default_root_dir=str(self.run_folder), **kwargs)
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            # Lightning's, for devices, an accelerator, a strategy or callbacks that it does not take.
            raise UserError(f"trainer: {error}") from error
        check_data(self.datamodule, self.model, trainer.world_size, trainer.strategy.root_device.type)
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        checkpoint = config.pop("ckpt_path", None)
        self.config_text = yaml.safe_dump(config, sort_keys=False)
        labels = zlib.crc32(self.datamodule.train_set.labels.tobytes())
        files.settings = settings_that_decide(config) | {"trainer.devices": trainer.world_size, "labels": labels}
        if self.resumed is not None:
            check_resumable(Path(checkpoint), self.resumed, files.settings, self.model, self.datamodule)
            done, limit = self.resumed["epoch"] + 1, config["trainer"]["max_epochs"] or -1
            if 0 < limit <= done and not (self.in_place and not (self.run_folder / "summary.json").exists()):
                raise UserError(f"{checkpoint} has finished all {done} epoch(s) of --trainer.max_epochs")
            if self.in_place:
                self.log.resume(self.resumed["global_step"])
            self.resumed = None  # as large as the network
        return trainer

    def _checkpoints(self) -> list[ModelCheckpoint]:
        """``last.ckpt`` after every epoch, behind all else; by save_last, Lightning 2.6 writes it at the end alone."""
        to = partial(
            ModelCheckpoint, self.run_folder / CHECKPOINT.parent, save_on_train_epoch_end=True,
            enable_version_counter=False, auto_insert_metric_name=False,
        )  # fmt: skip
        last = to(filename=CHECKPOINT.stem)
        if not self.config.keep_epochs:
            return [last]
        # Lightning tells two such callbacks apart by what they monitor.
        return [to(filename="epoch-{epoch:03d}", monitor="epoch", save_top_k=-1, save_weights_only=True), last]


class ParsingCLI(TrainingCLI):
    """The training's command line, parsed and checked; nothing is seeded or made."""

    _set_seed = before_instantiate_classes = instantiate_classes = lambda self: None


def command_line(
    arguments: list[str] | None, kind: type[TrainingCLI] = TrainingCLI, more_callbacks: Sequence[L.Callback] = ()
) -> TrainingCLI:
    """The parsed command line of a training, and what ``kind`` makes of it."""
    return kind(
        Classifier, ImageDataModule, more_callbacks=more_callbacks, run=False, args=arguments,
        seed_everything_default=0, save_config_callback=None, auto_configure_optimizers=False,
        trainer_defaults={"max_epochs": 10, "num_sanity_val_steps": 0, "enable_model_summary": False,
                          "log_every_n_steps": 20, "enable_autolog_hparams": False},
        parser_kwargs={"prog": "scripts/train.py", "description": "Train one classifier; see configs/.",
                       "exit_on_error": False, "allow_abbrev": False},
    )  # fmt: skip


def train(arguments: list[str] | None = None, callbacks: Sequence[L.Callback] = ()) -> Path:
    """Train as ``scripts/train.py`` does, by default with the process's own command line, and return the run's folder.

    Several devices are used only with the process's own command line, which their processes are started with again.
    BatchNorm then normalises each device's share of a batch by the statistics of that share, and the running averages
    are the first device's. With ``--trainer.sync_batchnorm true`` both are those of the whole batch, as on one device.
    UserError for bad input, and :class:`NonFiniteLoss`, which is one, when training diverges.
    """
    for advice in IRRELEVANT_ADVICE:
        warnings.filterwarnings("ignore", message=advice)
    for name in ("fabric", "pytorch.utilities.rank_zero", "pytorch.trainer.connectors.signal_connector"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    torch.set_float32_matmul_precision("high")
    try:
        cli = command_line(arguments, more_callbacks=callbacks)
        (_train if is_first_process() else _fit)(cli)
    except NonFiniteLoss:
        if is_first_process():
            raise
        raise SystemExit(2) from None  # the first process says it
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    return cli.run_folder


def _train(cli: TrainingCLI) -> None:
    """Fit, and write the run's files; all of the summary comes from the log and the checkpoint, also after a kill."""
    with _opened(cli) as tracked:
        _fit(cli)
        if cli.trainer.global_step == 0:
            raise UserError("trainer: its limits (max_steps, max_time, limit_train_batches) leave no step to train")
        summary = {
            **{name.removeprefix("validation/"): cli.log.last(name) for name in VALIDATION_METRICS},
            "train_accuracy": cli.log.last("train/accuracy"), "epochs": cli.trainer.current_epoch,
            "seconds": cli.watch.seconds, "images_per_second": cli.watch.images / max(cli.watch.seconds, 1e-9),
            "parameters": sum(p.numel() for p in cli.model.network.parameters()), **made_with(),
        }  # fmt: skip
        write_beside(cli.run_folder / "summary.json", lambda p: p.write_text(json.dumps(summary, indent=2) + "\n"))
        accuracy = "not measured" if summary["accuracy"] is None else f"{summary['accuracy']:.4f}"
        speed = f"{summary['seconds']:.0f} s of training at {summary['images_per_second']:.0f} images/s"
        print(f"{cli.run_folder}: validation accuracy {accuracy}, {speed}")
        tracking.log_checkpoint(tracked, cli.run_folder / CHECKPOINT, cli.config.name, summary)


@contextmanager
def _opened(cli: TrainingCLI) -> Iterator[Any]:
    """The run's folder, locked, with its config, and its W&B run; a new folder goes again if nothing was trained."""
    folder, config, new = cli.run_folder, cli.config, not cli.run_folder.exists()
    options = tracking.TrackingOptions(**config.wandb.as_dict())
    options.enabled = options.enabled and not config.no_wandb
    with locked(folder, "another training writes to it"):
        try:
            cli.check_free()
            write_beside(folder / "config.yaml", lambda path: path.write_text(cli.config_text))
            tags = [f"norm:{config.model.norm}", f"seed:{config.seed_everything}", f"set:{config.data.in_distribution}"]
            tracked = cli.log.tracked = tracking.start_run(
                options, name=config.name, job_type="training", tags=tags, config=yaml.safe_load(cli.config_text),
                folder=folder,
            )  # fmt: skip
            try:
                yield tracked
            finally:
                if line := tracking.finish(tracked):
                    print(line)
        finally:
            if new and not (folder / CHECKPOINT).exists():
                shutil.rmtree(folder, ignore_errors=True)


def _fit(cli: TrainingCLI) -> None:
    checkpoint, launcher = cli.config.ckpt_path, cli.trainer.strategy.launcher
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=None if checkpoint is None else str(checkpoint))
    except (KeyboardInterrupt, SystemExit) as stopped:
        if isinstance(stopped, Terminated) or not cli.trainer.interrupted:
            raise
        raise KeyboardInterrupt from None  # Lightning makes exit status 1 of it
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        if "returned nan values" in str(error):  # under trainer.detect_anomaly
            raise UserError(f"training diverged, choose a smaller model.learning_rate: {error}") from error
        if _is_of_lightnings_callbacks(error):  # they do not fit this training
            raise UserError(f"trainer.callbacks: {error}") from error
        if not cli.watch.begun and checkpoint is not None:
            damage = f"{type(error).__name__}: {str(error)[:200]}"
            raise UserError(f"{checkpoint} can't be resumed, its content is damaged: {damage}") from error
        if not cli.watch.begun and isinstance(error, ValueError):  # Lightning's, for intervals that do not fit
            raise UserError(f"trainer: {error}") from error
        raise
    finally:
        if launcher is not None and cli.trainer.state.status == "interrupted":
            # The other processes write nothing. Lightning's watch over them would kill this one while it cleans up.
            launcher.kill(signal.SIGKILL)
            getattr(launcher, "procs", []).clear()


def _is_of_lightnings_callbacks(error: Exception) -> bool:
    """Whether one of them raised it, or what it called outside of this project."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    last = [each for each in modules if each.startswith(("bnood.", "lightning.pytorch.callbacks."))][-1:]
    return any(each.startswith("lightning.") for each in last)


def _listed(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
