"""Weights & Biases: a training and an evaluation log one run each, online or offline, in one group.

Every function takes None for a run that is not tracked and does nothing then. Nothing here asks a question on the
terminal. W&B must never cost a result: whatever it raises after the start becomes one line on standard error.

wandb is imported inside the functions: its import takes about a second, which ``--no-wandb`` need not wait for.
"""

from __future__ import annotations

import hashlib
import netrc
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
from urllib.parse import urlsplit

from bnood.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from lightning.pytorch.loggers import WandbLogger
    from wandb import Run

INIT_SECONDS, FINISH_SECONDS = 20, 120
LONGEST_TAG = 64  # wandb refuses longer ones
MOST_NUMBERS = 22  # with report and table, a summary of at most 25 keys
STEP = "trainer/global_step"  # the name that Lightning's WandbLogger gives to the step
TRAINING_SUMMARIES = {
    "train/loss": "min,last", "train/accuracy": "max,last", "validation/loss": "min,last",
    "validation/accuracy": "max,last", "validation/nll": "min,last", "validation/ece": "min,last",
    "learning_rate": None, "epoch": None,
}  # fmt: skip


@dataclass
class TrackingOptions:
    """What is logged to Weights & Biases, and where.

    Args:
        enabled: whether runs are logged at all; False also saves the import of wandb.
        project: the project that the runs belong to.
        entity: user or team that owns the project; None for the account's default.
        group: groups runs in the project; None: each network with its evaluations.
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
        name: the run's name.
        job_type: ``training`` or ``evaluation``.
        tags: tags of this run, beside those of the options; cut to 64 characters.
        config: everything that the run was configured with; may be nested.
        folder: the network's folder; all files of wandb go to ``folder/wandb``, and its name is the default group.

    Returns:
        The run. None if tracking is off, if this process is not the first of a distributed training, or if wandb does
        not work even offline.

    Raises:
        UserError: if the folder cannot be written, or if wandb refuses the project, a tag or WANDB_MODE.
    """
    first = all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    mode = os.environ.get("WANDB_MODE", "")
    if not options.enabled or not first or mode == "disabled":
        return None
    if mode and mode not in ("online", "offline", "shared", "dryrun", "run"):
        raise UserError(f"the environment's WANDB_MODE is {mode!r}: it has to be online, offline or disabled")
    root = _writable(folder)
    if "wandb" not in sys.modules:
        # wandb's reports about itself would make the process wait for up to 30 s at its end if the server hangs.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = _checked_settings(options, name, job_type, tags, root)
    run, obstacle = None, ""
    with _one_line_warning(f"the run {name} at all"):
        mode = options.mode if options.mode != "auto" else mode or wandb.setup().settings.mode
        if mode == "disabled":
            return None
        if mode not in ("offline", "dryrun"):
            run, obstacle = _start_online(settings, config, asked=options.mode == "online")
        if run is None:
            run = wandb.init(config=dict(config), settings=wandb.Settings(**settings, mode="offline"))
    if run is not None and obstacle:
        print(f"wandb: logging offline ({obstacle}); to upload the finished run: {_sync_command(run)}", file=sys.stderr)
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

    return SurvivingLogger(experiment=run, log_model=False, save_dir=run.dir, project=run.project, name=run.name)


def define_training_metrics(run: Run | None) -> None:
    """Set the step of all metrics and what the summary keeps, for instance ``{"max": 0.95, "last": 0.94}``.

    WandbLogger defines its step only for runs that it starts itself, so this has to.
    """
    if run is None:
        return
    with _one_line_warning("metric definitions"):
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        for metric, summary in TRAINING_SUMMARIES.items():
            run.define_metric(metric, step_metric=STEP, step_sync=True, summary=summary)


def log_summary(run: Run | None, numbers: Mapping[str, float]) -> None:
    """Put numbers into the summary: seconds, images_per_second and parameters of a training, for instance."""
    if run is not None:
        with _one_line_warning("the summary"):
            run.summary.update(dict(numbers))


