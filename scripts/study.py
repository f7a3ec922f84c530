"""Train, evaluate and judge networks: python scripts/study.py --config configs/studies/demo.yaml"""

import shlex
import sys
import warnings
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser

from bnood.errors import UserError, run_door
from bnood.study.options import StudyOptions
from bnood.training.command_line import one_line_parsing


def parse(given: list[str]) -> tuple[StudyOptions, bool]:
    """The study that a command line describes, and ``judge_only``."""
    purpose = "Train, evaluate and judge networks; rerun to resume. See configs/studies/."
    parser = ArgumentParser("scripts/study.py", description=purpose, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    parser.add_class_arguments(StudyOptions)
    parser.add_argument("--judge_only", type=bool, default=False, help="Only judge what is there.")
    parser.add_argument("--no-wandb", action="store_true", help="Turn Weights & Biases off.")
    if not given:
        raise UserError("a study needs a config: give --config, for example --config configs/studies/demo.yaml")
    with one_line_parsing(parser, given), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse's, about names of its own functions
        config = parser.parse_args(given)
        made = parser.instantiate_classes(config)
    options = StudyOptions(**{key: made[key] for key in StudyOptions.__dataclass_fields__})
    options.wandb.enabled = options.wandb.enabled and not config.no_wandb
    return options, config.judge_only


def main(arguments: list[str] | None = None) -> Path:
    """Run a study as ``scripts/study.py`` does, by default from the process's own command line; returns its folder.

    Raises ``UserError`` for bad input, and if a network failed, in which case no verdict is written.
    """
    given = sys.argv[1:] if arguments is None else arguments
    options, judge_only = parse(given)
    from bnood.study.run import run_study  # brings torch, which --help can do without

    return run_study(options, shlex.join(["python", "scripts/study.py", *given]), judge_only)


if __name__ == "__main__":
    run_door(main)
