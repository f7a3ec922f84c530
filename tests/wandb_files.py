"""Reads back what an offline run of Weights & Biases wrote: its transaction log, ``run-<id>.wandb``.

It is LevelDB's log format behind a header of 7 bytes: blocks of 32 KiB; in them chunks of crc32 (4 bytes), length (2),
type (1: whole, 2: first, 3: middle, 4: last); the chunks of one record joined are a ``Record`` protobuf.
"""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER, BLOCK, CHUNK_HEADER = 7, 32 * 1024, 7


@dataclass
class OfflineRun:
    """One offline run as it lies on the disk."""

    folder: Path
    record: Any  # project, run_group, job_type, display_name, tags ...
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    def media(self, value: dict[str, Any]) -> Path:
        """The file of an image or table that was logged with this value."""
        return self.folder / "files" / value["path"]


def read_records(file: Path) -> Iterator[Any]:
    """The protobuf records of a transaction log."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, position, parts = file.read_bytes(), HEADER, b""
    while position + CHUNK_HEADER <= len(data):
        if (left := BLOCK - position % BLOCK) < CHUNK_HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += CHUNK_HEADER
        if position + length > len(data):
            return  # still being written
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        inner = target
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)


def read_offline_run(folder: Path) -> OfflineRun:
    """Read ``.../wandb/offline-run-<time>-<id>``; ``run.finish()`` returns before wandb has written all of it."""
    (file,) = folder.glob("run-*.wandb")
    for _ in range(1500):
        if (run := _read(file)).exit_code is not None:
            break
        time.sleep(0.02)
    return run


def _read(file: Path) -> OfflineRun:
    run = OfflineRun(file.parent, None)
    for record in read_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.record = record.run
            _update(run.config, record.run.config.update)
        elif kind in ("config", "summary"):
            _update(getattr(run, kind), getattr(record, kind).update)
        elif kind == "history":
            run.history.append({})
            _update(run.history[-1], record.history.item)
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def read_offline_runs(folder: Path) -> list[OfflineRun]:
    """All offline runs in a run folder of bnood, in the order in which they were started."""
    runs = [read_offline_run(found) for found in folder.glob("wandb/offline-run-*")]
    return sorted(runs, key=lambda run: (run.record.start_time.seconds, run.record.start_time.nanos))
