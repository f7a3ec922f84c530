"""YAML is read strictly, in files and on the command line. Wrong keys and values: ``tests/scripts``."""

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from bnood.errors import UserError
from bnood.training.command_line import one_line_parsing, read_configs, read_yaml


def test_configs_are_read_with_dotted_keys(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("a: {b: {c: 1}}\nd: 2")
    expected = {config: {"a": {"b": {"c": 1}}, "a.b": {"c": 1}, "a.b.c": 1, "d": 2}}
    assert read_configs(["--config", str(config), "--x"]) == expected
    assert read_configs([f"--config={config}"]) == expected
    assert read_configs([]) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {depth: 3}\nmodel: {depth: 4}", "line 2: the key model is given a second time, first in line 1"),
        ("model:\n  depth: 3\n  depth: 3", "line 3: the key model.depth is given a second time"),
        ("model:", "line 1: the key model has no value: write one, write null, or leave it out"),
        ("grids: [{depth: 1}, {depth: }]", "the key grids.depth has no value"),
        ("a: " + "[" * 3000 + "]" * 3000, "brackets are nested too deeply"),
        ("a: &a [1]\nb: [*a, *a]", r"line 2: references .\*a. are not taken"),
        ("? [a]\n: 1", "the key in brackets is no text"),
        ("a: !!python/object/apply:os.getcwd []", "is not readable as YAML"),
        ("a: 2020-13-45", "is not readable as YAML"),
    ],
)
def test_what_yaml_allows_and_nobody_means(text: str, words: str, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_yaml(config)
    assert str(error.value).startswith(str(config)) and "\n" not in str(error.value)
    config.write_text("model: {depth: null, name: ''}\nlist: []\n")
    assert read_yaml(config) == {"model": {"depth": None, "name": ""}, "list": []}


@pytest.mark.parametrize("value", ["{depth: 3, depth: 4}", "[" * 3000, "={depth: }"])
def test_values_on_the_command_line_are_yaml_too(value: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--depth", type=int)
    arguments = [f"--depth{value}"] if value.startswith("=") else ["--depth", value]
    with pytest.raises(UserError, match="on the command line: "), one_line_parsing(parser, arguments):
        parser.parse_args(arguments)
