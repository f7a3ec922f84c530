"""What runs beside a training: its log, its checkpoint files, its clock and its progress bar."""

import csv
import io
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from bnood import tracking
from bnood.data.atomic import write_beside
from bnood.errors import UserError, stop


class MetricsLog(Logger):
    """``metrics.csv``: rows are kept in memory, and the file is replaced before every checkpoint and at the end."""

    name, version = "metrics", ""
    tracked: Any = None  # the W&B run that gets the same numbers

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.rows = file, list[dict[str, Any]]()

    def resume(self, done: int) -> None:
        """Take up the file's rows up to step ``done``; later ones come again. UserError if it is no whole log."""
        if not self.file.is_file():
            raise UserError(f"{self.file} is missing or no file: a resumed training needs the log of the epochs before")
        try:
            with self.file.open(newline="") as opened:
                rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(opened)]
            self.rows = [row for row in rows if int(row["step"]) <= done]
        except (KeyError, ValueError, csv.Error) as error:
            raise UserError(f"{self.file} is not the log of a training: expected a table with a column step") from error
        if not any(int(row["step"]) == done for row in self.rows):
            raise UserError(f"{self.file} has no row of step {done}, after which the checkpoint was written")

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({"step": step, **metrics})
        if not tracking.log_metrics(self.tracked, metrics, step):
            self.tracked = None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in ``config.yaml``."""

    @rank_zero_only
    def write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, sorted(set().union(*self.rows)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_beside(self.file, lambda path: path.write_text(text.getvalue()))

    def finalize(self, status: str) -> None:
        if self.rows:
            self.write()

    def last(self, name: str) -> float | None:
        """The last value of a column; None if it was never measured."""
        values = [row[name] for row in self.rows if name in row]
        return float(values[-1]) if values else None


class RunFiles(TorchCheckpointIO):
    """Writes checkpoints as a whole, and the log before them: after a kill, the log is never behind a checkpoint."""

    def __init__(self, log: MetricsLog) -> None:
        super().__init__()
        self.log, self.settings = log, dict[str, Any]()  # settings that decide what is trained, for a resumption

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.log.write()
        # By way of memory: on a full disk, torch.save itself raises a RuntimeError without file or reason.
        content = io.BytesIO()
        torch.save(checkpoint | {"settings": self.settings}, content)
        write_beside(Path(path), lambda partial: partial.write_bytes(content.getbuffer()))


class Stopwatch(L.Callback):
    """Seconds of training steps and images seen, over all sessions of a resumed run; and whether training began."""

    def __init__(self) -> None:
        self.seconds, self.images, self.begun, self._start = 0.0, 0, False, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = True
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            # Lightning's own handler makes all processes talk to each other, in the middle of what they say just then.
            signal.signal(signal.SIGTERM, stop)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images += len(batch[0]) * trainer.world_size
        if trainer.is_last_batch:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]


class ProgressBar(RichProgressBar):
    """Lightning's bar with the values that were read for the log anyway: reading others would wait for the device."""

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        return dict(pl_module.shown)
