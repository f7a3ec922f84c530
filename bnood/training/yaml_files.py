"""YAML as every program here reads it: strictly, so that a slip in a config is an error and not another training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bnood.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError if there is none, or it holds what :func:`check_yaml` refuses."""
    if not path.is_file():  # opening a named pipe would wait
        reason = "it is no regular file" if path.exists() else "no such config file"
        raise UserError(f"{path}: {reason}; expected a YAML file, as in configs/")
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text, str(path))
        content = yaml.safe_load(text)
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{path} holds {found}; expected a mapping, lines such as 'seed_everything: 0'")
    return content


def check_yaml(text: str, where: str) -> None:
    """Refuse what YAML allows and nobody means: a key given twice or without value, references, deep nesting."""
    try:
        content = yaml.compose(text, Loader=yaml.SafeLoader)
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1
                raise UserError(f"{where}: line {line}: references (*{event.anchor}) are not taken")
        _check_node(content, where, "", {})
    except RecursionError as error:
        raise UserError(f"{where}: brackets are nested too deeply") from error


def _check_node(node: yaml.Node | None, where: str, prefix: str, seen: dict[str, int]) -> None:
    """``seen`` holds the line of each key by its dotted name: ``model.norm`` is the key ``norm`` of ``model`` too."""
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _check_node(entry, where, prefix, {})
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        line, name = key.start_mark.line + 1, f"{prefix}{key.value}"
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            shown = key.value if isinstance(key, yaml.ScalarNode) else "in brackets"
            raise UserError(f"{where}: line {line}: the key {shown} is no text: put it in quotes")
        if name in seen:
            first = seen[name]
            raise UserError(f"{where}: line {line}: the key {name} is given a second time, first in line {first}")
        seen[name] = line
        if isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None:
            raise UserError(
                f"{where}: line {line}: the key {name} has no value: write one, write null, or leave it out"
            )
        _check_node(value, where, f"{name}.", seen)


def dotted(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"model": {"norm": "bn"}}`` -> ``("model", {"norm": "bn"})``, ``("model.norm", "bn")``."""
    for key, value in content.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
