"""What the command line's parser refuses, as one line that names the key and the nearest right one."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from bnood.errors import UserError
from bnood.training.yaml_files import check_yaml, dotted, read_yaml

_PLAIN_TYPES = {
    "pathlib.Path": "a path",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
}


@contextmanager
def one_line_parsing(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Iterator[None]:
    """Parse inside; a misspelt key or value raises :class:`UserError` with one line instead of a page of usage.

    The parser has to have ``exit_on_error=False``; no ``arguments`` are the process's own. The config files among them
    are opened first, because the parser's own messages do not say which file they are about.
    """
    given = sys.argv[1:] if arguments is None else arguments
    configs = read_configs(given)
    for value in (each.partition("=")[2] or each for each in given):
        if value[:1] in ("{", "["):
            with suppress(yaml.YAMLError):  # text that is no YAML is left to the parser
                check_yaml(value, f"{value[:40]!r} on the command line")
    keys = [action.dest.split(".") for action in parser._actions]
    sections = {key[0] for key in keys if len(key) > 1 and key[-1] != "help"}  # the parser's own --data.help
    for path, content in configs.items():
        for key in sections & content.keys():
            if not isinstance(content[key], dict):
                raise UserError(f"{path}: {key} is {content[key]!r}; expected a section with keys of its own")
    try:
        yield
    except argparse.ArgumentError as error:
        raise UserError(_explained(" ".join(str(error).split()), parser, configs)) from error


def read_configs(arguments: Sequence[str]) -> dict[Path, dict[str, Any]]:
    """The config files of a command line, by path, each as dotted keys and their values; UserError for bad ones."""
    paths = [each.partition("=")[2] for each in arguments if each.startswith("--config=")]
    paths += [after for flag, after in pairwise(arguments) if flag in ("-c", "--config")]
    return {Path(path): dict(dotted(read_yaml(Path(path)))) for path in paths}


def _explained(text: str, parser: argparse.ArgumentParser, configs: dict[Path, dict[str, Any]]) -> str:
    """A message of argparse or jsonargparse as one line: what is wrong, where, and what would be right."""
    known = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
    if found := re.match(r"unrecognized arguments: (\S+)", text):
        option = found[1].partition("=")[0]
        if not option.startswith("--"):
            return f"{found[1]!r} is not expected here: every setting has the form --key value (see --help)"
        return f"there is no option {option}{_nearest(option.lstrip('-'), known, '--')} (see --help)"
    if found := re.search(r"(?:Group '(?P<group>.*?)' does not accept option|Option) '(?P<key>.*?)'", text):
        key = f"{found['group']}.{found['key']}" if found["group"] else found["key"]
        where = next((str(path) for path, content in configs.items() if key in content), "the config")
        return f"{where}: there is no key {key}{_nearest(key, known)} (see --help)"
    if not (found := re.search(r'Parser key "(?P<key>.*?)": (?P<reason>.*)', text)):
        return text
    return _wrong_value(found["key"], found["reason"], configs)


def _wrong_value(key: str, reason: str, configs: dict[Path, dict[str, Any]]) -> str:
    if inner := re.search(r'Problem with given class_path \'\S+\': Parser key "(.*?)": (.*)', reason):
        return _wrong_value(f"{key}.{inner[1]}", inner[2], configs)
    if unfit := re.search(r"(Problem with given class_path .*?)(?: - |$)", reason):
        return f"{key}: {unfit[1]}"
    given = re.search(r"(?:Got|Given) value: (.*)$", reason)
    kind_given = re.search(r"Given value type: <class '(.*?)'>", reason)
    reason = reason[: kind_given.start()] if kind_given else reason
    choices = [choice.strip(" '\"") for part in re.findall(r"Literal\[(.*?)\]", reason) for choice in part.split(",")]
    kinds = [_PLAIN_TYPES.get(kind, kind) for kind in re.findall(r"<class '(.*?)'>", reason)]
    if len(kinds) > 1 and kind_given and kind_given[1] == "str":
        kinds = [kind for kind in kinds if kind != "text"]  # what is wrong was given as text
    expected = list(dict.fromkeys([*choices, *kinds]))
    if given is None or not expected:
        return f"{key}: {reason}"
    value = given[1].strip()
    if {"list", "tuple"} & {*expected} and not value.startswith("["):
        expected = [f"a list such as [{value}]"]
    where = next((f"{path}: " for path, content in configs.items() if str(content.get(key)) == value), "")
    return f"{where}{key} is {value!r}{_nearest(value, choices)}; expected {' or '.join(expected)}"


def _nearest(word: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""
