"""Kill every program with SIGKILL, at its write events and at random moments, and run the same command again.

    python tests/campaigns/kill.py [--kills 100] [--seed 0] [--programs training,evaluation,study,lab]

After every kill the command is run again until it ends. The folder then has to hold the files of a run that was never
killed, no others, with the same weights bit for bit and the same rows. Prints one line for each program, and exits with
status 1 if anything was lost. 100 kills take about five minutes on two cores.

The modules are imported once; every run is a fork, so that hundreds of them take minutes and not hours.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from tiny_runs import data_root, evaluation_arguments, training_arguments

from bnood.errors import run_door
from bnood.training.train import train

CHECKPOINT = Path("checkpoints", "last.ckpt")
PROGRAMS_AT_ONCE = 2
# What says when and how fast a run was: may differ.
CLOCKS = {"seconds", "images_per_second", "command", "commit", "machine", "runs"}
# In the record of an evaluation: the digest of a checkpoint, which holds the seconds of its training.
CLOCKS |= {"checkpoint"}


@dataclass(frozen=True)
class Program:
    """One program of the campaign.

    Attributes:
        share: of all kills.
        run: runs the program on a folder, as its command line does, or goes on with what is there.
        prepare: fills a new folder with what the program starts from.
    """

    share: float
    run: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None


class Watch:
    """Counts the write events below a folder, and kills this process at one of them."""

    def __init__(self, folder: Path, fatal: int | None) -> None:
        self.folder, self.fatal, self.count = str(folder), fatal, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook: opening for writing, renaming, making and removing files and folders."""
        writes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes and str(arguments[0]).startswith(self.folder):
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Ended:
    """How a forked run ended: its exit status (negative: the signal), seconds, write events, and what it printed."""

    status: int
    seconds: float
    events: int
    output: str


def forked(program: Program, folder: Path, fatal: int | None = None, after: float | None = None) -> Ended:
    """Run a program in a child that is killed at a write event, or after some seconds, or not at all."""
    log, counted = folder.with_suffix(".log"), folder.with_suffix(".events")
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_child(program, folder, fatal, log, counted)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)  # where it has ended by itself, nothing happens: it is not yet waited for
    _, raw = os.waitpid(child, 0)
    events = int(counted.read_text()) if counted.exists() else 0
    counted.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(raw), time.monotonic() - started, events, log.read_text())


def _be_child(program: Program, folder: Path, fatal: int | None, log: Path, counted: Path) -> None:
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
        watch = Watch(folder, fatal)
        sys.addaudithook(watch)
        try:
            run_door(lambda: program.run(folder))
            status = 0
        finally:
            counted.write_text(str(watch.count))
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder as what has to be the same: weights, rows, values; pages and pictures by name alone."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else _content(path)
        for path in sorted(folder.rglob("*"))
    }


