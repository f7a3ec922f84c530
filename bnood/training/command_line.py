"""Settings from the command line and from YAML, read strictly: a slip is one line and not another training."""

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

Configs = dict[Path, dict[str, Any]]  # the content of each file, by dotted key

_IN_WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null",
    "pathlib.Path": "a path", "tuple": "a list such as [a, b]", "list": "a list such as [a, b]",
}  # fmt: skip


@contextmanager
def one_line_parsing(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Iterator[None]:
    """Parse inside; a misspelt key or value raises :class:`UserError` with one line instead of a page of usage.

    The parser has to have ``exit_on_error=False``; no ``arguments`` are the process's own.
    """
    given = sys.argv[1:] if arguments is None else arguments
    paths = [each.partition("=")[2] for each in given if each.startswith("--config=")]
    paths += [after for flag, after in pairwise(given) if flag in ("-c", "--config")]
    paths += [name for each in given if (name := each.rpartition("=")[2]).endswith((".yaml", ".yml"))]  # of a section
    configs = {Path(path): dict(dotted(read_yaml(Path(path)))) for path in paths}
    for value in (each.partition("=")[2] or each for each in given):
        if value[:1] in ("{", "["):
            with suppress(yaml.YAMLError):  # text that is no YAML is left to the parser
                check_yaml(value, f"{value[:40]!r} on the command line")
    keys = [action.dest.split(".") for action in parser._actions]
    sections = {key[0] for key in keys if len(key) > 1 and key[-1] != "help"}  # the parser's own --data.help
    for path, key in ((path, key) for path, content in configs.items() for key in sections & content.keys()):
        if not isinstance(configs[path][key], dict):
            raise UserError(f"{path}: {key} is {configs[path][key]!r}; expected a section with keys of its own")
    try:
        yield
    except argparse.ArgumentError as error:
        known = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
        raise UserError(_explained(" ".join(str(error).split()), known, configs)) from error


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


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError if there is none, or it holds what :func:`check_yaml` refuses."""
    if not path.is_file():  # opening a named pipe would wait
        reason = "it is no regular file" if path.exists() else "no such config file"
        raise UserError(f"{path}: {reason}; expected a YAML file, as in configs/")
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text, str(path))
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {content!r:.40}; expected a mapping, lines such as 'seed_everything: 0'")
    return content


def check_yaml(text: str, where: str) -> None:
    """Refuse what YAML allows and nobody means: a key given twice or without value, references, deep nesting."""
    try:
        content = yaml.compose(text, Loader=yaml.SafeLoader)
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1
                raise UserError(f"{where}: line {line}: references (*{event.anchor}) are not taken")
        _check_node(content, where, "", set())
    except RecursionError as error:
        raise UserError(f"{where}: brackets are nested too deeply") from error


def _check_node(node: yaml.Node | None, where: str, prefix: str, seen: set[str]) -> None:
    """``seen`` holds the dotted names of keys: ``model.norm`` is the key ``norm`` of ``model`` too."""
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _check_node(entry, where, prefix, set())
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        wrong, name = "", f"{prefix}{key.value}" if isinstance(key, yaml.ScalarNode) else "in brackets"
        if key.tag != "tag:yaml.org,2002:str":
            wrong = "is no text: put it in quotes"
        elif name in seen:
            wrong = "is given a second time"
        elif isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None:
            wrong = "has no value: write one, write null, or leave it out"
        if wrong:
            raise UserError(f"{where}: line {key.start_mark.line + 1}: the key {name} {wrong}")
        seen.add(name)
        _check_node(value, where, f"{name}.", seen)


def dotted(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"model": {"norm": "bn"}}`` -> ``("model", {"norm": "bn"})``, ``("model.norm", "bn")``."""
    for key, value in content.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
