"""A lab from its options to its page: train and record a grid of small networks, check the statements."""

from __future__ import annotations

import json
from dataclasses import asdict

import joblib
import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from bnood.data.image_set import ImageSet
from bnood.data.sources import load_images
from bnood.data.splits import stratified_split
from bnood.data.synthetic import SYNTHETIC
from bnood.errors import UserError
from bnood.lab.checks import Check, check_lab
from bnood.lab.options import LabOptions
from bnood.lab.train import read_records, train_network
from bnood.report.lab import write_lab_report
from bnood.training.atomic import write_beside
from bnood.training.provenance import commit, machine, versions


def run_lab(options: LabOptions, command: str) -> None:
    """Train every network that is missing, check the statements, print them and write tables and page.

    Networks that are done are kept, so that the same `command` goes on after an interruption.
    """
    console = Console(width=100, highlight=False)
    networks, folder = options.networks(), options.folder
    todo = [one for one in networks if read_records(options, one) is None]
    train, validation = draw_images(options)
    console.print(f"{len(networks)} networks, {len(todo)} to train")
    jobs = (joblib.delayed(train_network)(options, one, train, validation) for one in todo)
    parallel = joblib.Parallel(n_jobs=min(options.workers, max(1, len(todo))), return_as="generator_unordered")
    for count, done in enumerate(parallel(jobs), start=1):
        console.print(f"{count}/{len(todo)} {done['name']}: {done['ended']}, {done['seconds']:.0f} s")
    tables, ends, seconds = zip(*filter(None, (read_records(options, one) for one in networks)), strict=True)
    table = pd.concat(tables, ignore_index=True)
    checks = check_lab(table, len(np.unique(np.asarray(train.labels))))
    diverged = [f"{one.name}: {end}" for one, end in zip(networks, ends, strict=True) if end != "trained"]
    record = {"command": command, "networks": len(networks), "seconds": round(sum(seconds)), "versions": versions(),
              "commit": commit(), "machine": machine()}  # fmt: skip
    found = {**record, "checks": [check._asdict() for check in checks]}
    write_beside(folder / "checks.json", lambda path: path.write_text(json.dumps(found, indent=2) + "\n"))
    write_beside(folder / "lab.parquet", lambda path: table.to_parquet(path, index=False))
    statements = ["Statement", "Network", "Verdict", "Number", "Note"], [check[:5] for check in checks]
    page = write_lab_report(
        folder, table, title=f"Normalisation lab: {options.name}", statements=statements, commands=[command],
        record=record, notes=diverged, config=asdict(options),
    )[0]  # fmt: skip
    console.print(printed(checks))
    for line in diverged:
        console.print(Text(f"note: {line}"))
    console.print(Text(f"report: {page}"), soft_wrap=True)


def draw_images(options: LabOptions) -> tuple[ImageSet, ImageSet]:
    """The images trained on and those held out; UserError where networks cannot be trained on them."""
    wanted = options.train_count + options.validation_count
    drawn = wanted if options.images in SYNTHETIC else None
    images = load_images(options.images, "train", options.root, count=drawn)
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


def printed(checks: list[Check]) -> Table:
    """The statements as they are printed: a verdict and one number each."""
    columns = Column("statement", ratio=3), Column("verdict", no_wrap=True), Column("number", ratio=2)
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    several = len({check.architecture for check in checks}) > 1
    for check in checks:
        statement = f"{check.architecture}: {check.statement}" if several else check.statement
        number = f"{check.number}\n({check.note})" if check.note else check.number
        table.add_row(*(Text(text) for text in (statement, check.verdict, number)))
    return table
