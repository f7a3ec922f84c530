"""A lab from its options to its page: train and record a grid of small networks, check the statements.

A network's records are `networks/<name>.parquet`, one long table (layer 1 is at the input, 0 the whole network; a
gradient at a step is of the network before its update), then `<name>.json`, which says done.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnood.data.atomic import write_beside
from bnood.data.image_set import ImageSet, stratified_split
from bnood.data.sources import load_images
from bnood.data.synthetic import SYNTHETIC
from bnood.errors import UserError, deaf_to_ctrl_c
from bnood.lab.checks import Check, check_lab
from bnood.lab.options import LabNetwork, LabOptions
from bnood.networks.plain import MLP, HiddenLayer, PlainConvNet
from bnood.report.page import write_lab_report
from bnood.statistics import has_batchnorm, use_statistics
from bnood.training.provenance import made_with

COLUMNS = ["step", "epoch", "layer", "quantity", "value"]
RECORD_EVERY, PROBE_IMAGES = 50, 256  # steps between two records of gradients, and training images of a record


def run_lab(options: LabOptions, command: str, say: Callable[[str], object]) -> tuple[list[Check], list[str], Path]:
    """Train every network that is missing, check the statements, write tables and page; `say` takes lines of progress.

    Gives the judged statements, a line for each network that diverged, and the page. Networks that are done are kept,
    so that the same `command` goes on after an interruption.
    """
    networks, folder = options.networks(), options.folder
    todo = [one for one in networks if read_records(options, one) is None]
    train, validation = draw_images(options)
    say(f"{len(networks)} networks, {len(todo)} to train")
    jobs = (joblib.delayed(train_network)(options, one, train, validation) for one in todo)
    parallel = joblib.Parallel(n_jobs=min(options.workers, max(1, len(todo))), return_as="generator_unordered")
    with deaf_to_ctrl_c():
        trained = parallel(jobs)  # starts the workers
    for count, done in enumerate(trained, start=1):
        say(f"{count}/{len(todo)} {done['name']}: {done['ended']}, {done['seconds']:.0f} s")
    tables, ends, seconds = zip(*filter(None, (read_records(options, one) for one in networks)), strict=True)
    table = pd.concat(tables, ignore_index=True)
    checks = check_lab(table, len(np.unique(np.asarray(train.labels))))
    diverged = [f"{one.name}: {end}" for one, end in zip(networks, ends, strict=True) if end != "trained"]
    record = {"command": command, "networks": len(networks), "seconds": round(sum(seconds)), **made_with()}
    found = {**record, "checks": [check._asdict() for check in checks]}
    write_beside(folder / "checks.json", lambda path: path.write_text(json.dumps(found, indent=2) + "\n"))
    write_beside(folder / "lab.parquet", lambda path: table.to_parquet(path, index=False))
    statements = ["Statement", "Network", "Verdict", "Number", "Note"], [check[:5] for check in checks]
    page = write_lab_report(
        folder, table, title=f"Normalisation lab: {options.name}", statements=statements, commands=[command],
        record=record, notes=diverged, config=asdict(options),
    )[0]  # fmt: skip
    return checks, diverged, page


def draw_images(options: LabOptions) -> tuple[ImageSet, ImageSet]:
    """The images trained on and those held out."""
    wanted = options.train_count + options.validation_count
    images = load_images(options.images, "train", options.root, count=wanted if options.images in SYNTHETIC else None)
    if images.labels is None or len(images) < wanted:
        counts = f"train_count {options.train_count} and validation_count {options.validation_count}"
        found = f"{len(images)} images {'without' if images.labels is None else 'with'} labels"
        raise UserError(f"{images.name} has {found}; {counts} need {wanted} with labels")
    images = images.at_most(wanted, seed=0)
    labels = np.asarray(images.labels)
    if not labels.min() < labels.max() < wanted:  # a network has a logit for every class up to the last one
        expected = f"expected two classes or more, numbered below {wanted}, the number of images"
        raise UserError(f"{images.name}: labels are {labels.min()} to {labels.max()}; {expected}")
    train, validation = stratified_split(labels, options.validation_count, 0, images.name)
    return images.subset(train), images.subset(validation)


def read_records(options: LabOptions, one: LabNetwork) -> tuple[pd.DataFrame, str, float] | None:
    """A network's table, how its training ended, and its seconds; None if it has to be trained."""
    file, wanted = _file(options, one, "json"), one.settings(options)
    if not file.exists():
        return None
    try:
        done = json.loads(file.read_text())
        found = {key: done["settings"].get(key) for key in wanted}
        table = pd.read_parquet(_file(options, one, "parquet"))[[*one.keys, *COLUMNS]]
        ended, seconds = str(done["ended"]), float(done["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        remedy = "remove it and the .parquet beside it, and the network is trained again"
        raise UserError(f"{file} or its .parquet is damaged ({type(error).__name__}: {error}); {remedy}") from error
    for key in (key for key in wanted if found[key] != wanted[key]):
        remedy = f"choose another name for the lab, or remove {options.folder}"
        raise UserError(f"{file} was trained with {key} {found[key]}, not {wanted[key]}; {remedy}")
    return table, ended, seconds


def _file(options: LabOptions, one: LabNetwork, kind: str) -> Path:
    return options.folder / "networks" / f"{one.name}.{kind}"


def train_network(options: LabOptions, one: LabNetwork, train: ImageSet, validation: ImageSet) -> dict[str, Any]:
    """Train and record a network from the start; a loss that becomes NaN or infinite ends it and is a result."""
    torch.set_num_threads(1)
    torch.manual_seed(one.seed)
    grid, began, size = one.grid, time.perf_counter(), options.batch_size
    (x, y), (x_validation, y_validation) = _tensors(train, train), _tensors(validation, train)
    network = (MLP if grid.architecture == "mlp" else PlainConvNet)(
        grid.depth, grid.width, one.norm, num_classes=int(y.max()) + 1, activation=one.activation
    )
    per_epoch = len(x) // size
    optimizer = torch.optim.SGD(network.parameters(), grid.learning_rate, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, grid.learning_rate, total_steps=grid.epochs * per_epoch, pct_start=0.1, cycle_momentum=False
    )
    probe = torch.randperm(len(x))[:PROBE_IMAGES]
    records: list[tuple[int, float, int, str, float]] = []
    ended, step = "trained", 0
    for epoch in range(1, grid.epochs + 1):
        correct = 0
        for chosen in torch.randperm(len(x))[: per_epoch * size].split(size):
            if step % RECORD_EVERY == 0:
                for layer, norm in enumerate(gradient_norms(network, x[probe], y[probe]), start=1):
                    records.append((step, step / per_epoch, layer, "gradient_norm", norm))
            images = x[chosen]
            if options.flip:
                images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
            logits = network.train()(images)
            loss = F.cross_entropy(logits, y[chosen])
            if not math.isfinite(loss.item()):
                ended = f"diverged in epoch {epoch}"
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            correct += int((logits.argmax(1) == y[chosen]).sum())
            step += 1
        if ended != "trained":
            break
        records.append((step, epoch, 0, "train_accuracy", correct / (per_epoch * size)))
        records.append((step, epoch, 0, "validation_accuracy", _accuracy(network, x_validation, y_validation)))
    table = pd.DataFrame(records, columns=COLUMNS).assign(**one.keys)
    write_beside(_file(options, one, "parquet"), lambda path: table.to_parquet(path, index=False))
    seconds = time.perf_counter() - began
    done = {"name": one.name, "settings": one.settings(options), "ended": ended, "seconds": seconds}
    write_beside(_file(options, one, "json"), lambda path: path.write_text(json.dumps(done, indent=2) + "\n"))
    return done


def gradient_norms(network: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """Frobenius norm of the loss's gradient on the weight of each hidden layer, under batch statistics."""
    weights = [layer.linear.weight for layer in network.modules() if isinstance(layer, HiddenLayer)]
    with use_statistics(network, "batch") if has_batchnorm(network) else nullcontext():
        gradients = torch.autograd.grad(F.cross_entropy(network(images), labels), weights)
    return [float(gradient.norm()) for gradient in gradients]


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
