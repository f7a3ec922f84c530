"""The normalisation lab: python scripts/lab.py --config configs/lab/demo.yaml"""

import shlex
import sys
import warnings
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser

from bnood.errors import run_door
from bnood.lab.options import LabOptions
from bnood.training.command_line import one_line_parsing


def main(arguments: list[str] | None = None) -> Path:
    """Run a lab as ``scripts/lab.py`` does; returns its folder. UserError for bad input."""
    given = sys.argv[1:] if arguments is None else arguments
    purpose = "Train and record a grid of small networks, check the statements; see configs/lab/."
    parser = ArgumentParser(prog="scripts/lab.py", description=purpose, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    parser.add_class_arguments(LabOptions)
    with one_line_parsing(parser, given), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse's, about names of its own functions
        made = parser.instantiate_classes(parser.parse_args(given))
    from bnood.lab.run import run_lab  # brings torch, which --help can do without

    options = LabOptions(**{key: made[key] for key in LabOptions.__dataclass_fields__})
    run_lab(options, shlex.join(["python", "scripts/lab.py", *given]))
    return options.folder


if __name__ == "__main__":
    run_door(main)
