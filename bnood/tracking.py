"""Weights & Biases: a training and an evaluation log one run each, online or offline, in one group.

Every function takes None for a run that is not tracked; what wandb raises after the start becomes one line.
"""

import hashlib
import netrc
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from bnood.errors import UserError, is_first_process

if TYPE_CHECKING:  # and annotations in quotes: jsonargparse would import all of these for --help
    import pandas as pd
    from wandb import Run

INIT_SECONDS, FINISH_SECONDS = 20, 120
MOST_NUMBERS = 23  # with report and table, a summary of 25 keys
DATA_DIR = os.environ.get("WANDB_DATA_DIR")
STEP = "trainer/global_step"  # as Lightning's own logger for wandb has it


@dataclass
class TrackingOptions:
    """What is logged to Weights & Biases, and where.

    Args:
        enabled: whether runs are logged at all.
        project: the project that the runs belong to.
        entity: user or team that owns the project; None for the account's default.
        group: of runs in the project; None: each network with its evaluations.
        tags: beside those that every run gets (norm, seed, set).
        mode: ``offline`` writes files for ``wandb sync``; ``online`` uploads while the run goes on. ``auto`` follows
            WANDB_MODE or wandb's settings, and is online only with an API key. ``WANDB_MODE=disabled`` always wins.
    """

    enabled: bool = True
    project: str = "bnood"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["auto", "online", "offline"] = "auto"


def start_run(
    options: TrackingOptions, *, name: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any], folder: Path
) -> "Run | None":
    """Start a run of its own, also if another one is still open in this process; wandb writes to ``folder/wandb``.

    Without an API key, and where the server cannot be reached or refuses, the run is offline; a line on standard error
    says why. None if tracking is off, if another process of this training tracks it, or if wandb does not work.
    UserError if the folder cannot be written, or if wandb refuses the project, a tag or WANDB_MODE.
    """
    mode = os.environ.get("WANDB_MODE", "")
    if not options.enabled or not is_first_process() or mode == "disabled":
        return None
    if mode not in ("", "online", "offline", "shared", "dryrun", "run"):
        raise UserError(f"the environment's WANDB_MODE is {mode!r}: it has to be online, offline or disabled")
    files = folder / "wandb"
    try:  # wandb itself would carry on in the system's temporary folder
        files.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=files).close()
    except OSError as error:
        raise UserError(f"{files}: cannot be written ({error.strerror}); --no-wandb does without") from error
    # wandb's reports about itself would make the process wait for up to 30 s at its end if the server hangs.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb  # takes about a second

    root, run, obstacle = folder.resolve(), None, ""
    settings: dict[str, Any] = {
        "project": options.project, "entity": options.entity, "run_group": options.group or root.name,
        "run_tags": (*options.tags, *(tag[:64] for tag in tags)), "run_name": name, "run_job_type": job_type,
        "root_dir": str(root), "reinit": "create_new",  # wandb's default would hand out the run that is still open
        "init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True,
        "console": "off", "silent": True, "save_code": False,
    }  # fmt: skip
    try:
        wandb.Settings(**settings)
    except (wandb.Error, ValueError) as error:
        raise UserError(f"wandb: {_one_line(error)}") from error
    with _one_line_warning(f"the run {name} at all"):
        mode = options.mode if options.mode != "auto" else mode or wandb.setup().settings.mode
        if mode == "disabled":
            return None
        if mode not in ("offline", "dryrun"):
            run, obstacle = _start_online(settings, config, asked=options.mode == "online")
        run = run or wandb.init(config=dict(config), settings=wandb.Settings(**settings, mode="offline"))
        if obstacle:
            upload = f"to upload the finished run: {_sync_command(run)}"
            print(f"wandb: logging offline ({obstacle}); {upload}", file=sys.stderr)
        if job_type == "training":
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP, step_sync=True)
    return run


def _start_online(settings: Mapping[str, Any], config: Mapping[str, Any], asked: bool) -> "tuple[Run | None, str]":
    """An online run; or None and why not, "" if there is no API key and being online was not asked for."""
    import wandb

    # wandb itself would ask for a key on the terminal. `wandb login` leaves it in netrc.
    known = bool(os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))
    with suppress(OSError, netrc.NetrcParseError):
        host = urlsplit(str(wandb.setup().settings.base_url)).hostname or ""
        known = known or netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    if not known:
        return None, "no API key: set WANDB_API_KEY or run `wandb login`" if asked else ""
    try:
        return wandb.init(config=dict(config), settings=wandb.Settings(**settings, mode="online")), ""
    except Exception as error:  # wandb raises errors of private classes too; each of them means offline
        return None, _one_line(error)


def log_metrics(run: "Run | None", metrics: Mapping[str, float], step: int | None) -> bool:
    """Log numbers of a training after so many steps; whether that worked."""
    with _one_line_warning("any further metrics"):
        if run is not None:
            run.log({**metrics, STEP: step})
        return True
    return False


def log_checkpoint(run: "Run | None", checkpoint: Path, name: str, summary: Mapping[str, Any]) -> None:
    """Log a checkpoint as an artifact named by its digest, and what its training cost."""
    if run is None:
        return
    with _one_line_warning(f"the checkpoint {checkpoint}"):
        run.summary.update({key: summary[key] for key in ("seconds", "images_per_second", "parameters")})
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        aliases = ["latest", f"sha256-{digest[:16]}"]
        _log_artifact(run, name, "model", [checkpoint], {**summary, "sha256": digest}, aliases)


