"""The normalisation lab: python scripts/lab.py --config configs/lab/demo.yaml"""

import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ActionConfigFile, ArgumentParser
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from bnood.errors import run_door
from bnood.training.command_line import one_line_parsing

if TYPE_CHECKING:
    from bnood.lab.options import LabOptions


def parse(given: list[str]) -> "LabOptions":
    """The lab that a command line describes."""
    from bnood.lab.options import LabOptions  # brings torch: a signal while it is imported is one line too

    purpose = "Train and record a grid of small networks, check the statements; see configs/lab/."
    parser = ArgumentParser(prog="scripts/lab.py", description=purpose, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    parser.add_class_arguments(LabOptions)
    # The parser would add the keys of a grid here to those of the config's grid in the same place.
    given = [part for each in given for part in (["--grids=[]"] * (each.split("=")[0] == "--grids") + [each])]
    with one_line_parsing(parser, given), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse's, about names of its own functions
        made = parser.instantiate_classes(parser.parse_args(given))
    return LabOptions(**{key: made[key] for key in LabOptions.__dataclass_fields__})


def main(arguments: list[str] | None = None) -> Path:
    """Run a lab as ``scripts/lab.py`` does; returns its folder. UserError for bad input."""
    given = sys.argv[1:] if arguments is None else arguments
    options, console = parse(given), Console(width=100, highlight=False)
    from bnood.lab.run import run_lab  # brings torch, which --help can do without

    checks, diverged, page = run_lab(options, shlex.join(["python", "scripts/lab.py", *given]), console.print)
    columns = Column("statement", ratio=3), Column("verdict", no_wrap=True), Column("number", ratio=2)
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    several = len({check.architecture for check in checks}) > 1
    for check in checks:
        statement = f"{check.architecture}: {check.statement}" if several else check.statement
        number = f"{check.number}\n({check.note})" if check.note else check.number
        table.add_row(*(Text(text) for text in (statement, check.verdict, number)))
    console.print(table)
    for line in (*(f"note: {line}" for line in diverged), f"report: {page}"):
        console.print(Text(line), soft_wrap=True)
    return options.folder


if __name__ == "__main__":
    run_door(main)
