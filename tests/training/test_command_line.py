"""What the parser refuses, as one line. The scripts' own refusals are tested in ``tests/scripts``."""

from pathlib import Path

import pytest
from jsonargparse import ActionConfigFile, ArgumentParser

from bnood.errors import UserError
from bnood.training.command_line import one_line_parsing, read_configs
from bnood.training.yaml_files import read_yaml


def parse(*arguments: str) -> object:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--model.depth", type=int, default=18)
    with one_line_parsing(parser, arguments):
        return parser.parse_args(list(arguments)).model.depth


def test_what_is_right_is_parsed(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("model: {depth: 20}")
    assert parse() == 18
    assert parse("--config", str(config)) == 20
    assert parse("--config", str(config), "--model.depth", "34") == 34


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model.dpeth", "3"], "there is no option --model.dpeth (did you mean --model.depth?) (see --help)"),
        (["--model.depth", "deep"], "model.depth is 'deep'; expected a whole number"),
        (["deep"], "'deep' is not expected here: every setting has the form --key value (see --help)"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], line: str) -> None:
    with pytest.raises(UserError) as error:
        parse(*arguments)
    assert str(error.value) == line


def test_a_wrong_key_or_value_of_a_config_names_the_file(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    for text, words in (
        ("model: {dpeth: 3}", f"{config}: there is no key model.dpeth (did you mean model.depth?) (see --help)"),
        ("model: {depth: deep}", f"{config}: model.depth is 'deep'; expected a whole number"),
    ):
        config.write_text(text)
        with pytest.raises(UserError) as error:
            parse("--config", str(config))
        assert str(error.value) == words


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
        ("model:", "line 1: the key model has no value: write one, write null, or leave the key out"),
        ("grids: [{depth: 1}, {depth: }]", "the key grids.depth has no value"),
        ("a: " + "[" * 3000 + "]" * 3000, "more than 20 levels are nested"),
        ("a: &a [1]\nb: [*a, *a]", r"line 2: references .\*a. are not taken"),
        ("? [a]\n: 1", "a key has to be text"),
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


def test_values_on_the_command_line_are_yaml_too() -> None:
    for value in ("{depth: 3, depth: 4}", "[" * 3000):
        with pytest.raises(UserError, match=r"--model.depth: line 1: "):
            parse("--model.depth", value)