def log_checkpoint(run: Run | None, checkpoint: Path, name: str, metadata: Mapping[str, Any]) -> None:
    """Log a checkpoint as an artifact of type ``model``; its alias is its digest, which evaluations refer to.

    Args:
        run: the training run.
        checkpoint: the file; its content now is what counts. One copy of it is kept in the run's folder.
        name: the name of the network; characters that artifacts may not have become ``-``.
        metadata: shown with the artifact, for instance its accuracy.
    """
    if run is None:
        return
    import wandb

    with _one_line_warning(f"the checkpoint {checkpoint}"), _copies_in_run_folder(run):
        digest = _digest(checkpoint)
        artifact = wandb.Artifact(artifact_name(name), type="model", metadata={**metadata, "sha256": digest})
        artifact.add_file(str(checkpoint), skip_cache=True)
        run.log_artifact(artifact, aliases=["latest", _alias(digest)])


def use_checkpoint(run: Run | None, checkpoint: Path, name: str) -> None:
    """Record which checkpoint an evaluation consumed: path and sha256 in the config, online also the artifact.

    The artifact is found by the file's digest, so that it is the very network that was evaluated.
    """
    if run is None:
        return
    with _one_line_warning("which checkpoint was evaluated"):
        digest = _digest(checkpoint)
        record = {"path": str(checkpoint), "sha256": digest, "artifact": artifact_name(name)}
        run.config.update({"checkpoint": record}, allow_val_change=True)
        if not run.offline:
            import wandb

            found = f"{run.entity}/{run.project}/{record['artifact']}:{_alias(digest)}"
            run.use_artifact(wandb.Api().artifact(found, type="model"))


def log_evaluation(run: Run | None, folder: Path, table: pd.DataFrame, primary_sets: Sequence[str] = ()) -> None:
    """Log an evaluation: numbers into the summary, the table, the report, and all tables as one artifact.

    Args:
        run: the evaluation run.
        folder: what the evaluation wrote: ``*.csv``, ``*.parquet``, ``report.html``.
        table: the content of ``table.csv``.
        primary_sets: the OOD sets in the summary; all of them if none is named.
    """
    if run is None:
        return
    import wandb

    with _one_line_warning("the evaluation"), _copies_in_run_folder(run):
        run.summary.update(summary_numbers(table, primary_sets))
        wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(table))  # beyond, rows are dropped in silence
        text = table.select_dtypes(exclude="number").columns
        content = table.assign(**{column: table[column].astype(object).fillna("") for column in text})
        logged: dict[str, Any] = {"table": wandb.Table(dataframe=content)}
        report = folder / "report.html"
        if report.exists():
            logged["report"] = wandb.Html(report.read_text(), inject=False)
        run.log(logged)
        artifact = wandb.Artifact(artifact_name(f"{run.name}-tables"), type="evaluation")
        for file in sorted([*folder.glob("*.csv"), *folder.glob("*.parquet")]):
            artifact.add_file(str(file), skip_cache=True)
        run.log_artifact(artifact)


def summary_numbers(table: pd.DataFrame, primary_sets: Sequence[str] = ()) -> dict[str, float]:
    """At most :data:`MOST_NUMBERS` figures of an evaluation, the most general first.

    ID accuracy, then AUROC and FPR95 of MSP and energy under running and target statistics: their mean over the
    primary sets, then AUROC of each set, then FPR95 of each set. Keys are ``<set>/<statistics>/<detector>/<metric>``.
    """
    plain = table[table["companion"].fillna("") == ""]
    accuracy = plain[(plain["metric"] == "accuracy") & (plain["statistics"] == "running")]["value"]
    numbers = {"id_accuracy": float(accuracy.iloc[0])} if len(accuracy) else {}
    found = plain[(plain["comparison"] == "ood") & plain["detector"].isin(("msp", "energy"))]
    sets = list(primary_sets) or list(dict.fromkeys(found["dataset"]))
    rows = found[found["dataset"].isin(sets)].set_index(["metric", "statistics", "detector", "dataset"])["value"]
    for metrics, names in ((("auroc", "fpr95"), ["mean"]), (("auroc",), sets), (("fpr95",), sets)):
        for name in names:
            for metric in metrics:
                for statistics in ("running", "recalibrated:target"):
                    for detector in ("msp", "energy"):
                        wanted = sets if name == "mean" else [name]
                        values = [float(rows[key]) for each in wanted
                                  if (key := (metric, statistics, detector, each)) in rows.index]  # fmt: skip
                        if values:
                            slug = statistics.replace("recalibrated:", "")
                            numbers[f"{_plain(name)}/{slug}/{detector}/{metric}"] = sum(values) / len(values)
    return dict(list(numbers.items())[:MOST_NUMBERS])


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
    return f"wandb: {run.url}" if complete and not run.offline else f"wandb: to upload this run: {_sync_command(run)}"


