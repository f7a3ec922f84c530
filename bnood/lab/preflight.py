"""What a lab checks before its first training: many trainings come before the last cell's mistake would show."""

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from bnood.data.datamodule import ImageDataModule
from bnood.errors import UserError
from bnood.lab.grid import Grid, LabCell, LabOptions, cells, drawn_images, training_arguments, training_settings
from bnood.lab.recorder import probe_images
from bnood.training.classifier import Classifier
from bnood.training.command_line import dotted, explain, in_short
from bnood.training.train import ParsingCLI, command_line


def check_written_grids(configs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Parse each grid of the config files by itself: the whole config's parser does not say which one is wrong.

    Args:
        configs: the files, by path, each as dotted keys and their values.

    Raises:
        UserError: naming file, grid and key.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Grid)
    for path, content in configs.items():
        grids = content.get("grids")
        for position, grid in enumerate(grids if isinstance(grids, list) else []):
            where = f"grids[{position}]"
            if not isinstance(grid, dict):
                raise UserError(
                    f"{path}: {where} is {grid!r}; expected a mapping such as {{architecture: mlp, depth: 8, ...}}"
                )
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # jsonargparse's, about names of its own functions
                    parser.parse_object(grid)
            except argparse.ArgumentError as error:
                message = explain(str(error), parser, {path: dict(dotted(grid))}, f"{where}.")
                if "there is no key" in message and "did you mean" not in message:
                    message += "; keys of train.py, such as model.groups, stand under a grid's settings"
                raise UserError(message if message.startswith(str(path)) else f"{path}: {message}") from error


def check_trainings(options: LabOptions) -> None:
    """Parse the training of every network and build the network, so that no cell has a mistake of its own.

    Raises:
        UserError: naming the grid and the network.
    """
    for cell in cells(options):
        if cell.seed != options.seeds[0]:
            continue
        where = f"grids[{cell.grid}] ({cell.network}), with its settings and the lab's"
        try:
            config = _parsed(options, cell)
            ImageDataModule(**config.data.as_dict())
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        model = config.model.as_dict()
        if model["compile"]:
            raise UserError(f"{where}: model.compile is true, but a compiled network has no layers to record")
        try:
            Classifier(**model)
        except UserError as error:
            message = re.sub(r"\bmodel\.(depth|width|learning_rate)\b", r"\1", str(error).removeprefix("model: "))
            raise UserError(f"{where}: {message}") from error


def check_images(options: LabOptions, drawn: bool) -> None:
    """Open the images of every grid, and count whether there are enough for the records.

    Args:
        options: the lab.
        drawn: whether to look at those that the lab has drawn itself, or at all others.

    Raises:
        UserError: if they are missing, damaged or too few.
    """
    opened: dict[str, ImageDataModule] = {}
    for position, grid in enumerate(options.grids):
        cell = next(cell for cell in cells(options) if cell.grid == position)
        if (drawn_images(options, training_settings(options, cell)) is not None) != drawn:
            continue
        section = _parsed(options, cell).data.as_dict()
        data = opened.setdefault(str(section), ImageDataModule(**section))
        try:
            data.setup("fit")
            probe_images(data, grid.probe_images, seed=0)
        except UserError as error:
            raise UserError(f"grids[{position}]: {in_short(str(error))}") from error


def _parsed(options: LabOptions, cell: LabCell) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return command_line(training_arguments(options, cell), ParsingCLI).config
