"""The rim to Weights & Biases: training and evaluation each log one run, online or offline.

Every function takes None for a run that is not tracked and does nothing then. Nothing here asks a question on the
terminal, and nothing waits for a network for longer than :data:`INIT_SECONDS` at the start and
:data:`FINISH_SECONDS` at the end of a run. What an online run could not upload stays on disk for ``wandb sync``.

wandb is imported inside the functions: its import takes about a second, which a run with ``--no-wandb`` need not wait.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from bnood.errors import UserError
from bnood.evaluation.headlines import headline_numbers, score_histograms

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger
    from wandb import Run

INIT_SECONDS = 20
FINISH_SECONDS = 120
LONGEST_TAG = 64  # wandb refuses longer ones
STEP = "trainer/global_step"  # the name that Lightning's WandbLogger gives to the step
TRAINING_SUMMARIES = {
    "train/loss": "min,last",
    "train/accuracy": "max,last",
    "validation/loss": "min,last",
    "validation/accuracy": "max,last",
    "validation/nll": "min,last",
    "validation/ece": "min,last",
    "learning_rate": None,
    "epoch": None,
}


@dataclass
class TrackingOptions:
    """What is logged to Weights & Biases, and where.

    Args:
        enabled: whether runs are logged at all; False also spares the import of wandb.
        project: the project that the runs belong to.
        entity: user or team that owns the project; None for the account's default.
        group: groups runs in the project, for instance those of one study; None for no group.
        tags: tags beside those that every run gets (norm, seed, set), of 1 to 64 characters each.
        mode: ``offline`` writes files for ``wandb sync``; ``online`` uploads while the run goes on. ``auto`` follows
            the environment's WANDB_MODE or wandb's own settings, and is online only if an API key is configured.
            ``WANDB_MODE=disabled`` turns logging off whatever is set here.
    """

    enabled: bool = True
    project: str = "bnood"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["auto", "online", "offline"] = "auto"


def start_run(
    options: TrackingOptions,
    *,
    name: str,
    job_type: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
    folder: Path,
) -> Run | None:
    """Start a run of its own, also if another one is still open in this process.

    Without an API key it is offline. If the server cannot be reached or refuses, it is offline too, and one line on
    standard error says why and how to upload it later.

    Args:
        options: section ``wandb`` of the config.
        name: the run's name, as in ``runs/<name>``.
        job_type: ``training`` or ``evaluation``.
        tags: tags of this run, beside those of the options; cut to 64 characters.
        config: everything that the run was configured with; may be nested.
        folder: the run's folder; all files of wandb go to ``folder/wandb``.

    Returns:
        The run. None if tracking is turned off, if this process is not the first of a distributed training, or if
        wandb does not work even offline, which takes one line and nothing else from the run.

    Raises:
        UserError: if the folder cannot be written, or if wandb refuses the project, a tag or WANDB_MODE.
    """
    if not options.enabled or not _is_first_process():
        return None
    mode = _environment_mode()
    if mode == "disabled":
        return None
    root = _writable(folder)
    if "wandb" not in sys.modules:
        # wandb's reports about itself would make the process wait for up to 30 s at its end if the server hangs.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    mode = options.mode if options.mode != "auto" else mode or wandb.setup().settings.mode
    if mode == "disabled":
        return None
    settings = _checked_settings(options, name, job_type, tags, root)
    run, obstacle = None, ""
    if mode not in ("offline", "dryrun"):
        run, obstacle = _start_online(settings, config, asked=options.mode == "online")
    if run is None:
        with _one_line_warning(f"the run {name} at all"):
            run = wandb.init(config=dict(config), settings=wandb.Settings(**settings, mode="offline"))
    if run is not None and obstacle:
        line = f"wandb: logging offline ({obstacle}); to upload the finished run: {_sync_command(run)}"
        print(line, file=sys.stderr)
    return run


def lightning_logger(run: Run | None) -> WandbLogger | None:
    """Lightning's logger on this run. It leaves checkpoints alone; see :func:`log_checkpoint`.

    Put it behind the CSV logger: the trainer's ``log_dir`` is that of the first logger. If wandb fails while metrics
    are logged, one line says so, and the training goes on without it.
    """
    if run is None:
        return None
    from lightning.pytorch.loggers import WandbLogger

    class SurvivingLogger(WandbLogger):
        broken = False

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            if not self.broken:
                self.broken = True
                with _one_line_warning("any further metrics"):
                    super().log_metrics(metrics, step)
                    self.broken = False

    return SurvivingLogger(
        experiment=run, log_model=False, save_dir=run.settings.root_dir, project=run.project, name=run.name
    )


def define_training_metrics(run: Run | None) -> None:
    """Set the step of all metrics and what the summary keeps: the best and the last value of each.

    WandbLogger defines its step only for runs that it starts itself, so this has to. The summary of a metric then is
    a mapping, for instance ``{"max": 0.95, "last": 0.94}`` for ``validation/accuracy``.
    """
    if run is None:
        return
    with _one_line_warning("metric definitions"):
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        for metric, summary in TRAINING_SUMMARIES.items():
            run.define_metric(metric, step_metric=STEP, step_sync=True, summary=summary)


def log_checkpoint(run: Run | None, checkpoint: Path, name: str, metadata: Mapping[str, Any]) -> None:
    """Log a checkpoint as an artifact of type ``model`` that this run made.

    Args:
        run: the training run.
        checkpoint: the file; its content now is what counts, a later one under the same name does not.
        name: the name of the training run; characters that artifacts may not have become ``-``.
        metadata: shown with the artifact, for instance its accuracy.
    """
    if run is None:
        return
    import wandb

    with _one_line_warning(f"the checkpoint {checkpoint}"), _staged_in_run_folder(run):
        artifact = wandb.Artifact(artifact_name(name), type="model", metadata=dict(metadata))
        artifact.add_file(str(checkpoint))
        run.log_artifact(artifact)


def use_checkpoint(run: Run | None, checkpoint: Path, name: str) -> None:
    """Record which checkpoint an evaluation run consumed.

    The file's path and sha256 go into the run's config, under ``checkpoint``. Online, the training run's artifact is
    declared the run's input as well; offline that is impossible, and the local file serves.

    Args:
        run: the evaluation run.
        checkpoint: the file that was read.
        name: the name of the training run, as given to :func:`log_checkpoint`.
    """
    if run is None:
        return
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    record = {"path": str(checkpoint), "sha256": digest, "artifact": artifact_name(name)}
    with _one_line_warning("the checkpoint's path"):
        run.config.update({"checkpoint": record}, allow_val_change=True)
    if run.offline:
        return
    import wandb

    with _one_line_warning(f"the artifact {record['artifact']} as the run's input"):
        # Not run.use_artifact(name): that raises a bare ValueError where this raises wandb's own error.
        found = wandb.Api().artifact(f"{run.entity}/{run.project}/{record['artifact']}:latest", type="model")
        run.use_artifact(found)


def log_evaluation(run: Run | None, table: pd.DataFrame, scores: pd.DataFrame, figures: Sequence[Path]) -> None:
    """Log an evaluation: metric table, headline numbers, score histograms and figures.

    Args:
        run: the evaluation run.
        table: the tidy metric table (``table.csv``); becomes ``ood/table``, its headlines the run's summary.
        scores: one row per image and condition (``scores.parquet``); shuffle 0 becomes histograms ``scores/...``.
        figures: PNG files; each becomes ``figures/<stem>``.
    """
    if run is None:
        return
    import wandb

    with _one_line_warning("the evaluation"), _staged_in_run_folder(run):
        numbers = headline_numbers(table)
        for key in numbers:
            run.define_metric(key, summary="last")
        run.summary.update(numbers)
        wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(table))  # beyond, rows are dropped, silently here
        text = table.select_dtypes(exclude="number").columns
        content = table.assign(**{column: table[column].astype(object).fillna("") for column in text})
        logged: dict[str, Any] = {"ood/table": wandb.Table(dataframe=content)}
        for key, histogram in score_histograms(scores).items():
            logged[key] = wandb.Histogram(np_histogram=histogram)
        for figure in figures:
            logged[f"figures/{figure.stem}"] = wandb.Image(str(figure))
        run.log(logged)


def finish(run: Run | None) -> str | None:
    """Finish a run; it counts as failed if an exception is under way (call this in ``finally``).

    Returns:
        One line for the user: how to upload the run if it is offline or did not upload in time, else its address.
    """
    if run is None:
        return None
    complete = False
    with _one_line_warning("the end of the run"):
        run.finish(exit_code=int(sys.exc_info()[0] is not None))
        complete = True
    if run.offline or not complete:
        return f"wandb: to upload this run: {_sync_command(run)}"
    return f"wandb: {run.url}"


def artifact_name(name: str) -> str:
    """The artifact name of a run's checkpoint: letters, digits, ``_``, ``-`` and ``.``, at most 128 of them."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]