def artifact_name(name: str) -> str:
    """The artifact name of a network: letters, digits, ``_``, ``-`` and ``.``, at most 128 of them."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _alias(digest: str) -> str:
    return f"sha256-{digest[:16]}"


def _plain(name: str) -> str:
    """A set's name as part of a key; wandb takes a dot for nesting."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


def _writable(folder: Path) -> Path:
    """The folder, absolute. wandb itself would carry on in the system's temporary folder, where nobody looks."""
    probe = folder / "wandb" / f".{os.getpid()}.probe"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{probe.parent}: cannot be written ({error.strerror}); turn wandb off to do without") from error
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
        "project": options.project, "entity": options.entity, "run_group": options.group or root.name,
        "run_tags": (*options.tags, *(tag[:LONGEST_TAG] for tag in tags if tag)), "run_name": name,
        "run_job_type": job_type, "root_dir": str(root),
        "reinit": "create_new",  # wandb's default would hand out the run that is still open
        "init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True,
        "console": "off", "silent": True, "save_code": False,
    }  # fmt: skip
    try:
        wandb.Settings(**settings)
    except (wandb.Error, ValueError) as error:
        raise UserError(f"wandb: {_one_line(error)}") from error
    return settings


def _start_online(settings: Mapping[str, Any], config: Mapping[str, Any], asked: bool) -> tuple[Run | None, str]:
    """An online run; or None and why not, which is "" if there is no API key and being online was not asked for."""
    import wandb

    if not _has_key(str(wandb.setup().settings.base_url)):
        return None, "no API key: set WANDB_API_KEY or run `wandb login`" if asked else ""
    attempt = secrets.token_hex(4)
    try:
        return wandb.init(config=dict(config), settings=wandb.Settings(**settings, mode="online", run_id=attempt)), ""
    except Exception as error:  # wandb raises errors of private classes too; each of them means offline
        for remains in Path(settings["root_dir"], "wandb").glob(f"run-*-{attempt}*"):
            shutil.rmtree(remains, ignore_errors=True)  # an empty run, which `wandb sync` would upload
        return None, _one_line(error)


def _has_key(address: str) -> bool:
    """Whether there is an API key: in the environment, or where ``wandb login`` leaves it. wandb itself would ask."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for file in (Path(name).expanduser() for name in files):
        try:
            if file.is_file() and netrc.netrc(str(file)).authenticators(urlsplit(address).hostname or ""):
                return True
        except (netrc.NetrcParseError, OSError):
            continue
    return False


@contextmanager
def _one_line_warning(what: str) -> Iterator[None]:
    """Turn a failure of wandb into one line: what was computed lies in the run's folder and must not be lost."""
    try:
        yield
    except Exception as error:  # any: wandb raises errors of private classes when its service process fails
        print(f"wandb: could not log {what}: {_one_line(error)}", file=sys.stderr)


@contextmanager
def _copies_in_run_folder(run: Run) -> Iterator[None]:
    """Keep the copies of an artifact's files beside the run's own files until they are uploaded.

    wandb's default is a folder in the home directory, which on some clusters cannot be written.
    """
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ.setdefault("WANDB_DATA_DIR", str(_own_folder(run).parent))
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]


def _own_folder(run: Run) -> Path:
    """``<folder>/wandb/offline-run-<time>-<id>``."""
    return Path(run.dir).parent


def _sync_command(run: Run) -> str:
    folder = _own_folder(run)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    return f"wandb sync {shlex.quote(str(folder))}"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(" Consider increasing the init_timeout")[0]