def _content(path: Path) -> Any:
    if path.suffix == ".ckpt":
        state = torch.load(path, weights_only=True)["state_dict"]
        return {key: value.numpy().tobytes() for key, value in state.items()}
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_csv()
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=CLOCKS & {*table}).to_csv()
    if path.suffix == ".yaml":
        return _without_clocks(yaml.safe_load(path.read_text()))
    if path.suffix == ".json":
        return _without_clocks(json.loads(path.read_text()))
    return "a file"


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(each) for key, each in value.items() if not CLOCKS & {key, key.split("_")[0]}}
    return [_without_clocks(each) for each in value] if isinstance(value, list) else value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What was lost, is left over, or differs."""
    lines = [f"{name} is missing" for name in expected if name not in found]
    lines += [f"{name} is left over" for name in found if name not in expected]
    return lines + [f"{name} differs" for name in expected if name in found and found[name] != expected[name]]


def campaign(name: str, kills: int, seed: int, place: Path) -> list[str]:
    """Kill one program so many times; what went wrong."""
    program, draws = PROGRAMS[name], random.Random(seed)
    folder = _prepared(program, place / name)
    plain = forked(program, folder)
    if plain.status != 0 or plain.events == 0:
        return [f"{name} fails or writes nothing without a kill: {_last_line(plain)}"]
    expected = contents(folder)
    at_events = max(1, min(plain.events, kills * 2 // 3))
    plans: list[dict[str, Any]] = [
        {"fatal": round(1 + step * (plain.events - 1) / max(1, at_events - 1))} for step in range(at_events)
    ]
    plans += [{"after": draws.uniform(0, plain.seconds)} for _ in range(kills - at_events)]
    wrong, done = [], 0
    while done < len(plans):
        # Every third run is killed twice: the second time while it goes on.
        lived = plans[done : done + (2 if done % 3 == 2 else 1)]
        folder = _prepared(program, place / name)  # always the same, because records hold paths
        for plan in lived:
            killed = forked(program, folder, **plan)
            if killed.status not in (-signal.SIGKILL, 0):
                wrong.append(f"{name}, {plan}: status {killed.status}: {_last_line(killed)}")
        again = forked(program, folder)
        problems = differences(contents(folder), expected) if again.status == 0 else [_last_line(again)]
        wrong += [f"{name}, killed at {lived}: {problem}" for problem in problems]
        done += len(lived)
    print(f"{name}: {done} kills ({at_events} at {plain.events} write events, the others at random), "
          f"{len(wrong)} losses", flush=True)  # fmt: skip
    return wrong


def _prepared(program: Program, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    (place / "runs").mkdir(parents=True)
    program.prepare(place / "runs")
    return place / "runs"


def _last_line(ended: Ended) -> str:
    return (ended.output.strip().splitlines() or [""])[-1]


def run_training(folder: Path) -> None:
    """A training that keeps its epochs; resumed if there is a checkpoint, as its own message says."""
    arguments = training_arguments(folder, "run", "--keep_epochs", "true", "--data.batch_size", "128")
    last = folder / "run" / CHECKPOINT
    if (folder / "run" / "summary.json").exists():
        return
    train([*arguments, *(["--ckpt_path", str(last)] if last.exists() else [])])


def run_evaluation(folder: Path) -> None:
    """An evaluation of a trained run."""
    from eval_ood import main

    place = ("--runs", str(folder), "--run", str(folder / "run"))
    main([*place, *evaluation_arguments("--resamples", "20", "--shuffles", "1")])


def prepare_study(folder: Path) -> None:
    """The configs of a study of two tiny networks."""
    from tiny_study import study_config

    study_config(folder.parent / "configs", executor={"backend": "sequential"}, runs=str(folder))


def run_study(folder: Path) -> None:
    """A study in one process."""
    from study import main

    main(["--config", str(folder.parent / "configs" / "study.yaml")])


def run_lab(folder: Path) -> None:
    """A lab of two tiny networks, one at a time."""
    from lab import main

    config = folder.parent / "lab.yaml"
    grid = {"architecture": "mlp", "depth": 2, "width": 8, "activations": ["relu"], "learning_rate": 0.1, "epochs": 2}
    options = {"name": "tiny", "seeds": [0], "images": "shapes", "train_count": 256, "validation_count": 20}
    config.write_text(yaml.safe_dump({**options, "grids": [grid], "workers": 1, "runs": str(folder)}))
    main(["--config", str(config)])


def copy_trained(folder: Path) -> None:
    """A trained run, to be evaluated."""
    shutil.copytree(_trained(), folder / "run")


def _trained() -> Path:
    folder = data_root() / "trained"
    if not folder.exists():
        ended = forked(Program(0, run_training), folder)
        assert ended.status == 0, ended.output
    return folder / "run"


PROGRAMS = {
    "study": Program(0.2, run_study, prepare_study),  # the longest first
    "training": Program(0.5, run_training),
    "evaluation": Program(0.2, run_evaluation, copy_trained),
    "lab": Program(0.1, run_lab),
}


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(WANDB_MODE="disabled", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    data_root()
    chosen = {name: PROGRAMS[name] for name in given.programs.split(",")}
    scale = sum(program.share for program in chosen.values())
    kills = {name: max(1, round(given.kills * program.share / scale)) for name, program in chosen.items()}
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(PROGRAMS_AT_ONCE, fork) as pool:
        running = [pool.submit(campaign, name, kills[name], given.seed, Path(place)) for name in kills]
        wrong = [line for each in running for line in each.result()]
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