def _environment_mode() -> str:
    """WANDB_MODE, or "" if it is not set."""
    mode = os.environ.get("WANDB_MODE", "")
    known = ("online", "offline", "disabled", "shared", "dryrun", "run")
    if mode and mode not in known:
        raise UserError(f"the environment's WANDB_MODE is {mode!r}: it has to be online, offline or disabled")
    return mode


def _is_first_process() -> bool:
    """Whether this is the only process of a training or the one with rank 0: the others log nothing."""
    return all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def _writable(folder: Path) -> Path:
    """The folder, absolute, after a test that ``folder/wandb`` can be written.

    wandb itself would carry on in the system's temporary folder, where nobody looks for the run.
    """
    probe = folder / "wandb" / f".{os.getpid()}.probe"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{probe.parent}: cannot be written ({error.strerror}); choose another folder or turn wandb off"
        ) from error
    return folder.resolve()


def _checked_settings(
    options: TrackingOptions, name: str, job_type: str, tags: Sequence[str], root: Path
) -> dict[str, Any]:
    """The settings of a run, but for its mode, after a test that wandb accepts them."""
    import wandb

    for tag in options.tags:
        if not 1 <= len(tag) <= LONGEST_TAG:
            raise UserError(f"wandb.tags: {tag!r} has {len(tag)} characters, but a tag has 1 to {LONGEST_TAG}")
    settings: dict[str, Any] = {
        "project": options.project,
        "entity": options.entity,
        "run_group": options.group,
        "run_tags": (*options.tags, *(tag[:LONGEST_TAG] for tag in tags if tag)),
        "run_name": name,
        "run_job_type": job_type,
        "root_dir": str(root),
        "reinit": "create_new",  # wandb's default would hand out the run that is still open
        "init_timeout": INIT_SECONDS,
        "finish_timeout": FINISH_SECONDS,
        "finish_timeout_raises": True,
        "console": "off",
        "silent": True,
        "save_code": False,
    }
    try:
        wandb.Settings(**settings)
    except (wandb.Error, ValueError) as error:
        raise UserError(f"wandb: {_one_line(error)}") from error
    return settings


