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

Configs = dict[Path, dict[str, Any]]  # the content of each file, by dotted key

_IN_WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null",
    "pathlib.Path": "a path", "tuple": "a list such as [a, b]", "list": "a list such as [a, b]",
}  # fmt: skip


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
        known = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
        raise UserError(_explained(" ".join(str(error).split()), known, configs)) from error


def read_configs(arguments: Sequence[str]) -> Configs:
    """The config files of a command line; UserError for bad ones."""
    paths = [each.partition("=")[2] for each in arguments if each.startswith("--config=")]
    paths += [after for flag, after in pairwise(arguments) if flag in ("-c", "--config")]
    return {Path(path): dict(dotted(read_yaml(Path(path)))) for path in paths}


def _explained(text: str, known: Sequence[str], configs: Configs) -> str:
    """A message of argparse or jsonargparse in fewer words, with the file; as it is where it has another form."""
    if found := re.match(r"unrecognized arguments: (--)?([^\s=]+)", text):
        if not found[1]:
            return f"{found[2]!r} is not expected here: every setting has the form --key value (see --help)"
        return f"there is no option --{found[2]}{_nearest(found[2], known, '--')} (see --help)"
    if found := re.search(r"(?:Group '(.*?)' does not accept option|Option) '(.*?)'", text):
        key = ".".join(filter(None, found.groups()))
        where = next((path for path, content in configs.items() if key in content), "the config")
        return f"{where}: there is no key {key}{_nearest(key, known)} (see --help)"
    if unfit := re.search(r'"(.*?)": .*?Problem with given class_path \S+ (?!Parser)(.*?)(?: - |$)', text):
        return f"{unfit[1]}: {unfit[2]}"
    parts = re.split(r'Parser key "(.*?)": ', text)[1:]  # key and reason, and within a reason those of a class's own
    while len(parts) > 2 and "value: " not in parts[1]:
        parts = [f"{parts[0]}.{parts[2]}", *parts[3:]]
    kinds = re.findall(r"Literal\[(.*?)\]|<class '(.*?)'>", parts[1].split("Given")[0]) if parts else []
    if not kinds or not (found := re.search(r"(?:Got|Given) value: (.*?)(?: - Problem| - Expected|$)", parts[1])):
        return text.removeprefix("Parser key ")
    key, value = parts[0], found[1].strip()
    expected = [_IN_WORDS.get(each, each.strip("'")) for kind in kinds for each in "".join(kind).split(", ")]
    where = next((f"{path}: " for path, content in configs.items() if str(content.get(key)) == value), "")
    return f"{where}{key} is {value!r}; expected {' or '.join(dict.fromkeys(expected))}"


def _nearest(word: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""
