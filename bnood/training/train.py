"""Training one network from a typed config (LightningCLI), into ``runs/<name>/``."""

import json
import logging
import shlex
import shutil
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bnood import tracking
from bnood.data.datamodule import ImageDataModule
from bnood.errors import Terminated, UserError, is_first_process
from bnood.training.atomic import locked, write_beside
from bnood.training.callbacks import Begun, MetricsLog, ProgressBar, RunFiles, Stopwatch
from bnood.training.checks import check_config, check_data, take_one_device
from bnood.training.classifier import Classifier, NonFiniteLoss
from bnood.training.command_line import one_line_parsing
from bnood.training.provenance import commit, machine, versions
from bnood.training.resume import check_resumable, settings_that_decide
from bnood.training.run_folder import CHECKPOINT, read_checkpoint


class TrainingCLI(LightningCLI):
    """The command line of ``scripts/train.py``: trainer, data and model are made, nothing is written."""

    run_folder: Path
    config_text: str
    log: MetricsLog
    watch: Stopwatch
    begun: Begun

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
        """Parse, with one line for what is wrong, and before anything is written."""
        with one_line_parsing(parser, args):
            super().parse_arguments(parser, args)
        check_config(self.config)
        if args is not None:
            take_one_device(self.config.trainer)

    def before_instantiate_classes(self) -> None:
        """Name the run, and refuse to write over another one."""
        config = self.config
        if config.name is None:
            config.name = default_name(config)
        if config.name in ("", ".", "..") or Path(config.name).name != config.name:
            raise UserError(
                f"name is {config.name!r}: it names a folder in {config.runs}, so it can't be or have a path"
            )
        self.run_folder = Path(config.runs) / config.name
        self.check_free()

    def check_free(self) -> None:
        """Raise :class:`UserError` if the run's folder holds a network that this training does not resume."""
        if self.config.ckpt_path is not None:
            read_checkpoint(Path(self.config.ckpt_path))
        trained = self.run_folder / CHECKPOINT
        if trained.exists() and not self._resumes_in_place():
            raise UserError(
                f"{self.run_folder} already holds a trained network: choose another --name, "
                f"or resume with --ckpt_path {trained}"
            )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that will write its log and its checkpoints into the run's folder.

        The images are loaded first, so that what is wrong with them shows before there is a folder.
        """
        self.datamodule.setup("fit")
        resumed, in_place = self.config.ckpt_path, self._resumes_in_place()
        done = int(read_checkpoint(Path(resumed)).get("global_step", 0)) if in_place else 0
        self.log, self.watch, self.begun = MetricsLog(self.run_folder / "metrics.csv", done), Stopwatch(), Begun()
        files, given = RunFiles(self.log), self.config_init.trainer
        callbacks = [*_listed(given.callbacks), *self.more_callbacks, *self._checkpoints(), self.watch, self.begun]
        if given.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        try:
            trainer = super().instantiate_trainer(
                logger=self.log, callbacks=callbacks, plugins=[*_listed(given.plugins), files],
                default_root_dir=str(self.run_folder), **kwargs,
            )  # fmt: skip
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            if isinstance(error, UserError):
                raise
            # Lightning's, for devices, an accelerator, a strategy or callbacks that it does not take.
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        check_data(self.datamodule, self.model, trainer.world_size)
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        config.pop("ckpt_path", None)
        self.config_text = yaml.safe_dump(config, sort_keys=False)
        files.settings = settings_that_decide(config) | {"trainer.devices": trainer.world_size}
        if resumed is not None:
            finished = in_place and (self.run_folder / "summary.json").exists()
            check_resumable(Path(resumed), files.settings, self.model, self.datamodule, finished)
        return trainer

    def _resumes_in_place(self) -> bool:
        own, resumed = self.run_folder / CHECKPOINT, self.config.ckpt_path
        return resumed is not None and own.exists() and own.samefile(resumed)

    def _checkpoints(self) -> list[ModelCheckpoint]:
        """``last.ckpt``, written over after every epoch, behind everything else that is kept of the epoch.

        Not by save_last with save_top_k=0: since Lightning 2.6 that writes nothing before the training has ended, and
        a killed run would be lost.
        """
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
    """The training's command line, parsed and checked; nothing is made."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


def default_name(config: Any) -> str:
    """``cifar10-resnet18x16-bn-s0``: set, network, norm and seed of a training config."""
    model, images = config.model, Path(config.data.in_distribution).stem
    return f"{images}-{model.architecture}{model.depth}x{model.width}-{model.norm}-s{config.seed_everything}"