def _start_online(settings: Mapping[str, Any], config: Mapping[str, Any], asked: bool) -> tuple[Run | None, str]:
    """An online run; or None and why not, which is "" if there is no API key and being online was not asked for."""
    import wandb

    # There is no public question that neither prompts, nor prints, nor writes settings, nor needs the network.
    from wandb.sdk.lib.wbauth import authenticate_session

    host, attempt = wandb.setup().settings.base_url, secrets.token_hex(4)
    try:
        if authenticate_session(host=host, source="bnood", prompt=False, update_session=False) is None:
            return None, "no API key: set WANDB_API_KEY or run `wandb login`" if asked else ""
        return wandb.init(config=dict(config), settings=wandb.Settings(**settings, mode="online", run_id=attempt)), ""
    except _failures() as error:
        for remains in Path(settings["root_dir"], "wandb").glob(f"run-*-{attempt}*"):
            shutil.rmtree(remains, ignore_errors=True)  # an empty run, which `wandb sync` would upload
        return None, _one_line(error)


def _failures() -> tuple[type[Exception], ...]:
    """What wandb raises when a server or its own service process fails; three of its errors are not wandb.Error."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return wandb.Error, OSError, WandbApiFailedError, HandleAbandonedError, MailboxClosedError


@contextmanager
def _one_line_warning(what: str) -> Iterator[None]:
    """Turn a failure of wandb into one line: what was computed lies in the run's folder and must not be lost."""
    try:
        yield
    except _failures() as error:
        print(f"wandb: could not log {what}: {_one_line(error)}", file=sys.stderr)


@contextmanager
def _staged_in_run_folder(run: Run) -> Iterator[None]:
    """Keep the copies of an artifact's files beside the run's own files until they are uploaded.

    wandb's default is a folder in the home directory, which then holds a copy of every checkpoint of every offline
    run, and which on some clusters cannot be written.
    """
    before = os.environ.get("WANDB_DATA_DIR")
    if before is None:
        os.environ["WANDB_DATA_DIR"] = str(Path(run.settings.root_dir, "wandb"))
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]


def _sync_command(run: Run) -> str:
    folder = Path(run.settings.sync_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    return f"wandb sync {shlex.quote(str(folder))}"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(" Consider increasing the init_timeout")[0]
