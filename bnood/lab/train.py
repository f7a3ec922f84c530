"""Trains one network of a lab and keeps its records: `networks/<name>.parquet`, then `<name>.json`, which says done.

The records are one long table: architecture, activation, norm, seed, step, epoch, layer (from 1 at the
input; 0 for the whole network), quantity (:func:`bnood.lab.recorder.measure`, train_accuracy, validation_accuracy),
value. A record at a step is of the network before that step's update.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnood.data.image_set import ImageSet
from bnood.errors import UserError
from bnood.lab.options import LabNetwork, LabOptions
from bnood.lab.recorder import measure
from bnood.networks.plain import MLP, PlainConvNet
from bnood.training.atomic import write_beside


def is_done(options: LabOptions, one: LabNetwork) -> bool:
    """Whether a network's records are complete. Raises ``UserError`` if they are of other settings."""
    file = _file(options, one, "json")
    if not file.exists():
        return False
    try:
        found, wanted = json.loads(file.read_text())["settings"], one.settings(options)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}); remove it, and the network is trained again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged (settings are no mapping); remove it, and the network is trained again")
    for key in wanted:
        if found.get(key) != wanted[key]:
            remedy = f"choose another name for the lab, or remove {options.folder}"
            raise UserError(f"{file} was trained with {key} {found.get(key)}, not {wanted[key]}; {remedy}")
    return True


def read_records(options: LabOptions, one: LabNetwork) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The long table of a network, and what :func:`train_network` gave. UserError if they are damaged or missing."""
    file, ended = _file(options, one, "parquet"), json.loads(_file(options, one, "json").read_text())
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's are ValueErrors
        table, reason = pd.DataFrame(), " ".join(str(error).split())
    else:
        reason = "other columns or fields"
    whole = isinstance(ended.get("ended"), str) and isinstance(ended.get("seconds"), float)
    if not whole or not {"step", "epoch", "layer", "quantity", "value", *one.keys} <= {*table}:
        raise UserError(f"{file} or its .json is damaged ({reason}); remove both, and the network is trained again")
    return table, ended


def _file(options: LabOptions, one: LabNetwork, kind: str) -> Path:
    return options.folder / "networks" / f"{one.name}.{kind}"


def train_network(options: LabOptions, one: LabNetwork, train: ImageSet, validation: ImageSet) -> dict[str, Any]:
    """Train and record a network from the start; a loss that becomes NaN or infinite ends it and is a result.

    SGD with Nesterov momentum 0.9 and weight decay 5e-4; a tenth of the steps warm up, a cosine follows. Gives its
    name, settings, seconds, and ended: ``trained`` or ``diverged in epoch ...``.
    """
    torch.set_num_threads(1)
    torch.manual_seed(one.seed)
    grid, began = one.grid, time.perf_counter()
    (x, y), (x_validation, y_validation) = _tensors(train, train), _tensors(validation, train)
    network = _build(one, classes=int(y.max()) + 1, image_size=x.shape[-1])
    per_epoch = len(x) // options.batch_size
    total = grid.epochs * per_epoch
    optimizer = torch.optim.SGD(network.parameters(), grid.learning_rate, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, grid.learning_rate, total_steps=total, pct_start=0.1, cycle_momentum=False
    )
    probe = torch.randperm(len(x))[: grid.probe_images]
    records: list[tuple[int, float, int, str, float]] = []
    ended = "trained"

    def record(step: int) -> None:
        for layer, figures in enumerate(measure(network, x[probe], y[probe]), start=1):
            records.extend((step, step / per_epoch, layer, name, value) for name, value in figures.items())

    for epoch in range(grid.epochs):
        order, correct = torch.randperm(len(x)), 0
        for number in range(per_epoch):
            step = epoch * per_epoch + number
            if step % grid.record_every == 0:
                record(step)
            chosen = order[number * options.batch_size : (number + 1) * options.batch_size]
            images = x[chosen]
            if options.flip:
                images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
            logits = network.train()(images)
            loss = F.cross_entropy(logits, y[chosen])
            if not math.isfinite(loss.item()):
                ended = f"diverged in epoch {epoch + 1}"
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            correct += int((logits.argmax(1) == y[chosen]).sum())
        if ended != "trained":
            break
        accuracies = {
            "train_accuracy": correct / (per_epoch * options.batch_size),
            "validation_accuracy": _accuracy(network, x_validation, y_validation),
        }
        records.extend(((epoch + 1) * per_epoch, epoch + 1, 0, name, value) for name, value in accuracies.items())
    else:
        record(total)
    table = pd.DataFrame(records, columns=["step", "epoch", "layer", "quantity", "value"]).assign(**one.keys)
    write_beside(_file(options, one, "parquet"), lambda path: table.to_parquet(path, index=False))
    seconds = time.perf_counter() - began
    done = {"name": one.name, "settings": one.settings(options), "ended": ended, "seconds": seconds}
    write_beside(_file(options, one, "json"), lambda path: path.write_text(json.dumps(done, indent=2) + "\n"))
    return done


def _build(one: LabNetwork, classes: int, image_size: int) -> nn.Module:
    settings: dict[str, Any] = {
        "depth": one.grid.depth, "width": one.grid.width, "norm": one.norm, "num_classes": classes,
        "activation": one.activation,
    }  # fmt: skip
    return MLP(**settings, image_size=image_size) if one.grid.architecture == "mlp" else PlainConvNet(**settings)


def _tensors(images: ImageSet, reference: ImageSet) -> tuple[Tensor, Tensor]:
    """Images as float32 ``[N, 3, H, W]``, with mean 0 and deviation 1 in the reference's channels, and labels."""
    pixels = reference.images.reshape(-1, 3)
    mean, std = pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=np.float64).clip(1e-3)
    values = ((images.images - mean) / std).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2))), torch.as_tensor(images.labels)


@torch.no_grad()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    correct = [network(x).argmax(1) == y for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return float(torch.cat(correct).double().mean())