def train(arguments: list[str] | None = None, callbacks: Sequence[L.Callback] = ()) -> Path:
    """Train as ``scripts/train.py`` does.

    Several devices are used only with the process's own command line, which their processes are started with again.
    BatchNorm then normalises each device's share of a batch by the statistics of that share, and the running averages
    are the first device's. With ``--trainer.sync_batchnorm true`` both are those of the whole batch, as on one device.

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
        cli = command_line(arguments, more_callbacks=callbacks)
        if is_first_process():
            _train(cli)
        else:
            _fit(cli)
    except NonFiniteLoss:
        if is_first_process():
            raise
        raise SystemExit(2) from None  # the first process says it
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    return cli.run_folder


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


def _train(cli: TrainingCLI) -> None:
    """What the first process does: it fits and writes the run's files."""
    with _opened(cli) as tracked:
        _fit(cli)
        if cli.trainer.global_step == 0:
            raise UserError("trainer: its limits (max_steps, max_time, limit_train_batches) leave no step to train")
        summary = summarise(cli)
        write_beside(cli.run_folder / "summary.json", lambda p: p.write_text(json.dumps(summary, indent=2) + "\n"))
        accuracy = "not measured" if summary["accuracy"] is None else f"{summary['accuracy']:.4f}"
        print(
            f"{cli.run_folder}: validation accuracy {accuracy}, {summary['seconds']:.0f} s of training "
            f"at {summary['images_per_second']:.0f} images/s"
        )
        tracking.log_checkpoint(tracked, cli.run_folder / CHECKPOINT, cli.config.name, summary)


@contextmanager
def _opened(cli: TrainingCLI) -> Iterator[Any]:
    """The run's folder, locked, with its config, and its W&B run; a new folder goes again if nothing was trained."""
    folder, new = cli.run_folder, not cli.run_folder.exists()
    with locked(folder, "another training writes to it"):
        try:
            cli.check_free()
            write_beside(folder / "config.yaml", lambda path: path.write_text(cli.config_text))
            tracked = _start_tracking(cli)
            try:
                yield tracked
            finally:
                line = tracking.finish(tracked)
                if line:
                    print(line)
        finally:
            if new and not (folder / CHECKPOINT).exists():
                shutil.rmtree(folder, ignore_errors=True)


def _start_tracking(cli: TrainingCLI) -> Any:
    config = cli.config
    options = tracking.TrackingOptions(**config.wandb.as_dict())
    options.enabled = options.enabled and not config.no_wandb
    tracked = tracking.start_run(
        options,
        name=config.name,
        job_type="training",
        tags=[f"norm:{config.model.norm}", f"seed:{config.seed_everything}", f"set:{config.data.in_distribution}"],
        config=yaml.safe_load(cli.config_text),
        folder=cli.run_folder,
    )
    logger = tracking.lightning_logger(tracked)
    if logger is not None:
        cli.trainer.loggers = [*cli.trainer.loggers, logger]
    return tracked


def _fit(cli: TrainingCLI) -> None:
    checkpoint = cli.config.ckpt_path
    launcher = cli.trainer.strategy.launcher
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=None if checkpoint is None else str(checkpoint))
    except (KeyboardInterrupt, SystemExit) as stopped:
        if isinstance(stopped, Terminated) or not cli.trainer.interrupted:
            raise
        last = cli.run_folder / CHECKPOINT
        if last.is_file() and is_first_process():
            again = ["--config", str(cli.run_folder / "config.yaml"), "--ckpt_path", str(last)]
            print(f"to go on: python scripts/train.py {shlex.join(again)}")
        raise KeyboardInterrupt from None  # Lightning makes exit status 1 of it
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if cli.begun.training or isinstance(error, UserError | MisconfigurationException):
            raise
        reason = " ".join(str(error).split())[:200]
        if checkpoint is None and isinstance(error, ValueError):  # Lightning's, for intervals that do not fit
            raise UserError(f"trainer: {reason}") from error
        if checkpoint is None:
            raise
        raise UserError(
            f"{checkpoint} can't be resumed, its content is damaged: {type(error).__name__}: {reason}"
        ) from error
    finally:
        if launcher is not None and cli.trainer.state.status == "interrupted":
            # The other processes write nothing. Lightning's watch over them would kill this one while it cleans up.
            launcher.kill(signal.SIGKILL)
            getattr(launcher, "procs", []).clear()


def summarise(cli: TrainingCLI) -> dict[str, Any]:
    """The contents of ``summary.json``; None for what was not measured (validation can be turned off).

    All of it comes from the log and the checkpoint, so that a run that was killed behind its last checkpoint can be
    completed by resuming it.
    """
    return {
        "accuracy": cli.log.last("validation/accuracy"),
        "nll": cli.log.last("validation/nll"),
        "ece": cli.log.last("validation/ece"),
        "train_accuracy": cli.log.last("train/accuracy"),
        "epochs": cli.trainer.current_epoch,
        "seconds": cli.watch.seconds,
        "images_per_second": cli.watch.images / max(cli.watch.seconds, 1e-9),
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
    """Leave out Lightning's advice that does not apply."""
    for advice in (
        ".*is smaller than the logging interval.*",
        ".*LightningCLI's args parameter is intended to run from within.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The dirpath has changed from .*",
        ".*when logging on epoch level in distributed setting.*",  # what is logged is the same in all processes
    ):
        warnings.filterwarnings("ignore", message=advice)
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    torch.set_float32_matmul_precision("high")