def use_checkpoint(run: "Run | None", checkpoint: Path, name: str) -> None:
    """Record which checkpoint an evaluation read: path and digest, and online the artifact that has this digest."""
    if run is None:
        return
    with _one_line_warning("which checkpoint was evaluated"):
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        record = {"path": str(checkpoint), "sha256": digest, "artifact": artifact_name(name)}
        run.config.update({"checkpoint": record}, allow_val_change=True)
        if not run.offline:
            name = f"{run.entity}/{run.project}/{record['artifact']}:sha256-{digest[:16]}"
            run.use_artifact(name, type="model")


def log_evaluation(run: "Run | None", folder: Path, table: "pd.DataFrame", primary_sets: Sequence[str] = ()) -> None:
    """Log what an evaluation wrote to ``folder``: numbers of the primary sets, table, report, tables as an artifact."""
    if run is None:
        return
    import wandb

    with _one_line_warning("the evaluation"):
        run.summary.update(summary_numbers(table, primary_sets))
        wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(table))  # beyond, rows are dropped in silence
        text = table.select_dtypes(exclude="number").columns
        content = wandb.Table(dataframe=table.assign(**{each: table[each].astype(object).fillna("") for each in text}))
        run.log({"table": content, "report": wandb.Html((folder / "report.html").read_text(), inject=False)})
        files = sorted([*folder.glob("*.csv"), *folder.glob("*.parquet")])
        _log_artifact(run, f"{run.name}-tables", "evaluation", files)


def summary_numbers(table: "pd.DataFrame", primary_sets: Sequence[str] = ()) -> dict[str, float]:
    """ID accuracy; AUROC and FPR95 of MSP and energy under running and target statistics: 23 numbers at most.

    First the means over the primary sets (else over all), then each set. ``<set>/<statistics>/<detector>/<metric>``.
    """
    plain = table[table["companion"].fillna("") == ""]
    accuracy = plain[(plain["metric"] == "accuracy") & (plain["statistics"] == "running")]["value"]
    numbers = {"id_accuracy": float(accuracy.iloc[0])} if len(accuracy) else {}
    sides = plain["statistics"].isin(("running", "recalibrated:target")) & plain["detector"].isin(("msp", "energy"))
    found = plain[sides & (plain["comparison"] == "ood") & plain["metric"].isin(("auroc", "fpr95"))]
    found = found[found["dataset"].isin(primary_sets)] if primary_sets else found
    keys = ["statistics", "detector", "metric"]
    mean = found.groupby(keys, sort=False)["value"].mean().reset_index().assign(dataset="mean")
    for part in (mean, found[found["metric"] == "auroc"], found[found["metric"] == "fpr95"]):
        for row in part.to_dict("records"):
            parts = (row["dataset"], row["statistics"].removeprefix("recalibrated:"), row["detector"], row["metric"])
            # wandb takes a dot in a key for nesting.
            numbers["/".join(re.sub(r"[^A-Za-z0-9_-]+", "_", str(each)) for each in parts)] = float(row["value"])
    return dict(list(numbers.items())[:MOST_NUMBERS])


def finish(run: "Run | None") -> str | None:
    """Finish a run, as failed if an exception is under way; one line for the user: its address, or how to upload it."""
    if run is None:
        return None
    with _one_line_warning("the end of the run"):
        run.finish(exit_code=int(sys.exc_info()[0] is not None))
        if not run.offline:
            return f"wandb: {run.url}"
    return f"wandb: to upload this run: {_sync_command(run)}"


def artifact_name(name: str) -> str:
    """The artifact name of a network: letters, digits, ``_``, ``-`` and ``.``, at most 128 of them."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]


def _log_artifact(run: Any, name: str, kind: str, files: Sequence[Path], meta: Any = None, aliases: Any = None) -> None:
    """Keep copies of the files in the run's folder until they are uploaded; wandb's default is the home directory."""
    import wandb

    os.environ["WANDB_DATA_DIR"] = DATA_DIR or str(Path(run.dir).parents[1])
    artifact = wandb.Artifact(artifact_name(name), type=kind, metadata=meta)
    for file in files:
        artifact.add_file(str(file), skip_cache=True)
    run.log_artifact(artifact, aliases=aliases)


@contextmanager
def _one_line_warning(what: str) -> Iterator[None]:
    """Turn a failure of wandb, whose error classes are in part private, into one line."""
    try:
        yield
    except Exception as error:
        print(f"wandb: could not log {what}: {_one_line(error)}", file=sys.stderr)


def _sync_command(run: "Run") -> str:
    folder = Path(run.dir).parent  # <folder>/wandb/offline-run-<time>-<id>
    with suppress(ValueError):
        folder = folder.relative_to(Path.cwd())
    return f"wandb sync {shlex.quote(str(folder))}"


def _one_line(error: Exception) -> str:
    """The message without the hints that wandb and pydantic append."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r" Consider increasing the init_timeout| \[type=", text)[0]
